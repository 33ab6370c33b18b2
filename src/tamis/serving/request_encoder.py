"""The features of requests: what training's encoders make of them, at the cost of a few look-ups.

Encoders are made for columns of a million rows: each costs some calls of Arrow, whatever its
length, and for one request that is a third of the time of its answer. Here columns come as checked
JSON, so that what is left is to find each text's table row.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.data.columns import Origin
from tamis.data.dataset import EncodedRows
from tamis.data.encoders import Encoders
from tamis.data.loader import batches_of_rows
from tamis.data.schema import Field
from tamis.data.vocabulary import FieldCounts, Vocabulary
from tamis.errors import DataError
from tamis.serving.columns import Columns
from tamis.serving.records import RawRow

_SMALL = 10_000
"""Most categories of a vocabulary that is kept as a dictionary, too: a megabyte."""


class RequestEncoder:
    """Encodes rows of checked columns; item fields are those of an ad of which nothing is known.

    Every number is the one that ``Encoders.encode`` gives, by the same vocabularies and numeric
    encoders. Where a field of user or context is a text to be split, the encoders do it all.
    """

    def __init__(self, encoders: Encoders) -> None:
        """Take the encoders of training."""
        # Encoders count what they meet: these are of requests alone.
        self._encoders = replace(encoders, counts={})
        self._spec = encoders.spec
        self._columns = Columns(encoders.schema)
        self._fields = [item for item in encoders.schema.fields if item.side != "item"]
        self._groups = {
            name: members
            for name, members in encoders.schema.sequence_groups.items()
            if any(item.side != "item" for item in members)
        }
        self._is_plain = all(self._columns.is_plain(item) for item in self._fields)
        self._nothing = self._by_encoders([{}])
        owners = {item.shares or item.name for item in self._fields} & {*encoders.vocabularies}
        self._rows = {name: _Rows(encoders.vocabularies[name]) for name in owners}

    def encode(self, rows: Sequence[RawRow]) -> list[Batch]:
        """A batch of one row for each request.

        Raises:
            DataError: Columns of one sequence group have not as many events.
        """
        found = self._by_lookup(rows) if self._is_plain else self._by_encoders(rows)
        return list(batches_of_rows(found, self._spec, batch_size=1))

    def _by_encoders(self, rows: Sequence[RawRow]) -> EncodedRows:
        return self._encoders.encode(
            self._columns.table(rows), first_row=0, origin=Origin(file="requests"), inputs_only=True
        )

    def _by_lookup(self, rows: Sequence[RawRow]) -> EncodedRows:
        count, nothing = len(rows), self._nothing
        numeric = {name: values.repeat(count) for name, values in nothing.numeric.items()}
        ids = {name: values.repeat(count) for name, values in nothing.ids.items()}
        sequences = {
            name: (values, lengths.repeat(count))
            for name, (values, lengths) in nothing.sequences.items()
        }
        for item in self._fields:
            if item.is_jagged:
                continue
            values = [row.get(item.source) for row in rows]
            if item.kind != "numeric":
                ids[item.name] = self._rows[item.shares or item.name].of(values)
                continue
            # None becomes NaN, which the encoder takes for missing.
            floats, encoder = np.array(values, np.float64), self._encoders.numeric[item.name]
            if item.is_category:
                ids[item.name] = encoder.bucket(floats, FieldCounts())
            else:
                numeric[item.name] = encoder.encode(floats, FieldCounts())
        for name, members in self._groups.items():
            sequences[name] = self._events(members, rows)
        return EncodedRows(
            row=np.arange(count),
            numeric=numeric,
            ids=ids,
            sequences=sequences,
            labels={name: values.repeat(count) for name, values in nothing.labels.items()},
        )

    def _events(
        self, members: tuple[Field, ...], rows: Sequence[RawRow]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Table rows (nnz, E) of a group's events, and how many there are in each row."""
        columns, lengths, longest = [], None, members[0].max_length
        for item in members:
            lists = [_events_of(row, item) for row in rows]
            own = np.array([len(events) for events in lists], np.int64)
            if lengths is not None and not np.array_equal(lengths, own):
                raise DataError(
                    f"requests: columns of one sequence group must have as many events, got others "
                    f"in {item.source!r} than in {members[0].source!r}. Send one for each."
                )
            lengths = own
            flat = [event for events in lists for event in events[-longest:]]
            columns.append(self._rows[item.shares or item.name].of(flat))
        assert lengths is not None
        return np.stack(columns, axis=1), np.minimum(lengths, longest)


class _Rows:
    """Table rows by category: of a dictionary where it is small, else of the vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary, self._small = vocabulary, None
        if vocabulary.values is not None and len(vocabulary.values) <= _SMALL:
            texts = vocabulary.values.to_pylist()
            self._small = {text: row for row, text in enumerate(texts, start=1)}
        self._dtype = np.int32 if vocabulary.num_rows <= 2**31 - 1 else np.int64

    def of(self, texts: list[Any]) -> NDArray[Any]:
        """Rows (n,); 0 for what is missing or not known."""
        small = self._small
        if small is not None:
            return np.array([small.get(text, 0) for text in texts], self._dtype)
        return self._vocabulary.encode(pa.array(texts, pa.string()), FieldCounts())


def _events_of(row: RawRow, item: Field) -> list[Any]:
    """The events of a row; none where there is no history."""
    events = row.get(item.source)
    return events if isinstance(events, list) else []
