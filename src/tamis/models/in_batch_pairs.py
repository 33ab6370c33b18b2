"""Pairs that a batch does not hold: users of some of its rows with items of others."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch, blank_batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.nn.event_rows import event_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class _Count:
    """A number of a pair: how many events of the user are of the item's category."""

    number: int
    """Column of ``Batch.numeric``."""
    group: str
    """Sequence group of the events."""
    event: int
    """Column of the events."""
    category: int
    """Column of ``Batch.ids``."""


class InBatchPairs:
    """What the context side says of a user with an item that another row of the batch brings.

    The context side must tell of pairs by counts alone, see ``tamis.data.schema.Field.counts``:
    these follow from the user's history and the item's category, wherever the two come from. They
    are ``log(1 + n)`` of the n events that ingest kept, ``max_length`` at most. A category out of
    vocabulary is like no other, as nobody knows which one it is.

    Source:
        HSNN, arXiv:2408.06653, inverted-index-based interaction features: counts of the user's
        engagements by the item's attributes.
    """

    def __init__(self, spec: InputSpec) -> None:
        """Find the counts among the inputs.

        Raises:
            ConfigError: The context side holds anything else.
        """
        self._spec = spec
        columns = spec.numeric_of("context")
        counts = spec.numeric_counts or ("",) * len(spec.numeric)
        others = [spec.numeric[column] for column in columns if not counts[column]]
        others += [spec.categorical[column].name for column in spec.categorical_of("context")]
        others += [group.name for group in spec.sequences_of("context")]
        if others:
            raise ConfigError(
                f"model.negatives: must be 0 where nobody knows the fields of side 'context' of "
                f"other pairs, got {others[0]!r}. Say in schema.toml what it counts, or set its "
                f"side."
            )
        self._counts = tuple(self._count_of(column, counts[column]) for column in columns)

    def batch(self, rows: Batch, users: Int[Tensor, " P"], items: Int[Tensor, " P"]) -> Batch:
        """The context side of P pairs; nothing stands in the place of other sides.

        Args:
            rows: Rows of the data.
            users: Row that each pair's user is from.
            items: Row that each pair's item is from.
        """
        pairs = blank_batch(self._spec, len(users), rows.ids.device)
        for count in self._counts:
            pairs.numeric[:, count.number] = _matches(rows, users, items, count)
        return pairs

    def _count_of(self, number: int, field: str) -> _Count:
        for group in self._spec.sequences:
            for event, name in enumerate(group.fields):
                if name == field:
                    names = [column.name for column in self._spec.categorical]
                    category = names.index(group.tables[event])
                    return _Count(number=number, group=group.name, event=event, category=category)
        raise AssertionError(field)


def _matches(rows: Batch, users: Tensor, items: Tensor, count: _Count) -> Float[Tensor, " P"]:
    history = rows.sequences[count.group].take(users)
    owner = event_rows(history.offsets, len(history.values))
    wanted = rows.ids[:, count.category].index_select(0, items).index_select(0, owner)
    is_same = (history.values[:, count.event] == wanted) & (wanted != 0)
    zeros = torch.zeros(len(users), device=users.device)
    return zeros.index_add_(0, owner, is_same.float()).log1p()
