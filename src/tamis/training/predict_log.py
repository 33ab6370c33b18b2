"""Predictions for the rows of a raw log, with the model and the encoders of a finished run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.ingest import Source, encode_log
from tamis.data.loader import batches_of_rows
from tamis.data.readers import LogFile, discover
from tamis.data.vocabulary import FieldCounts
from tamis.errors import ConfigError, DataError
from tamis.training.evaluate import load_predictor
from tamis.training.predict import predict
from tamis.training.run_folder import run_encoders

_ENDINGS = (".parquet", ".pq", ".csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Predicted rows of a log, and what encoding met in it."""

    table: pa.Table
    """One row per row of the log: ``row``, and ``prediction_<task>`` for each task."""
    fields: Mapping[str, FieldCounts]
    """By field: values, and how many of them were missing, unknown or clipped."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is said of fields most of whose values training did not know."""
        return tuple(
            f"{name}: {counts.unknown} of {held} values are outside the vocabulary. If they should "
            f"be in it, look at how the log writes them: 7 and 7.0 of a text file are two "
            f"categories, and so are 1 and True."
            for name, counts in self.fields.items()
            if counts.unknown > (held := counts.rows - counts.missing) / 2
        )


def predict_log(run: Path, source: Source, out: Path | None) -> Prediction:
    """Predict every row of a log.

    Args:
        run: Folder of a finished run.
        source: Log file, several, or a folder of them.
        out: File to write, Parquet or CSV by its ending; None only returns the table.

    Raises:
        ArtifactError: The run is damaged.
        ConfigError: ``out`` is one of the logs, or has another ending.
        DataError: The log cannot be read, has no rows or lacks a column.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    files = discover(source)
    if out is not None:
        _check_out(out, files)
    predictor, spec = load_predictor(run)
    encoders = run_encoders(run)
    parts, rows_seen = [], []
    for rows in encode_log(source, encoders):
        if not rows.num_rows:
            continue
        parts.append(
            predict(
                predictor.model,
                batches_of_rows(rows, spec, batch_size=predictor.batch_size),
                tasks=spec.tasks,
                device=predictor.device,
                precision=predictor.precision,
            )
        )
        rows_seen.append(rows.row)
    if not parts:
        raise DataError(
            f"{files[0].path}: must hold rows, got a header only. Name a log with rows."
        )
    predictions = np.concatenate(parts)
    columns: dict[str, Any] = {"row": np.concatenate(rows_seen)}
    columns |= {f"prediction_{t.name}": predictions[:, i] for i, t in enumerate(spec.tasks)}
    table = pa.table(columns)
    if out is not None:
        _write_table(table, out)
    return Prediction(table=table, fields=encoders.counts)


def _check_out(out: Path, logs: Sequence[LogFile]) -> None:
    """Refuse to write predictions over a log, or in a format that the ending does not name."""
    if out.suffix.lower() not in _ENDINGS:
        raise ConfigError(
            f"{out}: must end in one of {', '.join(_ENDINGS)}, got "
            f"{out.suffix or 'no ending'!r}. Name a file with such an ending."
        )
    if out.is_dir():
        raise ConfigError(f"{out}: must be a file to write, got a folder. Name a file in it.")
    if out.exists() and any(log.path.samefile(out) for log in logs):
        raise ConfigError(
            f"{out}: must not be one of the logs that are predicted, got one of them. Name "
            f"another file."
        )


def _write_table(table: pa.Table, path: Path) -> None:
    with artifacts.atomic_path(path) as temporary:
        if path.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)
