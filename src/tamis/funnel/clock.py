"""Time as the funnel reads it, so that a test can put another in its place."""

import time
from concurrent import futures
from typing import Any, Protocol


class Clock(Protocol):
    """Tells the time, and waits."""

    def now_ms(self) -> float:
        """Milliseconds since an arbitrary moment; never goes back."""
        ...

    def wait(self, future: "futures.Future[Any]", *, until_ms: float) -> bool:
        """Wait for work that runs elsewhere.

        Args:
            future: The work.
            until_ms: When to give up, on this clock.

        Returns:
            Whether it ended in time, well or not.
        """
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_ms(self) -> float:
        """Milliseconds since an arbitrary moment."""
        return time.perf_counter() * 1e3

    def wait(self, future: "futures.Future[Any]", *, until_ms: float) -> bool:
        """Wait for work that runs elsewhere; see :class:`Clock`."""
        left = max(0.0, until_ms - self.now_ms())
        return bool(futures.wait([future], timeout=left / 1e3).done)
