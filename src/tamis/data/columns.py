"""Columns of any source type as the few kinds that encoders work on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.hashing import hash_strings
from tamis.data.read_errors import lacks_column
from tamis.data.schema import TaskKind
from tamis.errors import DataError

ZEROS_IN_FRONT = r"^\s*0\d+\s*$"
"""Of digits that are a code, as in 01234, and no number."""
TRUTH_WORDS = {"true": 1.0, "false": 0.0}
_BLANKS = " \t"
_LONGEST_TYPE = 100
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where the rows of a table come from, as every message names it.

    Rows are those of one file and count from 1; the header of a text file and empty lines are no
    rows.
    """

    file: str
    """The file."""
    first_row: int = 0
    """Rows of the file before the table's first."""
    column: str = ""
    """Column in question; empty for all of them."""

    def of(self, column: str) -> "Origin":
        """The same rows, one column of them."""
        return replace(self, column=column)

    def row(self, position: int) -> str:
        """File, column and row of a position (from 0) in the table."""
        return f"{self}, row {self.first_row + position + 1}"

    def __str__(self) -> str:
        return f"{self.file}, column {self.column!r}" if self.column else self.file


@dataclass(frozen=True, kw_only=True, slots=True)
class Categories:
    """A column of categories, each distinct one once."""

    codes: NDArray[np.int64]
    """(n,) position in ``values``; -1 where missing."""
    values: pa.Array
    """Distinct categories as strings, none of them empty."""


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array of a column's chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array of a column's chunks, of one of the types that the functions below know.

    Views, extension types, lists of a fixed size, bytes that are text and columns of nulls become
    their plain equals; a dictionary stays one, and what has no equal stays as it is.
    """
    array = combined(column)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    kind, types = array.type, pa.types
    if types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    if types.is_null(kind) or types.is_string_view(kind):
        return array.cast(pa.string())
    if types.is_float16(kind):
        return array.cast(pa.float32())
    if types.is_fixed_size_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        return array.cast(pa.list_(kind.value_type))
    if types.is_dictionary(kind) and not types.is_string(kind.value_type):
        return pa.DictionaryArray.from_arrays(array.indices, plain(array.dictionary))
    try:
        if _is_bytes(kind):
            return array.cast(pa.binary()).cast(pa.string())
        if is_list(kind) and _is_bytes(kind.value_type):
            return array.cast(pa.list_(pa.string()))
    except pa.ArrowInvalid:
        return array  # Bytes that are no text have no plain equal.
    return array


def decoded(column: pa.Array) -> pa.Array:
    """A column with each value spelt out where it was a dictionary."""
    if pa.types.is_dictionary(column.type):
        return plain(column.dictionary_decode())
    return column


def unusable(kind: pa.DataType) -> str:
    """Why a column of this type, after :func:`plain`, can be nothing we know; empty if it can."""
    types = pa.types
    if types.is_dictionary(kind):
        return unusable(kind.value_type)
    if is_list(kind):
        inner = kind.value_type
        if is_list(inner) or types.is_nested(inner):
            return "each of its events is a list or record itself"
        return "" if types.is_null(inner) else unusable(inner)
    if types.is_nested(kind):
        return "each of its values is a record of several"
    if types.is_duration(kind) or types.is_time(kind) or types.is_interval(kind):
        return "a duration or a time without its day is no number and no category"
    known = (
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_timestamp(kind)
        or types.is_date(kind)
        or types.is_string_view(kind)
        or is_stringlike(kind)
    )
    return "" if known else "its values are bytes that are no text"


def source_column(
    table: pa.Table, name: str, *, origin: Origin, may_be_list: bool = False
) -> pa.Array:
    """A column of a table as one plain array; a dictionary stays one.

    Raises:
        DataError: There is no such column, or its type can be nothing that a schema names.
    """
    if name not in table.column_names:
        raise DataError(lacks_column(name, table.column_names, where=str(origin)))
    kind = table[name].type
    column = plain(table[name])
    if why := unusable(column.type):
        raise DataError(
            f"{origin.of(name)}: must hold numbers, texts, times or lists of them, got type "
            f"{_shortened(kind)}: {why}. Convert the column, or take it out of the schema."
        )
    if is_list(column.type) and not may_be_list:
        raise DataError(
            f"{origin.of(name)}: must hold one value in each row, got type {_shortened(kind)}. "
            f"Make the field a sequence, or take it or the role out of the schema."
        )
    return column


def as_categories(column: pa.Array) -> Categories:
    """Categories of a column of strings, integers, booleans or whole floats.

    Nulls, NaN, infinities and empty strings are missing. 7, 7.0 and "7" are one category, so that
    a vocabulary of Parquet serves CSV too. Integers keep all of their 64 bits.
    """
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    # As 64 bits first: indices may be unsigned, and then have no -1.
    indices = pc.fill_null(encoded.indices.cast(pa.int64()), -1)
    codes = indices.to_numpy(zero_copy_only=False)
    values = _as_strings(encoded.dictionary)
    if not pa.types.is_floating(encoded.dictionary.type) and not values.null_count:
        # Distinct values of any type but float are distinct strings.
        empty = pc.index(values, "").as_py()
        if empty < 0:
            return Categories(codes=codes, values=values)
    missing = pc.fill_null(pc.or_kleene(pc.is_null(values), pc.equal(values, "")), fill_value=True)
    lost = missing.to_numpy(zero_copy_only=False)
    # 0.0 and -0.0 meet in one string; keep the first of each.
    merged = values.dictionary_encode()
    if not lost.any() and len(merged.dictionary) == len(values):
        return Categories(codes=codes, values=values)
    target = pc.fill_null(merged.indices, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    kept = merged.dictionary
    is_text = pc.fill_null(pc.not_equal(kept, ""), fill_value=False).to_numpy(zero_copy_only=False)
    new_position = np.append(np.cumsum(is_text) - 1, -1)  # of values that are all missing, too
    moved = np.where(lost, -1, new_position[target])
    codes = np.where(codes >= 0, moved[np.maximum(codes, 0)], -1)
    return Categories(codes=codes, values=kept.filter(pa.array(is_text)))


def as_floats(
    column: pa.Array,
    *,
    origin: Origin,
    must: str = "a numeric field must hold numbers",
    advice: str = "Mend it, or make the field categorical.",
    words: Mapping[str, float] | None = None,
) -> NDArray[np.float64]:
    """Numbers of a column; NaN where missing, infinities as they are.

    Args:
        column: Numbers, booleans, or texts that say numbers.
        origin: Where they come from.
        must: What must hold, for the message.
        advice: What to do where it does not.
        words: Texts that stand for a number, in lower case.

    Raises:
        DataError: A value is no number; file, column, row and value are named.
    """
    column = decoded(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if is_stringlike(column.type):
        column = _parse_floats(column, origin, must, advice, words or {})
    try:
        floats = column.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{origin}: {must}, got type {column.type}. {advice}") from error
    values: NDArray[np.float64] = pc.fill_null(floats, float("nan")).to_numpy(zero_copy_only=False)
    return values


def as_labels(column: pa.Array, *, origin: Origin, kind: TaskKind) -> NDArray[np.float32]:
    """Labels of a column; NaN where missing. The texts true and false are 1 and 0.

    Raises:
        DataError: A binary label is neither 0 nor 1, a probability is outside [0, 1], or another
            is no finite number; file, column, row and value are named.
    """
    if kind == "binary":
        must = "a binary label must be 0 or 1"
        advice = "Map the labels to 0 and 1; true and false may stay."
    elif kind == "probability":
        must, advice = "a probability must be in [0, 1]", "Mend it, or remove the row."
    else:
        must, advice = "a label must be a finite number", "Mend it, or remove the row."
    values = as_floats(column, origin=origin, must=must, advice=advice, words=TRUTH_WORDS)
    if kind == "binary":
        wrong = ~((values == 0) | (values == 1) | np.isnan(values))
        advice = "Mend it, map the labels, or set kind = 'regression' for this task."
    elif kind == "probability":
        wrong = (values < 0) | (values > 1)
    else:
        wrong = np.abs(values) > _LARGEST_FLOAT32
    if wrong.any():
        position = int(np.argmax(wrong))
        raise DataError(f"{origin.row(position)}: {must}, got {values[position]:.15g}. {advice}")
    return values.astype(np.float32)


def as_weights(column: pa.Array, *, origin: Origin) -> NDArray[np.float32]:
    """Sample weights of a column.

    Raises:
        DataError: A weight is missing, negative or infinite; file, column, row and value are named.
    """
    must = "a weight must be a finite number of at least 0"
    advice = "Mend it, or take the weight role out of the schema."
    values = as_floats(column, origin=origin, must=must, advice=advice)
    right = (values >= 0) & (values <= _LARGEST_FLOAT32)
    if not right.all():
        position = int(np.argmin(right))
        value = "none" if np.isnan(values[position]) else f"{values[position]:.15g}"
        raise DataError(f"{origin.row(position)}: {must}, got {value}. {advice}")
    return values.astype(np.float32)


def split_items(texts: pa.Array, separator: str) -> pa.Array:
    """Items of each text between separators, as a list array; null and blank texts have none.

    Blanks around an item, quotes around it, and square brackets around the whole text are left
    out: ``"[1, 2]"`` holds what ``"1,2"`` holds.
    """
    texts = pc.fill_null(texts, "")
    if _any_has(texts, "["):
        texts = pc.replace_substring_regex(texts, r"^\s*\[(.*)\]\s*$", r"\1")
    empty = pc.equal(pc.utf8_trim(texts, _BLANKS), "")
    parts = pc.split_pattern(texts, separator)
    items = parts.flatten()
    # Most logs have neither; looking is five times as cheap as cleaning.
    if _any_has(items, " ") or _any_has(items, "\t"):
        items = pc.utf8_trim(items, _BLANKS)
    if _any_has(items, "'") or _any_has(items, '"'):
        items = pc.replace_substring_regex(items, r"""^(?:"(.*)"|'(.*)')$""", r"\1\2")
    parts = pa.ListArray.from_arrays(_offsets(parts), items)
    return pc.if_else(empty, pa.scalar([], parts.type), parts)


def as_codes(column: pa.Array) -> NDArray[np.int64]:
    """Stable non-negative 63-bit codes of a column's categories; -1 where missing."""
    categories = as_categories(column)
    hashes = (hash_strings(categories.values) >> np.uint64(1)).astype(np.int64)
    if not len(hashes):
        return np.full(len(column), -1, np.int64)
    return np.where(categories.codes >= 0, hashes[np.maximum(categories.codes, 0)], -1)


