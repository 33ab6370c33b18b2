"""Always-valid intervals: by hand, their p-values, false alarms and coverage under peeking."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.experiment import arm_difference
from tamis.evaluation.sequential import always_valid_looks, may_look

USERS, LOOKS = 40, 100


def experiments(rng, count: int, *, lift: float):
    """Differences and errors (count, LOOKS) of click rates as users arrive, both arms alike.

    A user has a few impressions and a readiness of his own; each look adds USERS to each arm.
    """
    sides = []
    for effect in (0.0, lift):
        shown = 1 + rng.poisson(2, (count, LOOKS, USERS))
        rate = np.minimum(rng.beta(2, 8, shown.shape) * (1 + effect), 1.0)
        clicks = rng.binomial(shown, rate)
        users = USERS * np.arange(1, LOOKS + 1)
        n, d = (column.sum(axis=2).cumsum(axis=1) for column in (clicks, shown))
        squares = [
            (one * other).sum(axis=2).cumsum(axis=1)
            for one, other in ((clicks, clicks), (clicks, shown), (shown, shown))
        ]
        ratio = n / d
        residual = squares[0] - 2 * ratio * squares[1] + ratio**2 * squares[2]
        sides.append((ratio, users / (users - 1) * residual / d**2))
    (control, control_variance), (treated, treated_variance) = sides
    return treated - control, np.sqrt(control_variance + treated_variance)


def test_one_look_by_hand() -> None:
    # Error 1, mixture 1, difference 3: ratio sqrt(1/2) * exp(9 / 4), half-width
    # sqrt(2 * (log 2 + 2 log 20)).
    looks = always_valid_looks([3.0], [1.0], mixture_sd=1.0)
    assert looks.p_value.tolist() == pytest.approx([math.sqrt(2) * math.exp(-9 / 4)])
    half = math.sqrt(2 * (math.log(2) + 2 * math.log(20)))
    assert (looks.lower[0], looks.upper[0]) == pytest.approx((3 - half, 3 + half))
    assert looks.stopped_at is None


def test_look_waits_for_users_of_both_arms_who_have_something_to_count() -> None:
    is_treated = np.arange(300) % 2 == 1
    shown = np.ones(300)
    assert may_look(is_treated, shown)
    shown[is_treated.nonzero()[0][99:]] = 0.0
    assert not may_look(is_treated, shown)
    assert not may_look(~is_treated, shown)


def test_later_looks_only_narrow_the_interval() -> None:
    looks = always_valid_looks([0.0, 5.0, 0.0], [1.0, 1.0, 1.0], mixture_sd=1.0)
    half = math.sqrt(2 * (math.log(2) + 2 * math.log(20)))
    assert looks.lower.tolist() == pytest.approx([-half, 5 - half, 5 - half])
    assert looks.upper.tolist() == pytest.approx([half, half, half])
    assert looks.p_value.tolist() == pytest.approx([1.0] + [math.sqrt(2) * math.exp(-25 / 4)] * 2)
    assert looks.stopped_at == 1


@given(
    st.floats(-10, 10),
    st.floats(0.01, 5),
    st.floats(0.01, 5),
    st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
@settings(deadline=None)
def test_interval_excludes_nothing_where_the_p_value_is_large(found, error, mixture, confidence):
    looks = always_valid_looks([found], [error], mixture_sd=mixture, confidence=confidence)
    excludes = looks.lower[0] > 0.0 or looks.upper[0] < 0.0
    at_edge = abs(looks.p_value[0] - (1 - confidence)) < 1e-9
    assert at_edge or excludes == (looks.stopped_at == 0)


@given(st.floats(0.01, 5), st.floats(0.01, 5), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_unit_of_the_metric_does_not_matter(error, mixture, unit) -> None:
    one = always_valid_looks([1.0], [error], mixture_sd=mixture)
    other = always_valid_looks([unit], [unit * error], mixture_sd=unit * mixture)
    assert other.p_value[0] == pytest.approx(one.p_value[0], rel=1e-6, abs=1e-300)
    assert other.lower[0] == pytest.approx(unit * one.lower[0], rel=1e-6, abs=1e-9 * unit)


def test_simulated_looks_are_those_of_the_arm_difference() -> None:
    # The vectorised experiments below must be what the library computes at one look.
    rng = np.random.default_rng(1)
    shown = 1 + rng.poisson(2, 2 * USERS)
    clicks = rng.binomial(shown, 0.2)
    treated = np.repeat([False, True], USERS)
    found = arm_difference("click_rate", treated, clicks, shown)
    terms = []
    for arm in (~treated, treated):
        ratio = clicks[arm].sum() / shown[arm].sum()
        residual = ((clicks[arm] - ratio * shown[arm]) ** 2).sum()
        terms.append((ratio, USERS / (USERS - 1) * residual / shown[arm].sum() ** 2))
    assert found.difference == pytest.approx(terms[1][0] - terms[0][0])
    assert found.standard_error == pytest.approx(math.sqrt(terms[0][1] + terms[1][1]))


def test_peeking_raises_false_alarms_of_plain_intervals_and_not_of_these() -> None:
    count = 1000
    difference, error = experiments(np.random.default_rng(2), count, lift=0.0)
    plain = (np.abs(difference) > 1.96 * error).any(axis=1).mean()
    stopped = np.mean(
        [
            always_valid_looks(*looks, mixture_sd=0.02).stopped_at is not None
            for looks in zip(difference, error, strict=True)
        ]
    )
    # Read once, it would be 5 %: at least four of five alarms are due to the hundred looks.
    assert plain > 0.25
    # At most 5 %, plus four standard errors sqrt(.05 * .95 / 1000). A guard that never speaks
    # would be no guard: a tenth of what is allowed must be used.
    assert 0.005 < stopped < 0.05 + 4 * math.sqrt(0.05 * 0.95 / count)


def test_true_difference_stays_inside_at_every_look_and_is_found() -> None:
    count, lift = 500, 0.25
    difference, error = experiments(np.random.default_rng(3), count, lift=lift)
    # Mean rate 2 / 10; the cap at 1 binds in fewer than one user of 10^4.
    truth = 0.2 * lift
    covered = found = 0
    for looks in zip(difference, error, strict=True):
        guard = always_valid_looks(*looks, mixture_sd=0.05)
        covered += bool((guard.lower <= truth).all() and (truth <= guard.upper).all())
        found += guard.stopped_at is not None
    assert covered / count > 0.95 - 4 * math.sqrt(0.05 * 0.95 / count)
    # The difference is some eight standard errors in the end.
    assert found / count > 0.99


def test_looks_without_meaning_are_refused() -> None:
    with pytest.raises(DataError, match=r"one standard error per look, got shapes \(2,\) and \(1,"):
        always_valid_looks([1, 2], [1], mixture_sd=1.0)
    with pytest.raises(DataError, match=r"got shapes \(0,\) and \(0,\)"):
        always_valid_looks([], [], mixture_sd=1.0)
    with pytest.raises(DataError, match=r"errors above 0, got \[1\.0\] and \[0\.0\]"):
        always_valid_looks([1.0], [0.0], mixture_sd=1.0)
    with pytest.raises(DataError, match=r"differences must be finite .* got \[nan\]"):
        always_valid_looks([math.nan], [1.0], mixture_sd=1.0)
    for mixture in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(DataError, match="mixture_sd must be above 0 and finite, got"):
            always_valid_looks([1.0], [1.0], mixture_sd=mixture)
    with pytest.raises(DataError, match="confidence must lie strictly between 0 and 1"):
        always_valid_looks([1.0], [1.0], mixture_sd=1.0, confidence=1.0)
