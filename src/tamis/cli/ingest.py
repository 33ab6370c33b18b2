"""``tamis ingest``: raw logs to a dataset."""

import contextlib
import dataclasses
import shlex
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.cli.console import Debug, Json, Session, Threads, print_table, session
from tamis.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tamis.data.dataset import Dataset
    from tamis.data.schema import Schema
    from tamis.importers.imported import Imported
    from tamis.serving.store import Store


class Origin(StrEnum):
    """Libraries whose set-ups are understood."""

    fuxictr = "fuxictr"
    recbole = "recbole"


def ingest(
    context: typer.Context,
    source: Annotated[
        list[str], typer.Argument(help="Log files, one folder of them, or the URL of a store.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the dataset; must not exist yet.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Label column; repeat for several tasks.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="schema.toml; made from the source when absent.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="time, user, ratio (at random), auto (by time where there is one, else at random) "
            "or a column that holds train, valid and test."
        ),
    ] = "auto",
    vectors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=FILE",
            help="Vectors given for a field's categories: Parquet, .npz or .h5 with key and value; "
            "repeat for several.",
        ),
    ] = None,
    valid: Annotated[float, typer.Option(help="Share of rows for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of rows for the test.")] = 0.1,
    origin: Annotated[
        Origin | None,
        typer.Option("--from", help="The source is a set-up of another library, not a log."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="With --from fuxictr: its --expid, or a data set's name.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="With --from recbole: the label is 1 from this value on.")
    ] = None,
    schema_only: Annotated[
        bool, typer.Option("--schema-only", help="Only make the schema and write it to --out.")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn CSV, TSV, Parquet or JSON-lines logs, or a server's store, into a dataset."""
    with session("ingest", as_json=as_json, debug=debug) as current:
        given = _by_field(vectors or [])
        if given and schema_only:
            raise ConfigError(
                f"--vectors: must not be given with --schema-only, which reads none, got "
                f"{', '.join(given)}. Leave it out, and set vectors of the field in the schema."
            )
        if any("://" in part for part in source):
            if len(source) > 1 or origin is not None or label or schema_only:
                raise ConfigError(
                    "source: a store must be the only source, without --from, --label and "
                    "--schema-only, got more. Leave the others out."
                )
            _ingest_store(
                current, source[0], out, schema, (split, valid, test), given, threads=threads
            )
            return
        paths = [Path(part) for part in source]
        if origin is not None:
            if schema is not None and schema_only:
                raise ConfigError(
                    f"--schema: must not be given with --schema-only, got {schema}. Leave one of "
                    f"the two out."
                )
            _ingest_imported(
                current,
                paths,
                out,
                origin=origin,
                experiment=experiment,
                label=label or [],
                threshold=threshold,
                schema=schema,
                schema_only=schema_only,
                split=(split, valid, test),
                split_options=_given(context, "split", "valid", "test"),
                vectors=given,
                threads=threads,
            )
            return
        if experiment is not None or threshold is not None:
            option = "--experiment" if experiment is not None else "--threshold"
            raise ConfigError(f"{option}: goes with --from, got none. Name the library.")
        if schema is not None and (label or schema_only):
            other = f"--label {label[0]}" if label else "--schema-only"
            raise ConfigError(
                f"--schema: must not be given with {other.split()[0]}, got {schema} beside "
                f"{other}: a schema names its labels. Leave one of the two out."
            )
        from tamis import api
        from tamis.cli.drawing import draw_warnings, ingest_with_bars

        api.prepare_process(threads)
        how = api.split_config(split, valid=valid, test=test)
        inferred = None if schema is not None else api.schema_of(paths, label or (), split=how)
        warnings = inferred.warnings if inferred is not None else ()
        draw_warnings(current, warnings)
        if inferred is not None and schema_only:
            _write_schema(current, inferred.schema, out, warnings)
            return
        chosen = schema if inferred is None else inferred.schema
        dataset, lacking = ingest_with_bars(
            current, paths, out, schema=chosen, split=how, vectors=given
        )
        _finish(current, dataset, out, warnings, lacking)


def _by_field(assignments: Sequence[str]) -> dict[str, Path]:
    """Files by field, of FIELD=FILE each.

    Raises:
        ConfigError: One is written otherwise, or names a field again.
    """
    files: dict[str, Path] = {}
    for assignment in assignments:
        field, equals, file = assignment.partition("=")
        if not equals or not field or not file:
            raise ConfigError(f"--vectors: must be FIELD=FILE, got {assignment!r}.")
        if field in files:
            raise ConfigError(f"--vectors: must name a field once, got {field!r} again.")
        files[field] = Path(file)
    return files


def _given(context: typer.Context, *names: str) -> list[str]:
    """Those of some options that the command line holds."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        f"--{name}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]


def _write_schema(current: Session, schema: "Schema", out: Path, warnings: Sequence[str]) -> None:
    """Write a schema for editing, and end."""
    from tamis import api

    written = api.write_schema(schema, out)
    current.say(f"wrote {written}; edit it and pass it as --schema")
    current.finish(out=written, warnings=warnings)


def _ingest_store(
    current: Session,
    url: str,
    out: Path,
    schema: Path | None,
    split: tuple[str, float, float],
    vectors: Mapping[str, Path],
    *,
    threads: int,
) -> None:
    """Join a store's events with what was shown, and ingest the log of them."""
    from tamis import api
    from tamis.cli.drawing import ingest_with_bars
    from tamis.cli.extras import needs_extra

    with needs_extra("serve"):
        from tamis.serving.joined_log import write_joined_log
        from tamis.serving.store import Store

    api.prepare_process(threads)
    with (
        contextlib.closing(Store(url, must_exist=True)) as store,
        tempfile.TemporaryDirectory() as folder,
    ):
        chosen = _schema_of_store(store, schema)
        log = Path(folder) / "store.parquet"
        report = write_joined_log(store, chosen, log)
        how = api.split_config(split[0], valid=split[1], test=split[2])
        try:
            dataset, lacking = ingest_with_bars(
                current, log, out, schema=chosen, split=how, vectors=vectors
            )
        except DataError as error:
            # The log of the store is gone when this is read.
            raise DataError(str(error).replace(str(log), store.url)) from error
    current.say(
        f"joined: {report.rows:,} ads that were seen in {report.requests:,} answers "
        f"({report.implied:,} without an impression); {report.not_seen:,} were not seen"
    )
    left = report.of_no_request + report.of_other_ads
    if left:
        current.say(
            f"{left:,} of {report.events:,} events are in no row: {report.of_no_request:,} name no "
            f"request of the store, {report.of_other_ads:,} an ad that was not in the answer"
        )
    _finish(current, dataset, out, (), lacking, joined=dataclasses.asdict(report))


def _schema_of_store(store: "Store", path: Path | None) -> "Schema":
    """The schema of a file, or that of the bundle that began to serve last."""
    from tamis.data.schema import load_schema, schema_from_table

    if path is not None:
        return load_schema(path)
    text = store.newest_schema()
    if text is None:
        raise ConfigError(
            f"{store.url}: must know the schema of a bundle that served, got none. Give --schema."
        )
    return schema_from_table(tomllib.loads(text))


def _ingest_imported(
    current: Session,
    source: list[Path],
    out: Path,
    *,
    origin: Origin,
    experiment: str | None,
    label: list[str],
    threshold: float | None,
    schema: Path | None,
    schema_only: bool,
    split: tuple[str, float, float],
    split_options: Sequence[str],
    vectors: Mapping[str, Path],
    threads: int,
) -> None:
    """Ingest what a set-up of another library describes, and write its recipe beside it."""
    from tamis import api, artifacts
    from tamis.cli.drawing import draw_warnings, ingest_with_bars
    from tamis.data.schema import load_schema

    if len(source) != 1:
        raise ConfigError(f"--from: takes one folder, got {len(source)} paths.")
    log = None if schema_only else out.with_name(f"{out.name}-log")
    if log is not None:
        artifacts.check_free(out)
    imported = _imported(
        source[0], log, origin=origin, experiment=experiment, label=label, threshold=threshold
    )
    how = None
    if not isinstance(imported.files, Mapping):
        how = api.split_config(split[0], valid=split[1], test=split[2])
    elif split_options:
        raise ConfigError(
            f"{', '.join(split_options)}: must not be given for logs that are split already, got "
            f"{', '.join(imported.files)} of {source[0]}. Leave it out."
        )
    if log is not None and origin is Origin.recbole:
        current.say(f"joined log: {log}")
    draw_warnings(current, imported.notes)
    if schema_only:
        _write_schema(current, imported.schema, out, imported.notes)
        return
    api.prepare_process(threads)
    chosen = imported.schema if schema is None else load_schema(schema)
    given = {item.name for item in chosen.fields if item.vectors}
    own = {name: file for name, file in imported.vectors.items() if name in given}
    dataset, lacking = ingest_with_bars(
        current, imported.files, out, schema=chosen, split=how, vectors={**own, **vectors}
    )
    if imported.recipe is not None:
        recipe = api.write_recipe(imported.recipe, out.with_name(f"{out.name}-recipe.toml"))
        command = shlex.join(["tamis", "train", str(out), "--recipe", str(recipe)])
        current.say(f"recipe: {recipe}; {command}")
    _finish(current, dataset, out, imported.notes, lacking)


def _imported(
    source: Path,
    log: Path | None,
    *,
    origin: Origin,
    experiment: str | None,
    label: list[str],
    threshold: float | None,
) -> "Imported":
    """What a set-up says; RecBole's files are joined into ``log``, or for the schema alone."""
    from tamis import api

    if origin is Origin.fuxictr:
        if experiment is None or label or threshold is not None:
            raise ConfigError(
                "--from fuxictr: needs --experiment and takes no --label and no --threshold: the "
                "config names its label."
            )
        imported = api.import_fuxictr(source, experiment)
        if imported.recipe is not None:  # before the work, not after it
            api.check_recipe(imported.recipe)
        return imported
    if experiment is not None:
        raise ConfigError(
            f"--from recbole: takes no --experiment, which is FuxiCTR's, got {experiment!r}. "
            f"Leave it out."
        )
    if len(label) != 1:
        raise ConfigError(
            f"--from recbole: needs one --label, got {len(label)} labels. Name the column of "
            f"the interactions that is predicted."
        )
    with tempfile.TemporaryDirectory() as folder:
        return api.import_recbole(
            source, label=label[0], threshold=threshold, out=log or Path(folder)
        )


def _finish(
    current: Session,
    dataset: "Dataset",
    out: Path,
    warnings: Sequence[str],
    lacking: Sequence[str],
    **more: object,
) -> None:
    """Draw what was made and what its splits lack; the other warnings were drawn before."""
    from tamis.cli.drawing import draw_ingest, draw_split, draw_warnings

    draw_ingest(current, dataset)
    draw_warnings(current, lacking)
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
        warnings=[*warnings, *lacking],
        label_rates=report["label_rates"],
        fields=report["fields"],
        times_out_of_order=report["times_out_of_order"],
        **more,
    )
