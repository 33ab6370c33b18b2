"""Fitted encoders: from a table of raw columns to ids and numbers, the same for every caller.

Row 0 of every table stands for what is missing and for what was not seen (often enough) in
training. Encoders are fitted on the training split only, saved beside the dataset, and loaded by
training, ``predict`` and the server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.columns import (
    as_categories,
    as_codes,
    as_floats,
    as_labels,
    as_microseconds,
    combined,
)
from tamis.data.dataset import EncodedRows
from tamis.data.hashing import hash_strings
from tamis.data.lookup import StringLookup
from tamis.data.numeric import NumericEncoder, NumericFit
from tamis.data.schema import (
    CategoricalInput,
    Field,
    InputSpec,
    Schema,
    SequenceInput,
    Table,
)
from tamis.errors import ArtifactError, DataError


@dataclass(kw_only=True, slots=True)
class FieldCounts:
    """What encoding met in one field."""

    rows: int = 0
    """Values or, in a sequence, events."""
    missing: int = 0
    """Null, empty or NaN; encoded as row 0 or as the neutral number."""
    unknown: int = 0
    """Categories outside the vocabulary; encoded as row 0."""
    clipped: int = 0
    """Infinities, replaced by the largest or smallest finite training value."""


class VocabularyFit:
    """Counts the categories of a training split, chunk by chunk."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._values: list[pa.Array] = []
        self._counts: list[NDArray[np.int64]] = []
        self._pending = 0
        self._limit = 1 << 21

    def add(self, column: pa.Array) -> None:
        """Count the categories of a column."""
        categories = as_categories(column)
        known = categories.codes[categories.codes >= 0]
        self._values.append(categories.values)
        self._counts.append(np.bincount(known, minlength=len(categories.values)).astype(np.int64))
        self._pending += len(categories.values)
        if self._pending > self._limit:
            self._compact()
            self._limit = max(self._limit, 2 * self._pending)

    def vocabulary(self, min_count: int) -> pa.Array:
        """Categories seen at least ``min_count`` times, most frequent first, ties by text."""
        self._compact()
        if not self._values:
            return pa.array([], pa.string())
        table = pa.table({"value": self._values[0], "count": self._counts[0]})
        table = table.filter(pc.greater_equal(table["count"], min_count))
        order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("value", "ascending")])
        return combined(table["value"].take(order)).cast(pa.string())

    def _compact(self) -> None:
        if len(self._values) < 2:
            return
        table = pa.table(
            {
                "value": pa.chunked_array(self._values),
                "count": pa.chunked_array([pa.array(counts) for counts in self._counts]),
            }
        )
        merged = table.group_by("value", use_threads=False).aggregate([("count", "sum")])
        self._values = [combined(merged["value"])]
        self._counts = [combined(merged["count_sum"]).to_numpy().astype(np.int64)]
        self._pending = len(self._values[0])


