"""The ratio of two sums: hand computation, a slow jackknife, coverage, refusals."""

import json
import math

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.ratio import ratio_of_sums


def test_ratio_of_three_rows_by_hand() -> None:
    # 2 / 8; residuals 1 - .5, 0 - .5, 1 - 1: sum of squares .5; sqrt(3/2 * .5) / 8.
    estimate = ratio_of_sums([1, 0, 1], [2, 2, 4])
    assert estimate.value == 0.25
    assert estimate.standard_error == pytest.approx(math.sqrt(0.75) / 8, rel=1e-12)
    half = 4.302652729911275 * math.sqrt(0.75) / 8  # Student's t of two degrees of freedom
    assert (estimate.lower, estimate.upper) == pytest.approx((0.25 - half, 0.25 + half))
    assert (estimate.method, estimate.units, estimate.replicates) == ("Student's t", 3, 0)


def test_ratio_with_units_sums_their_rows_first() -> None:
    # Units a (1, 4) and b (1, 4): no residual, however unequal their rows are.
    estimate = ratio_of_sums([1, 0, 1], [2, 2, 4], groups=["a", "a", "b"])
    assert (estimate.value, estimate.standard_error, estimate.units) == (0.25, 0.0, 2)


def test_denominators_of_one_give_the_usual_error_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=50)
    estimate = ratio_of_sums(values, np.ones(50))
    assert estimate.value == pytest.approx(values.mean(), rel=1e-12)
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_standard_error_equals_the_jackknife_over_units() -> None:
    rng = np.random.default_rng(2)
    unit = rng.integers(0, 300, 3000)
    clicks, shown = rng.random(3000) < 0.2, rng.integers(1, 4, 3000)
    left_out = [
        clicks[unit != one].sum() / shown[unit != one].sum() for one in range(300)
    ]  # one by one, in float64
    jackknife = math.sqrt(299 / 300 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    # Both are first-order; they part by terms of relative order 1 / units.
    estimate = ratio_of_sums(clicks, shown, groups=unit)
    assert estimate.standard_error == pytest.approx(jackknife, rel=0.01)


@pytest.mark.parametrize("units", [2, 3, 5, 10])
def test_interval_of_few_units_covers_as_often_as_it_says(units: int) -> None:
    rng = np.random.default_rng(units)
    covered = 0
    for values in rng.normal(1.0, 1.0, (2000, units)):
        found = ratio_of_sums(values, np.ones(units))
        covered += found.lower <= 1.0 <= found.upper
    # 2000 draws at 95 %: standard deviation 0.49 %, three of these to each side.
    assert 0.935 < covered / 2000 < 0.965


def test_bootstrap_agrees_with_the_formula_and_depends_on_its_seed_alone() -> None:
    rng = np.random.default_rng(3)
    top, bottom = rng.exponential(size=2000), rng.integers(1, 5, 2000)
    plain = ratio_of_sums(top, bottom)
    drawn = ratio_of_sums(top, bottom, seed=7, replicates=4000)
    # The standard deviation of 4000 replicates is known to 1 / sqrt(8000) = 1.1 %; four of these.
    assert drawn.standard_error == pytest.approx(plain.standard_error, rel=0.045)
    assert drawn.value == plain.value
    assert (drawn.method, drawn.replicates) == ("Poisson bootstrap", 4000)
    assert drawn == ratio_of_sums(top, bottom, seed=7, replicates=4000)
    assert drawn.lower != ratio_of_sums(top, bottom, seed=8, replicates=4000).lower


@pytest.mark.parametrize("seed", [None, 5])
def test_interval_covers_the_truth_as_often_as_it_says(seed: int | None) -> None:
    rng = np.random.default_rng(4)
    repeats, users = 400, 300
    covered = 0
    for _ in range(repeats):
        # A user's readiness drives both visits and clicks: rows of one user depend on each other.
        shown = 1 + rng.poisson(4, users)
        clicks = rng.binomial(shown, rng.beta(2, 6, users))
        estimate = ratio_of_sums(clicks, shown, confidence=0.9, seed=seed, replicates=200)
        covered += estimate.lower <= 0.25 <= estimate.upper
    # sqrt(.9 * .1 / 400) = 1.5 %; four of these.
    assert covered / repeats == pytest.approx(0.9, abs=0.06)


def test_json_of_an_estimate_is_strict() -> None:
    values = json.loads(json.dumps(ratio_of_sums([1, 2], [1, 1]).to_json(), allow_nan=False))
    assert (values["value"], values["method"], values["units"]) == (1.5, "Student's t", 2)


def test_sums_without_meaning_are_refused() -> None:
    with pytest.raises(DataError, match=r"must have one shape, got \(\(2,\), \(3,\), None\)"):
        ratio_of_sums([1, 2], [1, 1, 1])
    with pytest.raises(DataError, match=r"numerator: must be one-dimensional, got shape \(1, 2\)"):
        ratio_of_sums([[1, 2]], [1, 1])
    with pytest.raises(DataError, match="denominator: must be finite, got nan at position 1"):
        ratio_of_sums([1, 2], [1, math.nan])
    with pytest.raises(DataError, match=r"positive sum of denominators, got 2 and 0\.0"):
        ratio_of_sums([1, 2], [0, 0])
    with pytest.raises(DataError, match=r"at least two units .* got 1 and 2\.0"):
        ratio_of_sums([1, 2], [1, 1], groups=[3, 3])
    with pytest.raises(DataError, match=r"replicates must be at least 100 .* got 10 and 0"):
        ratio_of_sums([1, 2], [1, 1], seed=0, replicates=10)
    with pytest.raises(DataError, match="confidence must lie strictly between 0 and 1"):
        ratio_of_sums([1, 2], [1, 1], confidence=95)
    with pytest.raises(DataError, match=r"may have no positive denominator, got \d+ of 1000"):
        ratio_of_sums([1, 0], [1, 0], seed=0)
