"""Agreement of two orders: by hand, by loops over pairs, against scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tamis.evaluation.candidates import rank_candidates
from tamis.evaluation.rank_agreement import count_pairs, kendall_tau, value_weighted_inversions


def jagged(seed: int, *, ties: bool, largest: int = 12):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(1, largest + 1, 6))))
    size = int(offsets[-1])
    if ties:
        return offsets, rng.integers(-2, 4, size) / 4, rng.integers(0, 4, size) / 2
    return offsets, rng.normal(size=size), rng.normal(size=size)


def slow_share(value, score) -> float:
    """Value-weighted inversions of one list, pair by pair."""
    wrong = total = 0.0
    for a, b in itertools.combinations(range(len(value)), 2):
        gap = value[a] - value[b]
        total += abs(gap)
        if score[a] == score[b]:
            wrong += 0.5 * abs(gap)
        elif (score[a] - score[b]) * gap < 0:
            wrong += abs(gap)
    return wrong / total if total else math.nan


def test_agreement_of_four_candidates_by_hand() -> None:
    # Order by score 4, 8, 1, 2: two of six pairs are inverted, with gaps 4 and 1 of
    # 4 + 6 + 7 + 2 + 3 + 1 = 23.
    ranked = rank_candidates([0, 4], [8, 4, 2, 1], [3.0, 4.0, 1.0, 2.0])
    assert kendall_tau(ranked).tolist() == pytest.approx([(4 - 2) / 6])
    assert value_weighted_inversions(ranked).tolist() == pytest.approx([5 / 23])


def test_pairs_of_two_lists_with_ties_by_hand() -> None:
    # Request 0, values 2, 2, 1, 1 and scores 5, 6, 6, 6: pairs (value tie) two, (score tie) three,
    # both one; 2@5 stands below two candidates worth 1. Request 1: one candidate.
    ranked = rank_candidates([0, 4, 5], [2, 2, 1, 1, 9], [5, 6, 6, 6, 0])
    counts = count_pairs(ranked)
    assert counts.pairs.tolist() == [6, 0]
    assert counts.value_ties.tolist() == [2, 0]
    assert counts.score_ties.tolist() == [3, 0]
    assert counts.both_ties.tolist() == [1, 0]
    assert counts.inverted.tolist() == [2, 0]
    assert counts.value_gap.tolist() == [4, 0]
    assert counts.tied_gap.tolist() == [2, 0]
    assert counts.inverted_gap.tolist() == [2, 0]
    # None of the pairs that both sides order is in order: (0 - 2) / sqrt(4 * 3).
    assert kendall_tau(ranked)[0] == pytest.approx(-2 / math.sqrt(12))
    assert value_weighted_inversions(ranked)[0] == pytest.approx((2 + 0.5 * 2) / 4)
    assert np.isnan(kendall_tau(ranked)[1])
    assert np.isnan(value_weighted_inversions(ranked)[1])


@pytest.mark.parity
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([12, 70]))
@settings(max_examples=60, deadline=None)
def test_agreement_equals_scipy_and_a_loop_over_pairs(seed, ties, largest) -> None:
    offsets, value, score = jagged(seed, ties=ties, largest=largest)
    ranked = rank_candidates(offsets, value, score)
    tau, share = kendall_tau(ranked), value_weighted_inversions(ranked)
    for index, (start, stop) in enumerate(itertools.pairwise(offsets)):
        one, other = value[start:stop], score[start:stop]
        assert share[index] == pytest.approx(slow_share(one, other), abs=1e-12, nan_ok=True)
        if len(set(one)) == 1:
            assert np.isnan(tau[index])
        elif len(set(other)) == 1:
            assert tau[index] == 0.0
        else:
            assert tau[index] == pytest.approx(stats.kendalltau(one, other).statistic, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_order_by_value_agrees_wholly_and_the_reversed_one_not_at_all(seed, ties) -> None:
    offsets, value, _ = jagged(seed, ties=ties)
    for sign in (1.0, -1.0):
        ranked = rank_candidates(offsets, value, sign * value)
        tau, share = kendall_tau(ranked), value_weighted_inversions(ranked)
        assert tau[~np.isnan(tau)] == pytest.approx(sign, abs=1e-12)
        assert share[~np.isnan(share)] == pytest.approx((1 - sign) / 2, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_permuting_candidates_changes_nothing(seed: int, ties: bool) -> None:
    offsets, value, score = jagged(seed, ties=ties)
    rng = np.random.default_rng(seed)
    moved = np.concatenate(
        [rng.permutation(np.arange(a, b)) for a, b in itertools.pairwise(offsets)]
    )
    plain = rank_candidates(offsets, value, score)
    other = rank_candidates(offsets, value[moved], score[moved])
    for metric in (kendall_tau, value_weighted_inversions):
        np.testing.assert_allclose(metric(other), metric(plain), rtol=1e-12, atol=1e-14)


def test_scores_that_say_nothing_count_half_the_differences() -> None:
    ranked = rank_candidates([0, 4], [8, 4, 2, 1], [1, 1, 1, 1])
    assert kendall_tau(ranked).tolist() == [0.0]
    assert value_weighted_inversions(ranked).tolist() == pytest.approx([0.5])


def test_a_request_worth_millions_leaves_the_digits_of_a_small_one() -> None:
    rng = np.random.default_rng(8)
    small, score = rng.random(50), rng.random(50)
    both = rank_candidates(
        [0, 50, 100], np.concatenate([1e12 * small, 1e-6 * small]), np.tile(score, 2)
    )
    # The same order in other units: without scaling, the second would lose all its digits.
    one, other = value_weighted_inversions(both)
    assert other == pytest.approx(one, rel=1e-9)


def test_values_that_differ_in_their_last_digit_are_no_ties() -> None:
    close = np.nextafter(1.0, 2.0)
    ranked = rank_candidates([0, 3], [1.0, close, -1e9], [3.0, 2.0, 1.0])
    assert count_pairs(ranked).value_ties.tolist() == [0]
    assert kendall_tau(ranked).tolist() == pytest.approx([1 / 3])
