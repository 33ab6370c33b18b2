"""Optimizers for embedding tables that touch only the rows of the batch, and the dense one.

The gradient of a merged table is an uncoalesced sparse tensor: one row index and one D-vector per
lookup (``nn/embedding.py``). Each optimizer here first sums the D-vectors of equal rows, then
updates those rows in place. One step costs O(rows in the batch), never O(table).

L2 regularisation acts on the rows of the batch only, when they are in it, and then makes up for the
steps that they missed: a row that was last looked up k steps ago gets k times the coefficient. One
that never returns keeps its value. Adam adds L2 to the gradient, so that it moves a row by about
one step size a visit at most; the Adagrads shrink the row beside its step, at most to 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamis.nn.embedding import EmbeddingTables
from tamis.training.config import OptimizerConfig

_INT32_ROWS = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroups:
    """Which lookups of a batch hit the same table row."""

    rows: Tensor
    """(n,) int64 table rows, in the order of the lookups."""
    distinct: Tensor
    """(u,) int64, the same rows once each, ascending."""
    positions: Tensor
    """(n,) int64 lookups, those of one row side by side and in the order in which they came."""
    starts: Tensor
    """(u,) int64, where each row's lookups start in ``positions``."""

    def sum(self, gradients: Tensor) -> Tensor:
        """Gradients (n, D) of the lookups, summed by row to (u, D).

        Those of one row are added in the order in which they came, so that the result does not
        depend on the number of threads.
        """
        return F.embedding_bag(self.positions, gradients, self.starts, mode="sum")

    def is_of(self, rows: Tensor) -> bool:
        """Whether these are the groups of ``rows``."""
        return self.rows.shape == rows.shape and torch.equal(self.rows, rows)


def group_rows(rows: Tensor, *, num_table_rows: int) -> RowGroups:
    """Find the lookups of each row of a table with V = ``num_table_rows`` rows.

    Args:
        rows: (n,) int64, n at least 1, any order, with duplicates.
        num_table_rows: All of ``rows`` are below it.
    """
    # Half the bytes sort in half the time (a radix sort, on a CPU).
    keys = rows.to(torch.int32) if num_table_rows <= _INT32_ROWS else rows
    ordered, positions = torch.sort(keys, stable=True)
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    return RowGroups(
        rows=rows,
        distinct=distinct.to(torch.int64),
        positions=positions,
        starts=counts.cumsum(0) - counts,
    )


def build_optimizers(
    model: nn.Module, settings: OptimizerConfig
) -> dict[str, torch.optim.Optimizer]:
    """Optimizers by name: ``tables`` for embedding tables, ``dense`` (Adam) for the rest.

    Decoupled decay spares biases, whatever their shape, and norms; L2 in the gradient spares none.
    """
    tables = table_parameters(model)
    rest = {
        name: parameter
        for name, parameter in model.named_parameters()
        if all(parameter is not table for table in tables)
    }
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if tables:
        kinds = {"rowwise_adagrad": RowwiseAdagrad, "adagrad": RowAdagrad, "adam": RowAdam}
        optimizers["tables"] = kinds[settings.embedding](
            tables, lr=settings.embedding_lr, l2=settings.embedding_l2
        )
    l2, decay = settings.dense_l2, settings.dense_weight_decay
    decays = {True: l2 or decay, False: l2}
    groups = [
        {"params": members, "weight_decay": decay}
        for is_matrix, decay in decays.items()
        if (
            members := [
                parameter
                for name, parameter in rest.items()
                if (parameter.ndim > 1 and not _is_bias(name)) == is_matrix
            ]
        )
    ]
    if groups:
        optimizers["dense"] = torch.optim.Adam(
            groups, lr=settings.dense_lr, decoupled_weight_decay=not l2, fused=True
        )
    return optimizers


