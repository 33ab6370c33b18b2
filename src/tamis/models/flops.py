"""Floating-point operations of the parts of a model that serve it."""

from collections.abc import Callable
from typing import TypeVar

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_Result = TypeVar("_Result")


def counted_flops(compute: Callable[[], _Result]) -> tuple[int, _Result]:
    """Floating-point operations of a computation, and its result."""
    # Attention as plain matrix products: the counter does not know every fused kernel.
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        result = compute()
    return int(counter.get_total_flops()), result
