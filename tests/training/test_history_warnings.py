"""What training says of models that compare histories with the candidate and cannot."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.ingest import ingest
from tamis.data.schema import Field, Schema, Task
from tamis.models import catalog
from tamis.testing.models import example_spec
from tamis.training.config import run_config_from_table
from tamis.training.history_warnings import history_warnings
from tamis.training.loop import Silent, train

READERS = ("bst", "dien", "din", "dmin", "dmr", "transact")


def _warnings(name: str, **changes: Any) -> list[str]:
    entry = catalog.entry(name)
    spec = dataclasses.replace(example_spec(), **changes)
    config = entry.config(**({"embedding_dim": 8} if name in READERS else {}))
    return history_warnings(name, entry.model(config, spec))


@pytest.mark.parametrize("name", READERS)
def test_reader_of_histories_without_a_counterpart_is_told(name: str) -> None:
    unmatched = example_spec().sequences
    tables = {table for group in unmatched for table in group.tables}
    fields = tuple(f for f in example_spec().categorical if f.table not in tables)

    warnings = _warnings(name, categorical=fields)

    assert len(warnings) == len(unmatched)
    assert warnings[0].startswith(f"{name} compares histories with the candidate, but no")
    assert "Set shares in the schema" in warnings[0]


@pytest.mark.parametrize("name", READERS)
def test_reader_of_histories_without_any_is_told(name: str) -> None:
    (warning,) = _warnings(name, sequences=())

    assert "the schema has no field of kind 'sequence'" in warning


def test_others_are_told_nothing() -> None:
    assert not _warnings("din")
    assert not _warnings("dhen", sequences=())


class _Listener(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("shares", ["", "item"])
def test_training_says_it_once(tmp_path: Path, shares: str) -> None:
    generator = np.random.default_rng(0)
    log = {
        "item": generator.integers(0, 9, 400),
        "past": [[k % 9] * (k % 3) for k in range(400)],
        "click": generator.integers(0, 2, 400),
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    fields = (
        Field(name="item", kind="categorical"),
        Field(name="past", kind="sequence", shares=shares),
    )
    schema = Schema(fields=fields, tasks=(Task(name="click"),))
    dataset = ingest(tmp_path / "log.parquet", tmp_path / "d", schema=schema)
    settings = run_config_from_table({"model": {"name": "din"}, "training": {"max_epochs": 1}})
    listener = _Listener()

    train(dataset, settings, tmp_path / "run", observer=listener)

    assert [("sequence 'past'" in text) for text in listener.warnings] == ([] if shares else [True])
