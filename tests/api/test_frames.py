"""Tables in memory in the place of logs."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.errors import DataError

OPTIONS = ["training.max_epochs=1"]


class _OfAnotherLibrary:
    """What pandas, polars and DuckDB have in common."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


class _Broken:
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        raise pa.ArrowInvalid("column 'x' is of two types")


@pytest.fixture
def table() -> pa.Table:
    generator = np.random.default_rng(0)
    user = generator.integers(0, 30, 600)
    return pa.table(
        {
            "user_id": user,
            "price": generator.random(600),
            "click": (generator.random(600) < 0.2 + 0.5 * (user % 2)).astype(np.int64),
        }
    )


@pytest.mark.parametrize("wrap", [lambda table: table, _OfAnotherLibrary])
def test_table_is_what_its_file_is(
    table: pa.Table, wrap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    frame = wrap(table)
    pq.write_table(table, tmp_path / "frame.parquet")

    dataset = api.ingest(frame, tmp_path / "data", labels=["click"])
    run = api.train(dataset, model="lr", run=tmp_path / "run", settings=OPTIONS, report=False)

    of_file = api.ingest(tmp_path / "frame.parquet", tmp_path / "file", labels=["click"])
    assert dataset.fingerprint == of_file.fingerprint
    assert dataset.manifest["source"] == of_file.manifest["source"]
    written = api.infer_schema(frame, tmp_path / "schema.toml", labels=["click"])
    assert 'name = "price"' in written.read_text()
    assert run.predict(frame).equals(api.predict(run, tmp_path / "frame.parquet"))
    metrics = api.evaluate(run, frame)["metrics"]
    assert metrics == api.evaluate(run, tmp_path / "frame.parquet")["metrics"]
    assert not list((tmp_path / "scratch").iterdir())


def test_each_split_may_be_a_table(table: pa.Table, tmp_path: Path) -> None:
    dataset = api.ingest(
        {"train": table.slice(0, 400), "valid": table.slice(400)}, tmp_path / "data",
        labels=["click"],
    )  # fmt: skip

    assert repr(dataset).endswith("train 400, valid 200 rows)")


def test_table_that_arrow_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^the table in memory: must be .* of two types. Convert"):
        api.ingest(_Broken(), tmp_path / "data", labels=["click"])
    assert not (tmp_path / "data").exists()


def test_table_that_parquet_cannot_hold_is_refused(tmp_path: Path, table: pa.Table) -> None:
    spans = pa.array([(1, 2, 3)] * 600, pa.month_day_nano_interval())

    with pytest.raises(DataError, match=r"^the table in memory: must be one that Parquet can hold"):
        api.ingest(table.append_column("span", spans), tmp_path / "data", labels=["click"])


def test_errors_name_the_table_and_not_its_file(table: pa.Table, tmp_path: Path) -> None:
    labels = pa.array([7] * 3 + [0, 1] * 298 + [0])
    wrong = table.set_column(2, "click", labels)

    with pytest.raises(DataError, match=r"^the table in memory, column 'click', row 1: a binary"):
        api.ingest(wrong, tmp_path / "data", labels=["click"])
    with pytest.raises(DataError, match=r"^the table of split 'valid', column 'click', row 1: a"):
        api.ingest({"train": table, "valid": wrong}, tmp_path / "data", labels=["click"])
    with pytest.raises(DataError, match=r"^the table in memory: must hold the label column 'no'"):
        api.infer_schema(table, tmp_path / "schema.toml", labels=["no"])
