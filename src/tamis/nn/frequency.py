"""How often items come along in a stream of rows, estimated while it flows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.nn.outside_compiler import outside_compiler


class StreamingFrequency(nn.Module):
    """Share of rows that hold an item, from the gaps between the rows that do.

    An item that holds a share p of the rows comes back every 1/p rows on average. Each gap g moves
    the estimate of that mean, ``gap <- (1 - rate) gap + rate g``; older gaps are forgotten, so the
    estimate follows a share that changes. State is in buffers, so a checkpoint holds it.

    Source:
        Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations,
        RecSys 2019, section 4, algorithm 2 (streaming frequency estimation).

    Differs from the source:
        The clock counts rows, not batches: what is estimated is the share of the places in a batch,
        which has no ceiling for an item that is in every batch. Every item has a place of its own
        instead of one that it is hashed to. The first gap is that from an item's first row to its
        second; before it one gap of as many rows as there are items is taken for granted, and the
        weights of all gaps are made to sum to 1. Of others, which nobody has counted beforehand,
        nothing is taken for granted: whoever asks for a share has observed its row, and the first
        gap is that from the beginning of the stream.
    """

    clock: Tensor
    last_row: Tensor
    gap_sum: Tensor
    gap_mass: Tensor

    def __init__(self, num_items: int, num_others: int = 0, *, rate: float = 0.05) -> None:
        """Take all items to be equally frequent, and of others nothing.

        Args:
            num_items: Items, numbered from 0.
            num_others: Places that are numbered on from there, for rows of other items: how many
                there are is not known, but that most of them are rarer.
            rate: Weight of the newest gap, in (0, 1). The logarithm of an estimate has a standard
                deviation of about ``sqrt(rate / 2)``.
        """
        super().__init__()
        self.num_items, self.rate = num_items, rate
        places = num_items + num_others
        mass = torch.zeros(places)
        mass[:num_items] = rate
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_row", torch.full((places,), -1, dtype=torch.int64))
        self.register_buffer("gap_sum", mass * num_items)
        self.register_buffer("gap_mass", mass)

    @outside_compiler
    @torch.no_grad()
    def observe(self, items: Int[Tensor, " B"]) -> None:
        """Take in the next rows of the stream, in their order.

        Args:
            items: The item of each row.
        """
        if not len(items):
            return
        ordered, order = torch.sort(items.to(torch.int64), stable=True)
        rows = self.clock + order
        known, counts = torch.unique_consecutive(ordered, return_counts=True)
        ends = counts.cumsum(0)
        starts = ends - counts
        earlier = torch.cat([rows.new_zeros(1), rows[:-1]])
        earlier[starts] = self.last_row[known]
        # Before an item has come its last row is -1: for others, the beginning of the stream.
        has_gap = (earlier >= 0) | (ordered >= self.num_items)
        # The k-th last gap of an item has been moved away from k times.
        later = (
            torch.repeat_interleave(ends, counts) - 1 - torch.arange(len(rows), device=rows.device)
        )
        weights = self.rate * (1 - self.rate) ** later.float() * has_gap
        group = torch.repeat_interleave(torch.arange(len(known), device=rows.device), counts)
        zeros = torch.zeros(len(known), device=rows.device)
        gaps = torch.zeros_like(zeros).index_add_(0, group, has_gap.float())
        kept = (1 - self.rate) ** gaps
        for state, values in (
            (self.gap_sum, weights * (rows - earlier)),
            (self.gap_mass, weights),
        ):
            state[known] = kept * state[known] + zeros.clone().index_add_(0, group, values)
        self.last_row[known] = rows[ends - 1]
        self.clock.add_(len(items))

    def log_share(self, items: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Natural logarithm of the share of rows that hold each of some items.

        One of the others that has not come yet counts as if it came in the next row.
        """
        places = items.to(torch.int64)
        mass, total = self.gap_mass[places], self.gap_sum[places]
        return torch.where(mass > 0, mass / total, 1 / (self.clock + 1)).log()
