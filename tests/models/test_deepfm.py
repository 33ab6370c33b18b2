"""DeepFM against equations (1) to (4) of its paper, written as loops."""

import itertools

import numpy as np
import pytest

from tamis.models.deepfm import DeepFM, DeepFMConfig

OPTIONS = (
    {},
    {"activation": "tanh"},
    {"norm": "layer"},
    {"norm": "batch"},
    {"hidden_units": ()},
)


def _logits(reference, model: DeepFM, row: int, pair_weight: np.ndarray, **mlp: str) -> np.ndarray:
    # y_FM = <w, x> + sum_{i<j} <v_i, v_j> x_i x_j, y_DNN of the same embeddings; the sum of both.
    total = reference.first_order(model.first_order, row)
    tokens = reference.field_tokens(model.tokens, row)
    for first, second in itertools.combinations(tokens, 2):
        for dim, task in itertools.product(range(3), range(len(total))):
            total[task] += pair_weight[dim, task] * first[dim] * second[dim]
    return total + reference.mlp(model.deep, np.concatenate(tokens), **mlp)


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_of_one_task_equal_the_equations(reference, options: dict) -> None:
    reference = reference.of_one_task()
    settings = DeepFMConfig(embedding_dim=3, **{"hidden_units": (12, 10), **options})
    model = reference.build(DeepFM, settings)
    mlp = {
        "num_hidden": len(settings.hidden_units),
        "norm": settings.norm,
        "activation": settings.activation,
    }

    reference.check(model, lambda row: _logits(reference, model, row, np.ones((3, 1)), **mlp))


def test_each_of_several_tasks_weighs_the_dimensions_of_the_pairs(reference) -> None:
    model = reference.build(DeepFM, DeepFMConfig(embedding_dim=3, hidden_units=(5,)))
    weight = reference.array(model.pair_weight)

    assert weight.shape == (3, 2)
    reference.check(model, lambda row: _logits(reference, model, row, weight, num_hidden=1))


def test_weights_of_the_pairs_start_from_1(spec) -> None:
    model = DeepFM(DeepFMConfig(embedding_dim=3, hidden_units=(5,)), spec)

    assert model.pair_weight.tolist() == [[1.0, 1.0]] * 3
