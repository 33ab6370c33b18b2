"""Tables in memory, which are files while a call reads them."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.ingest import Source
from tamis.errors import DataError


@runtime_checkable
class Frame(Protocol):
    """A table in memory that Arrow reads: of pandas (from 2.2 on), polars, DuckDB or Arrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table, as a capsule of Arrow's C stream interface."""
        ...


@contextmanager
def on_disk(source: Source | Frame) -> Iterator[Source]:
    """A log; where it is a table in memory, a Parquet file of it that goes with the context.

    Raises:
        DataError: A column of the table holds values of several types.
        StorageError: The disk of temporary files is full.
    """
    if not isinstance(source, Frame):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="tamis-frame-") as folder:
        yield _written(source, Path(folder))


@contextmanager
def splits_on_disk(
    source: Source | Frame | Mapping[str, Source | Frame],
) -> Iterator[Source | Mapping[str, Source]]:
    """As :func:`on_disk`, of one log or of one for each split."""
    with ExitStack() as stack:
        if isinstance(source, Mapping):
            yield {name: stack.enter_context(on_disk(part)) for name, part in source.items()}
        else:
            yield stack.enter_context(on_disk(source))


def _written(frame: Frame, folder: Path) -> Path:
    try:
        table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"source: a table in memory must have columns of one type each, got {error}. Convert "
            f"them, or write the table to a file."
        ) from error
    path = folder / "frame.parquet"
    with artifacts.disk_errors(folder):
        pq.write_table(table, path)
    return path
