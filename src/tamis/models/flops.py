"""Operations of the parts of a model that serve it, counted on rows of nothing."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import InputSpec

_Result = TypeVar("_Result")


def counted_flops(compute: Callable[[], _Result]) -> tuple[int, _Result]:
    """Floating-point operations of a computation, and its result."""
    # Attention as plain matrix products: the counter does not know every fused kernel.
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        result = compute()
    return int(counter.get_total_flops()), result


def blank_batch(spec: InputSpec, rows: int, device: torch.device) -> Batch:
    """Rows of nothing: unknown categories, empty histories, zeros."""
    sequences = {
        group.name: Jagged(
            values=torch.zeros(0, len(group.fields), dtype=torch.int64),
            offsets=torch.zeros(rows + 1, dtype=torch.int64),
        )
        for group in spec.sequences
    }
    return Batch(
        numeric=torch.zeros(rows, len(spec.numeric)),
        ids=torch.zeros(rows, len(spec.categorical), dtype=torch.int64),
        labels=torch.full((rows, len(spec.tasks)), torch.nan),
        weights=torch.ones(rows),
        sequences=sequences,
    ).to(device)
