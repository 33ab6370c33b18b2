"""tamis' side of the benchmarks: the same commands as the peers', answered by the public API."""

import importlib.metadata
import queue
import resource
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import worker

from tamis import api
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows
from tamis.data.schema import (
    CategoricalInput,
    Field,
    InputSpec,
    Schema,
    SequenceInput,
    Table,
    Task,
)
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.loop import train
from tamis.training.predict import choose_precision


def open_contender(config: worker.Config) -> worker.Commands:
    """Start what ``config["task"]`` asks for: ``train``, ``ingest`` or ``fit``."""
    api.prepare_process(config["threads"])
    if "memory_limit_bytes" in config:
        limit_memory(config["memory_limit_bytes"])
    if config["task"] == "ingest":
        return {"ingest": lambda message: ingest(config, Path(message["out"]))}
    if config["task"] == "fit":
        return {"fit": lambda _: fit(config)}
    return _Training(config).commands()


def ingest(config: worker.Config, out: Path) -> worker.Answer:
    """Ingest one log whole as a training split.

    Args:
        config: ``categorical`` and ``numeric`` columns, ``label``, ``min_count`` and the ``file``.
        out: Folder of the dataset.
    """
    schema = Schema(
        fields=(
            *(
                Field(name=name, kind="categorical", min_count=config["min_count"])
                for name in config["categorical"]
            ),
            *(Field(name=name, kind="numeric") for name in config["numeric"]),
        ),
        tasks=(Task(name=config["label"]),),
    )
    started = time.perf_counter()
    if config.get("split"):
        dataset = api.ingest(config["file"], out, schema=schema)
    else:
        dataset = api.ingest({"train": config["file"]}, out, schema=schema)
    return {
        "seconds": time.perf_counter() - started,
        "table_rows": sum(table.num_rows for table in dataset.spec.tables),
    }


def fit(config: worker.Config) -> worker.Answer:
    """One training on an ingested dataset."""
    started = time.perf_counter()
    api.train(
        config["dataset"],
        model=config["model"],
        settings=config["settings"],
        run=config["run"],
        report=False,
    )
    return {"seconds": time.perf_counter() - started}


def limit_memory(num_bytes: int) -> None:
    """Make every allocation of private memory beyond this fail; Linux only, elsewhere nothing."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def write_dataset(
    out: Path,
    files: Mapping[str, str],
    rows_by_field: Mapping[str, int],
    label: str,
    history: int = 0,
) -> Dataset:
    """A dataset of ids that are encoded already, with declared table sizes.

    Args:
        out: Folder of the dataset.
        files: Parquet file of each split.
        rows_by_field: Table rows of each field.
        label: Label column.
        history: Events of the list column ``history`` at most, of values of the last field, after
            zeros where there are fewer; 0: none.
    """
    owner = list(rows_by_field)[-1]
    past = Field(name="history", kind="sequence", shares=owner, max_length=max(1, history))
    schema = Schema(
        fields=(
            *(Field(name=name, kind="categorical") for name in rows_by_field),
            *([past] if history else []),
        ),
        tasks=(Task(name=label),),
    )
    group = SequenceInput(
        name="history", fields=("history",), tables=(owner,), max_length=max(1, history)
    )
    spec = InputSpec(
        numeric=(),
        categorical=tuple(CategoricalInput(name=name, table=name) for name in rows_by_field),
        sequences=(group,) if history else (),
        tables=tuple(Table(name=name, num_rows=rows) for name, rows in rows_by_field.items()),
        tasks=schema.tasks,
    )
    with DatasetWriter(out, schema, spec) as writer:
        for split, path in files.items():
            first = 0
            for batch in pq.ParquetFile(path).iter_batches():
                columns = {name: batch[name].to_numpy() for name in rows_by_field}
                writer.append(
                    split,
                    EncodedRows(
                        row=np.arange(first, first + batch.num_rows, dtype=np.int64),
                        ids={name: ids.astype(np.int32) for name, ids in columns.items()},
                        sequences=_histories(batch, history),
                        labels={label: batch[label].to_numpy().astype(np.float32)},
                    ),
                )
                first += batch.num_rows
        return writer.finish({})


def _histories(batch: pa.RecordBatch, history: int) -> dict[str, Any]:
    if not history:
        return {}
    values = batch["history"].flatten().to_numpy().astype(np.int32)
    lengths = np.count_nonzero(values.reshape(-1, history), axis=1)
    return {"history": (values[values != 0].reshape(-1, 1), lengths)}


def settings_of(config: worker.Config) -> RunConfig:
    """The peers' config in tamis' words; what it does not name keeps tamis' default."""
    model: dict[str, Any] = {
        "name": config["model"],
        "embedding_dim": config["embedding_dim"],
        "hidden_units": config["hidden_units"],
        "dropout": config.get("dropout", 0.0),
        "norm": "batch" if config.get("batch_norm") else "none",
    }
    if config["model"] == "dcn_v2":
        model["num_cross_layers"] = config["num_cross_layers"]
    if config["model"] == "interformer":
        model = {"name": "interformer", "embedding_dim": config["embedding_dim"]}
    model |= config.get("model_settings", {})
    return run_config_from_table(
        {
            "model": model,
            "optimizer": {"dense_lr": config["learning_rate"], **config.get("optimizer", {})},
            "training": {
                "seed": config["seed"],
                "batch_size": config["batch_size"],
                "max_epochs": config["epochs"],
                "patience": config["epochs"],
                "monitor": "log_loss",
                "precision": config["precision"],
            },
        }
    )


