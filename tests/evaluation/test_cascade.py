"""Measures of a cascade: by hand, by loops over all orders of ties, bounds and invariances."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.candidates import RankedCandidates, rank_candidates
from tamis.evaluation.cascade import (
    hard_recall,
    ndcg,
    recall_curve,
    request_mean,
    soft_recall,
    top_regret,
    value_divergence,
    value_kept,
    value_lost,
)


def jagged(seed: int, *, requests: int = 5, largest: int = 6, ties: bool = True):
    """Offsets, values from 0 and scores of a few lists; few distinct numbers where ties."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(1, largest + 1, requests))))
    size = int(offsets[-1])
    if ties:
        return offsets, rng.integers(0, 4, size) / 4, rng.integers(0, 3, size) / 2
    return offsets, rng.lognormal(size=size), rng.normal(size=size)


def over_all_orders(score, measure) -> float:
    """Mean of a measure over every order of the candidates that the scores allow."""
    orders = [
        order
        for order in itertools.permutations(range(len(score)))
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order))
    ]
    return float(np.mean([measure(list(order)) for order in orders]))


def slow(name: str, value, score, keep: int, golden: int) -> float:
    """One metric of one list, from its definition."""
    size = len(value)
    keep, golden = min(keep, size), min(golden, size)
    best = sorted(value, reverse=True)
    if name == "hard":
        cut = best[golden] if golden < size else -math.inf
        gold = [a for a in range(size) if value[a] > cut]
        if not gold:
            return math.nan
        return over_all_orders(score, lambda o: len(set(o[:keep]) & set(gold)) / len(gold))
    if name == "lost":
        return over_all_orders(score, lambda o: sum(best[:keep]) - sum(value[a] for a in o[:keep]))
    if best[0] <= 0:
        return math.nan
    if name == "soft":
        return over_all_orders(score, lambda o: sum(value[a] for a in o[:keep]) / sum(best[:keep]))
    if name == "regret":
        return over_all_orders(score, lambda o: 1 - value[o[0]] / best[0])
    discount = [1 / math.log2(place + 2) for place in range(keep)]
    ideal = sum(d * v for d, v in zip(discount, best, strict=False))
    return over_all_orders(
        score,
        lambda o: sum(d * value[a] for d, a in zip(discount, o, strict=False)) / ideal,
    )


def hand_lists() -> RankedCandidates:
    # Request 0: values 8, 4, 2, 1, scored so that the order is 4, 8, 1, 2. Request 1: 3, 6.
    return rank_candidates([0, 4, 6], [8, 4, 2, 1, 3, 6], [3.0, 4.0, 1.0, 2.0, 5.0, 2.0])


def test_metrics_of_two_requests_by_hand() -> None:
    ranked = hand_lists()
    # Kept 4, 8, 1 of which 8 and 4 are golden, and 2 is not there; of the short list both.
    assert hard_recall(ranked, 3).tolist() == pytest.approx([2 / 3, 1.0])
    assert hard_recall(ranked, 1).tolist() == [0.0, 0.0]
    assert hard_recall(ranked, 3, golden=2).tolist() == [1.0, 1.0]
    assert soft_recall(ranked, 3).tolist() == pytest.approx([13 / 14, 1.0])
    assert soft_recall(ranked, np.array([1, 2])).tolist() == [0.5, 1.0]
    assert value_lost(ranked, 3).tolist() == [1.0, 0.0]
    assert top_regret(ranked).tolist() == [0.5, 0.5]
    second = 1 / math.log2(3)
    assert ndcg(ranked, 2).tolist() == pytest.approx(
        [(4 + 8 * second) / (8 + 4 * second), (3 + 6 * second) / (6 + 3 * second)]
    )
    # Errors -5, 0, -1, 1 of 15, and 2, -4 of 9.
    absolute, signed = value_divergence(ranked)
    assert absolute.tolist() == pytest.approx([7 / 15, 6 / 9])
    assert signed.tolist() == pytest.approx([-5 / 15, -2 / 9])


def test_values_below_zero_need_a_shift_or_the_value_lost() -> None:
    # Order -4, 6, 1: shifted by 4 the best two are 10 + 5, kept are 0 + 10.
    ranked = rank_candidates([0, 3], [6.0, -4.0, 1.0], [2.0, 3.0, 1.0])
    assert soft_recall(ranked, 2, shift=True).tolist() == pytest.approx([10 / 15])
    second = 1 / math.log2(3)
    assert ndcg(ranked, 2, shift=True).tolist() == pytest.approx([10 * second / (10 + 5 * second)])
    assert value_lost(ranked, 2).tolist() == [5.0]
    # The first costs 4 where 6 could be had.
    assert top_regret(ranked).tolist() == pytest.approx([1 + 4 / 6])
    for metric in (soft_recall, ndcg):
        with pytest.raises(DataError, match=r"must not be negative, got -4\.0 at position 1"):
            metric(ranked, 2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7), st.booleans())
