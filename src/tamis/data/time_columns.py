"""Which column is the time of the row, and which others may be."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.data.columns import is_list, is_stringlike, unusable
from tamis.data.id_columns import are_ids
from tamis.data.splits import SplitWay
from tamis.data.text_columns import share_of
from tamis.data.times import share_of_times

# Nearly all: a few bad values do not change what a column is; ingest names them.
_NEARLY_ALL = 0.95
_TIME_NAME = re.compile(
    r"(^|_)(time|timestamp|ts|date|datetime|hour_ts|event_time|when)($|_)", re.I
)
# A date without a time of day is as often that of a birth or a release.
_DAY_NAME = re.compile(
    r"^((event|log|request|impression|view|click)_?)?(date|day|dt|ds|time)$", re.I
)
_DATE_LIKE = r"^\s*\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{1,2}:\d{2}"
_CLOCK = r"\d{1,2}:\d{2}"
_ISO_LIKE = r"^\s*\d{4}-\d\d-\d\d(?:[T ]|\s*$)"
# Forms that are not read, in columns of any name: 31/01/2024, 2024/01/31, 31 Jan 2024, Jan 31,
# 20240131 and 20240131235959. Without a year of today's, versions and addresses would look so.
_YEAR = r"(?:19|20)\d\d"
_MONTH = (
    r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_UNREAD = (
    rf"^\s*(?:\d{{1,2}}[./-]\d{{1,2}}[./-]{_YEAR}\b|{_YEAR}[./]\d\d[./]\d\d\b)"
    rf"|\b\d{{1,2}}[ /-]{_MONTH}[ /-]{_YEAR}\b|\b{_MONTH} +\d{{1,2}}\b"
    rf"|^{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:(?:[01]\d|2[0-3])(?:[0-5]\d){{0,2}})?$"
)
# Numbers of any name are times only where they lie as close together as those of a log.
_SECONDS_2000 = 946_684_800.0
_FARTHEST = 1.3
_LEAST_MILLISECONDS = 1e11


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeDoubt:
    """What is said of a column that may be the time, where none was taken for it."""

    text: str
    """What may be, and what to do."""
    is_left_out: bool
    """Whether it holds times that cannot be read, and so serves as no input."""


def times_of(columns: Mapping[str, pa.Array]) -> list[str]:
    """The columns of times, that of the row first.

    A value that is no time does not make the column something else: ingest names its row. Of
    several columns it is the one whose times rise from row to row, or the one with most different
    times: a day, or when a user signed up, has fewer.
    """
    whole, shares = {}, {}
    for name, column in columns.items():
        named, dated = bool(_TIME_NAME.search(name)), bool(_DAY_NAME.search(name))
        share = share_of_times(column, numbers=named, dates=dated)
        if share < (0.5 if named or dated else _NEARLY_ALL) or _num_distinct(column) < 2:
            continue
        if _is_unread(column.drop_null()):
            continue
        if share >= _NEARLY_ALL:
            whole[name] = _order_and_number(column)
        else:
            shares[name] = share
    return [
        *sorted(whole, key=lambda name: whole[name], reverse=True),
        *sorted(shares, key=lambda name: shares[name], reverse=True),
    ]


def time_doubts(columns: Mapping[str, pa.Array], by: SplitWay) -> dict[str, TimeDoubt]:
    """Doubts about columns that are named like a time or hold what looks like times.

    Args:
        columns: The sample by name, none of which was taken for the time.
        by: How rows will be split.
    """
    found = {name: _doubt(name, column, by) for name, column in columns.items()}
    return {name: doubt for name, doubt in found.items() if doubt is not None}


def without_time(by: SplitWay) -> str:
    """What it means for a way to split that there is no time; empty where it needs none."""
    if by == "auto":
        return "rows are split at random"
    return "rows cannot be split by time" if by == "time" else ""


def _doubt(name: str, column: pa.Array, by: SplitWay) -> TimeDoubt | None:
    known = column.drop_null()
    if not len(known) or unusable(known.type) or is_list(known.type) or _num_distinct(column) < 2:
        return None
    named = bool(_TIME_NAME.search(name))
    share = share_of_times(column, numbers=True, dates=True)
    are_like_times = share >= _NEARLY_ALL and _are_close(known)
    is_unread = _share_unread(known) >= _NEARLY_ALL and (share < 0.5 or _are_to_come(known))
    if not named and (are_ids(name, known) or not (are_like_times or is_unread)):
        return None
    meaning = without_time(by)
    is_empty = "roles.time is empty" + (f" and {meaning}" if meaning else "")
    if share >= 0.5 and not is_unread:
        text = (
            f"may be the time of the row, or of something else; {is_empty}; set roles.time = "
            f"{name!r} if it is the row's"
        )
        return TimeDoubt(text=text, is_left_out=False)
    is_text, is_dated = is_stringlike(known.type), pa.types.is_temporal(known.type)
    first = (known.slice(0, 1).cast(pa.string()) if is_dated else known)[0].as_py()
    share, form = 0.0 if is_unread else share, "ISO 8601 or a number since 1970"
    inside = share_of_times(known, numbers=True, dates=True)
    if not is_unread and inside < 0.5 and _may_be_of_any_year(known):
        form += ", between 1973 and 2128"
        what = (
            f"named like a time, but {1 - inside:.0%} of its values lie outside of 1973 to 2128 "
            f"(the first is {first!r})"
        )
    elif named:
        what = (
            f"named like a time, but {share:.0%} of its values can be read as one (such as "
            f"{first!r})"
        )
    else:
        what = f"looks like a time of a form that is not read (such as {first!r})"
    text = f"{what}, so that {is_empty}; if it is the time of the row, write it as {form}"
    pattern = _DATE_LIKE if named else _CLOCK
    return TimeDoubt(text=text, is_left_out=is_text and share_of(known, pattern) >= 0.5)


def _may_be_of_any_year(known: pa.Array) -> bool:
    """Whether values are written as times are, though these may be of another age."""
    kind, types = known.type, pa.types
    if is_stringlike(kind):
        return share_of(known, _ISO_LIKE) >= _NEARLY_ALL
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_temporal(kind))


def _are_close(known: pa.Array) -> bool:
    """Whether numbers since 1970 are of one age, ours; other times always are."""
    if is_stringlike(known.type):
        return share_of_times(known, numbers=False, dates=True) >= _NEARLY_ALL
    if not (pa.types.is_integer(known.type) or pa.types.is_floating(known.type)):
        return True
    values = known.filter(pc.is_finite(known)).cast(pa.float64(), safe=False).to_numpy()
    low, high = np.quantile(values, (0.05, 0.95))
    is_ours = low >= _SECONDS_2000 and (high <= time.time() or high >= _LEAST_MILLISECONDS)
    return bool(high <= _FARTHEST * low and is_ours)


def _order_and_number(column: pa.Array) -> tuple[bool, int]:
    """Whether times rise from row to row, but for a few, and how many different ones there are."""
    known = column.drop_null()
    later, earlier = known.slice(1), known.slice(0, max(0, len(known) - 1))
    rises = pc.mean(pc.greater_equal(later, earlier).cast(pa.float64())).as_py() or 0.0
    return rises >= _NEARLY_ALL, _num_distinct(column)


def _is_unread(known: pa.Array) -> bool:
    """Whether whole numbers are days and hours written in digits, and not times since 1970."""
    return _share_unread(known) >= _NEARLY_ALL and _are_to_come(known)


def _are_to_come(known: pa.Array) -> bool:
    """Whether whole numbers, as seconds since 1970, are all later than today: 2024013110, say."""
    return bool(pa.types.is_integer(known.type) and pc.min(known).as_py() > time.time())


def _share_unread(known: pa.Array) -> float:
    if is_stringlike(known.type):
        return share_of(known, _UNREAD)
    return share_of(known.cast(pa.string()), _UNREAD) if pa.types.is_integer(known.type) else 0.0


def _num_distinct(column: pa.Array) -> int:
    if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
        return 0
    return int(pc.count_distinct(column).as_py())
