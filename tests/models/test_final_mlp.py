"""FinalMLP against equations (4) to (8) of its paper, written as loops."""

import itertools

import numpy as np
import pytest

from tamis.errors import ConfigError
from tamis.models.final_mlp import FinalMLP, FinalMLPConfig

OPTIONS = (
    {},
    {"gating": False},
    {"first_context": ("user",), "second_context": ("item",)},
    {"first_context": ("price", "item"), "second_context": ()},
    {"gate_units": ()},
    {"num_heads": 1},
    {"activation": "tanh"},
    {"norm": "layer"},
    {"norm": "batch"},
)
POSITIONS = {"user": 0, "item": 1, "price": 3}  # among the tokens; 2 is the pooled history


def _gate(
    reference, gate, context: tuple[str, ...], tokens: list[np.ndarray], num_hidden: int
) -> np.ndarray:
    # (4), (5): 2 sigmoid(MLP(context)), in (0, 2); without context a learnt vector stands in.
    seen = [tokens[place] for place in sorted(POSITIONS[name] for name in context)]
    flat = np.concatenate(seen) if seen else reference.array(gate.learnt)[0]
    return 2 / (1 + np.exp(-reference.mlp(gate.mlp, flat, num_hidden=num_hidden)))


def _fused(reference, fusion, num_heads: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # (7), (8): b + w_1' x + w_2' y + sum_h x_h' W_h y_h.
    total = reference.mlp(fusion.linear, np.concatenate([x, y]), num_hidden=0)
    weight = reference.array(fusion.weight)
    size_x, size_y = len(x) // num_heads, len(y) // num_heads
    for h, i, j in itertools.product(range(num_heads), range(size_x), range(size_y)):
        total = total + weight[h, i, :, j] * x[h * size_x + i] * y[h * size_y + j]
    return total


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_equal_the_equations(reference, options: dict) -> None:
    base = {"embedding_dim": 3, "first_units": (12, 8), "second_units": (6,), "gate_units": (5,)}
    settings = FinalMLPConfig(**(base | options))
    model = reference.build(FinalMLP, settings)
    contexts = (settings.first_context, settings.second_context)
    mlp = {"norm": settings.norm, "activation": settings.activation}

    def logits(row: int) -> np.ndarray:
        tokens = reference.field_tokens(model.tokens, row)
        streams = []
        for side, num_hidden in enumerate((2, 1)):
            flat = np.concatenate(tokens)
            if settings.gating:
                num_gate = len(settings.gate_units)
                gate = _gate(reference, model.gates[side], contexts[side], tokens, num_gate)
                flat = flat * gate
            streams.append(reference.mlp(model.streams[side], flat, num_hidden=num_hidden, **mlp))
        return _fused(reference, model.fusion, settings.num_heads, *streams)

    assert len(model.gates) == (2 if settings.gating else 0)
    reference.check(model, logits)


@pytest.mark.parametrize("dropping", [0, 1])
def test_each_stream_has_its_own_dropout(reference, dropping: int) -> None:
    name = ("first_dropout", "second_dropout")[dropping]
    model = FinalMLP(FinalMLPConfig(**{name: 0.5}), reference.spec)
    flat = model.tokens(reference.batch).flatten(1)

    is_random = [not stream(flat).equal(stream(flat)) for stream in model.streams]

    assert is_random == [dropping == 0, dropping == 1]


def test_unknown_context_names_the_nearest_field(spec) -> None:
    with pytest.raises(ConfigError, match=r"got 'prize'. Did you mean 'price'\?"):
        FinalMLP(FinalMLPConfig(first_context=("prize",)), spec)


def test_last_width_of_a_stream_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"second_units: must end in a multiple of num_heads=2"):
        FinalMLPConfig(second_units=(5,))
