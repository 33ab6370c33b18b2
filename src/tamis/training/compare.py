"""Is one run better than another? Their saved predictions, task by task, with paired tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.columns import alone_where_missing
from tamis.errors import ArtifactError, DataError
from tamis.evaluation.bootstrap import paired_bootstrap
from tamis.evaluation.delong import delong_test
from tamis.evaluation.significance import PairedDifference
from tamis.training.evaluate import PREDICTIONS_VERSION
from tamis.training.run_folder import check_finished

_NO_TEST = "a task that is not binary, for which there is no paired test; compare their RMSE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs on the same rows, one task."""

    task: str
    """Task compared."""
    split: str
    """Split compared."""
    metrics: tuple[Mapping[str, Any], Mapping[str, Any]]
    """Metrics of the first and the second run."""
    auc: PairedDifference | None
    """Second less first; DeLong, clustered by user where users are known. Where rows have weights,
    which DeLong's test knows nothing of, bootstrap by user."""
    ne: PairedDifference | None
    """Second less first; bootstrap by user."""
    note: str = ""
    """Why the two are None: the rows do not suffice for a test, or the task is not binary."""


def compare_runs(first: Path, second: Path, *, split: str) -> list[Comparison]:
    """Compare two runs on the rows that both predicted, task by task.

    Datasets with other fields may be compared, as long as rows, labels, users and weights are the
    same: that is how a new field is judged.

    Args:
        first: Folder of the run that is the baseline.
        second: Folder of the run that may be better.
        split: Split whose predictions are compared.

    Returns:
        One comparison for each task that both runs have.

    Raises:
        ArtifactError: A run is unfinished, or its predictions are damaged.
        DataError: The runs predicted different rows or labels, their tasks are of different kinds,
            or they have none in common that can be tested.
    """
    before, after = (_Predicted(folder, split) for folder in (first, second))
    tasks = _common_tasks(before, after)
    _check_same_rows(before, after, tasks)
    users = before.column("user") if before.has("user") else after.column("user")
    weights = before.column("weight")
    comparisons = []
    for task in tasks:
        metrics = (before.metrics[task], after.metrics[task])
        auc: PairedDifference | None = None
        ne: PairedDifference | None = None
        note = ""
        if before.kind(task) == "regression":
            note = _NO_TEST
        else:
            try:
                ne, auc = _test(before, after, task, users=users, weights=weights)
            except DataError as error:
                note = str(error)
        comparisons.append(
            Comparison(task=task, split=split, metrics=metrics, auc=auc, ne=ne, note=note)
        )
    return comparisons


class _Predicted:
    """What a finished run predicted for a split, and how it scored."""

    def __init__(self, run: Path, split: str) -> None:
        check_finished(run)
        self.run, self.split = run, split
        self.table = read_predictions(run / "predictions", split)
        self.metrics: Mapping[str, Any] = artifacts.read_json(run / "metrics.json")["metrics"][
            split
        ]
        record = artifacts.read_json(run / "run.json")
        self.fingerprint = str(record["dataset"]["fingerprint"])

    def has(self, name: str) -> bool:
        return name in self.table.column_names

    def column(self, name: str) -> NDArray[Any] | None:
        if not self.has(name):
            return None
        values: NDArray[Any] = self.table[name].to_numpy()
        return values

    def kind(self, task: str) -> str:
        return "regression" if "rmse" in self.metrics[task] else "binary"


def _test(
    before: _Predicted,
    after: _Predicted,
    task: str,
    *,
    users: NDArray[Any] | None,
    weights: NDArray[Any] | None,
) -> tuple[PairedDifference, PairedDifference]:
    """Differences of NE and of AUC."""
    labels = before.table[f"label:{task}"].to_numpy()
    old, new = (run.table[f"prediction:{task}"].to_numpy() for run in (before, after))
    if weights is None:
        auc = delong_test(labels, old, new, groups=users)
        (ne,) = paired_bootstrap(labels, old, new, users, seed=0, metrics=("ne",))
    else:
        ne, auc = paired_bootstrap(
            labels, old, new, users, seed=0, metrics=("ne", "auc"), weights=weights
        )
    return ne, auc


def _common_tasks(before: _Predicted, after: _Predicted) -> list[str]:
    tasks = [task for task in before.metrics if task in after.metrics]
    if not tasks:
        raise DataError(
            f"runs must have a task in common, got {', '.join(before.metrics)} in "
            f"{before.run} and {', '.join(after.metrics)} in {after.run}. Compare other runs."
        )
    for task in tasks:
        if before.kind(task) != after.kind(task):
            raise DataError(
                f"task {task!r} must be of one kind in both runs, got "
                f"{before.kind(task)} in {before.run} and {after.kind(task)} in {after.run}. "
                f"Compare runs whose schemas agree."
            )
    if all(before.kind(task) == "regression" for task in tasks):
        raise DataError(
            f"one task must be binary, got only regression ({', '.join(tasks)}), for "
            f"which there is no paired test. Compare the RMSE that evaluate gives for each run."
        )
    return tasks


def _check_same_rows(before: _Predicted, after: _Predicted, tasks: list[str]) -> None:
    if not before.table["row"].equals(after.table["row"]):
        raise DataError(
            f"runs must have predicted the same rows of the split {before.split!r}, got "
            f"{before.table.num_rows:,} and {after.table.num_rows:,} different ones. Train both "
            f"on one dataset."
        )
    shared = [f"label:{task}" for task in tasks]
    # Users may be unknown to one of the schemas; weights change every metric and may not.
    if before.has("user") and after.has("user"):
        shared.append("user")
    if before.has("weight") or after.has("weight"):
        shared.append("weight")
    for name in shared:
        ours, theirs = before.column(name), after.column(name)
        if ours is None or theirs is None or not np.array_equal(ours, theirs, equal_nan=True):
            raise DataError(
                f"runs must have been trained on the same log, got another "
                f"{name.replace(':', ' ')} in the datasets {before.fingerprint[:12]} and "
                f"{after.fingerprint[:12]}. Train both on one dataset."
            )


def read_predictions(folder: Path, split: str) -> pa.Table:
    """The saved predictions of a run.

    Args:
        folder: ``predictions`` of the run.
        split: Split of its dataset.

    Raises:
        DataError: There are none of that split.
        ArtifactError: They are damaged.
    """
    path = folder / f"{split}.arrow"
    if not path.exists():
        raise DataError(
            f"{folder.parent}: must hold predictions of the split {split!r}, got none. Name "
            f"another split."
        )
    artifacts.read_manifest(folder, kind="predictions", version=PREDICTIONS_VERSION, verify=True)
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"{path}: must be a whole Arrow file, got {error}. Train anew."
        ) from error
    if "user" not in table.column_names:
        return table
    users = alone_where_missing(table["user"].to_numpy(), table["row"].to_numpy())
    return table.set_column(table.column_names.index("user"), "user", pa.array(users))
