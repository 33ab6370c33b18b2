"""Predictions of a raw log: counted repairs, and a place for them that is no log."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.errors import ConfigError, DataError
from tamis.training.predict_log import predict_log


@pytest.fixture
def run(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    item = np.arange(600) % 20
    table = pa.table(
        {
            "item_id": item,
            "price": generator.random(600),
            "y": (generator.random(600) < 0.2 + 0.5 * (item % 2)).astype(np.int64),
        }
    )
    pyarrow.csv.write_csv(table, tmp_path / "log.csv")
    dataset = api.ingest(tmp_path / "log.csv", tmp_path / "data", labels=["y"])
    settings = ["training.max_epochs=1"]
    api.train(dataset, model="lr", settings=settings, run=tmp_path / "run", report=False)
    return tmp_path / "run"


def test_repairs_are_counted_over_all_files(run: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "1.csv").write_text("item_id,price\n1,0.5\n77,\n")
    (logs / "2.csv").write_text("item_id,price\n78,0.25\n2,inf\n3,0.1\n")

    found = predict_log(run, logs, tmp_path / "p.parquet")

    assert found.table["row"].to_pylist() == [0, 1, 2, 3, 4]
    item, price = found.fields["item_id"], found.fields["price"]
    assert (item.rows, item.missing, item.unknown) == (5, 0, 2)
    assert (price.rows, price.missing, price.clipped) == (5, 1, 1)
    assert pq.read_table(tmp_path / "p.parquet").equals(found.table)


def test_log_under_another_name_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    before = log.read_bytes()
    os.link(log, tmp_path / "link.csv")
    (tmp_path / "symlink.csv").symlink_to(log)

    for name in ("log.csv", "link.csv", "symlink.csv"):
        with pytest.raises(ConfigError, match=rf"{name}: must not be one of the logs that are"):
            predict_log(run, log, tmp_path / name)
    assert log.read_bytes() == before


def test_ending_decides_the_format_in_either_case(run: Path, tmp_path: Path) -> None:
    found = predict_log(run, tmp_path / "log.csv", tmp_path / "P.CSV")

    assert pyarrow.csv.read_csv(tmp_path / "P.CSV").num_rows == found.table.num_rows == 600
    with pytest.raises(ConfigError, match=r"p.json: must end in one of .parquet, .pq, .csv, got"):
        predict_log(run, tmp_path / "log.csv", tmp_path / "p.json")


def test_log_without_rows_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("item_id,price\n")

    with pytest.raises(DataError, match=r"empty.csv: must hold rows, got a header only. Name a"):
        predict_log(run, tmp_path / "empty.csv", None)


def test_folder_of_a_market_stands_for_its_log(tmp_path: Path) -> None:
    api.simulate(2000, tmp_path / "market")
    dataset = api.ingest(tmp_path / "market", tmp_path / "data")
    settings = ["training.max_epochs=1"]
    run = api.train(dataset, model="lr", settings=settings, run=tmp_path / "run", report=False)

    found = predict_log(run.path, tmp_path / "market", None)

    assert found.table.num_rows == 2000
    assert found.table.equals(predict_log(run.path, tmp_path / "market" / "logs", None).table)
