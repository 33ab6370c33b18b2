"""The first rows of a log with the types that their values suggest, for schema inference."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tamis.data.columns import ZEROS_IN_FRONT, holds_large_floats
from tamis.data.read_errors import said, wrong_csv_value
from tamis.data.readers import (
    NULLS,
    LogFile,
    column_names,
    explained,
    open_parquet,
    read_chunks,
    read_header,
)
from tamis.errors import DataError

_BLOCK_BYTES = 1 << 22


def sample_files(files: Sequence[LogFile], *, rows: int) -> list[tuple[LogFile, pa.Table]]:
    """First rows of the first file that has any, of one in the middle and of the last.

    Files of one log are often days of it: what one of them says of its day is not what all say.

    Args:
        files: All of the log.
        rows: Rows at most, of all files together.

    Returns:
        Each of these files with a sample of its own types; files without rows are left out.

    Raises:
        DataError: A file is damaged, or none of these has rows.
    """
    places = {0, len(files) // 2, len(files) - 1}
    found: list[tuple[LogFile, pa.Table]] = []
    for place, file in enumerate(files):
        # Days on which nothing was logged may come first.
        if found and place not in places:
            continue
        table = _first_rows(file, rows // len(places))
        if table is not None:
            found.append((file, table))
    if not found:
        raise DataError(f"{files[0].path}: must hold rows, got a header only.")
    return found


def _first_rows(file: LogFile, rows: int) -> pa.Table | None:
    column_names(file)  # Refuses two columns of one name.
    try:
        if file.format == "parquet":
            batch = next(open_parquet(file.path).iter_batches(batch_size=rows), None)
            table = None if batch is None else pa.Table.from_batches([batch])
        elif file.format == "csv":
            table = _sample_csv(file.path, rows)
        else:
            table = next(read_chunks(file, columns=None, numeric=frozenset()), None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(explained(said(error), file)) from error
    return table.slice(0, rows) if table is not None and table.num_rows else None


def _sample_csv(path: Path, rows: int) -> pa.Table:
    """First rows with sniffed types; a column is text where its values would be lost otherwise."""
    names = read_header(path)[0]
    texts: dict[str, pa.DataType] = {}
    while True:
        try:
            table = _sniff_csv(path, rows, texts)
            break
        except pa.ArrowInvalid as error:
            # Types are sniffed in the first block only; what does not fit later is text.
            wrong = wrong_csv_value(str(error))
            if wrong is None or names[wrong[0]] in texts:
                raise
            texts[names[wrong[0]]] = pa.string()
    doubtful = [name for name in table.column_names if _may_lose_values(table[name])]
    if not doubtful:
        return table
    exact = _sniff_csv(path, rows, texts | dict.fromkeys(doubtful, pa.string()))
    for name in doubtful:
        if _are_cut(table[name].type, exact[name]):
            table = table.set_column(table.column_names.index(name), name, exact[name])
    return table


def _may_lose_values(column: pa.ChunkedArray) -> bool:
    """Whether sniffing may have cut values: large ids, zeros in front, or times of day."""
    kind = column.type
    return holds_large_floats(column) or bool(pa.types.is_time(kind) or pa.types.is_integer(kind))


def _are_cut(kind: pa.DataType, texts: pa.ChunkedArray) -> bool:
    """Whether values of a sniffed type are not all that their texts say."""
    if pa.types.is_integer(kind):
        # Numbers are not written so; codes are, as in 01234.
        in_front = pc.match_substring_regex(texts, ZEROS_IN_FRONT)
        return bool(pc.any(in_front).as_py())
    return bool(pa.types.is_time(kind)) or _are_whole_numbers(texts)


def _are_whole_numbers(texts: pa.ChunkedArray) -> bool:
    """Whether texts say whole numbers, but for a few bad ones that ingest will name."""
    known = texts.drop_null()
    whole = pc.match_substring_regex(known, r"^\s*[+-]?\d+\s*$")
    return bool(pc.mean(whole.cast(pa.int8())).as_py() >= 0.95)


def _sniff_csv(path: Path, rows: int, types: Mapping[str, pa.DataType]) -> pa.Table:
    delimiter = read_header(path)[1]
    with pa.input_stream(str(path), compression="detect") as stream:
        reader = pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict(types),
                null_values=NULLS,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        batches: list[pa.RecordBatch] = []
        for batch in reader:
            batches.append(batch)
            if sum(item.num_rows for item in batches) >= rows:
                break
    return pa.Table.from_batches(batches, reader.schema)