class Vocabulary:
    """Row of each category of one table; hashed tables hold no categories."""

    def __init__(self, *, values: pa.Array | None, num_rows: int) -> None:
        """Describe a table.

        Args:
            values: Category of row 1, 2, ...; None for a hashed table.
            num_rows: Rows of the table, row 0 included.
        """
        self.values, self.num_rows = values, num_rows
        # Made when it is first asked, so that a vocabulary that was only fitted costs nothing.
        self._lookup: StringLookup | None = None

    def encode(self, column: pa.Array, counts: FieldCounts) -> NDArray[Any]:
        """Table rows (n,) of a column, int32 where they fit."""
        categories = as_categories(column)
        if self.values is None:
            hashes = hash_strings(categories.values) % np.uint64(self.num_rows - 1)
            rows = hashes.astype(np.int64) + 1
        else:
            if self._lookup is None:
                self._lookup = StringLookup(self.values)
            rows = self._lookup.positions(categories.values) + 1
        dtype = np.int32 if self.num_rows <= 2**31 - 1 else np.int64
        rows = np.append(rows, 0).astype(dtype)  # Code -1, a missing value, takes the last: row 0.
        encoded: NDArray[Any] = rows[categories.codes]
        missing = int((categories.codes < 0).sum())
        counts.rows += len(encoded)
        counts.missing += missing
        counts.unknown += int((encoded == 0).sum()) - missing
        return encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """Everything that turns raw columns into model inputs."""

    schema: Schema
    """What the columns mean."""
    vocabularies: Mapping[str, Vocabulary]
    """By the field that owns the table."""
    numeric: Mapping[str, NumericEncoder]
    """By field."""
    counts: Mapping[str, FieldCounts] = field(default_factory=dict)
    """What encoding has met so far, by field; fresh after :meth:`load`."""

    @property
    def spec(self) -> InputSpec:
        """Inputs and table sizes, as models see them."""
        schema = self.schema
        categorical = tuple(
            CategoricalInput(name=item.name, table=item.shares or item.name, side=item.side)
            for item in schema.fields
            if item.is_category
        )
        sequences = tuple(
            SequenceInput(
                name=name,
                fields=tuple(item.name for item in members),
                tables=tuple(item.shares or item.name for item in members),
                max_length=max(item.max_length for item in members),
            )
            for name, members in schema.sequence_groups.items()
        )
        sizes = {name: vocabulary.num_rows for name, vocabulary in self.vocabularies.items()}
        sizes |= {n: e.num_buckets + 1 for n, e in self.numeric.items() if e.num_buckets}
        return InputSpec(
            numeric=tuple(
                item.name
                for item in schema.fields
                if item.kind == "numeric" and not item.is_category
            ),
            categorical=categorical,
            sequences=sequences,
            tables=tuple(
                Table(name=item.name, num_rows=sizes[item.name])
                for item in schema.fields
                if item.name in sizes
            ),
            tasks=schema.tasks,
        )

    def encode(
        self, table: pa.Table, *, first_row: int, labels_required: bool, where: str
    ) -> EncodedRows:
        """Encode rows.

        Args:
            table: Raw columns under their source names.
            first_row: Number of the table's first row in its log.
            labels_required: Whether label columns must be there; without them labels are NaN.
            where: The log's name, for messages.

        Raises:
            DataError: A column is missing or a value has no meaning.
        """
        ids: dict[str, NDArray[Any]] = {}
        numeric: dict[str, NDArray[np.float32]] = {}
        for item in self.schema.fields:
            if item.is_jagged:
                continue
            column = source_column(table, item.source, where=where)
            counts = self._counts_of(item.name)
            if item.kind == "numeric":
                values = as_floats(column, where=f"{where}, column {item.source!r}")
                encoder = self.numeric[item.name]
                if item.is_category:
                    ids[item.name] = encoder.bucket(values, counts)
                else:
                    numeric[item.name] = encoder.encode(values, counts)
            else:
                vocabulary = self.vocabularies[item.shares or item.name]
                ids[item.name] = vocabulary.encode(column, counts)
        roles, weights = self._roles(table, where=where)
        return EncodedRows(
            row=np.arange(first_row, first_row + table.num_rows, dtype=np.int64),
            numeric=numeric,
            ids=ids,
            sequences={
                name: self._encode_group(table, members, where=where)
                for name, members in self.schema.sequence_groups.items()
            },
            labels=read_labels(
                table, self.schema, first_row=first_row, required=labels_required, where=where
            ),
            roles=roles,
            weights=weights,
        )

    def category_names(self, name: str) -> list[str] | None:
        """Text of table rows 0, 1, ... of a categorical field; None where it is hashed."""
        owner = next(item for item in self.schema.fields if item.name == name)
        vocabulary = self.vocabularies.get(owner.shares or name)
        if vocabulary is None or vocabulary.values is None:
            return None
        return ["(other)", *vocabulary.values.to_pylist()]

    def save(self, folder: Path) -> None:
        """Write ``encoders.json`` and one Arrow file per vocabulary.

        Raises:
            ArtifactError: The disk is full.
        """
        table: dict[str, Any] = {"schema": self.schema.to_toml(), "hashed": {}, "numeric": {}}
        for index, (name, vocabulary) in enumerate(self.vocabularies.items()):
            if vocabulary.values is None:
                table["hashed"][name] = vocabulary.num_rows
                continue
            path = folder / f"vocabulary-{index:04d}.arrow"
            contents = pa.table({"value": vocabulary.values}, metadata={"field": name})
            with artifacts.atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
                _write_ipc(sink, contents)
        table["numeric"] = {name: item.to_table() for name, item in self.numeric.items()}
        artifacts.write_json(folder / "encoders.json", table)

    @staticmethod
    def load(folder: Path, schema: Schema) -> "Encoders":
        """Read encoders that :meth:`save` wrote.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        table = artifacts.read_json(folder / "encoders.json")
        vocabularies: dict[str, Vocabulary] = {
            name: Vocabulary(values=None, num_rows=rows) for name, rows in table["hashed"].items()
        }
        for path in sorted(folder.glob("vocabulary-*.arrow")):
            try:
                with pa.memory_map(str(path)) as source:
                    contents = pa.ipc.open_file(source).read_all()
            except (pa.ArrowInvalid, OSError) as error:
                raise ArtifactError(f"{path}: must be a whole Arrow file, got {error}.") from error
            values = combined(contents["value"])
            name = contents.schema.metadata[b"field"].decode()
            vocabularies[name] = Vocabulary(values=values, num_rows=len(values) + 1)
        numeric = {n: NumericEncoder.from_table(t) for n, t in table["numeric"].items()}
        return Encoders(schema=schema, vocabularies=vocabularies, numeric=numeric, counts={})

    def _counts_of(self, name: str) -> FieldCounts:
        counts = self.counts
        assert isinstance(counts, dict)
        return counts.setdefault(name, FieldCounts())  # type: ignore[no-any-return]

    def _encode_group(
        self, table: pa.Table, members: tuple[Field, ...], *, where: str
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        columns, lengths = [], None
        for item in members:
            events, counts_per_row = split_events(table, item, where=where)
            vocabulary = self.vocabularies[item.shares or item.name]
            columns.append(vocabulary.encode(events, self._counts_of(item.name)))
            if lengths is not None and not np.array_equal(lengths, counts_per_row):
                row = int(np.argmax(lengths != counts_per_row))
                raise DataError(
                    f"{where}, row {row + 1}: columns of one sequence group must have as many "
                    f"events, got {int(lengths[row])} and {int(counts_per_row[row])} in "
                    f"{item.source!r}."
                )
            lengths = counts_per_row
        assert lengths is not None
        return np.stack(columns, axis=1), lengths

    def _roles(
        self, table: pa.Table, *, where: str
    ) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.float32] | None]:
        roles, result = self.schema.roles, {}
        for name in ("user", "item", "request"):
            source = getattr(roles, name)
            if source and source in table.column_names:
                result[name] = as_codes(combined(table[source]))
        if roles.time and roles.time in table.column_names:
            place = f"{where}, column {roles.time!r}"
            result["time"] = as_microseconds(combined(table[roles.time]), roles, where=place)
        if not roles.weight or roles.weight not in table.column_names:
            return result, None
        place = f"{where}, column {roles.weight!r}"
        weights = as_floats(combined(table[roles.weight]), where=place)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            row = int(np.argmin(np.isfinite(weights) & (weights >= 0)))
            raise DataError(f"{place}: weights must be at least 0, got {weights[row]}.")
        return result, weights.astype(np.float32)


class EncodersFit:
    """Fits encoders on the training rows, chunk by chunk."""

    def __init__(self, schema: Schema) -> None:
        """Start with nothing seen."""
        self.schema = schema
        self._vocabularies = {
            item.name: VocabularyFit()
            for item in schema.fields
            if item.kind != "numeric" and not item.shares and item.encoding == "vocabulary"
        }
        self._numeric = {
            item.name: NumericFit(item) for item in schema.fields if item.kind == "numeric"
        }

    def add(self, table: pa.Table, *, where: str) -> None:
        """Take in training rows.

        Raises:
            DataError: A column is missing or a value has no meaning.
        """
        for item in self.schema.fields:
            if item.kind == "numeric":
                column = source_column(table, item.source, where=where)
                values = as_floats(column, where=f"{where}, column {item.source!r}")
                self._numeric[item.name].add(values)
                continue
            vocabulary = self._vocabularies.get(item.shares or item.name)
            if vocabulary is None:
                continue
            if item.is_jagged:
                vocabulary.add(split_events(table, item, where=where)[0])
            else:
                vocabulary.add(source_column(table, item.source, where=where))

    def finish(self) -> Encoders:
        """The encoders of all rows taken in."""
        vocabularies: dict[str, Vocabulary] = {}
        for item in self.schema.fields:
            if item.name in self._vocabularies:
                values = self._vocabularies[item.name].vocabulary(item.min_count)
                vocabularies[item.name] = Vocabulary(values=values, num_rows=len(values) + 1)
            elif item.kind != "numeric" and not item.shares:
                vocabularies[item.name] = Vocabulary(values=None, num_rows=item.num_buckets)
        return Encoders(
            schema=self.schema,
            vocabularies=vocabularies,
            numeric={name: fit.finish() for name, fit in self._numeric.items()},
            counts={},
        )


def source_column(table: pa.Table, name: str, *, where: str) -> pa.Array:
    """A column of a table as one array.

    Raises:
        DataError: There is no such column.
    """
    if name not in table.column_names:
        raise DataError(f"{where}: must hold column {name!r}, got {', '.join(table.column_names)}.")
    return combined(table[name])


def split_events(table: pa.Table, item: Field, *, where: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Events of a sequence or words of a text, oldest first, and their number in each row.

    Only the last ``max_length`` of a row are kept; null is an empty history.
    """
    column = source_column(table, item.source, where=where)
    if item.kind == "text":
        words = pc.utf8_lower(pc.fill_null(column.cast(pa.string()), ""))
        column = pc.split_pattern_regex(words, r"[^\p{L}\p{N}]+")
    elif item.separator:
        text = column.cast(pa.string())
        empty = pc.or_kleene(pc.is_null(text), pc.equal(text, ""))
        parts = pc.split_pattern(pc.fill_null(text, ""), item.separator)
        column = pc.if_else(empty, pa.scalar([], parts.type), parts)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(
            f"{where}, column {item.source!r}: a sequence must be a list or a separated string, "
            f"got {column.type}. Set separator, or another kind."
        )
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    events = column.flatten()
    kept = np.minimum(lengths, item.max_length)
    if (kept < lengths).any():
        ends = np.cumsum(lengths)
        starts = ends - kept
        first = np.cumsum(kept) - kept
        positions = np.arange(int(kept.sum())) + np.repeat(starts - first, kept)
        events = events.take(pa.array(positions))
    return combined(events), kept


