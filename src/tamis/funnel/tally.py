"""Sums over the requests of a replay, in memory that does not grow with them."""

from collections import Counter
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tamis.data.batch import Batch, concatenate
from tamis.data.schema import Task
from tamis.errors import DataError
from tamis.evaluation import LogLossAccumulator
from tamis.funnel.auction import Slate
from tamis.funnel.comparison import Kept
from tamis.funnel.latency import LatencyHistogram
from tamis.funnel.report import HeadLoss, LevelSummary, StageSummary
from tamis.funnel.request import Impressions, Request
from tamis.funnel.trace import StageTrace

_REASONS_KEPT = 20
_OTHER_REASONS = "other reasons"
_IMPRESSIONS_AT_A_TIME = 4096


@runtime_checkable
class PredictsPairs(Protocol):
    """A model whose predictions can be compared with labels, such as a ``RankerStage``."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts; the binary ones are compared."""
        ...

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> Mapping[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs of a row of ``features`` and an ad."""
        ...


class StageTally:
    """Sums of one stage over requests."""

    def __init__(self, name: str) -> None:
        """Start with none."""
        self._name = name
        self._requests = self._in = self._out = self._pairs = 0
        self._lookups = self._hits = 0
        self._flops: float | None = 0.0
        self._latency = LatencyHistogram()
        self._fallbacks: Counter[str] = Counter()
        # Sums by level of nodes, pairs, kept and operations, of the requests that were searched.
        self._levels: NDArray[np.float64] | None = None
        self._searched = 0

    def add(self, stage: StageTrace) -> None:
        """Add what it did for one request."""
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
        if stage.levels:
            self._searched += 1
            found = np.array([(at.nodes, at.pairs, at.kept, at.flops) for at in stage.levels])
            self._levels = found * 1.0 if self._levels is None else self._levels + found

    def summary(self, kept: Kept) -> StageSummary:
        """Means and sums over the requests, at least one, beside what the stage kept of value."""
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
            measures=kept.plain,
            measures_by_value=kept.by_value,
            levels=self._level_summaries(),
        )

    def _level_summaries(self) -> tuple[LevelSummary, ...]:
        if self._levels is None:
            return ()
        means = (self._levels / self._searched).tolist()
        return tuple(
            LevelSummary(nodes=nodes, pairs=pairs, kept=kept, flops=flops)
            for nodes, pairs, kept, flops in means
        )


class SlateTally:
    """Money of the slates that had predictions."""

    def __init__(self) -> None:
        """Start with none."""
        self._value = self._revenue = 0.0
        self._slates = 0

    def add(self, slate: Slate) -> None:
        """Add the slate of one request."""
        if not np.isnan(slate.values).any():
            self._slates += 1
            self._value += float(slate.values.sum())
            self._revenue += slate.expected_revenue

    @property
    def value(self) -> float | None:
        """Mean total value, money; None where no slate had predictions."""
        return self._value / self._slates if self._slates else None

    @property
    def revenue(self) -> float | None:
        """Mean money that is expected to be billed; None where no slate had predictions."""
        return self._revenue / self._slates if self._slates else None


class HeadTally:
    """Losses of models on impressions by the rows' weights, predicted many at a time."""

    def __init__(self, heads: Mapping[str, PredictsPairs]) -> None:
        """Start with none, for models by name."""
        self._heads = heads
        self._sums: dict[str, dict[str, LogLossAccumulator]] = {name: {} for name in heads}
        self._waiting: list[tuple[Batch, Impressions]] = []
        self._impressions = 0

    def add(self, request: Request) -> None:
        """Add the impressions of one request.

        Raises:
            DataError: It has impressions and no features.
        """
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
        """Losses by model and task."""
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
        weights = features.weights.numpy()[rows]
        for name, model in self._heads.items():
            predictions = model.predict(features, rows, ads)
            for task in model.tasks:
                if task.kind == "binary":
                    sums = self._sums[name].setdefault(task.name, LogLossAccumulator())
                    labels = _labels_of(task.name, shown)
                    sums.update(labels, predictions[task.name], weights=weights)
        self._waiting, self._impressions = [], 0


def _labels_of(task: str, shown: list[Impressions]) -> NDArray[np.float32]:
    """Labels of impressions; not observed where the log has none for the task."""
    parts = [part.labels.get(task, np.full(len(part.ads), np.nan, np.float32)) for part in shown]
    return np.concatenate(parts)


def _loss_of(sums: LogLossAccumulator) -> HeadLoss:
    if not sums.weight:
        return HeadLoss(rows=sums.rows, base_rate=None, log_loss=None, ne=None)
    base_rate = sums.base_rate()
    return HeadLoss(
        rows=sums.rows,
        base_rate=base_rate,
        log_loss=sums.log_loss(),
        ne=sums.normalised_entropy().value if 0 < base_rate < 1 else None,
    )
