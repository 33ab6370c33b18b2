"""Raw logs to a dataset: split, fit encoders on the training rows, encode, write."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tamis import artifacts, config
from tamis.data import splits
from tamis.data.columns import Origin, alone_where_missing, as_codes, combined, source_column
from tamis.data.coverage import Coverage
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows
from tamis.data.encoders import (
    Encoders,
    EncodersFit,
    read_labels,
    required_columns,
)
from tamis.data.numeric import Moments
from tamis.data.read_errors import lacks_column
from tamis.data.readers import LogFile, column_names, column_types, discover, read_chunks
from tamis.data.schema import Schema
from tamis.data.splits import SPLIT_NAMES, SplitConfig
from tamis.data.times import as_microseconds
from tamis.data.vectors import GivenVectors, check_vectors, lacking_vectors, read_vectors
from tamis.errors import ConfigError, DataError, SchemaError

Progress = Callable[[str, int], None]
"""Called with the phase ("times", "fit" or "encode") and the rows of it that are done."""
Source = Path | str | Sequence[Path | str]

MARKET_MANIFEST = "market.json"


def ingest(
    source: Source | Mapping[str, Source],
    out: Path,
    *,
    schema: Schema,
    split: SplitConfig | None = None,
    encoders: Encoders | None = None,
    vectors: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Build a dataset from logs of any size.

    The logs are read twice (three times for a split by time): once to fit the encoders on the
    training rows, once to encode all rows. The same logs, schema and split give the same bytes.

    Args:
        source: A log file, several, or a folder of them; or, for logs that are split already, a
            mapping from split name to its log.
        out: Folder of the dataset; must not exist or be empty.
        schema: What the columns mean.
        split: How to split; must be None where ``source`` is split already.
        encoders: Encoders that were fitted before, so that a model which was trained with them can
            go on or be evaluated; their tables must be those of ``schema``. None: fitted on the
            training rows.
        vectors: File of each field whose vectors are given; see
            :func:`tamis.data.vectors.read_vectors`. None beside ``encoders``, which have read them.
        progress: Told how far it is.

    Returns:
        The dataset, whose manifest holds ``report``, counts of what was met in each field and
        what a person should look at, and ``source``, the files that it was made of.

    Raises:
        ConfigError: There is a ``split`` beside logs that are split already, or a field whose
            vectors are given has no file.
        DataError: ``out`` is taken, a log cannot be read, or a value has no meaning; file, column
            and row are named. Rows are counted from 1 in each file; a header is none.
        SchemaError: The schema names a column that is not there, or holds nothing in any file.
        ArtifactError: The disk is full.
        RunInUseError: Another process is writing ``out``.
    """
    check_split(source, split)
    if encoders is None:
        check_vectors(schema, vectors or {})
    elif vectors:
        raise ConfigError(
            f"vectors: must not be given with encoders, whose vocabularies are made, got "
            f"{', '.join(vectors)}. Leave one of the two out."
        )
    artifacts.check_free(out)  # before the work, not after it
    given = _read_vectors(schema, vectors or {})
    log = _Log(source, schema, split or SplitConfig(), progress or _ignore)
    log.check_columns()
    log.prepare_split()
    known = {name: found.categories for name, found in given.items()}
    fit = EncodersFit(schema, known) if encoders is None else None
    label_counts = _LabelCounts(schema)
    learns = fit is not None or not isinstance(source, Mapping) or "train" in source
    for part in log.parts("fit") if learns else ():
        table = part.table
        training = part.split_of_row == 0
        label_counts.add(read_labels(table, schema, origin=part.origin), training)
        if fit is not None and training.any():
            fit.add(table, origin=part.origin, training=None if training.all() else training)
    if learns:  # rows that are only evaluated need no labels of both classes
        label_counts.check(log.where)
    scales = label_counts.scales()
    if encoders is not None:
        # As the models know them that learned from these encoders.
        scales |= {task.name: task.scale for task in encoders.schema.tasks if task.mean is not None}
    else:
        assert fit is not None
        encoders = fit.finish()
    schema = _with_scales(schema, scales)
    encoders = dataclasses.replace(encoders, schema=schema, counts={})
    coverage = Coverage(schema, log.split)
    with DatasetWriter(out, schema, encoders.spec) as writer:
        encoders.save(writer.encoders_path)
        writer.add_vectors({name: found.rows for name, found in given.items()})
        for part in log.parts("encode"):
            rows = encoders.encode(part.table, first_row=part.first_row, origin=part.origin)
            coverage.add(rows, part.split_of_row)
            _write(writer, rows, part)
        return writer.finish(
            {
                "source": _names_and_sizes(log.files),
                **({"vectors": _described(vectors)} if vectors else {}),
                "split": config.to_table(log.split),
                "report": {
                    "rows": log.rows,
                    "label_rates": label_counts.rates(),
                    "times_out_of_order": log.times_out_of_order,
                    "fields": {
                        name: dataclasses.asdict(counts) for name, counts in encoders.counts.items()
                    },
                    "warnings": [*coverage.warnings(), *lacking_vectors(schema, encoders.counts)],
                },
            }
        )


