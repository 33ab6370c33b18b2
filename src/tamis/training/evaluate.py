"""Metrics of a model on a split, its predictions on disk, and what the truth would have scored."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from tamis import artifacts
from tamis.data.columns import alone_where_missing
from tamis.data.dataset import Dataset, Split
from tamis.data.loader import Loader
from tamis.data.schema import InputSpec, Task
from tamis.evaluation import evaluate_imitation, evaluate_task
from tamis.models.cetnet import CETNet
from tamis.training.predict import (
    choose_device,
    choose_precision,
    load_model,
    load_run_config,
    predict,
)

Metrics = dict[str, float | int | None]
PREDICTIONS_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A model with where and how it computes."""

    model: nn.Module
    """The model, on ``device``."""
    device: torch.device
    """Where batches go."""
    precision: torch.dtype
    """Type of matrix products."""
    batch_size: int
    """Rows at a time."""

    def predict(self, dataset: Dataset, split: str) -> NDArray[np.float64]:
        """Predictions (N, T) of a split's rows, in their order on disk."""
        loader = Loader(
            dataset.split(split), dataset.spec, batch_size=self.batch_size, shuffle=False
        )
        return predict(
            self.model,
            loader.epoch(0),
            tasks=dataset.spec.tasks,
            device=self.device,
            precision=self.precision,
        )


def load_predictor(run: Path) -> tuple[Predictor, InputSpec]:
    """The model of a finished run, ready to predict on this machine, and its inputs.

    Raises:
        ArtifactError: The run is unfinished or damaged.
    """
    training = load_run_config(run).training
    device = choose_device("auto" if training.device.startswith("cuda") else training.device)
    model, spec = load_model(run, device=device)
    predictor = Predictor(
        model=model,
        device=device,
        precision=choose_precision(training.precision, device),
        batch_size=max(training.batch_size, 4096),
    )
    return predictor, spec


def task_metrics(
    split: Split, predictions: NDArray[np.float64], tasks: tuple[Task, ...], *, grouped: bool
) -> dict[str, Metrics]:
    """Metrics of each task by name.

    Args:
        split: Labels, weights and users.
        predictions: (N, T).
        tasks: Their names and kinds.
        grouped: Whether to compute GAUC by user, where the split has users.
    """
    labels, weights = split.labels(), split.weights()
    groups = _users(split) if grouped else None
    result: dict[str, Metrics] = {}
    for index, task in enumerate(tasks):
        if task.kind == "regression":
            result[task.name] = _regression_metrics(
                labels[:, index], predictions[:, index], weights
            )
        elif task.kind == "probability":
            result[task.name] = evaluate_imitation(
                labels[:, index], predictions[:, index], weights=weights
            ).to_json()
        else:
            result[task.name] = evaluate_task(
                labels[:, index], predictions[:, index], weights=weights, groups=groups
            ).to_json()
    return result


def oracle_metrics(split: Split, tasks: tuple[Task, ...]) -> dict[str, Metrics]:
    """What the true probabilities score on the same rows; empty where they are not known."""
    truth = split.truth()
    if truth is None:
        return {}
    known = tuple(task for task in tasks if task.name in truth)
    columns = [index for index, task in enumerate(tasks) if task.name in truth]
    labels, weights = split.labels(), split.weights()
    return {
        task.name: evaluate_task(
            labels[:, column], truth[task.name], weights=weights, groups=_users(split)
        ).to_json()
        for column, task in zip(columns, known, strict=True)
    }


def ne_gaps(
    metrics: Mapping[str, Metrics], oracle: Mapping[str, Metrics]
) -> dict[str, float | None]:
    """NE of the model less NE of the true probabilities, by task."""
    gaps: dict[str, float | None] = {}
    for task, best in oracle.items():
        ours, theirs = metrics[task]["ne"], best["ne"]
        gaps[task] = None if ours is None or theirs is None else ours - theirs
    return gaps


