"""``tamis predict``: probabilities for the rows of a raw log."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, session


def predict(
    run: Annotated[Path, typer.Argument(help="Finished run.")],
    source: Annotated[list[Path], typer.Argument(help="Log files, or one folder of them.")],
    *,
    out: Annotated[Path, typer.Option(help="Parquet file to write, or .csv.")],
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict every row of a log with the encoders that the run was trained with."""
    with session("predict", as_json=as_json, debug=debug) as current:
        from tamis import api

        api.prepare_process(threads)
        table = api.predict(run, source, out)
        current.console.print(f"{table.num_rows:,} rows in {out}", soft_wrap=True)
        current.finish(run=run, out=out, rows=table.num_rows)
