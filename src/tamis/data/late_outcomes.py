"""Columns that may hold what came of an impression, which no model knows before the label."""

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.columns import Origin, as_categories, as_floats, is_list

_OUTCOME = re.compile(
    r"(^|_)(is_?)?(clicks?|clicked|convert|converted|conversions?|purchase|purchased|buy|bought|"
    r"orders?|ordered|paid|payment|checkout|hide|hidden|skip|skipped|dwell|dwell_time|watch_time|"
    r"install|installed|like|liked|label)($|_)",
    re.I,
)
# What happened before is known: 'orders_30d', 'past_clicks', 'order_count'.
_KNOWN = re.compile(
    r"(^|_)(hist\w*|past|prev\w*|last|recent|seq\w*|list|avg|mean|rate|ctr|count|cnt|num|n|user|"
    r"\d+\w?|id|type|category)($|_)",
    re.I,
)
_FEW_VALUES = 64
_LEAST_ROWS = 20
# Chance that any value of a column looks so although it says nothing of the label.
_CHANCE = 1e-4


def is_named_like_an_outcome(name: str) -> bool:
    """Whether a column is named like an outcome of the impression."""
    return bool(_OUTCOME.search(name)) and not _KNOWN.search(name)


def value_of_one_label(column: pa.Array, target: NDArray[np.float64]) -> str:
    """A frequent value of a column whose rows all have one label, in words; empty without one.

    Values that are missing are a value too, and so are all that are neither missing nor 0 together.

    Args:
        column: The sample of an input.
        target: (n,) labels of 0 and 1, of both kinds.
    """
    if is_list(column.type):
        return ""
    categories = as_categories(column)
    names = [repr(text) for text in categories.values.to_pylist()]
    if len(names) <= _FEW_VALUES:
        found = _pure(categories.codes + 1, ["missing", *names], target)
        if found:
            return found
    kinds = (categories.codes >= 0).astype(np.int64)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = as_floats(column, origin=Origin(file=""))
        kinds[np.isfinite(values) & (values != 0)] = 2
        return _pure(kinds, ["missing", "0", "not 0"], target)
    return _pure(kinds, ["missing", "not missing"], target)


def _pure(codes: NDArray[np.int64], names: list[str], target: NDArray[np.float64]) -> str:
    counts = np.bincount(codes, minlength=len(names))
    positives = np.bincount(codes, weights=target, minlength=len(names))
    used = int((counts > 0).sum())
    if used < 2:
        return ""
    base = target.mean()
    for label, rate in ((0, 1 - base), (1, base)):
        pure = (positives == label * counts) & (counts >= _LEAST_ROWS)
        unlikely = counts * np.log(rate) < np.log(_CHANCE / used)
        if (pure & unlikely).any():
            place = int(np.argmax(np.where(pure & unlikely, counts, 0)))
            return f"all {counts[place]:,} rows where it is {names[place]} have label {label}"
    return ""
