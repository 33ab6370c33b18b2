"""The library in a few calls: simulate, ingest, train, evaluate, predict, compare, report.

Everything here wires the layers below; the command line calls the same functions.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis import artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.inference import InferredSchema
from tamis.data.inference import infer_schema as _infer_schema
from tamis.data.ingest import MARKET_MANIFEST, Progress, Source, encode_log
from tamis.data.ingest import ingest as _ingest
from tamis.data.market import MarketSummary, market_schema
from tamis.data.market import simulate as _simulate
from tamis.data.schema import Schema, load_schema
from tamis.data.splits import SPLIT_NAMES, SplitConfig
from tamis.errors import DataError

if TYPE_CHECKING:
    from tamis.evaluation.significance import PairedDifference
    from tamis.training.loop import Observer

RUNS = Path("runs")
DATASETS = Path("datasets")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs on the same rows, one task."""

    task: str
    """Task compared."""
    split: str
    """Split compared."""
    metrics: tuple[Mapping[str, Any], Mapping[str, Any]]
    """Metrics of the first and the second run."""
    auc: "PairedDifference | None"
    """Second less first; DeLong, clustered by user where users are known. Where rows have weights,
    which DeLong's test knows nothing of, bootstrap by user."""
    ne: "PairedDifference | None"
    """Second less first; bootstrap by user."""
    note: str = ""
    """Why the two are None: the rows do not suffice for a test."""


def prepare_process(threads: int = 0) -> int:
    """Set up this process for long computations: how many threads, and what freed memory becomes.

    Args:
        threads: At most this many in every library together; 0 takes every core that the process
            may use.

    Returns:
        The number of threads.
    """
    import os

    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(threads, cores or 1) if threads else cores or 1
    torch.set_num_threads(count)
    pa.set_cpu_count(count)
    pa.set_io_thread_count(1)
    _keep_freed_memory()
    return count


