"""How long batches of requests take, and how large one may be for stages to keep their budgets."""

import threading
from collections.abc import Iterable, Mapping
from typing import Protocol

_KEPT = 0.9
"""Weight of all earlier batches when another is seen."""
_SHARE_OF_BUDGET = 0.5
"""A batch is made so large that its stages are expected to need this share of their budgets: a busy
machine may take twice as long, and none falls back."""


class StageTime(Protocol):
    """What a stage took, such as a ``StageTrace``."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds."""
        ...

    @property
    def fallback(self) -> str:
        """Why it fell back; empty: it did not."""
        ...


class Pace:
    """Times by batch size: a line through the newest batches, for the whole and for each stage.

    Some of a batch's work is done once, some for each request, so that a line says what a size will
    take which was not seen yet. Any thread may tell and ask.
    """

    def __init__(self, budgets_ms: Mapping[str, float], max_batch: int) -> None:
        """Start without a batch.

        Args:
            budgets_ms: By stage, of those that have one.
            max_batch: Most requests in a batch.
        """
        self._whole = _Line()
        self._budgets_ms = budgets_ms
        self._stages = {name: _Line() for name in budgets_ms}
        self._max_batch = max_batch
        self.room = max_batch
        """Most requests that a batch may hold now."""
        self._lock = threading.Lock()

    def observe(self, size: int, took_ms: float, stages: Iterable[StageTime]) -> None:
        """Take in a batch of ``size`` requests, and what its stages took for all of them."""
        with self._lock:
            self._whole.add(size, took_ms)
            for stage in stages:
                # One that gave up says nothing of how long it would have taken.
                if stage.name in self._stages and not stage.fallback:
                    self._stages[stage.name].add(size, stage.elapsed_ms)
            self.room = self._most()

    def ms(self, size: int) -> float:
        """Milliseconds that a batch of ``size`` requests will take; 0 before the first one."""
        with self._lock:
            return self._whole.at(size)

    def _most(self) -> int:
        """The largest batch in which every stage keeps its budget; 1 where none does."""
        most = self._max_batch
        for name, line in self._stages.items():
            while most > 1 and line.at(most) > _SHARE_OF_BUDGET * self._budgets_ms[name]:
                most -= 1
        return most


class _Line:
    """``a + b x`` by least squares, of which neither part is negative; old points fade."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        self._n = _KEPT * self._n + 1.0
        self._x = _KEPT * self._x + x
        self._y = _KEPT * self._y + y
        self._xx = _KEPT * self._xx + x * x
        self._xy = _KEPT * self._xy + x * y

    def at(self, x: float) -> float:
        if not self._n:
            return 0.0
        # In proportion, where all points have nearly one x: a line through them could be any.
        slope, start = self._xy / self._xx, 0.0
        spread = self._n * self._xx - self._x**2
        if spread > 1e-3 * self._n * self._xx:
            fitted = (self._n * self._xy - self._x * self._y) / spread
            if fitted <= 0.0:
                slope, start = 0.0, self._y / self._n
            elif fitted < self._y / self._x:
                slope, start = fitted, (self._y - fitted * self._x) / self._n
        return start + slope * x
