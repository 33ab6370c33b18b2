"""Predictions of pairs are those of the rows that they stand for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.reproduce.early.pairs import PairPredictor

SCHEMA = Schema(
    fields=(
        Field(name="user", kind="categorical", side="user"),
        Field(name="history", kind="sequence", side="user", shares="ad", max_length=4),
        Field(name="ad", kind="categorical", side="item"),
        Field(name="price", kind="numeric", side="item"),
        Field(name="hour", kind="categorical", side="context"),
    ),
    tasks=(Task(name="click"), Task(name="hide")),
    roles=Roles(user="user"),
)
REQUESTS, ADS = 12, 9


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    generator = np.random.default_rng(0)
    requests = pa.table(
        {
            "user": [f"u{k % 5}" for k in range(REQUESTS)],
            "history": [
                [int(a) for a in generator.integers(0, ADS, k % 4)] for k in range(REQUESTS)
            ],
            "hour": [f"h{k % 3}" for k in range(REQUESTS)],
        }
    )
    ads = pa.table({"ad": np.arange(ADS), "price": generator.random(ADS)})
    return requests, ads


def _rows(tables: tuple[pa.Table, pa.Table]) -> pa.Table:
    """Every request with every ad."""
    requests, ads = tables
    left = requests.take(pa.array(np.repeat(np.arange(REQUESTS), ADS)))
    right = ads.take(pa.array(np.tile(np.arange(ADS), REQUESTS)))
    for name in right.column_names:
        left = left.append_column(name, right[name])
    return left


@pytest.fixture(scope="module", params=["early_stage", "din"])
def run(
    request: pytest.FixtureRequest,
    tables: tuple[pa.Table, pa.Table],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    rows = _rows(tables)
    generator = np.random.default_rng(1)
    for task in ("click", "hide"):
        rows = rows.append_column(task, pa.array(generator.integers(0, 2, rows.num_rows)))
    pq.write_table(rows, folder / "log.parquet")
    api.ingest(folder / "log.parquet", folder / "data", schema=SCHEMA)
    settings = ["training.max_epochs=1", "training.precision='float32'"]
    api.train(
        folder / "data",
        model=request.param,
        settings=settings,
        run=folder / "run",
        report=False,
    )
    return folder / "run"


def test_pairs_are_predicted_as_the_rows_are(
    run: Path, tables: tuple[pa.Table, pa.Table], tmp_path: Path
) -> None:
    pq.write_table(_rows(tables), tmp_path / "rows.parquet")
    expected = api.predict(run, tmp_path / "rows.parquet")
    generator = np.random.default_rng(2)
    rows = generator.integers(0, REQUESTS, 50)
    ads = generator.integers(0, ADS, 50)

    found = PairPredictor(run).bind(*tables).predict(rows, ads)

    for task in ("click", "hide"):
        whole = expected[f"prediction_{task}"].to_numpy().reshape(REQUESTS, ADS)
        np.testing.assert_allclose(found[task], whole[rows, ads], rtol=1e-5)


def test_no_pairs_have_no_predictions(run: Path, tables: tuple[pa.Table, pa.Table]) -> None:
    nothing = np.zeros(0, np.int64)
    found = PairPredictor(run).bind(*tables).predict(nothing, nothing)
    assert {task: len(values) for task, values in found.items()} == {"click": 0, "hide": 0}
