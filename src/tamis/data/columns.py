"""Columns of any source type as the few kinds that encoders work on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.hashing import hash_strings
from tamis.data.schema import Roles
from tamis.errors import DataError

_SECONDS_OF_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# Integer times are told apart by size: 1973 to 2128 in each unit; no two ranges overlap.
_UNIT_RANGES = {"s": (1e8, 5e9), "ms": (1e11, 5e12), "us": (1e14, 5e15), "ns": (1e17, 5e18)}


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


def as_categories(column: pa.Array) -> Categories:
    """Categories of a column of strings, integers, booleans or whole floats.

    Nulls, NaN, infinities and empty strings are missing. 7, 7.0 and "7" are one category, so that
    a vocabulary of Parquet serves CSV too. Integers keep all of their 64 bits.
    """
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
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
    new_position = np.cumsum(is_text) - 1
    moved = np.where(lost, -1, new_position[target])
    codes = np.where(codes >= 0, moved[np.maximum(codes, 0)], -1)
    return Categories(codes=codes, values=kept.filter(pa.array(is_text)))


def as_floats(column: pa.Array, *, where: str) -> NDArray[np.float64]:
    """Numbers of a column; NaN where missing, infinities as they are.

    Raises:
        DataError: A value is no number; column, row and value are named.
    """
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _parse_floats(column, where=where)
    try:
        floats = column.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{where}: must hold numbers, got type {column.type}.") from error
    values: NDArray[np.float64] = pc.fill_null(floats, float("nan")).to_numpy(zero_copy_only=False)
    return values


def as_labels(column: pa.Array, *, where: str, first_row: int, binary: bool) -> NDArray[np.float32]:
    """Labels of a column; NaN where missing.

    Raises:
        DataError: A binary label is neither 0 nor 1; column, row and value are named.
    """
    values = as_floats(column, where=where)
    if binary:
        wrong = ~((values == 0) | (values == 1) | np.isnan(values))
        if wrong.any():
            position = int(np.argmax(wrong))
            raise DataError(
                f"{where}, row {first_row + position + 1}: a binary label must be 0 or 1, got "
                f"{values[position]:g}. Map the labels, or set kind = 'regression' for this task."
            )
    return values.astype(np.float32)


def as_codes(column: pa.Array) -> NDArray[np.int64]:
    """Stable non-negative 63-bit codes of a column's categories; -1 where missing."""
    categories = as_categories(column)
    hashes = (hash_strings(categories.values) >> np.uint64(1)).astype(np.int64)
    if not len(hashes):
        return np.full(len(column), -1, np.int64)
    return np.where(categories.codes >= 0, hashes[np.maximum(categories.codes, 0)], -1)


def as_microseconds(column: pa.Array, roles: Roles, *, where: str) -> NDArray[np.int64]:
    """Times in microseconds since 1970 UTC.

    Time stamps without a zone count as UTC. Integers are read in ``roles.time_unit`` or, without
    one, in the unit that puts them between 1973 and 2128.

    Raises:
        DataError: A time is missing, cannot be read, or lies outside those years.
    """
    if column.null_count:
        row = int(np.argmax(pc.is_null(column).to_numpy(zero_copy_only=False)))
        raise DataError(f"{where}: every row must have a time, got none {row + 1} rows into it.")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _parse_times(column, where=where)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        unit = pa.timestamp("us", tz=getattr(column.type, "tz", None))
        return _integers(column.cast(unit, safe=False).cast(pa.int64()))
    values = as_floats(column, where=where)
    unit_name = roles.time_unit or time_unit_of(float(values[0]), where=where)
    low, high = _UNIT_RANGES[unit_name]
    wrong = ~((values >= low) & (values <= high))
    if wrong.any() and not roles.time_unit:
        value = values[int(np.argmax(wrong))]
        raise DataError(
            f"{where}: times must be of one unit, got {value:g} among times in {unit_name!r}. "
            f"Mend it, or set roles.time_unit."
        )
    if unit_name == "us" and pa.types.is_integer(column.type):
        return _integers(column.cast(pa.int64()))
    return np.rint(values * (_SECONDS_OF_UNIT[unit_name] * 1e6)).astype(np.int64)


def time_unit_of(value: float, *, where: str) -> str:
    """Unit in which an integer time lies between 1973 and 2128.

    Raises:
        DataError: There is none.
    """
    for unit, (low, high) in _UNIT_RANGES.items():
        if low <= value <= high:
            return unit
    raise DataError(
        f"{where}: a time must be seconds, ms, us or ns since 1970 between 1973 and 2128, got "
        f"{value:g}. Set roles.time_unit if it is none of these, or drop the time role."
    )


def _integers(column: pa.Array) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return values


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


def _parse_floats(column: pa.Array, *, where: str) -> pa.Array:
    text = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid as error:
        for position, value in enumerate(text.to_pylist()):
            if value is not None and not _is_float(value):
                raise DataError(
                    f"{where}: must hold numbers, got {value!r} {position + 1} rows into it. "
                    f"Mend it, or make the field categorical."
                ) from error
        raise DataError(f"{where}: must hold numbers, got {error}.") from error


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_times(column: pa.Array, *, where: str) -> pa.Array:
    if all(_is_float(value) for value in column.slice(0, 100).to_pylist()):
        return _parse_floats(column, where=where)
    for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    raise DataError(
        f"{where}: times must be ISO 8601 or numbers since 1970, got {column[0].as_py()!r}. "
        f"Convert them, or drop the time role."
    )


def is_stringlike(kind: Any) -> bool:  # noqa: ANN401  (an Arrow type)
    """Whether an Arrow type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
