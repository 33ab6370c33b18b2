"""What a replay found, in the form in which it is written down."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tamis.funnel.latency import Latency

Scope = Literal["all", "first"]
"""All candidates that a request starts from, so that every stage can lose value; or those that the
first stage kept, whose own losses then do not show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSummary:
    """One level of an index, over the requests that it was walked for."""

    nodes: float
    """Mean nodes that are occupied; at the last level the ads of the index."""
    pairs: float
    """Mean nodes, or ads, that were scored."""
    kept: float
    """Mean of those that went on."""
    flops: float
    """Mean floating-point operations of their scores."""


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
    """By name of ``comparison.MEASURES``, mean over the requests that were compared; None where
    none could tell."""
    measures_by_value: Mapping[str, float | None]
    """The same with every request weighed by the total value of its candidates."""
    levels: tuple[LevelSummary, ...] = ()
    """Levels of the index that it searched, the coarsest first and the ads last; empty: none."""

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
            "measures_by_value": dict(self.measures_by_value),
            "levels": [asdict(level) for level in self.levels],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadLoss:
    """One task of one model on the impressions of the log."""

    rows: int
    """Impressions with a label."""
    base_rate: float | None
    """Share of positives by the rows' weights; None without weight."""
    log_loss: float | None
    """Nats by the rows' weights; None without weight."""
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
