"""The funnel: what holds for every request, whatever its stages do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamis.data.hashing import hash_integers
from tamis.errors import ConfigError, DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.cache import CachedByAd
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored

_NUM_ADS = 40
_CLICKS = np.linspace(0.05, 0.9, _NUM_ADS)


def _noise(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of few different values, so that many are tied."""
    return lambda ads: (hash_integers(ads, seed=seed) % np.uint64(7)).astype(np.float64)


def _clicks(ads: np.ndarray) -> np.ndarray:
    return _CLICKS[ads]


@pytest.fixture
def make_funnel(
    make_ads: Callable[..., AdTable], make_stage: Any, click_value: Any, clock: Any
) -> Callable[..., Funnel]:
    """Retrieval keeps 20 of 40, the early stage 10, the final one 5; any may be replaced."""

    def make(*, budget_ms: float | None = None, **stages: Any) -> Funnel:
        names = {"retrieval": 20, "early": 10, "final": 5}
        usual = {
            "retrieval": make_stage(_noise(1), before=lambda: clock.advance(1)),
            "early": make_stage(_noise(2), before=lambda: clock.advance(2)),
            "final": make_stage(_clicks, {"click": _clicks}, before=lambda: clock.advance(3)),
        }
        steps = [
            Step(name=name, stage=(usual | stages)[name], keep=keep, budget_ms=budget_ms)
            for name, keep in names.items()
        ]
        prior = np.arange(_NUM_ADS, 0, -1.0)
        return Funnel(steps, make_ads(_NUM_ADS), click_value, prior=prior, clock=clock)

    return make


def test_trace_adds_up(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    trace = make_funnel().answer(make_request(3))

    assert [stage.name for stage in trace.stages] == ["retrieval", "early", "final"]
    assert [stage.num_candidates for stage in trace.stages] == [40, 20, 10]
    assert [len(stage.ads) for stage in trace.stages] == [20, 10, 5]
    assert [stage.scored_pairs for stage in trace.stages] == [40, 20, 10]
    assert [stage.flops for stage in trace.stages] == [400, 200, 100]
    assert [stage.elapsed_ms for stage in trace.stages] == [1, 2, 3]
    assert trace.elapsed_ms == 6
    assert trace.auction_ms == 0
    assert [stage.fallback for stage in trace.stages] == ["", "", ""]


def test_observer_is_told_all_scores_before_each_cut_and_changes_nothing(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request], make_stage: Any
) -> None:
    def fails() -> None:
        raise RuntimeError("broken")

    funnel = make_funnel(early=make_stage(_noise(2), before=fails))
    seen: list[Candidates] = []

    trace = funnel.answer(make_request(3), observe=seen.append)

    assert [len(found) for found in seen] == [40, 20, 10]
    assert sorted(seen[0].ads.tolist()) == list(range(40))
    assert np.array_equal(seen[0].scores, _noise(1)(seen[0].ads))
    # The early stage failed: its candidates go on with the scores of the one before.
    assert np.array_equal(seen[1].scores, _noise(1)(seen[1].ads))
    assert np.array_equal(seen[2].predictions["click"], _clicks(seen[2].ads))
    for found, stage in zip(seen, trace.stages, strict=True):
        assert found.best(len(stage.ads), seed=3).ads.tolist() == stage.ads.tolist()
    assert trace.to_json() == funnel.answer(make_request(3)).to_json()


