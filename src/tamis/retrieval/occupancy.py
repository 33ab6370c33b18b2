"""How evenly the items of a corpus spread over the nodes of a published index."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tamis.retrieval.snapshot import IndexSnapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelOccupancy:
    """One level of an index, over the corpus and not over traffic."""

    codes: int
    """Centres K_n of the level's codebook."""
    perplexity: float
    """Exponential of the entropy of codes: K_n where all are used alike, 1 where one takes all."""
    dead_share: float
    """Share of the codebook that no item uses."""
    nodes: int
    """Occupied nodes: paths up to this level that have items."""
    largest_to_mean: float
    """Items of the largest node, divided by the mean over occupied nodes."""
    gini: float
    """Gini coefficient of the items of occupied nodes: 0 where all have as many."""


def occupancy(snapshot: IndexSnapshot) -> tuple[LevelOccupancy, ...]:
    """How the items spread over each index level, the coarsest first."""
    levels = []
    members = snapshot.members
    for level, centres in enumerate(snapshot.codebooks):
        used = torch.bincount(members.codes[:, level], minlength=len(centres)).double()
        sizes = snapshot.tree.bounds(level).diff().double()
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
