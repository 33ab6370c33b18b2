"""The last minutes of a server, tick by tick: how much was ranked and turned away, and how fast."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TICK_S, NUM_TICKS = 2.0, 300
_FIRST_MS, _GROWTH, _NUM_BINS = 0.1, 1.05, 290
"""Bins of time grow by 5 %, up to two minutes: a quantile is off by no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """What was measured in some seconds."""

    ranked: int
    """Rankings that were answered."""
    turned_away: int
    """Rankings that were not, as too many waited."""
    p50_ms: float | None
    """Time from request to answer that half of them took at most; None: there was none."""
    p99_ms: float | None
    """The same of 99 %."""


class Pulse:
    """A ring of ticks; any thread may call."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Start with no tick.

        Args:
            now: Seconds that only grow.
        """
        self._now = now
        self._ticks: deque[Tick] = deque(maxlen=NUM_TICKS)
        self._began = now()
        self._ranked = self._turned_away = 0
        self._bins = np.zeros(_NUM_BINS, np.int64)
        self._lock = threading.Lock()

    def ranked(self, seconds: float) -> None:
        """Count a ranking that was answered."""
        with self._lock:
            self._close_ticks()
            self._ranked += 1
            self._bins[_bin_of(seconds * 1e3)] += 1

    def turned_away(self) -> None:
        """Count a ranking that was turned away."""
        with self._lock:
            self._close_ticks()
            self._turned_away += 1

    def ticks(self) -> list[Tick]:
        """The ticks that are over, oldest first."""
        with self._lock:
            self._close_ticks()
            return list(self._ticks)

    def _close_ticks(self) -> None:
        """Close the ticks that are over; of a long silence no more than can be kept."""
        over = min(int((self._now() - self._began) / TICK_S), NUM_TICKS + 1)
        for _ in range(over):
            self._ticks.append(
                Tick(
                    ranked=self._ranked,
                    turned_away=self._turned_away,
                    p50_ms=_quantile_ms(self._bins, 0.5),
                    p99_ms=_quantile_ms(self._bins, 0.99),
                )
            )
            self._ranked = self._turned_away = 0
            self._bins[:] = 0
        if over:
            self._began += TICK_S * int((self._now() - self._began) / TICK_S)


def _bin_of(milliseconds: float) -> int:
    above = np.log(max(milliseconds, _FIRST_MS) / _FIRST_MS) / np.log(_GROWTH)
    return min(int(above), _NUM_BINS - 1)


def _quantile_ms(bins: NDArray[np.int64], share: float) -> float | None:
    """The upper end of the bin in which a quantile lies."""
    total = int(bins.sum())
    if not total:
        return None
    at = int(np.searchsorted(np.cumsum(bins), share * total))
    return float(_FIRST_MS * _GROWTH ** (at + 1))
