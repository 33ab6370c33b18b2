"""The tree of occupied nodes over the items of a corpus, as offsets into sorted lists.

A node of level n is a prefix (k_1, ..., k_n) of an item's codes. Items are sorted by their codes
and then by id, so the items of a node are neighbours, and so are its children: a list of children
is a pair of offsets, and no list of its own.
"""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixTree:
    """Occupied nodes of L levels over V sorted items; tensors are int64."""

    num_items: int
    """V."""
    children: tuple[Tensor, ...]
    """For each level offsets (nodes + 1,): node j's children are the nodes of the next level from
    ``children[j]`` up to ``children[j + 1]``, or the items where the level is the last."""
    representatives: tuple[Tensor, ...]
    """For each level the place (nodes,) of the item that stands for the node."""

    @property
    def num_nodes(self) -> tuple[int, ...]:
        """Occupied nodes of each level."""
        return tuple(len(places) for places in self.representatives)

    def bounds(self, level: int) -> Int[Tensor, " N"]:
        """Offsets (nodes + 1,) of the items under each node of a level."""
        offsets = self.children[level]
        for finer in self.children[level + 1 :]:
            offsets = finer.index_select(0, offsets)
        return offsets

    def expand(
        self, level: int, nodes: Int[Tensor, " B"]
    ) -> tuple[Int[Tensor, " C"], Int[Tensor, " B"]]:
        """Children of some nodes of a level, node by node, and how many each has."""
        starts = self.children[level].index_select(0, nodes)
        lengths = self.children[level].index_select(0, nodes + 1) - starts
        shift = starts - (lengths.cumsum(0) - lengths)
        total = int(lengths.sum())
        places = torch.arange(total, device=nodes.device)
        return places + torch.repeat_interleave(shift, lengths, output_size=total), lengths


def sorted_places(ids: Int[Tensor, " V"], codes: Int[Tensor, "V L"]) -> Int[Tensor, " V"]:
    """The order of items in a tree: by their codes, the coarsest first, then by id."""
    order = torch.argsort(ids)
    for level in reversed(range(codes.shape[1])):
        order = order[torch.argsort(codes[order, level], stable=True)]
    return order


def build_tree(
    ids: Int[Tensor, " V"], codes: Int[Tensor, "V L"], distances: Float[Tensor, "V L"]
) -> PrefixTree:
    """Build the tree of items that are sorted already.

    Args:
        ids: Different ids, in the order of :func:`sorted_places`.
        codes: Path of each item.
        distances: How far each item is from its node, level by level. The nearest member stands for
            a node; of several as near, the one with the least id.
    """
    num_items, num_levels = codes.shape
    begins = torch.zeros(num_items, dtype=torch.bool, device=codes.device)
    begins[:1] = True
    end = torch.tensor([num_items], device=codes.device)
    firsts: list[Tensor] = []
    representatives: list[Tensor] = []
    for level in range(num_levels):
        begins[1:] |= codes[1:, level] != codes[:-1, level]
        starts = begins.nonzero().squeeze(1)
        firsts.append(torch.cat([starts, end]))
        representatives.append(_nearest_members(begins, len(starts), ids, distances[:, level]))
    # The first child of a node is the node of the next level that begins at the same item.
    children = [torch.searchsorted(finer, coarser) for coarser, finer in itertools.pairwise(firsts)]
    return PrefixTree(
        num_items=num_items,
        children=(*children, *firsts[-1:]),
        representatives=tuple(representatives),
    )


def _nearest_members(begins: Tensor, num_nodes: int, ids: Tensor, distances: Tensor) -> Tensor:
    node = begins.cumsum(0) - 1
    least = distances.new_full((num_nodes,), torch.inf)
    least = least.scatter_reduce(0, node, distances, "amin")
    is_nearest = distances == least[node]
    unused = torch.iinfo(ids.dtype).max
    chosen = ids.new_full((num_nodes,), unused)
    chosen = chosen.scatter_reduce(0, node, ids.masked_fill(~is_nearest, unused), "amin")
    return (is_nearest & (ids == chosen[node])).nonzero().squeeze(1)
