"""What training minimises."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tamis.data.schema import Task
from tamis.models.output import Output


def training_loss(
    output: Output,
    labels: Tensor,
    weights: Tensor,
    tasks: tuple[Task, ...],
    task_weights: Tensor,
    *,
    is_taught: Tensor | None = None,
    teacher_weight: float = 1.0,
) -> Tensor:
    """Weighted mean loss over the observed labels of each task, summed over tasks.

    Binary tasks and probabilities: cross entropy of the logit, in nats. Regression tasks: squared
    error in standard deviations of the label, so that no unit outweighs another task. Auxiliary
    losses are added as they are. Each task's mean is over its own rows, so rows without its label
    leave its loss as it is; a task without any in the batch adds 0. Where the output names several
    logits to supervise, their losses are summed with their factors. Rows that a teacher labelled
    have a mean of their own, which is added.

    Args:
        output: What to compare with the labels, and auxiliary losses.
        labels: (B, T), NaN where a label was not observed.
        weights: (B,) sample weights, at least 0.
        tasks: Kinds of the T tasks.
        task_weights: (T,).
        is_taught: (B,) bool, rows whose labels are a teacher's; None: none.
        teacher_weight: Factor on the mean loss of these rows.

    Returns:
        A scalar.

    Raises:
        TypeError: The model returned no ``Output``.
        ValueError: Logits are not (B, T).
    """
    if not isinstance(output, Output):
        raise TypeError(f"model: forward must return an Output, got {type(output).__name__}.")
    groups = [(1.0, weights)]
    if is_taught is not None:
        groups = [(1.0, weights * ~is_taught), (teacher_weight, weights * is_taught)]
    total = weights.new_zeros(())
    for item in output.compared:
        if item.weight:
            truth = labels if item.labels is None else item.labels
            if item.logits.shape != truth.shape:
                raise ValueError(
                    f"model: logits must be {tuple(truth.shape)}, a row for each row of the batch "
                    f"and a column for each task, got {tuple(item.logits.shape)}."
                )
            observed = ~truth.isnan()
            losses = _losses(item.logits.float(), truth.where(observed, 0.0), tasks)
            for factor, of_rows in groups:
                row_weights = of_rows.unsqueeze(1) * observed
                per_task = (losses * row_weights).sum(0) / row_weights.sum(0).clamp_min(1e-12)
                total = total + item.weight * factor * (per_task * task_weights).sum()
    for auxiliary in output.auxiliary_losses.values():
        total = total + (auxiliary * task_weights).sum() if auxiliary.ndim else total + auxiliary
    return total


def _losses(logits: Tensor, known: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    """Loss (B, T) of each logit against its label."""
    losses = F.binary_cross_entropy_with_logits(logits, known, reduction="none")
    if all(task.kind != "regression" for task in tasks):
        return losses
    columns = list(losses.unbind(1))
    for index, task in enumerate(tasks):
        if task.kind == "regression":
            mean, std = task.scale
            columns[index] = (logits[:, index] - (known[:, index] - mean) / std).square()
    return torch.stack(columns, dim=1)
