"""Stages, clocks and requests whose every move a test decides."""

from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tamis.funnel.ads import AdTable
from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored

Function = Callable[[NDArray[np.int64]], NDArray[np.float64]]


class ManualClock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_ms(self) -> float:
        return self.now

    def advance(self, ms: float) -> None:
        self.now += ms

    def wait(self, future: "futures.Future[Any]", *, until_ms: float) -> bool:
        # The work itself moves the clock: how long it took is known when it has ended.
        future.exception(timeout=60)
        return self.now <= until_ms


@dataclass
class FakeStage:
    """Scores by a function of the ad row, and remembers what it was asked."""

    score: Function
    predicts: Mapping[str, Function] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None
    asked: list[list[int]] = field(default_factory=list)

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        self.asked.append(candidates.ads.tolist())
        self.before()
        ads = candidates.ads
        predictions = {name: function(ads) for name, function in self.predicts.items()}
        scored = Candidates(ads=ads, scores=self.score(ads) * 1.0, predictions=predictions)
        return Scored(candidates=scored, scored_pairs=len(ads), flops=10.0 * len(ads))


class ClickValue:
    """``bid * p_click``."""

    def score(
        self,
        predictions: Mapping[str, NDArray[np.float64]],
        bid: NDArray[np.float64],
        billing: NDArray[Any],
    ) -> NDArray[np.float64]:
        return bid * predictions["click"]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_stage() -> type[FakeStage]:
    return FakeStage


@pytest.fixture
def click_value() -> ClickValue:
    return ClickValue()


@pytest.fixture
def make_ads() -> Callable[[int], AdTable]:
    """Ads of bid 1, an advertiser each, without quality."""

    def make(count: int, **changes: NDArray[Any]) -> AdTable:
        columns: dict[str, NDArray[Any]] = {
            "bid": np.ones(count),
            "billing": np.zeros(count, np.int8),
            "advertiser": np.arange(count),
            "quality": np.zeros(count),
        }
        return AdTable(**(columns | changes))

    return make


@pytest.fixture
def make_request() -> Callable[..., Request]:
    def make(request_id: int = 0, **changes: Any) -> Request:
        settings: dict[str, Any] = {"user": 0, "time_micros": 0, "slots": 2}
        return Request(request_id=request_id, **(settings | changes))

    return make
