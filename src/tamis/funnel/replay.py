"""Runs a funnel over logged requests, one after another, and sums up what it did.

Memory does not grow with the requests: sums, histograms and one chunk of impressions are kept.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tamis.data.batch import Batch, concatenate
from tamis.errors import ConfigError, DataError
from tamis.evaluation import LogLossAccumulator
from tamis.funnel.candidates import order_of_best
from tamis.funnel.clock import Clock, SystemClock
from tamis.funnel.funnel import Funnel
from tamis.funnel.latency import Latency, LatencyHistogram
from tamis.funnel.request import Impressions, Request
from tamis.funnel.stage import Stage
from tamis.funnel.trace import StageTrace, Trace

AUCTION = "auction"
"""Name under which the slate is summed up beside the stages."""
_REASONS_KEPT = 20
_OTHER_REASONS = "other reasons"
_IMPRESSIONS_AT_A_TIME = 4096

Measure = Callable[[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]], float]
"""How good it is to keep some of a request's candidates, given three columns (n,): their total
values, whether they are golden, whether they are kept. NaN: the request cannot tell."""


Scope = Literal["all", "first"]
"""All candidates that a request starts from, so that every stage can lose value; or those that the
first stage kept, whose own losses then do not show."""


class PredictsPairs(Protocol):
    """A model whose predictions can be compared with labels, such as a ``RankerStage``."""

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> Mapping[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs of a row of ``features`` and an ad."""
        ...


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


