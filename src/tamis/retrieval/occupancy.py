"""How evenly the items of a corpus, or what users do with them, spread over an index's nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tamis.retrieval.snapshot import IndexSnapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelOccupancy:
    """One level of an index, over the items of its corpus or over rows of a log."""

    codes: int
    """Centres K_n of the level's codebook."""
    perplexity: float
    """Exponential of the entropy of codes: K_n where all are used alike, 1 where one takes all."""
    dead_share: float
    """Share of the codebook that no item, or no row, uses."""
    nodes: int
    """Occupied nodes: paths up to this level that have items."""
    largest_to_mean: float
    """Items or rows of the largest node, divided by the mean over occupied nodes."""
    gini: float
    """Gini coefficient of the items or rows of occupied nodes: 0 where all have as many."""


def occupancy(
    snapshot: IndexSnapshot, rows: Sequence[Int[Tensor, " R"]] | None = None
) -> tuple[LevelOccupancy, ...]:
    """How the items spread over each index level, the coarsest first.

    Args:
        snapshot: The index.
        rows: For each level the nodes, by their places in the tree, above the items of some rows,
            one at least, which spread in place of the items; None: the items themselves.
    """
    levels = []
    for level, centres in enumerate(snapshot.codebooks):
        bounds = snapshot.tree.bounds(level)
        sizes = bounds.diff()
        if rows is not None:
            sizes = torch.bincount(rows[level], minlength=len(sizes))
        sizes = sizes.double()
        codes = snapshot.members.codes[bounds[:-1], level]
        used = sizes.new_zeros(len(centres)).index_add_(0, codes, sizes)
        levels.append(
            LevelOccupancy(
                codes=len(centres),
                perplexity=float(torch.special.entr(used / used.sum()).sum().exp()),
                dead_share=float((used == 0).double().mean()),
                nodes=len(sizes),
                largest_to_mean=float(sizes.max() / sizes.mean()),
                gini=_gini(sizes),
            )
        )
    return tuple(levels)


def _gini(sizes: Tensor) -> float:
    """``sum_i (2 i - n - 1) x_i / (n sum x)`` over ascending sizes x_1 to x_n."""
    ascending, count = sizes.sort().values, len(sizes)
    ranks = torch.arange(1, count + 1, device=sizes.device, dtype=sizes.dtype)
    return float(((2 * ranks - count - 1) * ascending).sum() / (count * sizes.sum()))