def alone_where_missing(codes: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes of groups of rows, a row without one being a group of its own, of a code below 0."""
    return np.where(codes < 0, ~rows, codes)


def is_stringlike(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds lists of any length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def holds_large_floats(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether floats, or those in lists, are beyond 64 bits, as rounded integers are."""
    if is_list(column.type):
        return holds_large_floats(pc.list_flatten(column))
    if not pa.types.is_floating(column.type):
        return False
    large = pc.greater_equal(pc.abs(column), 2.0**63)
    return bool(pc.any(pc.and_(large, pc.is_finite(column))).as_py())


def _shortened(kind: pa.DataType) -> str:
    """The name of a type; that of a structure may have thousands of fields."""
    text = str(kind)
    return text if len(text) <= _LONGEST_TYPE else f"{text[:_LONGEST_TYPE]}..."


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _as_strings(values: pa.Array) -> pa.Array:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_floating(values.type):
        floats = values.cast(pa.float64())
        finite = pc.if_else(pc.is_finite(floats), floats, pa.scalar(None, pa.float64()))
        whole = pc.equal(pc.round(finite), finite)
        small = pc.less(pc.abs(finite), 2.0**63)
        integers = pc.if_else(pc.and_(whole, small), finite, 0.0).cast(pa.int64(), safe=False)
        texts = pc.if_else(pc.and_(whole, small), integers.cast(pa.string()), finite.cast("string"))
        return texts
    return values.cast(pa.string())


def _parse_floats(
    column: pa.Array, origin: Origin, must: str, advice: str, words: Mapping[str, float]
) -> pa.Array:
    texts = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        # Blanks, words, or a value that is wrong: each distinct text once.
        encoded = texts.dictionary_encode()
    numbers = []
    for text in encoded.dictionary.to_pylist():
        number = words.get(text.strip().lower(), _number(text))
        if number is None:
            position = pc.index(texts, pa.scalar(text, texts.type)).as_py()
            raise DataError(f"{origin.row(position)}: {must}, got {text!r}. {advice}")
        numbers.append(number)
    return pa.array(numbers, pa.float64()).take(encoded.indices)


def _number(text: str) -> float | None:
    """The number that a text says; blanks say that there is none, None that it is no number."""
    if not text.strip():
        return float("nan")
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _any_has(texts: pa.Array, mark: str) -> bool:
    return bool(pc.any(pc.match_substring(texts, mark)).as_py())


def _offsets(lists: pa.Array) -> pa.Array:
    """Offsets of a list array's rows in its flattened values; the array holds no nulls."""
    offsets = lists.offsets
    return pc.subtract(offsets, offsets[0])
