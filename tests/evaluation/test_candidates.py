"""Lists of candidates: order, ties, offsets, and lists that are no requests."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.candidates import rank_candidates, request_offsets


def test_candidates_of_two_requests_are_ordered_within_each() -> None:
    ranked = rank_candidates([0, 3, 5], [1.0, 5.0, 2.0, 9.0, -7.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert ranked.requests == 2
    assert ranked.sizes.tolist() == [3, 2]
    assert ranked.request.tolist() == [0, 0, 0, 1, 1]
    assert ranked.place.tolist() == [0, 1, 2, 0, 1]
    assert ranked.by_value.tolist() == [1, 2, 0, 3, 4]
    assert ranked.by_score.tolist() == [2, 1, 0, 4, 3]
    assert ranked.sums(ranked.value).tolist() == [8.0, 2.0]
    # A candidate that costs value does not make its request worth less.
    assert ranked.request_value.tolist() == [8.0, 9.0]


def test_places_of_equal_scores_hold_the_mean_of_their_candidates() -> None:
    # Scores 2, 1, 1, 1 and 1: the last stands in another request, so it shares nothing.
    ranked = rank_candidates([0, 4, 5], [10.0, 1.0, 2.0, 6.0, 50.0], [2, 1, 1, 1, 1])
    assert ranked.expected_by_place(ranked.value).tolist() == [10.0, 3.0, 3.0, 3.0, 50.0]


def test_mean_of_equal_numbers_is_that_number_to_the_bit() -> None:
    # 0.1 + 0.1 + 0.1 is not 0.3.
    ranked = rank_candidates([0, 3], [0.1] * 3, [7.0] * 3)
    assert ranked.expected_by_place(ranked.value).tolist() == [0.1] * 3


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_orders_equal_a_sort_of_each_list(seed: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(1, 9, 6))))
    size = offsets[-1]
    value, score = rng.normal(size=size), rng.integers(-3, 3, size)
    ranked = rank_candidates(offsets, value, score)
    for start, stop in itertools.pairwise(offsets):
        for order, key in ((ranked.by_value, value), (ranked.by_score, score)):
            assert sorted(order[start:stop]) == list(range(start, stop))
            assert key[order[start:stop]].tolist() == sorted(key[start:stop], reverse=True)


def test_offsets_come_from_request_ids_that_lie_together() -> None:
    assert request_offsets([7, 7, 3, 9, 9, 9]).tolist() == [0, 2, 3, 6]
    with pytest.raises(DataError, match="must lie together, got request 7 in 2 lists"):
        request_offsets([7, 3, 7])
    with pytest.raises(DataError, match=r"one id per candidate, got shape \(0,\)"):
        request_offsets([])


def test_list_of_several_requests_is_refused() -> None:
    numbers = np.arange(4.0)
    rank_candidates([0, 2, 4], numbers, numbers, request=["a", "a", "b", "b"])
    with pytest.raises(DataError, match="one request, got another request, 'b', at position 2"):
        rank_candidates([0, 4], numbers, numbers, request=["a", "a", "b", "b"])
    # Strings of a data frame are Python objects.
    ids = np.array(["a", "a", "b", "b"], dtype=object)
    with pytest.raises(DataError, match="one request, got another request, 'b', at position 2"):
        rank_candidates([0, 4], numbers, numbers, request=ids)
    with pytest.raises(DataError, match="must lie together, got request 'a' in 2 lists"):
        rank_candidates([0, 2, 4], numbers, numbers, request=["a", "a", "a", "a"])
    with pytest.raises(DataError, match=r"of shape \(4,\) as the offsets say, got \(3,\)"):
        rank_candidates([0, 2, 4], numbers, numbers, request=["a", "a", "b"])


@pytest.mark.parametrize("offsets", [[0], [1, 4], [0, 2, 2, 4], [0, 3, 2, 4], [0.0, 4.0], [[0, 4]]])
def test_offsets_that_do_not_rise_from_zero_are_refused(offsets: list) -> None:
    with pytest.raises(DataError, match="offsets must be whole numbers that rise from 0"):
        rank_candidates(offsets, np.zeros(4), np.zeros(4))


def test_numbers_without_meaning_are_refused() -> None:
    with pytest.raises(DataError, match=r"values: must be of shape \(2,\) .* got shape \(3,\)"):
        rank_candidates([0, 2], [1, 2, 3], [1, 2])
    with pytest.raises(DataError, match="scores: must be finite, got nan at position 1"):
        rank_candidates([0, 2], [1, 2], [1, math.nan])
    with pytest.raises(DataError, match="values: must be finite, got inf at position 0"):
        rank_candidates([0, 2], [math.inf, 2], [1, 2])
