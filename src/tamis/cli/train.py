"""``tamis train``: a dataset, or a raw log, to a trained and measured model."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, session
from tamis.errors import ConfigError, TamisError


def train(
    data: Annotated[Path, typer.Argument(help="Dataset folder, or a raw log file or folder.")],
    *,
    label: Annotated[
        list[str] | None, typer.Option(help="Label column of a raw log; repeat for more tasks.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the model; dhen without a recipe.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML file with a complete configuration.")
    ] = None,
    member: Annotated[
        int | None, typer.Option(help="Train this member of the recipe's ensemble alone; from 0.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override such as training.max_epochs=3; tamis settings MODEL has all."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder; given again, the run goes on.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Finished run whose model labels the training rows without any label."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Whether to write report.html.")
    ] = True,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model; early stopping looks at the validation split only."""
    with session("train", as_json=as_json, debug=debug) as current:
        from tamis import api
        from tamis.cli.drawing import (
            TrainingDisplay,
            draw_metrics,
            draw_split,
            draw_tasks,
            draw_warnings,
            ingest_with_bars,
        )

        api.check_settings(
            model=model,
            recipe=recipe,
            member=member,
            settings=settings or (),
            run=run,
            teacher=teacher,
        )
        begun = None
        if run is not None and not api.is_dataset(data):
            begun = api.dataset_to_go_on(run, data, labels=label or ())
        api.prepare_process(threads)
        warnings: tuple[str, ...] = ()
        if api.is_dataset(data):
            if label:
                raise ConfigError(
                    f"--label: must not be given with a dataset, which has its labels, got "
                    f"{label[0]!r}. Leave it out, or ingest the log anew with it."
                )
            dataset = api.open_dataset(data, verify=True)
        elif begun is not None:
            dataset = begun
            current.say(f"dataset: {dataset.path}, with which {run} was begun")
        else:
            folder = api.dataset_folder_for(data)
            inferred = api.schema_of(data, label or ())
            for field in inferred.schema.fields:
                current.say(f"{field.name}: {field.kind}, {field.reason}")
            warnings = inferred.warnings
            draw_warnings(current, warnings)
            dataset, lacking = ingest_with_bars(current, data, folder, schema=inferred.schema)
            draw_tasks(current, dataset)
            draw_split(current, dataset)
            draw_warnings(current, lacking)
            warnings = (*warnings, *lacking)
            current.say(f"dataset: {folder}")
        with current.progress() as bars:
            finished = api.train(
                dataset,
                model=model,
                recipe=recipe,
                member=member,
                settings=settings or (),
                run=run,
                teacher=teacher,
                observer=TrainingDisplay(current, bars),
                report=report,
            )
        if finished.status != "finished":
            raise TamisError(
                f"{finished.path}: stopped with a checkpoint; give the command with "
                f"--run {finished.path} to go on."
            )
        draw_metrics(current, finished.record, title=f"Run {finished.path}")
        page = finished.path / "report.html"
        if page.exists():
            current.say(f"report: {page}")
        current.finish(
            run=finished.path,
            dataset=dataset.path,
            split=dataset.manifest.get("split", {}),
            warnings=warnings,
            **finished.record,
        )
