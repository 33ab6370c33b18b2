"""``tamis ingest``: raw logs to a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, print_table, session
from tamis.errors import ConfigError


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
        if schema is not None and (label or schema_only):
            other = f"--label {label[0]}" if label else "--schema-only"
            raise ConfigError(
                f"--schema: must not be given with {other.split()[0]}, got {schema} beside "
                f"{other}: a schema names its labels. Leave one of the two out."
            )
        from tamis import api
        from tamis.cli.drawing import draw_ingest, draw_split, draw_warnings, ingest_progress

        api.prepare_process(threads)
        inferred = None if schema is not None else api.schema_of(source, label or ())
        warnings = inferred.warnings if inferred is not None else ()
        draw_warnings(current, warnings)
        if inferred is not None and schema_only:
            written = api.write_schema(inferred.schema, out)
            current.say(f"wrote {written}; edit it and pass it as --schema")
            current.finish(out=written, warnings=warnings)
            return
        with ingest_progress(current) as progress:
            dataset = api.ingest(
                source,
                out,
                schema=schema if inferred is None else inferred.schema,
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
        draw_split(current, dataset)
        report = dataset.manifest["report"]
        current.finish(
            out=out,
            rows=rows,
            fingerprint=dataset.fingerprint,
            split=dataset.manifest["split"],
            warnings=warnings,
            fields=report["fields"],
            times_out_of_order=report["times_out_of_order"],
        )