@settings(max_examples=40, deadline=None)
def test_metrics_equal_the_mean_over_all_orders_of_ties(seed, keep, golden, ties) -> None:
    offsets, value, score = jagged(seed, largest=5, ties=ties)
    ranked = rank_candidates(offsets, value, score)
    found = {
        "hard": hard_recall(ranked, keep, golden=golden),
        "soft": soft_recall(ranked, keep),
        "lost": value_lost(ranked, keep),
        "ndcg": ndcg(ranked, keep),
        "regret": top_regret(ranked),
    }
    for name, numbers in found.items():
        wanted = [
            slow(name, value[start:stop], score[start:stop], keep, golden)
            for start, stop in itertools.pairwise(offsets)
        ]
        np.testing.assert_allclose(numbers, wanted, rtol=1e-12, atol=1e-12, err_msg=name)


def test_mean_over_ties_is_what_random_tie_breaking_gives_on_average() -> None:
    rng = np.random.default_rng(1)
    value, score = rng.lognormal(size=40), rng.integers(0, 4, 40).astype(float)
    exact = soft_recall(rank_candidates([0, 40], value, score), 10)[0]
    broken = [
        soft_recall(rank_candidates([0, 40], value, score + 0.5 * rng.random(40)), 10)[0]
        for _ in range(4000)
    ]
    # Four standard errors.
    assert exact == pytest.approx(np.mean(broken), abs=4 * np.std(broken) / math.sqrt(4000))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_recalls_stay_in_bounds_and_are_one_for_the_teacher_itself(seed, keep, ties, shift):
    offsets, value, score = jagged(seed, largest=9, ties=ties)
    if shift:
        value = value - 0.5
    ranked = rank_candidates(offsets, value, score)
    for metric in (
        hard_recall(ranked, keep),
        soft_recall(ranked, keep, shift=shift),
        ndcg(ranked, keep, shift=shift),
    ):
        defined = metric[~np.isnan(metric)]
        assert (defined >= 0.0).all()
        assert (defined <= 1.0).all()
    assert (value_lost(ranked, keep) >= 0.0).all()

    teacher = rank_candidates(offsets, value, value)
    for metric in (
        hard_recall(teacher, keep),
        soft_recall(teacher, keep, shift=shift),
        ndcg(teacher, keep, shift=shift),
    ):
        # Exactly, ties and rounding notwithstanding.
        assert set(metric[~np.isnan(metric)].tolist()) <= {1.0}
    assert not value_lost(teacher, keep).any()
    assert set(np.nan_to_num(top_regret(teacher)).tolist()) == {0.0}
    assert not np.nan_to_num(value_divergence(teacher)).any()


def test_random_order_keeps_its_share_of_golden_candidates() -> None:
    # 200 requests of 500 candidates, 25 of which are worth the same and the others nothing.
    rng = np.random.default_rng(2)
    value = np.tile(np.repeat([3.0, 0.0], [25, 475]), 200)
    ranked = rank_candidates(np.arange(201) * 500, value, rng.random(value.size))
    for metric in (hard_recall(ranked, 25), soft_recall(ranked, 25)):
        # Hypergeometric: mean 25 / 500, standard deviation 0.042 of one request; four errors.
        assert metric.mean() == pytest.approx(0.05, abs=4 * 0.042 / math.sqrt(200))


def test_random_order_keeps_its_share_of_the_value() -> None:
    rng = np.random.default_rng(3)
    value = rng.lognormal(size=(300, 200))
    ranked = rank_candidates(np.arange(301) * 200, value.reshape(-1), rng.random(60_000))
    best = np.sort(value, axis=1)[:, -20:].sum(axis=1)
    found = soft_recall(ranked, 20)
    expected = 20 / 200 * value.sum(axis=1) / best
    error = np.std(found - expected) / math.sqrt(300)
    assert found.mean() == pytest.approx(expected.mean(), abs=4 * error)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_value_kept_equals_a_loop_and_is_one_where_the_golden_survive(seed, golden) -> None:
    rng = np.random.default_rng(seed)
    offsets, value, score = jagged(seed)
    ranked = rank_candidates(offsets, value, score)
    survives = rng.random(value.size) < 0.5
    found = value_kept(ranked, survives, golden)
    for index, (start, stop) in enumerate(itertools.pairwise(offsets)):
        worth, alive = value[start:stop], survives[start:stop]
        best = sum(sorted(worth, reverse=True)[:golden])
        reached = sum(sorted(worth[alive], reverse=True)[:golden])
        expected = reached / best if best > 0 else math.nan
        assert found[index] == pytest.approx(expected, nan_ok=True)
    everything = value_kept(ranked, np.ones(value.size, bool), golden)
    assert (everything[~np.isnan(everything)] == 1.0).all()