def _read_vectors(schema: Schema, files: Mapping[str, Path]) -> dict[str, GivenVectors]:
    widths = {item.name: item.vectors for item in schema.fields}
    return {name: read_vectors(Path(file), width=widths[name]) for name, file in files.items()}


def check_split(source: object, split: SplitConfig | None) -> None:
    """Refuse a way to split logs that are split already.

    Raises:
        ConfigError: There is one.
    """
    if split is not None and isinstance(source, Mapping):
        raise ConfigError(
            f"split: must not be given for logs that are split already, into {', '.join(source)}, "
            f"got by = {split.by!r}. Leave it out."
        )


def describe_source(source: Source) -> list[dict[str, Any]]:
    """Name and size of each file of a log, as the manifest of a dataset made of it has them.

    Raises:
        DataError: A file is missing, empty or of an unknown ending, or a folder has no logs.
    """
    return _names_and_sizes(_files_of(source))


def market_of(source: Source) -> Path | None:
    """The folder of a simulated market, where the source is one."""
    if not isinstance(source, (str, Path)):
        return market_of(source[0]) if len(source) == 1 else None
    return Path(source) if (Path(source) / MARKET_MANIFEST).exists() else None


def encode_log(source: Source, encoders: Encoders) -> Iterator[EncodedRows]:
    """Encode new rows with fitted encoders, as ``predict`` needs them.

    The folder of a simulated market stands for its log, as in :func:`ingest`. Only the columns of
    the schema's fields are read: labels, times, weights and the other roles may be absent or hold
    anything. Labels of the result are NaN. What was missing, unknown or clipped is counted by field
    in ``encoders.counts``, which is complete once the iterator is used up; encoders that were just
    loaded start from nothing.

    Raises:
        DataError: A log cannot be read, or lacks a column of the schema.
    """
    first_row = 0
    schema = encoders.schema
    wanted = required_columns(schema, inputs_only=True)
    files = _files_of(source)
    _require(wanted, files, error=DataError)
    for file in files:
        first_of_file = first_row
        for table in read_chunks(
            file,
            columns=wanted,
            numeric=numeric_columns(schema),
            categories=_category_columns(schema),
        ):
            origin = Origin(file=str(file.path), first_row=first_row - first_of_file)
            yield encoders.encode(table, first_row=first_row, origin=origin, inputs_only=True)
            first_row += table.num_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Consecutive rows of a log."""

    table: pa.Table
    first_row: int
    split_of_row: NDArray[np.int8]
    truth: Mapping[str, NDArray[np.float64]]
    origin: Origin


class _Log:
    """The files of a log and how their rows are split."""

    def __init__(
        self,
        source: Source | Mapping[str, Source],
        schema: Schema,
        split: SplitConfig,
        progress: Progress,
    ) -> None:
        self.schema, self.progress = schema, progress
        self._split_of_file: list[int | None] = []
        self.files: list[LogFile] = []
        self._truth: list[Path | None] = []
        if isinstance(source, Mapping):
            for name, part in source.items():
                if name not in SPLIT_NAMES:
                    raise DataError(f"source: splits must be {SPLIT_NAMES}, got {name!r}.")
                self._add(part, SPLIT_NAMES.index(name))
        else:
            self._add(source, None)
        by = split.by
        if isinstance(source, Mapping):
            by = "column"
        elif by == "auto":
            by = "time" if schema.roles.time else "ratio"
        self.by = by
        self.split = split if isinstance(source, Mapping) else dataclasses.replace(split, by=by)
        if by == "time" and not schema.roles.time:
            raise SchemaError("split by time: roles.time must name a column, got none.")
        if by == "user" and not schema.roles.user:
            raise SchemaError("split by user: roles.user must name a column, got none.")
        self.where = str(self.files[0].path)
        self.rows = 0
        self.times_out_of_order = 0
        self._bounds: tuple[int, int] = (0, 0)

    def _add(self, source: Source, split: int | None) -> None:
        market = market_of(source)
        truth = None if market is None else market / "truth"
        found = _files_of(source)
        self.files += found
        self._split_of_file += [split] * len(found)
        self._truth += [None if truth is None else truth / file.path.name for file in found]

    def check_columns(self) -> None:
        """Refuse a schema that names a column which is not there, or which is empty everywhere."""
        wanted = required_columns(self.schema, inputs_only=False)
        if self.split.column:
            wanted.append(self.split.column)
        _require(wanted, self.files, error=SchemaError)
        holds_values = set()
        for file in self.files:
            types = column_types(file)
            holds_values |= {n for n in wanted if n not in types or not pa.types.is_null(types[n])}
        for name in wanted:
            if name not in holds_values:
                raise SchemaError(
                    f"{Origin(file=self.where).of(name)}: must hold values, got type null: none "
                    f"in any row. Take the column out of the schema."
                )

    def prepare_split(self) -> None:
        """For a split by time, read the times alone and find its bounds."""
        if self.by != "time":
            return
        roles, parts, done = self.schema.roles, [], 0
        for file in self.files:
            origin = Origin(file=str(file.path))
            for table in read_chunks(file, columns=[roles.time], numeric=frozenset()):
                column = source_column(table, roles.time, origin=origin)
                parts.append(as_microseconds(column, roles, origin=origin.of(roles.time)))
                origin = dataclasses.replace(origin, first_row=origin.first_row + table.num_rows)
                done += table.num_rows
                self.progress("times", done)
        times = np.concatenate(parts) if parts else np.empty(0, np.int64)
        if not len(times):
            raise DataError(f"{self.where}: must hold rows, got a header only.")
        self.times_out_of_order = int((np.diff(times) < 0).sum())
        self._bounds = splits.time_bounds(times, self.split)

    def parts(self, phase: str) -> Iterator[_Part]:
        """All rows in order, with their splits."""
        columns = required_columns(self.schema, inputs_only=False)
        if self.split.column and self.split.column not in columns:
            columns.append(self.split.column)
        first_row = 0
        for file, split, truth in zip(self.files, self._split_of_file, self._truth, strict=True):
            first_of_file = first_row
            chunks = read_chunks(
                file,
                columns=columns,
                numeric=numeric_columns(self.schema),
                categories=_category_columns(self.schema),
            )
            truths = _TruthReader(truth)
            for table in _read_ahead(chunks):
                origin = Origin(file=str(file.path), first_row=first_row - first_of_file)
                yield _Part(
                    table=table,
                    first_row=first_row,
                    split_of_row=(
                        np.full(table.num_rows, split, np.int8)
                        if split is not None
                        else self._assign(table, first_row, origin)
                    ),
                    truth=truths.take(first_row - first_of_file, table.num_rows),
                    origin=origin,
                )
                first_row += table.num_rows
                self.progress(phase, first_row)
        if first_row == 0:
            raise DataError(f"{self.where}: must hold rows, got a header only.")
        self.rows = first_row

    def _assign(self, table: pa.Table, first_row: int, origin: Origin) -> NDArray[np.int8]:
        roles = self.schema.roles
        if self.by == "time":
            column = source_column(table, roles.time, origin=origin)
            times = as_microseconds(column, roles, origin=origin.of(roles.time))
            return splits.split_by_time(times, self._bounds)
        if self.by == "user":
            users = as_codes(source_column(table, roles.user, origin=origin))
            rows = np.arange(first_row, first_row + table.num_rows, dtype=np.int64)
            return splits.split_by_share(alone_where_missing(users, rows), self.split)
        if self.by == "column":
            column = source_column(table, self.split.column, origin=origin)
            return splits.split_by_column(column, origin=origin.of(self.split.column))
        rows = np.arange(first_row, first_row + table.num_rows, dtype=np.int64)
        return splits.split_by_share(rows, self.split)


class _TruthReader:
    """True probabilities of the simulated market, by range of rows of one file."""

    def __init__(self, path: Path | None) -> None:
        self._table = None if path is None else pq.read_table(path)

    def take(self, start: int, count: int) -> dict[str, NDArray[np.float64]]:
        if self._table is None:
            return {}
        part = self._table.slice(start, count)
        return {
            name: combined(part[name]).to_numpy(zero_copy_only=False).astype(np.float64)
            for name in part.column_names
            if name != "impression_id"
        }


class _LabelCounts:
    """What training labels are: of how many classes, and on which scale."""

    def __init__(self, schema: Schema) -> None:
        self._tasks = schema.tasks
        self._observed = dict.fromkeys((task.name for task in schema.tasks), 0)
        self._sum = dict.fromkeys((task.name for task in schema.tasks), 0.0)
        self._moments = {task.name: Moments() for task in schema.tasks if task.kind == "regression"}
        self._training_rows = 0

    def add(self, labels: Mapping[str, NDArray[np.float32]], training: NDArray[np.bool_]) -> None:
        self._training_rows += int(training.sum())
        for name, values in labels.items():
            known = values[training & ~np.isnan(values)]
            self._observed[name] += len(known)
            self._sum[name] += float(known.sum(dtype=np.float64))
            if name in self._moments and len(known):
                self._moments[name].add(known.astype(np.float64))

    def check(self, where: str) -> None:
        if not self._training_rows:
            raise DataError(f"{where}: the training split must hold rows, got none.")
        for task in self._tasks:
            count, total = self._observed[task.name], self._sum[task.name]
            if task.kind == "binary" and total in (0, count):
                what = "none" if count == 0 else f"only {total / count:g}"
                raise DataError(
                    f"{where}, column {task.name!r}: training labels must be of both classes, "
                    f"got {what} in {count} rows. Check the label, or the split."
                )
            if task.kind == "probability" and not count:
                raise DataError(
                    f"{where}, column {task.name!r}: training rows must hold a probability to "
                    f"learn from, got none in {self._training_rows} rows. Check the column, or "
                    f"take the task out."
                )

    def scales(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the regression tasks that have labels."""
        known = {name: found for name, found in self._moments.items() if found.count}
        return {name: (found.mean, found.std) for name, found in known.items()}

    def rates(self) -> dict[str, float | None]:
        return {
            name: self._sum[name] / count if count else None
            for name, count in self._observed.items()
        }


