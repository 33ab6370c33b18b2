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
from tamis.errors import DataError, SchemaError


@runtime_checkable
class Frame(Protocol):
    """A table in memory that Arrow reads: of pandas (from 2.2 on), polars, DuckDB or Arrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table, as a capsule of Arrow's C stream interface."""
        ...


@contextmanager
def on_disk(source: Source | Frame, *, name: str = "the table in memory") -> Iterator[Source]:
    """A log; where it is a table in memory, a Parquet file of it that goes with the context.

    Args:
        source: The log.
        name: What errors call the table, whose file nobody knows.

    Raises:
        DataError: Parquet cannot hold the table.
        StorageError: The disk of temporary files is full.
    """
    if not isinstance(source, Frame):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="tamis-frame-") as folder:
        path = _written(source, Path(folder), name)
        try:
            yield path
        except (DataError, SchemaError) as error:
            raise type(error)(str(error).replace(str(path), name)) from error


@contextmanager
def splits_on_disk(
    source: Source | Frame | Mapping[str, Source | Frame],
) -> Iterator[Source | Mapping[str, Source]]:
    """As :func:`on_disk`, of one log or of one for each split."""
    with ExitStack() as stack:
        if isinstance(source, Mapping):
            yield {
                split: stack.enter_context(on_disk(part, name=f"the table of split {split!r}"))
                for split, part in source.items()
            }
        else:
            yield stack.enter_context(on_disk(source))


def _written(frame: Frame, folder: Path, name: str) -> Path:
    path = folder / "frame.parquet"
    with artifacts.disk_errors(folder):
        try:
            pq.write_table(pa.table(frame), path)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"{name}: must be one that Parquet can hold, with columns of one type each, got "
                f"{error}. Convert its columns, or write it to a file."
            ) from error
    return path
