"""Runs a funnel over logged requests, one after another, and sums up what it did."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import ConfigError, DataError
from tamis.funnel.candidates import order_of_best
from tamis.funnel.clock import Clock, SystemClock
from tamis.funnel.funnel import Funnel
from tamis.funnel.latency import LatencyHistogram
from tamis.funnel.measures import DEFAULT_MEASURES, Measure
from tamis.funnel.report import ReplayReport, Scope
from tamis.funnel.request import Request
from tamis.funnel.stage import Stage
from tamis.funnel.tally import HeadTally, PredictsPairs, SlateTally, StageTally
from tamis.funnel.trace import StageTrace, Trace

AUCTION = "auction"
"""Name under which the slate is summed up beside the stages."""


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
            raise ConfigError(f"Reference.every: must be at least 1, got {self.every}.")


def replay(
    funnel: Funnel,
    requests: Iterable[Request],
    *,
    reference: Reference | None = None,
    measures: Mapping[str, Measure] = DEFAULT_MEASURES,
    heads: Mapping[str, PredictsPairs] | None = None,
    observe: Callable[[Trace], None] | None = None,
    progress: Callable[[int], None] | None = None,
    clock: Clock | None = None,
) -> ReplayReport:
    """Answer every request of a stream and sum up.

    Golden are the ads that the reference values most, as many as the last stage keeps; for the
    auction as many as there are slots. Losses of models are on every impression of the log, whether
    or not the funnel would have let it through: so they are on the same rows for every funnel.
    Memory does not grow with the requests.

    Args:
        funnel: Answers the requests.
        requests: In the order in which they came; read once, one at a time.
        reference: What to compare with; None leaves the measures out.
        measures: What to compute of each compared request and stage, by name.
        heads: Models to compare with the labels of ``Request.shown``, by name; binary tasks only.
        observe: Told every trace, to keep some of them or to sum up what this does not.
        progress: Told how many requests are done, after each.
        clock: Tells the time of the whole; None for the machine's.

    Raises:
        DataError: There is no request, the reference leaves candidates out, or a request with
            impressions has no features.
    """
    clock = SystemClock() if clock is None else clock
    started = clock.now_ms()
    tallies = [StageTally(step.name, measures) for step in funnel.steps]
    auction = StageTally(AUCTION, measures)
    whole, slates = LatencyHistogram(), SlateTally()
    losses = HeadTally(heads or {})
    count = compared = 0
    for request in requests:
        trace = funnel.answer(request)
        for tally, stage in zip(tallies, trace.stages, strict=True):
            tally.add(stage)
        auction.add(_auction_as_stage(trace))
        whole.add(trace.elapsed_ms)
        slates.add(trace.slate)
        if reference is not None and count % reference.every == 0:
            _compare(funnel, reference, request, trace, tallies, auction)
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
        stages=tuple(tally.summary() for tally in (*tallies, auction)),
        slate_value=slates.value,
        slate_revenue=slates.revenue,
        heads=losses.summary(),
    )


def _compare(
    funnel: Funnel,
    reference: Reference,
    request: Request,
    trace: Trace,
    tallies: list[StageTally],
    auction: StageTally,
) -> None:
    """Value one request's candidates by the reference and measure what each stage kept."""
    start = funnel.start(request)
    if reference.scope == "first":
        kept = trace.stages[0].ads.astype(np.int64)
        start = start.take(np.flatnonzero(_is_in(start.ads, kept, len(funnel.ads))))
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
    order = order_of_best(ads, values, len(ads), seed=request.request_id)

    def measure(tally: StageTally, kept: NDArray[Any], num_golden: int) -> None:
        golden = np.zeros(len(ads), np.bool_)
        golden[order[:num_golden]] = True
        tally.measure(values, golden, _is_in(ads, kept, len(funnel.ads)))

    for tally, stage in zip(tallies, trace.stages, strict=True):
        measure(tally, stage.ads, funnel.steps[-1].keep)
    measure(auction, trace.slate.ads, request.slots)


def _is_in(ads: NDArray[np.int64], chosen: NDArray[Any], num_ads: int) -> NDArray[np.bool_]:
    is_chosen = np.zeros(num_ads, np.bool_)
    is_chosen[chosen] = True
    return is_chosen[ads]


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
