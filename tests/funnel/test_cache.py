"""Caches: right answers, counted hits, bounded memory, nothing remembered of a fallback."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import ConfigError, DataError
from tamis.funnel.cache import CachedByAd, CachedByUser, UserCache
from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored
from tamis.funnel.timeout import TimeOut


def _candidates(*ads: int) -> Candidates:
    return Candidates(ads=np.array(ads, np.int64), scores=np.zeros(len(ads)))


def _squares(ads: np.ndarray) -> np.ndarray:
    return ads.astype(np.float64) ** 2


class _Late:
    """Falls back every time."""

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        return Scored(candidates=candidates, fallback="late")


def test_second_request_of_a_user_gets_the_first_answer(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    stage = make_stage(_squares)
    cached = CachedByUser(stage, UserCache(max_users=2, time_to_live_ms=10))
    asked = _candidates(1, 2, 3)

    first = cached(make_request(user=5), asked, 2)
    second = cached(make_request(user=5, time_micros=10_000), _candidates(1, 2, 3), 2)

    assert len(stage.asked) == 1
    assert (first.cache_lookups, first.cache_hits, first.scored_pairs) == (1, 0, 3)
    assert (second.cache_lookups, second.cache_hits, second.scored_pairs) == (1, 1, 0)
    assert second.candidates is first.candidates


@pytest.mark.parametrize(
    ("user", "time_micros", "ads", "keep"),
    [
        (6, 0, (1, 2, 3), 2),  # another user
        (5, 10_001, (1, 2, 3), 2),  # later than the time to live
        (5, -1, (1, 2, 3), 2),  # earlier than the answer
        (5, 0, (1, 2, 4), 2),  # other candidates
        (5, 0, (1, 2), 2),  # fewer candidates
        (5, 0, (1, 2, 3), 3),  # more to keep
    ],
)
def test_answer_serves_no_other_question(
    make_stage: Any,
    make_request: Callable[..., Request],
    user: int,
    time_micros: int,
    ads: tuple[int, ...],
    keep: int,
) -> None:
    stage = make_stage(_squares)
    cached = CachedByUser(stage, UserCache(max_users=2, time_to_live_ms=10))
    cached(make_request(user=5), _candidates(1, 2, 3), 2)

    scored = cached(make_request(user=user, time_micros=time_micros), _candidates(*ads), keep)

    assert scored.cache_hits == 0
    # The highest squares come first, as many as are kept.
    assert scored.candidates.ads.tolist() == sorted(ads, reverse=True)[:keep]


def test_only_what_is_kept_is_remembered(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    cached = CachedByUser(make_stage(_squares), UserCache(max_users=2, time_to_live_ms=10))

    first, second = (cached(make_request(), _candidates(*range(30)), 3) for _ in range(2))

    assert first.candidates.ads.tolist() == second.candidates.ads.tolist() == [29, 28, 27]


def test_user_seen_longest_ago_is_forgotten_first(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    cached = CachedByUser(make_stage(_squares), UserCache(max_users=2, time_to_live_ms=10))
    asked = _candidates(1)

    hits = [cached(make_request(user=user), asked, 1).cache_hits for user in (1, 2, 1, 3, 1, 2)]

    # User 3 puts out 2, since 1 was seen again; then 2 is new.
    assert hits == [0, 0, 1, 0, 1, 0]


def test_users_who_ask_once_put_out_nobody(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    cached = CachedByUser(make_stage(_squares), UserCache(max_users=2, time_to_live_ms=10))
    asked = _candidates(1)

    # Below 0 is who is not known: another code each time.
    hits = [cached(make_request(user=user), asked, 1).cache_hits for user in (1, ~7, ~8, ~7, 1)]

    assert hits == [0, 0, 0, 0, 1]


def test_requests_together_are_answered_from_the_cache_and_the_rest_in_one_call(
    make_request: Callable[..., Request],
) -> None:
    calls: list[list[int]] = []

    class Together:
        """Its score tells the user."""

        def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
            (scored,) = self.score_all([request], [candidates], keep)
            return scored

        def score_all(
            self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
        ) -> list[Scored]:
            calls.append([request.user for request in requests])
            return [
                Scored(
                    candidates=replace(its, scores=its.ads * 1.0 + request.user),
                    scored_pairs=len(its),
                )
                for request, its in zip(requests, candidates, strict=True)
            ]

    cached = CachedByUser(Together(), UserCache(max_users=9, time_to_live_ms=10))
    cached(make_request(user=5), _candidates(1, 2), 1)
    requests = [make_request(user=user) for user in (4, 5, 6)]

    for hits in ((0, 1, 0), (1, 1, 1)):
        found = cached.score_all(requests, [_candidates(1, 2)] * 3, 1)
        assert tuple(one.cache_hits for one in found) == hits
        assert [one.cache_lookups for one in found] == [1, 1, 1]
        assert [one.candidates.ads.tolist() for one in found] == [[2], [2], [2]]
        assert [one.candidates.scores.tolist() for one in found] == [[6], [7], [8]]
    assert calls == [[5], [4, 6]]


def test_cleared_cache_asks_again(make_stage: Any, make_request: Callable[..., Request]) -> None:
    stage = make_stage(_squares)
    cached = CachedByUser(stage, UserCache(max_users=2, time_to_live_ms=10))
    cached(make_request(), _candidates(1), 1)
    cached.clear()

    assert cached(make_request(), _candidates(1), 1).cache_hits == 0


def test_answer_that_was_under_way_when_the_cache_was_cleared_is_not_remembered(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    stage = make_stage(_squares)
    by_user = CachedByUser(stage, UserCache(max_users=2, time_to_live_ms=10))
    by_ad = CachedByAd(stage, num_ads=5, max_ads=5)

    for cached, change in ((by_user, by_user.clear), (by_ad, lambda: by_ad.forget(np.array([1])))):
        # The ad changes while the stage still computes with what it was before.
        stage.before = change
        cached(make_request(), _candidates(1), 1)
        stage.before = lambda: None

        assert cached(make_request(), _candidates(1), 1).cache_hits == 0
        assert cached(make_request(), _candidates(1), 1).cache_hits == 1


def test_fallback_is_not_remembered(make_request: Callable[..., Request]) -> None:
    by_user = CachedByUser(_Late(), UserCache(max_users=2, time_to_live_ms=10))
    by_ad = CachedByAd(_Late(), num_ads=5, max_ads=5)
    asked = _candidates(1, 2)

    for cached in (by_user, by_ad):
        for _ in range(2):
            scored = cached(make_request(), asked, 1)
            assert scored.fallback == "late"
            assert scored.cache_hits == 0
            assert scored.candidates is asked


def test_scores_that_are_not_finite_are_handed_on_and_not_remembered(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    stage = make_stage(lambda ads: np.where(ads == 2, np.nan, 1.0))
    by_user = CachedByUser(stage, UserCache(max_users=2, time_to_live_ms=10))
    by_ad = CachedByAd(stage, num_ads=5, max_ads=5)

    for cached in (by_user, by_ad):
        for _ in range(2):
            scored = cached(make_request(), _candidates(1, 2, 3), 2)
            # The funnel sees them, and falls back; the next request may fare better.
            assert np.isnan(scored.candidates.scores).sum() == 1
            assert scored.cache_hits == 0


def test_ads_that_are_remembered_are_not_asked_again(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    stage = make_stage(_squares, predicts={"click": lambda ads: ads / 10})
    cached = CachedByAd(stage, num_ads=10, max_ads=10)

    cached(make_request(), _candidates(1, 2, 3), 1)
    scored = cached(make_request(), _candidates(3, 4, 1, 5), 1)

    assert stage.asked == [[1, 2, 3], [4, 5]]
    assert (scored.cache_lookups, scored.cache_hits, scored.scored_pairs) == (4, 2, 2)
    found = scored.candidates
    assert sorted(found.ads.tolist()) == [1, 3, 4, 5]
    assert found.scores.tolist() == _squares(found.ads).tolist()
    assert found.predictions["click"].tolist() == (found.ads / 10).tolist()


def test_fallback_for_some_ads_is_one_for_all(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    cached = CachedByAd(make_stage(_squares), num_ads=10, max_ads=10)
    cached(make_request(), _candidates(1, 2), 1)
    cached.stage = _Late()
    asked = _candidates(1, 2, 3)

    scored = cached(make_request(), asked, 1)

    # Scores of two stages in one order would mean nothing.
    assert scored.candidates is asked


def test_forgotten_ads_are_asked_again(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    stage = make_stage(_squares)
    cached = CachedByAd(stage, num_ads=10, max_ads=10)
    cached(make_request(), _candidates(1, 2, 3), 1)
    cached.forget(np.array([2, 9]))

    cached(make_request(), _candidates(1, 2, 3), 1)

    assert stage.asked == [[1, 2, 3], [2]]


@given(
    st.lists(st.sets(st.integers(0, 11), min_size=1), min_size=1, max_size=12),
    st.integers(1, 8),
)
@settings(deadline=None)
def test_cache_by_ad_is_bounded_and_right_whatever_it_is_asked(
    requests: list[set[int]], max_ads: int
) -> None:
    asked: list[int] = []

    def stage(request: Request, candidates: Candidates, keep: int) -> Scored:
        asked.extend(candidates.ads.tolist())
        ads = candidates.ads
        return Scored(candidates=Candidates(ads=ads, scores=_squares(ads)))

    cached = CachedByAd(stage, num_ads=12, max_ads=max_ads)
    request = Request(request_id=0, user=0, time_micros=0, slots=1)
    last: list[int] = []
    for ads in requests:
        asked.clear()
        scored = cached(request, _candidates(*sorted(ads)), 1)
        found = scored.candidates
        assert sorted(found.ads.tolist()) == sorted(ads)
        assert found.scores.tolist() == _squares(found.ads).tolist()
        assert scored.cache_hits == len(ads) - len(asked)
        remembered = np.flatnonzero(cached._place_of_ad >= 0)
        assert len(remembered) <= max_ads
        # What was just used is there, as far as there is room.
        assert len(set(remembered.tolist()) & ads) >= min(max_ads, len(ads))
        # A second look finds what the first left.
        if len(ads) <= max_ads:
            asked.clear()
            cached(request, _candidates(*sorted(ads)), 1)
            assert asked == []
        last = sorted(ads)
    assert last


def test_ads_used_longest_ago_are_forgotten_first(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    stage = make_stage(_squares)
    cached = CachedByAd(stage, num_ads=10, max_ads=3)
    for ads in ((1, 2), (3,), (1,), (4,)):
        cached(make_request(), _candidates(*ads), 1)
    stage.asked.clear()

    # 4 put out 2: 1 was used again after it, 3 came after it.
    cached(make_request(), _candidates(1, 3, 4), 1)
    cached(make_request(), _candidates(2), 1)

    assert stage.asked == [[2]]


def test_stage_that_begins_to_predict_other_tasks_is_refused(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    stage = make_stage(_squares, predicts={"click": _squares})
    cached = CachedByAd(stage, num_ads=10, max_ads=3)
    cached(make_request(), _candidates(1), 1)
    stage.predicts = {"hide": _squares}

    with pytest.raises(DataError, match=r"same tasks for every ad, got \['hide'\] after"):
        cached(make_request(), _candidates(1, 2), 1)


def test_wrappers_compose_and_add_their_counts(
    make_stage: Any, make_request: Callable[..., Request], clock: Any
) -> None:
    stage = make_stage(_squares, before=lambda: clock.advance(1))
    inner = CachedByAd(stage, num_ads=10, max_ads=10)
    outer = CachedByUser(
        TimeOut(inner, budget_ms=5, clock=clock), UserCache(max_users=2, time_to_live_ms=1)
    )

    first = outer(make_request(user=1), _candidates(1, 2), 1)
    second = outer(make_request(user=2), _candidates(2, 3), 1)
    third = outer(make_request(user=2), _candidates(2, 3), 1)

    # One lookup by user, and one for each ad unless the user was there.
    counts = [(s.cache_lookups, s.cache_hits, s.scored_pairs) for s in (first, second, third)]
    assert counts == [(3, 0, 2), (3, 1, 1), (1, 1, 0)]


@pytest.mark.parametrize(("max_users", "time_to_live_ms"), [(0, 1), (1, 0), (1, np.nan)])
def test_user_numbers_out_of_range_are_refused(max_users: int, time_to_live_ms: float) -> None:
    with pytest.raises(ConfigError, match=rf"max_users={max_users}, time_to_live_ms="):
        UserCache(max_users=max_users, time_to_live_ms=time_to_live_ms)


@pytest.mark.parametrize(("num_ads", "max_ads"), [(0, 1), (1, 0)])
def test_ad_numbers_out_of_range_are_refused(num_ads: int, max_ads: int) -> None:
    with pytest.raises(ConfigError, match=rf"got num_ads={num_ads}, max_ads={max_ads}"):
        CachedByAd(_Late(), num_ads=num_ads, max_ads=max_ads)
