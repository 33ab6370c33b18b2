"""DCN-V2 and DCN-Mix against equations (1) to (4) of their paper, written as loops."""

import numpy as np
import pytest
import torch

from tamis.errors import ConfigError
from tamis.models.dcn_v2 import DCNv2, DCNv2Config

OPTIONS = (
    {},
    {"rank": 2},
    {"rank": 2, "num_experts": 3},
    {"num_cross_layers": 1},
    {"activation": "silu"},
    {"norm": "layer"},
    {"norm": "batch"},
)


def _flat(reference, model: DCNv2, row: int) -> np.ndarray:
    return np.concatenate([*reference.embeddings(model.inputs.tables, row), reference.numbers(row)])


def _mapped(reference, layer: torch.nn.Module, settings: DCNv2Config, x: np.ndarray) -> np.ndarray:
    if settings.num_experts:
        # Equations (3) and (4): sum_e G_e(x) (U_e g(C_e g(V_e' x)) + b), softmax gates, g = tanh.
        gates = np.exp(reference.linear(layer.gate, x))
        gates /= gates.sum()
        down, core, up, bias = map(reference.array, (layer.down, layer.core, layer.up, layer.bias))
        mixed = np.zeros_like(x)
        for expert, gate in enumerate(gates):
            hidden = np.tanh(down[expert].T @ x)
            hidden = np.tanh(core[expert].T @ hidden)
            mixed += gate * (up[expert].T @ hidden + bias)
        return mixed
    if settings.rank:
        # Equation (2): U (V' x) + b.
        down, up = (m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        assert down.bias is None
        assert down.weight.shape == up.weight.T.shape == (settings.rank, len(x))
        return reference.linear(up, reference.linear(down, x))
    return reference.linear(layer, x)


def _crossed(reference, model: DCNv2, settings: DCNv2Config, x0: np.ndarray) -> np.ndarray:
    # Equation (1): x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.
    x = x0
    assert len(model.cross.layers) == settings.num_cross_layers
    for layer in model.cross.layers:
        x = x0 * _mapped(reference, layer, settings, x) + x
    return x


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_logits_equal_the_equations(reference, structure: str, options: dict) -> None:
    base = {"embedding_dim": 3, "num_cross_layers": 2, "hidden_units": (12, 10)}
    settings = DCNv2Config(structure=structure, **(base | options))
    model = reference.build(DCNv2, settings)
    mlp = {"num_hidden": 2, "norm": settings.norm, "activation": settings.activation}

    def logits(row: int) -> np.ndarray:
        x0 = _flat(reference, model, row)
        crossed = _crossed(reference, model, settings, x0)
        if structure == "stacked":
            return reference.linear(model.head, reference.mlp(model.deep, crossed, **mlp))
        # One output layer on [h; x_L]: its weights on h and on x_L are kept apart.
        weight = np.concatenate([reference.array(model.head.weight).T, cross_weight.T])
        merged = np.concatenate([reference.mlp(model.deep, x0, **mlp), crossed])
        return merged @ weight + reference.array(model.head.bias)

    if structure == "parallel":
        assert model.cross_head.bias is None
        cross_weight = reference.array(model.cross_head.weight)
    reference.check(model, logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_cross_layers": 0}, r"model.num_cross_layers: must be at least 1, got 0"),
        ({"hidden_units": ()}, r"model.hidden_units: must hold a layer, got none"),
        ({"num_experts": 2}, r"model.rank: must be at least 1 with num_experts=2, got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DCNv2Config(**settings)