def _with_scales(schema: Schema, scales: Mapping[str, tuple[float, float]]) -> Schema:
    """A schema whose regression tasks have the scales of their names, where they say none."""
    tasks = list(schema.tasks)
    for place, task in enumerate(tasks):
        if task.kind == "regression" and task.mean is None and task.name in scales:
            mean, std = scales[task.name]
            tasks[place] = dataclasses.replace(task, mean=mean, std=std)
    return dataclasses.replace(schema, tasks=tuple(tasks))


def _files_of(source: Source) -> list[LogFile]:
    market = market_of(source)
    return discover(source if market is None else market / "logs")


def _names_and_sizes(files: Sequence[LogFile]) -> list[dict[str, Any]]:
    # Not where they are: the same logs give the same bytes in any folder.
    return [{"name": file.path.name, "bytes": file.path.stat().st_size} for file in files]


def _described(vectors: Mapping[str, Path]) -> list[dict[str, Any]]:
    return [
        {"field": field, "name": Path(file).name, "bytes": Path(file).stat().st_size}
        for field, file in sorted(vectors.items())
    ]


def _write(writer: DatasetWriter, rows: EncodedRows, part: _Part) -> None:
    tasks = {task.name for task in writer.schema.tasks}
    for index, name in enumerate(SPLIT_NAMES):
        mask = part.split_of_row == index
        if not mask.any():
            continue
        writer.append(name, rows if mask.all() else rows.select(mask))
        if part.truth:
            writer.add_truth(name, {t: v[mask] for t, v in part.truth.items() if t in tasks})


