"""``tamis evaluate``: a run's model on a split."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, session


def evaluate(
    run: Annotated[Path, typer.Argument(help="Finished run.")],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Dataset folder, or a raw log, which the run's encoders encode; the run's own "
            "dataset when absent."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset to evaluate.")] = "test",
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run's model on a split of a dataset, or on a new log with labels."""
    with session("evaluate", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.cli.drawing import draw_metrics, draw_repairs, ingest_progress

        api.prepare_process(threads)
        dataset = data or api.dataset_of(run)
        with ingest_progress(current) as progress:
            record = api.evaluate(run, dataset, split=split, progress=progress)
        if "fields" in record:
            draw_repairs(current, record["fields"])
        # All rows of a log are evaluated, and called the split test.
        draw_metrics(current, record, title=f"{run} on {data if 'fields' in record else split}")
        current.finish(run=run, dataset=dataset, split=split, **record)