def read_labels(
    table: pa.Table, schema: Schema, *, first_row: int, required: bool, where: str
) -> dict[str, NDArray[np.float32]]:
    """Labels by task; NaN where a label is not observed.

    Raises:
        DataError: A label is missing, or is no label of its kind.
    """
    labels: dict[str, NDArray[np.float32]] = {}
    for task in schema.tasks:
        if task.name not in table.column_names and not required:
            labels[task.name] = np.full(table.num_rows, np.nan, np.float32)
            continue
        place = f"{where}, column {task.name!r}"
        column = source_column(table, task.name, where=where)
        values = as_labels(column, where=place, first_row=first_row, binary=task.kind == "binary")
        if task.observed_when:
            values[labels[task.observed_when] != 1] = np.nan
        elif required and np.isnan(values).any():
            row = first_row + int(np.argmax(np.isnan(values))) + 1
            raise DataError(
                f"{place}, row {row}: a label must not be missing, got none. Remove the row, or "
                f"set observed_when if it exists only after another event."
            )
        labels[task.name] = values
    return labels


def required_columns(schema: Schema, *, labels: bool) -> list[str]:
    """Source columns that encoding reads, each once."""
    names: Iterable[str] = (
        *(item.source for item in schema.fields),
        *(task.name for task in schema.tasks if labels),
        *(
            getattr(schema.roles, role)
            for role in ("time", "user", "item", "request", "weight")
            if getattr(schema.roles, role)
        ),
    )
    return list(dict.fromkeys(names))


def _write_ipc(sink: Any, table: pa.Table) -> None:  # noqa: ANN401  (an Arrow stream)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
