"""Vocabularies of categories: counted in training, on disk, and from category to table row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.columns import as_categories, combined
from tamis.data.hashing import hash_strings
from tamis.data.lookup import StringLookup
from tamis.errors import ArtifactError

_ANEW = "It was removed or altered after it was written; ingest the log anew."


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
    """Infinities, and numbers beyond float32, replaced by the largest or smallest finite training
    value."""
    shortened: int = 0
    """Histories or texts of which only the last ``max_length`` events were kept."""


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
        self._compact(at_least=1)
        if not self._values:
            return pa.array([], pa.string())
        table = pa.table({"value": self._values[0], "count": self._counts[0]})
        table = table.filter(pc.greater_equal(table["count"], min_count))
        order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("value", "ascending")])
        return combined(table["value"].take(order)).cast(pa.string())

    def _compact(self, at_least: int = 2) -> None:
        """Merge equal categories, of which one chunk has some where its dictionary names twice."""
        if len(self._values) < at_least:
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


def write_vocabulary(path: Path, name: str, values: pa.Array) -> None:
    """Write the categories of a field.

    Raises:
        ArtifactError: The disk is full.
    """
    contents = pa.table({"value": values}, metadata={"field": name})
    with (
        artifacts.atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, contents.schema) as writer,
    ):
        writer.write_table(contents)


def read_vocabulary(path: Path) -> tuple[str, pa.Array]:
    """The field of a vocabulary file, and its categories.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        with pa.memory_map(str(path)) as source:
            contents = pa.ipc.open_file(source).read_all()
        # A damaged file may name text outside of its bounds.
        contents.validate(full=True)
        values = combined(contents["value"])
        name = contents.schema.metadata[b"field"].decode()
    except (pa.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        said = str(error).rstrip(".")
        raise ArtifactError(f"{path}: must be a whole vocabulary, got {said}. {_ANEW}") from error
    if not pa.types.is_string(values.type) or values.null_count:
        raise ArtifactError(
            f"{path}: must hold texts and no nulls, got {values.null_count} nulls of type "
            f"{values.type}. {_ANEW}"
        )
    return name, values
