"""The library in a few calls: simulate, ingest, train, evaluate, predict, compare, publish, replay.

Everything here wires the layers below; the command line calls the same functions.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from tamis import artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.inference import InferredSchema
from tamis.data.inference import infer_schema as _infer_schema
from tamis.data.ingest import MARKET_MANIFEST, Progress, Source
from tamis.data.ingest import ingest as _ingest
from tamis.data.market import MarketSummary, market_schema
from tamis.data.market import simulate as _simulate
from tamis.data.schema import InputSpec, Schema, load_schema
from tamis.data.splits import SPLIT_NAMES, SplitConfig
from tamis.errors import ConfigError, DataError
from tamis.process import prepare_process as prepare_process

if TYPE_CHECKING:
    from tamis.funnel.report import Scope
    from tamis.importers.imported import Imported
    from tamis.publishing.cascade import CascadeSampling
    from tamis.publishing.make import Publication
    from tamis.training.compare import Comparison
    from tamis.training.config import RunConfig
    from tamis.training.loop import Observer
    from tamis.training.predict_log import Prediction

RUNS = Path("runs")
DATASETS = Path("datasets")
REPLAYS = Path("replays")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished (or interrupted) training."""

    path: Path
    """Its folder."""

    @property
    def status(self) -> str:
        """``finished``, ``interrupted`` or ``running``."""
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
        """``metrics``, and on the market ``oracle`` and ``ne_gap``, each by split and task."""
        return cast("Mapping[str, Any]", artifacts.read_json(self.path / "metrics.json"))

    def predict(self, source: Source) -> pa.Table:
        """Predict new rows; labels need not be there. See :func:`predict`."""
        return predict(self.path, source)