def golden_recall(
    values: NDArray[np.float64], golden: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> float:
    """Share of the golden ads that are kept: hard ads recall."""
    del values
    count = int(golden.sum())
    return float((golden & kept).sum()) / count if count else float("nan")


def value_kept(
    values: NDArray[np.float64], golden: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> float:
    """Best total value that as many kept ads as there are golden ones reach, over that of these.

    It is 1 where the golden ads are kept, and never more. A negative value counts as 0, since the
    auction would leave the slot empty.
    """
    worth = np.maximum(values, 0.0)
    count = int(golden.sum())
    best = _sum_of_best(worth[golden], count)
    return _sum_of_best(worth[kept], count) / best if best > 0 else float("nan")


def top_regret(
    values: NDArray[np.float64], golden: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> float:
    """Share of the best ad's total value that is lost with what is not kept."""
    del golden
    best = max(float(values.max(initial=0.0)), 0.0)
    if best <= 0:
        return float("nan")
    return 1.0 - max(float(values[kept].max(initial=0.0)), 0.0) / best


def _sum_of_best(worth: NDArray[np.float64], count: int) -> float:
    # Of one length and order, so that rounding never makes a part more than the whole.
    best = np.zeros(count)
    found = np.sort(worth)[::-1][:count]
    best[: len(found)] = found
    return float(best.sum())


DEFAULT_MEASURES: Mapping[str, Measure] = {
    "recall": golden_recall,
    "value_kept": value_kept,
    "regret": top_regret,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """One stage, or the auction, over all requests."""

    name: str
    """Name of the stage."""
    candidates_in: float
    """Mean candidates that came in."""
    candidates_out: float
    """Mean candidates that went on."""
    scored_pairs: float
    """Mean pairs that were computed."""
    flops: float | None
    """Mean floating-point operations; None where the stage does not know."""
    latency_ms: Latency
    """Of a call, fallbacks included."""
    cache_lookups: int
    """What caches were asked for, all requests together."""
    cache_hits: int
    """How many of them were there."""
    fallbacks: Mapping[str, int]
    """Requests that kept the order of the stage before, by reason."""
    measures: Mapping[str, float | None]
    """Mean over the requests that were compared, by name; None where none could tell."""

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return {
            "name": self.name,
            "candidates_in": self.candidates_in,
            "candidates_out": self.candidates_out,
            "scored_pairs": self.scored_pairs,
            "flops": self.flops,
            "latency_ms": self.latency_ms.to_json(),
            "cache_lookups": self.cache_lookups,
            "cache_hits": self.cache_hits,
            "fallbacks": dict(self.fallbacks),
            "measures": dict(self.measures),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadLoss:
    """One task of one model on the impressions of the log."""

    rows: int
    """Impressions with a label."""
    base_rate: float | None
    """Share of positives; None without rows."""
    log_loss: float | None
    """Nats; None without rows."""
    ne: float | None
    """Normalised entropy; None where the labels are of one class."""

    def to_json(self) -> dict[str, float | int | None]:
        """Fields by name."""
        return {
            "rows": self.rows,
            "base_rate": self.base_rate,
            "log_loss": self.log_loss,
            "ne": self.ne,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayReport:
    """What a funnel did with a stream of requests."""

    requests: int
    """Requests answered."""
    compared: int
    """Requests that were compared with the reference."""
    scope: Scope | None
    """Which candidates the reference scored; None without a reference."""
    seconds: float
    """Wall time of the replay, reading and comparing included."""
    latency_ms: Latency
    """Of a whole request."""
    stages: tuple[StageSummary, ...]
    """In order; the auction is the last one."""
    slate_value: float | None
    """Mean total value of a slate, money; None where no slate had predictions."""
    slate_revenue: float | None
    """Mean money that a slate is expected to be billed; None where no slate had predictions."""
    heads: Mapping[str, Mapping[str, HeadLoss]]
    """By model and task, on all impressions of the log."""

    @property
    def requests_per_second(self) -> float:
        """Requests that the funnel answers in a second, one after another, comparing left out."""
        return 1e3 / self.latency_ms.mean if self.latency_ms.mean else float("inf")

    def to_json(self) -> dict[str, Any]:
        """Fields by name, ready for strict JSON."""
        rate = self.requests_per_second
        return {
            "requests": self.requests,
            "compared": self.compared,
            "scope": self.scope,
            "seconds": self.seconds,
            "requests_per_second": rate if np.isfinite(rate) else None,
            "latency_ms": self.latency_ms.to_json(),
            "stages": [stage.to_json() for stage in self.stages],
            "slate_value": self.slate_value,
            "slate_revenue": self.slate_revenue,
            "heads": {
                model: {task: loss.to_json() for task, loss in tasks.items()}
                for model, tasks in self.heads.items()
            },
        }


def replay(
    funnel: Funnel,
    requests: Iterable[Request],
    *,
    reference: Reference | None = None,
    measures: Mapping[str, Measure] = DEFAULT_MEASURES,
    heads: Mapping[str, PredictsPairs] | None = None,
    progress: Callable[[int], None] | None = None,
    clock: Clock | None = None,
) -> ReplayReport:
    """Answer every request of a stream and sum up.

    Golden are the ads that the reference values most, as many as the last stage keeps; for the
    auction as many as there are slots. Losses of models are on every impression of the log, whether
    or not the funnel would have let it through: so they are on the same rows for every funnel.

    Args:
        funnel: Answers the requests.
        requests: In the order in which they came; read once, one at a time.
        reference: What to compare with; None leaves the measures out.
        measures: What to compute of each compared request and stage, by name.
        heads: Models to compare with the labels of ``Request.shown``, by name; binary tasks only.
        progress: Told how many requests are done, after each.
        clock: Tells the time of the whole; None for the machine's.

    Raises:
        DataError: There is no request, the reference leaves candidates out, or a request with
            impressions has no features.
    """
    clock = SystemClock() if clock is None else clock
    started = clock.now_ms()
    sums = [_StageSums(step.name, measures) for step in funnel.steps]
    auction = _StageSums(AUCTION, measures)
    whole, slates = LatencyHistogram(), _SlateSums()
    losses = _HeadLosses(heads or {})
    count = compared = 0
    for request in requests:
        trace = funnel.answer(request)
        for total, stage in zip(sums, trace.stages, strict=True):
            total.add(stage)
        auction.add(_auction_as_stage(trace))
        whole.add(trace.elapsed_ms)
        slates.add(trace)
        if reference is not None and count % reference.every == 0:
            _compare(funnel, reference, request, trace, sums, auction)
            compared += 1
        losses.add(request)
        count += 1
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
        stages=tuple(total.summary() for total in (*sums, auction)),
        slate_value=slates.mean(slates.value),
        slate_revenue=slates.mean(slates.revenue),
        heads=losses.summary(),
    )


def _compare(
    funnel: Funnel,
    reference: Reference,
    request: Request,
    trace: Trace,
    sums: list["_StageSums"],
    auction: "_StageSums",
) -> None:
    """Value one request's candidates by the reference and measure what each stage kept."""
    start = funnel.start(request)
    if reference.scope == "first":
        kept = trace.stages[0].ads.astype(np.int64)
        start = start.take(np.flatnonzero(_is_in(start.ads, kept, len(funnel.ads))))
    scored = reference.stage(request, start, len(start)).candidates
    if len(scored) != len(start):
        raise DataError(
            f"request {request.request_id}: the reference must score all of {len(start)} "
            f"candidates, got {len(scored)}. Give a stage that scores every one."
        )
    ads, values = scored.ads, scored.scores
    order = order_of_best(ads, values, len(ads), seed=request.request_id)

    def measure(total: "_StageSums", kept: NDArray[Any], num_golden: int) -> None:
        golden = np.zeros(len(ads), np.bool_)
        golden[order[:num_golden]] = True
        total.measure(values, golden, _is_in(ads, kept, len(funnel.ads)))

    for total, stage in zip(sums, trace.stages, strict=True):
        measure(total, stage.ads, funnel.steps[-1].keep)
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


class _StageSums:
    """Sums of one stage over requests."""

    def __init__(self, name: str, measures: Mapping[str, Measure]) -> None:
        self._name = name
        self._measures = measures
        # Sum and number of the requests that could tell.
        self._measured = {measure: np.zeros(2) for measure in measures}
        self._requests = self._in = self._out = self._pairs = 0
        self._lookups = self._hits = 0
        self._flops: float | None = 0.0
        self._latency = LatencyHistogram()
        self._fallbacks: Counter[str] = Counter()

    def add(self, stage: StageTrace) -> None:
        self._requests += 1
        self._in += stage.num_candidates
        self._out += len(stage.ads)
        self._pairs += stage.scored_pairs
        self._lookups += stage.cache_lookups
        self._hits += stage.cache_hits
        self._latency.add(stage.elapsed_ms)
        if stage.fallback:
            # Reasons quote values, of which there may be no end.
            known = stage.fallback in self._fallbacks or len(self._fallbacks) < _REASONS_KEPT
            self._fallbacks[stage.fallback if known else _OTHER_REASONS] += 1
        elif stage.scored_pairs and stage.flops is None:
            self._flops = None
        if self._flops is not None:
            self._flops += stage.flops or 0.0

    def measure(
        self,
        values: NDArray[np.float64],
        golden: NDArray[np.bool_],
        kept: NDArray[np.bool_],
    ) -> None:
        for name, function in self._measures.items():
            found = function(values, golden, kept)
            if not np.isnan(found):
                self._measured[name] += (found, 1)

    def summary(self) -> StageSummary:
        latency = self._latency.summary()
        assert latency is not None
        return StageSummary(
            name=self._name,
            candidates_in=self._in / self._requests,
            candidates_out=self._out / self._requests,
            scored_pairs=self._pairs / self._requests,
            flops=None if self._flops is None else self._flops / self._requests,
            latency_ms=latency,
            cache_lookups=self._lookups,
            cache_hits=self._hits,
            fallbacks=dict(self._fallbacks.most_common()),
            measures={
                name: float(total / number) if number else None
                for name, (total, number) in self._measured.items()
            },
        )


class _SlateSums:
    """Money of the slates that had predictions."""

    def __init__(self) -> None:
        self.value = self.revenue = 0.0
        self._slates = 0

    def add(self, trace: Trace) -> None:
        if not np.isnan(trace.slate.values).any():
            self._slates += 1
            self.value += float(trace.slate.values.sum())
            self.revenue += trace.slate.expected_revenue

    def mean(self, total: float) -> float | None:
        return total / self._slates if self._slates else None


class _HeadLosses:
    """Losses of models on impressions, predicted many at a time."""

    def __init__(self, heads: Mapping[str, PredictsPairs]) -> None:
        self._heads = heads
        self._sums: dict[str, dict[str, LogLossAccumulator]] = {name: {} for name in heads}
        self._waiting: list[tuple[Batch, Impressions]] = []
        self._impressions = 0

    def add(self, request: Request) -> None:
        if request.shown is None or not len(request.shown.ads) or not self._heads:
            return
        features = request.shown.features or request.features
        if features is None:
            raise DataError(
                f"request {request.request_id}: must have features where impressions are compared, "
                f"got none. Encode its user and context, or leave heads out."
            )
        self._waiting.append((features, request.shown))
        self._impressions += len(request.shown.ads)
        if self._impressions >= _IMPRESSIONS_AT_A_TIME:
            self._flush()

    def summary(self) -> dict[str, dict[str, HeadLoss]]:
        self._flush()
        return {
            model: {task: _loss_of(sums) for task, sums in tasks.items()}
            for model, tasks in self._sums.items()
        }

    def _flush(self) -> None:
        if not self._waiting:
            return
        features = concatenate([rows for rows, _ in self._waiting])
        shown = [part for _, part in self._waiting]
        # A row for each impression; where they share one, it stands in for all of them.
        counts = [
            np.ones(rows.num_rows, np.int64) if part.features is not None else [len(part.ads)]
            for rows, part in self._waiting
        ]
        rows = np.repeat(np.arange(features.num_rows), np.concatenate(counts))
        ads = np.concatenate([part.ads for part in shown])
        for name, model in self._heads.items():
            for task, predicted in model.predict(features, rows, ads).items():
                sums = self._sums[name].setdefault(task, LogLossAccumulator())
                sums.update(_labels_of(task, shown), predicted)
        self._waiting, self._impressions = [], 0


def _labels_of(task: str, shown: list[Impressions]) -> NDArray[np.float32]:
    """Labels of impressions; not observed where the log has none for the task."""
    parts = [part.labels.get(task, np.full(len(part.ads), np.nan, np.float32)) for part in shown]
    return np.concatenate(parts)


def _loss_of(sums: LogLossAccumulator) -> HeadLoss:
    if not sums.rows:
        return HeadLoss(rows=0, base_rate=None, log_loss=None, ne=None)
    both = 0 < sums.positives < sums.rows
    return HeadLoss(
        rows=sums.rows,
        base_rate=sums.base_rate(),
        log_loss=sums.log_loss(),
        ne=sums.normalised_entropy().value if both else None,
    )
