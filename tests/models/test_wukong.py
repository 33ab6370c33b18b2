"""Wukong against sections 3.2 to 3.6 of its paper, written as loops."""

import itertools

import numpy as np
import pytest

from tamis.models.wukong import Wukong, WukongConfig

OPTIONS = (
    {},
    {"fm_tokens": 1, "linear_tokens": 3},  # as many tokens as enter: the residual is the identity
    {"fm_tokens": 3, "linear_tokens": 2, "num_layers": 1},
    {"num_dense_tokens": 2, "dense_units": ()},
    {"rank": 1, "fm_units": ()},
    {"activation": "tanh"},
    {"head_norm": "layer"},
    {"head_norm": "batch"},
)


def _map(weight: np.ndarray, tokens: list[np.ndarray]) -> list[np.ndarray]:
    out = [np.zeros_like(tokens[0]) for _ in range(weight.shape[1])]
    for token, n in itertools.product(range(len(tokens)), range(len(out))):
        out[n] += weight[token, n] * tokens[token]
    return out


def _layer(reference, layer, settings: WukongConfig, x: list[np.ndarray]) -> list[np.ndarray]:
    block = layer.products
    # FM(X) = X X' Y, normalised over all of it, through an MLP back to n_F tokens.
    y = reference.array(block.compress)
    assert y.shape == (len(x), settings.rank)
    products = np.zeros((len(x), settings.rank))
    for i, j, k in itertools.product(range(len(x)), range(len(x)), range(settings.rank)):
        products[i, k] += np.dot(x[i], x[j]) * y[j, k]
    flat = reference.mlp(
        block.mlp,
        reference.layer_norm(block.norm, products.ravel()),
        num_hidden=len(settings.fm_units),
        activation=settings.activation,
    )
    # LCB(X) = W_L X; then LayerNorm([FMB, LCB] + X), X mapped over tokens where counts differ.
    mixed = [*flat.reshape(settings.fm_tokens, -1), *_map(reference.array(layer.linear), x)]
    assert (layer.residual is None) == (len(x) == len(mixed))
    added = x if layer.residual is None else _map(reference.array(layer.residual), x)
    return [reference.layer_norm(layer.norm, a + b) for a, b in zip(mixed, added, strict=True)]


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_equal_the_equations(reference, options: dict) -> None:
    base = {
        "embedding_dim": 3,
        "num_layers": 2,
        "fm_tokens": 2,
        "linear_tokens": 4,
        "rank": 2,
        "fm_units": (6,),
        "dense_units": (4,),
        "head_units": (12, 10),
    }
    settings = WukongConfig(**(base | options))
    model = reference.build(Wukong, settings)

    def logits(row: int) -> np.ndarray:
        num_hidden = len(settings.dense_units)
        x = reference.dense_side_tokens(model.tokens, row, num_hidden=num_hidden)
        assert len(x) == 3 + settings.num_dense_tokens
        for layer in model.layers:
            x = _layer(reference, layer, settings, x)
        return reference.mlp(
            model.head,
            np.concatenate(x),
            num_hidden=2,
            norm=settings.head_norm,
            activation=settings.activation,
        )

    assert len(model.layers) == settings.num_layers
    reference.check(model, logits)
