"""A model that left its run predicts the same bits; what cannot be built is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tamis.errors import ArtifactError
from tamis.models import catalog
from tamis.models.trained import TrainedModel, read_model, write_model
from tamis.testing.models import example_batch, example_spec


def _trained(name: str, **options: Any) -> TrainedModel:
    spec, entry = example_spec(num_tasks=2), catalog.entry(name)
    settings = entry.config(**options)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = entry.model(settings, spec).eval()
    return TrainedModel(name=name, config=settings, spec=spec, module=module)


@pytest.mark.parametrize(
    ("name", "options"),
    [("deepfm", {"hidden_units": (8,)}), ("early_stage", {"tower_units": (8,)}), ("din", {})],
)
def test_model_is_the_same_after_reading(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model = _trained(name, **options)

    write_model(tmp_path, model)
    found = read_model(tmp_path)

    assert (found.name, found.config, found.spec) == (model.name, model.config, model.spec)
    assert not found.module.training
    batch = example_batch(model.spec)
    with torch.no_grad():
        assert torch.equal(found.module(batch).logits, model.module(batch).logits)


@pytest.mark.parametrize(
    "changes",
    [{"name": "deepfn"}, {"config": {"hidden_unit": [8]}}, {"spec": {}}, {"config": 3}],
)
def test_model_that_cannot_be_built_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_model(tmp_path, _trained("deepfm"))
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    with pytest.raises(ArtifactError, match=r"model.json: must describe a model that this tamis"):
        read_model(tmp_path)


def test_how_it_was_trained_is_kept_and_need_not_be_known(tmp_path: Path) -> None:
    model, training = _trained("deepfm"), {"optimizer": {"dense_lr": 0.25}, "training": {"seed": 4}}
    write_model(tmp_path, replace(model, training=training))
    assert read_model(tmp_path).training == training

    path = tmp_path / "model.json"
    record = json.loads(path.read_text())
    del record["training"]  # as bundles were before
    path.write_text(json.dumps(record))
    assert read_model(tmp_path).training == {}


def test_record_of_its_training_must_be_a_table(tmp_path: Path) -> None:
    write_model(tmp_path, _trained("deepfm"))
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": "long"}))

    with pytest.raises(ArtifactError, match=r"model.json: must describe a model"):
        read_model(tmp_path)
