"""RecBole: a folder of atomic files (``.inter``, ``.user``, ``.item``) to a log and its schema."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tamis.data.schema import Field, Roles, Schema, Side, Task
from tamis.errors import DataError
from tamis.importers.imported import Imported

_USER, _ITEM, _TIME = "user_id", "item_id", "timestamp"
_TYPES = ("token", "float", "token_seq", "float_seq")


def read(folder: Path, *, label: str, threshold: float | None, out: Path) -> Imported:
    """Join the atomic files of a data set into one log for each split.

    Args:
        folder: Holds ``<name>.inter`` or ``<name>.train.inter`` and so on, and, where there are
            any, ``<name>.user`` and ``<name>.item``, with ``<name>`` the folder's own name.
        label: Column of the interactions that is predicted; no input.
        threshold: The label is 1 from this value on, as RecBole's ``threshold``; without it the
            column must hold zeros and ones.
        out: Where the joined logs are written.

    Raises:
        DataError: A file is missing or not atomic, or the label is not among its columns.
    """
    name = folder.name
    parts = {"train": "train", "valid": "valid", "test": "test"}
    files = {split: folder / f"{name}.{part}.inter" for split, part in parts.items()}
    files = {split: path for split, path in files.items() if path.exists()}
    if not files:
        files = {"": folder / f"{name}.inter"}
    types: dict[str, str] = {}
    sides: dict[str, Side] = {_USER: "user", _ITEM: "item"}
    logs = {split: _read(path, types) for split, path in files.items()}
    if label not in types:
        raise DataError(
            f"{folder}: label must be a column of the interactions, got {label!r}. Columns: "
            f"{', '.join(types)}."
        )
    about: tuple[tuple[str, str, Side], ...] = (("user", _USER, "user"), ("item", _ITEM, "item"))
    for suffix, key, side in about:
        path = folder / f"{name}.{suffix}"
        if not path.exists():
            continue
        table = _read(path, types)
        sides |= {column: side for column in table.column_names if column != key}
        logs = {split: _joined(log, table, key) for split, log in logs.items()}
    notes = [
        f"{column}: lists of numbers are not carried over."
        for column, kind in types.items()
        if kind == "float_seq"
    ]
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, log in logs.items():
        place = log.column_names.index(label)
        labelled = log.set_column(place, label, _label(log[label], threshold))
        written[split] = out / f"{split or 'log'}.parquet"
        pq.write_table(labelled, written[split])
    fields = tuple(
        _field(column, kind, sides.get(column, "context"))
        for column, kind in types.items()
        if column not in (label, _TIME) and kind != "float_seq"
    )
    roles = Roles(
        user=_USER if _USER in types else "",
        item=_ITEM if _ITEM in types else "",
        time=_TIME if _TIME in types else "",
    )
    schema = Schema(fields=fields, tasks=(Task(name=label),), roles=roles)
    return Imported(files=written.get("", written), schema=schema, notes=tuple(notes))


def _read(path: Path, types: dict[str, str]) -> pa.Table:
    """An atomic file; the types in its header are added to ``types``."""
    if not path.exists():
        raise DataError(f"{path}: must exist, got no such file. Name the folder of the data set.")
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
    found = {}
    for column in header:
        name, sign, kind = column.partition(":")
        if not sign or kind not in _TYPES:
            raise DataError(
                f"{path}: header must hold name:type with a type of {', '.join(_TYPES)}, got "
                f"{column!r}."
            )
        found[name] = kind
    reading = pyarrow.csv.ReadOptions(column_names=list(found), skip_rows=1)
    converting = pyarrow.csv.ConvertOptions(
        column_types={
            name: pa.float64() if kind == "float" else pa.string() for name, kind in found.items()
        },
        strings_can_be_null=True,
    )
    parsing = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
    try:
        table = pyarrow.csv.read_csv(path, reading, parsing, converting)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: must be tab-separated as its header says, got {error}") from error
    types |= {name: kind for name, kind in found.items() if name not in types}
    return table


def _joined(log: pa.Table, table: pa.Table, key: str) -> pa.Table:
    """The log with the columns of what ``key`` names; nothing where it is not known."""
    place = pc.index_in(log[key], table[key].combine_chunks())
    for column in table.column_names:
        if column != key:
            log = log.append_column(column, table[column].take(place))
    return log


def _label(values: pa.ChunkedArray, threshold: float | None) -> pa.ChunkedArray:
    numbers = pc.cast(values, pa.float64())
    if threshold is not None:
        return pc.cast(pc.greater_equal(numbers, threshold), pa.int8())
    return numbers


def _field(name: str, kind: str, side: Side) -> Field:
    if kind == "float":
        return Field(name=name, kind="numeric", side=side)
    if kind == "token_seq":
        return Field(name=name, kind="sequence", side=side, separator=" ")
    return Field(name=name, kind="categorical", side=side)
