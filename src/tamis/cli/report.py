"""``tamis report``: the page of a run, made anew."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, session


def report(
    run: Annotated[Path, typer.Argument(help="Finished run.")],
    *,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's report.html from its records."""
    with session("report", as_json=as_json, debug=debug) as current:
        from tamis import api

        page = api.write_report(run)
        current.say(f"report: {page}")
        current.finish(run=run, out=page, **api.Run(run).record)
