"""JSON lines as record batches, with the types that their first block suggests."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.json

_BLOCK_BYTES = 1 << 24


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
        if name in numeric and pa.types.is_integer(kind):
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

    Raises:
        ArrowInvalid: A row of the first block is no JSON object, or a column has two types.
    """
    read = pa.json.ReadOptions(block_size=_BLOCK_BYTES)
    with _stream(path) as stream, pa.json.open_json(stream, read_options=read) as reader:
        return {item.name: item.type for item in reader.schema}


def _stream(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression="detect")
