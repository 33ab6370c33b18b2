"""``tamis ingest``: raw logs to a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, print_table, session


def ingest(
    source: Annotated[list[Path], typer.Argument(help="Log files, or one folder of them.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the dataset; must not exist yet.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Label column; repeat for several tasks.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="schema.toml; inferred from the logs when absent.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="time, user, ratio, or the name of a column that says it.")
    ] = "auto",
    valid: Annotated[float, typer.Option(help="Share of rows for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of rows for the test.")] = 0.1,
    schema_only: Annotated[
        bool, typer.Option("--schema-only", help="Only infer the schema and write it to --out.")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn CSV, TSV, Parquet or JSON-lines logs into a memory-mapped dataset."""
    with session("ingest", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.cli.drawing import draw_ingest, ingest_progress

        api.prepare_process(threads)
        if schema_only:
            written = api.infer_schema(source, out, labels=label or ())
            current.console.print(f"wrote {written}; edit it and pass it as --schema")
            current.finish(out=written)
            return
        with ingest_progress(current) as progress:
            dataset = api.ingest(
                source,
                out,
                labels=label or (),
                schema=schema,
                split=api.split_config(split, valid=valid, test=test),
                progress=progress,
            )
        draw_ingest(current, dataset)
        rows = {name: dataset.split(name).num_rows for name in dataset.split_names}
        print_table(
            current,
            title=f"Dataset in {out}",
            columns=["split", "rows"],
            rows=[[name, f"{count:,}"] for name, count in rows.items()],
        )
        current.finish(out=out, rows=rows, fingerprint=dataset.fingerprint)
