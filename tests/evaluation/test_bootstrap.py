"""Paired bootstrap: exact metrics, analytic standard errors, determinism, false alarms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation import bootstrap
from tamis.evaluation.bootstrap import paired_bootstrap
from tamis.evaluation.delong import delong_test
from tamis.evaluation.loss import normalised_entropy
from tamis.evaluation.metrics import evaluate_task
from tamis.evaluation.ranking import auc
from tamis.evaluation.rows import observed_rows

ALL = ("ne", "log_loss", "auc", "gauc")


def two_models(seed: int, users: int, rows_per_user: int, *, spread: float = 0.7):
    """Labels, two models that err by user and by row by equal amounts, users, weights."""
    rng = np.random.default_rng([23, seed])
    user = np.repeat(np.arange(users), rows_per_user)
    signal = rng.normal(-1.0, 1.0, user.size)
    labels = (rng.random(user.size) < 1 / (1 + np.exp(-signal))).astype(float)
    by_user, by_row = rng.normal(size=(2, users)), rng.normal(size=(2, user.size))
    error = spread * by_user[:, user] + 0.3 * by_row
    baseline, candidate = (1 / (1 + np.exp(-signal - error[side])) for side in (0, 1))
    return labels, baseline, candidate, user, rng.random(user.size)


@pytest.mark.parametrize("weighted", [False, True])
def test_estimates_are_the_metrics_of_all_rows(weighted: bool) -> None:
    labels, baseline, candidate, user, weights = two_models(1, 80, 6)
    labels[::7] = np.nan
    chosen = weights if weighted else None
    results = paired_bootstrap(
        labels, baseline, candidate, user, seed=0, metrics=ALL, weights=chosen, replicates=100
    )
    before = evaluate_task(labels, baseline, weights=chosen, groups=user)
    after = evaluate_task(labels, candidate, weights=chosen, groups=user)
    assert tuple(result.metric for result in results) == ALL
    for result in results:
        one, other = getattr(before, result.metric), getattr(after, result.metric)
        assert result.baseline == pytest.approx(one, rel=1e-10)
        assert result.candidate == pytest.approx(other, rel=1e-10)
        assert result.difference == pytest.approx(other - one, abs=1e-10)
        assert (result.units, result.replicates) == (80, 100)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_auc_of_a_replicate_equals_the_auc_with_copies_as_weights(seed, weighted) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, 40)])
    scores = rng.integers(0, 8, 42) / 8
    unit = rng.integers(0, 10, 42)
    unit[:2] = 0
    weights = rng.random(42) if weighted else None
    copies = rng.poisson(1.0, 10)
    copies[0] = 2
    rows = observed_rows(labels, scores, weights=weights)
    order = bootstrap._RocOrder.of(rows, unit)
    mass = copies[unit] * (1.0 if weights is None else weights)
    assert order.auc(copies.astype(np.uint8)) == pytest.approx(
        auc(labels, scores, weights=mass), abs=1e-12
    )


def test_draws_are_poisson_with_mean_and_variance_one() -> None:
    copies = bootstrap._poisson_table()
    assert copies.size == 2**16
    assert copies.mean() == pytest.approx(1, abs=3e-4)
    assert copies.var() == pytest.approx(1, abs=3e-4)
    for k in range(4):
        share = math.exp(-1) / math.factorial(k)
        assert np.mean(copies == k) == pytest.approx(share, abs=1e-5)


def test_standard_error_of_log_loss_equals_the_formula_of_a_paired_mean() -> None:
    labels, baseline, candidate, _, _ = two_models(2, 4000, 1)
    (result,) = paired_bootstrap(
        labels, baseline, candidate, None, seed=3, metrics=("log_loss",), replicates=4000
    )
    chosen = [np.where(labels == 1, p, 1 - p) for p in (baseline, candidate)]
    change = np.log(chosen[0]) - np.log(chosen[1])
    # The standard deviation of 4000 replicates is known to 1 / sqrt(8000) = 1.1 %; four of these.
    assert result.standard_error == pytest.approx(change.std(ddof=1) / math.sqrt(4000), rel=0.045)
    assert result.difference == pytest.approx(change.mean(), abs=1e-12)


def test_standard_error_of_auc_equals_delong_with_groups() -> None:
    labels, baseline, candidate, user, _ = two_models(3, 400, 8)
    (result,) = paired_bootstrap(
        labels, baseline, candidate, user, seed=3, metrics=("auc",), replicates=2000
    )
    wanted = delong_test(labels, baseline, candidate, groups=user)
    # 1.6 % for 2000 replicates, four of these, and as much for terms of higher order.
    assert result.standard_error == pytest.approx(wanted.standard_error, rel=0.1)
    assert result.difference == pytest.approx(wanted.difference, abs=1e-12)


def test_users_as_units_give_wider_intervals_than_rows_where_errors_are_shared() -> None:
    labels, baseline, candidate, user, _ = two_models(4, 200, 20)
    errors = [
        paired_bootstrap(labels, baseline, candidate, units, seed=0)[0].standard_error
        for units in (user, None)
    ]
    assert errors[0] > 1.3 * errors[1]


def test_result_depends_on_the_seed_alone_and_not_on_chunks(monkeypatch) -> None:
    labels, baseline, candidate, user, _ = two_models(5, 83, 4)
    arguments = (labels, baseline, candidate, user)
    one = paired_bootstrap(*arguments, seed=9, metrics=ALL, replicates=150)
    assert one == paired_bootstrap(*arguments, seed=9, metrics=ALL, replicates=150)
    assert one[0].lower != paired_bootstrap(*arguments, seed=10, replicates=150)[0].lower
    monkeypatch.setattr(bootstrap, "_CHUNK_VALUES", 83 * 7)
    # Matrix products of other sizes may round otherwise in the last digit.
    for whole, chunked in zip(
        one, paired_bootstrap(*arguments, seed=9, metrics=ALL, replicates=150), strict=True
    ):
        assert chunked.lower == pytest.approx(whole.lower, rel=1e-9)
        assert chunked.p_value == whole.p_value


def test_equal_models_differ_by_exactly_nothing() -> None:
    labels, baseline, _, user, weights = two_models(6, 50, 4)
    for result in paired_bootstrap(
        labels, baseline, baseline, user, seed=1, metrics=ALL, weights=weights
    ):
        assert (result.difference, result.lower, result.upper) == (0.0, 0.0, 0.0)
        assert (result.p_value, result.standard_error) == (1.0, 0.0)


def test_interval_of_many_users_is_as_wide_as_the_normal_one() -> None:
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, 4000)
    baseline = np.clip(0.5 + rng.normal(0, 0.1, 4000), 0.05, 0.95)
    candidate = np.clip(0.5 + rng.normal(0, 0.1, 4000), 0.05, 0.95)
    (found,) = paired_bootstrap(
        labels, baseline, candidate, np.arange(4000), metrics=("log_loss",), replicates=4000, seed=1
    )
    width = (found.upper - found.lower) / (2 * found.standard_error)
    # Quantiles of 4000 replicates know 1.96 to 2.5 % at one sigma; 1.645 is 16 % less.
    assert width == pytest.approx(1.96, rel=0.08)


def test_clear_gain_has_the_smallest_p_value_and_the_right_sign() -> None:
    labels, _, candidate, user, _ = two_models(7, 400, 8, spread=0.1)
    worse = np.full(labels.size, labels.mean())
    (result,) = paired_bootstrap(labels, worse, candidate, user, seed=1, metrics=("ne",))
    assert result.p_value == 2 / 1001
    assert result.upper < 0
    wanted = normalised_entropy(labels, candidate).value - 1
    assert result.difference == pytest.approx(wanted, abs=1e-10)


@pytest.mark.slow
def test_false_alarms_on_equal_models_keep_to_five_percent() -> None:
    alarms = dict.fromkeys(ALL, 0)
    for seed in range(300):
        labels, baseline, candidate, user, _ = two_models(1000 + seed, 150, 5)
        for result in paired_bootstrap(
            labels, baseline, candidate, user, seed=seed, metrics=ALL, replicates=300
        ):
            alarms[result.metric] += result.p_value < 0.05
            covers = result.lower <= 0.0 <= result.upper
            # Test and interval agree up to the one sample that the p-value adds.
            assert covers or result.p_value < 0.07
    # 300 draws at 5 %: standard deviation 1.26 %; three of these, and 1.5 % for 150 users only.
    for metric, count in alarms.items():
        assert 0.01 < count / 300 < 0.105, (metric, count)


def test_few_users_with_positives_are_refused() -> None:
    # Two of 50 users have the positives: e^-2 = 13.5 % of the replicates have none.
    labels = np.zeros(100)
    labels[[0, 50]] = 1
    user = np.arange(100) % 50
    user[50] = 1
    with pytest.raises(DataError, match=r"at most 1 % of the replicates may lack a class, got \d+"):
        paired_bootstrap(labels, np.full(100, 0.1), np.full(100, 0.2), user, seed=0)


def test_settings_out_of_range_are_refused() -> None:
    rows = ([1, 0, 1, 0], [0.5] * 4, [0.4] * 4)
    with pytest.raises(DataError, match=r"metrics must be some of .* got"):
        paired_bootstrap(*rows, [1, 2, 3, 4], seed=0, metrics=("accuracy",))
    with pytest.raises(DataError, match="'gauc' needs groups, got None"):
        paired_bootstrap(*rows, None, seed=0, metrics=("gauc",))
    with pytest.raises(DataError, match=r"replicates must be at least 100 .* got 10 and 0"):
        paired_bootstrap(*rows, None, seed=0, replicates=10)
    with pytest.raises(DataError, match="got 1000 and -1"):
        paired_bootstrap(*rows, None, seed=-1)
    with pytest.raises(DataError, match="at least two users, got 1"):
        paired_bootstrap(*rows, [1, 1, 1, 1], seed=0)
    with pytest.raises(DataError, match="group must hold both classes, got none in 4 groups"):
        paired_bootstrap(*rows, [1, 2, 3, 4], seed=0, metrics=("gauc",))
