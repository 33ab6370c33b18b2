"""Logs, schemas and datasets: simulate, infer, import, ingest, open."""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tamis import artifacts
from tamis.api.folders import named
from tamis.api.frames import Frame, on_disk, splits_on_disk
from tamis.data.dataset import Dataset
from tamis.data.inference import InferredSchema
from tamis.data.inference import infer_schema as _infer_schema
from tamis.data.ingest import MARKET_MANIFEST, Progress, Source, check_split, describe_source
from tamis.data.ingest import ingest as _ingest
from tamis.data.market import MarketSummary, market_schema
from tamis.data.market import simulate as _simulate
from tamis.data.schema import Schema, load_schema
from tamis.data.splits import SplitConfig
from tamis.data.time_columns import without_time
from tamis.errors import ConfigError, DataError, TamisWarning

if TYPE_CHECKING:
    from tamis.importers.imported import Imported


def simulate(
    rows: int,
    out: Path | str,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> MarketSummary:
    """Write a log of the simulated ad market, and its true probabilities apart from it.

    Raises:
        DataError: ``out`` exists and is not empty.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    with artifacts.disk_errors(Path(out)):
        return _simulate(rows, Path(out), seed=seed, progress=progress)


def infer_schema(source: Source | Frame, out: Path | str, *, labels: Sequence[str] = ()) -> Path:
    """Infer a schema and write it for editing; see :func:`schema_of` for what it warns of.

    Returns:
        Where it was written: ``out``, or ``out/schema.toml`` for a folder.

    Raises:
        ConfigError: ``out`` is neither a TOML file nor a folder.
    """
    inferred = schema_of(source, labels)
    _tell(inferred.warnings)
    return write_schema(inferred.schema, out)


def write_schema(schema: Schema, out: Path | str) -> Path:
    """Write a schema for editing; see :func:`infer_schema`.

    Raises:
        ConfigError: ``out`` is neither a TOML file nor a folder, or another schema stands there.
    """
    out = Path(out)
    is_other_file = out.is_file() if out.exists() else out.suffix[1:].isalpha()
    if out.suffix != ".toml" and is_other_file:
        raise ConfigError(
            f"{out}: must be a .toml file or a folder, got "
            f"{f'the ending {out.suffix!r}' if out.suffix else 'another file'}. Name one "
            f"such as {out.with_suffix('.toml')}."
        )
    path = out / "schema.toml" if out.suffix != ".toml" or out.is_dir() else out
    text = schema.to_editable_toml()
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path}: must not exist yet, got a schema that may have been edited by hand. Name "
            f"another file, or remove this one."
        )
    artifacts.write_text(path, text)
    return path


def schema_of(
    source: Source | Frame, labels: Sequence[str] = (), *, split: SplitConfig | None = None
) -> InferredSchema:
    """Schema of a log: the market's own for a simulated market, else inferred.

    Args:
        source: A log file, several, a folder of them, or a table in memory.
        labels: Label columns; without any, a column with a usual name is taken.
        split: How its rows will be split; a column that says so is no input.

    Raises:
        ConfigError: ``labels`` is no list.
        DataError: The log cannot be read, or is a folder that tamis wrote for something else.
    """
    check_texts(labels, "labels")
    with on_disk(source) as log:
        check_log(log)
        return _schema_of(log, labels, split or SplitConfig())


def _schema_of(log: Source, labels: Sequence[str], split: SplitConfig) -> InferredSchema:
    given = [log] if isinstance(log, (str, Path)) else list(log)
    if len(given) == 1 and (Path(given[0]) / MARKET_MANIFEST).exists():
        return InferredSchema(schema=market_schema(), warnings=())
    inferred = _infer_schema(given, labels, split=split)
    meaning = without_time(split.by)
    if inferred.schema.roles.time or inferred.times or not meaning:
        return inferred
    warning = (
        f"time: no column was recognised as one, so {meaning}; if there is one, name it as "
        f"roles.time of the schema"
    )
    return dataclasses.replace(inferred, warnings=(*inferred.warnings, warning))


def ingest(
    source: Source | Frame | Mapping[str, Source | Frame],
    out: Path | str,
    *,
    labels: Sequence[str] = (),
    schema: Schema | Path | str | None = None,
    split: SplitConfig | None = None,
    vectors: Mapping[str, Path | str] | None = None,
    progress: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Dataset:
    """Turn logs into a dataset; see :func:`tamis.data.ingest.ingest`.

    What a person should look at is warned of, as a ``TamisWarning``: in a schema that is inferred,
    and in what the splits lack.

    Args:
        source: A log file, several, a folder of them, a table in memory, or a mapping from split
            to one of these.
        out: Folder of the dataset.
        labels: Label columns, for inferring the schema.
        schema: Schema, or its file; inferred when absent.
        split: How to split; by time where there is a time, else at random 8:1:1.
            :func:`split_config` makes one from a word.
        vectors: File of each field whose vectors are given.
        progress: Told how far it is.
        on_warning: Told what a person should look at, in place of the ``TamisWarning``.

    Raises:
        ConfigError: There are ``labels`` beside a ``schema``, which names them itself, or a
            ``split`` beside logs that are split already; one of them is of another kind; or a
            field whose vectors are given has no file.
        DataError: A log cannot be read, or a value has no meaning.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    check_texts(labels, "labels")
    if schema is not None and labels:
        raise ConfigError(
            f"labels: must not be given with a schema, whose tasks are the labels, got "
            f"{', '.join(labels)}. Leave one of the two out."
        )
    if not isinstance(split, SplitConfig | None):
        raise ConfigError(
            f"split: must be a SplitConfig, got {split!r}. Make one, such as "
            f"tamis.api.split_config('user', valid=0.1, test=0.1)."
        )
    check_split(source, split)
    with splits_on_disk(source) as given:
        parts = list(given.values()) if isinstance(given, Mapping) else [given]
        if not parts:
            raise DataError("source: must name the log of a split, got an empty mapping.")
        for part in parts:
            check_log(part)
        if schema is None:
            # Rows that are split already are not split by time, whether or not they have one.
            how = SplitConfig(by="ratio") if isinstance(given, Mapping) else split or SplitConfig()
            inferred = _schema_of(parts[0], labels, how)
            _tell(inferred.warnings, on_warning)
            schema = inferred.schema
        elif not isinstance(schema, Schema):
            schema = load_schema(Path(schema))
        log: Any = given
        if not isinstance(given, (str, Path, Mapping)) and len(given) == 1:
            log = given[0]
        with artifacts.disk_errors(Path(out)):
            dataset = _ingest(
                log,
                Path(out),
                schema=schema,
                split=split,
                vectors={name: Path(file) for name, file in (vectors or {}).items()},
                progress=progress,
            )
    _tell(dataset.manifest["report"]["warnings"], on_warning)
    return dataset


def import_deepctr(
    feature_columns: Sequence[Any],
    *,
    labels: Sequence[str],
    files: Path | str | Mapping[str, Path | str],
    separator: str = "",
) -> "Imported":
    """Feature columns of DeepCTR; see :func:`tamis.importers.deepctr.read`."""
    from tamis.importers import deepctr

    logs: Path | dict[str, Path]
    if isinstance(files, Mapping):
        logs = {split: Path(file) for split, file in files.items()}
    else:
        logs = Path(files)
    return deepctr.read(feature_columns, labels=labels, files=logs, separator=separator)


def import_fuxictr(folder: Path | str, experiment: str) -> "Imported":
    """An experiment of FuxiCTR; see :func:`tamis.importers.fuxictr.read`."""
    from tamis.importers import fuxictr

    return fuxictr.read(Path(folder), experiment)


def import_recbole(
    folder: Path | str, *, label: str, threshold: float | None, out: Path | str
) -> "Imported":
    """A data set of RecBole; see :func:`tamis.importers.recbole.read`."""
    from tamis.importers import recbole

    with artifacts.disk_errors(Path(out)):
        return recbole.read(Path(folder), label=label, threshold=threshold, out=Path(out))


def split_config(name: str, *, valid: float, test: float) -> SplitConfig:
    """Split settings from one word: a way to split, or the name of a column that says it."""
    if name in ("auto", "time", "user", "ratio"):
        return SplitConfig(by=cast("Any", name), valid=valid, test=test)
    return SplitConfig(by="column", column=name, valid=valid, test=test)


def is_dataset(path: Path | str) -> bool:
    """Whether a folder is a finished dataset."""
    return artifacts.kind_of(Path(path)) == "dataset"


def dataset_folder_for(log: Path) -> Path:
    """A folder below ``datasets/`` that is not taken yet, named after a log."""
    # A hidden file has nothing before its first dot.
    stem = named(log).name.strip(".").split(".")[0] or "log"
    for number in itertools.count(1):
        folder = Path("datasets") / (stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return folder
    raise AssertionError("a counter does not end")


def open_dataset(path: Path | str, *, verify: bool = False) -> Dataset:
    """Open a dataset that was ingested before; ``verify`` hashes every file of it.

    Raises:
        ArtifactError: The folder is no dataset, or one of its files is damaged.
    """
    return Dataset.open(Path(path), verify=verify)


def check_made_of(dataset: Dataset, log: Source, *, advice: str) -> None:
    """Check that a dataset was made of a log, by the names and sizes of its files.

    A dataset of an earlier version does not say what it was made of, and passes.

    Args:
        dataset: The dataset.
        log: Log file, several, or a folder of them.
        advice: What to do otherwise, for the message.

    Raises:
        ConfigError: It was made of other files.
        DataError: A file of the log is missing or empty.
    """
    check_log(log)
    given, own = describe_source(log), dataset.manifest.get("source")
    if own is not None and given != own:
        raise ConfigError(
            f"{dataset.path}: must be made of the log that is given, got {_named(given)} for a "
            f"dataset of {_named(own)}. {advice}"
        )


def check_log(source: Source) -> None:
    """Refuse what names no log, and folders that tamis wrote for something else.

    Raises:
        DataError: It is no path or list of paths; or a folder that tamis wrote for something else,
            whose JSON would pass for a log.
    """
    parts = [source] if isinstance(source, (str, Path)) else source
    for part in parts if isinstance(parts, Sequence) else [parts]:
        if not isinstance(part, (str, Path)):
            raise DataError(
                f"source: must be the path of a log, a list of paths or a table in memory, got "
                f"{type(part).__name__}. Give paths as a list; make one table of several, or write "
                f"them to files."
            )
        what = artifacts.describe_folder(Path(part))
        if what:
            raise DataError(f"{part}: must be a log file or a folder of logs, got {what}")


def check_texts(values: Sequence[str], what: str) -> None:
    """Refuse a text where a list of texts is asked for: its letters would pass for them.

    Raises:
        ConfigError: It is no list, or holds something else.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, str) for value in values):
        raise ConfigError(
            f"{what}: must be a list of texts, got {values!r}. Make a list of them, such as "
            f"['one', 'two']."
        )


def _tell(texts: Sequence[str], on_warning: Callable[[str], None] | None = None) -> None:
    """Tell a person what to look at, as warnings of the line that called what calls this."""
    for text in texts:
        if on_warning is not None:
            on_warning(text)
        else:
            warnings.warn(text, TamisWarning, stacklevel=3)


def _named(files: Sequence[Mapping[str, Any]]) -> str:
    first = f"{files[0]['name']} of {files[0]['bytes']:,} bytes"
    return first if len(files) == 1 else f"{first} and {len(files) - 1:,} more files"
