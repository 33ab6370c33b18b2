"""From logits to predictions."""

import pytest
import torch

from tamis.data.schema import Task
from tamis.models.output import probabilities_of


def test_logits_become_probabilities_in_float64_but_for_regression() -> None:
    kinds = ("binary", "regression", "probability")
    tasks = tuple(Task(name=kind, kind=kind) for kind in kinds)
    logits = torch.tensor([[-20.0, 3.0, 0.0]])

    found = probabilities_of(logits, tasks)

    # 1 / (1 + e^20) = 2.0611536e-9, which float32 could not tell from its neighbours near 1.
    assert found[0, 0].item() == pytest.approx(2.061153618190204e-09, rel=1e-12)
    assert found[0, 1:].tolist() == [3.0, 0.5]
    assert logits.tolist() == [[-20.0, 3.0, 0.0]]
    exact = logits.double()
    assert not torch.equal(probabilities_of(exact, tasks), exact)
    assert exact.tolist() == [[-20.0, 3.0, 0.0]]


def test_logit_of_a_regression_is_relative_to_its_scale() -> None:
    tasks = (Task(name="click"), Task(name="seconds", kind="regression", mean=90.0, std=30.0))

    found = probabilities_of(torch.tensor([[0.0, 0.0], [0.0, -1.5]]), tasks)

    assert found.tolist() == [[0.5, 90.0], [0.5, 45.0]]
