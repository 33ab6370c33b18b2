"""Raw logs as a stream of tables: CSV, TSV, Parquet and JSON lines, compressed or not."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tamis.data.json_lines import json_batches, json_types
from tamis.data.read_errors import (
    explain_csv,
    explain_json,
    explain_other,
    lacks_column,
    said,
)
from tamis.errors import DataError

Format = Literal["csv", "parquet", "json"]
ROWS_PER_CHUNK = 262_144
_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
_COMPRESSIONS = (".gz", ".zst", ".bz2", ".lz4")
_DELIMITERS = ",\t;|"
# What counts as missing in text files; "NA" does not: it is Namibia's code, among others.
NULLS = ["", "NULL", "null", "\\N", "NaN", "nan", "N/A", "n/a", "#N/A", "None", "-"]
_LINE_END = re.compile(r"\r\n|\n|\r")
_SNIFFED_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFile:
    """One file of a log."""

    path: Path
    """Where it is."""
    format: Format
    """How to read it."""


def discover(source: Path | str | Sequence[Path | str]) -> list[LogFile]:
    """List the files of a log, in the order in which their rows count.

    Args:
        source: A file, several files, or a folder; a folder is searched for log files by their
            endings and sorted by name.

    Raises:
        DataError: A file is missing, empty, there twice or of an unknown ending, or a folder has no
            logs.
    """
    given = [source] if isinstance(source, (str, Path)) else list(source)
    if not given:
        raise DataError("source: must name a log file, got none.")
    files: list[LogFile] = []
    for path in map(Path, given):
        if path.is_dir():
            found = [
                LogFile(path=file, format=kind)
                for file in sorted(path.rglob("*"))
                if file.is_file() and (kind := _format_of(file)) is not None
                if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
            ]
            if not found:
                raise DataError(
                    f"{path}: must hold log files ({', '.join(_FORMATS)}, with or without "
                    f"{', '.join(_COMPRESSIONS)}), got none. Name the folder that holds them."
                )
            files += found
            continue
        if not path.exists():
            raise DataError(f"{path}: must exist, got no such file. Check the path.")
        kind = _format_of(path)
        if kind is None:
            raise DataError(
                f"{path}: must end in one of {', '.join(_FORMATS)} (and perhaps "
                f"{', '.join(_COMPRESSIONS)}), got {''.join(path.suffixes) or 'no ending'!r}."
            )
        files.append(LogFile(path=path, format=kind))
    seen: set[Path] = set()
    for file in files:
        if file.path.stat().st_size == 0:
            raise DataError(f"{file.path}: must hold rows, got an empty file.")
        if (place := file.path.resolve()) in seen:
            raise DataError(
                f"{file.path}: must be named once, got it again, and its rows would count twice. "
                f"Leave it out once."
            )
        seen.add(place)
    return files


def column_names(file: LogFile) -> list[str]:
    """Names of a file's columns.

    Raises:
        DataError: The file cannot be read, or two columns have one name.
    """
    if file.format == "parquet":
        names = list(open_parquet(file.path).schema_arrow.names)
    elif file.format == "csv":
        names = read_header(file.path)[0]
    else:
        try:
            names = list(json_types(file.path))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise DataError(explained(said(error), file)) from error
    _check_names(names, file.path)
    return names


def column_types(file: LogFile) -> dict[str, pa.DataType]:
    """Types of a file's columns by name, where the file says them; none for text files.

    Raises:
        DataError: The file cannot be read.
    """
    if file.format != "parquet":
        return {}
    return {item.name: item.type for item in open_parquet(file.path).schema_arrow}


def read_chunks(
    file: LogFile,
    *,
    columns: Sequence[str] | None,
    numeric: frozenset[str],
    categories: frozenset[str] = frozenset(),
) -> Iterator[pa.Table]:
    """Stream the rows of a file in tables of about ``ROWS_PER_CHUNK`` rows.

    Text files give every column as a string but those of ``numeric``, which are float64; typed
    files give their own types. A key that no row of a file of JSON lines has is null in all of
    them. Memory does not grow with the file.

    Args:
        file: What to read.
        columns: Columns to read, in any order; None for all.
        numeric: Columns of a text file that must be numbers.
        categories: Columns that may come as Arrow dictionaries. Parquet holds strings as
            dictionaries already: taking them as they are is five times faster than spelling
            every row's string out and encoding it again.

    Raises:
        DataError: The file is damaged, or a row or value does not fit; file and row are named.
    """
    if file.format == "parquet":
        batches = _parquet_batches(file, columns, categories)
    elif file.format == "csv":
        batches = _csv_batches(file, columns, numeric)
    else:
        batches = json_batches(file.path, columns, numeric)
    pending: list[pa.RecordBatch] = []
    rows = 0
    try:
        for batch in batches:
            pending.append(batch)
            rows += batch.num_rows
            if rows >= ROWS_PER_CHUNK // 2:
                yield _table(pending, file, columns)
                pending, rows = [], 0
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        message = _with_row(said(error), file, columns, numeric)
        raise DataError(explained(message, file)) from error
    if rows:
        yield _table(pending, file, columns)


def _check_names(names: Sequence[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{path}: column names must differ, got {name!r} twice. Rename one of the two."
            )


def _format_of(path: Path) -> Format | None:
    name = path.name.lower()
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    return _FORMATS.get(Path(name).suffix)


def open_parquet(path: Path, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file; columns of ``read_dictionary`` come as Arrow dictionaries.

    Raises:
        DataError: The file is no whole Parquet.
    """
    try:
        return pq.ParquetFile(
            path, memory_map=False, pre_buffer=False, read_dictionary=list(read_dictionary)
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: must be whole Parquet, got {said(error)}. Write the file anew."
        ) from error


