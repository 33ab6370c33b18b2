"""Calibration maps against slow references, and what they repair."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from tamis.errors import ArtifactError, DataError
from tamis.evaluation.calibration import calibration_ratio
from tamis.evaluation.calibrators import (
    GroupedCalibrator,
    IsotonicCalibrator,
    PlattCalibrator,
    calibrator_from_json,
    fit_by_group,
    fit_calibrator,
    fit_isotonic,
    fit_platt,
    grouped_calibrator_from_json,
)


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _upweighted(truth: np.ndarray, factor: float) -> np.ndarray:
    """The truth with its odds multiplied, as training with such a weight on positives gives."""
    odds = factor * truth / (1 - truth)
    return odds / (1 + odds)


def _head(rows: int, *, seed: int = 0, upweight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions."""
    rng = np.random.default_rng(seed)
    truth = rng.beta(1, 30, rows)
    return (rng.random(rows) < truth).astype(float), _upweighted(truth, upweight)


# Platt.


def test_platt_by_hand() -> None:
    # Two predictions, two rows of ten: the map goes through (1/4, 2/10) and (3/4, 5/10).
    targets = np.repeat([1, 0, 1, 0], [2, 8, 5, 5])
    found = fit_platt(targets, np.repeat([0.25, 0.75], 10))

    logit = {p: math.log(p / (1 - p)) for p in (0.25, 0.75, 0.2, 0.5)}
    slope = (logit[0.5] - logit[0.2]) / (logit[0.75] - logit[0.25])
    assert found.slope == pytest.approx(slope)
    assert found.intercept == pytest.approx(logit[0.5] - slope * logit[0.75])
    assert found.apply([0.25, 0.75]) == pytest.approx([0.2, 0.5])


@pytest.mark.parity
@pytest.mark.parametrize("is_soft", [False, True])
def test_platt_equals_a_general_optimizer(is_soft: bool) -> None:
    rng = np.random.default_rng(1)
    predicted, weights = rng.random(300), rng.random(300)
    truth = _sigmoid(0.7 * np.log(predicted / (1 - predicted)) - 1)
    targets = truth if is_soft else (rng.random(300) < truth).astype(float)

    def loss(point: np.ndarray) -> float:
        total = 0.0
        for p, y, w in zip(predicted, targets, weights, strict=True):
            z = point[0] * math.log(p / (1 - p)) + point[1]
            total += w * (math.log1p(math.exp(z)) - y * z)
        return total

    best = minimize(loss, [1.0, 0.0], tol=1e-10).x
    found = fit_platt(targets, predicted, weights=weights)
    assert [found.slope, found.intercept] == pytest.approx(best, abs=1e-4)
    if is_soft:
        assert [found.slope, found.intercept] == pytest.approx([0.7, -1])


def test_platt_leaves_a_calibrated_head_alone() -> None:
    _, truth = _head(1000)
    found = fit_platt(truth, truth)

    assert (found.slope, found.intercept) == pytest.approx((1, 0))


def test_platt_is_finite_at_certain_predictions() -> None:
    targets, predicted = [1, 0, 1, 0, 0, 1], [1.0, 1.0, 0.5, 0.0, 0.5, 0.0]
    # As many positives as negatives at each value: nothing rises.
    with pytest.raises(DataError, match="targets must rise with the predictions"):
        fit_platt(targets, predicted)
    found = fit_platt([1, 1, 0, 1, 0, 0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert found.apply([1.0, 0.0]) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("targets", "predicted", "message"),
    [
        ([0, 0], [0.1, 0.2], r"must not be all alike at 0 or 1, got a mean of 0 over 2 rows"),
        ([1, 0], [0.5, 0.5], r"predictions must differ .* got only 0.5 in 2 rows"),
        ([0, 0, 1], [0.1, 0.3, 0.8], r"must not part the labels .* below 0.3, the highest"),
        ([1, 0, 1, 0], [0.1, 0.9, 0.2, 0.15], r"must rise with the predictions, got a slope of -"),
        ([0.5, 2.0], [0.1, 0.2], r"targets must be in \[0, 1\], got 2.0"),
        ([0, 1], [0.1, 1.2], r"probabilities must be in \[0, 1\], got 1.2"),
        ([0, 1], [0.1], r"columns of one length, got shapes \(2,\), \(1,\) and \(2,\)"),
        ([np.nan], [0.1], r"some row must have a target and a weight, got none of 1"),
    ],
)
def test_rows_that_fit_nothing_are_refused(targets, predicted, message) -> None:
    with pytest.raises(DataError, match=message):
        fit_platt(targets, predicted)


# Isotonic.


def test_isotonic_by_hand() -> None:
    # 0.3 then 0.1 fall: they pool to 0.2, which stays below 0.5.
    found = fit_isotonic([0.0, 0.3, 0.1, 0.5], [0.1, 0.2, 0.3, 0.6])

    assert found.predicted == (0.1, 0.2, 0.3, 0.6)
    assert found.calibrated == pytest.approx((0.0, 0.2, 0.2, 0.5))
    # Half way between 0.3 and 0.6; outside the last value stays.
    assert found.apply([0.25, 0.45, 0.05, 0.9]) == pytest.approx([0.2, 0.35, 0.0, 0.5])


@pytest.mark.parity
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.booleans())
@settings(deadline=None, max_examples=60)
def test_isotonic_equals_scikit_learn(seed: int, rows: int, is_soft: bool) -> None:
    rng = np.random.default_rng(seed)
    predicted = np.round(rng.random(rows), 2)
    targets = rng.random(rows) if is_soft else (rng.random(rows) < predicted).astype(float)
    weights = rng.random(rows) + 0.01
    peer = IsotonicRegression(out_of_bounds="clip").fit(predicted, targets, weights)

    found = fit_isotonic(targets, predicted, weights=weights)
    grid = np.linspace(0, 1, 101)
    np.testing.assert_allclose(found.apply(grid), peer.predict(grid), atol=1e-9)


