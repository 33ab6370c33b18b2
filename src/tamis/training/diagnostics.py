"""What a finished run's report shows beyond its metrics: reliability, slices, importance."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.data.dataset import Dataset, Split
from tamis.data.encoders import Encoders
from tamis.data.loader import Loader
from tamis.data.schema import Task
from tamis.evaluation import evaluate_task, reliability_curve
from tamis.models.output import Inspectable, Inspection
from tamis.training.abundance import table_abundances
from tamis.training.evaluate import Predictor
from tamis.training.importance import permutation_importance
from tamis.training.loss_gradients import loss_gradient_norms
from tamis.training.predict import evaluation_mode, predict

_SLICED_FIELDS = 8
_MAX_VALUES = 40
_VALUES_SHOWN = 12
_SAMPLE_BATCH = 8192
_SAMPLE_BATCHES = 4


def diagnose(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str,
    seed: int,
    task_weights: tuple[float, ...],
) -> dict[str, Any]:
    """Compute what a report needs, as JSON values.

    Args:
        predictor: The model.
        dataset: The data.
        split: Split to look at.
        seed: Decides the sample and the shuffles of the importance.
        task_weights: Weights of the tasks in the training loss.

    Returns:
        ``reliability`` and ``slices`` by task; on a sample of at most 32,768 rows ``importance`` by
        field, and the ``inspections`` of a model that has any; ``tables`` with their information
        abundance; ``loss_gradients`` of a model whose loss has several terms.
    """
    rows = dataset.split(split)
    predictions = predictor.predict(dataset, split)
    labels, weights = rows.labels(), rows.weights()
    encoders = Encoders.load(dataset.encoders_path, dataset.schema)
    reliability: dict[str, Any] = {}
    slices: dict[str, Any] = {}
    for index, task in enumerate(dataset.spec.tasks):
        known = ~np.isnan(labels[:, index])
        if task.kind != "binary" or np.unique(labels[known, index]).size < 2:
            continue
        truth, predicted = labels[:, index], predictions[:, index]
        curve = reliability_curve(truth, predicted, weights=weights)
        reliability[task.name] = [asdict(point) for point in curve]
        slices[task.name] = _slices(rows, dataset, encoders, truth, predicted, weights)
    return {
        "split": split,
        "reliability": reliability,
        "slices": slices,
        "importance": _importance(predictor, dataset, split, seed),
        "inspections": _inspections(predictor, dataset, split, seed),
        "tables": table_abundances(predictor.model, dataset.spec),
        "loss_gradients": _loss_gradients(predictor, dataset, split, seed, task_weights),
    }


def _slices(
    rows: Split,
    dataset: Dataset,
    encoders: Encoders,
    labels: NDArray[np.float32],
    predictions: NDArray[np.float64],
    weights: NDArray[np.float32] | None,
) -> dict[str, list[dict[str, Any]]]:
    """Metrics for each frequent value of the fields with few values, by field."""
    result: dict[str, list[dict[str, Any]]] = {}
    is_observed = ~np.isnan(labels)
    for item in dataset.spec.categorical:
        names = encoders.category_names(item.name)
        if names is None or len(names) > _MAX_VALUES or len(result) >= _SLICED_FIELDS:
            continue
        ids = rows.ids(item.name)
        counts = np.bincount(ids, minlength=len(names))
        entries = []
        for value in np.argsort(-counts, kind="stable")[:_VALUES_SHOWN].tolist():
            if counts[value] == 0:
                continue
            chosen = is_observed & (ids == value)
            num_rows = int(chosen.sum())
            if weights is not None and not weights[chosen].any():
                chosen[:] = False  # Of rows that weigh nothing their number alone can be told.
            mass = None if weights is None else weights[chosen]
            metrics = evaluate_task(labels[chosen], predictions[chosen], weights=mass).to_json()
            entries.append({"value": names[value], **metrics, "rows": num_rows})
        result[item.name] = entries
    return result


def _sample(dataset: Dataset, split: str, seed: int) -> Iterator[Batch]:
    loader = Loader(
        dataset.split(split), dataset.spec, batch_size=_SAMPLE_BATCH, seed=seed, prefetch=0
    )
    return itertools.islice(loader.epoch(0), _SAMPLE_BATCHES)


def _inspections(
    predictor: Predictor, dataset: Dataset, split: str, seed: int
) -> list[dict[str, Any]]:
    """Each matrix of the model, averaged over the rows of the sample."""
    model = predictor.model
    if not isinstance(model, Inspectable):
        return []
    totals: list[torch.Tensor] = []
    shown: list[Inspection] = []
    rows = 0
    device, precision = predictor.device, predictor.precision
    with evaluation_mode(predictor.model):
        for batch in _sample(dataset, split, seed):
            with (
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, precision == torch.bfloat16),
            ):
                shown = model.inspections(batch.to(device))
            values = [batch.num_rows * item.values.double().cpu() for item in shown]
            totals = [a + b for a, b in zip(totals, values, strict=True)] if totals else values
            rows += batch.num_rows
    return [
        {
            "title": item.title,
            "rows": list(item.rows),
            "columns": list(item.columns),
            "values": (total / rows).tolist(),
        }
        for item, total in zip(shown, totals, strict=True)
    ]


def _loss_gradients(
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    seed: int,
    task_weights: tuple[float, ...],
) -> dict[str, float]:
    """Norms by term, on the first batch of the sample; nothing where labels are the only term."""
    batch = next(_sample(dataset, split, seed)).to(predictor.device)
    with evaluation_mode(predictor.model):
        norms = loss_gradient_norms(
            predictor.model, batch, tasks=dataset.spec.tasks, task_weights=task_weights
        )
    return norms if len(norms) > 1 else {}


def _importance(
    predictor: Predictor, dataset: Dataset, split: str, seed: int
) -> list[dict[str, Any]]:
    sample = _sample(dataset, split, seed)
    tasks: tuple[Task, ...] = dataset.spec.tasks

    def probabilities(batch: Batch) -> NDArray[np.float64]:
        with torch.inference_mode():
            return predict(
                predictor.model,
                [batch],
                tasks=tasks,
                device=predictor.device,
                precision=predictor.precision,
            )

    found = permutation_importance(probabilities, sample, dataset.spec, seed=seed)
    return [{"field": item.field, "ne_increase": dict(item.ne_increase)} for item in found]
