"""DLRM against section 2 of its paper, written as loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tamis.models.dlrm import DLRM, DLRMConfig
from tamis.testing.models import example_batch, example_spec
from tamis.training.config import OptimizerConfig
from tamis.training.optimizers import build_optimizers

OPTIONS = (
    {},
    {"with_diagonal": True},
    {"bottom_units": ()},
    {"activation": "gelu"},
    {"norm": "layer"},
    {"norm": "batch"},
)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("has_numbers", [True, False])
def test_logits_equal_the_equations(reference, has_numbers: bool, options: dict) -> None:
    reference = reference if has_numbers else reference.without_numbers()
    base = {"embedding_dim": 3, "bottom_units": (4,), "top_units": (12, 10)}
    settings = DLRMConfig(**(base | options))
    model = reference.build(DLRM, settings)
    mlp = {"num_hidden": 2, "norm": settings.norm, "activation": settings.activation}

    def logits(row: int) -> np.ndarray:
        # The top MLP sees [z, <e_i, e_j> for j < i], z the bottom MLP's vector, itself among the e.
        tokens = reference.dense_side_tokens(
            model.tokens, row, num_hidden=len(settings.bottom_units)
        )
        features = list(tokens[-1]) if has_numbers else []
        for i in range(len(tokens)):
            for j in range(i + 1 if settings.with_diagonal else i):
                features.append(np.dot(tokens[i], tokens[j]))
        return reference.mlp(model.top, np.array(features), **mlp)

    reference.check(model, logits)


def test_a_single_field_is_learnt_from() -> None:
    spec = example_spec(num_numeric=0, num_categorical=1, sequences=False)
    torch.manual_seed(0)
    model = DLRM(DLRMConfig(top_units=(16,)), spec)
    optimizers = build_optimizers(model, OptimizerConfig(dense_lr=0.01)).values()
    batch = example_batch(spec, rows=200)
    batch = replace(batch, labels=(batch.ids % 2).float())

    for _ in range(100):
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(batch).logits, batch.labels).backward()
        for optimizer in optimizers:
            optimizer.step()

    assert ((model(batch).logits > 0) == (batch.labels > 0)).all()