def _is_bias(name: str) -> bool:
    """Whether a parameter is a bias, or one of several in a list, by its name in a model."""
    parts = name.split(".")
    return any(part in ("bias", "biases") or part.endswith("_bias") for part in parts)


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The merged tables of a model, in the order of its modules."""
    return [module.weight for module in model.modules() if isinstance(module, EmbeddingTables)]


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row instead of one per element.

    ``state += mean(g**2); row -= lr * g / (sqrt(state) + eps)`` for each row of the batch. Needs
    V instead of V*D numbers of state. With L2 the row is first multiplied by
    ``max(0, 1 - lr * l2 * k / (sqrt(state) + eps))``, k steps after it was last in a batch.

    Source:
        Gupta et al., Training Recommender Systems at Scale, arXiv:2010.11305; the update is the one
        that FBGEMM calls EXACT_ROWWISE_ADAGRAD.

    Differs from the source:
        L2 stays out of the gradient: Adagrad's first step for a row has the same length whatever
        the gradient is, and L2 of many missed steps would decide its sign.
    """

    def __init__(
        self, parameters: list[nn.Parameter], *, lr: float, eps: float = 1e-8, l2: float = 0.0
    ) -> None:
        """Build the optimizer.

        Args:
            parameters: Merged tables (V, D).
            lr: Step size.
            eps: Added to the root of the accumulator.
            l2: Coefficient of ``l2 / 2 * |row|**2`` a step.
        """
        super().__init__(parameters, {"lr": lr, "eps": eps, "l2": l2})
        for parameter in _parameters(self):
            self.state[parameter]["sum"] = parameter.new_zeros(parameter.shape[0])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows of the batch; gradients stay until ``zero_grad``."""
        loss = closure() if closure is not None else None
        for group, parameter, rows, gradient, decay in _row_gradients(self):
            accumulator = self.state[parameter]["sum"]
            total = accumulator.index_select(0, rows).add_(gradient.square().mean(1))
            accumulator.index_copy_(0, rows, total)
            step_size = _adagrad_step_size(total, group["lr"], group["eps"]).unsqueeze(1)
            _take_adagrad_step(parameter, rows, gradient, step_size, decay)
        return loss


class RowAdagrad(torch.optim.Optimizer):
    """Adagrad per element, on the rows of the batch.

    Equal to ``torch.optim.Adagrad`` on dense gradients with ``lr_decay=0``: a row with gradient 0
    does not move there either. L2 shrinks rows as in ``RowwiseAdagrad``, element by element.

    Source:
        Duchi, Hazan and Singer, Adaptive Subgradient Methods, JMLR 2011.

    Differs from the source:
        Diagonal form; L2 beside the step, on the rows of the batch only.
    """

    def __init__(
        self, parameters: list[nn.Parameter], *, lr: float, eps: float = 1e-10, l2: float = 0.0
    ) -> None:
        """Build the optimizer; arguments as for ``RowwiseAdagrad``."""
        super().__init__(parameters, {"lr": lr, "eps": eps, "l2": l2})
        for parameter in _parameters(self):
            self.state[parameter]["sum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows of the batch; gradients stay until ``zero_grad``."""
        loss = closure() if closure is not None else None
        for group, parameter, rows, gradient, decay in _row_gradients(self):
            accumulator = self.state[parameter]["sum"]
            total = accumulator.index_select(0, rows).addcmul_(gradient, gradient)
            accumulator.index_copy_(0, rows, total)
            step_size = _adagrad_step_size(total, group["lr"], group["eps"])
            _take_adagrad_step(parameter, rows, gradient, step_size, decay)
        return loss


class RowAdam(torch.optim.Optimizer):
    """Adam on the rows of the batch ("lazy" Adam): moments of other rows neither decay nor move.

    Bias correction counts the optimizer's steps, not each row's, as ``torch.optim.SparseAdam``
    does; a row that is first seen late therefore starts with small moments and larger steps.

    Source:
        Kingma and Ba, Adam, ICLR 2015, algorithm 1.

    Differs from the source:
        Only rows of the batch are updated. L2 is added to their gradients, for all steps that they
        missed: after a long absence a row is pulled towards 0 by one step, not by one per step.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
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
            l2: Coefficient of ``l2 / 2 * |row|**2`` a step.
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
        for group, parameter, rows, gradient, decay in _row_gradients(self):
            values = parameter.index_select(0, rows)
            if decay is not None:
                gradient.add_(values * decay)
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
            values.add_(first.div_(denominator).mul_(-step_size))
            parameter.index_copy_(0, rows, values)
        return loss


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _row_gradients(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[dict[str, Any], nn.Parameter, Tensor, Tensor, Tensor | None]]:
    """For each table that has a gradient: group, table, rows of the batch, gradients, decay.

    Gradients (u, D) are summed by row. The decay (u, 1) is the L2 coefficient for every step since
    a row was last in a batch; None without L2.
    """
    groups: RowGroups | None = None
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
            rows = gradient._indices()[0]
            if rows.numel() == 0:
                continue
            # First-order weights and embeddings are looked up with the same rows: sort them once.
            if groups is None or not groups.is_of(rows):
                groups = group_rows(rows, num_table_rows=parameter.shape[0])
            total = groups.sum(gradient._values())
            decay = None
            if group["l2"] > 0:
                missed = _missed_steps(optimizer.state[parameter], parameter, groups.distinct)
                decay = missed.mul_(group["l2"]).unsqueeze(1)
            yield group, parameter, groups.distinct, total, decay


def _missed_steps(state: dict[str, Any], parameter: nn.Parameter, rows: Tensor) -> Tensor:
    """Steps (u,) since each row was last in a batch, this one included."""
    if "decayed_at" not in state:
        state["decays"] = torch.zeros((), dtype=torch.int64)
        state["decayed_at"] = torch.zeros(
            parameter.shape[0], dtype=torch.int32, device=parameter.device
        )
    state["decays"] += 1
    now = int(state["decays"])
    missed: Tensor = now - state["decayed_at"].index_select(0, rows)
    state["decayed_at"].index_fill_(0, rows, now)
    return missed.to(parameter.dtype)


def _adagrad_step_size(total: Tensor, lr: float, eps: float) -> Tensor:
    """``lr / (sqrt(total) + eps)``; 0 where no gradient ever was, so that L2 is not alone there."""
    is_untouched = total == 0
    step_size = total.sqrt_().add_(eps).reciprocal_().mul_(lr)
    return step_size.masked_fill_(is_untouched, 0.0)


def _take_adagrad_step(
    parameter: nn.Parameter, rows: Tensor, gradient: Tensor, step_size: Tensor, decay: Tensor | None
) -> None:
    """Move the rows against their gradients; L2 takes at most all of a row off."""
    values = parameter.index_select(0, rows)
    update = gradient.mul_(step_size)
    if decay is not None:
        update.add_(values * (step_size * decay).clamp_(max=1.0))
    # Not index_add_: on a CPU it adds row by row, ten times as slowly.
    parameter.index_copy_(0, rows, values.sub_(update))
