"""Pairs that a batch does not hold: users of some of its rows with items of others."""

from jaxtyping import Int
from torch import Tensor

from tamis.data.batch import Batch, blank_batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.retrieval.inverted_index import pair_counts


class InBatchPairs:
    """What the context side says of a user with an item that another row of the batch brings.

    The context side must tell of pairs by counts alone, see ``tamis.data.schema.Field.counts``:
    these follow from the user's history and the item's category, wherever the two come from (see
    :class:`tamis.retrieval.inverted_index.PairCount`). They are ``log(1 + n)`` of the n events that
    ingest kept, ``max_length`` at most. A category out of vocabulary is like no other, as nobody
    knows which one it is.
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
