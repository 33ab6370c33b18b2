"""What a model costs: parameters and floating-point operations."""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tamis.data.batch import Batch
from tamis.training.optimizers import table_parameters
from tamis.training.predict import evaluation_mode


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters in tables, elsewhere, and together."""
    tables = sum(p.numel() for p in table_parameters(model))
    total = sum(p.numel() for p in model.parameters())
    return {"tables": tables, "dense": total - tables, "total": total}


def count_forward_flops(model: nn.Module, batch: Batch) -> float:
    """Floating-point operations of one row's prediction, averaged over a batch.

    Args:
        model: On the device of ``batch``; its mode and weights stay as they are.
        batch: At least one row.
    """
    return count_call_flops(model, batch) / batch.num_rows


def count_call_flops(module: nn.Module, *inputs: Any) -> float:  # noqa: ANN401  (any module's)
    """Floating-point operations of one forward pass.

    A multiplication with its addition counts as two. Matrix products, convolutions and attention
    count; element-wise operations, norms and embedding lookups do not, as is usual.

    Args:
        module: On the device of its inputs; its mode and weights stay as they are.
        *inputs: What it is called with.
    """
    # Attention as plain matrix products: the counter does not know every fused kernel.
    counter = FlopCounterMode(display=False)
    with evaluation_mode(module), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(*inputs)
    return float(counter.get_total_flops())