class _Training:
    """A training in a thread that stops after each epoch until it is told to go on."""

    def __init__(self, config: worker.Config) -> None:
        scratch = Path(config["scratch"])
        shutil.rmtree(scratch, ignore_errors=True)
        started = time.perf_counter()
        self.dataset = write_dataset(
            scratch / "dataset",
            config["files"],
            config["rows_by_field"],
            config["label"],
            config.get("history", 0),
        )
        self.preprocess_seconds = time.perf_counter() - started
        self.settings = settings_of(config)
        self.run = scratch / "run"
        self.label = config["label"]
        self._go: queue.Queue[None] = queue.Queue()
        self._answers: queue.Queue[worker.Answer | Exception] = queue.Queue()
        self._seconds_before = 0.0
        self._result: Any = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def commands(self) -> worker.Commands:
        return {
            "hello": lambda _: {
                "version": importlib.metadata.version("tamis"),
                "preprocess_seconds": self.preprocess_seconds,
                "precision": str(
                    choose_precision(self.settings.training.precision, torch.device("cpu"))
                ).removeprefix("torch."),
            },
            "epoch": lambda _: self.epoch(),
            "finish": lambda _: self.finish(),
        }

    def epoch(self) -> worker.Answer:
        if not self._thread.is_alive():
            self._thread.start()
        self._go.put(None)
        answer = self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def finish(self) -> worker.Answer:
        """Metrics of the weights that the validation split chose."""
        self._thread.join()
        test = self._result.metrics["metrics"]["test"][self.label]
        return {"auc": test["auc"], "log_loss": test["log_loss"]}

    # The observer of the training, called from its thread.

    def on_message(self, text: str) -> None:
        """Nothing to draw."""

    def on_warning(self, text: str) -> None:
        """Leave it in the log of the process."""
        sys.stderr.write(f"{text}\n")

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
        """Nothing to draw."""

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """Hand the epoch's figures out; go on when the next epoch is asked for."""
        seconds = record["time"]["training_seconds"]
        valid = record["valid"][self.label]
        answer = {
            "seconds": [seconds - self._seconds_before],
            "rows": self.dataset.split("train").num_rows,
            "valid_auc": valid["auc"],
            "valid_log_loss": valid["log_loss"],
        }
        self._seconds_before = seconds
        self._answers.put(answer)
        if record["epoch"] < self.settings.training.max_epochs:
            self._go.get()

    def _work(self) -> None:
        self._go.get()
        try:
            self._result = train(self.dataset, self.settings, self.run, observer=self)
        except Exception as error:  # raised again where the epoch was asked for
            self._answers.put(error)


if __name__ == "__main__":
    worker.serve(open_contender)
