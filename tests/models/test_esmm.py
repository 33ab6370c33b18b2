"""ESMM: products of probabilities over the entire space."""

import math
from dataclasses import replace

import pytest
import torch

from tamis.data.schema import InputSpec, Task
from tamis.errors import ConfigError
from tamis.models.esmm import (
    ESMM,
    ESMMConfig,
    conditions_of,
    labels_of_products,
    logits_of_products,
)
from tamis.testing.models import example_batch, example_spec
from tamis.training.objective import training_loss

_TASKS = (
    Task(name="click"),
    Task(name="cart", observed_when="click"),
    Task(name="like"),
    Task(name="order", observed_when="cart"),
)
_NAN = float("nan")


def _spec() -> InputSpec:
    return replace(example_spec(), tasks=_TASKS)


def test_products_run_along_the_chain() -> None:
    logits = torch.logit(torch.tensor([[0.5, 0.4, 0.9, 0.1], [0.2, 0.9, 0.3, 0.5]]))
    found = torch.sigmoid(logits_of_products(logits, conditions_of(_TASKS)))

    torch.testing.assert_close(found, torch.tensor([[0.5, 0.2, 0.9, 0.02], [0.2, 0.18, 0.3, 0.09]]))


def test_labels_are_zero_where_what_they_need_did_not_happen() -> None:
    labels = torch.tensor(
        [
            [0, _NAN, 1, _NAN],  # no click: neither cart nor order
            [1, 0, 0, _NAN],
            [1, 1, _NAN, 1],
            [1, _NAN, 0, _NAN],  # the cart is not known yet, nor is the order
            [_NAN, _NAN, 0, _NAN],
            [0.5, 0.25, 0.75, 0.5],  # by a teacher
        ]
    )
    expected = torch.tensor(
        [
            [0, 0, 1, 0],
            [1, 0, 0, 0],
            [1, 1, _NAN, 1],
            [1, _NAN, 0, _NAN],
            [_NAN, _NAN, 0, _NAN],
            [0.5, 0.125, 0.75, 0.0625],
        ]
    )
    found = labels_of_products(labels, conditions_of(_TASKS))

    torch.testing.assert_close(found, expected, equal_nan=True)


def test_loss_compares_products_with_all_impressions() -> None:
    spec = replace(example_spec(), tasks=_TASKS[:2])
    batch = example_batch(spec)
    batch.labels[batch.labels[:, 0] == 0, 1] = _NAN
    torch.manual_seed(0)
    model = ESMM(ESMMConfig(tower_units=(8,), init_std=1.0), spec)
    output = model(batch)
    found = training_loss(output, batch.labels, batch.weights, spec.tasks, torch.ones(2))

    total = 0.0
    for row in range(batch.num_rows):
        click, cart = torch.sigmoid(output.logits[row].double()).tolist()
        clicked = batch.labels[row, 0].item() == 1
        carted = clicked and batch.labels[row, 1].item() == 1
        total -= math.log(click if clicked else 1 - click)
        total -= math.log(click * cart if carted else 1 - click * cart)
    assert found.item() == pytest.approx(total / batch.num_rows, rel=1e-5)


def test_extreme_logits_have_finite_losses_and_gradients() -> None:
    values = [-60.0, 0.0, 60.0, 200.0]
    logits = torch.cartesian_prod(*[torch.tensor(values)] * 2).requires_grad_()
    products = logits_of_products(logits, (None, 0))
    for label in (0.0, 1.0):
        labels = torch.full_like(products, label)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(products, labels)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_regression_task_is_refused() -> None:
    spec = replace(example_spec(), tasks=(Task(name="spend", kind="regression"),))
    with pytest.raises(ConfigError, match="task 'spend' must be binary"):
        ESMM(ESMMConfig(), spec)


def test_each_task_has_its_own_logit() -> None:
    spec = _spec()
    assert ESMM(ESMMConfig(tower_units=()), spec)(example_batch(spec)).logits.shape == (40, 4)
