"""Percentiles of latencies in memory that does not grow with their number."""

import math
from dataclasses import asdict, dataclass

import numpy as np

_FASTEST_MS = 1e-3
_SLOWEST_MS = 1e6
_BINS_PER_E = 100
"""A bin is 1 % wide, so a percentile is off by at most 0.5 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Milliseconds of some calls; percentiles are within 0.5 %."""

    mean: float
    """Mean."""
    p50: float
    """Half of the calls took no longer."""
    p95: float
    """95 % of the calls took no longer."""
    p99: float
    """99 % of the calls took no longer."""
    max: float
    """The slowest call."""

    def to_json(self) -> dict[str, float]:
        """Fields by name."""
        return asdict(self)


class LatencyHistogram:
    """Counts of latencies in bins of equal ratio, from a microsecond to a quarter of an hour."""

    def __init__(self) -> None:
        """Start with none."""
        bins = math.ceil(_BINS_PER_E * math.log(_SLOWEST_MS / _FASTEST_MS)) + 1
        self._counts = np.zeros(bins, np.int64)
        self._sum = 0.0
        self._max = 0.0

    def add(self, ms: float) -> None:
        """Count one; what is beyond the bins counts in the first or last one."""
        at = round(_BINS_PER_E * math.log(max(ms, _FASTEST_MS) / _FASTEST_MS))
        self._counts[min(at, len(self._counts) - 1)] += 1
        self._sum += ms
        self._max = max(self._max, ms)

    def summary(self) -> Latency | None:
        """Mean, percentiles and maximum; None where nothing was counted."""
        total = int(self._counts.sum())
        if not total:
            return None
        upto = np.cumsum(self._counts)
        p50, p95, p99 = (
            # The smallest latency that so many do not exceed; never above the largest seen.
            min(self._middle(int(np.searchsorted(upto, math.ceil(share * total)))), self._max)
            for share in (0.5, 0.95, 0.99)
        )
        return Latency(mean=self._sum / total, p50=p50, p95=p95, p99=p99, max=self._max)

    def _middle(self, at: int) -> float:
        return _FASTEST_MS * math.exp(at / _BINS_PER_E)
