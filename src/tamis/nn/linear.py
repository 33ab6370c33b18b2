"""Linear maps whose products come in few shapes, though batches have any number of events."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.nn.autocast import compiles_by_shape, in_autocast_type

FEW_WEIGHTS = 64 * 64
"""Maps of fewer weights take less time in float32, and no cast."""


def missing_rows(rows: int) -> int:
    """Rows up to the next number of no more than four binary digits: an eighth more at most.

    Example:
        >>> [rows + missing_rows(rows) for rows in (7, 17, 1000, 1025)]
        [7, 18, 1024, 1152]
    """
    return -rows % (1 << max(0, rows.bit_length() - 4))


class Linear(nn.Linear):
    """``x W' + b``, computed by :func:`linear`."""

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """``x W' + b``."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*B O"]:
    """``x W' + b``; under autocast to bfloat16 on a CPU in few shapes, or in float32.

    There every shape has a kernel of its own, which is compiled when the shape is new: one to ten
    milliseconds, where the product itself takes less than one. A batch has its own number of
    events, and so its own shapes. Their rows grow with zeros, see :func:`missing_rows`. Fewer than
    :data:`FEW_WEIGHTS` weights give float32, whatever ``x`` is. Elsewhere it is ``F.linear``.
    """
    if not compiles_by_shape(x):
        return F.linear(x, weight, bias)
    if weight.numel() < FEW_WEIGHTS:
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), weight, bias)
    if torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    rows = math.prod(x.shape[:-1])
    missing = missing_rows(rows)
    if not missing:
        return F.linear(x, weight, bias)
    padded = F.pad(in_autocast_type(x).reshape(rows, -1), (0, 0, 0, missing))
    return F.linear(padded, weight, bias)[:rows].unflatten(0, x.shape[:-1])
