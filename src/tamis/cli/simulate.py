"""``tamis simulate``: a log of the simulated ad market and, apart, its true probabilities."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, number, print_table, session
from tamis.errors import ConfigError


def simulate(
    *,
    rows: Annotated[
        int, typer.Option(min=1, help="Impressions to write; beside --funnel, of the whole market.")
    ],
    out: Annotated[Path, typer.Option(help="Folder that does not exist yet, or is empty.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    funnel: Annotated[
        Path | None,
        typer.Option(help="Bundle that serves the users, trained on this market's log."),
    ] = None,
    first_day: Annotated[
        int | None,
        typer.Option(min=0, help="Day on which the funnel begins; before, the market serves."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days that the funnel serves.")] = None,
    judge_every: Annotated[
        int | None,
        typer.Option(min=1, help="One request in so many tells all its candidates (100)."),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write Parquet logs of the simulated ad market, and its truth beside them.

    The market answers requests itself, or a published funnel does: then the folder also holds
    prices, and all candidates of some requests with the scores of every stage.
    """
    with session("simulate", as_json=as_json, debug=debug) as current:
        from tamis import api

        if funnel is None:
            for name, value in (
                ("--first-day", first_day), ("--days", days), ("--judge-every", judge_every)
            ):  # fmt: skip
                if value is not None:
                    raise ConfigError(
                        f"{name}: must be given with --funnel, got {value} without. Name a bundle, "
                        f"or leave it out."
                    )
            with current.progress() as bars:
                bar = bars.add_task("impressions", total=rows, note="")
                summary = api.simulate(
                    rows, out, seed=seed, progress=lambda done: bars.update(bar, completed=done)
                )
        else:
            api.prepare_process(threads)
            with current.progress() as bars:
                bar = bars.add_task("hours", total=None, note="")
                summary = api.simulate_by_funnel(
                    funnel,
                    rows,
                    out,
                    seed=seed,
                    first_day=first_day or 0,
                    days=days,
                    judge_every=judge_every or 100,
                    progress=lambda done, total: bars.update(bar, completed=done, total=total),
                )
        print_table(
            current,
            title=f"Simulated market in {out}, {summary.rows:,} impressions",
            columns=["task", "base rate", "best reachable NE"],
            rows=[
                [task, number(rate), number(summary.optimal_ne.get(task))]
                for task, rate in summary.base_rates.items()
            ],
        )
        current.finish(
            out=out,
            rows=summary.rows,
            base_rates=summary.base_rates,
            optimal_ne=summary.optimal_ne,
            **({} if funnel is None else {"funnel": funnel}),
        )
