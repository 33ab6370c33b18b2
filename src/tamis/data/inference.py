"""A schema from the data alone: what each column is, and why we think so."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.columns import as_categories, as_floats, combined, is_stringlike, time_unit_of
from tamis.data.readers import discover, sample_table
from tamis.data.schema import Field, Ignored, Roles, Schema, Task
from tamis.errors import DataError
from tamis.evaluation import auc

_SAMPLE_ROWS = 50_000
_LABEL_NAMES = ("click", "clicked", "is_click", "label", "y", "target")
_TIME_NAME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|hour_ts|event_time)($|_)", re.I)
_USER_NAME = re.compile(r"^(user|uid|user_?id|customer_?id|member_?id|visitor_?id)$", re.I)
_ITEM_NAME = re.compile(r"^(item|iid|item_?id|ad|ad_?id|movie_?id|product_?id|video_?id)$", re.I)
_REQUEST_NAME = re.compile(r"^(request|session|query|impression_?group)_?id$", re.I)
_ID_NAME = re.compile(r"(^|_)(id|key|code|hash)$|id$", re.I)
_SEPARATORS = "|,;"
# A column this good on its own tells the label rather than predicts it.
_LEAK_AUC = 0.995
_FEW_VALUES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class InferredSchema:
    """A guess, to be read and edited."""

    schema: Schema
    """The schema; each field has its reason."""
    warnings: tuple[str, ...]
    """What a person should look at: leaks, constants, columns left out."""


def infer_schema(
    source: Path | str | Sequence[Path | str], labels: Sequence[str] = ()
) -> InferredSchema:
    """Infer a schema from the first rows of a log.

    Args:
        source: A log file, several, or a folder of them.
        labels: Label columns; without any, a column with a usual name is taken.

    Raises:
        DataError: The log cannot be read, a label is not there, or no column is left as input.
    """
    files = discover(source)
    table = sample_table(files[0], rows=_SAMPLE_ROWS)
    where = str(files[0].path)
    chosen = list(labels) or _guess_label(table, where)
    for label in chosen:
        if label not in table.column_names:
            raise DataError(
                f"{where}: must hold the label column {label!r}, got "
                f"{', '.join(table.column_names)}. Name the right one with --label."
            )
    tasks = tuple(_task(name, table, where) for name in chosen)
    target = _target(table, tasks[0], where)
    roles, warnings, fields, ignored = Roles(), [], [], []
    for name in table.column_names:
        if name in chosen:
            continue
        column = combined(table[name])
        roles, is_time = _assign_role(roles, name, column)
        if is_time:
            ignored.append(Ignored(column=name, reason="the time of the impression; splits use it"))
        elif reason := _reason_to_ignore(name, column, target):
            warnings.append(f"{name}: left out, {reason}")
            ignored.append(Ignored(column=name, reason=reason))
        else:
            fields.append(_infer_field(name, column))
    if not fields:
        raise DataError(
            f"{where}: must hold a column that can be an input, got none beside the labels: "
            f"{'; '.join(warnings) or 'there are no other columns'}."
        )
    schema = Schema(fields=tuple(fields), tasks=tasks, roles=roles, ignored=tuple(ignored))
    return InferredSchema(schema=schema, warnings=tuple(warnings))


def _guess_label(table: pa.Table, where: str) -> list[str]:
    by_lower = {name.lower(): name for name in table.column_names}
    for name in _LABEL_NAMES:
        if name in by_lower:
            return [by_lower[name]]
    raise DataError(
        f"{where}: must hold a label column named {', '.join(_LABEL_NAMES)}, got "
        f"{', '.join(table.column_names)}. Name it with --label."
    )


def _task(name: str, table: pa.Table, where: str) -> Task:
    values = as_floats(combined(table[name]), where=f"{where}, column {name!r}")
    known = values[~np.isnan(values)]
    if not len(known):
        raise DataError(f"{where}, column {name!r}: a label must have values, got none.")
    distinct = np.unique(known)
    if np.isin(distinct, (0.0, 1.0)).all():
        return Task(name=name)
    if len(distinct) == 2:
        raise DataError(
            f"{where}, column {name!r}: a binary label must be 0 or 1, got {distinct[0]:g} and "
            f"{distinct[1]:g}. Map them to 0 and 1."
        )
    return Task(name=name, kind="regression")


def _target(table: pa.Table, task: Task, where: str) -> NDArray[np.float64] | None:
    """Labels (n,) for the leakage check, or None where it has no meaning."""
    values = as_floats(combined(table[task.name]), where=where)
    if task.kind != "binary" or np.isnan(values).any() or len(np.unique(values)) < 2:
        return None
    return values


def _assign_role(roles: Roles, name: str, column: pa.Array) -> tuple[Roles, bool]:
    if not roles.time and _looks_like_time(name, column):
        return replace(roles, time=name), True
    if not roles.user and _USER_NAME.search(name):
        return replace(roles, user=name), False
    if not roles.item and _ITEM_NAME.search(name):
        return replace(roles, item=name), False
    if not roles.request and _REQUEST_NAME.search(name):
        return replace(roles, request=name), False
    return roles, False


def _looks_like_time(name: str, column: pa.Array) -> bool:
    if column.null_count:
        return False
    if pa.types.is_timestamp(column.type):
        return True
    if not _TIME_NAME.search(name) or pa.types.is_boolean(column.type):
        return False
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        try:
            time_unit_of(float(pc.min(column).as_py()), where=name)
        except DataError:
            return False
        return True
    if not is_stringlike(column.type):
        return False
    try:
        column.slice(0, 1000).cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return False
    return True


def _reason_to_ignore(
    name: str, column: pa.Array, target: NDArray[np.float64] | None
) -> str | None:
    """Why a column cannot be an input, or None."""
    if pa.types.is_nested(column.type):
        return None
    distinct = int(pc.count_distinct(column, mode="all").as_py())
    if distinct <= 1:
        return "it has one value only"
    all_different = distinct >= 0.95 * len(column) and len(column) >= 100
    is_number = pa.types.is_floating(column.type)
    is_prose = is_stringlike(column.type) and _mean_words(column) >= 3
    if all_different and not (is_number or is_prose or _USER_NAME.search(name)):
        return "nearly every row has another value"
    if target is not None:
        strength = _strength(column, target)
        if strength >= _LEAK_AUC:
            return (
                f"it gives the label away (AUC {strength:.3f} on its own); add it to the "
                f"schema if it is known before the label"
            )
    return None


def _strength(column: pa.Array, target: NDArray[np.float64]) -> float:
    """AUC that a column reaches alone, in [0.5, 1]: as a number, and as a category.

    A category's score is the label rate of the other half of the rows, so that a category seen
    once does not look like a leak.
    """
    scores = []
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = as_floats(column, where="")
        scores.append(np.where(np.isfinite(values), values, np.nanmin(values) - 1))
    codes = as_categories(column).codes + 1
    half = np.arange(len(codes)) % 2 == 0
    rates = np.full(len(codes), 0.5)
    for fit in (half, ~half):
        counts = np.bincount(codes[fit], minlength=codes.max() + 1)
        positives = np.bincount(codes[fit], weights=target[fit], minlength=codes.max() + 1)
        rate = (positives + target.mean()) / (counts + 1)
        rates[~fit] = rate[codes[~fit]]
    scores.append(rates)
    reached = [auc(target, score) for score in scores]
    return max(max(value, 1 - value) for value in reached)


def _infer_field(name: str, column: pa.Array) -> Field:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return Field(name=name, kind="sequence", reason="a list column")
    distinct = int(pc.count_distinct(column).as_py())
    if is_stringlike(kind):
        return _infer_text_field(name, column, distinct)
    if pa.types.is_boolean(kind):
        return Field(name=name, kind="categorical", reason="true or false")
    if pa.types.is_integer(kind):
        if _ID_NAME.search(name) or _USER_NAME.search(name) or _ITEM_NAME.search(name):
            return Field(name=name, kind="categorical", reason="integers named like an id")
        if distinct <= _FEW_VALUES:
            return Field(name=name, kind="categorical", reason=f"integers, {distinct} values")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Field(name=name, kind="categorical", reason="a date beside the time column")
    values = as_floats(column, where=name)
    finite = values[np.isfinite(values)]
    # Counts and amounts: never negative, and a tail far above the middle.
    if len(finite) and finite.min() >= 0 and finite.max() > 20 * max(np.median(finite), 1e-12):
        return Field(name=name, kind="numeric", transform="log", reason="numbers with a long tail")
    return Field(name=name, kind="numeric", reason=f"numbers, {distinct} values")


def _infer_text_field(name: str, column: pa.Array, distinct: int) -> Field:
    texts = column.drop_null()
    for separator in _SEPARATORS:
        share = pc.mean(pc.cast(pc.match_substring(texts, separator), pa.float64())).as_py() or 0.0
        if share < 0.3:
            continue
        parts = pc.split_pattern(texts, separator).flatten()
        words = int(pc.count_distinct(parts).as_py())
        if words <= 2 * distinct and words < 0.5 * len(parts):
            reason = f"strings of {words} different parts between {separator!r}"
            return Field(name=name, kind="sequence", separator=separator, reason=reason)
    if _mean_words(column) >= 4 and distinct > _FEW_VALUES:
        return Field(
            name=name,
            kind="text",
            encoding="hashing",
            num_buckets=1 << 16,
            max_length=64,
            reason="long strings of words",
        )
    return Field(name=name, kind="categorical", reason=f"strings, {distinct} values")


def _mean_words(column: pa.Array) -> float:
    spaces = pc.count_substring(column.drop_null(), " ")
    return float(pc.mean(spaces).as_py() or 0.0) + 1.0
