"""Permutation importance: how much worse the model gets when one field is shuffled between rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import DataError
from tamis.evaluation import evaluate_task

Predict = Callable[[Batch], NDArray[np.float64]]
"""Probabilities (B, T) of a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldImportance:
    """What one field is worth to a model."""

    field: str
    """Field, or group of sequence columns, that was shuffled."""
    ne_increase: Mapping[str, float]
    """Rise of NE by task; about 0 where the model does not use the field."""


def permutation_importance(
    predict: Predict, batches: Iterable[Batch], spec: InputSpec, *, seed: int
) -> list[FieldImportance]:
    """Shuffle every field in turn, within each batch, and measure the rise of NE.

    Args:
        predict: The model.
        batches: Sample of rows; a batch should hold thousands, as shuffling stays within it.
        spec: Inputs of the model.
        seed: Decides the shuffles.

    Returns:
        All fields, most important for the first task first. Tasks whose labels are of one class
        in the sample are left out.

    Source:
        Breiman, Random Forests, Machine Learning 2001, section 10.

    Differs from the source:
        The measure is NE on held-out rows, not error on out-of-bag rows.
    """
    generator = torch.Generator().manual_seed(seed)
    names = _field_names(spec)
    labels: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    intact: list[NDArray[np.float64]] = []
    shuffled: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for batch in batches:
        labels.append(batch.labels.numpy().astype(np.float64))
        weights.append(batch.weights.numpy().astype(np.float64))
        intact.append(predict(batch))
        for name in names:
            order = torch.randperm(batch.num_rows, generator=generator)
            shuffled[name].append(predict(_shuffle(batch, name, order, spec)))
    if not labels:
        raise DataError("permutation importance: must have rows, got none.")
    truth, mass = np.concatenate(labels), np.concatenate(weights)
    base = _ne_by_task(truth, np.concatenate(intact), mass, spec)
    result = []
    for name in names:
        worse = _ne_by_task(truth, np.concatenate(shuffled[name]), mass, spec)
        result.append(
            FieldImportance(field=name, ne_increase={t: worse[t] - base[t] for t in base})
        )
    first = next(iter(base), None)
    return sorted(result, key=lambda item: -item.ne_increase[first] if first else 0.0)


def _field_names(spec: InputSpec) -> list[str]:
    return [
        *(item.name for item in spec.categorical),
        *(group.name for group in spec.sequences),
        *spec.numeric,
    ]


def _ne_by_task(
    labels: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    weights: NDArray[np.float64],
    spec: InputSpec,
) -> dict[str, float]:
    result = {}
    for index, task in enumerate(spec.tasks):
        observed = ~np.isnan(labels[:, index]) & (weights > 0)
        if task.kind == "binary" and np.unique(labels[observed, index]).size == 2:
            result[task.name] = evaluate_task(
                labels[:, index], probabilities[:, index], weights=weights
            ).ne
    return result


def _shuffle(batch: Batch, name: str, order: torch.Tensor, spec: InputSpec) -> Batch:
    categorical = [item.name for item in spec.categorical]
    if name in categorical:
        ids = batch.ids.clone()
        column = categorical.index(name)
        ids[:, column] = ids[order, column]
        return replace(batch, ids=ids)
    if name in batch.sequences:
        moved = batch.sequences[name].take(order)
        return replace(batch, sequences={**batch.sequences, name: moved})
    numeric = batch.numeric.clone()
    column = spec.numeric.index(name)
    numeric[:, column] = numeric[order, column]
    return replace(batch, numeric=numeric)
