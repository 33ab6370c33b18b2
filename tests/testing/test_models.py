"""The conformance suite finds what it is there to find."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.nn.embedding import FirstOrder
from tamis.testing.models import check_model


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    pass


def _model(logits_of: Callable[[nn.Module, Batch], torch.Tensor]) -> type[nn.Module]:
    class Model(nn.Module):
        def __init__(self, config: _Config, spec: InputSpec) -> None:
            super().__init__()
            self.linear = FirstOrder(spec)

        def forward(self, batch: Batch) -> Output:
            return Output(logits=logits_of(self, batch))

    return Model


def test_suite_accepts_a_sound_model() -> None:
    check_model(_Config, _model(lambda model, batch: model.linear(batch)))


def test_suite_refuses_a_model_whose_rows_depend_on_the_batch() -> None:
    broken = _model(lambda model, batch: model.linear(batch) + batch.numeric.mean())

    with pytest.raises(AssertionError, match="must not depend on its batch"):
        check_model(_Config, broken)


def test_suite_refuses_a_model_of_the_wrong_shape() -> None:
    broken = _model(lambda model, batch: model.linear(batch)[:, 0])

    with pytest.raises(AssertionError, match="logits must be"):
        check_model(_Config, broken)


def test_suite_refuses_a_forward_that_writes_on_self() -> None:
    def remember(model: nn.Module, batch: Batch) -> torch.Tensor:
        model.last = batch
        return model.linear(batch)

    with pytest.raises(AssertionError, match="must not write on self"):
        check_model(_Config, _model(remember))


def test_suite_refuses_a_parameter_without_gradient() -> None:
    broken = _model(lambda model, batch: model.linear(batch).detach() + model.linear.bias)

    with pytest.raises(AssertionError, match="must get a gradient"):
        check_model(_Config, broken)
