"""Columns of times: what is one, in which unit, and as microseconds."""

import contextlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.columns import Origin, as_floats, decoded, is_stringlike
from tamis.data.schema import Roles
from tamis.errors import DataError

_SECONDS_OF_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# Integer times are told apart by size: 1973 to 2128 in each unit; no two ranges overlap.
_UNIT_RANGES = {"s": (1e8, 5e9), "ms": (1e11, 5e12), "us": (1e14, 5e15), "ns": (1e17, 5e18)}
# The same years at the start of a text of ISO 8601, and whether a time of day follows.
_ISO_DATE = r"^\s*(?:19[7-9]\d|20\d\d|21[0-2]\d)-\d\d-\d\d"
_ISO_CLOCK = _ISO_DATE + r"[T ]\d\d:?\d\d"
_NUMBER = r"^\s*\d+(?:\.\d*)?(?:[eE]\+?\d+)?\s*$"
_KINDS = (pa.timestamp("us"), pa.timestamp("us", tz="UTC"))
_ADVICE = "Mend it, remove the row, or take the time role out of the schema."


def latest(times: Iterable[int | None]) -> int | None:
    """The last of some times, those that are not known left out; None where none is."""
    return max((time for time in times if time is not None), default=None)


def as_microseconds(column: pa.Array, roles: Roles, *, origin: Origin) -> NDArray[np.int64]:
    """Times in microseconds since 1970 UTC.

    Time stamps without a zone count as UTC. Numbers are read in ``roles.time_unit`` or, without
    one, in the unit that puts most of them between 1973 and 2128.

    Raises:
        DataError: A time is missing, cannot be read, or lies outside those years; file, column,
            row and value are named.
    """
    column = decoded(column)
    if column.null_count:
        position = int(np.argmax(pc.is_null(column).to_numpy(zero_copy_only=False)))
        raise DataError(f"{origin.row(position)}: every row must have a time, got none. {_ADVICE}")
    if is_stringlike(column.type) and not _says_numbers(column):
        column = _parse_times(column, origin)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        unit = pa.timestamp("us", tz=getattr(column.type, "tz", None))
        times = _integers(column.cast(unit, safe=False).cast(pa.int64()))
        low, high = _UNIT_RANGES["us"]
        wrong = (times < low) | (times > high)
        if wrong.any():
            position = int(np.argmax(wrong))
            raise DataError(
                f"{origin.row(position)}: a time must lie between 1973 and 2128, got "
                f"{np.datetime64(int(times[position]), 'us')}. {_ADVICE}"
            )
        return times
    must = "a time must be ISO 8601 or a number since 1970"
    values = as_floats(column, origin=origin, must=must, advice=_ADVICE)
    unit_name = roles.time_unit or _unit_of(values)
    if not unit_name:
        raise DataError(
            f"{origin.row(0)}: a time must be seconds, ms, us or ns since 1970 between 1973 and "
            f"2128, got {values[0]:.15g}. Convert them, or take the time role out of the schema."
        )
    low, high = _UNIT_RANGES[unit_name]
    wrong = ~((values >= low) & (values <= high))
    if wrong.any():
        position = int(np.argmax(wrong))
        why = "as roles.time_unit says" if roles.time_unit else "as the other times are"
        raise DataError(
            f"{origin.row(position)}: a time must lie between 1973 and 2128 in {unit_name!r}, "
            f"{why}, got {values[position]:.15g}. {_ADVICE}"
        )
    if unit_name == "us" and pa.types.is_integer(column.type):
        return _integers(column.cast(pa.int64()))
    return np.rint(values * (_SECONDS_OF_UNIT[unit_name] * 1e6)).astype(np.int64)


def share_of_times(column: pa.Array, *, numbers: bool, dates: bool) -> float:
    """Share of the rows of a sample, missing ones included, that hold a time of one form.

    Time stamps, and texts of ISO 8601 with a time of day, always count.

    Args:
        column: Any column.
        numbers: Whether numbers since 1970 count.
        dates: Whether dates without a time of day count.
    """
    known = decoded(column).drop_null()
    kind, good = known.type, 0
    if pa.types.is_timestamp(kind) or (pa.types.is_date(kind) and dates):
        unit = pa.timestamp("us", tz=getattr(kind, "tz", None))
        good = _in_range(_integers(known.cast(unit, safe=False).cast(pa.int64())), "us")
    elif is_stringlike(kind):
        good = _count(pc.match_substring_regex(known, _ISO_DATE if dates else _ISO_CLOCK))
        if numbers:
            texts = known.filter(pc.match_substring_regex(known, _NUMBER))
            values = pc.utf8_trim_whitespace(texts).cast(pa.float64())
            good = max(good, _most_in_range(values.to_numpy(zero_copy_only=False)))
    elif numbers and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        good = _most_in_range(known.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    return good / len(column) if len(column) else 0.0


def _unit_of(values: NDArray[np.float64]) -> str:
    """The unit that puts most values into its range; empty where none puts any."""
    counts = {unit: _in_range(values, unit) for unit in _UNIT_RANGES}
    unit = max(counts, key=lambda name: counts[name])
    return unit if counts[unit] else ""


def _most_in_range(values: NDArray[np.float64]) -> int:
    unit = _unit_of(values)
    return _in_range(values, unit) if unit else 0


def _in_range(values: NDArray[np.float64] | NDArray[np.int64], unit: str) -> int:
    low, high = _UNIT_RANGES[unit]
    return int(((values >= low) & (values <= high)).sum())


def _says_numbers(column: pa.Array) -> bool:
    """Whether more of the first texts are numbers than dates."""
    head = column.slice(0, 1000)
    numbers = _count(pc.match_substring_regex(head, _NUMBER))
    return numbers > 0 and numbers >= _count(pc.match_substring_regex(head, _ISO_DATE))


def _parse_times(column: pa.Array, origin: Origin) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(column)
    # As BigQuery writes a zone; a blank before an offset; and finer than a microsecond.
    texts = pc.replace_substring_regex(trimmed, r"\s*UTC$", "Z")
    texts = pc.replace_substring_regex(texts, r"(:\d\d(?:[.,]\d+)?) ([+-]\d\d:?\d\d)$", r"\1\2")
    texts = pc.replace_substring_regex(texts, r"(:\d\d)[.,](\d{1,6})\d*", r"\1.\2")
    for kind in _KINDS:
        for form in (column, trimmed, texts):
            with contextlib.suppress(pa.ArrowInvalid):
                return form.cast(kind)
    longest = max(_num_read(texts, kind) for kind in _KINDS)
    value = column[longest].as_py()
    if any(_num_read(texts.slice(longest, 1), kind) for kind in _KINDS):
        first = pc.index(pc.is_valid(column), True).as_py()
        raise DataError(
            f"{origin.row(longest)}: all times must name their zone or none of them, got {value!r} "
            f"after {column[first].as_py()!r} in row {origin.first_row + first + 1}. Write all in "
            f"one way; those without a zone count as UTC."
        )
    raise DataError(
        f"{origin.row(longest)}: a time must be ISO 8601, such as 2024-01-31 10:00:00, or a number "
        f"since 1970, got {value!r}. {_ADVICE}"
    )


def _num_read(texts: pa.Array, kind: pa.DataType) -> int:
    """How many of the first texts can be cast."""
    low, high = 0, len(texts) + 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            texts.slice(low, middle - low).cast(kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _integers(column: pa.Array) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return values
