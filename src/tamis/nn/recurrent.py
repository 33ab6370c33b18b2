"""Recurrent networks over jagged histories: a step computes the rows that still have events."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tamis.nn.sequence import Events


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Where the events of a batch stand when step t holds the t-th event of every longer history.

    Histories are taken from the longest to the shortest, so a step is a prefix of the one before.
    """

    places: Tensor
    """(nnz,) for each place in the order of steps, the event that stands there."""
    sizes: tuple[int, ...]
    """Histories that have an event at each step."""
    order: Tensor
    """(B,) rows from the longest history to the shortest."""

    def scattered(self, values: Float[Tensor, "nnz W"]) -> Float[Tensor, "nnz W"]:
        """Values in the order of steps, back in the order of events."""
        return torch.empty_like(values).index_copy(0, self.places, values)


def steps_of(events: Events) -> Steps:
    """The order in which a recurrent network reads events."""
    lengths = events.offsets.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    longest = int(lengths.max()) if len(lengths) else 0
    step = torch.arange(longest, device=lengths.device).unsqueeze(1)
    is_there = step < lengths[order]
    places = (events.offsets[:-1][order] + step)[is_there]
    return Steps(places=places, sizes=tuple(is_there.sum(1).tolist()), order=order)


class JaggedGRU(nn.Module):
    """A gated recurrent unit that reads each history from its oldest event on."""

    def __init__(self, width: int) -> None:
        """Build a unit whose states are as wide as its inputs."""
        super().__init__()
        self.gru = nn.GRU(width, width)
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight"):
                for part in parameter.chunk(3):
                    nn.init.xavier_uniform_(part)
            else:
                nn.init.zeros_(parameter)

    def forward(self, events: Events, steps: Steps) -> Events:
        """The state after each event."""
        if not steps.sizes:
            return events
        packed = PackedSequence(events.values[steps.places].float(), torch.tensor(steps.sizes))
        with torch.autocast(events.values.device.type, enabled=False):
            states, _ = self.gru(packed)
        return Events(values=steps.scattered(states.data), offsets=events.offsets)


class AttentionalGRU(nn.Module):
    """AUGRU: a gated recurrent unit whose update gate is scaled by an attention weight.

    ``h_t = (1 - a_t u_t) h_(t-1) + a_t u_t tanh(W x_t + r_t (U h_(t-1)) + b)``.

    Source:
        Zhou et al., Deep Interest Evolution Network, AAAI 2019, equations (15) and (16).

    Differs from the source:
        The reset gate multiplies ``U h + b'`` rather than ``h``, as in PyTorch's unit.
    """

    def __init__(self, width: int) -> None:
        """Build a unit whose state is as wide as its inputs."""
        super().__init__()
        self.width = width
        self.read = nn.Linear(width, 3 * width)
        self.keep = nn.Linear(width, 3 * width)
        for part in [*self.read.weight.chunk(3), *self.keep.weight.chunk(3)]:
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.read.bias)
        nn.init.zeros_(self.keep.bias)

    def forward(
        self, events: Events, weights: Float[Tensor, "nnz 1"], steps: Steps
    ) -> Float[Tensor, "B W"]:
        """The last state of each row; zeros for an empty history.

        Args:
            events: What is read.
            weights: Attention weight of each event.
            steps: Order of the events.
        """
        last = events.values.new_zeros(events.num_rows, self.width)
        if not steps.sizes:
            return last
        with torch.autocast(events.values.device.type, enabled=False):
            read = self.read(events.values.float()).index_select(0, steps.places)
            attention = weights.float().index_select(0, steps.places)
            state = read.new_zeros(steps.sizes[0], self.width)
            finished: list[Tensor] = []
            start = 0
            for size in steps.sizes:
                finished.append(state[size:])
                state, stop = state[:size], start + size
                new_reset, new_update, new_content = read[start:stop].chunk(3, dim=1)
                reset, update, content = self.keep(state).chunk(3, dim=1)
                content = torch.tanh(new_content + torch.sigmoid(new_reset + reset) * content)
                update = attention[start:stop] * torch.sigmoid(new_update + update)
                state = state + update * (content - state)
                start = stop
            finished.append(state)
        rows = steps.order[: steps.sizes[0]]
        return last.index_copy(0, rows, torch.cat(finished[::-1]))
