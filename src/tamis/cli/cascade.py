"""``tamis cascade``: what an early stage learns from, asked of a funnel."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, print_table, session


def cascade(
    bundle: Annotated[
        Path,
        typer.Argument(
            help="Bundle of a retrieval and a final stage, the teacher, and of the early stage "
            "between them, if there is one already."
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Dataset that its final stage was trained on.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of the training split to take candidates from.")
    ] = 4000,
    scored: Annotated[
        int, typer.Option(min=1, help="Candidates of each that the final stage was asked about.")
    ] = 16,
    rejected: Annotated[
        int,
        typer.Option(
            min=0,
            help="Candidates of each that earlier stages rejected: where an early stage comes "
            "first, half of them just below its cut.",
        ),
    ] = 8,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Field that the early stage shall not read, such as a history, which costs time. "
            "May be given several times.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which ones.")] = 0,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write what an early stage learns from: impressions, and what the last stage says of others.

    Train a model early_stage on the new dataset, and publish it between the two stages.
    """
    with session("cascade", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.publishing.cascade import CascadeSampling

        api.prepare_process(threads)
        with current.progress() as bars:
            bar = bars.add_task("asking the last stage", total=None, note="requests")
            dataset = api.write_cascade(
                bundle,
                data,
                out,
                sampling=CascadeSampling(
                    requests=requests, scored=scored, rejected=rejected, seed=seed
                ),
                without=without or (),
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        rows = {name: dataset.split(name).num_rows for name in dataset.split_names}
        print_table(
            current,
            title=f"Dataset {out}",
            columns=["split", "rows"],
            rows=[[name, f"{count:,}"] for name, count in rows.items()],
        )
        current.finish(out=out, rows=rows)
