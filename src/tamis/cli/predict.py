"""``tamis predict``: probabilities for the rows of a raw log."""

import dataclasses
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
        from tamis.cli.drawing import draw_repairs, draw_warnings

        api.prepare_process(threads)
        prediction = api.predict_counted(run, source, out)
        fields = {name: dataclasses.asdict(item) for name, item in prediction.fields.items()}
        draw_repairs(current, fields)
        draw_warnings(current, prediction.warnings)
        rows = prediction.table.num_rows
        current.say(f"{rows:,} rows in {out}")
        current.finish(run=run, out=out, rows=rows, fields=fields, warnings=prediction.warnings)
