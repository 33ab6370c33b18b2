"""A bundle that scores what another one serves: beside it, never before it."""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from tamis.serving.answers import Answer, Query, answer_all
from tamis.serving.drift import DriftWatch
from tamis.serving.engine import Engine
from tamis.serving.live import Live
from tamis.serving.users import Past

_log = logging.getLogger(__name__)
_PAUSE_S = 0.002
_NICENESS = 10
_CLOSE_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowReport:
    """What a shadow has done since it began in this process."""

    scored: int
    """Requests that it has answered for itself."""
    dropped: int
    """Requests that it had no time for."""
    failed: int
    """Requests that it could not answer."""
    overlap: float | None
    """Share of the ads that were served which it would have shown too; None: none were."""


class Shadow:
    """Answers again, from a queue of its own, what was served; nobody is shown the answer.

    Its thread yields to those that serve: it begins only while no request waits, has a lower
    priority where the system knows one for threads, and drops what has grown old. What it says of
    the ads that were served goes to the drift watch, where it meets the same events.
    """

    def __init__(
        self,
        engine: Engine,
        drift: DriftWatch,
        *,
        max_waiting: int = 64,
        max_age_s: float = 2.0,
    ) -> None:
        """Start the thread.

        Args:
            engine: Whose second bundle is the shadow.
            drift: Is told.
            max_waiting: Requests that may wait; what comes while so many do is dropped.
            max_age_s: What has waited longer is dropped.
        """
        self._engine, self._drift = engine, drift
        self._max_waiting, self._max_age_s = max_waiting, max_age_s
        self._queue: deque[tuple[Query, Answer, float]] = deque()
        self._is_closed = False
        self._wakes = threading.Condition()
        self._scored = self._dropped = self._failed = self._shown = self._shared = 0
        self._thread = threading.Thread(target=self._work, name="tamis-shadow", daemon=True)
        self._thread.start()

    def offer(self, query: Query, answer: Answer) -> None:
        """Score a request that was served, if there is time; never waits."""
        with self._wakes:
            if self._is_closed or len(self._queue) >= self._max_waiting:
                self._dropped += 1
                return
            self._queue.append((query, answer, time.monotonic()))
            self._wakes.notify()

    def report(self) -> ShadowReport:
        """What it has done."""
        with self._wakes:
            return ShadowReport(
                scored=self._scored,
                dropped=self._dropped,
                failed=self._failed,
                overlap=self._shared / self._shown if self._shown else None,
            )

    def close(self) -> None:
        """End the thread; what waits is dropped, and one that hangs is left behind."""
        with self._wakes:
            self._is_closed = True
            self._dropped += len(self._queue)
            self._queue.clear()
            self._wakes.notify()
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        import torch

        torch.set_num_threads(1)
        with contextlib.suppress(OSError):
            # On Linux the priority is the thread's own; elsewhere this thread stays as others are.
            if os.uname().sysname == "Linux":
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (job := self._next()) is not None:
            query, answer = job
            beside = self._engine.beside
            if beside is None:
                continue
            try:
                self._score(beside, query, answer)
            except Exception as error:  # noqa: BLE001  (whatever it is, those who serve go on)
                # Nothing of the request may stand in a log.
                _log.warning("a shadow could not score: %s", type(error).__name__)
                with self._wakes:
                    self._failed += 1

    def _next(self) -> tuple[Query, Answer] | None:
        """The next request that is young enough, once nobody waits; None when closed."""
        while True:
            with self._wakes:
                while not self._queue and not self._is_closed:
                    self._wakes.wait()
                if self._is_closed:
                    return None
                query, answer, asked = self._queue[0]
                if time.monotonic() - asked > self._max_age_s:
                    self._queue.popleft()
                    self._dropped += 1
                    continue
                if not self._engine.num_waiting:
                    self._queue.popleft()
                    return query, answer
            time.sleep(_PAUSE_S)

    def _score(self, beside: Live, query: Query, answer: Answer) -> None:
        again, past_of = _again(beside, query, answer, self._engine.past)
        (mine,) = answer_all(beside, [again], past_of)
        shown = tuple(item.ad for item in answer.ads)
        shared = len({item.ad for item in mine.ads}.intersection(shown))
        if shown:
            # The ads that were served, whether or not it would have kept them to the end.
            of_shown = replace(again, candidates=shown, slots=len(shown))
            (found,) = answer_all(beside, [of_shown], past_of)
            self._drift.shadowed(
                query.request_id,
                beside.served.release,
                beside.served.schema,
                {item.ad: item.predictions for item in found.ads if item.predictions},
            )
        with self._wakes:
            self._scored += 1
            self._shown += len(shown)
            self._shared += shared


def _again(
    beside: Live, query: Query, answer: Answer, past: Callable[[str | None], Past]
) -> tuple[Query, Callable[[str | None], Past]]:
    """The request as it was ranked: with the past that it had then, which may have grown since."""
    served = beside.served
    said = answer.served.columns
    # The served bundle may have a column as another kind.
    row = {**served.user_columns.converted(said), **served.context_columns.converted(said)}
    again = replace(query, columns=row, arm=None)
    # Only a column that the served bundle does not make of events needs to be made now.
    if row.keys() >= set(served.online.names):
        return again, lambda user: Past()  # noqa: ARG005
    return again, past
