"""Diagnostics: the inside of a model, seen without touching it."""

from collections.abc import Callable

import torch

from tamis.data.dataset import Dataset
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
