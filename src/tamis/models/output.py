"""What every model is: a config, an input spec, and ``forward(batch) -> Output``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tamis.data.batch import Batch
from tamis.data.schema import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervised:
    """Logits (B, T) that the training loss compares with labels."""

    logits: Tensor
    weight: float = 1.0
    """Factor on their loss. At least 0."""
    labels: Tensor | None = None
    """(B, T), NaN where there is none; None takes the labels of the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Result of a forward pass.

    Shapes: ``logits`` (B, T) float; each auxiliary loss is in nats per row, already weighted, to be
    added to the training loss: a scalar, or (T,) where the tasks' own weights apply to it as well.
    ``supervised`` is what that loss compares with the labels; None means the logits alone, as they
    are.
    """

    logits: Tensor
    auxiliary_losses: Mapping[str, Tensor] = field(default_factory=dict)
    supervised: tuple[Supervised, ...] | None = None

    @property
    def compared(self) -> tuple[Supervised, ...]:
        """What the training loss compares with the labels."""
        return (Supervised(logits=self.logits),) if self.supervised is None else self.supervised


def probabilities_of(logits: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    """Predictions (B, T) in float64: probabilities, but for regression tasks, whose are values."""
    return predictions_of(logits.double(), tasks)


def predictions_of(logits: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    """As :func:`probabilities_of`, in the type of the logits.

    A regression's logit is relative to the mean and standard deviation of its task.
    """
    if all(task.kind != "regression" for task in tasks):
        return logits.sigmoid()
    columns = list(logits.unbind(1))
    for index, task in enumerate(tasks):
        if task.kind == "regression":
            mean, std = task.scale
            columns[index] = mean + std * columns[index]
        else:
            columns[index] = columns[index].sigmoid()
    return torch.stack(columns, dim=1)


class Ranker(Protocol):
    """A model of the catalog. It knows no optimizer, logger, device or file."""

    def __call__(self, batch: Batch) -> Output:
        """Logits of all tasks for every row of the batch."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """A matrix that shows how a model works, for a report; the mean over the rows of a batch."""

    title: str
    """What the numbers are."""
    rows: tuple[str, ...]
    """Names of its R rows."""
    columns: tuple[str, ...]
    """Names of its C columns."""
    values: Tensor
    """(R, C)."""


@runtime_checkable
class Inspectable(Protocol):
    """A model that can show how it works."""

    def inspections(self, batch: Batch) -> list[Inspection]:
        """The same matrices for every batch, in evaluation mode."""
        ...
