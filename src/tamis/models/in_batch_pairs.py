"""Pairs that a batch does not hold: users of some of its rows with items of others."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch, Jagged, blank_batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.nn.event_rows import event_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCount:
    """A number of a pair: how many events of the user are of the item's category."""

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


class InBatchPairs:
    """What the context side says of a user with an item that another row of the batch brings.

    The context side must tell of pairs by counts alone, see ``tamis.data.schema.Field.counts``:
    these follow from the user's history and the item's category, wherever the two come from. They
    are ``log(1 + n)`` of the n events that ingest kept, ``max_length`` at most. A category out of
    vocabulary is like no other, as nobody knows which one it is.

    Source:
        HSNN, arXiv:2408.06653, inverted-index-based interaction features: counts of the user's
        engagements by the item's attributes.

    Differs from the source:
        There is no inverted index: the batch's events and categories are joined by sorting. One
        attribute is counted, and neither times nor cross features of categories are made.
    """

    def __init__(self, spec: InputSpec) -> None:
        """Find the counts among the inputs.

        Raises:
            ConfigError: The context side holds anything else.
        """
        self._spec = spec
        columns, counts = spec.numeric_of("context"), pair_counts(spec)
        counted = {count.number for count in counts}
        others = [spec.numeric[column] for column in columns if column not in counted]
        others += [spec.categorical[column].name for column in spec.categorical_of("context")]
        others += [group.name for group in spec.sequences_of("context")]
        if others:
            raise ConfigError(
                f"model.negatives: must be 0 where nobody knows the fields of side 'context' of "
                f"other pairs, got {others[0]!r}. Say in schema.toml what it counts, or set its "
                f"side."
            )
        self._counts = tuple(count for count in counts if count.number in columns)

    def batch(self, rows: Batch, users: Int[Tensor, " P"], items: Int[Tensor, " P"]) -> Batch:
        """The context side of P pairs; nothing stands in the place of other sides.

        Args:
            rows: Rows of the data.
            users: Row that each pair's user is from.
            items: Row that each pair's item is from.
        """
        pairs = blank_batch(self._spec, len(users), rows.ids.device)
        for count in self._counts:
            category = rows.ids[:, count.category].index_select(0, items)
            pairs.numeric[:, count.number] = count.of(rows.sequences[count.group], users, category)
        return pairs