def test_isotonic_of_falling_targets_is_their_mean() -> None:
    rows = 2000
    targets = np.linspace(1, 0, rows)
    found = fit_isotonic(targets, np.linspace(0, 1, rows))

    assert found.apply([0.0, 0.5, 1.0]) == pytest.approx([0.5] * 3)


# Both.


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_fitted_rows_are_calibrated_and_keep_their_order(method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted = rng.random(300)
    targets = np.where(rng.random(300) < 0.1, np.nan, rng.random(300) < predicted)
    weights = rng.random(300) + 0.1
    found = fit_calibrator(method, targets, predicted, weights=weights).apply(predicted)

    assert calibration_ratio(targets, found, weights=weights) == pytest.approx(1, abs=1e-6)
    ordered = found[np.argsort(predicted)]
    assert (np.diff(ordered) >= 0).all()
    if method == "platt":
        assert (np.diff(ordered) > 0).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_row_without_weight_or_target_is_as_if_absent(method: str) -> None:
    targets, predicted = _head(500, seed=3)
    with_more = fit_calibrator(
        method,
        [*targets, 1.0, np.nan],
        [*predicted, 0.001, 0.5],
        weights=[*np.ones(500), 0.0, 1.0],
    )

    assert with_more == fit_calibrator(method, targets, predicted)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_head_upweighted_for_rarity_is_right_again_by_billing_type_and_bid(method: str) -> None:
    rows = 1_600_000
    rng = np.random.default_rng(7)
    billing = np.where(rng.random(rows) < 0.3, "click", "conversion")
    bid = rng.lognormal(size=rows)
    truth = rng.beta(1, 30, rows)
    labels = (rng.random(rows) < truth).astype(float)
    # The two billing types are off by unlike factors, as their ads are of unlike kinds.
    predicted = np.where(billing == "click", _upweighted(truth, 10), _upweighted(truth, 4))
    fit, held_out = slice(0, rows // 2), slice(rows // 2, rows)

    maps = fit_by_group(method, labels[fit], predicted[fit], billing[fit])
    found = maps.apply(predicted[held_out], billing[held_out])
    one_map = fit_calibrator(method, labels[fit], predicted[fit]).apply(predicted[held_out])

    def ratio(probabilities: np.ndarray, own: np.ndarray) -> float:
        # By what was to be expected rather than by labels, whose noise would hide 3 %.
        return probabilities[own].sum() / truth[held_out][own].sum()

    is_click = billing[held_out] == "click"
    assert ratio(predicted[held_out], is_click) > 2
    assert ratio(one_map, is_click) > 1.2  # right overall, wrong for the billing type
    decile = np.searchsorted(np.quantile(bid, np.arange(1, 10) / 10), bid[held_out])
    for own in (is_click, ~is_click, *(decile == number for number in range(10))):
        assert 0.97 < ratio(found, own) < 1.03


def test_group_without_enough_events_takes_the_common_map() -> None:
    labels, predicted = _head(20_000, upweight=3.0)
    groups = np.where(np.arange(20_000) < 1000, "rare", "frequent")
    maps = fit_by_group("platt", labels, predicted, groups)

    assert list(maps.by_group) == ["frequent"]
    for name in ("rare", "never seen"):
        found = maps.apply(predicted[:5], np.full(5, name))
        np.testing.assert_array_equal(found, maps.other.apply(predicted[:5]))
    with pytest.raises(DataError, match=r"must have the shape of the probabilities \(5,\), got"):
        maps.apply(predicted[:5], np.full(4, "rare"))
    with pytest.raises(DataError, match=r"must have the shape of the targets \(20000,\), got"):
        fit_by_group("platt", labels, predicted, groups[:5])


def test_group_whose_rows_have_no_weight_takes_the_common_map() -> None:
    labels, predicted = _head(20_000, upweight=3.0)
    groups = np.where(np.arange(20_000) < 10_000, "unweighted", "weighted")
    maps = fit_by_group("platt", labels, predicted, groups, weights=groups == "weighted")

    assert list(maps.by_group) == ["weighted"]


def test_group_that_cannot_be_fitted_is_named() -> None:
    labels, predicted = _head(20_000, upweight=3.0)
    groups = np.where(np.arange(20_000) < 10_000, "constant", "learnt")

    with pytest.raises(DataError, match=r"^group 'constant': platt: predictions must differ"):
        fit_by_group("platt", labels, np.where(groups == "constant", 0.3, predicted), groups)


def test_maps_survive_json() -> None:
    labels, predicted = _head(5000, upweight=3.0)
    maps = GroupedCalibrator(
        by_group={"click": fit_platt(labels, predicted)}, other=fit_isotonic(labels, predicted)
    )
    found = grouped_calibrator_from_json(json.loads(json.dumps(maps.to_json())))

    assert found == maps
    assert isinstance(found.by_group["click"], PlattCalibrator)
    assert isinstance(found.other, IsotonicCalibrator)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"method": "spline"}, "method must be platt or isotonic, got 'spline'"),
        ({"method": "platt", "slope": 1.0}, r"must be whole, got KeyError\('intercept'\)"),
        ({"method": "isotonic", "predicted": 1, "calibrated": [1]}, "must be whole, got TypeError"),
    ],
)
def test_damaged_record_is_refused(record: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        calibrator_from_json(record)
    with pytest.raises(ArtifactError, match="must hold by_group and other, got method"):
        grouped_calibrator_from_json({"method": "platt"})