def _read_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, the next being read by a second thread while one is worked on."""
    if pa.cpu_count() < 2:
        yield from tables
        return
    with ThreadPoolExecutor(max_workers=1) as reader:
        upcoming = reader.submit(next, tables, None)
        while (table := upcoming.result()) is not None:
            upcoming = reader.submit(next, tables, None)
            yield table


def numeric_columns(schema: Schema) -> frozenset[str]:
    """Columns of a text file that must be numbers: those that nothing but numbers is read from."""
    fields = {item.source for item in schema.fields if item.kind == "numeric"}
    used = {item.source for item in schema.fields if item.kind != "numeric"}
    return frozenset(fields - used - {schema.roles.time})


def _category_columns(schema: Schema) -> frozenset[str]:
    """Columns that nothing but categories is read from."""
    used = {item.source for item in schema.fields if item.kind == "categorical"}
    used |= {schema.roles.user, schema.roles.item, schema.roles.request}
    others = {item.source for item in schema.fields if item.kind != "categorical"}
    others |= {task.name for task in schema.tasks}
    return frozenset(used - others - {"", schema.roles.time, schema.roles.weight})


def _require(wanted: Sequence[str], files: Sequence[LogFile], *, error: type[Exception]) -> None:
    """Refuse files without a column; of JSON lines, whose rows may leave keys out, one has it."""
    found = [(file, column_names(file)) for file in files]
    somewhere = {name for file, names in found if file.format == "json" for name in names}
    for file, names in found:
        for name in wanted:
            if name not in names and not (file.format == "json" and name in somewhere):
                raise error(lacks_column(name, names, where=str(file.path)))


def _ignore(phase: str, rows: int) -> None:
    pass
