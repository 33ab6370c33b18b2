"""Which column is the time of the row, and which others may be."""

import re
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from tamis.data.columns import is_list, is_stringlike, unusable
from tamis.data.text_columns import share_of
from tamis.data.times import share_of_times

# Nearly all: a few bad values do not change what a column is; ingest names them.
_NEARLY_ALL = 0.95
_TIME_NAME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|hour_ts|event_time)($|_)", re.I)
# A date without a time of day is as often that of a birth or a release.
_DAY_NAME = re.compile(
    r"^((event|log|request|impression|view|click)_?)?(date|day|dt|ds|time)$", re.I
)
_DATE_LIKE = r"^\s*\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{1,2}:\d{2}"


def time_role(columns: Mapping[str, pa.Array]) -> str:
    """The column of times; empty where there is none.

    A value that is no time does not make the column something else: ingest names its row.
    """
    shares = {}
    for name, column in columns.items():
        named, dated = bool(_TIME_NAME.search(name)), bool(_DAY_NAME.search(name))
        share = share_of_times(column, numbers=named, dates=dated)
        if share < (0.5 if named or dated else _NEARLY_ALL) or _num_distinct(column) < 2:
            continue
        if share >= _NEARLY_ALL:
            return name
        shares[name] = share
    return max(shares, key=lambda name: shares[name], default="")


def time_doubts(columns: Mapping[str, pa.Array]) -> dict[str, str]:
    """A warning for each column that is named like a time and was not taken for one."""
    doubts = {}
    for name, column in columns.items():
        known = column.drop_null()
        if not _TIME_NAME.search(name) or not len(known) or unusable(known.type):
            continue
        if is_list(known.type) or _num_distinct(column) < 2:
            continue
        share = share_of_times(column, numbers=True, dates=True)
        doubts[name] = (
            f"{name}: named like a time, but {share:.0%} of its values can be read as one (such as "
            f"{known[0].as_py()!r}), so that roles.time is empty and rows are split at random; "
            f"if rows should be split by it, write it as ISO 8601 or a number since 1970"
            if share < 0.5
            else f"{name}: may be the time of the row, or of something else; roles.time is empty "
            f"and rows are split at random; set roles.time = {name!r} if rows should be split by it"
        )
    return doubts


def is_unread_date(column: pa.Array) -> bool:
    """Whether a column holds dates or times of a form that cannot be read."""
    if not is_stringlike(column.type) or share_of_times(column, numbers=True, dates=True) >= 0.5:
        return False
    return share_of(column.drop_null(), _DATE_LIKE) >= 0.5


def _num_distinct(column: pa.Array) -> int:
    if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
        return 0
    return int(pc.count_distinct(column).as_py())
