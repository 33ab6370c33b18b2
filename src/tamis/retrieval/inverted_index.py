"""Inverted-index interaction features: how often a user met the category of each candidate."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Jagged
from tamis.data.schema import InputSpec
from tamis.nn.event_rows import event_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCount:
    """A number of a pair: how many events of the user are of the item's category.

    Events are turned into an index from user and category to a count, in which the categories of
    all pairs are looked up at once: nothing is done by Python, or kept, for each event of each
    pair. E events and P pairs cost O((E + P) log E), however many items there are.

    Source:
        HSNN, arXiv:2408.06653, inverted-index-based interaction features (I2IF): counts of the
        user's engagements by the item's attributes, from a join.

    Differs from the source:
        Only the idea was published. The index is of the user's events, not of the items: lists of
        the items of each category hold far more than a search scores (see
        docs/decisions/0029-pairs-are-counted-from-the-users-events.md). An item has one category
        for each count, a category out of vocabulary is like no other, and there are neither
        recencies nor ratings, nor sparse crosses.
    """

    number: int
    """Column of ``Batch.numeric``."""
    group: str
    """Sequence group of the events."""
    event: int
    """Column of the events."""
    category: int
    """Column of ``Batch.ids``."""

    def of(
        self, history: Jagged, rows: Int[Tensor, " P"], category: Int[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        """``log(1 + n)`` of P pairs.

        Args:
            history: Events of some users; many pairs may be of one.
            rows: Row in ``history`` of each pair's user.
            category: The item's, of each pair.

        Example:
            >>> count = PairCount(number=0, group="past", event=0, category=0)
            >>> past = Jagged(values=torch.tensor([[5], [7], [5]]), offsets=torch.tensor([0, 3]))
            >>> count.of(past, torch.tensor([0, 0]), torch.tensor([5, 9])).expm1().tolist()
            [2.0, 0.0]
        """
        events = history.values[:, self.event].to(torch.int64)
        if not len(events) or not len(category):
            return torch.zeros(len(category), device=category.device)
        size = torch.maximum(events.max(), category.max()) + 1
        owner = event_rows(history.offsets, len(events))
        known, met = torch.unique(owner * size + events, return_counts=True)
        wanted = rows * size + category
        at = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
        is_same = (known[at] == wanted) & (category != 0)
        return torch.where(is_same, met[at], 0).float().log1p()


def pair_counts(spec: InputSpec) -> tuple[PairCount, ...]:
    """The numeric features that count events, see ``tamis.data.schema.Field.counts``."""
    categories = [column.name for column in spec.categorical]
    places = {
        name: (group, event) for group in spec.sequences for event, name in enumerate(group.fields)
    }
    found = []
    for number, field in enumerate(spec.numeric_counts):
        if field:
            group, event = places[field]
            category = categories.index(group.tables[event])
            found.append(PairCount(number=number, group=group.name, event=event, category=category))
    return tuple(found)
