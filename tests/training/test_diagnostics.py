"""Diagnostics: the inside of a model, seen without touching it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tamis.data.dataset import Dataset
from tamis.data.ingest import ingest
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.data.splits import SplitConfig
from tamis.models import catalog
from tamis.training import diagnostics
from tamis.training.evaluate import Predictor


def _predictor(dataset: Dataset, name: str, **settings: object) -> Predictor:
    torch.manual_seed(0)
    entry = catalog.entry(name)
    return Predictor(
        model=entry.model(entry.config(**settings), dataset.spec).train(),
        device=torch.device("cpu"),
        precision=torch.float32,
        batch_size=4096,
    )


def _inspected(predictor: Predictor, dataset: Dataset) -> list[dict]:
    return diagnostics._inspections(predictor, dataset, "test", 0)


def test_inspection_is_of_the_model_at_inference_and_changes_nothing(
    make_dataset: Callable[..., Dataset],
) -> None:
    dataset = make_dataset()
    members = ({"name": "din", "dropout": 0.5}, {"name": "dien"})
    predictor = _predictor(dataset, "cetnet", members=members)
    buffers = {name: value.clone() for name, value in predictor.model.named_buffers()}
    first = _inspected(predictor, dataset)

    assert _inspected(predictor, dataset) == first
    assert predictor.model.training
    for name, value in predictor.model.named_buffers():
        assert torch.equal(value, buffers[name]), name
    assert first[0]["title"] == "Mean weight of each member"
    assert first[0]["columns"] == ["din 0", "dien 1"]
    for weights in first[0]["values"]:
        assert abs(sum(weights) - 1) < 1e-6


def test_models_without_an_inside_show_nothing(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset()

    assert _inspected(_predictor(dataset, "lr"), dataset) == []


def test_slice_without_weight_is_shown_without_numbers(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shop = generator.integers(0, 3, 3000)
    columns = {"shop": [f"shop {k}" for k in shop], "mass": (shop > 0).astype(float)}
    log = tmp_path / "log.parquet"
    pq.write_table(pa.table({**columns, "click": generator.integers(0, 2, 3000)}), log)
    schema = Schema(
        fields=(Field(name="shop", kind="categorical"),),
        tasks=(Task(name="click"),),
        roles=Roles(weight="mass"),
    )
    dataset = ingest(log, tmp_path / "d", schema=schema, split=SplitConfig(by="ratio"))

    found = diagnostics.diagnose(
        _predictor(dataset, "lr"), dataset, split="test", seed=0, task_weights=(1.0,)
    )

    slices = {entry["value"]: entry for entry in found["slices"]["click"]["shop"]}
    assert set(slices) == {"shop 0", "shop 1", "shop 2"}
    rows = np.bincount(shop[dataset.split("test").rows()])
    assert [slices[f"shop {k}"]["rows"] for k in range(3)] == rows.tolist()
    assert slices["shop 0"]["ne"] is None
    assert slices["shop 1"]["ne"] > 0.9
