"""Metrics of the true probabilities and the gap of a model to them."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.metrics import evaluate_task
from tamis.evaluation.oracle import compare_to_oracle, ne_gap, oracle_metrics


def drawn(seed: int, size: int):
    rng = np.random.default_rng(seed)
    true = rng.beta(1, 6, size)
    labels = (rng.random(size) < true).astype(float)
    labels[:2] = (0, 1)
    return labels, true, rng.random(size)


def test_gap_of_two_coins_is_the_difference_of_their_losses_over_log_two() -> None:
    # Labels 1, 0; model answers .5 twice: loss log 2. Truth .75, .25: loss log 4/3. H(.5) = log 2.
    result = compare_to_oracle([1, 0], [0.5, 0.5], [0.75, 0.25])
    assert result.ne_gap == pytest.approx(1 - math.log(4 / 3) / math.log(2))
    # Expected: KL(.75 || .5) = .75 log 1.5 + .25 log .5 for both rows.
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert result.expected_ne_gap == pytest.approx(divergence / math.log(2))


def test_oracle_metrics_are_those_of_the_truth_as_a_prediction() -> None:
    labels, true, weights = drawn(1, 200)
    groups = np.arange(200) % 9
    assert oracle_metrics(labels, true, weights=weights, groups=groups) == evaluate_task(
        labels, true, weights=weights, groups=groups
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 100))
@settings(deadline=None)
def test_gap_of_the_truth_is_zero_and_no_model_expects_less(seed: int, size: int) -> None:
    labels, true, weights = drawn(seed, size)
    itself = compare_to_oracle(labels, true, true, weights=weights)
    assert itself.ne_gap == 0.0
    assert itself.expected_ne_gap == pytest.approx(0.0, abs=1e-12)
    model = np.random.default_rng(seed + 1).random(size)
    assert compare_to_oracle(labels, model, true, weights=weights).expected_ne_gap > 0.0


def test_gap_and_expected_gap_agree_on_many_rows() -> None:
    labels, true, _ = drawn(3, 400_000)
    model = np.clip(1.3 * true, 0, 1)
    result = compare_to_oracle(labels, model, true)
    assert result.expected_ne_gap > 0.005
    # Standard error of the gap from labels is about 4e-4 here; five of these.
    assert result.ne_gap == pytest.approx(result.expected_ne_gap, abs=0.002)


def test_sure_and_impossible_truths_have_a_finite_gap() -> None:
    result = compare_to_oracle([1, 0], [0.5, 0.5], [1.0, 0.0])
    assert result.expected_ne_gap == pytest.approx(1.0)
    assert result.ne_gap == pytest.approx(1.0, abs=1e-10)


def test_json_of_the_comparison_is_strict() -> None:
    values = compare_to_oracle([0, 0], [0.5, 0.5], [0.25, 0.25]).to_json()
    assert json.loads(json.dumps(values, allow_nan=False))["ne_gap"] is None
    assert set(values) == {"oracle", "ne_gap", "expected_ne_gap"}


def test_comparison_without_observed_rows_is_nan() -> None:
    result = compare_to_oracle([np.nan], [0.5], [0.5])
    assert math.isnan(result.ne_gap)
    assert math.isnan(result.expected_ne_gap)


def test_gap_between_different_rows_is_refused() -> None:
    one = evaluate_task([1, 0], [0.5, 0.5])
    other = evaluate_task([1, 0, 0], [0.5, 0.5, 0.5])
    with pytest.raises(DataError, match=r"same rows, got rows and positives \(2, 1\)"):
        ne_gap(one, other)
    weighted = evaluate_task([1, 0], [0.5, 0.5], weights=[1.0, 3.0])
    with pytest.raises(DataError, match=r"base rate 0\.5 against \(2, 1\) with 0\.25"):
        ne_gap(one, weighted)
