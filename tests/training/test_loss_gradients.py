"""Gradient norms of the terms of a loss."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.models import catalog
from tamis.models.output import Output
from tamis.training.loss_gradients import loss_gradient_norms
from tamis.training.objective import training_loss


@pytest.fixture
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset()


def _cetnet(dataset: Dataset, beta: float) -> tuple[torch.nn.Module, Batch]:
    torch.manual_seed(0)
    entry = catalog.entry("cetnet")
    members = ({"name": "dcn_v2"}, {"name": "final_mlp"})
    config = entry.config(members=members, collaboration_weight=beta)
    batch = next(Loader(dataset.split("train"), dataset.spec, batch_size=64).epoch(0))
    return entry.model(config, dataset.spec).eval(), batch


def test_norms_are_those_of_the_terms_alone(dataset: Dataset) -> None:
    model, batch = _cetnet(dataset, beta=0.5)
    tasks = dataset.spec.tasks
    weights = [2.0] * len(tasks)
    norms = loss_gradient_norms(model, batch, tasks=tasks, task_weights=weights)
    assert set(norms) == {"labels", "collaboration"}
    assert all(parameter.grad is None for parameter in model.parameters())

    output = model(batch)
    parts = {
        "labels": dataclasses.replace(output, auxiliary_losses={}),
        "collaboration": Output(
            logits=output.logits, auxiliary_losses=output.auxiliary_losses, supervised=()
        ),
    }
    for name, part in parts.items():
        model.zero_grad()
        loss = training_loss(part, batch.labels, batch.weights, tasks, torch.tensor(weights))
        loss.backward(retain_graph=True)
        dense = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in dense]).norm()
        assert norms[name] == pytest.approx(float(norm), rel=1e-4)
        assert norms[name] > 0


def test_a_terms_norm_grows_with_its_factor(dataset: Dataset) -> None:
    norms = []
    for beta in (0.1, 0.4):
        model, batch = _cetnet(dataset, beta=beta)
        weights = [1.0] * len(dataset.spec.tasks)
        norms.append(
            loss_gradient_norms(model, batch, tasks=dataset.spec.tasks, task_weights=weights)
        )

    assert norms[1]["collaboration"] == pytest.approx(4 * norms[0]["collaboration"], rel=1e-4)
    assert norms[1]["labels"] == pytest.approx(norms[0]["labels"], rel=1e-6)