def _keep_freed_memory() -> None:
    """Let glibc keep the large blocks that each training step frees, to hand them out again.

    By default it returns them to the system, and the kernel clears each page again at the next
    step: a tenth (float32) to a fifth (bfloat16) of a step on a CPU. Other C libraries have no such
    setting and stay as they are.
    """
    import ctypes
    import sys

    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    for setting, value in ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**30), (arena_max, 1)):
        mallopt(setting, value)


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
    """
    return _simulate(rows, Path(out), seed=seed, progress=progress)


def infer_schema(source: Source, out: Path, *, labels: Sequence[str] = ()) -> Path:
    """Infer a schema and write it for editing.

    Returns:
        Where it was written: ``out``, or ``out/schema.toml`` for a folder.
    """
    path = out if out.suffix == ".toml" else out / "schema.toml"
    artifacts.write_text(path, schema_of(source, labels).schema.to_toml())
    return path


def schema_of(source: Source, labels: Sequence[str] = ()) -> InferredSchema:
    """Schema of a log: the market's own for a simulated market, else inferred."""
    given = [source] if isinstance(source, (str, Path)) else list(source)
    if len(given) == 1 and (Path(given[0]) / MARKET_MANIFEST).exists():
        return InferredSchema(schema=market_schema(), warnings=())
    return _infer_schema(given, labels)


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
    """
    if schema is None:
        first = next(iter(source.values())) if isinstance(source, Mapping) else source
        schema = schema_of(first, labels).schema
    elif not isinstance(schema, Schema):
        schema = load_schema(Path(schema))
    given: Any = source
    if not isinstance(source, (str, Path, Mapping)) and len(source) == 1:
        given = source[0]
    return _ingest(given, Path(out), schema=schema, split=split, progress=progress)


def split_config(name: str, *, valid: float, test: float) -> SplitConfig:
    """Split settings from one word: a way to split, or the name of a column that says it."""
    if name in ("auto", "time", "user", "ratio"):
        return SplitConfig(by=cast("Any", name), valid=valid, test=test)
    return SplitConfig(by="column", column=name, valid=valid, test=test)


def is_dataset(path: Path | str) -> bool:
    """Whether a folder is a finished dataset."""
    manifest = Path(path) / artifacts.MANIFEST
    return manifest.exists() and artifacts.read_json(manifest).get("kind") == "dataset"


def dataset_folder_for(log: Path) -> Path:
    """A folder below ``datasets/`` that is not taken yet, named after a log."""
    stem = log.name.split(".")[0]
    for number in itertools.count(1):
        folder = DATASETS / (stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return folder
    raise AssertionError("a counter does not end")


def open_dataset(path: Path | str, *, verify: bool = False) -> Dataset:
    """Open a dataset that was ingested before."""
    return Dataset.open(Path(path), verify=verify)


def train(
    dataset: Dataset | Path | str,
    *,
    model: str = "dhen",
    recipe: Path | str | None = None,
    settings: Sequence[str] = (),
    run: Path | str | None = None,
    observer: "Observer | None" = None,
    report: bool = True,
) -> Run:
    """Train a model on a dataset, or go on with a run that was stopped.

    Args:
        dataset: A dataset or its folder.
        model: Name in the catalog; unused with a recipe.
        recipe: TOML file with a complete configuration.
        settings: Overrides of the form ``"training.max_epochs=3"``.
        run: Run folder; a new one below ``runs/`` when absent. Given again, it is resumed.
        observer: Draws progress.
        report: Whether to compute diagnostics and write ``report.html``.

    Raises:
        ConfigError: A setting is wrong, or the folder holds another run.
        DataError: The dataset lacks a split.
    """
    from tamis.training.config import run_config_from_table
    from tamis.training.loop import train as _train

    data = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    for name in SPLIT_NAMES[:2]:
        data.split(name)
    table: Mapping[str, Any] = {"model": {"name": model}}
    if recipe is not None:
        table = config.read_toml(Path(recipe))
    table = config.override(table, settings)
    chosen = run_config_from_table(table)
    if "batch_size" not in table.get("training", {}):
        size = default_batch_size(data.split("train").num_rows)
        chosen = dataclasses.replace(
            chosen, training=dataclasses.replace(chosen.training, batch_size=size)
        )
    folder = Path(run) if run is not None else _next_run(data.path.name, chosen.model_name)
    result = _train(data, chosen, folder, observer=observer)
    finished = Run(folder)
    if result.status == "finished" and report and not (folder / "report.html").exists():
        write_report(finished, data)
    return finished


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
        DataError: The dataset was encoded differently.
    """
    from tamis.training.evaluate import evaluate_dataset

    folder = _folder(run)
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    predictor, spec = _predictor(folder)
    if spec != dataset.spec:
        raise DataError(
            f"{dataset.path}: must be encoded as the run's dataset was, got other fields or "
            f"tables. Evaluate on that dataset, or predict the raw log."
        )
    out = folder / "evaluations" / dataset.fingerprint[:12]
    return evaluate_dataset(predictor, dataset, splits=(split,), out=out)


def dataset_of(run: Run | Path | str) -> Path:
    """Folder of the dataset that a run was trained on."""
    return Path(artifacts.read_json(_folder(run) / "run.json")["dataset"]["path"])


def predict(run: Run | Path | str, source: Source, out: Path | str | None = None) -> pa.Table:
    """Predict the rows of a raw log with a run's model and encoders.

    Args:
        run: A finished run.
        source: Log file, several, or a folder of them.
        out: Parquet (or ``.csv``) file to write; None only returns the table.

    Returns:
        One row per row of the log: ``row``, and ``prediction_<task>`` for each task.

    Raises:
        DataError: The log cannot be read or lacks a column.
    """
    from tamis.data.encoders import Encoders
    from tamis.data.loader import batches_of_rows
    from tamis.training.predict import predict as _predict

    folder = _folder(run)
    predictor, spec = _predictor(folder)
    schema = load_schema(folder / "inputs" / "schema.toml")
    encoders = Encoders.load(folder / "inputs" / "encoders", schema)
    parts, rows_seen = [], []
    for rows in encode_log(source, encoders):
        parts.append(
            _predict(
                predictor.model,
                batches_of_rows(rows, spec, batch_size=predictor.batch_size),
                tasks=spec.tasks,
                device=predictor.device,
                precision=predictor.precision,
            )
        )
        rows_seen.append(rows.row)
    predictions = np.concatenate(parts)
    columns: dict[str, Any] = {"row": np.concatenate(rows_seen)}
    columns |= {f"prediction_{t.name}": predictions[:, i] for i, t in enumerate(spec.tasks)}
    table = pa.table(columns)
    if out is not None:
        _write_table(table, Path(out))
    return table


