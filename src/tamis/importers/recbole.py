"""RecBole: a folder of atomic files (``.inter``, ``.user``, ``.item``) to a log and its schema."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.public_sets.files import SPLITS
from tamis.data.read_errors import explain_csv, said, wrong_csv_value
from tamis.data.schema import Field, Roles, Schema, Side, Task, with_free_names
from tamis.errors import DataError
from tamis.importers.imported import Imported

_USER, _ITEM, _TIME = "user_id", "item_id", "timestamp"
_TYPES = ("token", "float", "token_seq", "float_seq")
_LIST = "_list"
"""RecBole's LIST_SUFFIX: ``item_id_list`` holds the earlier values of ``item_id``, oldest first."""
_MOST_TEXT = 2**31 - 1
"""Bytes that an array of texts can hold; its offsets have 32 bits."""


def read(folder: Path, *, label: str, threshold: float | None, out: Path) -> Imported:
    """Join the atomic files of a data set into one log for each split.

    A list of tokens beside the column that it lists, such as ``item_id_list`` beside ``item_id``,
    is a history of the user: it shares the table of that column, and all of them list one sequence
    of events.

    Args:
        folder: Holds ``<name>.inter`` or ``<name>.train.inter`` and so on, and, where there are
            any, ``<name>.user`` and ``<name>.item``, with ``<name>`` the folder's own name.
        label: Column of the interactions that is predicted; no input.
        threshold: The label is 1 from this value on, as RecBole's ``threshold``; without it the
            column must hold zeros and ones.
        out: Where the joined logs are written.

    Raises:
        DataError: A file is missing or not atomic, splits differ in their columns, or the label has
            no meaning.
    """
    if folder.is_file():
        raise DataError(
            f"{folder}: must be the folder that holds the files of the data set, got a file. Name "
            f"{folder.parent}."
        )
    name = folder.resolve().name
    files = {split: folder / f"{name}.{split}.inter" for split in SPLITS}
    there = [split for split, path in files.items() if path.exists()]
    if there and len(there) < len(SPLITS):
        raise DataError(
            f"{folder}: must hold {', '.join(f'{name}.{split}.inter' for split in SPLITS)} or none "
            f"of them, got {', '.join(there)} alone. Join the files into {name}.inter."
        )
    if not there:
        files = {"": folder / f"{name}.inter"}
    types = _same_types(list(files.values()))
    sides: dict[str, Side] = {_USER: "user", _ITEM: "item"}
    logs = {split: _read(path) for split, path in files.items()}
    if types.get(label) not in ("float", "token"):
        raise DataError(
            f"{folder}: label must be a column of numbers of the interactions, got {label!r}. "
            f"Columns: {', '.join(types)}."
        )
    of_interactions = tuple(types)
    about: tuple[tuple[str, str, Side], ...] = (("user", _USER, "user"), ("item", _ITEM, "item"))
    for suffix, key, side in about:
        path = folder / f"{name}.{suffix}"
        if not path.exists():
            continue
        found = _types(path)
        table = _read(path)
        _check_joinable(path, table, key, types, found)
        types |= found
        sides |= {column: side for column in table.column_names if column != key}
        logs = {split: _joined(log, table, key) for split, log in logs.items()}
    inputs = {
        column: kind
        for column, kind in types.items()
        if column not in (label, _TIME) and kind != "float_seq"
    }
    fields = tuple(_field(column, inputs, sides.get(column, "context")) for column in inputs)
    labelled = {
        split: log.set_column(
            log.column_names.index(label), label, _label(log[label], threshold, files[split])
        )
        for split, log in logs.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    written = {split: out / f"{split or 'log'}.parquet" for split in labelled}
    for split, log in labelled.items():
        with artifacts.atomic_path(written[split]) as temporary:
            pq.write_table(log, temporary)
    roles = Roles(
        user=_USER if _USER in types else "",
        item=_ITEM if _ITEM in types else "",
        time=_TIME if _TIME in types else "",
    )
    schema = Schema(fields=with_free_names(fields), tasks=(Task(name=label),), roles=roles)
    notes = _notes(fields, types, [name for name in of_interactions if name in inputs])
    return Imported(files=written.get("", written), schema=schema, notes=notes)


def _same_types(paths: Sequence[Path]) -> dict[str, str]:
    """The types of the interactions, which all splits must have."""
    first, *others = paths
    types = _types(first)
    for path in others:
        found = _types(path)
        for name in {**types, **found}:
            if found.get(name) != types.get(name):
                raise DataError(
                    f"{path}, column {name!r}: must be as in {first}, {types.get(name, 'absent')}, "
                    f"got {found.get(name, 'absent')}. Give all splits the same columns and types."
                )
    return types


def _types(path: Path) -> dict[str, str]:
    """Types of an atomic file's columns, in their order."""
    if not path.exists():
        raise DataError(f"{path}: must exist, got no such file. Name the folder of the data set.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\n").split("\t")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text, got {error}.") from error
    found = {}
    for column in header:
        name, sign, kind = column.partition(":")
        if not sign or kind not in _TYPES or name in found:
            raise DataError(
                f"{path}: header must hold name:type, each name once, with a type of "
                f"{', '.join(_TYPES)}, got {column!r}."
            )
        found[name] = kind
    return found


def _read(path: Path) -> pa.Table:
    """An atomic file."""
    types = _types(path)
    try:
        return _parsed(path, types)
    except pa.ArrowInvalid as error:
        raise DataError(_explained(path, types, said(error))) from error


def _parsed(path: Path, types: Mapping[str, str], *, use_threads: bool = True) -> pa.Table:
    reading = pyarrow.csv.ReadOptions(
        column_names=list(types), skip_rows=1, use_threads=use_threads
    )
    converting = pyarrow.csv.ConvertOptions(
        column_types={
            name: pa.float64() if kind == "float" else pa.string() for name, kind in types.items()
        },
        # An empty field alone: NA is a word, and Namibia's code.
        null_values=[""],
        strings_can_be_null=True,
    )
    parsing = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
    return pyarrow.csv.read_csv(path, reading, parsing, converting)


def _explained(path: Path, types: Mapping[str, str], message: str) -> str:
    """A whole message from Arrow's, which has the row only where one thread reads."""
    try:
        _parsed(path, types, use_threads=False)
    except pa.ArrowInvalid as error:
        message = said(error)
    if wrong_csv_value(message):
        return explain_csv(path, message, list(types))
    return f"{path}: must be tab-separated as its header says, got {message}. Mend the row."


def _check_joinable(
    path: Path, table: pa.Table, key: str, before: Mapping[str, str], found: Mapping[str, str]
) -> None:
    """Refuse a file about users or items that cannot be put beside the interactions."""
    if key not in table.column_names or key not in before:
        raise DataError(
            f"{path}: must have the column {key!r}, as the interactions must, got "
            f"{', '.join(table.column_names)}."
        )
    if (before[key], found[key]) != ("token", "token"):
        other = found[key] if found[key] != "token" else f"{before[key]} in the interactions"
        raise DataError(f"{path}: {key} must be a token in all files, got {other}.")
    again = [name for name in table.column_names if name != key and name in before]
    if again:
        raise DataError(
            f"{path}: columns must differ from those of the other files, got {again[0]!r} twice. "
            f"Rename one of them."
        )
    if table[key].null_count:
        row = pc.index(pc.is_null(table[key]), True).as_py() + 1
        raise DataError(f"{path}, row {row}: {key} must not be empty, got none. Remove the row.")
    if pc.count_distinct(table[key]).as_py() < table.num_rows:
        counts = pc.value_counts(table[key])
        again = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise DataError(
            f"{path}: each {key} must be there once, got {again!r} more than "
            f"once. Leave one row of it."
        )


def _joined(log: pa.Table, table: pa.Table, key: str) -> pa.Table:
    """The log with the columns of what ``key`` names; nothing where it is not known."""
    place = pc.index_in(log[key], table[key].combine_chunks())
    for column in table.column_names:
        if column != key:
            parts = _taken(table[column], place)
            log = log.append_column(column, pa.chunked_array(parts, table[column].type))
    return log


def _taken(column: pa.ChunkedArray, place: pa.ChunkedArray) -> list[pa.Array]:
    """The values at some places, in as many arrays as their texts need."""
    if pa.types.is_string(column.type):
        size = pc.sum(pc.binary_length(column).take(place)).as_py() or 0
        if size > _MOST_TEXT and len(place) > 1:
            half = len(place) // 2
            return _taken(column, place[:half]) + _taken(column, place[half:])
    taken: list[pa.Array] = column.take(place).chunks
    return taken


def _label(values: pa.ChunkedArray, threshold: float | None, path: Path) -> pa.ChunkedArray:
    try:
        numbers = pc.cast(values, pa.float64())
    except pa.ArrowInvalid as error:
        row, text = _first_text(values)
        raise DataError(
            f"{path}, row {row}: the label must be a number, got {text!r}. Mend the row."
        ) from error
    row = pc.index(pc.is_nan(numbers), True).as_py()  # Empty ones are null.
    if row >= 0:
        raise DataError(
            f"{path}, row {row + 1}: the label must be a number or empty, got NaN. Mend the row."
        )
    if threshold is not None:
        if not math.isfinite(threshold):
            raise DataError(f"threshold: must be a finite number, got {threshold}.")
        return pc.cast(pc.greater_equal(numbers, threshold), pa.int8())
    others = pc.unique(numbers.filter(pc.invert(pc.is_in(numbers, pa.array([0.0, 1.0, None])))))
    if len(others):
        raise DataError(
            f"{path}: the label must be 0 or 1, got {others[0].as_py():g}. Give a threshold from "
            f"which on it is 1."
        )
    return numbers


def _first_text(values: pa.ChunkedArray) -> tuple[int, str]:
    """Row, from 1, and text of the first value that is no number."""
    for row, value in enumerate(values, start=1):
        try:
            value.cast(pa.float64())
        except pa.ArrowInvalid:
            return row, value.as_py()
    raise AssertionError("a column that is not of numbers holds a text")


def _notes(
    fields: Sequence[Field], types: Mapping[str, str], of_interactions: Sequence[str]
) -> tuple[str, ...]:
    """What a reader of the schema should know, one sentence each."""
    shares = {field.name: field.shares for field in fields}
    known_later = (
        f"{name}: a column of the interactions is an input; take it out of the schema if it is "
        f"known only afterwards."
        for name in of_interactions
        if name not in (_USER, _ITEM, _TIME) and not shares.get(name)
    )
    alone = (
        f"{field.name}: there is no column {field.name.removesuffix(_LIST)} of tokens whose table "
        f"it could share; it has its own."
        for field in fields
        if field.kind == "sequence" and field.name.endswith(_LIST) and not field.shares
    )
    dropped = (
        f"{name}: lists of numbers are not carried over."
        for name, kind in types.items()
        if kind == "float_seq"
    )
    return (*known_later, *alone, *dropped)


def _field(name: str, kinds: Mapping[str, str], side: Side) -> Field:
    """The field of a column among ``kinds``; a list in the file about items describes an item."""
    if kinds[name] == "float":
        return Field(name=name, kind="numeric", side=side)
    if kinds[name] == "token":
        return Field(name=name, kind="categorical", side=side)
    listed = name.removesuffix(_LIST)
    shares = listed if listed != name and kinds.get(listed) == "token" else ""
    is_history = bool(shares) and side != "item"
    return Field(
        name=name,
        kind="sequence",
        side="user" if is_history else side,
        shares=shares,
        separator=" ",
        group="history" if is_history else "",
    )
