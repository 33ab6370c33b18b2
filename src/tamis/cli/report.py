"""``tamis report``: the page of a run, made anew."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, session


def report(
    run: Annotated[Path, typer.Argument(help="Finished run.")],
    *,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's report.html from its records.

    What a training with --no-report left out is computed now, where its dataset is still at hand.
    """
    with session("report", as_json=as_json, debug=debug) as current:
        from tamis import api

        dataset = None
        if not (run / "diagnostics.json").exists():
            api.prepare_process(threads)
            folder = api.dataset_of(run)
            if api.is_dataset(folder):
                dataset = api.open_dataset(folder, verify=True)
            else:
                current.say(f"{folder}: no dataset any more; the report is without diagnostics.")
        page = api.write_report(run, dataset)
        current.say(f"report: {page}")
        current.finish(run=run, out=page, **api.Run(run).record)
