"""Runs a funnel over logged requests, one after another, and sums up what it did."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from tamis.errors import ConfigError, DataError
from tamis.funnel.clock import Clock, SystemClock
from tamis.funnel.comparison import Comparison
from tamis.funnel.funnel import Funnel
from tamis.funnel.latency import LatencyHistogram
from tamis.funnel.report import ReplayReport, Scope
from tamis.funnel.request import Request
from tamis.funnel.stage import Stage
from tamis.funnel.tally import HeadTally, PredictsPairs, SlateTally, StageTally
from tamis.funnel.trace import AUCTION, StageTrace, Trace


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reference:
    """What the funnel is compared with: one stage that scores many candidates itself."""

    stage: Stage
    """Gives the total values that count, usually the final stage. It must score every candidate."""
    scope: Scope
    """Which candidates it scores."""
    every: int = 1
    """One request in so many is compared. At least 1."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every: must be at least 1, got {self.every}.")
        if self.scope not in get_args(Scope):
            raise ConfigError(
                f"scope: must be one of {', '.join(get_args(Scope))}, got {self.scope!r}."
            )


def replay(
    funnel: Funnel,
    requests: Iterable[Request],
    *,
    reference: Reference | None = None,
    heads: Mapping[str, PredictsPairs] | None = None,
    observe: Callable[[Trace], None] | None = None,
    progress: Callable[[int], None] | None = None,
    clock: Clock | None = None,
) -> ReplayReport:
    """Answer every request of a stream and sum up.

    Golden are the ads that the reference values most, above nothing, as many as the last stage
    keeps; for the auction as many as there are slots. Where ads of equal value stand on both sides
    of that cut, none of them is golden. Losses of models are on every impression of the log,
    whether or not the funnel would have let it through: so they are on the same rows for every
    funnel. Memory does not grow with the requests.

    Args:
        funnel: Answers the requests.
        requests: In the order in which they came; read once, one at a time.
        reference: What to compare with; None leaves the measures out.
        heads: Models whose binary tasks are compared with the labels of ``Request.shown``, by name.
        observe: Told every trace, to keep some of them or to sum up what this does not.
        progress: Told how many requests are done, after each.
        clock: Tells the time of the whole; None for the machine's.

    Raises:
        DataError: There is no request, the reference leaves candidates out, or a request with
            impressions has no features.
    """
    clock = SystemClock() if clock is None else clock
    started = clock.now_ms()
    names = [*(step.name for step in funnel.steps), AUCTION]
    tallies, comparison = [StageTally(name) for name in names], Comparison(len(names))
    whole, slates = LatencyHistogram(), SlateTally()
    losses = HeadTally(heads or {})
    count = compared = 0
    for request in requests:
        trace = funnel.answer(request)
        for tally, stage in zip(tallies, (*trace.stages, _auction_as_stage(trace)), strict=True):
            tally.add(stage)
        whole.add(trace.elapsed_ms)
        slates.add(trace.slate)
        if reference is not None and count % reference.every == 0:
            _compare(funnel, reference, request, trace, comparison)
            compared += 1
        losses.add(request)
        count += 1
        if observe is not None:
            observe(trace)
        if progress is not None:
            progress(count)
    latency = whole.summary()
    if latency is None:
        raise DataError("replay: must have at least one request, got none. Check the log.")
    return ReplayReport(
        requests=count,
        compared=compared,
        scope=None if reference is None else reference.scope,
        seconds=(clock.now_ms() - started) / 1e3,
        latency_ms=latency,
        stages=tuple(
            tally.summary(kept) for tally, kept in zip(tallies, comparison.summary(), strict=True)
        ),
        slate_value=slates.value,
        slate_revenue=slates.revenue,
        heads=losses.summary(),
    )


def _compare(
    funnel: Funnel,
    reference: Reference,
    request: Request,
    trace: Trace,
    comparison: Comparison,
) -> None:
    """Value one request's candidates by the reference, beside how far each of them came."""
    # A funnel never widens: what a stage kept, all stages before it kept.
    survived_of_ad = np.zeros(len(funnel.ads), np.int64)
    for stage in trace.stages:
        survived_of_ad[stage.ads] += 1
    survived_of_ad[trace.slate.ads] += 1
    start = funnel.start(request)
    if reference.scope == "first":
        start = start.take(np.flatnonzero(survived_of_ad[start.ads] > 0))
    if not len(start):
        return
    scored = reference.stage(request, start, len(start))
    ads, values = scored.candidates.ads, scored.candidates.scores
    if scored.fallback or len(ads) != len(start) or not np.isfinite(values).all():
        raise DataError(
            f"request {request.request_id}: the reference must score all of {len(start)} "
            f"candidates, got {np.isfinite(values).sum()} scores and the fallback "
            f"{scored.fallback!r}. Give a stage that scores every one, without a time-out."
        )
    golden = [funnel.steps[-1].keep] * len(funnel.steps) + [request.slots]
    comparison.add(values, survived_of_ad[ads], golden)


def _auction_as_stage(trace: Trace) -> StageTrace:
    return StageTrace(
        name=AUCTION,
        num_candidates=len(trace.stages[-1].ads),
        ads=trace.slate.ads.astype(np.int32),
        scores=trace.slate.values.astype(np.float32),
        elapsed_ms=trace.auction_ms,
        scored_pairs=0,
        flops=0.0,
        cache_lookups=0,
        cache_hits=0,
        fallback=trace.auction_fallback,
    )
