"""The training loss against arithmetic on paper."""

import pytest
import torch

from tamis.data.schema import Task
from tamis.models.output import Output, Supervised
from tamis.training.objective import training_loss


def test_loss_ignores_labels_that_were_not_observed() -> None:
    nan = float("nan")
    output = Output(logits=torch.tensor([[0.0, 9.0], [2.0, -1.0]]))
    labels = torch.tensor([[1.0, nan], [0.0, 1.0]])
    tasks = (Task(name="click"), Task(name="buy"))

    loss = training_loss(output, labels, torch.ones(2), tasks, torch.tensor([1.0, 2.0]))

    # click: (log 2 + log(1 + e^2)) / 2 = (0.693147 + 2.126928) / 2; buy: log(1 + e) = 1.313262.
    assert loss.item() == pytest.approx(1.410038 + 2 * 1.313262, abs=1e-5)


def test_loss_weighs_rows_and_adds_auxiliary_losses() -> None:
    output = Output(
        logits=torch.tensor([[0.0], [2.0]]), auxiliary_losses={"extra": torch.tensor(0.5)}
    )
    labels, weights = torch.tensor([[1.0], [0.0]]), torch.tensor([3.0, 1.0])

    loss = training_loss(output, labels, weights, (Task(name="click"),), torch.ones(1))

    # Three times 0.693147 and once 2.126928, over the weight of 4, and 0.5 on top.
    assert loss.item() == pytest.approx(1.551592, abs=1e-5)


def test_auxiliary_loss_of_each_task_has_its_weight() -> None:
    output = Output(logits=torch.zeros(2, 2), auxiliary_losses={"apart": torch.tensor([0.5, 10.0])})
    tasks = (Task(name="click"), Task(name="buy"))
    weights = torch.tensor([2.0, 0.0])

    loss = training_loss(output, torch.ones(2, 2), torch.ones(2), tasks, weights)

    assert loss.item() == pytest.approx(2 * (0.693147 + 0.5), abs=1e-5)


def test_several_logits_are_compared_with_their_factors_and_labels() -> None:
    output = Output(
        logits=torch.full((2, 1), 9.0),  # not compared
        supervised=(
            Supervised(logits=torch.zeros(2, 1), weight=3.0),
            Supervised(logits=torch.full((2, 1), 2.0), labels=torch.zeros(2, 1)),
            Supervised(logits=torch.full((2, 1), float("nan")), weight=0.0),
        ),
    )

    loss = training_loss(
        output, torch.ones(2, 1), torch.ones(2), (Task(name="click"),), torch.ones(1)
    )

    assert loss.item() == pytest.approx(3 * 0.693147 + 2.126928, abs=1e-5)


def test_loss_of_a_regression_task_is_the_squared_error() -> None:
    tasks = (Task(name="click"), Task(name="spend", kind="regression"))
    output = Output(logits=torch.tensor([[0.0, 3.0], [0.0, 1.0]]))
    labels = torch.tensor([[1.0, 1.0], [1.0, 1.0]])

    loss = training_loss(output, labels, torch.ones(2), tasks, torch.ones(2))

    # log 2 + ((3 - 1)^2 + 0) / 2
    assert loss.item() == pytest.approx(0.693147 + 2.0, abs=1e-5)


def test_error_of_a_regression_is_counted_in_standard_deviations() -> None:
    tasks = (Task(name="seconds", kind="regression", mean=90.0, std=30.0),)
    output = Output(logits=torch.tensor([[1.0], [-0.5]]))

    loss = training_loss(
        output, torch.tensor([[60.0], [75.0]]), torch.ones(2), tasks, torch.ones(1)
    )

    # 60 is -1 and 75 is -0.5: ((1 + 1)^2 + 0) / 2
    assert loss.item() == pytest.approx(2.0)


def test_loss_of_a_batch_without_observed_labels_is_zero() -> None:
    labels = torch.full((2, 1), float("nan"))
    logits = torch.ones(2, 1, requires_grad=True)

    loss = training_loss(
        Output(logits=logits), labels, torch.ones(2), (Task(name="click"),), torch.ones(1)
    )
    loss.backward()

    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0], [0.0]]


def test_loss_of_a_probability_is_the_cross_entropy_with_it() -> None:
    tasks = (Task(name="click"), Task(name="final_click", kind="probability"))
    output = Output(logits=torch.tensor([[0.0, 2.0]]))
    labels = torch.tensor([[1.0, 0.25]])

    loss = training_loss(output, labels, torch.ones(1), tasks, torch.ones(2))

    # log 2; and 0.25 log(1 + e^-2) + 0.75 log(1 + e^2).
    assert loss.item() == pytest.approx(0.693147 + 0.25 * 0.126928 + 0.75 * 2.126928, abs=1e-5)


def test_what_a_model_must_return_is_said() -> None:
    tasks, weights = (Task(name="click"),), torch.ones(1)
    labels, rows = torch.zeros(4, 1), torch.ones(4)

    with pytest.raises(TypeError, match="model: forward must return an Output, got Tensor"):
        training_loss(torch.zeros(4, 1), labels, rows, tasks, weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"logits must be \(4, 1\), a row for each .* got \(4,\)"):
        training_loss(Output(logits=torch.zeros(4)), labels, rows, tasks, weights)
