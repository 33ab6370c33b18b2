"""A schema from the data alone: what each column is, and why we think so."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.columns import (
    TRUTH_WORDS,
    Origin,
    as_categories,
    as_floats,
    decoded,
    is_list,
    is_stringlike,
    plain,
    unusable,
)
from tamis.data.encoders import split_events
from tamis.data.hashing import hash_integers
from tamis.data.history_links import link_histories, number_doubts, separated_by_blanks
from tamis.data.id_columns import are_ids, id_doubts, is_named_like_a_user, request_of, with_role
from tamis.data.late_outcomes import is_named_like_an_outcome, value_of_one_label
from tamis.data.read_errors import lacks_column, listed
from tamis.data.readers import LogFile, discover
from tamis.data.sampling import sample_files
from tamis.data.schema import Field, Ignored, Roles, Schema, Task, with_free_names
from tamis.data.splits import SplitConfig
from tamis.data.text_columns import (
    infer_text_field,
    is_separated,
    mean_words,
    number_doubt,
)
from tamis.data.time_columns import time_doubts, times_of
from tamis.errors import DataError
from tamis.evaluation import auc

_SAMPLE_ROWS = 50_000
_LABEL_NAMES = ("click", "clicked", "is_click", "label", "y", "target")
# What pandas calls an index that it writes beside the columns; CSV files leave it without a name.
_NUMBERS_ROWS = re.compile(r"^$|^__index_level_\d+__$|^Unnamed: \d+$")
# A column this good on its own tells the label rather than predicts it.
_LEAK_AUC = 0.995
_FEW_VALUES = 64
# A label of at most so many whole values, nearly all of them 0 or 1, is meant to be binary.
_FEW_LABELS = 10
_MOSTLY_BINARY = 0.9
# A share of rows that is worth a word.
_OFTEN = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class InferredSchema:
    """A guess, to be read and edited."""

    schema: Schema
    """The schema; each field has its reason."""
    warnings: tuple[str, ...]
    """What a person should look at: leaks, constants, columns left out."""
    times: tuple[str, ...] = ()
    """Columns that may be the time, where none was taken for it; each is warned of."""


def infer_schema(
    source: Path | str | Sequence[Path | str],
    labels: Sequence[str] = (),
    *,
    split: SplitConfig | None = None,
) -> InferredSchema:
    """Infer a schema from the first rows of a log's first file, and of two others of several.

    Args:
        source: A log file, several, or a folder of them.
        labels: Label columns; without any, a column with a usual name is taken.
        split: How its rows will be split; a column that says so is no input. None: by time, or at
            random.

    Raises:
        DataError: The log cannot be read, a label is not there, or no column is left as input.
    """
    split = split or SplitConfig()
    samples = [
        (file, _readable(table))
        for file, table in sample_files(discover(source), rows=_SAMPLE_ROWS)
    ]
    file, table = samples[0]
    origin = Origin(file=str(file.path))
    warnings: list[str] = []
    chosen = list(labels) or [_guess_label(table, origin, warnings)]
    for label in chosen:
        if label not in table.column_names:
            what, advice = "the label column", "Name the right one as the label."
            names = table.column_names
            raise DataError(lacks_column(label, names, where=str(origin), what=what, advice=advice))
    tasks = tuple(_task(name, table, origin.of(name), warnings) for name in chosen)
    table = _together(samples, chosen, warnings)
    target = _target(table, tasks[0], origin.of(chosen[0]))
    columns = {n: table[n].chunk(0) for n in table.column_names if n not in chosen}
    time, *others = times_of(columns) or [""]
    warnings += [
        f"{name}: may be the time of the row too; roles.time is {time!r}, set it to {name!r} if "
        f"that says when a row was logged"
        for name in others
    ]
    doubts = {} if time else time_doubts(columns, split.by)
    spaced = separated_by_blanks(columns)
    roles, fields, ignored = Roles(time=time, request=request_of(columns)), [], []
    for name, column in columns.items():
        if time and name == time:
            ignored.append(Ignored(column=name, reason="the time of the impression; splits use it"))
            continue
        if split.column and name == split.column:
            ignored.append(Ignored(column=name, reason="says which split a row belongs to"))
            continue
        doubt = doubts.get(name)
        roles = with_role(roles, name, column)
        warnings += id_doubts(name, column, is_of_text=file.format == "csv")
        if roles.request and name == roles.request:
            ignored.append(Ignored(column=name, reason="groups rows, not an input"))
        elif _NUMBERS_ROWS.search(name):
            what = name or "a column without a name"
            warnings.append(f"{what}: left out, it is named like an index, which numbers rows")
            ignored.append(Ignored(column=name, reason="numbers rows"))
        elif doubt is not None and doubt.is_left_out:
            warnings.append(f"{name}: left out, {doubt.text}")
            ignored.append(Ignored(column=name, reason="a date or time of no known form"))
        elif name not in spaced and (reason := _reason_to_ignore(name, column, target)):
            more = "" if doubt is None else f"; {doubt.text}"
            warnings.append(f"{name}: left out, {reason}{more}")
            ignored.append(Ignored(column=name, reason=reason))
        else:
            if doubt is not None:
                warnings.append(f"{name}: {doubt.text}")
            fields.append(spaced.get(name) or _infer_field(name, column, warnings))
            warnings += _outcome_doubts(name, column, target)
    if not fields:
        raise DataError(
            f"{origin}: must hold a column that can be an input, got none beside the labels: "
            f"{'; '.join(warnings) or 'there are no other columns'}. Add columns to the log."
        )
    inputs = with_free_names(link_histories(table, fields, roles))
    warnings += _name_doubts(inputs)
    warnings += number_doubts(table, inputs)
    warnings += _length_doubts(table, inputs)
    schema = Schema(fields=inputs, tasks=tasks, roles=roles, ignored=tuple(ignored))
    return InferredSchema(schema=schema, warnings=tuple(warnings), times=tuple(doubts))


def _together(
    samples: Sequence[tuple[LogFile, pa.Table]], labels: Sequence[str], warnings: list[str]
) -> pa.Table:
    """Samples of several files as one, with the columns of the first.

    Where types do not go together it is the first alone: ingest reads each column in one type, and
    says what does not fit.

    Args:
        samples: Of each file; the labels of the first are checked.
        labels: Names of the label columns.
        warnings: Columns that the first file lacks are added to it.

    Raises:
        DataError: A label is no number; its own file and row are named.
    """
    first, table = samples[0]
    has: dict[str, Path] = {}
    for file, other in samples[1:]:
        for name in labels:
            if name in other.column_names:
                _label_values(other[name].chunk(0), Origin(file=str(file.path)).of(name))
        for name in other.column_names:
            has.setdefault(name, file.path)
    warnings += [
        f"{name}: left out, {path.name} has it and {first.path.name} has not"
        for name, path in has.items()
        if name not in table.column_names
    ]
    tables = [
        other.select([name for name in table.column_names if name in other.column_names])
        for _, other in samples
    ]
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return table


def _readable(table: pa.Table) -> pa.Table:
    """The sample with every column in one chunk of a plain type."""
    columns = {name: decoded(plain(table[name])) for name in table.column_names}
    for name, column in columns.items():
        if pa.types.is_null(table[name].type):
            columns[name] = pa.nulls(len(column))
        elif pa.types.is_decimal(column.type):
            columns[name] = _plain_decimals(column)
    return pa.table(columns)


def _plain_decimals(column: pa.Array) -> pa.Array:
    """Decimals as integers where they are whole, as texts where 64 bits do not hold these."""
    if column.type.scale:
        return column.cast(pa.float64())
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.string())


def _guess_label(table: pa.Table, origin: Origin, warnings: list[str]) -> str:
    by_lower = {name.lower(): name for name in table.column_names}
    found: list[str] = [by_lower[name] for name in _LABEL_NAMES if name in by_lower]
    if found:
        others = [name for name in table.column_names if name != found[0]]
        others = [name for name in others if name in found or is_named_like_an_outcome(name)]
        if others:
            warnings.append(
                f"{found[0]}: taken as the label, though {', '.join(others)} may be it too; name "
                f"the right one as a label, or several"
            )
        return found[0]
    raise DataError(
        f"{origin}: must hold a label column named {', '.join(_LABEL_NAMES)}, got "
        f"{listed(table.column_names)}. Name it as the label."
    )


def _task(name: str, table: pa.Table, origin: Origin, warnings: list[str]) -> Task:
    column = table[name].chunk(0)
    if column.null_count == len(column):
        raise DataError(f"{origin}: a label must have values, got none. Name another as the label.")
    values = _label_values(column, origin)
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    is_binary = np.isin(distinct, (0.0, 1.0))
    whole = bool((distinct == np.round(distinct)).all())
    few = len(distinct) <= _FEW_LABELS and whole
    if few and counts[is_binary].sum() >= _MOSTLY_BINARY * counts.sum():
        return Task(name=name)
    if len(distinct) == 2:
        raise DataError(
            f"{origin}: a binary label must be 0 or 1, got {distinct[0]:g} and "
            f"{distinct[1]:g}. Map them to 0 and 1."
        )
    kind = "whole numbers" if whole else "numbers"
    warnings.append(
        f"{name}: taken as a regression label, since it holds {len(distinct)} different {kind} "
        f"from {distinct[0]:g} to {distinct[-1]:g}; if it should be binary, map it to 0 and 1"
    )
    return Task(name=name, kind="regression")


def _label_values(column: pa.Array, origin: Origin) -> NDArray[np.float64]:
    """Labels as numbers, whatever their size; what is no number is refused."""
    must, advice = "a label must be a number", "Map the labels to 0 and 1, or to numbers."
    return as_floats(column, origin=origin, must=must, advice=advice, words=TRUTH_WORDS)


def _target(table: pa.Table, task: Task, origin: Origin) -> NDArray[np.float64] | None:
    """Labels (n,) for the leakage check, or None where it has no meaning."""
    values = _label_values(table[task.name].chunk(0), origin)
    if task.kind != "binary" or not np.isin(values, (0.0, 1.0)).all() or len(np.unique(values)) < 2:
        return None
    return values


def _reason_to_ignore(
    name: str, column: pa.Array, target: NDArray[np.float64] | None
) -> str | None:
    """Why a column cannot be an input, or None."""
    if pa.types.is_null(column.type):
        return "it holds no value in any row"
    if why := unusable(column.type):
        return f"its type is {column.type}: {why}"
    if is_list(column.type):
        return None
    if pa.types.is_floating(column.type) and not pc.any(pc.is_finite(column)).as_py():
        return "it holds no finite number in any row"
    distinct = int(pc.count_distinct(column, mode="all").as_py())
    if distinct <= 1:
        return "it has one value only"
    all_different = distinct >= 0.95 * len(column) and len(column) >= 100
    if all_different and not _may_differ_everywhere(name, column):
        doubt = number_doubt(column) if is_stringlike(column.type) else ""
        return "nearly every row has another value" + (f", and {doubt}" if doubt else "")
    if target is not None:
        strength = _strength(column, target)
        if strength >= _LEAK_AUC:
            return (
                f"it gives the label away (AUC {strength:.3f} on its own); add it to the "
                f"schema if it is known before the label"
            )
    return None


def _outcome_doubts(
    name: str, column: pa.Array, target: NDArray[np.float64] | None
) -> Iterator[str]:
    """A warning for an input that may be known only after the label."""
    found = "" if target is None else value_of_one_label(column, target)
    if is_named_like_an_outcome(name):
        found = "its name is that of an outcome" + (f", and {found}" if found else "")
    if found:
        yield (
            f"{name}: taken as an input, but {found}; if it is known only after the label, ingest "
            f"with it under [[ignored]] of the schema, or as a label of its own"
        )


def _name_doubts(fields: Sequence[Field]) -> Iterator[str]:
    """A warning for a column that may be the weight of the row."""
    for field in fields:
        if field.column == "weight":
            yield (
                f"weight: taken as an input, named {field.name!r}; if it is what the row counts "
                f"for, set roles.weight = 'weight' in the schema and take the field out"
            )


def _length_doubts(table: pa.Table, fields: Sequence[Field]) -> Iterator[str]:
    """A warning for each history that is often longer than what is kept of it."""
    for field in fields:
        if field.is_jagged:
            events = split_events(table, field, origin=Origin(file=""))
            share = events.num_shortened / max(1, table.num_rows)
            if share >= _OFTEN:
                yield (
                    f"{field.name}: longer than {field.max_length} in {share:.0%} of the rows, of "
                    f"which the last {field.max_length} are kept; to keep more, set max_length"
                )


def _may_differ_everywhere(name: str, column: pa.Array) -> bool:
    """Whether a column is an input although nearly every row has another value."""
    if is_stringlike(column.type):
        is_read_in_parts = mean_words(column) >= 3 or is_separated(column)
        return is_read_in_parts or is_named_like_a_user(name)
    is_number = pa.types.is_floating(column.type) and not are_ids(name, column)
    return is_number or is_named_like_a_user(name)


def _strength(column: pa.Array, target: NDArray[np.float64]) -> float:
    """AUC that a column reaches alone, in [0.5, 1]: as a number, and as a category.

    A category's score is the label rate of the other half of the rows, so that a category seen
    once does not look like a leak.
    """
    scores = []
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = as_floats(column, origin=Origin(file=""))
        scores.append(np.where(np.isfinite(values), values, np.nanmin(values) - 1))
    codes = as_categories(column).codes + 1
    # Drawn, not every second row: labels may alternate.
    half = hash_integers(np.arange(len(codes))) % np.uint64(2) == 0
    rates = np.full(len(codes), 0.5)
    for fit in (half, ~half):
        counts = np.bincount(codes[fit], minlength=codes.max() + 1)
        positives = np.bincount(codes[fit], weights=target[fit], minlength=codes.max() + 1)
        rate = (positives + target.mean()) / (counts + 1)
        rates[~fit] = rate[codes[~fit]]
    scores.append(rates)
    reached = [auc(target, score) for score in scores]
    return max(max(value, 1 - value) for value in reached)


def _infer_field(name: str, column: pa.Array, warnings: list[str]) -> Field:
    kind = column.type
    if is_list(kind):
        return Field(name=name, kind="sequence", reason="a list column")
    distinct = int(pc.count_distinct(column).as_py())
    if is_stringlike(kind):
        return infer_text_field(name, column, warnings)
    if pa.types.is_boolean(kind):
        return Field(name=name, kind="categorical", reason="true or false")
    if are_ids(name, column):
        reason = "integers" if pa.types.is_integer(kind) else "whole numbers"
        return Field(name=name, kind="categorical", reason=f"{reason} named like an id")
    if pa.types.is_integer(kind) and distinct <= _FEW_VALUES:
        return Field(name=name, kind="categorical", reason=f"integers, {distinct} values")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Field(name=name, kind="categorical", reason="a date beside the time column")
    values = as_floats(column, origin=Origin(file="", column=name))
    finite = values[np.isfinite(values)]
    # Counts and amounts: never negative, and a tail far above the middle.
    if len(finite) and finite.min() >= 0 and finite.max() > 20 * max(np.median(finite), 1e-12):
        return Field(name=name, kind="numeric", transform="log", reason="numbers with a long tail")
    return Field(name=name, kind="numeric", reason=f"numbers, {distinct} values")
