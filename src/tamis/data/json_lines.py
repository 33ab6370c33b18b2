"""JSON lines as record batches, with the types that their first block suggests."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from tamis.data.columns import holds_large_floats, is_list

_BLOCK_BYTES = 1 << 24
# Whole numbers that 64 bits do not hold: Arrow would round them to floats, and ids are so long.
_LONG_NUMBER = pa.decimal256(76, 0)
_NO_BLANK = re.compile(r"\S")


def json_batches(
    path: Path, columns: Sequence[str] | None, numeric: frozenset[str]
) -> Iterator[pa.RecordBatch]:
    """Stream the rows of a file.

    Args:
        path: The file.
        columns: Columns to read, of which those that are not there are left out; None for all.
        numeric: Columns whose whole numbers are read as float64.

    Raises:
        ArrowInvalid: A row is no JSON object, or a value is not of its column's type.
    """
    # Types are sniffed in the first block. Later ones may hold further columns, numbers with a
    # fraction where there were whole ones, and texts where there were only dates or nothing.
    types = json_types(path)
    for name, kind in types.items():
        if name in numeric and (pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
            types[name] = pa.float64()
        elif columns is not None and (pa.types.is_timestamp(kind) or pa.types.is_null(kind)):
            types[name] = pa.string()
    wanted = [(name, types[name]) for name in columns or types if name in types]
    parse = pa.json.ParseOptions(
        explicit_schema=pa.schema(wanted), unexpected_field_behavior="ignore"
    )
    with _stream(path) as stream:
        yield from pa.json.open_json(
            stream,
            read_options=pa.json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=parse,
        )


def json_types(path: Path) -> dict[str, pa.DataType]:
    """Types of a file's columns by name.

    Whole numbers of which one needs more than 64 bits are decimals, which keep all digits.

    Raises:
        ArrowInvalid: A row of the first block is no JSON object, or a column has two types.
    """
    read = pa.json.ReadOptions(block_size=_BLOCK_BYTES)
    with _stream(path) as stream, pa.json.open_json(stream, read_options=read) as reader:
        types = {item.name: item.type for item in reader.schema}
        first = next(iter(reader), None)
    rounded = [n for n in types if first is not None and holds_large_floats(first[n])]
    for name in _written_in_digits(path, rounded) if rounded else ():
        types[name] = pa.list_(_LONG_NUMBER) if is_list(types[name]) else _LONG_NUMBER
    return types


def _written_in_digits(path: Path, names: Sequence[str]) -> list[str]:
    """Those columns whose numbers have neither fraction nor exponent in the first block."""
    with _stream(path) as stream:
        text = stream.read(_BLOCK_BYTES).decode("utf-8-sig", errors="replace")
    left = list(names)
    decoder, place = json.JSONDecoder(), _NO_BLANK.search(text)
    with contextlib.suppress(json.JSONDecodeError):  # The block may end within a row.
        while place is not None:
            row, end = decoder.raw_decode(text, place.start())
            left = [name for name in left if not _has_float(row.get(name))]
            place = _NO_BLANK.search(text, end)
    return left


def _has_float(value: Any) -> bool:  # noqa: ANN401  (any JSON value)
    return any(isinstance(one, float) for one in (value if isinstance(value, list) else [value]))


def _stream(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression="detect")