def test_slate_is_the_best_of_the_final_stage_at_the_second_price(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    trace = make_funnel().answer(make_request(3))

    best = trace.stages[2].ads
    clicks = _CLICKS[best]
    assert (np.diff(clicks) < 0).all()
    assert trace.slate.ads.tolist() == best[:2].tolist()
    np.testing.assert_allclose(trace.slate.prices, clicks[1:3] / clicks[:2])


@pytest.mark.parametrize("column", ["bid", "quality"])
def test_slate_follows_bids_and_quality_at_the_same_predictions(
    make_ads: Callable[..., AdTable],
    make_request: Callable[..., Request],
    make_stage: Any,
    click_value: Any,
    column: str,
) -> None:
    # More clicks are expected of later rows; bids and quality here favour earlier ones by more.
    changed = np.linspace(30, 1, _NUM_ADS)
    final = make_stage(_clicks, {"click": _clicks})
    steps = [Step(name="final", stage=final, keep=_NUM_ADS)]

    plain, other = (
        Funnel(steps, make_ads(_NUM_ADS, **columns), click_value).answer(make_request())
        for columns in ({}, {column: changed})
    )

    assert plain.slate.ads.tolist() == [39, 38]
    bids = changed if column == "bid" else np.ones(_NUM_ADS)
    values = bids * _CLICKS + (changed if column == "quality" else 0)
    assert other.slate.ads.tolist() == np.argsort(-values)[:2].tolist() != [39, 38]


def test_json_form_is_whole(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    trace = make_funnel().answer(make_request(3))
    record = trace.to_json()

    assert record["request_id"] == 3
    assert record["elapsed_ms"] == 6
    assert record["slate"]["ads"] == trace.slate.ads.tolist()
    final = record["stages"][2]
    assert (final["candidates_in"], final["candidates_out"]) == (10, 5)
    assert final["ads"] == trace.stages[2].ads.tolist()
    np.testing.assert_allclose(final["scores"], _CLICKS[final["ads"]], rtol=1e-6)


@given(
    st.lists(st.integers(0, _NUM_ADS - 1), min_size=1, max_size=60),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_candidates_never_grow_and_their_order_does_not_matter(
    make_funnel: Callable[..., Funnel],
    make_request: Callable[..., Request],
    ads: list[int],
    request_id: int,
    random: Any,
) -> None:
    funnel = make_funnel()
    shuffled = list(ads)
    random.shuffle(shuffled)

    trace = funnel.answer(make_request(request_id, candidates=np.array(ads)))
    again = funnel.answer(make_request(request_id, candidates=np.array(shuffled)))

    incoming = set(ads)
    for stage, other in zip(trace.stages, again.stages, strict=True):
        assert stage.num_candidates == len(incoming)
        assert set(stage.ads.tolist()) <= incoming
        assert len(set(stage.ads.tolist())) == len(stage.ads) <= len(incoming)
        assert stage.ads.tolist() == other.ads.tolist()
        assert stage.scores.tolist() == other.scores.tolist()
        incoming = set(stage.ads.tolist())
    assert set(trace.slate.ads.tolist()) <= incoming
    assert trace.slate.ads.tolist() == again.slate.ads.tolist()
    assert trace.slate.prices.tolist() == again.slate.prices.tolist()


def test_ties_fall_otherwise_for_every_request(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request], make_stage: Any
) -> None:
    funnel = make_funnel(retrieval=make_stage(lambda ads: np.zeros(len(ads))))

    kept = [set(funnel.answer(make_request(at)).stages[0].ads.tolist()) for at in (1, 2, 1)]

    assert kept[0] == kept[2] != kept[1]


def _raise() -> None:
    raise RuntimeError("no memory")


class _Returns:
    """A stage that answers what it is told to."""

    def __init__(self, ads: list[int], scores: list[float], **predictions: list[float]) -> None:
        self.answer = Candidates(
            ads=np.array(ads, np.int64),
            scores=np.array(scores, np.float64),
            predictions={name: np.array(values) for name, values in predictions.items()},
        )

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        return Scored(candidates=self.answer)


@pytest.mark.parametrize("name", ["retrieval", "early", "final"])
def test_stage_that_raises_leaves_the_order_before_it(
    make_funnel: Callable[..., Funnel],
    make_request: Callable[..., Request],
    make_stage: Any,
    name: str,
) -> None:
    request = make_request(3)
    broken = make_funnel(**{name: make_stage(_clicks, before=_raise)}).answer(request)

    at = ["retrieval", "early", "final"].index(name)
    found = broken.stages[at]
    assert found.fallback == "RuntimeError: no memory"
    # Before the first stage stands the prior, which falls with the row.
    before = list(range(_NUM_ADS)) if at == 0 else broken.stages[at - 1].ads.tolist()
    assert found.ads.tolist() == before[: len(found.ads)]
    assert len(found.ads) == [20, 10, 5][at]
    assert found.scored_pairs == 0
    assert len(broken.slate.ads) == request.slots
    # The others ran.
    assert [stage.fallback == "" for stage in broken.stages].count(False) == 1


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (_Returns([1, 2], [0.5, np.nan]), "a score or prediction that is not finite"),
        (_Returns([1, 2], [0.5, 1], click=[0.5, np.inf]), "a score or prediction that is not fin"),
        (_Returns([1, 39], [0.5, 1]), "an ad that was not among its candidates"),
        (_Returns([1, -1], [0.5, 1]), "an ad that was not among its candidates"),
        (_Returns([1, 400], [0.5, 1]), "an ad that was not among its candidates"),
        (_Returns([1, 2, 1], [0.5, 1, 1]), "an ad twice"),
    ],
)
def test_answer_that_cannot_be_used_is_a_fallback(
    make_funnel: Callable[..., Funnel],
    make_request: Callable[..., Request],
    stage: _Returns,
    reason: str,
) -> None:
    request = make_request(candidates=np.arange(30))

    trace = make_funnel(retrieval=stage).answer(request)

    assert trace.stages[0].fallback.startswith(f"returned {reason}")
    assert trace.stages[0].ads.tolist() == list(range(20))


