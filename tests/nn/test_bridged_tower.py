"""Attentional FM and bridged tower against loops in float64."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tamis.nn.bridged_tower import AttentionalFM, Bridge, BridgedTower


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _moved(module: nn.Module) -> nn.Module:
    """No weight, bias or norm at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return module


def _tokens(rows: int, tokens: int, width: int) -> torch.Tensor:
    return torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(0))


def _linear(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    bias = 0.0 if layer.bias is None else _array(layer.bias)
    return _array(layer.weight) @ x + bias


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def _fm(fm: AttentionalFM, tokens: np.ndarray) -> np.ndarray:
    """``sum_pq softmax(h' relu(W (e_p e_q) + b)) e_p e_q`` for one row."""
    pairs = list(itertools.combinations(range(len(tokens)), 2)) or [(0, 0)]
    products = [tokens[p] * tokens[q] for p, q in pairs]
    if len(pairs) == 1:
        return products[0]
    hidden, score = (layer for layer in fm.scores.layers if hasattr(layer, "weight"))
    scores = [_linear(score, np.maximum(_linear(hidden, x), 0))[0] for x in products]
    return sum(a * x for a, x in zip(_softmax(np.array(scores)), products, strict=True))


def _tower(tower: BridgedTower, x: np.ndarray, bridge: Bridge) -> np.ndarray:
    """The tower's equations for one row of M tokens."""
    last = [x]
    for layer in tower.layers:
        shape = x.shape
        for_mlp, for_fm = x, x
        if len(x) > 1:
            gates = [_softmax(g) * len(x) for g in _array(layer.gates)]
            for_mlp, for_fm = (x * gate[:, None] for gate in gates)
        implicit = np.maximum(_linear(layer.mlp.layers[0], for_mlp.reshape(-1)), 0).reshape(shape)
        explicit = _linear(layer.spread.layers[0], _fm(layer.fm, for_fm)).reshape(shape)
        if bridge == "product":
            fused = implicit * explicit
        elif bridge == "sum":
            fused = implicit + explicit
        else:
            hidden, score = (m for m in layer.preference.layers if hasattr(m, "weight"))
            fused = np.empty(shape)
            for place in range(len(x)):
                scores = [
                    _linear(score, np.maximum(_linear(hidden, branch[place]), 0))[0]
                    for branch in (implicit, explicit)
                ]
                share = _softmax(np.array(scores))
                fused[place] = share[0] * implicit[place] + share[1] * explicit[place]
        x = x + fused
        centred = x - x.mean(1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(1, keepdims=True) + layer.norm.eps)
        x = x * _array(layer.norm.weight) + _array(layer.norm.bias)
        last = [implicit, explicit, x]
    return _linear(tower.output.layers[0], np.concatenate([part.reshape(-1) for part in last]))


@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_attentional_fm_equals_a_loop_over_pairs(num_tokens: int) -> None:
    fm = _moved(AttentionalFM(num_tokens, 3, attention_units=5))
    tokens = _tokens(6, num_tokens, 3)

    expected = np.stack([_fm(fm, row) for row in _array(tokens)])
    np.testing.assert_allclose(_array(fm(tokens)), expected, rtol=1e-5, atol=1e-6)


def test_attention_over_pairs_is_no_plain_sum() -> None:
    fm = _moved(AttentionalFM(4, 3, attention_units=5))
    tokens = _tokens(6, 4, 3)
    plain = torch.stack(
        [tokens[:, p] * tokens[:, q] for p, q in itertools.combinations(range(4), 2)]
    ).mean(0)

    assert (fm(tokens) - plain).abs().max().item() > 0.1


@pytest.mark.parametrize("bridge", ["product", "sum", "attention"])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_tower_equals_its_equations(bridge: Bridge, num_tokens: int) -> None:
    tower = BridgedTower(
        num_tokens, 4, num_layers=2, out_tokens=2, out_dim=5, attention_units=6, bridge=bridge
    )
    _moved(tower)
    tokens = _tokens(6, num_tokens, 4)

    expected = np.stack([_tower(tower, row, bridge).reshape(2, 5) for row in _array(tokens)])
    # Forty float32 products a sum: errors of 1e-6 of the largest summand.
    np.testing.assert_allclose(_array(tower(tokens)), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_tower_equal_finite_differences() -> None:
    tower = _moved(BridgedTower(3, 2, num_layers=1, out_tokens=1, out_dim=2)).double()
    # The tower answers in float32; its last layer is what is differentiated here.
    layer = tower.layers[0]
    tokens = _tokens(3, 3, 2).double().requires_grad_()

    # Attention and branches cast scores to float32, so differences must be coarse.
    assert torch.autograd.gradcheck(layer, (tokens,), eps=1e-3, atol=1e-2, rtol=1e-2)


def test_gates_start_at_one_and_weigh_tokens() -> None:
    tower = BridgedTower(3, 4, num_layers=1, out_tokens=1, out_dim=4)
    tokens = _tokens(5, 3, 4)
    before = tower(tokens)
    with torch.no_grad():
        tower.layers[0].gates.add_(2.0)  # the softmax does not see what all gates share
    torch.testing.assert_close(tower(tokens), before)
    with torch.no_grad():
        tower.layers[0].gates[0, 1] += 1.0
    assert not torch.allclose(tower(tokens), before, atol=1e-3)