def test_value_kept_of_two_requests_by_hand() -> None:
    # Of 5 + 3 the survivors reach 3 + 1; the second request keeps one of two places of 6 + 2.
    ranked = rank_candidates([0, 4, 6], [1.0, 5.0, 3.0, 0.5, 2.0, 6.0], np.zeros(6))
    survives = np.array([True, False, True, True, True, False])
    assert value_kept(ranked, survives, 2).tolist() == [0.5, 0.25]
    # One place in the first: 3 of 5.
    assert value_kept(ranked, survives, [1, 2]) == pytest.approx([0.6, 0.25])
    with pytest.raises(DataError, match=r"each of 6 candidates, got dtype int64 and shape \(2,\)"):
        value_kept(ranked, [1, 0], 2)


def test_constant_scores_get_no_more_than_a_random_order() -> None:
    # The most valuable stand first in every list, where an unlucky sort would leave them.
    value = np.tile(np.arange(50.0, 0.0, -1.0), 4)
    ranked = rank_candidates(np.arange(5) * 50, value, np.zeros(200))
    assert hard_recall(ranked, 5).tolist() == pytest.approx([0.1] * 4, rel=1e-12)
    # A mean value of 25.5 at each of five places, against 50 + 49 + 48 + 47 + 46.
    assert soft_recall(ranked, 5).tolist() == pytest.approx([5 * 25.5 / 240] * 4, rel=1e-12)
    assert top_regret(ranked).tolist() == pytest.approx([1 - 25.5 / 50] * 4, rel=1e-12)


def test_candidates_that_tie_across_the_golden_cut_give_no_lucky_recall() -> None:
    # Two are worth something, 98 nothing; ten golden ones are asked for. To keep worthless ones
    # is no merit, and the teacher still has all that there is.
    value = np.repeat([5.0, 0.0], [2, 98])
    worst = rank_candidates([0, 100], value, -value)
    assert hard_recall(worst, 10).tolist() == [0.0]
    assert hard_recall(rank_candidates([0, 100], value, value), 10).tolist() == [1.0]
    # Where all are worth the same, none is golden: nothing can be said.
    equal = rank_candidates([0, 3, 5], [1, 1, 1, 0, 0], [1, 2, 3, 4, 5])
    assert np.isnan(hard_recall(equal, 1)).all()
    # Any of them keeps all the value that can be kept, unless that is nothing.
    assert soft_recall(equal, 1)[0] == 1.0
    assert np.isnan(soft_recall(equal, 1)[1])


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_permuting_candidates_changes_nothing(seed: int, ties: bool) -> None:
    offsets, value, score = jagged(seed, requests=6, largest=8, ties=ties)
    rng = np.random.default_rng(seed)
    moved = np.concatenate(
        [rng.permutation(np.arange(a, b)) for a, b in itertools.pairwise(offsets)]
    )
    plain = rank_candidates(offsets, value, score)
    other = rank_candidates(offsets, value[moved], score[moved])
    for metric in (
        lambda ranked: hard_recall(ranked, 2, golden=3),
        lambda ranked: soft_recall(ranked, 2),
        lambda ranked: value_lost(ranked, 2),
        lambda ranked: ndcg(ranked, 3),
        lambda ranked: np.stack(value_divergence(ranked)),
        top_regret,
    ):
        np.testing.assert_allclose(metric(other), metric(plain), rtol=1e-12, atol=1e-14)


def test_values_and_scores_in_other_units_change_no_ratio() -> None:
    offsets, value, score = jagged(4, requests=20, largest=30, ties=False)
    plain = rank_candidates(offsets, value, score)
    other = rank_candidates(offsets, 1000 * value, np.exp(score))
    np.testing.assert_allclose(soft_recall(other, 3), soft_recall(plain, 3), rtol=1e-12)
    np.testing.assert_allclose(value_lost(other, 3), 1000 * value_lost(plain, 3), atol=1e-9)
    np.testing.assert_allclose(top_regret(other), top_regret(plain), rtol=1e-12)


