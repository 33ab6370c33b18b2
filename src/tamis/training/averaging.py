"""A moving average of the weights over steps, exact for tables at the cost of the batch's rows."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tamis.nn.embedding import GivenRows
from tamis.nn.frequency import StreamingFrequency
from tamis.nn.residual_index import ResidualIndex
from tamis.training.optimizers import table_parameters

_ROWS_AT_ONCE = 1 << 18


class WeightAverage:
    """Exponential moving average of weights: ``average = d_t * average + (1 - d_t) * weights``.

    The decay of step t is ``d_t = min(decay, (1 + t) / (10 + t))``, so that the first average is
    not held by the random start. A table row keeps its value between two lookups; the steps in
    between are made up for at the next one, in closed form. A step therefore costs O(rows in the
    batch) on tables of any size. Averages take as much memory as the weights, and four bytes per
    table row.

    Floating-point buffers, such as the statistics of batch norm, are averaged as weights are; those
    that count items are not, nor are vectors that are given. Nor is anything of a learnt index,
    codebooks that are weights included: k-means and revived nodes set centres anew, and the mean of
    two clusterings is none.

    Source:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control
        and Optimization 1992; the decay's start is that of TensorFlow's ExponentialMovingAverage.

    Differs from the source:
        Late steps count most, where the paper's mean has all steps alike. That rows of tables are
        averaged in closed form changes no value.
    """

    def __init__(self, model: nn.Module, *, decay: float, total_steps: int) -> None:
        """Start from the weights that the model has now.

        Args:
            model: Its parameters and buffers stay where they are.
            decay: In (0, 1); the average looks back over about 1 / (1 - decay) steps.
            total_steps: At most so many steps will be averaged.
        """
        tables = {id(table) for table in table_parameters(model)}
        self._dense: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._tables: dict[str, nn.Parameter] = {}
        not_averaged = {
            id(value)
            for module in model.modules()
            if isinstance(module, ResidualIndex | StreamingFrequency | GivenRows)
            for value in (*module.parameters(), *module.buffers())
        }
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if isinstance(value, nn.Parameter) and id(value) in tables:
                self._tables[name] = value
            elif value.is_floating_point() and id(value) not in not_averaged:
                owner = self._dense if isinstance(value, nn.Parameter) else self._buffers
                owner[name] = value
        self._all = self._dense | self._buffers | self._tables
        self._averages = {name: value.detach().clone() for name, value in self._all.items()}
        # Averages hold the weights of the steps up to this one.
        self._dense_until = 0
        self._rows_until = {
            name: torch.zeros(len(table), dtype=torch.int32, device=table.device)
            for name, table in self._tables.items()
        }
        steps = torch.arange(1, total_steps + 1, dtype=torch.float64)
        decays = ((1 + steps) / (10 + steps)).clamp_(max=decay)
        self._log_decays = torch.cat([decays.new_zeros(1), decays.log()]).cumsum(0)
        device = next(iter(self._rows_until.values())).device if self._tables else None
        self._log_decays_of_rows = self._log_decays.to(device)

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        """Take in the weights that the optimizers are about to change, as ``step`` steps left them.

        Call it in every step, after the backward pass: gradients say which rows of a table are
        concerned, and buffers are the next step's already, as the forward pass has changed them.
        """
        self._average_dense(step)
        self._take_in(self._buffers, step, step + 1)
        for name, table in self._tables.items():
            if table.grad is not None:
                # A row that stands here twice is written twice, with the same value.
                self._average_rows(name, table.grad._indices()[0], step)

    @contextlib.contextmanager
    def swapped_in(self, step: int) -> Iterator[None]:
        """The model with averages of the first ``step`` steps for weights; then its own again."""
        with torch.no_grad():
            self._average_dense(step)
            for name in self._tables:
                self._average_table(name, step)
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name."""
        state = {f"average.{name}": value for name, value in self._averages.items()}
        state |= {f"rows_until.{name}": value for name, value in self._rows_until.items()}
        return state | {"dense_until": torch.tensor(self._dense_until)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state`` returned."""
        for prefix, values in (("average", self._averages), ("rows_until", self._rows_until)):
            for name, value in values.items():
                value.copy_(state[f"{prefix}.{name}"])
        self._dense_until = int(state["dense_until"])

    def _average_dense(self, step: int) -> None:
        self._take_in(self._dense, self._dense_until, step)
        self._dense_until = step

    def _take_in(self, values: dict[str, Tensor], start: int, stop: int) -> None:
        """Go on from averages of ``start`` steps with what was there in all steps to ``stop``."""
        kept = (self._log_decays[stop] - self._log_decays[start]).exp()
        averages = [self._averages[name] for name in values]
        if averages:
            torch._foreach_lerp_(averages, list(values.values()), 1 - float(kept))

    def _average_rows(self, name: str, rows: Tensor, step: int) -> None:
        average, until = self._averages[name], self._rows_until[name]
        kept = self._kept(until.index_select(0, rows), step)
        values = self._tables[name].index_select(0, rows)
        average.index_copy_(0, rows, torch.lerp(values, average.index_select(0, rows), kept))
        until.index_fill_(0, rows, step)

    def _average_table(self, name: str, step: int) -> None:
        average, until, table = self._averages[name], self._rows_until[name], self._tables[name]
        for start in range(0, len(table), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            average[part] = torch.lerp(table[part], average[part], self._kept(until[part], step))
        until.fill_(step)

    def _kept(self, until: Tensor, step: int) -> Tensor:
        """Weights (n, 1) of averages that end at the steps ``until``, once ``step`` is reached."""
        logs = self._log_decays_of_rows
        return (logs[step] - logs[until.long()]).exp().float().unsqueeze(1)

    def _swap(self) -> None:
        for name, value in self._all.items():
            value.data, self._averages[name] = self._averages[name], value.data
