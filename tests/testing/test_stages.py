"""The conformance suite of stages finds what it is there to find."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tamis.funnel.cache import CachedByAd, CachedByUser, UserCache
from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored, Stage
from tamis.funnel.stages import DotProduct, Popularity, ScoredBy
from tamis.funnel.timeout import TimeOut
from tamis.testing.stages import check_stage

_ADS = np.array([3, 1, 8, 5, 0, 9, 7])
_REQUEST = Request(request_id=4, user=2, time_micros=0, slots=2)
_COUNTS = np.array([5.0, 1, 2, 5, 5, 5, 1, 2, 5, 5])  # many are tied
_MANY_VECTORS = torch.randn(100, 77, generator=torch.Generator().manual_seed(1))
_VECTORS = torch.randn(10, 33, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "stage",
    [
        Popularity(_COUNTS),
        ScoredBy(lambda request, ads: (ads % 3) * 1.0),
        DotProduct(_VECTORS, lambda request: _VECTORS[request.user]),
        DotProduct(_MANY_VECTORS, lambda request: _MANY_VECTORS[request.user]),
        CachedByUser(Popularity(_COUNTS), UserCache(max_users=3, time_to_live_ms=1)),
        CachedByAd(Popularity(_COUNTS), num_ads=10, max_ads=4),
        TimeOut(Popularity(_COUNTS), budget_ms=1e6),
        lambda request, candidates, keep: Scored(candidates=candidates, fallback="late"),
    ],
)
def test_suite_accepts_the_stages_of_tamis(stage: Stage) -> None:
    check_stage(stage, _REQUEST, _ADS, keep=3)


def _answering(answer: Callable[[Candidates], Candidates], **report: object) -> Stage:
    return lambda request, candidates, keep: Scored(
        candidates=answer(candidates),
        **report,  # type: ignore[arg-type]
    )


def _changed(candidates: Candidates) -> Candidates:
    candidates.scores[0] += 1
    return candidates


def _first_as_best(candidates: Candidates) -> Candidates:
    return Candidates(ads=candidates.ads, scores=-np.arange(len(candidates)) * 1.0)


@pytest.mark.parametrize(
    ("answer", "report", "message"),
    [
        (lambda c: Candidates(ads=c.ads + 1, scores=c.scores), {}, "must be among the candidates"),
        (lambda c: c.take(np.array([0, 0])), {}, "must be returned once"),
        (lambda c: Candidates(ads=c.ads, scores=c.scores * np.nan), {}, "scores must be finite"),
        (
            lambda c: Candidates(ads=c.ads, scores=c.scores, predictions={"click": c.scores / 0}),
            {},
            "click must be finite",
        ),
        (_changed, {}, "candidates must stay as they are"),
        (_first_as_best, {}, "must not depend on the candidates' order"),
        (lambda c: c, {"cache_hits": 2, "cache_lookups": 1}, "hits must be part of the lookups"),
        (lambda c: c, {"scored_pairs": 8}, "must be at most the candidates, got 8"),
        (lambda c: c.take(np.array([0])), {"fallback": "x"}, "must return the candidates as they"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_suite_refuses_a_stage_that_breaks_a_promise(
    answer: Callable[[Candidates], Candidates], report: dict[str, object], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_stage(_answering(answer, **report), _REQUEST, _ADS, keep=3)