def test_fallback_keeps_the_candidates_that_came_whatever_is_returned_with_it(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    def wrong(request: Request, candidates: Candidates, keep: int) -> Scored:
        return Scored(candidates=candidates.take(np.array([3, 3])), fallback="late", scored_pairs=7)

    trace = make_funnel(early=wrong).answer(make_request())

    assert trace.stages[1].fallback == "late"
    assert trace.stages[1].ads.tolist() == trace.stages[0].ads[:10].tolist()
    # What was computed was computed.
    assert trace.stages[1].scored_pairs == 7


def test_stage_may_return_part_of_its_candidates(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    trace = make_funnel(retrieval=_Returns([4, 39, 7], [1, 3, 2])).answer(make_request())

    assert trace.stages[0].fallback == ""
    assert trace.stages[0].ads.tolist() == [39, 7, 4]
    assert trace.stages[1].num_candidates == 3


def test_late_stage_falls_back_and_the_others_run(
    make_funnel: Callable[..., Funnel],
    make_request: Callable[..., Request],
    make_stage: Any,
    clock: Any,
) -> None:
    late = make_stage(_noise(2), before=lambda: clock.advance(10))

    trace = make_funnel(budget_ms=5, early=late).answer(make_request())

    assert [stage.fallback for stage in trace.stages] == ["", "took longer than 5 ms", ""]
    assert trace.stages[1].ads.tolist() == trace.stages[0].ads[:10].tolist()
    assert trace.stages[1].elapsed_ms == 10


def test_predictions_of_an_earlier_stage_serve_when_the_last_one_fails(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request], make_stage: Any
) -> None:
    early = make_stage(_clicks, {"click": _clicks})
    fails = make_stage(_clicks, before=_raise)

    trace = make_funnel(early=early, final=fails).answer(make_request())

    clicks = _CLICKS[trace.stages[1].ads]
    assert trace.slate.values.tolist() == clicks[:2].tolist()
    np.testing.assert_allclose(trace.slate.prices, clicks[1:3] / clicks[:2])


def test_predictions_follow_their_ads_through_a_stage_that_makes_none(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request], make_stage: Any
) -> None:
    early = make_stage(_noise(2), {"click": _clicks})
    # Scores alone, in another order and for some ads only.
    trace = make_funnel(
        early=early, final=lambda request, candidates, keep: _reversed(candidates)
    ).answer(make_request())

    assert len(trace.slate.ads) == 2
    np.testing.assert_array_equal(trace.slate.values, _CLICKS[trace.slate.ads])


def _reversed(candidates: Candidates) -> Scored:
    ads = candidates.ads[::-1][:7].copy()
    return Scored(candidates=Candidates(ads=ads, scores=ads * 1.0))


def test_request_without_any_prediction_is_answered_at_the_reserve_price(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request], make_stage: Any
) -> None:
    trace = make_funnel(final=make_stage(_clicks, before=_raise)).answer(make_request())

    assert trace.slate.ads.tolist() == trace.stages[1].ads[:2].tolist()
    assert trace.slate.prices.tolist() == [0.0, 0.0]
    assert np.isnan(trace.slate.values).all()


def test_predictions_that_the_auction_cannot_use_do_not_lose_the_request(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request], make_stage: Any
) -> None:
    wrong = make_stage(_clicks, {"click": lambda ads: -_CLICKS[ads]})

    trace = make_funnel(final=wrong).answer(make_request())

    assert trace.auction_fallback.startswith("DataError: auction: rate must be finite and not neg")
    assert trace.slate.ads.tolist() == trace.stages[2].ads[:2].tolist()


def test_cache_hits_are_in_the_trace(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request], make_stage: Any
) -> None:
    funnel = make_funnel(retrieval=CachedByAd(make_stage(_noise(1)), num_ads=40, max_ads=40))
    first, second = (funnel.answer(make_request(number)) for number in (1, 1))

    counts = [(t.stages[0].cache_lookups, t.stages[0].cache_hits) for t in (first, second)]
    assert counts == [(40, 0), (40, 40)]
    assert second.stages[0].scored_pairs == 0
    assert first.stages[0].ads.tolist() == second.stages[0].ads.tolist()


