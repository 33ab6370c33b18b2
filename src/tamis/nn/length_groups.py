"""Rows with histories of like length side by side, so that attention pads to little more than them.

Histories are of very different lengths: padded to the longest of the batch, most of what attention
computes is on padding. Sorted by length and cut into a few groups, each padded to its own longest
row, they take little more than their events.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tamis.nn.event_rows import Count, event_rows
from tamis.nn.outside_compiler import outside_compiler

# What a group costs by itself, in padded places that could be computed meanwhile: some hundred
# small kernels forth and back, on a GPU each of them as long as one over thousands of places.
_PLACES_PER_GROUP_ON_CPU, _PLACES_PER_GROUP = 2048, 65_536


class LengthGroups:
    """Rows by length, shortest first, in groups (n, L) that are padded each to its longest row."""

    def __init__(self, offsets: Int[Tensor, " bounds"], num_events: Count) -> None:
        """Find the groups that cost least; of a model that is exported, all rows are one group.

        Args:
            offsets: Row b of the jagged rows holds places ``offsets[b]`` to ``offsets[b + 1]``.
            num_events: What ``offsets`` ends with, so that nobody need wait for it.
        """
        lengths = offsets.diff()
        if torch.compiler.is_exporting():
            self._as_one(offsets, lengths, num_events)
        else:
            self._as_cheapest(offsets, lengths, num_events)

    # A compiler would take each length for a constant, and compile every batch anew.
    @outside_compiler
    def _as_cheapest(self, offsets: Tensor, lengths: Tensor, num_events: Count) -> None:
        device = offsets.device
        ordered, self.order = torch.sort(lengths, stable=True)
        self.restored = torch.argsort(self.order)
        cost = _PLACES_PER_GROUP_ON_CPU if device.type == "cpu" else _PLACES_PER_GROUP
        cuts = _cheapest_cuts(ordered.tolist(), cost)
        self.sizes = [end - start for start, end in cuts]
        widths = [max(1, int(ordered[end - 1])) if end else 1 for _, end in cuts]
        self._shapes = list(zip(self.sizes, widths, strict=True))
        self._padded = [size * width for size, width in self._shapes]
        self.valid: list[Bool[Tensor, "n L"]] = [
            torch.arange(width, device=device) < ordered[start:end].unsqueeze(1)
            for (start, end), width in zip(cuts, widths, strict=True)
        ]
        # Where each row begins among the padded places of all groups, then where each event lies.
        width_of = torch.tensor(widths, device=device).repeat_interleave(
            torch.tensor(self.sizes, device=device)
        )
        starts = (width_of.cumsum(0) - width_of).index_select(0, self.restored)
        self._places = _places(starts - offsets[:-1], offsets, num_events)

    def _as_one(self, offsets: Tensor, lengths: Tensor, num_events: Count) -> None:
        """All rows in one group, in their order: an exported graph cannot count groups."""
        rows = lengths.shape[0]
        # Two at least, as attention takes another way over a single place. Not int(), which would
        # ask for the number while there is none yet.
        width = cast("int", lengths.max().clamp_min(2).item())
        torch._check(width >= 2)
        self.order = self.restored = torch.arange(rows, device=offsets.device)
        self.sizes, self._shapes, self._padded = [rows], [(rows, width)], [rows * width]
        self.valid = [torch.arange(width, device=offsets.device) < lengths.unsqueeze(1)]
        self._places = _places(self.order * width - offsets[:-1], offsets, num_events)

    def split(self, rows: Float[Tensor, "B ..."]) -> list[Tensor]:
        """One value for each row of the batch, to groups (n, ...)."""
        return list(rows.index_select(0, self.order).split(self.sizes))

    def join(self, groups: Sequence[Tensor]) -> Float[Tensor, "B ..."]:
        """Groups (n, ...) back to the rows of the batch."""
        return torch.cat(list(groups)).index_select(0, self.restored)

    def pad(self, values: Float[Tensor, "nnz ..."]) -> list[Tensor]:
        """One value for each event, to groups (n, L, ...): events from the left, then zeros."""
        empty = values.new_zeros((sum(self._padded), *values.shape[1:]))
        # Its backward pass gathers; that of a gather would add row by row.
        padded = empty.index_copy(0, self._places, values).split(self._padded)
        return [part.unflatten(0, shape) for part, shape in zip(padded, self._shapes, strict=True)]

    def flat(self, groups: Sequence[Tensor]) -> Float[Tensor, "nnz ..."]:
        """Groups (n, L, ...) back to one value for each event."""
        return torch.cat([part.flatten(0, 1) for part in groups]).index_select(0, self._places)


def _places(shift: Tensor, offsets: Tensor, num_events: Count) -> Tensor:
    """Where each event lies among padded places that begin ``shift`` from those of its row."""
    shift = shift.index_select(0, event_rows(offsets, num_events))
    return torch.arange(cast("int", num_events), device=shift.device) + shift


def _cheapest_cuts(ordered: list[int], cost_of_group: int) -> list[tuple[int, int]]:
    """Where to cut rows of ascending lengths: groups as (first row, row after the last).

    The costs of a group are its rows times its longest one's length, and its own.
    """
    # Rows of one length are never torn apart.
    ends = [
        place + 1
        for place, length in enumerate(ordered)
        if place + 1 == len(ordered) or ordered[place + 1] != length
    ]
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the rows before, and the last cut
    bounds = [0, *ends]
    for last in range(1, len(bounds)):
        width = max(1, ordered[bounds[last] - 1])
        options = [
            (best[first][0] + (bounds[last] - bounds[first]) * width + cost_of_group, first)
            for first in range(last)
        ]
        best.append(min(options))
    cuts, last = [], len(bounds) - 1
    while last:
        first = best[last][1]
        cuts.append((bounds[first], bounds[last]))
        last = first
    return cuts[::-1] or [(0, 0)]