def simulate(
    rows: int,
    out: Path | str,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> MarketSummary:
    """Write a log of the simulated ad market, and its true probabilities apart from it.

    Raises:
        DataError: ``out`` exists and is not empty.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    with artifacts.disk_errors(Path(out)):
        return _simulate(rows, Path(out), seed=seed, progress=progress)


def simulate_by_funnel(
    bundle: Path | str,
    rows: int,
    out: Path | str,
    *,
    seed: int = 0,
    first_day: int = 0,
    days: int | None = None,
    judge_every: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> MarketSummary:
    """Let a published funnel serve the users of the simulated market, and write the log.

    See :func:`tamis.funnel.bundle_policy.serve_market`, which takes the same arguments.

    Raises:
        TamisError: As it does, or the disk is full.
    """
    from tamis.funnel.bundle_policy import serve_market

    with artifacts.disk_errors(Path(out)):
        return serve_market(
            Path(bundle),
            Path(out),
            rows=rows,
            seed=seed,
            first_day=first_day,
            days=days,
            judge_every=judge_every,
            progress=progress,
        )


def infer_schema(source: Source, out: Path, *, labels: Sequence[str] = ()) -> Path:
    """Infer a schema and write it for editing.

    Returns:
        Where it was written: ``out``, or ``out/schema.toml`` for a folder.

    Raises:
        ConfigError: ``out`` is neither a TOML file nor a folder.
    """
    return write_schema(schema_of(source, labels).schema, out)


def write_schema(schema: Schema, out: Path) -> Path:
    """Write a schema for editing; see :func:`infer_schema`.

    Raises:
        ConfigError: ``out`` is neither a TOML file nor a folder.
    """
    is_other_file = out.is_file() if out.exists() else out.suffix[1:].isalpha()
    if out.suffix != ".toml" and is_other_file:
        raise ConfigError(
            f"{out}: must be a .toml file or a folder, got "
            f"{f'the ending {out.suffix!r}' if out.suffix else 'another file'}. Name one "
            f"such as {out.with_suffix('.toml')}."
        )
    path = out / "schema.toml" if out.suffix != ".toml" or out.is_dir() else out
    artifacts.write_text(path, schema.to_toml())
    return path


def schema_of(source: Source, labels: Sequence[str] = ()) -> InferredSchema:
    """Schema of a log: the market's own for a simulated market, else inferred.

    Raises:
        DataError: The log cannot be read, or is a folder that tamis wrote for something else.
    """
    given = [source] if isinstance(source, (str, Path)) else list(source)
    _check_log(source)
    if len(given) == 1 and (Path(given[0]) / MARKET_MANIFEST).exists():
        return InferredSchema(schema=market_schema(), warnings=())
    inferred = _infer_schema(given, labels)
    if inferred.schema.roles.time:
        return inferred
    warning = (
        "time: no column was recognised as one, so rows cannot be split by time; if there is one, "
        "name it as roles.time of the schema"
    )
    return dataclasses.replace(inferred, warnings=(*inferred.warnings, warning))


def ingest(
    source: Source | Mapping[str, Source],
    out: Path | str,
    *,
    labels: Sequence[str] = (),
    schema: Schema | Path | str | None = None,
    split: SplitConfig | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Turn logs into a dataset; see :func:`tamis.data.ingest.ingest`.

    Args:
        source: A log file, several, a folder of them, or a mapping from split to log.
        out: Folder of the dataset.
        labels: Label columns, for inferring the schema.
        schema: Schema, or its file; inferred when absent.
        split: How to split; by time where there is a time, else at random 8:1:1.
        progress: Told how far it is.

    Raises:
        ConfigError: There are ``labels`` beside a ``schema``, which names them itself.
        DataError: A log cannot be read, or a value has no meaning.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    if schema is not None and labels:
        raise ConfigError(
            f"labels: must not be given with a schema, whose tasks are the labels, got "
            f"{', '.join(labels)}. Leave one of the two out."
        )
    _check_log(source)
    if schema is None:
        first = next(iter(source.values())) if isinstance(source, Mapping) else source
        schema = schema_of(first, labels).schema
    elif not isinstance(schema, Schema):
        schema = load_schema(Path(schema))
    given: Any = source
    if not isinstance(source, (str, Path, Mapping)) and len(source) == 1:
        given = source[0]
    with artifacts.disk_errors(Path(out)):
        return _ingest(given, Path(out), schema=schema, split=split, progress=progress)


def import_fuxictr(folder: Path | str, experiment: str) -> "Imported":
    """An experiment of FuxiCTR; see :func:`tamis.importers.fuxictr.read`."""
    from tamis.importers import fuxictr

    return fuxictr.read(Path(folder), experiment)


def import_recbole(
    folder: Path | str, *, label: str, threshold: float | None, out: Path | str
) -> "Imported":
    """A data set of RecBole; see :func:`tamis.importers.recbole.read`."""
    from tamis.importers import recbole

    with artifacts.disk_errors(Path(out)):
        return recbole.read(Path(folder), label=label, threshold=threshold, out=Path(out))


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


def split_config(name: str, *, valid: float, test: float) -> SplitConfig:
    """Split settings from one word: a way to split, or the name of a column that says it."""
    if name in ("auto", "time", "user", "ratio"):
        return SplitConfig(by=cast("Any", name), valid=valid, test=test)
    return SplitConfig(by="column", column=name, valid=valid, test=test)


def is_dataset(path: Path | str) -> bool:
    """Whether a folder is a finished dataset."""
    return artifacts.kind_of(Path(path)) == "dataset"


def is_bundle(path: Path | str) -> bool:
    """Whether a folder is a published bundle."""
    return artifacts.kind_of(Path(path)) == "bundle"


def dataset_folder_for(log: Path) -> Path:
    """A folder below ``datasets/`` that is not taken yet, named after a log."""
    stem = log.name.split(".")[0]
    for number in itertools.count(1):
        folder = DATASETS / (stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return folder
    raise AssertionError("a counter does not end")


def open_dataset(path: Path | str, *, verify: bool = False) -> Dataset:
    """Open a dataset that was ingested before; ``verify`` hashes every file of it.

    Raises:
        ArtifactError: The folder is no dataset, or one of its files is damaged.
    """
    return Dataset.open(Path(path), verify=verify)


def train(
    dataset: Dataset | Path | str,
    *,
    model: str | None = None,
    recipe: Path | str | None = None,
    member: int | None = None,
    settings: Sequence[str] = (),
    run: Path | str | None = None,
    observer: "Observer | None" = None,
    report: bool = True,
) -> Run:
    """Train a model on a dataset, or go on with a run that was stopped.

    Args:
        dataset: A dataset or its folder, whose files are then verified.
        model: Name in the catalog; ``dhen`` when there is no recipe either.
        recipe: TOML file with a complete configuration.
        member: Train only this member, counted from 0, of the recipe's ensemble.
        settings: Overrides of the form ``"training.max_epochs=3"``.
        run: Run folder; a new one below ``runs/`` when absent. Given again, it is resumed.
        observer: Draws progress.
        report: Whether to compute diagnostics and write ``report.html``.

    Raises:
        ConfigError: A setting is wrong, or the folder holds another run or something else.
        ArtifactError: The dataset is damaged.
        DataError: The dataset lacks a split.
        StorageError: The disk is full or the run's folder cannot be written.
    """
    from tamis.training.loop import train as _train

    if run is not None:
        check_run_folder(run)
    chosen, is_sized = _settings_of(model, recipe, member, settings)
    data = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, verify=True)
    for name in SPLIT_NAMES[:2]:
        data.split(name)
    if not is_sized:
        size = default_batch_size(data.split("train").num_rows)
        chosen = dataclasses.replace(
            chosen, training=dataclasses.replace(chosen.training, batch_size=size)
        )
    name = f"{data.path.name}-{chosen.model_name}"
    folder = Path(run) if run is not None else _next_folder(RUNS, name)
    if observer is not None and run is None:
        observer.on_message(f"run: {folder}")
    with artifacts.disk_errors(folder):
        result = _train(data, chosen, folder, observer=observer)
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
) -> None:
    """Check what :func:`train` would be given, before a log is read for it.

    Raises:
        ConfigError: A setting is wrong, or both a model and a recipe are given.
    """
    _settings_of(model, recipe, member, settings)


def default_batch_size(rows: int) -> int:
    """Rows per step where nobody says: a hundredth of the data, a power of 2 in [64, 4096]."""
    size = 64
    while size < 4096 and size * 200 <= rows:
        size *= 2
    return size


def evaluate(run: Run | Path | str, data: Dataset | Path | str, *, split: str) -> dict[str, Any]:
    """Evaluate a run's model on a split of a dataset with the same encoders.

    Returns:
        ``metrics``, and on the market ``oracle`` and ``ne_gap``, each by split and task.

    Raises:
        ArtifactError: The run is unfinished, or run or dataset are damaged.
        DataError: The dataset was encoded differently.
        StorageError: The disk is full or the run's folder cannot be written.
    """
    from tamis.training.evaluate import evaluate_dataset, load_predictor

    folder = _finished_run(run)
    dataset = data if isinstance(data, Dataset) else open_dataset(data, verify=True)
    predictor, spec = load_predictor(folder)
    _check_encoders(folder, spec, dataset)
    out = folder / "evaluations" / dataset.fingerprint[:12]
    with artifacts.disk_errors(out):
        return evaluate_dataset(predictor, dataset, splits=(split,), out=out)


def dataset_of(run: Run | Path | str) -> Path:
    """Folder of the dataset that a finished run was trained on.

    Raises:
        ArtifactError: The folder holds no finished run.
    """
    return Path(artifacts.read_json(_finished_run(run) / "run.json")["dataset"]["path"])


def predict(run: Run | Path | str, source: Source, out: Path | str | None = None) -> pa.Table:
    """Predict the rows of a raw log with a run's model and encoders.

    Args:
        run: A finished run.
        source: Log file, several, or a folder of them.
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
    return predict_counted(run, source, out).table


def predict_counted(
    run: Run | Path | str, source: Source, out: Path | str | None = None
) -> "Prediction":
    """Predict as :func:`predict` does, and say what was met in the fields of the log."""
    from tamis.training.predict_log import predict_log

    folder = _finished_run(run)
    _check_log(source)
    return predict_log(folder, source, None if out is None else Path(out))


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


def publish(recipe: Path | str, out: Path | str) -> "Publication":
    """Publish finished runs as a funnel.

    Args:
        recipe: TOML file with stages, budgets, ads and weights of the value; see
            :class:`tamis.publishing.recipe.FunnelRecipe`.
        out: Folder of the bundle; must not exist or be empty.

    Raises:
        ArtifactError: A run is unfinished, or a run or the dataset is damaged.
        ConfigError: A setting is wrong, or the stages do not make a funnel.
        DataError: ``out`` is taken, or ads or calibrations cannot be made.
        SchemaError: A stage reads fields that the dataset does not have, or encodes otherwise.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    from tamis.publishing.make import publish as _publish

    return _publish(Path(recipe), Path(out))


def write_cascade(
    bundle: Path | str,
    data: Dataset | Path | str,
    out: Path | str,
    *,
    sampling: "CascadeSampling | None" = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Write what an early stage learns from, with what a funnel without one says of other ads.

    Args:
        bundle: Folder of a bundle: retrieval, then a final stage.
        data: What its final stage was trained on, or the folder of it.
        out: Folder of the new dataset.
        sampling: Which candidates stand beside the impressions; None for the defaults of
            :class:`tamis.publishing.cascade.CascadeSampling`.
        progress: Told how many requests are done, of how many.

    Raises:
        TamisError: As :func:`tamis.publishing.cascade.write_cascade` does, or the disk is full.
    """
    from tamis.funnel.bundle import read_bundle
    from tamis.publishing.cascade import CascadeSampling
    from tamis.publishing.cascade import write_cascade as _write_cascade

    dataset = data if isinstance(data, Dataset) else open_dataset(data, verify=True)
    blueprint = read_bundle(Path(bundle)).blueprint
    with artifacts.disk_errors(Path(out)):
        return _write_cascade(
            blueprint,
            dataset,
            Path(out),
            sampling=sampling or CascadeSampling(),
            progress=progress,
        )


def replay(
    bundle: Path | str,
    data: Dataset | Path | str,
    *,
    split: str = "test",
    scope: "Scope | None" = "all",
    every: int = 1,
    limit: int | None = None,
    out: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Replay a split's requests through a published funnel, and write what it did.

    Args:
        bundle: Folder of the bundle.
        data: A dataset with requests, or its folder, whose files are then verified.
        split: Split to replay.
        scope: Which candidates the last stage scores for comparison; None leaves that out.
        every: One request in so many is compared.
        limit: Requests to stop after; None for all.
        out: Folder for ``replay.json`` and ``report.html``; a new one below ``replays/`` if absent.
        progress: Told how many requests are done, of how many.

    Returns:
        The folder, and the record that was written.

    Raises:
        TamisError: As :func:`tamis.funnel.bundle_replay.replay_bundle` does, or the disk is full.
    """
    from tamis.funnel.bundle_replay import replay_bundle
    from tamis.reports.replay_report import write_replay

    dataset = data if isinstance(data, Dataset) else open_dataset(data, verify=True)
    record = replay_bundle(
        Path(bundle),
        dataset,
        split=split,
        scope=scope,
        every=every,
        limit=limit,
        progress=progress,
    )
    folder = _next_folder(REPLAYS, Path(bundle).resolve().name) if out is None else Path(out)
    with artifacts.disk_errors(folder):
        write_replay(record, folder)
    return folder, record


def write_report(run: Run | Path | str, dataset: Dataset | None = None) -> Path:
    """Write a run's ``report.html``; with its dataset at hand, diagnostics are computed anew.

    Raises:
        ArtifactError: The run is unfinished or damaged.
    """
    from tamis.reports.run_report import write_run_report
    from tamis.training.diagnostics import diagnose
    from tamis.training.evaluate import load_predictor
    from tamis.training.predict import load_run_config

    folder = _folder(run)
    if dataset is not None:
        folder = _finished_run(run)
        predictor, _ = load_predictor(folder)
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


def _check_log(source: Source | Mapping[str, Source]) -> None:
    """Refuse folders that tamis wrote for something else, whose JSON would pass for a log."""
    if isinstance(source, Mapping):
        for part in source.values():
            _check_log(part)
        return
    for path in map(Path, [source] if isinstance(source, (str, Path)) else source):
        what = artifacts.describe_folder(path)
        if what:
            raise DataError(f"{path}: must be a log file or a folder of logs, got {what}")


def _check_encoders(run: Path, spec: InputSpec, dataset: Dataset) -> None:
    """Refuse a dataset whose ids and numbers mean something else than the run's."""
    from tamis.training.run_folder import verified_inputs

    advice = "Evaluate on the run's own dataset, or predict the raw log."
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


def _next_folder(parent: Path, name: str) -> Path:
    for number in itertools.count(1):
        folder = parent / f"{name}-{number}"
        if not folder.exists():
            return folder
    raise AssertionError("a counter does not end")