def _parquet_batches(
    file: LogFile, columns: Sequence[str] | None, categories: frozenset[str]
) -> Iterator[pa.RecordBatch]:
    types = {item.name: item.type for item in open_parquet(file.path).schema_arrow}
    strings = [name for name in categories if name in types and pa.types.is_string(types[name])]
    reader = open_parquet(file.path, strings)
    wanted = None if columns is None else list(columns)
    # Row group by row group: a batch across two of them has two dictionaries, and one of both
    # is dear to make.
    for group in range(reader.num_row_groups):
        rows = reader.metadata.row_group(group).num_rows
        size = rows if rows <= 2 * ROWS_PER_CHUNK else ROWS_PER_CHUNK
        if rows:
            yield from reader.iter_batches(batch_size=size, row_groups=[group], columns=wanted)


def _csv_batches(
    file: LogFile,
    columns: Sequence[str] | None,
    numeric: frozenset[str],
    *,
    use_threads: bool = True,
) -> Iterator[pa.RecordBatch]:
    names, delimiter = read_header(file.path)
    wanted = names if columns is None else list(columns)
    types = {name: pa.float64() if name in numeric else pa.string() for name in wanted}
    with pa.input_stream(str(file.path), compression="detect") as stream:
        reader = pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=use_threads),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                include_columns=wanted,
                null_values=NULLS,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        yield from reader


def _table(batches: list[pa.RecordBatch], file: LogFile, columns: Sequence[str] | None) -> pa.Table:
    table = pa.Table.from_batches(batches)
    for name in columns or ():
        if name not in table.column_names:
            if file.format == "json":
                table = table.append_column(name, pa.nulls(table.num_rows))
                continue
            raise DataError(lacks_column(name, table.column_names, where=str(file.path)))
    return table


def read_header(path: Path) -> tuple[list[str], str]:
    """Names of a text file's columns and the delimiter that cuts the header into most of them.

    A name in quotes may hold delimiters and ends of lines.

    Raises:
        DataError: The file cannot be read, or its first line names no columns.
    """
    text = _head(path, _SNIFFED_BYTES)
    first = _LINE_END.split(text, maxsplit=1)[0]
    if not first.strip():
        raise DataError(f"{path}: the first line must name the columns, got an empty line.")
    found = {mark: _first_record(text, mark) for mark in _DELIMITERS}
    delimiter = max(found, key=lambda mark: len(found[mark][0]))
    names, has_ended = found[delimiter]
    if len(names) < 2:
        raise DataError(
            f"{path}: the first line must name at least two columns between ',', tab, ';' or "
            f"'|', got {first[:80]!r}. Convert the file to one of these delimiters."
        )
    if not has_ended:  # It is longer than what was read, or one of its quotes does not end.
        names, has_ended = _first_record(_head(path, _BLOCK_BYTES), delimiter)
    if not has_ended:
        raise DataError(f"{path}: a quote in the first line must end, got {first[:80]!r}. Mend it.")
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: the first line must name the columns, got numbers ({first[:60]!r}). "
            f"Add a header line."
        )
    return names, delimiter


def _head(path: Path, size: int) -> str:
    """The text of a file's first bytes; of a file without more, with an empty line at its end."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            head: bytes = stream.read(size)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(explain_other(path, said(error))) from error
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            line = len(_LINE_END.findall(head[: error.start].decode("latin-1"))) + 1
            raise DataError(
                f"{path}: line {line} must be UTF-8, got byte {head[error.start]:#04x}. "
                f"Save the file as UTF-8."
            ) from error
        text = head[: error.start].decode("utf-8-sig")
    return text if len(head) == size else text + "\n\n"


def _first_record(text: str, delimiter: str) -> tuple[list[str], bool]:
    """The first values of a text, and whether they end before the text does."""
    lines = io.StringIO(text, newline="")
    try:
        values = next(csv.reader(lines, delimiter=delimiter))
    except csv.Error:  # A value is very long, as after a quote that does not end.
        return [], False
    return values, bool(lines.read(1))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _with_row(
    message: str, file: LogFile, columns: Sequence[str] | None, numeric: frozenset[str]
) -> str:
    """Arrow's message with the row: it counts rows only when it reads with one thread."""
    if file.format != "csv" or "Row #" in message:
        return message
    try:
        for _ in _csv_batches(file, columns, numeric, use_threads=False):
            pass
    except pa.ArrowInvalid as error:
        return said(error)
    except OSError:  # A compressed file that was cut short has no row to name.
        pass
    return message


def explained(message: str, file: LogFile) -> str:
    """A whole message, with what to do, from Arrow's."""
    try:
        if file.format == "csv":
            return explain_csv(file.path, message, read_header(file.path)[0])
        if file.format == "json":
            return explain_json(file.path, message)
    except OSError:  # It is read again for its row, and cannot be.
        pass
    return explain_other(file.path, message)
