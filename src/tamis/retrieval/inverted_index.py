"""Features of a user with items, from posting lists, at the cost of what the two share.

The items' attributes (categories, brands, title words) are the keys of an inverted index. A user is
a list of keys with weights, such as how often and how recently he met each category. The join of
both gives numbers for exactly those items that have a key in common with him.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Jagged
from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """Features of one user with the n items that share a key with him."""

    items: Tensor
    """(n,) int64, ascending."""
    features: Tensor
    """(n, W) float32."""
    keys: Jagged
    """The shared keys of each item, in the user's order: values (nnz, 1), offsets (n+1,)."""

    @property
    def num_postings(self) -> int:
        """Postings that were read: the lengths of the lists of the user's keys together."""
        return len(self.keys.values)

    def at(self, items: Int[Tensor, " C"]) -> Float[Tensor, "C W"]:
        """Features of some items, zeros where an item shares no key with the user."""
        if not len(self.items):
            return self.features.new_zeros(len(items), self.features.shape[1])
        places = torch.searchsorted(self.items, items).clamp_max(len(self.items) - 1)
        is_there = self.items.index_select(0, places) == items
        return self.features.index_select(0, places) * is_there.unsqueeze(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class InvertedIndex:
    """For every key the items that have it.

    Source:
        HSNN, arXiv:2408.06653, inverted-index-based interaction features (I2IF).

    Differs from the source:
        Of the feature only its idea was published. A join costs O(P log P) for P postings touched:
        they are sorted by item instead of written into a vector of all items.
    """

    postings: Tensor
    """(nnz,) int64: items of key 0, then of key 1, ..., each list ascending."""
    offsets: Tensor
    """(keys + 1,) int64: the list of key j begins at ``offsets[j]``."""

    @classmethod
    def build(cls, attributes: Jagged, *, num_keys: int) -> "InvertedIndex":
        """Turn items' keys into keys' items.

        Args:
            attributes: Keys of items 0, 1, ...; values (nnz, 1), offsets (V+1,).
            num_keys: Keys there are.

        Raises:
            DataError: A key is none of them.
        """
        keys = attributes.values[:, 0].to(torch.int64)
        _check_keys(keys, num_keys, "attributes")
        lengths = attributes.offsets.diff()
        items = torch.repeat_interleave(torch.arange(len(lengths), device=keys.device), lengths)
        counts = torch.bincount(keys, minlength=num_keys)
        return cls(
            postings=items[torch.argsort(keys, stable=True)],
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        )

    def join(
        self,
        keys: Int[Tensor, " Q"],
        weights: Float[Tensor, "Q W"],
        *,
        reduce: Literal["sum", "max"] = "sum",
    ) -> Joined:
        """Features of a user with every item that has one of his keys.

        The feature of an item is the sum, or the largest, of the weights of the keys they share; a
        key that stands twice counts twice. Sums are in float32, in the user's order.

        Args:
            keys: The user's keys.
            weights: W numbers for each, such as a count and a mean rating.
            reduce: What becomes of several shared keys.

        Raises:
            DataError: A key is unknown to the index.
        """
        keys = keys.to(torch.int64)
        _check_keys(keys, len(self.offsets) - 1, "user")
        starts = self.offsets.index_select(0, keys)
        lengths = self.offsets.index_select(0, keys + 1) - starts
        total = int(lengths.sum())
        query = torch.repeat_interleave(
            torch.arange(len(keys), device=keys.device), lengths, output_size=total
        )
        shift = (starts - (lengths.cumsum(0) - lengths)).index_select(0, query)
        touched = self.postings[torch.arange(total, device=keys.device) + shift]
        # Stable, so that an item's postings stay in the order of the user's keys.
        touched, order = torch.sort(touched, stable=True)
        query = query.index_select(0, order)
        items, row, counts = torch.unique_consecutive(
            touched, return_inverse=True, return_counts=True
        )
        values = weights.float().index_select(0, query)
        if reduce == "sum":
            features = values.new_zeros(len(items), values.shape[1]).index_add_(0, row, values)
        else:
            lowest = values.new_full((len(items), values.shape[1]), -torch.inf)
            features = lowest.scatter_reduce_(0, row.unsqueeze(1).expand_as(values), values, "amax")
        shared = Jagged(
            values=keys.index_select(0, query).unsqueeze(1),
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        )
        return Joined(items=items, features=features, keys=shared)


def _check_keys(keys: Tensor, num_keys: int, whose: str) -> None:
    wrong = keys[(keys < 0) | (keys >= num_keys)]
    if len(wrong):
        raise DataError(
            f"inverted index: keys of {whose} must be in [0, {num_keys}), got {int(wrong[0])}."
        )
