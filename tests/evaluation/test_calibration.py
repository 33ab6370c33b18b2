"""Calibration ratio, calibration error and the reliability curve."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tamis.errors import DataError
from tamis.evaluation.calibration import (
    calibration_ratio,
    expected_calibration_error,
    reliability_curve,
    wilson_interval,
)


def test_calibration_ratio_is_predicted_over_observed() -> None:
    # Predicted .5 + .25 + .25 + .5 over two positives.
    assert calibration_ratio([1, 0, 0, 1], [0.5, 0.25, 0.25, 0.5]) == 0.75
    # Predicted 2 * .5 + 6 * .25 over weight 2.
    assert calibration_ratio([1, 0], [0.5, 0.25], weights=[2.0, 6.0]) == 1.25


def test_calibration_ratio_without_positives_is_refused() -> None:
    with pytest.raises(DataError, match="must hold a positive, got none in 2 observed rows"):
        calibration_ratio([0, 0], [0.5, 0.5])


def test_calibration_error_of_two_bins_is_the_mean_distance() -> None:
    # Bins {.1, .2}: mean .15, observed 0. {.6, .9}: mean .75, observed .5. (.15 + .25) / 2.
    value = expected_calibration_error([0, 0, 1, 0], [0.1, 0.6, 0.9, 0.2], bins=2)
    assert value == pytest.approx(0.2)


def test_calibration_error_with_weights_fills_bins_by_weight() -> None:
    # Weights 3, 1, 2, 2 in order of prediction: half of 8 is reached after the second row, so the
    # bins are {.1, .2} and {.6, .9}. Means (.3 + .2) / 4 = .125 and .75; observed 0 and .5.
    value = expected_calibration_error(
        [0, 0, 1, 0], [0.1, 0.6, 0.9, 0.2], weights=[3.0, 2.0, 2.0, 1.0], bins=2
    )
    assert value == pytest.approx(0.5 * 0.125 + 0.5 * 0.25)
    curve = reliability_curve(
        [0, 0, 1, 0], [0.1, 0.6, 0.9, 0.2], weights=[3.0, 2.0, 2.0, 1.0], bins=2
    )
    assert [(one.rows, one.weight) for one in curve] == [(2, 0.5), (2, 0.5)]


def test_equal_predictions_stay_in_one_bin_whatever_their_order() -> None:
    labels = np.array([1, 1, 0, 0, 0, 0, 0, 0])
    curve = reliability_curve(labels, np.full(8, 0.25), bins=4)
    assert len(curve) == 1
    assert (curve[0].predicted, curve[0].observed, curve[0].rows) == (0.25, 0.25, 8)
    assert expected_calibration_error(labels, np.full(8, 0.25), bins=4) == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.booleans())
@settings(deadline=None)
def test_curve_holds_every_row_once_and_its_means_add_up(seed, bins, weighted) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 200))
    labels, probabilities = rng.random(size) < 0.3, np.round(rng.random(size), 2)
    weights = rng.random(size) + 0.01 if weighted else np.ones(size)
    curve = reliability_curve(labels, probabilities, weights=weights, bins=bins)
    assert 1 <= len(curve) <= bins
    assert sum(part.rows for part in curve) == size
    assert sum(part.weight for part in curve) == pytest.approx(1)
    assert sum(part.weight * part.predicted for part in curve) == pytest.approx(
        np.average(probabilities, weights=weights)
    )
    assert sum(part.weight * part.observed for part in curve) == pytest.approx(
        np.average(labels, weights=weights)
    )
    assert all(part.lower <= part.observed <= part.upper for part in curve)
    assert [part.predicted for part in curve] == sorted(part.predicted for part in curve)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_calibration_error_is_at_least_the_distance_of_the_means(seed: int) -> None:
    # Triangle inequality: bins cannot hide a bias of the whole.
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.random(100) < 0.3, rng.random(100)
    error = expected_calibration_error(labels, probabilities, bins=7)
    assert error >= abs(probabilities.mean() - labels.mean()) - 1e-12


def test_calibration_error_of_a_true_model_is_about_its_sampling_noise() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.beta(2, 20, 200_000)
    labels = rng.random(200_000) < probabilities
    noise = math.sqrt(2 * 20 * probabilities.mean() / (math.pi * 200_000))
    # Sum of 20 half-normals: sd of the mean is 17 % of it; four of these.
    assert expected_calibration_error(labels, probabilities) == pytest.approx(noise, rel=0.68)
    # Answers 20 % too high miss by a fifth of the base rate.
    assert expected_calibration_error(labels, 1.2 * probabilities) == pytest.approx(
        0.2 * probabilities.mean(), rel=0.1
    )


@pytest.mark.parity
@pytest.mark.parametrize(("happened", "rows"), [(0, 40), (3, 40), (40, 40), (5000, 100_000)])
def test_wilson_interval_equals_scipy(happened: int, rows: int) -> None:
    wanted = binomtest(happened, rows).proportion_ci(0.95, method="wilson")
    lower, upper = wilson_interval(happened / rows, rows, 1.959963984540054)
    assert lower == pytest.approx(wanted.low, abs=1e-12)
    assert upper == pytest.approx(wanted.high, abs=1e-12)


def test_interval_of_weighted_rows_is_that_of_their_effective_number() -> None:
    # Weights 1 (90 rows) and 3 (10 rows): 120**2 / (90 + 90) = 80 effective rows, 24 of 120 happen,
    # which is the interval of 16 of 80.
    labels = np.repeat([1, 0, 1, 0], [15, 75, 3, 7])
    weights = np.repeat([1.0, 3.0], [90, 10])
    (part,) = reliability_curve(labels, np.full(100, 0.2), weights=weights)
    wanted = binomtest(16, 80).proportion_ci(0.95, method="wilson")
    assert part.observed == pytest.approx(0.2)
    assert (part.lower, part.upper) == pytest.approx((wanted.low, wanted.high))


def test_bins_and_confidence_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"got bins=0, confidence=0\.95"):
        reliability_curve([1, 0], [0.5, 0.5], bins=0)
    with pytest.raises(DataError, match=r"got bins=20, confidence=1\.0"):
        reliability_curve([1, 0], [0.5, 0.5], confidence=1.0)


def test_curve_without_observed_rows_is_refused() -> None:
    with pytest.raises(DataError, match="at least one row must be observed, got 0 of 1"):
        reliability_curve([np.nan], [0.5])
