"""Optimizers for embedding tables that touch only the rows of the batch, and the dense one.

The gradient of a merged table is an uncoalesced sparse tensor: one row index and one D-vector per
lookup (``nn/embedding.py``). Each optimizer here first sums the D-vectors of equal rows, then
updates those rows in place. One step costs O(rows in the batch), never O(table).

L2 regularisation and weight decay act on the rows of the batch only, when they are in it. A row
that is never looked up never decays; for rows that are in every batch this is the usual L2.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INT32_LIMIT = 2**31 - 1


def sum_duplicate_rows(rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows.

    Args:
        rows: (n,) int64 table rows, any order, with duplicates.
        gradients: (n, D) float32.

    Returns:
        Ascending distinct rows (u,) int64 and the sum of each one's gradients (u, D). Duplicates
        are added in the order in which they came, so the result does not depend on threads.
    """
    if rows.numel() == 0:
        return rows, gradients
    # Half the bytes sort in half the time; the caller's tables decide whether int32 can hold them.
    keys = rows.to(torch.int32) if int(rows.max()) <= _INT32_LIMIT else rows
    ordered, positions = torch.sort(keys, stable=True)
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = counts.cumsum(0) - counts
    total = F.embedding_bag(positions, gradients, starts, mode="sum")
    return distinct.to(torch.int64), total


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row instead of one per element.

    ``state += mean(g**2); row -= lr * g / (sqrt(state) + eps)`` for each row of the batch. Needs
    V instead of V*D numbers of state.

    Source:
        Gupta et al., Training Recommender Systems at Scale, arXiv:2010.11305; the update is the one
        that FBGEMM calls EXACT_ROWWISE_ADAGRAD.

    Differs from the source:
        L2 is added to the summed gradient of each row of the batch before it is squared.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, eps: float = 1e-8, l2: float = 0.0
    ) -> None:
        """Build the optimizer.

        Args:
            parameters: Merged tables (V, D).
            lr: Step size.
            eps: Added to the root of the accumulator.
            l2: Coefficient of ``l2 / 2 * |row|**2``, on the rows of the batch only.
        """
        super().__init__(parameters, {"lr": lr, "eps": eps, "l2": l2})
        for parameter in _parameters(self):
            self.state[parameter]["sum"] = parameter.new_zeros(parameter.shape[0])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows of the batch; gradients stay until ``zero_grad``."""
        loss = closure() if closure is not None else None
        for group, parameter, rows, gradient in _row_gradients(self):
            accumulator = self.state[parameter]["sum"]
            total = accumulator.index_select(0, rows).add_(gradient.square().mean(1))
            accumulator.index_copy_(0, rows, total)
            scale = total.sqrt_().add_(group["eps"]).reciprocal_().mul_(-group["lr"])
            parameter.index_add_(0, rows, gradient.mul_(scale.unsqueeze(1)))
        return loss


class RowAdagrad(torch.optim.Optimizer):
    """Adagrad per element, on the rows of the batch.

    Equal to ``torch.optim.Adagrad`` on dense gradients with ``lr_decay=0``: a row with gradient 0
    does not move there either.

    Source:
        Duchi, Hazan and Singer, Adaptive Subgradient Methods, JMLR 2011.

    Differs from the source:
        Diagonal form; L2 on the rows of the batch only.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, eps: float = 1e-10, l2: float = 0.0
    ) -> None:
        """Build the optimizer; arguments as for ``RowwiseAdagrad``."""
        super().__init__(parameters, {"lr": lr, "eps": eps, "l2": l2})
        for parameter in _parameters(self):
            self.state[parameter]["sum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows of the batch; gradients stay until ``zero_grad``."""
        loss = closure() if closure is not None else None
        for group, parameter, rows, gradient in _row_gradients(self):
            accumulator = self.state[parameter]["sum"]
            total = accumulator.index_select(0, rows).addcmul_(gradient, gradient)
            accumulator.index_copy_(0, rows, total)
            update = gradient.div_(total.sqrt_().add_(group["eps"])).mul_(-group["lr"])
            parameter.index_add_(0, rows, update)
        return loss


class RowAdam(torch.optim.Optimizer):
    """Adam on the rows of the batch ("lazy" Adam): moments of other rows neither decay nor move.

    Bias correction counts the optimizer's steps, not each row's, as ``torch.optim.SparseAdam``
    does; a row that is first seen late therefore starts with small moments and larger steps.

    Source:
        Kingma and Ba, Adam, ICLR 2015, algorithm 1.

    Differs from the source:
        Only rows of the batch are updated; L2 on those rows only.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l2: float = 0.0,
    ) -> None:
        """Build the optimizer.

        Args:
            parameters: Merged tables (V, D).
            lr: Step size.
            betas: Decay of the first and the second moment.
            eps: Added to the root of the second moment.
            l2: Coefficient of ``l2 / 2 * |row|**2``, on the rows of the batch only.
        """
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "l2": l2})
        for parameter in _parameters(self):
            self.state[parameter]["step"] = torch.zeros((), dtype=torch.int64)
            self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows of the batch; gradients stay until ``zero_grad``."""
        loss = closure() if closure is not None else None
        for group, parameter, rows, gradient in _row_gradients(self):
            state = self.state[parameter]
            state["step"] += 1
            step = int(state["step"])
            beta1, beta2 = group["betas"]
            first = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - beta1)
            state["exp_avg"].index_copy_(0, rows, first)
            second = state["exp_avg_sq"].index_select(0, rows)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            state["exp_avg_sq"].index_copy_(0, rows, second)
            step_size = group["lr"] / (1 - beta1**step)
            denominator = second.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
            parameter.index_add_(0, rows, first.div_(denominator).mul_(-step_size))
        return loss


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _row_gradients(
    optimizer: torch.optim.Optimizer,
) -> Iterable[tuple[dict[str, Any], nn.Parameter, Tensor, Tensor]]:
    """Rows of the batch and their summed gradient, L2 included, of each table that has one."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if not gradient.is_sparse:
                raise TypeError(
                    "table optimizer: gradients must be sparse, got a dense one of shape "
                    f"{tuple(gradient.shape)}. Look rows up with nn.EmbeddingTables."
                )
            rows, total = sum_duplicate_rows(gradient._indices()[0], gradient._values())
            if group["l2"] > 0:
                total.add_(parameter.index_select(0, rows), alpha=group["l2"])
            yield group, parameter, rows, total
