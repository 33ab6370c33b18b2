"""What happened to one request, stage by stage: arrays in memory, JSON for whoever reads it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.funnel.auction import Slate
from tamis.retrieval.searcher import LevelTrace

KNOWN = "known"
"""Name of what comes before the first stage: ads that a funnel does not know are lost there."""
AUCTION = "auction"
"""Name under which the slate is summed up beside the stages."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StageTrace:
    """What one stage did."""

    name: str
    """Name of the stage."""
    num_candidates: int
    """Candidates that came in."""
    ads: NDArray[np.int32]
    """(k,) ad rows that were kept, best first."""
    scores: NDArray[np.float32]
    """(k,) their scores."""
    elapsed_ms: float
    """Milliseconds from the stage's call to the cut."""
    scored_pairs: int
    """Pairs of request and ad that were computed."""
    flops: float | None
    """Floating-point operations; None where the stage does not know."""
    cache_lookups: int
    """What caches were asked for."""
    cache_hits: int
    """How many of them were there."""
    fallback: str
    """Why the order of the stage before was kept. Empty: it was not."""
    levels: tuple[LevelTrace, ...] = ()
    """What each level of an index cost, the coarsest first and the ads last. Empty: no index."""

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return {
            "name": self.name,
            "candidates_in": self.num_candidates,
            "candidates_out": len(self.ads),
            "ads": self.ads.tolist(),
            "scores": self.scores.tolist(),
            "elapsed_ms": self.elapsed_ms,
            "scored_pairs": self.scored_pairs,
            "flops": self.flops,
            "cache_lookups": self.cache_lookups,
            "cache_hits": self.cache_hits,
            "fallback": self.fallback,
            "levels": [asdict(level) for level in self.levels],
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """How one request was answered."""

    request_id: int
    """Number of the request."""
    stages: tuple[StageTrace, ...]
    """In the order in which they ran."""
    slate: Slate
    """The answer."""
    auction_ms: float
    """Milliseconds of the auction."""
    elapsed_ms: float
    """Milliseconds of the whole, those of stages and auction included."""
    auction_fallback: str = ""
    """Why the auction went without predictions although there were some. Empty: it did not."""

    def to_json(self) -> dict[str, Any]:
        """Fields by name; strict JSON as long as scores are finite."""
        return {
            "request_id": self.request_id,
            "stages": [stage.to_json() for stage in self.stages],
            "slate": self.slate.to_json(),
            "auction_ms": self.auction_ms,
            "auction_fallback": self.auction_fallback,
            "elapsed_ms": self.elapsed_ms,
        }
