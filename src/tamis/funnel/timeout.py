"""A stage that is given up on after some milliseconds."""

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tamis.errors import ConfigError
from tamis.funnel.candidates import Candidates
from tamis.funnel.clock import Clock, SystemClock
from tamis.funnel.request import Request
from tamis.funnel.stage import BatchStage, Scored, Stage, score_all

_Task = tuple["Future[list[Scored]]", Callable[[], list[Scored]]]


class TimeOut(BatchStage):
    """A stage around a stage: late, it answers with the order of the stage before.

    The inner stage runs in a thread of its own, since nothing can stop Python or torch from
    outside. What is late goes on there and its result is dropped; a request that finds all workers
    at work waits for one within its own budget, and is taken off the queue when that is spent. So a
    stage that hangs costs each request its budget and nothing more.
    """

    def __init__(
        self, stage: Stage, *, budget_ms: float, workers: int = 1, clock: Clock | None = None
    ) -> None:
        """Start the workers; they end with this object.

        Args:
            stage: What may be late. With several workers it must bear calls at the same time.
            budget_ms: Milliseconds that it may take, the wait for a worker included. Positive.
            workers: Requests that it may work on at the same time. At least 1.
            clock: Tells the time; None for the machine's.

        Raises:
            ConfigError: A number is out of range.
        """
        if budget_ms <= 0 or workers < 1:
            raise ConfigError(
                f"TimeOut: budget_ms must be positive and workers at least 1, got budget_ms="
                f"{budget_ms!r}, workers={workers!r}."
            )
        self.stage = stage
        self.budget_ms = budget_ms
        self._clock = SystemClock() if clock is None else clock
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        # Daemons: an executor of the standard library would keep the process alive for a stage
        # that hangs.
        for _ in range(workers):
            threading.Thread(
                target=_work, args=(self._tasks,), name="tamis-stage", daemon=True
            ).start()
        weakref.finalize(self, _dismiss, self._tasks, workers)

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """Score together or give up together: there is one budget, as all wait for all.

        An error of the inner stage is raised here.
        """
        until = self._clock.now_ms() + self.budget_ms
        future: Future[list[Scored]] = Future()
        self._tasks.put((future, lambda: score_all(self.stage, requests, candidates, keep)))
        if self._clock.wait(future, until_ms=until):
            return future.result()
        future.cancel()
        why = f"took longer than {self.budget_ms:g} ms"
        return [Scored(candidates=its, fallback=why) for its in candidates]


def _work(tasks: "queue.SimpleQueue[_Task | None]") -> None:
    """Run tasks for ever; a function, since a method would keep its object alive."""
    while (task := tasks.get()) is not None:
        future, call = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  (raised again by whoever waits)
                future.set_exception(error)
        # Else the last request and its candidates would live until the next one comes.
        del task, future, call


def _dismiss(tasks: "queue.SimpleQueue[_Task | None]", workers: int) -> None:
    for _ in range(workers):
        tasks.put(None)
