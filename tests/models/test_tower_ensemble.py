"""The controls of DHEN's ablation: towers that share nothing but their input and their sum."""

import pytest
import torch

from tamis.errors import ConfigError
from tamis.models.tower_ensemble import TowerEnsemble, TowerEnsembleConfig
from tamis.testing.models import example_batch, example_spec


def _model(**settings: object) -> TowerEnsemble:
    config = TowerEnsembleConfig(module_tokens=3, dot_units=8, head_units=(8,), **settings)
    return TowerEnsemble(config, example_spec(num_tasks=2)).eval()


def test_mean_is_the_average_of_the_towers() -> None:
    model = _model()
    batch = example_batch(example_spec(num_tasks=2))
    tokens = model.tokens(batch)

    logits = model(batch).logits

    expected = sum(tower(tokens) for tower in model.towers) / 3
    assert logits.shape == (40, 2)
    assert torch.allclose(logits, expected, atol=1e-6)


def test_gate_weighs_the_towers_row_by_row() -> None:
    model = _model(gate="softmax", towers=(("linear",), ("dot",)))
    batch = example_batch(example_spec(num_tasks=2))
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.copy_(torch.tensor([3.0, 1.0]).log())
    first, second = (tower(model.tokens(batch)) for tower in model.towers)

    assert torch.allclose(model(batch).logits, 0.75 * first + 0.25 * second, atol=1e-6)


def test_no_tower_learns_through_another() -> None:
    model = _model()
    batch = example_batch(example_spec(num_tasks=2))
    with torch.no_grad():
        for parameter in model.towers[1].parameters():
            parameter.zero_()

    model(batch).logits.square().sum().backward()

    # The second tower emits 0, so it has no way to pass a gradient to anything before its output.
    silent = [p.grad for p in model.towers[1][0].parameters() if p.grad is not None]
    assert not any(gradient.ne(0).any() for gradient in silent)


def test_a_tower_without_modules_is_refused() -> None:
    with pytest.raises(ConfigError, match="each must hold a module"):
        TowerEnsembleConfig(towers=(("dot",), ()))
