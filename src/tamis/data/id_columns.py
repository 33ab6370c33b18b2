"""Columns of ids: what is one, whose, and what may be wrong with them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.data.columns import as_categories, is_list, unusable
from tamis.data.schema import Roles

_USER_NAME = re.compile(r"^(user|uid|user_?id|customer_?id|member_?id|visitor_?id)$", re.I)
_ITEM_NAME = re.compile(r"^(item|iid|item_?id|ad|ad_?id|movie_?id|product_?id|video_?id)$", re.I)
_REQUEST_NAME = re.compile(r"^(request|session|query|impression_?group)_?id$", re.I)
# These may be a count of visits, or number rows, as well.
_MAYBE_REQUEST_NAME = re.compile(
    r"^((request|visit|impression|page_?view|slate|auction|session)(_?id)?|search_?id)$", re.I
)
_NEARLY_ALL = 0.95
# A request with so many rows on average, or with little more than one, groups nothing.
_MOST_ROWS, _LEAST_ROWS = 100, 1.05
_LEAST_GROUPS = 5
_ID_NAME = re.compile(r"(^|_)(id|key|code|hash)$|id$", re.I)
# From here on a float stands for several whole numbers.
_LEAST_ROUNDED = 2.0**53


def with_role(roles: Roles, name: str, column: pa.Array) -> Roles:
    """The roles with user or item, where a column's name says it and none has it yet."""
    if pa.types.is_nested(column.type):  # A row is of one user and one item.
        return roles
    if not roles.user and _USER_NAME.search(name):
        return replace(roles, user=name)
    if not roles.item and _ITEM_NAME.search(name):
        return replace(roles, item=name)
    return roles


def request_of(columns: Mapping[str, pa.Array]) -> str:
    """The column that names the request of each row; empty where there is none.

    A name that other columns have as well counts where all rows of a value stand together.
    """
    sure = (
        name
        for name, column in columns.items()
        if _REQUEST_NAME.search(name) and not pa.types.is_nested(column.type)
    )
    likely = (n for n in columns if _MAYBE_REQUEST_NAME.search(n) and _groups_rows(columns[n]))
    return next(sure, "") or next(likely, "")


def _groups_rows(column: pa.Array) -> bool:
    """Whether rows of one value nearly always follow one another, a few for each value."""
    if pa.types.is_floating(column.type) or is_list(column.type) or unusable(column.type):
        return False
    codes = as_categories(column).codes
    count = len(np.unique(codes))
    num_runs = 1 + int((np.diff(codes) != 0).sum())
    are_together = _NEARLY_ALL * num_runs <= count
    return (
        are_together and count >= _LEAST_GROUPS and _LEAST_ROWS <= len(codes) / count <= _MOST_ROWS
    )


def is_named_like_a_user(name: str) -> bool:
    """Whether a column is named like the id of a user."""
    return bool(_USER_NAME.search(name))


def are_ids(name: str, column: pa.Array) -> bool:
    """Whether a column holds whole numbers and is named like an id.

    They may be floats: pandas writes integers so where some are missing.
    """
    if not any(pattern.search(name) for pattern in (_ID_NAME, _USER_NAME, _ITEM_NAME)):
        return False
    if not pa.types.is_floating(column.type):
        return bool(pa.types.is_integer(column.type))
    finite = column.filter(pc.is_finite(column))
    return len(finite) > 0 and bool(pc.all(pc.equal(pc.round(finite), finite)).as_py())


def id_doubts(name: str, column: pa.Array, *, is_of_text: bool) -> Iterator[str]:
    """Warnings for ids, or lists of them, that floats do not tell apart as their texts would.

    Args:
        name: The column's.
        column: The sample of it.
        is_of_text: Whether it comes of a text file, where a float is a category as it is written.
    """
    values = column.flatten() if is_list(column.type) else column
    if not pa.types.is_floating(values.type) or not (values is not column or are_ids(name, column)):
        return
    finite = values.filter(pc.is_finite(values))
    if len(finite) and pc.max(pc.abs(finite)).as_py() >= _LEAST_ROUNDED:
        yield (
            f"{name}: holds whole numbers of 2^53 and more as floats, in which ids that differ may "
            f"be one; write them as integers or texts"
        )
    if is_of_text:
        yield (
            f"{name}: holds ids with a decimal point or an exponent, and 12.0 is another category "
            f"than 12; write all ids in digits, in requests as well"
        )
