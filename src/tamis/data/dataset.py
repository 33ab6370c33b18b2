"""A dataset on disk: Arrow IPC columns by split, sealed with hashes; written and read in blocks.

    manifest.json   schema, input spec, counts, SHA-256 of every file; written last
    schema.toml     the schema as text
    encoders/       the fitted encoders
    vectors.safetensors  rows of tables whose vectors are given, where there are such
    splits/<name>/  data.arrow, and on the simulated market truth.arrow

Files are uncompressed Arrow IPC, one column per field, so polars, pandas and DuckDB map them as
they are. tamis maps them too, copies the rows it needs and then gives the pages back: what stays
mapped counts as memory of the process and would grow with the data.

Writer and reader stand in one file: both know the layout, and a change of it changes both.
"""

import contextlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis import artifacts, config
from tamis.data.schema import InputSpec, Schema, schema_from_table
from tamis.data.vectors import has_rows, read_rows, write_rows
from tamis.errors import ArtifactError, ConfigError, DataError, SchemaError, StorageError

DATASET_VERSION = 1
ROWS_PER_RECORD_BATCH = 65_536
_ANEW = "It was altered after it was written; ingest the log anew."
_INT32: "np.dtype[Any]" = np.dtype(np.int32)
_NUMPY_BY_ARROW: "dict[pa.DataType, np.dtype[Any]]" = {
    pa.int32(): np.dtype(np.int32),
    pa.int64(): np.dtype(np.int64),
    pa.float32(): np.dtype(np.float32),
    pa.float64(): np.dtype(np.float64),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRows:
    """Rows of a log after encoding, as NumPy columns of n rows each."""

    row: NDArray[np.int64]
    """Row number in the source log."""
    numeric: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Numeric features by field."""
    ids: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Table rows by categorical field, int32, or int64 where the table is larger."""
    sequences: Mapping[str, tuple[NDArray[np.int32], NDArray[np.int64]]] = field(
        default_factory=dict
    )
    """By group: values (nnz, E), and lengths (n,) that sum to nnz."""
    labels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Labels by task; NaN where not observed."""
    roles: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """``time`` in microseconds since 1970 UTC; ``user``, ``item``, ``request`` as codes; of a
    cascade ``pool``, a place in ``POOLS``, and ``sampling_rate``, float64. No model reads them."""
    weights: NDArray[np.float32] | None = None
    """Sample weights."""

    def __post_init__(self) -> None:
        columns = {**self.numeric, **self.ids, **self.labels, **self.roles}
        lengths = {name: len(values) for name, values in columns.items()}
        lengths |= {name: len(lengths) for name, (_, lengths) in self.sequences.items()}
        for name, length in lengths.items():
            if length != len(self.row):
                raise DataError(f"{name}: must hold {len(self.row)} rows, got {length}.")

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.row)

    def select(self, mask: NDArray[np.bool_]) -> "EncodedRows":
        """The rows where ``mask`` (n,) is true, in order."""
        sequences = {}
        for name, (values, lengths) in self.sequences.items():
            sequences[name] = (values[np.repeat(mask, lengths)], lengths[mask])
        return EncodedRows(
            row=self.row[mask],
            numeric={name: values[mask] for name, values in self.numeric.items()},
            ids={name: values[mask] for name, values in self.ids.items()},
            sequences=sequences,
            labels={name: values[mask] for name, values in self.labels.items()},
            roles={name: values[mask] for name, values in self.roles.items()},
            weights=None if self.weights is None else self.weights[mask],
        )


class DatasetWriter:
    """Builds a dataset beside its final place and moves it there when it is complete.

    Use as a context manager; if the block raises or the process dies, nothing stands at ``out``.
    """

    def __init__(self, out: Path, schema: Schema, spec: InputSpec) -> None:
        """Prepare to write.

        Raises:
            DataError: ``out`` exists and is not empty.
        """
        artifacts.check_free(out)
        self.out, self.schema, self.spec = out, schema, spec
        self._stack = contextlib.ExitStack()
        self._draft: Path
        self._columns: dict[str, _ColumnFile] = {}
        self._truth: dict[str, _ColumnFile] = {}

    def __enter__(self) -> "DatasetWriter":
        """Make the draft folder.

        Raises:
            RunInUseError: Another process is writing ``out``.
            StorageError: The disk is full or ``out`` cannot be written.
        """
        self._draft = self._stack.enter_context(artifacts.draft_folder(self.out))
        with artifacts.disk_errors(self.out):
            self.encoders_path.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what was not finished."""
        for file in (*self._columns.values(), *self._truth.values()):
            file.abandon()
        self._stack.close()

    @property
    def encoders_path(self) -> Path:
        """Where the fitted encoders are to be saved."""
        return self._draft / "encoders"

    def append(self, split: str, rows: EncodedRows) -> None:
        """Add rows to a split, in order.

        Raises:
            StorageError: The disk is full.
            DataError: The rows lack a column of the input spec.
        """
        if rows.num_rows:
            columns = _arrow_columns(rows, self.spec)
            self._file(self._columns, split, "data.arrow").append(columns)

    def add_truth(self, split: str, truth: Mapping[str, NDArray[np.float64]]) -> None:
        """Add true probabilities by task for the rows of the last ``append`` to this split."""
        columns = {name: pa.array(np.asarray(values, np.float64)) for name, values in truth.items()}
        if columns and len(next(iter(columns.values()))):
            self._file(self._truth, split, "truth.arrow").append(columns)

    def add_vectors(self, rows: Mapping[str, NDArray[np.float32]]) -> None:
        """Add the rows of tables whose vectors are given, by field.

        Raises:
            StorageError: The disk is full.
        """
        write_rows(self._draft, rows)

    def copy_vectors(self, other: "Dataset") -> None:
        """Take over the rows that another dataset has of tables of the same names.

        One that was made with the encoders of a model has none, nor then has this.

        Raises:
            StorageError: The disk is full.
            ArtifactError: The other's are damaged.
        """
        names = [table.name for table in self.spec.tables if table.vectors]
        if names and has_rows(other.folder):
            self.add_vectors(read_rows(other.folder, names))

    def finish(self, payload: Mapping[str, Any]) -> "Dataset":
        """Seal the dataset and move it to its place.

        Args:
            payload: Further entries of the manifest; JSON values.

        Raises:
            StorageError: The disk is full.
            DataError: No rows were written.
        """
        rows = {name: file.close() for name, file in sorted(self._columns.items())}
        for name, file in self._truth.items():
            if file.close() != rows.get(name):
                raise DataError(f"{name}: truth must hold as many rows as the split.")
        if not rows:
            raise DataError(f"{self.out}: must hold rows, got none. Check the source.")
        artifacts.write_text(self._draft / "schema.toml", self.schema.to_toml())
        artifacts.write_manifest(
            self._draft,
            kind="dataset",
            version=DATASET_VERSION,
            files=[path for path in self._draft.rglob("*") if path.is_file()],
            payload={
                "rows": rows,
                "schema": config.to_table(self.schema),
                "spec": config.to_table(self.spec),
                **payload,
            },
        )
        artifacts.move_into_place(self._draft, self.out)
        return Dataset.open(self.out)

    def _file(self, files: dict[str, "_ColumnFile"], split: str, name: str) -> "_ColumnFile":
        if split not in files:
            files[split] = _ColumnFile(self._draft / "splits" / split / name, self.out)
        return files[split]


class _ColumnFile:
    """An Arrow IPC file with record batches of a fixed number of rows, whatever the appends."""

    def __init__(self, path: Path, shown_as: Path) -> None:
        self._path, self._shown_as = path, shown_as
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._sink: pa.OSFile | None = None
        self._rows = 0

    def append(self, columns: Mapping[str, pa.Array]) -> None:
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= ROWS_PER_RECORD_BATCH:
            self._flush(keep_tail=True)

    def close(self) -> int:
        self._flush(keep_tail=False)
        with self._writes():
            if self._writer is not None:
                self._writer.close()
            if self._sink is not None:
                self._sink.close()
        return self._rows

    def abandon(self) -> None:
        if self._sink is not None and not self._sink.closed:
            self._sink.close()

    def _flush(self, *, keep_tail: bool) -> None:
        if not self._pending_rows:
            return
        table = pa.Table.from_batches(self._pending)
        count = table.num_rows
        if keep_tail:
            count -= count % ROWS_PER_RECORD_BATCH
        with self._writes():
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._sink = pa.OSFile(str(self._path), "wb")
                self._writer = pa.ipc.new_file(self._sink, table.schema)
            for start in range(0, count, ROWS_PER_RECORD_BATCH):
                part = table.slice(start, min(ROWS_PER_RECORD_BATCH, count - start))
                self._writer.write_batch(part.combine_chunks().to_batches()[0])
        self._rows += count
        tail = table.slice(count).combine_chunks()
        self._pending = tail.to_batches() if tail.num_rows else []
        self._pending_rows = tail.num_rows

    def _writes(self) -> "_DiskErrors":
        return _DiskErrors(self._shown_as)


class _DiskErrors:
    """Turns a full disk into an error that says which dataset it was."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise StorageError(
                f"{self._path}: must fit on the disk, got {error.strerror or error}. Free space "
                f"or name another folder; nothing was left behind."
            ) from error


class Dataset:
    """A finished dataset."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Wrap a checked folder; use :meth:`open`.

        Raises:
            ArtifactError: Its manifest describes no dataset that this version knows.
        """
        self.path = path
        self.folder = path.absolute()
        """The same, wherever whoever opened it goes on."""
        self.manifest = manifest
        for key in ("schema", "spec", "rows"):
            if not isinstance(manifest.get(key), dict):
                raise ArtifactError(
                    f"{path / artifacts.MANIFEST}: must have a table {key!r}, got "
                    f"{manifest.get(key)!r}. {_ANEW}"
                )
        try:
            self.schema: Schema = schema_from_table(manifest["schema"])
            self.spec: InputSpec = config.from_table(InputSpec, manifest["spec"], where="spec")
        except SchemaError as error:
            raise ArtifactError(
                f"{path}: {error} Ingest the log anew with such a schema."
            ) from error
        except ConfigError as error:
            raise ArtifactError(
                f"{path}: must have a schema and inputs that this tamis knows, got those of "
                f"another version: {error} Read it with the tamis that wrote it, or ingest the "
                f"log anew."
            ) from error
        hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        self.fingerprint = config.fingerprint(hashes)
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> "Dataset":
        """Open a dataset.

        Args:
            path: Its folder.
            verify: Hash every file; without it missing and truncated files are found, altered
                ones are not.

        Raises:
            ArtifactError: The folder is no dataset of this version, or a file is damaged.
        """
        manifest = artifacts.read_manifest(
            path, kind="dataset", version=DATASET_VERSION, verify=verify
        )
        return cls(path, manifest)

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {self.manifest['rows'][name]:,}" for name in self.split_names)
        return f"Dataset({str(self.path)!r}: {rows} rows)"

    @property
    def split_names(self) -> tuple[str, ...]:
        """Splits that hold rows: train, valid, test, then any others."""
        order = {"train": 0, "valid": 1, "test": 2}
        return tuple(sorted(self.manifest["rows"], key=lambda name: (order.get(name, 3), name)))

    @property
    def encoders_path(self) -> Path:
        """Folder of the fitted encoders."""
        return self.folder / "encoders"

    def given_rows(self) -> dict[str, NDArray[np.float32]]:
        """Rows (V, W) of each table whose vectors are given, by its field.

        Raises:
            ArtifactError: The dataset was made with the encoders of a model, which has them; or
                the file is damaged or gone.
        """
        names = [table.name for table in self.spec.tables if table.vectors]
        return read_rows(self.folder, names) if names else {}

    def trained_until(self, splits: Sequence[str] = ("train", "valid")) -> int | None:
        """Time of the last row that is learnt from, microseconds since 1970 UTC.

        Args:
            splits: What is learnt from; those without rows do not count. A training learns weights
                from the first and chooses among them by the second.

        Returns:
            None where rows have no time.
        """
        times = [self.split(name).role("time") for name in self.split_names if name in splits]
        return max((int(time.max()) for time in times if time is not None), default=None)

    def split(self, name: str) -> "Split":
        """A split by name.

        Raises:
            DataError: There is no such split.
        """
        if name not in self.manifest["rows"]:
            raise DataError(
                f"{self.path}: must have a split {name!r}, got {', '.join(self.split_names)}."
            )
        if name not in self._splits:
            self._splits[name] = Split(name, self.folder / "splits" / name, self.spec)
        return self._splits[name]


class Split:
    """Rows of a dataset that are used together; columns are read when asked for."""

    def __init__(self, name: str, folder: Path, spec: InputSpec) -> None:
        """Open the files of a split."""
        self.name = name
        self._spec = spec
        self.columns = ColumnReader(folder / "data.arrow")
        self.num_rows = self.columns.num_rows
        _check_types(self.columns, spec)
        truth = folder / "truth.arrow"
        self._truth = ColumnReader(truth) if truth.exists() else None

    def labels(self) -> NDArray[np.float32]:
        """Labels (N, T); NaN where not observed."""
        columns = [self.columns.read(f"label:{task.name}") for task in self._spec.tasks]
        return np.stack(columns, axis=1)

    def weights(self) -> NDArray[np.float32] | None:
        """Sample weights (N,), or None where all are 1."""
        return self.columns.read("weight") if self.columns.has("weight") else None

    def role(self, name: str) -> NDArray[Any] | None:
        """A column (N,) of ``EncodedRows.roles``, or None where there is none."""
        key = f"role:{name}"
        return self.columns.read(key) if self.columns.has(key) else None

    def rows(self) -> NDArray[np.int64]:
        """Row numbers (N,) in the source log."""
        return self.columns.read("row")

    def ids(self, name: str) -> NDArray[Any]:
        """Table rows (N,) of a categorical field.

        Raises:
            DataError: There is no such field.
        """
        return self._read(name, "categorical", [item.name for item in self._spec.categorical])

    def numeric(self, name: str) -> NDArray[np.float32]:
        """Values (N,) of a numeric feature.

        Raises:
            DataError: There is no such feature.
        """
        return self._read(name, "numeric", self._spec.numeric)

    def _read(self, name: str, kind: str, names: Sequence[str]) -> NDArray[Any]:
        if name not in names:
            raise DataError(
                f"{self.name}: must have a {kind} field {name!r}, got {', '.join(names) or 'none'}."
            )
        return self.columns.read(name)

    def truth(self) -> Mapping[str, NDArray[np.float64]] | None:
        """True probabilities (N,) by task, where they are known."""
        if self._truth is None:
            return None
        return {name: self._truth.read(name) for name in self._truth.names}


class ColumnReader:
    """The columns of a memory-mapped Arrow IPC file as NumPy arrays, by range of rows."""

    def __init__(self, path: Path) -> None:
        """Locate every column buffer of the file.

        Raises:
            ArtifactError: The file is truncated or no Arrow IPC file.
        """
        self.path = path
        try:
            with pa.memory_map(str(path)) as source:
                whole = source.read_buffer()
                reader = pa.ipc.open_file(whole)
                self._types = {field.name: field.type for field in reader.schema}
                batches = [reader.get_batch(k) for k in range(reader.num_record_batches)]
                for batch in batches:
                    batch.validate()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise ArtifactError(
                f"{path}: must be an Arrow IPC file, got {said}. {_ANEW}"
            ) from error
        for name, kind in self._types.items():
            if _value_type(kind) not in _NUMPY_BY_ARROW:
                raise ArtifactError(
                    f"{path}: must hold numbers and lists of them, got {kind} in column {name!r}. "
                    f"{_ANEW}"
                )
        rows = [batch.num_rows for batch in batches]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        self.num_rows = int(self.starts[-1])
        self._offsets = {
            name: [_buffer_offsets(batch.column(name), whole.address) for batch in batches]
            for name in self._types
        }
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def release(self) -> None:
        """Give the pages read so far back; reading them again maps them again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._types)

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self._types

    def is_jagged(self, name: str) -> bool:
        """Whether a row of a column holds any number of values."""
        return bool(pa.types.is_list(self._types[name]))

    def dtype(self, name: str) -> "np.dtype[Any]":
        """Type of a column's values; of its events where it is jagged."""
        return _NUMPY_BY_ARROW[_value_type(self._types[name])]

    def read(self, name: str) -> NDArray[Any]:
        """A whole column (N,)."""
        out = np.empty((self.num_rows, 1), self.dtype(name))
        self.read_into([name], 0, self.num_rows, out)
        self.release()
        return out[:, 0]

    def read_into(self, names: Sequence[str], start: int, stop: int, out: NDArray[Any]) -> None:
        """Copy rows ``start`` to ``stop`` of some columns into ``out`` (stop - start, columns)."""
        dtypes = [self.dtype(name) for name in names]
        offsets = [self._offsets[name] for name in names]
        for batch, first, last in self._pieces(start, stop):
            part = out[int(self.starts[batch]) + first - start :][: last - first]
            for column, dtype in enumerate(dtypes):
                position = offsets[column][batch][0] + first * dtype.itemsize
                part[:, column] = self._values(dtype, position, last - first)

    def read_jagged(self, name: str, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Events and lengths of rows ``start`` to ``stop`` of a jagged column."""
        dtype = self.dtype(name)
        values, lengths = [], []
        for batch, first, last in self._pieces(start, stop):
            bounds_at, values_at = self._offsets[name][batch]
            bounds = self._values(_INT32, bounds_at + first * 4, last - first + 1)
            begin, end = int(bounds[0]), int(bounds[-1])
            values.append(self._values(dtype, values_at + begin * dtype.itemsize, end - begin))
            lengths.append(np.diff(bounds).astype(np.int64))
        return np.concatenate(values), np.concatenate(lengths)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        batch = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            first = start - int(self.starts[batch])
            last = min(stop, int(self.starts[batch + 1])) - int(self.starts[batch])
            yield batch, first, last
            start = int(self.starts[batch + 1])
            batch += 1

    def _values(self, dtype: "np.dtype[Any]", position: int, count: int) -> NDArray[Any]:
        return self._bytes[position : position + count * dtype.itemsize].view(dtype)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_list(kind) else kind


def _check_types(columns: ColumnReader, spec: InputSpec) -> None:
    """Refuse a file whose columns are not those that the manifest promises."""
    floats: tuple[tuple[str, ...], bool] = (("float32",), False)
    ids = ("int32", "int64")
    wanted = dict.fromkeys((*spec.numeric, *(f"label:{task.name}" for task in spec.tasks)), floats)
    wanted |= {item.name: (ids, False) for item in spec.categorical}
    wanted |= {name: (ids, True) for group in spec.sequences for name in group.fields}
    wanted["row"] = (("int64",), False)
    for name, (types, is_jagged) in wanted.items():
        if not columns.has(name):
            raise ArtifactError(f"{columns.path}: must hold column {name!r}, got none. {_ANEW}")
        if columns.dtype(name).name not in types or columns.is_jagged(name) != is_jagged:
            raise ArtifactError(
                f"{columns.path}: column {name!r} must be of type {' or '.join(types)}, got "
                f"{columns.dtype(name)}. {_ANEW}"
            )


def _buffer_offsets(column: pa.Array, base: int) -> tuple[int, ...]:
    """Position in the file of the values buffer, or of a list's offsets and values buffers."""
    buffers = [buffer.address - base if buffer is not None else 0 for buffer in column.buffers()]
    if pa.types.is_list(column.type):
        return buffers[1], buffers[3]
    return (buffers[1],)


def _arrow_columns(rows: EncodedRows, spec: InputSpec) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    missing = [name for name in spec.numeric if name not in rows.numeric]
    missing += [item.name for item in spec.categorical if item.name not in rows.ids]
    missing += [group.name for group in spec.sequences if group.name not in rows.sequences]
    missing += [task.name for task in spec.tasks if task.name not in rows.labels]
    if missing:
        raise DataError(f"dataset: rows must hold {', '.join(missing)}, got none.")
    for item in spec.categorical:
        columns[item.name] = pa.array(rows.ids[item.name])
    for name in spec.numeric:
        columns[name] = pa.array(np.asarray(rows.numeric[name], np.float32))
    for group in spec.sequences:
        values, lengths = rows.sequences[group.name]
        bounds = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        for index, name in enumerate(group.fields):
            events = pa.array(np.ascontiguousarray(values[:, index]))
            columns[name] = pa.ListArray.from_arrays(bounds, events)
    for task in spec.tasks:
        columns[f"label:{task.name}"] = pa.array(np.asarray(rows.labels[task.name], np.float32))
    for name, codes in sorted(rows.roles.items()):
        kind = np.float64 if codes.dtype.kind == "f" else np.int64
        columns[f"role:{name}"] = pa.array(np.asarray(codes, kind))
    if rows.weights is not None:
        columns["weight"] = pa.array(np.asarray(rows.weights, np.float32))
    columns["row"] = pa.array(np.asarray(rows.row, np.int64))
    return columns
