"""DeLong's test against hand computation, the pair definition and simulated truth."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.delong import delong_test
from tamis.evaluation.ranking import auc


def slow_delong(labels, baseline, candidate) -> tuple[float, float]:
    """Difference and its variance from the full matrix of pairs and 2 x 2 covariances."""
    by_high, by_low = [], []
    for scores in (baseline, candidate):
        high, low = scores[labels == 1][:, None], scores[labels == 0][None, :]
        wins = (high > low) + 0.5 * (high == low)
        by_high.append(wins.mean(axis=1))
        by_low.append(wins.mean(axis=0))
    covariance = np.cov(by_high) / len(by_high[0]) + np.cov(by_low) / len(by_low[0])
    contrast = np.array([-1.0, 1.0])
    return by_high[1].mean() - by_high[0].mean(), contrast @ covariance @ contrast


def test_delong_of_four_rows_by_hand() -> None:
    # Baseline: positives 3, 1 against negatives 2, 0: AUC 3/4, placements (1, 1/2) and (1/2, 1).
    # Candidate separates: AUC 1. Differences (0, 1/2) and (1/2, 0), variance 1/8 each, over 2 rows
    # each: 1/16 + 1/16 = 1/8. z = (1/4) / sqrt(1/8) = 1/sqrt 2, p = erfc(1/2).
    result = delong_test([1, 1, 0, 0], [3, 1, 2, 0], [4, 3, 2, 1])
    assert (result.baseline, result.candidate, result.difference) == (0.75, 1.0, 0.25)
    assert result.standard_error == pytest.approx(math.sqrt(1 / 8))
    assert result.p_value == pytest.approx(math.erfc(0.5))
    assert result.upper - result.difference == pytest.approx(1.959964 * math.sqrt(1 / 8), rel=1e-6)
    assert (result.metric, result.units, result.replicates) == ("auc", 4, 0)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(2, 12))
@example(68631, 2, 2)
@settings(deadline=None)
def test_delong_equals_the_pair_matrix_with_ties(seed: int, size: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[1, 1, 0, 0], rng.integers(0, 2, size)])
    baseline, candidate = rng.integers(0, levels, (2, labels.size)).astype(float)
    wanted, variance = slow_delong(labels, baseline, candidate)
    if abs(wanted) > 1e-12 and variance < 1e-15:
        with pytest.raises(DataError, match="without any spread"):
            delong_test(labels, baseline, candidate)
        return
    result = delong_test(labels, baseline, candidate)
    assert result.difference == pytest.approx(wanted, abs=1e-12)
    # Squared, as the root of what rounding leaves of a variance of 0 is not small.
    assert result.standard_error**2 == pytest.approx(variance, abs=1e-15)
    assert result.baseline == pytest.approx(auc(labels, baseline), abs=1e-12)
    assert result.candidate == pytest.approx(auc(labels, candidate), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(deadline=None)
def test_groups_of_copies_count_as_one_row_each(seed: int, copies: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[1, 1, 0, 0], rng.integers(0, 2, 30)])
    baseline, candidate = rng.normal(size=(2, labels.size))
    plain = delong_test(labels, baseline, candidate)
    repeated = delong_test(
        *(np.repeat(column, copies) for column in (labels, baseline, candidate)),
        groups=np.repeat(np.arange(labels.size), copies),
    )
    assert repeated.difference == pytest.approx(plain.difference, abs=1e-12)
    assert repeated.standard_error == pytest.approx(plain.standard_error, rel=1e-9)
    assert repeated.units == labels.size


def test_equal_models_differ_by_nothing() -> None:
    result = delong_test([1, 0, 1, 0], [0.4, 0.2, 0.1, 0.3], [4, 2, 1, 3])
    assert (result.difference, result.standard_error, result.p_value) == (0.0, 0.0, 1.0)


def false_alarms(by_group: bool) -> float:
    """Share of p < 0.05 where two models err per user by equal amounts, so neither is better."""
    alarms = 0
    for seed in range(300):
        rng = np.random.default_rng([17, seed])
        user = np.repeat(np.arange(50), 30)
        signal = rng.normal(size=1500)
        labels = rng.random(1500) < 1 / (1 + np.exp(1.5 - signal))
        errors = rng.normal(size=(2, 50))
        baseline, candidate = signal + errors[0, user], signal + errors[1, user]
        result = delong_test(labels, baseline, candidate, groups=user if by_group else None)
        alarms += result.p_value < 0.05
    return alarms / 300


def test_false_alarms_on_dependent_rows_keep_to_five_percent_only_with_groups() -> None:
    # 300 draws at 5 %: standard deviation 1.26 %; three of these to each side, and 1 % for the
    # normal approximation with 50 users.
    assert 0.01 < false_alarms(by_group=True) < 0.10
    assert false_alarms(by_group=False) > 0.10


def test_variance_of_groups_equals_obuchowskis_sums() -> None:
    rng = np.random.default_rng(4)
    user = np.repeat(np.arange(5), 6)
    labels = np.tile([1, 0, 1, 0, 0, 0], 5)
    labels[24:] = 0  # one user without a positive
    baseline, candidate = rng.normal(size=(2, 30))
    own = {}
    for side in (1, 0):
        sign = 1 if side else -1
        scores = [(name[labels == side], name[labels != side]) for name in (baseline, candidate)]
        old, new = (
            np.array([np.mean([0.5 + 0.5 * np.sign(sign * (a - b)) for b in rest]) for a in mine])
            for mine, rest in scores
        )
        left = (new - old) - (new - old).mean()
        own[side] = [left[user[labels == side] == one].sum() for one in range(5)]
    positives, negatives = (np.array(own[side]) for side in (1, 0))
    m, n = int(labels.sum()), int((labels == 0).sum())
    variance = (
        4 / 3 * positives @ positives / m**2
        + 5 / 4 * negatives @ negatives / n**2
        + 2 * 5 / 4 * positives @ negatives / (m * n)
    )

    found = delong_test(labels, baseline, candidate, groups=user)

    assert found.standard_error**2 == pytest.approx(variance, rel=1e-9)


def test_models_that_are_apart_by_as_much_in_every_row_are_not_certain() -> None:
    # All ties on one side, no mistake on the other: 0.5 and 1, and no row differs from another.
    with pytest.raises(DataError, match=r"got a difference of 0.5 without any spread in 4 rows"):
        delong_test([1, 1, 0, 0], [0.5] * 4, [0.9, 0.8, 0.2, 0.1])


def test_delong_refuses_too_few_rows_or_groups_of_a_class() -> None:
    with pytest.raises(DataError, match="two positives and two negatives, got 1 and 3"):
        delong_test([1, 0, 0, 0], [4, 3, 2, 1], [4, 3, 2, 1])
    with pytest.raises(DataError, match="two groups with positives and two with negatives, got 1"):
        delong_test([1, 1, 0, 0], [4, 3, 2, 1], [4, 3, 2, 1], groups=[1, 1, 2, 3])
    with pytest.raises(DataError, match="delong_test: labels must hold both classes"):
        delong_test([1, 1], [0.1, 0.2], [0.1, 0.2])
