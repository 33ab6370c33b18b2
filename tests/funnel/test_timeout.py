"""A late stage: the order before stands, nothing is lost, and no thread is left behind."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tamis.errors import ConfigError
from tamis.funnel.candidates import Candidates
from tamis.funnel.clock import SystemClock
from tamis.funnel.request import Request
from tamis.funnel.timeout import TimeOut

_BEFORE = Candidates(ads=np.array([3, 1, 2]), scores=np.array([0.5, 0.75, 0.25]))
_HOUR_MS = 3.6e6


def test_stage_in_time_is_as_without_the_time_out(
    make_stage: Any, make_request: Callable[..., Request], clock: Any
) -> None:
    stage = make_stage(lambda ads: ads, before=lambda: clock.advance(5))

    scored = TimeOut(stage, budget_ms=5, clock=clock)(make_request(), _BEFORE, 2)

    assert scored.fallback == ""
    assert scored.candidates.scores.tolist() == [3, 1, 2]
    assert scored.scored_pairs == 3


def test_late_stage_leaves_the_scores_of_the_stage_before(
    make_stage: Any, make_request: Callable[..., Request], clock: Any
) -> None:
    stage = make_stage(lambda ads: ads, before=lambda: clock.advance(5.5))

    scored = TimeOut(stage, budget_ms=5, clock=clock)(make_request(), _BEFORE, 2)

    assert scored.fallback == "took longer than 5 ms"
    assert scored.candidates is _BEFORE
    assert scored.scored_pairs == 0


def test_error_in_the_thread_is_raised_to_the_caller(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    def fail() -> None:
        raise TimeoutError("of the stage itself")

    stage = TimeOut(make_stage(lambda ads: ads, before=fail), budget_ms=_HOUR_MS)

    with pytest.raises(TimeoutError, match="of the stage itself"):
        stage(make_request(), _BEFORE, 2)


def test_request_behind_one_that_hangs_falls_back_and_is_never_computed(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    # The real clock: the stage hangs until it is released, and the budget is long enough for a busy
    # machine to start on the first request.
    released, entered = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        released.wait(60)

    stage = make_stage(lambda ads: ads, before=hang)
    wrapped = TimeOut(stage, budget_ms=300, clock=SystemClock())

    first = wrapped(make_request(1), _BEFORE, 2)
    assert entered.wait(60)
    second = wrapped(make_request(2), _BEFORE, 2)
    released.set()
    patient = TimeOut(stage, budget_ms=_HOUR_MS)
    patient(make_request(3), _BEFORE, 2)

    assert first.fallback == second.fallback == "took longer than 300 ms"
    # Two calls: the first and the patient one. The second was taken off the queue.
    assert len(stage.asked) == 2


def test_several_workers_work_at_the_same_time(
    make_stage: Any, make_request: Callable[..., Request]
) -> None:
    # Passes the barrier only if two calls stand at it together.
    barrier = threading.Barrier(2, timeout=60)
    wrapped = TimeOut(
        make_stage(lambda ads: ads, before=lambda: barrier.wait() and None),
        budget_ms=_HOUR_MS,
        workers=2,
    )
    results = []

    def ask() -> None:
        results.append(wrapped(make_request(), _BEFORE, 2).fallback)

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)

    assert results == ["", ""]


def test_workers_end_with_the_time_out(make_stage: Any) -> None:
    before = set(threading.enumerate())
    wrapped = TimeOut(make_stage(lambda ads: ads), budget_ms=1, workers=2)
    workers = set(threading.enumerate()) - before
    assert len(workers) == 2

    del wrapped
    gc.collect()

    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()


@pytest.mark.parametrize(("budget_ms", "workers"), [(0, 1), (-1.0, 1), (1, 0)])
def test_numbers_out_of_range_are_refused(make_stage: Any, budget_ms: float, workers: int) -> None:
    with pytest.raises(ConfigError, match=rf"got budget_ms={budget_ms}, workers={workers}"):
        TimeOut(make_stage(lambda ads: ads), budget_ms=budget_ms, workers=workers)


def test_requests_of_a_batch_share_one_budget(
    make_stage: Any, make_request: Callable[..., Request], clock: Any
) -> None:
    stage = make_stage(lambda ads: ads, before=lambda: clock.advance(3))
    requests = [make_request(0), make_request(1)]

    late = TimeOut(stage, budget_ms=5, clock=clock).score_all(requests, [_BEFORE] * 2, 2)
    in_time = TimeOut(stage, budget_ms=6, clock=clock).score_all(requests, [_BEFORE] * 2, 2)

    # Three milliseconds each, one after another.
    assert [scored.fallback for scored in late] == ["took longer than 5 ms"] * 2
    assert [scored.candidates.scores.tolist() for scored in in_time] == [[3, 1, 2]] * 2