def test_request_without_candidates_gets_no_ads(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    def fail(request: Request, candidates: Candidates, keep: int) -> Scored:
        raise AssertionError("a stage was asked about nothing")

    trace = make_funnel(retrieval=fail).answer(make_request(candidates=np.empty(0, np.int64)))

    assert [stage.fallback for stage in trace.stages] == ["", "", ""]
    assert [len(stage.ads) for stage in trace.stages] == [0, 0, 0]
    assert len(trace.slate.ads) == 0


def test_candidates_that_are_no_ads_are_refused(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    for ads in ([1, 40], [-1, 3]):
        with pytest.raises(DataError, match=r"request 8: candidates must be ad rows from 0 to 39"):
            make_funnel().answer(make_request(8, candidates=np.array(ads)))


def _step(name: str, keep: int) -> Step:
    return Step(name=name, stage=_Returns([], []), keep=keep)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], r"funnel: must have at least one stage, got none"),
        ([_step("a", 5), _step("a", 5)], r"stage 'a': names must differ"),
        ([_step("auction", 5)], r"stage 'auction': name must not be that of the auction"),
        ([_step("known", 5)], r"stage 'known': name must not be that of what the funnel knows"),
        ([_step("a", 5), _step("b", 6)], r"stage 'b': keep must be at most the 5 that stage 'a'"),
    ],
)
def test_steps_that_make_no_funnel_are_refused(
    make_ads: Callable[..., AdTable], click_value: Any, steps: list[Step], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Funnel(steps, make_ads(10), click_value)


def test_step_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stage 'a': keep must be at least 1, got 0"):
        _step("a", 0)


def test_settings_out_of_range_are_refused(
    make_ads: Callable[..., AdTable], click_value: Any
) -> None:
    with pytest.raises(ConfigError, match=r"reserve: must be finite and not negative, got -1"):
        Funnel([_step("a", 5)], make_ads(10), click_value, reserve=-1)
    for prior in (np.zeros(9), np.full(10, np.nan)):
        with pytest.raises(DataError, match=r"prior: must be one finite score for each of 10 ads"):
            Funnel([_step("a", 5)], make_ads(10), click_value, prior=prior)


def test_several_requests_are_answered_as_each_by_itself(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    funnel = make_funnel()
    requests = [
        make_request(1),
        make_request(2, candidates=np.array([], np.int64)),
        make_request(3, candidates=np.arange(7, 30)),
    ]
    seen: list[list[Candidates]] = [[] for _ in requests]

    together = funnel.answer_all(requests, observe=[found.append for found in seen])

    for request, trace, found in zip(requests, together, seen, strict=True):
        alone = make_funnel().answer(request)
        assert trace.slate.to_json() == alone.slate.to_json()
        assert trace.request_id == request.request_id
        for ours, theirs in zip(trace.stages, alone.stages, strict=True):
            assert ours.ads.tolist() == theirs.ads.tolist()
            assert ours.num_candidates == theirs.num_candidates
        assert [len(part) for part in found] == [part.num_candidates for part in alone.stages]
    # Two of three have candidates, and each waits for both: 2 * (1 + 2 + 3) ms.
    assert [trace.elapsed_ms for trace in together] == [12] * 3


def test_stage_that_fails_for_all_is_asked_for_each(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    asked: list[list[int]] = []

    class FailsForOne:
        def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
            (scored,) = self.score_all([request], [candidates], keep)
            return scored

        def score_all(self, requests: Any, candidates: Any, keep: int) -> list[Scored]:
            asked.append([request.request_id for request in requests])
            if 2 in asked[-1]:
                raise RuntimeError("broken")
            return [
                Scored(candidates=Candidates(ads=its.ads, scores=_noise(2)(its.ads)))
                for its in candidates
            ]

    funnel = make_funnel(early=FailsForOne())

    traces = funnel.answer_all([make_request(number) for number in (1, 2, 3)])

    assert asked == [[1, 2, 3], [1], [2], [3]]
    assert [trace.stages[1].fallback for trace in traces] == ["", "RuntimeError: broken", ""]
    assert [len(trace.slate.ads) for trace in traces] == [len(traces[0].slate.ads)] * 3


def test_stage_that_answers_for_too_few_is_asked_for_each(
    make_funnel: Callable[..., Funnel], make_request: Callable[..., Request]
) -> None:
    class Forgets:
        def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
            return Scored(candidates=candidates)

        def score_all(self, requests: Any, candidates: Any, keep: int) -> list[Scored]:
            return [Scored(candidates=candidates[0])]

    traces = make_funnel(early=Forgets()).answer_all([make_request(1), make_request(2)])

    assert [len(trace.stages[1].ads) for trace in traces] == [10, 10]
