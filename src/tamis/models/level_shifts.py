"""Shifts of logits that make a model's levels predict as much as there are labels."""

import torch
from jaxtyping import Float
from torch import Tensor

# Nats: wider than the logits of any rate above one in 10^13.
_WIDEST = 30.0
# Each halves what is left; 50 leave less than rounding does.
_HALVINGS = 50


def level_shifts(
    logits: Float[Tensor, "B N T"], labels: Float[Tensor, "B T"], weights: Float[Tensor, " B"]
) -> Float[Tensor, "N T"]:
    """What added to the logits of a level and task makes its predictions add up to the labels.

    Args:
        logits: Of N levels and T tasks.
        labels: In [0, 1]; NaN is left out.
        weights: Of the rows.

    Returns:
        The shifts, within 30; 0 for a task without both kinds of labels.
    """
    shifts = torch.zeros_like(logits[0])
    for task, is_known in enumerate((~labels.isnan()).unbind(1)):
        weight = weights[is_known].double()
        wanted = (weight * labels[is_known, task]).sum()
        if 0 < wanted < weight.sum():
            of_levels = logits[is_known, :, task].double()
            shifts[:, task] = _bisected(of_levels, weight.unsqueeze(1), wanted).to(shifts.dtype)
    return shifts


def _bisected(
    logits: Float[Tensor, "B N"], weights: Float[Tensor, "B 1"], wanted: Tensor
) -> Float[Tensor, " N"]:
    low = logits.new_full((logits.shape[1],), -_WIDEST)
    high = -low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_low = (weights * (logits + middle).sigmoid()).sum(0) < wanted
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return (low + high) / 2