def test_weighted_mean_divergence_is_that_of_all_candidates_pooled() -> None:
    offsets, value, score = jagged(5, requests=30, largest=20, ties=False)
    ranked = rank_candidates(offsets, value, value + 0.1 * score)
    absolute, signed = value_divergence(ranked)
    for metric, pooled in (
        (absolute, np.abs(0.1 * score).sum() / value.sum()),
        (signed, (0.1 * score).sum() / value.sum()),
    ):
        mean = request_mean(metric, ranked.request_value, seed=0)
        assert mean.by_value.value == pytest.approx(pooled, rel=1e-9)
        assert mean.plain.value == pytest.approx(metric.mean(), rel=1e-12)
    assert signed.tolist() != absolute.tolist()


def test_mean_over_requests_leaves_undefined_ones_out_and_counts_them() -> None:
    mean = request_mean([0.5, np.nan, 1.0, 0.0] * 5, [1.0, 9.0, 3.0, 0.0] * 5, seed=1)
    assert mean.undefined == 5
    assert mean.plain.value == pytest.approx(0.5)
    assert mean.by_value.value == pytest.approx((0.5 + 3.0) / 4.0)
    assert (mean.plain.units, mean.plain.method) == (15, "Poisson bootstrap")


def test_interval_of_a_mean_over_requests_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(6).random(2000)
    mean = request_mean(values, np.ones(2000), seed=3, replicates=4000)
    error = values.std(ddof=1) / math.sqrt(2000)
    # 4000 replicates know the standard deviation to 1.1 % and its ends to some 2 %; four of these.
    assert mean.plain.standard_error == pytest.approx(error, rel=0.045)
    assert mean.plain.upper - mean.plain.lower == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert mean.plain == mean.by_value


def test_recall_curve_rises_to_one_and_rounds_quotas_up() -> None:
    rng = np.random.default_rng(7)
    value = rng.lognormal(size=100 * 500)
    ranked = rank_candidates(np.arange(101) * 500, value, value * rng.lognormal(size=value.size))
    curve = recall_curve(ranked, seed=0, replicates=100)
    assert [point.share for point in curve] == [0.01, 0.02, 0.05, 0.1, 0.2]
    for point, keep in zip(curve, (5, 10, 25, 50, 100), strict=True):
        assert point.soft.plain.value == pytest.approx(soft_recall(ranked, keep).mean(), rel=1e-12)
        assert point.hard.plain.value == pytest.approx(hard_recall(ranked, keep).mean(), rel=1e-12)
        weight = ranked.request_value
        weighted = np.average(soft_recall(ranked, keep), weights=weight)
        assert point.soft.by_value.value == pytest.approx(weighted, rel=1e-12)
    (whole,) = recall_curve(ranked, seed=0, shares=(1.0,), replicates=100)
    assert whole.soft.plain.value == whole.hard.plain.value == 1.0
    # 1 % of seven candidates is one.
    short = rank_candidates(np.arange(11) * 7, np.arange(70.0), -np.arange(70.0))
    (point,) = recall_curve(short, seed=0, shares=(0.01,), replicates=100)
    assert point.soft.plain.value == pytest.approx(soft_recall(short, 1).mean())
    # 0.07 * 100 is 7.000000000000001, and 7 % of 100 is seven.
    wide = rank_candidates(np.arange(11) * 100, np.arange(1000.0), -np.arange(1000.0))
    (point,) = recall_curve(wide, seed=0, shares=(0.07,), replicates=100)
    assert point.soft.plain.value == pytest.approx(soft_recall(wide, 7).mean())


def test_settings_without_meaning_are_refused() -> None:
    ranked = hand_lists()
    for keep in (0, -1, 1.5, [1, 2, 3], [1, 0]):
        with pytest.raises(DataError, match=r"K must be a whole number of at least 1, or \(2,\)"):
            soft_recall(ranked, keep)
    with pytest.raises(DataError, match=r"shares must lie in \(0, 1\], got \(0\.1, 1\.5\)"):
        recall_curve(ranked, seed=0, shares=(0.1, 1.5))
    with pytest.raises(DataError, match=r"got \(\)"):
        recall_curve(ranked, seed=0, shares=())
    with pytest.raises(DataError, match=r"got shapes \(2,\) and \(3,\)"):
        request_mean([1, 2], [1, 1, 1], seed=0)
    with pytest.raises(DataError, match="weights not negative"):
        request_mean([1, 2], [1, -1], seed=0)
    with pytest.raises(DataError, match="at least two units"):
        request_mean([1, np.nan], [1, 1], seed=0)