def compare(
    first: Run | Path | str, second: Run | Path | str, *, split: str = "test"
) -> list[Comparison]:
    """Compare two runs on the rows that both predicted, task by task.

    Raises:
        DataError: The runs predicted different rows.
    """
    from tamis.evaluation.bootstrap import paired_bootstrap
    from tamis.evaluation.delong import delong_test

    tables = [_read_predictions(_folder(run), split) for run in (first, second)]
    if not tables[0]["row"].equals(tables[1]["row"]):
        raise DataError(
            f"compare: runs must have predicted the same rows of the split {split!r}, got "
            f"{tables[0].num_rows:,} and {tables[1].num_rows:,} different ones. Train both on one "
            f"dataset."
        )
    users, weights = (
        tables[0][name].to_numpy() if name in tables[0].column_names else None
        for name in ("user", "weight")
    )
    records = [Run(_folder(run)).metrics[split] for run in (first, second)]
    comparisons = []
    for task in records[0]:
        if task not in records[1] or records[0][task].get("auc") is None:
            continue
        labels = tables[0][f"label:{task}"].to_numpy()
        old, new = (table[f"prediction:{task}"].to_numpy() for table in tables)
        metrics = (records[0][task], records[1][task])
        try:
            if weights is None:
                auc = delong_test(labels, old, new, groups=users)
                (ne,) = paired_bootstrap(labels, old, new, users, seed=0, metrics=("ne",))
            else:
                ne, auc = paired_bootstrap(
                    labels, old, new, users, seed=0, metrics=("ne", "auc"), weights=weights
                )
        except DataError as error:
            unknown = Comparison(
                task=task, split=split, metrics=metrics, auc=None, ne=None, note=str(error)
            )
            comparisons.append(unknown)
            continue
        comparisons.append(Comparison(task=task, split=split, metrics=metrics, auc=auc, ne=ne))
    return comparisons


def write_report(run: Run | Path | str, dataset: Dataset | None = None) -> Path:
    """Write a run's ``report.html``; with its dataset at hand, diagnostics are computed anew.

    Raises:
        ArtifactError: The run is unfinished or damaged.
    """
    from tamis.reports.run_report import write_run_report
    from tamis.training.diagnostics import diagnose

    folder = _folder(run)
    if dataset is not None:
        predictor, _ = _predictor(folder)
        split = "test" if "test" in dataset.split_names else "valid"
        seed = int(artifacts.read_json(folder / "run.json")["seed"])
        found = diagnose(predictor, dataset, split=split, seed=seed)
        artifacts.write_json(folder / "diagnostics.json", found)
    return write_run_report(folder)


def _folder(run: Run | Path | str) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


def _predictor(folder: Path) -> tuple[Any, Any]:
    from tamis.training.evaluate import Predictor
    from tamis.training.predict import (
        choose_device,
        choose_precision,
        load_model,
        load_run_config,
    )

    training = load_run_config(folder).training
    device = choose_device("auto" if training.device.startswith("cuda") else training.device)
    model, spec = load_model(folder, device=device)
    predictor = Predictor(
        model=model,
        device=device,
        precision=choose_precision(training.precision, device),
        batch_size=max(training.batch_size, 4096),
    )
    return predictor, spec


def _next_run(dataset: str, model: str) -> Path:
    for number in itertools.count(1):
        folder = RUNS / f"{dataset}-{model}-{number}"
        if not folder.exists():
            return folder
    raise AssertionError("a counter does not end")


def _read_predictions(folder: Path, split: str) -> pa.Table:
    path = folder / "predictions" / f"{split}.arrow"
    if not path.exists():
        raise DataError(f"{folder}: must hold predictions of the split {split!r}, got none.")
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _write_table(table: pa.Table, path: Path) -> None:
    import pyarrow.csv

    with artifacts.atomic_path(path) as temporary:
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)
