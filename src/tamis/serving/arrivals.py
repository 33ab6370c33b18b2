"""How many requests have come, of late."""

import math
import threading


class Arrivals:
    """A count that forgets: who came ``age`` seconds ago counts ``exp(-age / memory_s)``.

    Any thread may count and ask.
    """

    def __init__(self) -> None:
        """Nobody has come yet."""
        self._lock = threading.Lock()
        self._counted, self._at = 0.0, 0.0

    def add(self, now: float, memory_s: float) -> None:
        """One has come.

        Args:
            now: Seconds of a clock that does not jump.
            memory_s: It may change from call to call; 0 remembers nobody.
        """
        with self._lock:
            self._counted = self._left(now, memory_s) + 1.0
            self._at = max(now, self._at)

    def counted(self, now: float, memory_s: float) -> float:
        """How many came within ``memory_s``, about: as many as that, if they come evenly."""
        with self._lock:
            return self._left(now, memory_s)

    def _left(self, now: float, memory_s: float) -> float:
        if memory_s <= 0.0:
            return 0.0
        return self._counted * math.exp(min(0.0, self._at - now) / memory_s)
