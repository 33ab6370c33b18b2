"""Recurrent networks over jagged histories: a step computes the rows that still have events."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


class GatedUnit(nn.Module):
    """The maps of a gated recurrent unit, and the loop over steps.

    Written out rather than ``nn.GRU``: on a CPU the backward pass of that one over packed histories
    fills a gradient of the size of all events in every step.
    """

    def __init__(self, width: int) -> None:
        """Build maps for states as wide as the inputs."""
        super().__init__()
        self.width = width
        self.read = nn.Linear(width, 3 * width)
        self.keep = nn.Linear(width, 3 * width)
        for part in [*self.read.weight.chunk(3), *self.keep.weight.chunk(3)]:
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.read.bias)
        nn.init.zeros_(self.keep.bias)

    def states(
        self, values: Float[Tensor, "nnz W"], steps: Steps, weights: Float[Tensor, "nnz 1"] | None
    ) -> list[Tensor]:
        """States after each step, a row for each history that has the step.

        Args:
            values: Inputs by event.
            steps: Order of the events.
            weights: Scale the update gates, by event; None leaves them.
        """
        found: list[Tensor] = []
        # In float32 under autocast too: rounding would add up over steps.
        with torch.autocast(values.device.type, enabled=False):
            read = self.read(values.float()).index_select(0, steps.places)
            scales = None
            if weights is not None:
                scales = weights.float().index_select(0, steps.places).split(steps.sizes)
            state = read.new_zeros(steps.sizes[0], self.width)
            # Split once: its backward pass is one concatenation.
            for step, part in enumerate(read.split(steps.sizes)):
                state = state[: len(part)]
                new_reset, new_update, new_content = part.chunk(3, dim=1)
                reset, update, content = self.keep(state).chunk(3, dim=1)
                content = torch.tanh(new_content + torch.sigmoid(new_reset + reset) * content)
                update = torch.sigmoid(new_update + update)
                if scales is not None:
                    update = scales[step] * update
                state = state + update * (content - state)
                found.append(state)
        return found


class JaggedGRU(GatedUnit):
    """A gated recurrent unit that reads each history from its oldest event on.

    ``h_t = (1 - u_t) h_(t-1) + u_t tanh(W x_t + r_t (U h_(t-1) + c) + b)``.

    Source:
        Cho et al., EMNLP 2014, as in DIEN, AAAI 2019, equations (2) to (5).

    Differs from the source:
        The reset gate multiplies ``U h + c`` rather than ``h``, as in PyTorch's unit.
    """

    def forward(self, events: Events, steps: Steps) -> Events:
        """The state after each event."""
        if not steps.sizes:
            return events
        states = self.states(events.values, steps, weights=None)
        return Events(values=steps.scattered(torch.cat(states)), offsets=events.offsets)


class AttentionalGRU(GatedUnit):
    """AUGRU: the same with each update gate scaled by an attention weight.

    ``h_t = (1 - a_t u_t) h_(t-1) + a_t u_t tanh(W x_t + r_t (U h_(t-1) + c) + b)``.

    Source:
        Zhou et al., Deep Interest Evolution Network, AAAI 2019, equations (15) and (16).

    Differs from the source:
        The reset gate multiplies ``U h + c`` rather than ``h``, as in PyTorch's unit.
    """

    def forward(
        self, events: Events, weights: Float[Tensor, "nnz 1"], steps: Steps
    ) -> Float[Tensor, "B W"]:
        """The last state of each row; zeros for an empty history.

        Args:
            events: What is read.
            weights: Attention weight of each event.
            steps: Order of the events.
        """
        last = events.values.new_zeros(events.num_rows, self.width, dtype=torch.float32)
        if not steps.sizes:
            return last
        states = self.states(events.values, steps, weights)
        # Of each step's rows, those whose history ends with it; the longest histories come first.
        following = (*steps.sizes[1:], 0)
        ends = [state[size:] for state, size in zip(states, following, strict=True)]
        rows = steps.order[: steps.sizes[0]]
        return last.index_copy(0, rows, torch.cat(ends[::-1]))
