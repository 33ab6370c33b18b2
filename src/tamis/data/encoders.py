"""Fitted encoders: from a table of raw columns to ids and numbers, the same for every caller.

Row 0 of every table stands for what is missing and for what was not seen (often enough) in
training. Encoders are fitted on the training split only, saved beside the dataset, and loaded by
training, ``predict`` and the server.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.columns import (
    Origin,
    as_codes,
    as_floats,
    as_labels,
    as_weights,
    decoded,
    is_list,
    plain,
    source_column,
    split_items,
)
from tamis.data.dataset import EncodedRows
from tamis.data.numeric import NumericEncoder, NumericFit
from tamis.data.schema import (
    CategoricalInput,
    Field,
    InputSpec,
    Schema,
    SequenceInput,
    Table,
)
from tamis.data.times import as_microseconds
from tamis.data.vocabulary import (
    FieldCounts,
    Vocabulary,
    VocabularyFit,
    read_vocabulary,
    write_vocabulary,
)
from tamis.errors import ArtifactError, DataError, SchemaError

_ANEW = "It was removed or altered after it was written; ingest the log anew."


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
                side=members[0].side,
            )
            for name, members in schema.sequence_groups.items()
        )
        sizes = {name: vocabulary.num_rows for name, vocabulary in self.vocabularies.items()}
        sizes |= {n: e.num_buckets + 1 for n, e in self.numeric.items() if e.num_buckets}
        numeric = tuple(f for f in schema.fields if f.kind == "numeric" and not f.is_category)
        given = {item.name for item in schema.fields if item.vectors}
        items = [
            item.name
            for item in schema.fields
            if item.is_category and item.source == schema.roles.item
            if (item.shares or item.name) not in given
        ]
        return InputSpec(
            numeric=tuple(item.name for item in numeric),
            categorical=categorical,
            sequences=sequences,
            tables=tuple(
                Table(name=item.name, num_rows=sizes[item.name], vectors=item.vectors)
                for item in schema.fields
                if item.name in sizes
            ),
            tasks=schema.tasks,
            numeric_sides=tuple(item.side for item in numeric),
            numeric_counts=tuple(item.counts for item in numeric),
            item=items[0] if items else "",
        )

    def encode(
        self, table: pa.Table, *, first_row: int, origin: Origin, inputs_only: bool = False
    ) -> EncodedRows:
        """Encode rows.

        Args:
            table: Raw columns under their source names.
            first_row: Number of the table's first row in its log.
            origin: Where the rows come from, for messages.
            inputs_only: Read the columns of the fields alone, as prediction needs them: labels
                are NaN, and there are no roles and no weights.

        Raises:
            DataError: A column is missing or a value has no meaning.
        """
        ids: dict[str, NDArray[Any]] = {}
        numeric: dict[str, NDArray[np.float32]] = {}
        for item in self.schema.fields:
            if item.is_jagged:
                continue
            column = source_column(table, item.source, origin=origin)
            counts = self._counts_of(item.name)
            if item.kind == "numeric":
                values = as_floats(column, origin=origin.of(item.source))
                encoder = self.numeric[item.name]
                if item.is_category:
                    ids[item.name] = encoder.bucket(values, counts)
                else:
                    numeric[item.name] = encoder.encode(values, counts)
            else:
                vocabulary = self.vocabularies[item.shares or item.name]
                ids[item.name] = vocabulary.encode(column, counts)
        sequences = {
            name: self._encode_group(table, members, origin=origin)
            for name, members in self.schema.sequence_groups.items()
        }
        row = np.arange(first_row, first_row + table.num_rows, dtype=np.int64)
        if inputs_only:
            unknown = np.full(table.num_rows, np.nan, np.float32)
            labels = {task.name: unknown for task in self.schema.tasks}
            return EncodedRows(
                row=row, numeric=numeric, ids=ids, sequences=sequences, labels=labels
            )
        return EncodedRows(
            row=row,
            numeric=numeric,
            ids=ids,
            sequences=sequences,
            labels=read_labels(table, self.schema, origin=origin),
            roles=self._roles(table, origin=origin),
            weights=self._weights(table, origin=origin),
        )

    def category_names(self, name: str) -> list[str] | None:
        """Text of table rows 0, 1, ... of a categorical field; None where it is hashed."""
        owner = next(item for item in self.schema.fields if item.name == name)
        vocabulary = self.vocabularies.get(owner.shares or name)
        if vocabulary is None or vocabulary.values is None:
            return None
        return ["(other)", *vocabulary.values.to_pylist()]

    def without(self, names: Collection[str]) -> "Encoders":
        """Encoders of all fields but some; those that stay encode as before.

        Raises:
            SchemaError: There is no such field, one that stays needs it, or none stays.
        """
        known = [item.name for item in self.schema.fields]
        for name in names:
            if name not in known:
                raise SchemaError(
                    f"fields to leave out: must be fields of the dataset, got {name!r}. Its "
                    f"fields: {', '.join(known)}."
                )
        fields = tuple(item for item in self.schema.fields if item.name not in names)
        for item in fields:
            needed = next((name for name in (item.shares, item.counts) if name in names), None)
            if needed is not None:
                raise SchemaError(
                    f"fields to leave out: must include {item.name!r}, which is made of "
                    f"{needed!r}, got {', '.join(names)}. Leave both out, or neither."
                )
        if not fields:
            raise SchemaError(
                "fields to leave out: must leave one to read, got all. Leave fewer out."
            )
        return Encoders(
            schema=replace(self.schema, fields=fields),
            vocabularies={n: v for n, v in self.vocabularies.items() if n not in names},
            numeric={n: e for n, e in self.numeric.items() if n not in names},
        )

    def save(self, folder: Path) -> None:
        """Write ``encoders.json`` and one Arrow file per vocabulary.

        Raises:
            ArtifactError: The disk is full.
        """
        table: dict[str, Any] = {"schema": self.schema.to_toml(), "hashed": {}, "numeric": {}}
        # Numbered in the schema's order, whichever they were made in: files are compared by name.
        owners = [item.name for item in self.schema.fields if item.name in self.vocabularies]
        for index, name in enumerate(owners):
            vocabulary = self.vocabularies[name]
            if vocabulary.values is None:
                table["hashed"][name] = vocabulary.num_rows
                continue
            write_vocabulary(folder / f"vocabulary-{index:04d}.arrow", name, vocabulary.values)
        table["numeric"] = {name: item.to_table() for name, item in self.numeric.items()}
        artifacts.write_json(folder / "encoders.json", table)

    @staticmethod
    def load(folder: Path, schema: Schema) -> "Encoders":
        """Read encoders that :meth:`save` wrote.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        path = folder / "encoders.json"
        table = artifacts.read_json(path)
        try:
            vocabularies: dict[str, Vocabulary] = {
                name: Vocabulary(values=None, num_rows=rows)
                for name, rows in table["hashed"].items()
            }
            numeric = {n: NumericEncoder.from_table(t) for n, t in table["numeric"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path}: must hold the encoders of a dataset, got another JSON document. {_ANEW}"
            ) from error
        for file in sorted(folder.glob("vocabulary-*.arrow")):
            name, values = read_vocabulary(file)
            vocabularies[name] = Vocabulary(values=values, num_rows=len(values) + 1)
        for item in schema.fields:
            known = numeric if item.kind == "numeric" else vocabularies
            if not item.shares and item.name not in known:
                what = "transform" if item.kind == "numeric" else "vocabulary"
                raise ArtifactError(
                    f"{folder}: must hold the {what} of field {item.name!r}, got "
                    f"{', '.join(known) or 'none at all'}. {_ANEW}"
                )
        return Encoders(schema=schema, vocabularies=vocabularies, numeric=numeric, counts={})

    def _counts_of(self, name: str) -> FieldCounts:
        counts = self.counts
        assert isinstance(counts, dict)
        return counts.setdefault(name, FieldCounts())  # type: ignore[no-any-return]

    def _encode_group(
        self, table: pa.Table, members: tuple[Field, ...], *, origin: Origin
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        columns, whole, lengths = [], None, None
        for item in members:
            events = split_events(table, item, origin=origin)
            counts = self._counts_of(item.name)
            counts.shortened += events.num_shortened
            vocabulary = self.vocabularies[item.shares or item.name]
            columns.append(vocabulary.encode(events.values, counts))
            if whole is not None and not np.array_equal(whole, events.whole_lengths):
                row = int(np.argmax(whole != events.whole_lengths))
                raise DataError(
                    f"{origin.of(item.source).row(row)}: columns of one sequence group must have "
                    f"as many events, got {int(events.whole_lengths[row])} beside "
                    f"{int(whole[row])} in {members[0].source!r}. Mend the row, or give the fields "
                    f"groups of their own."
                )
            whole, lengths = events.whole_lengths, events.lengths
        assert lengths is not None
        return np.stack(columns, axis=1), lengths

    def _roles(self, table: pa.Table, *, origin: Origin) -> dict[str, NDArray[np.int64]]:
        roles, result = self.schema.roles, {}
        for name in ("user", "item", "request"):
            if source := getattr(roles, name):
                result[name] = as_codes(source_column(table, source, origin=origin))
        if roles.time:
            column = source_column(table, roles.time, origin=origin)
            result["time"] = as_microseconds(column, roles, origin=origin.of(roles.time))
        return result

    def _weights(self, table: pa.Table, *, origin: Origin) -> NDArray[np.float32] | None:
        name = self.schema.roles.weight
        if not name:
            return None
        return as_weights(source_column(table, name, origin=origin), origin=origin.of(name))


class EncodersFit:
    """Fits encoders on the training rows, chunk by chunk."""

    def __init__(self, schema: Schema, given: Mapping[str, pa.Array] | None = None) -> None:
        """Start with nothing seen.

        Args:
            schema: What the columns mean.
            given: Vocabularies that are not counted, by field: those that vectors are given for.
        """
        self.schema = schema
        self._given = dict(given or {})
        self._vocabularies = {
            item.name: VocabularyFit()
            for item in schema.fields
            if item.kind != "numeric" and not item.shares and item.encoding == "vocabulary"
            if item.name not in self._given
        }
        self._numeric = {
            item.name: NumericFit(item) for item in schema.fields if item.kind == "numeric"
        }

    def add(
        self, table: pa.Table, *, origin: Origin, training: NDArray[np.bool_] | None = None
    ) -> None:
        """Take in training rows.

        Args:
            table: Raw columns under their source names.
            origin: Where the rows come from, for messages.
            training: Which of the rows (n,) to take in; None for all.

        Raises:
            DataError: A column is missing or a value has no meaning.
        """
        mask = None if training is None else pa.array(training)
        for item in self.schema.fields:
            if item.kind == "numeric":
                column = source_column(table, item.source, origin=origin)
                values = as_floats(column, origin=origin.of(item.source))
                self._numeric[item.name].add(values if training is None else values[training])
                continue
            vocabulary = self._vocabularies.get(item.shares or item.name)
            if vocabulary is None:
                continue
            if item.is_jagged:
                rows = table if mask is None else table.select([item.source]).filter(mask)
                vocabulary.add(split_events(rows, item, origin=origin).values)
            else:
                column = source_column(table, item.source, origin=origin)
                vocabulary.add(column if mask is None else column.filter(mask))

    def finish(self) -> Encoders:
        """The encoders of all rows taken in."""
        vocabularies: dict[str, Vocabulary] = {}
        for item in self.schema.fields:
            if item.name in self._vocabularies:
                values = self._vocabularies[item.name].vocabulary(item.min_count)
                vocabularies[item.name] = Vocabulary(values=values, num_rows=len(values) + 1)
            elif item.name in self._given:
                values = self._given[item.name]
                vocabularies[item.name] = Vocabulary(values=values, num_rows=len(values) + 1)
            elif item.kind != "numeric" and not item.shares:
                vocabularies[item.name] = Vocabulary(values=None, num_rows=item.num_buckets)
        return Encoders(
            schema=self.schema,
            vocabularies=vocabularies,
            numeric={name: fit.finish() for name, fit in self._numeric.items()},
            counts={},
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SplitEvents:
    """Events of a sequence or words of a text, row after row."""

    values: pa.Array
    """Oldest first; at most ``max_length`` a row."""
    lengths: NDArray[np.int64]
    """(rows,) how many of them are each row's."""
    whole_lengths: NDArray[np.int64]
    """(rows,) how many each row had, of which the last were kept."""

    @property
    def num_shortened(self) -> int:
        """Rows of which not all were kept."""
        return int((self.lengths < self.whole_lengths).sum())


def split_events(table: pa.Table, item: Field, *, origin: Origin) -> SplitEvents:
    """Read a column of sequences or texts.

    Only the last ``max_length`` events of a row are kept; null is an empty history. The words of a
    text are what stands between marks and blanks.

    Raises:
        DataError: The column holds no lists, and no text with the field's separator.
    """
    column = decoded(source_column(table, item.source, origin=origin, may_be_list=True))
    if item.kind == "text" and not is_list(column.type):
        column = split_words(column.cast(pa.string()))
    elif item.separator and not is_list(column.type):
        column = split_items(column.cast(pa.string()), item.separator)
    elif column.null_count == len(column):
        column = pa.nulls(len(column), pa.list_(pa.string()))
    if not is_list(column.type):
        raise DataError(
            f"{origin.of(item.source)}: a sequence must be a list or a separated text, got "
            f"{column.type}. Set separator, or another kind."
        )
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    events = plain(column.flatten())
    kept = np.minimum(lengths, item.max_length)
    if (kept < lengths).any():
        ends = np.cumsum(lengths)
        starts = ends - kept
        first = np.cumsum(kept) - kept
        positions = np.arange(int(kept.sum())) + np.repeat(starts - first, kept)
        events = events.take(pa.array(positions))
    return SplitEvents(values=events, lengths=kept, whole_lengths=lengths)


def split_words(texts: pa.Array) -> pa.Array:
    """Words of each text as a list array, in lower case; null has none."""
    texts = pc.utf8_lower(pc.fill_null(texts, ""))
    # A mark at either end, such as a full stop, would leave an empty word there.
    texts = pc.replace_substring_regex(texts, r"^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$", "")
    words = pc.split_pattern_regex(texts, r"[^\p{L}\p{N}]+")
    return pc.if_else(pc.equal(texts, ""), pa.scalar([], words.type), words)


def read_labels(
    table: pa.Table, schema: Schema, *, origin: Origin
) -> dict[str, NDArray[np.float32]]:
    """Labels by task; NaN where a label is not observed.

    Raises:
        DataError: A label is missing, or is no label of its kind.
    """
    labels: dict[str, NDArray[np.float32]] = {}
    for task in schema.tasks:
        place = origin.of(task.name)
        column = source_column(table, task.name, origin=origin)
        values = as_labels(column, origin=place, kind=task.kind)
        exists = np.ones(len(values), bool)
        if task.observed_when:
            exists = labels[task.observed_when] == 1
            values[~exists] = np.nan
        missing = exists & np.isnan(values)
        if missing.any() and not task.may_be_missing:
            where = f" where {task.observed_when!r} is 1" if task.observed_when else ""
            after = "" if where else "set observed_when if it exists only after another event, "
            raise DataError(
                f"{place.row(int(np.argmax(missing)))}: a label must not be missing{where}, got "
                f"none. Write 0 if nothing happened, remove the row, {after}or set may_be_missing "
                f"if rows may lack it."
            )
        labels[task.name] = values
    return labels


def required_columns(schema: Schema, *, inputs_only: bool) -> list[str]:
    """Source columns that encoding reads, each once; those of the fields alone for prediction."""
    names = [item.source for item in schema.fields]
    if not inputs_only:
        names += [task.name for task in schema.tasks]
        roles = (getattr(schema.roles, r) for r in ("time", "user", "item", "request", "weight"))
        names += [name for name in roles if name]
    return list(dict.fromkeys(names))
