"""Runs: train a model, evaluate it, predict with it, compare two, report on one."""

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from tamis import artifacts, config
from tamis.api.datasets import check_log, check_made_of, check_texts, is_dataset, open_dataset
from tamis.api.folders import named, next_folder
from tamis.api.frames import Frame, on_disk
from tamis.data.dataset import Dataset
from tamis.data.ingest import Progress, Source, market_of
from tamis.data.ingest import ingest as ingest_log
from tamis.data.schema import InputSpec
from tamis.data.splits import SPLIT_NAMES
from tamis.errors import ArtifactError, ConfigError, DataError, TamisWarning

if TYPE_CHECKING:
    from tamis.models.trained import TrainedModel
    from tamis.training.compare import Comparison
    from tamis.training.config import RunConfig
    from tamis.training.loop import Observer
    from tamis.training.predict_log import Prediction


@dataclass(frozen=True, slots=True)
class Run:
    """A training that is finished, or was stopped: ``Run("runs/dhen")``."""

    path: Path
    """Its folder."""

    def __init__(self, path: Path | str) -> None:
        """Take a run's folder, which need not be there yet."""
        object.__setattr__(self, "path", Path(path))

    @property
    def status(self) -> str:
        """``finished``, ``interrupted``, or ``running``, which also stands where one failed."""
        return str(artifacts.read_json(self.path / "run.json")["status"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics by split and task.

        Raises:
            ArtifactError: The run is not finished.
        """
        return cast("Mapping[str, Any]", self.record["metrics"])

    @property
    def record(self) -> Mapping[str, Any]:
        """``metrics``, and on the market ``oracle`` and ``ne_gap``, each by split and task.

        Raises:
            ArtifactError: The run is not finished.
        """
        files = [self.path / name for name in ("metrics.json", "run.json")]
        if not all(file.exists() for file in files):
            # Imports PyTorch, for which nobody waits who only reads figures.
            from tamis.training.run_folder import check_finished

            check_finished(self.path)
        return cast("Mapping[str, Any]", artifacts.read_json(files[0]))

    def predict(self, source: Source | Frame) -> pa.Table:
        """Predict new rows; labels need not be there. See :func:`predict`."""
        return _told(predict_counted(self.path, source))


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Check a recipe's keys and their values.

    Raises:
        ConfigError: A key is unknown or out of range.
    """
    from tamis.training.config import run_config_from_table

    run_config_from_table(recipe)


def write_recipe(recipe: Mapping[str, Any], path: Path | str) -> Path:
    """Write a recipe as TOML.

    Raises:
        StorageError: The file cannot be written.
    """
    with artifacts.disk_errors(Path(path)):
        artifacts.write_text(Path(path), config.write_toml(recipe))
    return Path(path)


def train(
    dataset: Dataset | Path | str,
    *,
    model: str | None = None,
    recipe: Path | str | None = None,
    member: int | None = None,
    settings: Sequence[str] = (),
    run: Run | Path | str | None = None,
    teacher: Run | Path | str | None = None,
    observer: "Observer | None" = None,
    report: bool = True,
) -> Run:
    """Train a model on a dataset, or go on with a run that was stopped.

    Ctrl-C, or a SIGTERM, stops it after a step, with a checkpoint; no exception is raised. That,
    and what else a person should look at, is told to the observer, or, without one, warned of as a
    ``TamisWarning``.

    Args:
        dataset: A dataset or its folder, whose files are then verified.
        model: Name in the catalog; ``dhen`` when there is no recipe either.
        recipe: TOML file with a complete configuration.
        member: Train only this member, counted from 0, of the recipe's ensemble.
        settings: Overrides of the form ``"training.max_epochs=3"``.
        run: Run folder; a new one below ``runs/`` when absent. Given again, it is resumed.
        teacher: Finished run whose model labels the training rows that have no label at all, such
            as those of items that were never shown; see ``training.teacher_weight``.
        observer: Draws progress.
        report: Whether to compute diagnostics and write ``report.html``.

    Returns:
        The run, whose ``status`` is ``finished`` or ``interrupted``.

    Raises:
        ConfigError: A setting is wrong, or the folder holds another run or something else.
        ArtifactError: The dataset is damaged, or the teacher is unfinished or damaged.
        DataError: The dataset lacks a split, or is encoded otherwise than the teacher's.
        StorageError: The disk is full or the run's folder cannot be written.
    """
    from tamis.training.loop import Warns
    from tamis.training.loop import train as _train

    run = None if run is None else _folder(run)
    if run is not None:
        check_run_folder(run)
    chosen, is_sized = _settings_of(model, recipe, member, settings)
    data = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, verify=True)
    for name in SPLIT_NAMES[:2]:
        data.split(name)
    if not is_sized:
        chosen = _sized(chosen, data.split("train").num_rows)
    taught_by = None if teacher is None else _teacher_of(teacher, data)
    name = f"{named(data.folder).name}-{chosen.model_name}"
    folder = run if run is not None else next_folder("runs", name)
    if observer is not None and run is None:
        observer.on_message(f"run: {folder}")
    is_new = not folder.exists()
    try:
        with artifacts.disk_errors(folder):
            result = _train(data, chosen, folder, teacher=taught_by, observer=observer or Warns())
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds a run
                folder.rmdir()
    if observer is None and result.status == "interrupted":
        text = f"{folder}: stopped with a checkpoint. The same call with this run goes on from it."
        warnings.warn(text, TamisWarning, stacklevel=2)
    finished = Run(folder)
    if result.status == "finished" and report and not (folder / "report.html").exists():
        write_report(finished, data)
    return finished


def check_run_folder(run: Path | str) -> None:
    """Check that a folder is a run, or free for one.

    Raises:
        ConfigError: A file stands there, or a folder with anything else in it.
    """
    from tamis.training.run_folder import check_place

    check_place(Path(run))


def check_settings(
    *,
    model: str | None = None,
    recipe: Path | str | None = None,
    member: int | None = None,
    settings: Sequence[str] = (),
    run: Path | str | None = None,
    teacher: Run | Path | str | None = None,
) -> None:
    """Check what :func:`train` would be given, before a log or a dataset is read for it.

    Raises:
        ArtifactError: The teacher is no finished run.
        ConfigError: A setting is wrong, both a model and a recipe are given, or the folder holds a
            run of other settings or something else.
    """
    from tamis.training.run_folder import check_config, is_opened

    if teacher is not None:
        _finished_run(teacher)
    chosen, is_sized = _settings_of(model, recipe, member, settings)
    if run is None:
        return
    check_run_folder(run)
    if is_opened(Path(run)):
        rows = artifacts.read_json(Path(run) / "run.json")["dataset"]["rows"]["train"]
        check_config(chosen if is_sized else _sized(chosen, rows), Path(run))


def dataset_to_go_on(run: Path | str, log: Source, *, labels: Sequence[str] = ()) -> Dataset | None:
    """The dataset that a run was begun with, so that its log need not be ingested again.

    Args:
        run: Folder of a run, or free for one.
        log: The log that is given for it.
        labels: The labels that are given for it.

    Returns:
        The dataset, every file of it hashed; None where no run was begun.

    Raises:
        ArtifactError: The dataset is damaged, or not where it was.
        ConfigError: It was made of another log, or has other labels.
        DataError: A file of the log is missing or empty.
    """
    record = Path(run) / "run.json"
    if not record.exists():
        return None
    path = Path(artifacts.read_json(record)["dataset"]["path"])
    if not is_dataset(path):
        raise ArtifactError(
            f"{run}: the run's dataset must be in {path} to go on, got none there. Put it back, "
            f"ingest the log into that folder, or give another run name."
        )
    dataset = open_dataset(path)
    advice = f"Give the log that the run {run} was begun with, or another run name."
    check_made_of(dataset, log, advice=advice)
    tasks = [task.name for task in dataset.schema.tasks]
    # A simulated market has its own labels, whichever are named.
    if labels and set(labels) != set(tasks) and market_of(log) is None:
        raise ConfigError(
            f"{run}: must go on with its own labels, {', '.join(tasks)}, got {', '.join(labels)}. "
            f"Leave --label out, or give another run name."
        )
    return open_dataset(path, verify=True)


def default_batch_size(rows: int) -> int:
    """Rows per step where nobody says: a hundredth of the data, a power of 2 in [64, 4096]."""
    size = 64
    while size < 4096 and size * 200 <= rows:
        size *= 2
    return size


def evaluate(
    run: Run | Path | str,
    data: Dataset | Source | Frame,
    *,
    split: str = "test",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a run's model on a split of a dataset with the same encoders, or on a raw log.

    Args:
        run: A finished run.
        data: A dataset or its folder; or a log with labels, in files or in memory, all rows of
            which are encoded with the run's encoders and are the test split.
        split: Split of the dataset.
        progress: Told how far the reading of a log is.

    Returns:
        ``metrics``, and on the market ``oracle`` and ``ne_gap``, each by split and task; of a log
        also ``fields``, counts of what was met in each.

    Raises:
        ArtifactError: The run is unfinished, or run or dataset are damaged.
        ConfigError: Another split than ``test`` is asked for of a log.
        DataError: The dataset was encoded differently, or the log cannot be read.
        SchemaError: The log lacks a column.
        StorageError: The disk is full or the run's folder cannot be written.
    """
    folder = _finished_run(run)
    if isinstance(data, Dataset):
        return _evaluate_dataset(folder, data, split=split)
    if isinstance(data, (str, Path)) and artifacts.kind_of(Path(data)):
        return _evaluate_dataset(folder, data, split=split)
    if split != "test":
        raise ConfigError(
            f"split: must be test for a raw log, all rows of which are evaluated, got {split!r}. "
            f"Leave it out."
        )
    from tamis.training.run_folder import run_encoders, verified_inputs

    verified_inputs(folder)
    encoders = run_encoders(folder)
    with (
        on_disk(data) as log,
        artifacts.disk_errors(folder),
        tempfile.TemporaryDirectory(dir=folder, prefix=".evaluated-", suffix=".tmp") as draft,
    ):
        check_log(log)
        logs: Mapping[str, Source] = {"test": log}
        dataset = ingest_log(
            logs,
            Path(draft) / "dataset",
            schema=encoders.schema,
            encoders=encoders,
            progress=progress,
        )
        record = _evaluate_dataset(folder, dataset, split=split)
    return {**record, "fields": dataset.manifest["report"]["fields"]}


def _evaluate_dataset(folder: Path, data: Dataset | Path | str, *, split: str) -> dict[str, Any]:
    from tamis.training.evaluate import evaluate_dataset, load_predictor

    dataset = data if isinstance(data, Dataset) else open_dataset(data, verify=True)
    predictor, spec = load_predictor(folder)
    advice = "Evaluate on the raw log itself, which is then encoded as the run's was."
    _check_encoders(folder, spec, dataset, advice=advice)
    out = folder / "evaluations" / dataset.fingerprint[:12]
    with artifacts.disk_errors(out):
        return evaluate_dataset(predictor, dataset, splits=(split,), out=out)


def dataset_of(run: Run | Path | str) -> Path:
    """Folder of the dataset that a finished run was trained on.

    Raises:
        ArtifactError: The folder holds no finished run.
    """
    return Path(artifacts.read_json(_finished_run(run) / "run.json")["dataset"]["path"])


def predict(
    run: Run | Path | str, source: Source | Frame, out: Path | str | None = None
) -> pa.Table:
    """Predict the rows of a raw log with a run's model and encoders.

    Where most values of a field are outside its vocabulary, a ``TamisWarning`` says so.

    Args:
        run: A finished run.
        source: Log file, several, a folder of them, or a table in memory.
        out: File to write, which ends in ``.parquet``, ``.pq`` or ``.csv``; None only returns the
            table.

    Returns:
        One row per row of the log: ``row``, and ``prediction_<task>`` for each task.

    Raises:
        ArtifactError: The run is unfinished or damaged.
        ConfigError: ``out`` is one of the logs, or has another ending.
        DataError: The log cannot be read, has no rows or lacks a column.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    return _told(predict_counted(run, source, out))


def _told(found: "Prediction") -> pa.Table:
    """The table, with a warning for each field of which training knew few values."""
    for text in found.warnings:
        # Of the line that called predict.
        warnings.warn(text, TamisWarning, stacklevel=3)
    return found.table


def predict_counted(
    run: Run | Path | str, source: Source | Frame, out: Path | str | None = None
) -> "Prediction":
    """Predict as :func:`predict` does, and say what was met in the fields of the log."""
    from tamis.training.predict_log import predict_log

    folder = _finished_run(run)
    with on_disk(source) as log:
        check_log(log)
        return predict_log(folder, log, None if out is None else Path(out))


def compare(
    first: Run | Path | str, second: Run | Path | str, *, split: str = "test"
) -> "list[Comparison]":
    """Compare two runs on the rows that both predicted, task by task.

    Raises:
        ArtifactError: A run is unfinished, or its predictions are damaged.
        DataError: The runs predicted different rows or labels, or tasks of another kind.
    """
    from tamis.training.compare import compare_runs

    return compare_runs(_folder(first), _folder(second), split=split)


def write_report(run: Run | Path | str, dataset: Dataset | Path | str | None = None) -> Path:
    """Write a run's ``report.html``; with its dataset at hand, diagnostics are computed anew.

    Raises:
        ArtifactError: The run is unfinished, or run or dataset are damaged.
        DataError: The dataset was encoded differently.
    """
    from tamis.reports.run_report import write_run_report
    from tamis.training.diagnostics import diagnose
    from tamis.training.evaluate import load_predictor
    from tamis.training.predict import load_run_config

    folder = _folder(run)
    if dataset is not None:
        folder = _finished_run(run)
        dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, verify=True)
        predictor, spec = load_predictor(folder)
        advice = "Give the dataset that the run was trained on, or one with its encoders."
        _check_encoders(folder, spec, dataset, advice=advice)
        split = "test" if "test" in dataset.split_names else "valid"
        settings = load_run_config(folder).training
        found = diagnose(
            predictor,
            dataset,
            split=split,
            seed=settings.seed,
            task_weights=settings.task_weights or (1.0,) * len(dataset.spec.tasks),
        )
        artifacts.write_json(folder / "diagnostics.json", found)
    return write_run_report(folder)


def _folder(run: Run | Path | str) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


def _finished_run(run: Run | Path | str) -> Path:
    from tamis.training.run_folder import check_finished

    check_finished(_folder(run))
    return _folder(run)


def _settings_of(
    model: str | None, recipe: Path | str | None, member: int | None, settings: Sequence[str]
) -> "tuple[RunConfig, bool]":
    """The config that a caller asks for, and whether it sets the batch size."""
    from tamis.training.config import read_run_config, run_config_from_table

    check_texts(settings, "settings")
    if recipe is None:
        table: Mapping[str, Any] = {"model": {"name": model or "dhen"}}
    elif model is not None:
        raise ConfigError(
            f"model: must not be given with a recipe, which names its own, got {model!r} and "
            f"{recipe}. Leave one of the two out, or override model.name."
        )
    else:
        table = config.read_toml(Path(recipe))
    chosen = config.override(table, settings)
    if member is not None:
        chosen = {**chosen, "model": _member_of(chosen, member)}
    try:
        return run_config_from_table(chosen), "batch_size" in chosen.get("training", {})
    except ConfigError:
        if recipe is not None:
            read_run_config(Path(recipe))  # names the recipe where it is to blame
        raise


def _sized(chosen: "RunConfig", rows: int) -> "RunConfig":
    """The config with the batch size that so many training rows are given."""
    training = dataclasses.replace(chosen.training, batch_size=default_batch_size(rows))
    return dataclasses.replace(chosen, training=training)


def _member_of(table: Mapping[str, Any], member: int) -> Mapping[str, Any]:
    """The ``[model]`` table of one member of an ensemble's config."""
    model = table.get("model")
    members = model.get("members") if isinstance(model, Mapping) else None
    if not isinstance(members, list):
        raise ConfigError(
            f"member: needs a recipe with [[model.members]], got one without, and member {member}."
        )
    if not 0 <= member < len(members):
        raise ConfigError(
            f"member: must be in [0, {len(members)}), one of the recipe's members, got {member}."
        )
    found: Mapping[str, Any] = members[member]
    return found


def _teacher_of(run: Run | Path | str, dataset: Dataset) -> "TrainedModel":
    """The model of a run that is to label rows of a dataset."""
    from tamis.training.predict import load_trained

    folder = _finished_run(run)
    model = load_trained(folder)
    advice = f"Train the teacher {folder} on this dataset, or on one that has its encoders."
    _check_encoders(folder, model.spec, dataset, advice=advice)
    return model


def _check_encoders(run: Path, spec: InputSpec, dataset: Dataset, *, advice: str) -> None:
    """Refuse a dataset whose ids and numbers mean something else than the run's."""
    from tamis.training.run_folder import verified_inputs

    if spec != dataset.spec:
        raise DataError(
            f"{dataset.path}: must be encoded as the run's dataset was, got other fields or "
            f"tables. {advice}"
        )
    ours = verified_inputs(run)
    theirs = {name: entry["sha256"] for name, entry in dataset.manifest["files"].items()}
    names = {name for name in ours.keys() | theirs.keys() if name.startswith("encoders/")}
    other = sorted(name for name in names if ours.get(name) != theirs.get(name))
    if other:
        raise DataError(
            f"{dataset.path}: must be encoded with the run's own encoders, got another {other[0]}: "
            f"its ids stand for other categories or numbers. {advice}"
        )
