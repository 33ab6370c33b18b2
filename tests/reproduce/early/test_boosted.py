"""LightGBM's inputs, and what is said where it is not installed."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tamis import api
from tamis.errors import ConfigError
from tamis.reproduce.early.boosted import (
    TreeFit,
    boosted_scores,
    tree_inputs,
    with_bids,
)
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.variants import Boosted

from .conftest import TREES


def test_inputs_are_those_of_the_early_stage_row_by_row(study: Study) -> None:
    dataset = api.open_dataset(study.dataset("rejected"))
    found, categories = tree_inputs(dataset, "valid")
    split = dataset.split("valid")
    # User and ad, the hour, and a count for each of 4 words and the unknown one.
    assert found.shape == (split.num_rows, 3 + 5)
    assert categories == [0, 1]
    np.testing.assert_array_equal(found[:, 0], split.ids("user"))
    np.testing.assert_array_equal(found[:, 1], split.ids("ad"))
    np.testing.assert_array_equal(found[:, 2], split.numeric("hour"))
    # An ad has two words, which are one and the same where both remainders are.
    np.testing.assert_array_equal(found[:, 3:].sum(axis=1), 2)
    candidate = study.log("rejected", "valid").candidate
    twice = (found[:, 3:] == 2).any(axis=1)
    np.testing.assert_array_equal(twice, candidate % 4 == candidate % 3)


@pytest.mark.parametrize("objective", ["value", "rank"])
def test_trees_that_learn_values_see_bids_and_how_they_are_billed(
    study: Study, monkeypatch: pytest.MonkeyPatch, objective: Any
) -> None:
    pytest.importorskip("lightgbm")
    judged = study.judged()
    others = {
        "higher": replace(judged, bid=judged.bid * 1.5),
        "by click": replace(judged, billing=np.full(len(judged.bid), "click")),
    }
    scores = {}
    for name, candidates in {"as they are": judged, **others}.items():
        monkeypatch.setattr(Study, "judged", lambda _, candidates=candidates: candidates)
        scores[name] = boosted_scores(study, Boosted(objective=objective), TREES, seed=0).score

    assert (scores["higher"] - scores["as they are"]).mean() > 0
    # Who pays by conversion is worth less than one who pays as much by click.
    by_conversion = judged.billing == "conversion"
    assert (scores["by click"] - scores["as they are"])[by_conversion].mean() > 0


def test_bids_are_columns_of_their_own() -> None:
    inputs = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    found = with_bids(inputs, np.array([1.0, np.e]), np.array(["conversion", "click"]))
    np.testing.assert_allclose(found, [[1, 2, 0, 1], [3, 4, 1, 0]], rtol=1e-6)


def test_models_of_parts_are_calibrated_as_our_heads_are(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightgbm")
    predict = TreeFit.predict

    def halved(booster: Any, inputs: np.ndarray) -> np.ndarray:
        """As if every model said half of the odds."""
        said = predict(booster, inputs)
        odds = 0.5 * said / (1 - said)
        return odds / (1 + odds)

    as_they_are = boosted_scores(study, Boosted(objective="parts"), TREES, seed=0)
    monkeypatch.setattr(TreeFit, "predict", staticmethod(halved))
    low = boosted_scores(study, Boosted(objective="parts"), TREES, seed=0)

    # The map undoes what is wrong with every prediction, so that no ad passes another.
    np.testing.assert_allclose(low.score, as_they_are.score, rtol=1e-3, atol=1e-4)


def test_a_missing_package_is_named(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[lightgbm\]'"):
        boosted_scores(study, Boosted(objective="value"), TREES, seed=0)