def evaluate_dataset(
    predictor: Predictor, dataset: Dataset, *, splits: tuple[str, ...], out: Path
) -> dict[str, Any]:
    """Evaluate splits and write their predictions.

    Args:
        predictor: The model.
        dataset: The data.
        splits: Which of its splits.
        out: Folder for ``<split>.arrow`` with one row per row of the split: ``row``, ``user``
            (where known), ``label:<task>``, ``prediction:<task>`` and, for an ensemble,
            ``prediction:<task>:<member>``; sealed by a manifest.

    Returns:
        ``metrics``, ``oracle`` and ``ne_gap``, each by split and task; the latter two only for
        splits whose true probabilities are known. For an ensemble ``members`` too, by split,
        member and task.
    """
    result: dict[str, dict[str, Any]] = {"metrics": {}, "oracle": {}, "ne_gap": {}}
    for name in splits:
        split = dataset.split(name)
        predictions = predictor.predict(dataset, name)
        members = _member_predictions(predictor, dataset, name)
        write_predictions(out / f"{name}.arrow", split, predictions, dataset.spec.tasks, members)
        metrics = task_metrics(split, predictions, dataset.spec.tasks, grouped=True)
        result["metrics"][name] = metrics
        if members:
            result.setdefault("members", {})[name] = {
                member: task_metrics(split, values, dataset.spec.tasks, grouped=True)
                for member, values in members.items()
            }
        oracle = oracle_metrics(split, dataset.spec.tasks)
        if oracle:
            result["oracle"][name] = oracle
            result["ne_gap"][name] = ne_gaps(metrics, oracle)
    artifacts.write_manifest(
        out,
        kind="predictions",
        version=PREDICTIONS_VERSION,
        files=out.glob("*.arrow"),
        payload={},
    )
    return result


def _member_predictions(
    predictor: Predictor, dataset: Dataset, split: str
) -> dict[str, NDArray[np.float64]]:
    """What each member of an ensemble predicts; nothing for other models."""
    model = predictor.model
    if not isinstance(model, CETNet):
        return {}
    return {
        name: replace(predictor, model=member).predict(dataset, split)
        for name, member in zip(model.member_names, model.members, strict=True)
    }


def write_predictions(
    path: Path,
    split: Split,
    predictions: NDArray[np.float64],
    tasks: tuple[Task, ...],
    members: Mapping[str, NDArray[np.float64]],
) -> None:
    """Write predictions as an uncompressed Arrow IPC file, atomically."""
    labels, users, weights = split.labels(), _users(split), split.weights()
    columns: dict[str, NDArray[Any]] = {"row": np.asarray(split.rows())}
    if users is not None:
        columns["user"] = np.asarray(users)
    if weights is not None:
        columns["weight"] = np.asarray(weights)
    for index, task in enumerate(tasks):
        columns[f"label:{task.name}"] = np.ascontiguousarray(labels[:, index])
        columns[f"prediction:{task.name}"] = np.ascontiguousarray(predictions[:, index])
        for member, values in members.items():
            columns[f"prediction:{task.name}:{member}"] = np.ascontiguousarray(values[:, index])
    table = pa.table(columns)
    with (
        artifacts.atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def _users(split: Split) -> NDArray[np.int64] | None:
    """Whose each row (N,) is; None where users are not known at all."""
    users = split.role("user")
    return None if users is None else alone_where_missing(users, split.rows())


def _regression_metrics(
    labels: NDArray[np.float32],
    predictions: NDArray[np.float64],
    weights: NDArray[np.float32] | None,
) -> Metrics:
    observed = ~np.isnan(labels)
    truth = labels[observed].astype(np.float64)
    mass = np.ones(len(truth)) if weights is None else weights[observed].astype(np.float64)
    rows = int(observed.sum())
    if not mass.any():
        return {"rmse": None, "r2": None, "rows": rows}
    error = float(np.average((predictions[observed] - truth) ** 2, weights=mass))
    spread = float(np.average((truth - np.average(truth, weights=mass)) ** 2, weights=mass))
    return {"rmse": error**0.5, "r2": 1 - error / spread if spread else None, "rows": rows}
