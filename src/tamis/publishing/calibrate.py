"""Calibration of the predictions that a run serves, fitted on the rows that it was validated on."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.data.cascade_log import POOL, REJECTED
from tamis.data.dataset import Dataset, Split
from tamis.data.schema import Task
from tamis.errors import DataError
from tamis.evaluation.calibrators import CalibrationMethod, fit_by_group
from tamis.funnel.calibration import Calibration
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import ads_of
from tamis.models.early_serving import ServedHead, label_tasks, served_tasks
from tamis.training.compare import read_predictions

_OF_NO_AD = "unknown"
"""Group of rows whose ad is not in the inventory; it serves nobody, yet counts for all rows."""


def fit_calibration(
    run: Path,
    dataset: Dataset,
    inventory: Inventory,
    *,
    method: CalibrationMethod,
    head: ServedHead | None,
    needed: Collection[str] | None = None,
) -> Calibration:
    """A map for each served task and way of billing, from the run's predictions.

    A head that imitates the final stage is compared with its predictions, every other one with
    labels.

    Args:
        run: Folder of a finished run.
        dataset: What it was trained on.
        inventory: How ads are billed.
        method: How to fit.
        head: Which head of an early-stage ranker serves; None: the model's own predictions.
        needed: Tasks that something is decided by; None: all. Others are left as they are where
            they cannot be fitted.

    Raises:
        ArtifactError: The predictions are damaged.
        DataError: The dataset has no role ``item``, or a task that is needed cannot be fitted.
    """
    columns, groups = calibrating_rows(run, dataset, inventory)
    found = {}
    for task, target, predicted in served_predictions(columns, dataset.spec.tasks, head):
        try:
            found[task] = fit_by_group(
                method, target, predicted, groups, weights=columns.get("weight")
            )
        except DataError as error:
            if needed is not None and task not in needed:
                continue
            raise DataError(
                f"{run}, task {task!r}, split 'valid': {error} Or leave calibration out."
            ) from error
    return Calibration(by_task=found)


def calibrating_rows(
    run: Path, dataset: Dataset, inventory: Inventory
) -> tuple[dict[str, NDArray[Any]], NDArray[np.str_]]:
    """Columns of a run's predictions for the validation rows, and how the ad of each is billed.

    Of a cascade's rows those of :func:`came_to_final`: predictions meet bids there, and the many
    that were turned away before it would outweigh them.

    Raises:
        ArtifactError: The predictions are damaged.
        DataError: The dataset has no role ``item``.
    """
    table = read_predictions(run / "predictions", "valid")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    groups = billing_of_rows(dataset, "valid", inventory)
    came = came_to_final(dataset.split("valid"))
    return {name: values[came] for name, values in columns.items()}, groups[came]


def came_to_final(split: Split) -> NDArray[np.bool_]:
    """Which rows (N,) of a dataset that ``write_cascade`` wrote came to the final stage.

    Of any other dataset, whose rows have no pool, all.
    """
    pool = split.role(POOL)
    if pool is None:
        return np.ones(split.num_rows, np.bool_)
    came: NDArray[np.bool_] = pool != REJECTED
    return came


def served_predictions(
    columns: Mapping[str, NDArray[Any]], tasks: tuple[Task, ...], head: ServedHead | None
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Name, targets and predictions of each binary task that serves.

    Args:
        columns: ``label:<task>`` and ``prediction:<task>`` of every task.
        tasks: All tasks of the model.
        head: Which head of an early-stage ranker serves; None: the model's own predictions.
    """
    chosen: list[tuple[Task, tuple[Task, ...]]]
    if head is None:
        chosen = [(task, (task,)) for task in tasks]
    else:
        places = served_tasks(tasks, head)
        chosen = [
            (task, tuple(tasks[place] for place in group))
            for task, group in zip(label_tasks(tasks), places, strict=True)
        ]
    for task, heads in chosen:
        if task.kind == "binary":
            # The last is the one that imitates, where one does.
            target = columns[f"label:{heads[-1].name}"]
            parts = [columns[f"prediction:{item.name}"] for item in heads]
            yield task.name, target, parts[0] if len(parts) == 1 else _mean_of_logits(parts)


def _mean_of_logits(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        logit = np.mean([np.log(part) - np.log1p(-part) for part in parts], axis=0)
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logit))
    return probabilities


def billing_of_rows(dataset: Dataset, split: str, inventory: Inventory) -> NDArray[np.str_]:
    """How the ad of each row of a split is billed.

    Raises:
        DataError: The dataset has no role ``item``.
    """
    item = dataset.split(split).role("item")
    if item is None:
        raise DataError(
            f"{dataset.path}: must have the role 'item' to calibrate by billing, got none. Name "
            f"its column under [roles] in the schema and ingest the log anew."
        )
    rows = ads_of(item, inventory.codes)
    groups = np.full(len(item), _OF_NO_AD, dtype="<U16")
    groups[rows >= 0] = inventory.attributes.billing[rows[rows >= 0]]
    return groups
