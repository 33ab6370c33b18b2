"""XDeepFM against equations (6), (8) and (9) of its paper, written as loops."""

import itertools

import numpy as np
import pytest

from tamis.models.xdeepfm import XDeepFM, XDeepFMConfig

OPTIONS = (
    {},
    {"split_half": False, "cin_maps": (3, 2)},
    {"cin_maps": (4, 2, 3)},
    {"hidden_units": ()},
    {"activation": "tanh"},
    {"norm": "layer"},
    {"norm": "batch"},
)


def _cin(reference, model: XDeepFM, settings: XDeepFMConfig, x0: list[np.ndarray]) -> np.ndarray:
    # (6): X_k[h] = b_h + sum_ij W_k[h, i, j] X_0[i] * X_{k-1}[j]; (8): each map summed over D.
    x, pooled = x0, []
    for depth, layer in enumerate(model.cin.layers, start=1):
        weight, bias = reference.array(layer.weight), reference.array(layer.bias)
        maps = []
        for h in range(settings.cin_maps[depth - 1]):
            total = np.full_like(x0[0], bias[h])
            for i, j in itertools.product(range(len(x0)), range(len(x))):
                total = total + weight[h, i * len(x) + j] * x0[i] * x[j]
            maps.append(total)
        is_split = settings.split_half and depth < len(settings.cin_maps)
        kept = len(maps) // 2 if is_split else len(maps)
        pooled += [total.sum() for total in (maps[kept:] if is_split else maps)]
        x = maps[:kept]
    return np.array(pooled)


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_equal_equation_9(reference, options: dict) -> None:
    base = {"embedding_dim": 3, "cin_maps": (4, 2), "hidden_units": (12, 10)}
    settings = XDeepFMConfig(**(base | options))
    model = reference.build(XDeepFM, settings)
    mlp = {
        "num_hidden": len(settings.hidden_units),
        "norm": settings.norm,
        "activation": settings.activation,
    }

    def logits(row: int) -> np.ndarray:
        # w_linear' a + w_cin' p+ + w_dnn' x_dnn + b.
        tokens = reference.field_tokens(model.tokens, row)
        cin = _cin(reference, model, settings, tokens)
        return (
            reference.first_order(model.first_order, row)
            + reference.mlp(model.cin_head, cin, num_hidden=0)
            + reference.mlp(model.deep, np.concatenate(tokens), **mlp)
        )

    reference.check(model, logits)
