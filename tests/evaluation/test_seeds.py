"""Mean and spread over seeds and the paired t-test."""

import math

import numpy as np
import pytest
from scipy import stats

from tamis.errors import DataError
from tamis.evaluation.seeds import paired_t_test, summarise_seeds


def test_summary_of_three_seeds() -> None:
    # Mean 2, sd 1; t(.975, 2) = 4.302653; half-width 4.302653 / sqrt 3.
    summary = summarise_seeds([1.0, 2.0, 3.0])
    assert (summary.mean, summary.sd, summary.seeds) == (2.0, 1.0, 3)
    assert summary.upper - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2.0 - summary.lower == pytest.approx(summary.upper - 2.0)


def test_summary_of_one_seed_has_a_mean_but_no_spread() -> None:
    summary = summarise_seeds([0.75])
    assert summary.mean == 0.75
    assert all(math.isnan(value) for value in (summary.sd, summary.lower, summary.upper))


@pytest.mark.parity
def test_paired_t_test_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0.8, 0.01, 6)
    after = before - rng.normal(0.002, 0.002, 6)
    wanted = stats.ttest_rel(after, before)
    interval = wanted.confidence_interval(0.9)
    result = paired_t_test("ne", before, after, confidence=0.9)
    assert result.p_value == pytest.approx(wanted.pvalue, rel=1e-9)
    assert (result.lower, result.upper) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert result.difference == pytest.approx(after.mean() - before.mean())
    assert (result.metric, result.units) == ("ne", 6)


def test_paired_t_test_of_equal_runs_is_sure_of_no_difference() -> None:
    result = paired_t_test("auc", [0.7, 0.8], [0.7, 0.8])
    assert (result.difference, result.p_value, result.lower, result.upper) == (0, 1, 0, 0)


def test_paired_t_test_of_one_constant_difference_is_sure_of_it() -> None:
    result = paired_t_test("auc", [0.5, 0.75], [0.625, 0.875])
    assert (result.difference, result.p_value) == (0.125, 0.0)


def test_t_test_refuses_one_pair_unequal_numbers_and_broken_values() -> None:
    with pytest.raises(DataError, match=r"at least 2 values in one dimension, got shape \(1,\)"):
        paired_t_test("ne", [1.0], [1.0])
    with pytest.raises(DataError, match="one value per seed, got 2 and 3"):
        paired_t_test("ne", [1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="must be finite, got nan at position 1"):
        paired_t_test("ne", [1.0, float("nan")], [1.0, 2.0])
