"""Vectors that are given for items: what they tell of items that training has never seen."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.data.dataset import Dataset
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.nn.embedding import GivenRows
from tamis.training.predict import load_trained

_ITEMS, _ROWS, _WIDTH = 400, 6000, 8
_OPTIONS = [
    *("training.max_epochs=4", "model.hidden_units=[32]", "training.ema_decay=0.9"),
    *("optimizer.dense_lr=0.01", "training.batch_size=256"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which a click depends on the item's vector; half the items are new in the test."""
    folder = tmp_path_factory.mktemp("vectors")
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(_ITEMS, _WIDTH)).astype(np.float32) / np.sqrt(_WIDTH)
    part = np.array(["train"] * 4000 + ["valid"] * 1000 + ["test"] * 1000)
    item = np.where(
        part == "test",
        generator.integers(_ITEMS // 2, _ITEMS, _ROWS),
        generator.integers(0, _ITEMS // 2, _ROWS),
    )
    past = generator.integers(0, _ITEMS, (_ROWS, 2))
    # Liked: what is on one side, and what is like the first of the history.
    score = 3 * vectors[item, 0] + 4 * (vectors[item] * vectors[past[:, 0]]).sum(1)
    click = (generator.random(_ROWS) < 1 / (1 + np.exp(-3 * score))).astype(np.int64)
    log = {"item_id": item, "past": past.tolist(), "click": click, "part": part}
    pq.write_table(pa.table(log), folder / "log.parquet")
    table = pa.table({"key": np.arange(_ITEMS), "value": vectors.tolist()})
    pq.write_table(table, folder / "vectors.parquet")
    return folder


def _ingested(world: Path, name: str, *, vectors: int) -> Dataset:
    fields = (
        Field(name="look", kind="categorical", column="item_id", side="item", vectors=vectors),
        Field(name="past", kind="sequence", side="user", shares="look"),
    )
    return api.ingest(
        world / "log.parquet",
        world / name,
        schema=Schema(fields=fields, tasks=(Task(name="click"),), roles=Roles(item="item_id")),
        split=api.split_config("part", valid=0.1, test=0.1),
        vectors={"look": world / "vectors.parquet"} if vectors else None,
    )


@pytest.mark.filterwarnings("ignore::tamis.errors.TamisWarning")  # of items that are all new
def test_items_that_training_has_not_seen_are_known_by_their_vectors(world: Path) -> None:
    dataset = _ingested(world, "given", vectors=_WIDTH)
    run = api.train(dataset, model="deepfm", run=world / "run", settings=_OPTIONS)
    without = _ingested(world, "without", vectors=0)
    blind = api.train(without, model="deepfm", run=world / "blind", settings=_OPTIONS)

    assert run.metrics["test"]["click"]["auc"] > 0.75
    assert blind.metrics["test"]["click"]["auc"] < 0.6
    module = load_trained(run.path).module
    found = [part.rows for part in module.modules() if isinstance(part, GivenRows)]
    assert len(found) == 2, "embeddings and first-order weights"
    assert all(np.array_equal(rows, dataset.given_rows()["look"]) for rows in found)
    # The model has the vectors: a log is all that is needed from here on.
    again = api.evaluate(run, [world / "log.parquet"])["metrics"]["test"]["click"]["auc"]
    predicted = api.predict(run, world / "log.parquet").column("prediction_click").to_numpy()
    assert predicted.std() > 0.1
    assert again > 0.75
