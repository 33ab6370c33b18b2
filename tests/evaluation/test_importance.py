"""Permutation importance of a model whose columns' worth is known."""

import math

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.importance import permutation_importance
from tamis.evaluation.loss import normalised_entropy


def logistic_rows():
    rng = np.random.default_rng(8)
    columns = {name: rng.normal(size=20_000) for name in ("strong", "weak", "unused")}
    worth = {"strong": 1.5, "weak": 0.5, "unused": 0.0}

    def predict(column: str, order: np.ndarray) -> np.ndarray:
        logit = sum(
            worth[name] * (values[order] if name == column else values)
            for name, values in columns.items()
        )
        return 1 / (1 + np.exp(-logit))

    whole = predict("none", np.arange(20_000))
    return predict, rng.random(20_000) < whole, whole


def test_importance_orders_columns_by_worth_and_gives_none_to_an_unused_one() -> None:
    predict, labels, whole = logistic_rows()
    names = ("unused", "weak", "strong")
    results = permutation_importance(predict, labels, whole, names, seed=1)
    assert [result.column for result in results] == ["strong", "weak", "unused"]
    assert results[2].ne_increase == 0.0
    assert results[1].ne_increase > 0.02
    assert results[0].ne_increase > 4 * results[1].ne_increase
    assert results == permutation_importance(predict, labels, whole, names, seed=1)


def test_importance_is_the_rise_of_the_ne_under_the_permutation_drawn_by_the_seed() -> None:
    predict, labels, whole = logistic_rows()
    (result,) = permutation_importance(predict, labels, whole, ("weak",), seed=5, shuffles=1)
    order = np.random.default_rng(5).permutation(20_000)
    shuffled = normalised_entropy(labels, predict("weak", order)).value
    assert result.ne_increase == shuffled - normalised_entropy(labels, whole).value
    assert math.isnan(result.sd)


def test_importance_without_shuffles_is_refused() -> None:
    predict, labels, whole = logistic_rows()
    with pytest.raises(DataError, match="shuffles must be at least 1, got 0"):
        permutation_importance(predict, labels, whole, ("weak",), seed=1, shuffles=0)
