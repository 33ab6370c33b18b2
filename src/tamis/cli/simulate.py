"""``tamis simulate``: write a log of the simulated ad market and, apart, its true probabilities."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, number, print_table, session


def simulate(
    *,
    rows: Annotated[int, typer.Option(min=1, help="Impressions to write.")],
    out: Annotated[Path, typer.Option(help="Folder that does not exist yet, or is empty.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write Parquet logs of the simulated ad market, and its truth beside them."""
    with session("simulate", as_json=as_json, debug=debug) as current:
        from tamis import api

        with current.progress() as progress:
            bar = progress.add_task("impressions", total=rows, note="")
            summary = api.simulate(
                rows, out, seed=seed, progress=lambda done: progress.update(bar, completed=done)
            )
        print_table(
            current,
            title=f"Simulated market in {out}",
            columns=["task", "base rate", "best reachable NE"],
            rows=[
                [task, number(summary.base_rates[task]), number(summary.optimal_ne[task])]
                for task in summary.base_rates
            ],
        )
        current.finish(
            out=out, rows=rows, base_rates=summary.base_rates, optimal_ne=summary.optimal_ne
        )
