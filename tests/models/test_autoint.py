"""AutoInt+ against equations (5) to (10) of its paper, written as loops."""

import numpy as np
import pytest

from tamis.errors import ConfigError
from tamis.models.autoint import AutoInt, AutoIntConfig

OPTIONS = (
    {},
    {"scale": False},
    {"layer_norm": True},
    {"num_heads": 1},
    {"num_layers": 1},
    {"hidden_units": ()},
    {"activation": "tanh"},
    {"norm": "layer"},
    {"norm": "batch"},
)


def _attended(
    reference, layer, settings: AutoIntConfig, tokens: list[np.ndarray]
) -> list[np.ndarray]:
    query, key, value, residual = np.split(reference.array(layer.project.weight), 4)
    size = settings.attention_dim // settings.num_heads
    out = []
    for m in tokens:
        total = residual @ m
        for head in range(settings.num_heads):
            own = slice(head * size, (head + 1) * size)
            # (5): a_mk = softmax_k <W_query e_m, W_key e_k>; (6): sum_k a_mk W_value e_k.
            scores = np.array([np.dot(query[own] @ m, key[own] @ k) for k in tokens])
            weights = np.exp(scores / size**0.5 if settings.scale else scores)
            weights /= weights.sum()
            total[own] += sum(w * (value[own] @ k) for w, k in zip(weights, tokens, strict=True))
        # (7), (8): heads side by side, plus W_res e_m, ReLU.
        if settings.layer_norm:
            total = reference.layer_norm(layer.norm, total)
        out.append(np.maximum(total, 0))
    return out


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_equal_the_equations(reference, options: dict) -> None:
    base = {
        "embedding_dim": 3,
        "num_layers": 2,
        "num_heads": 2,
        "attention_dim": 4,
        "hidden_units": (12, 10),
    }
    settings = AutoIntConfig(**(base | options))
    model = reference.build(AutoInt, settings)
    mlp = {"num_hidden": 2, "norm": settings.norm, "activation": settings.activation}

    def logits(row: int) -> np.ndarray:
        tokens = reference.field_tokens(model.tokens, row)
        attended = tokens
        assert len(model.attention) == settings.num_layers
        for layer in model.attention:
            attended = _attended(reference, layer, settings, attended)
        # (10): w' [e_1, ..., e_M] + b, plus the MLP over the same embeddings.
        total = reference.mlp(model.head, np.concatenate(attended), num_hidden=0)
        if settings.hidden_units:
            total = total + reference.mlp(model.deep, np.concatenate(tokens), **mlp)
        return total

    assert (model.deep is None) == (not settings.hidden_units)
    reference.check(model, logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "model.num_layers: must be at least 1, got 0"),
        ({"num_heads": 3}, "model.attention_dim: must be a multiple of num_heads=3, got 32"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoIntConfig(**settings)
