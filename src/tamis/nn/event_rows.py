"""The row that each event of a jagged batch belongs to."""

import torch
from jaxtyping import Int
from torch import Tensor

Count = int | torch.SymInt
"""A number of rows or events; while a model is exported, one that stands for any."""


def event_rows(offsets: Int[Tensor, " bounds"], num_events: Count) -> Int[Tensor, " nnz"]:
    """The row of each event.

    Args:
        offsets: Row b holds events ``offsets[b]`` to ``offsets[b + 1]``.
        num_events: What ``offsets`` ends with; with it given, a GPU need not be waited for.

    Example:
        >>> event_rows(torch.tensor([0, 2, 2, 3]), 3).tolist()
        [0, 0, 2]
    """
    if not torch.compiler.is_exporting():
        index = torch.arange(offsets.shape[0] - 1, device=offsets.device)
        return torch.repeat_interleave(index, offsets.diff(), output_size=num_events)
    # In operators that ONNX has: how many rows ended before each event. Rows at the end without
    # events end one place behind the last.
    ends = torch.zeros(num_events + 1, dtype=torch.int64, device=offsets.device)
    ends = ends.index_add(0, offsets[1:], torch.ones_like(offsets[1:]))
    return ends[:-1].cumsum(0)
