"""The one thread that writes to the store: whatever waits goes into one transaction."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from tamis.errors import StoreError
from tamis.serving.records import Event, ServedRequest
from tamis.serving.store import Appended

_log = logging.getLogger(__name__)
_PAUSE_S = 1.0
"""How long answered requests leave the store alone after it could not be written."""
_SAY_S = 60.0
"""How long nothing more is said of answered requests that are lost: all may be, in a rush."""
_GATHER_S = 0.05
"""How long an answered request waits for others: each transaction takes time from rankings."""
_MOST_BLAMED = 16
"""Failures of one write that are traced to a request or the events of a caller. After so many it is
hardly what is written that is to blame, and a try for each would only keep the store busy."""

Append = Callable[[Sequence[ServedRequest], Sequence[Event]], Appended]
_Told = tuple[Sequence[Event], "Future[list[bool]] | None"]
"""Events of one caller, and who is told of them; None: nobody waits any more."""


class Recorder:
    """Answered requests and events on their way to the store.

    A transaction costs a wait for the disk, whatever is in it: what arrives during one shares the
    next, and answered requests, for which nobody waits, give others a moment to arrive. All is
    written in the order in which it came, so that no event that was confirmed can lack the request
    that it names. While the store cannot be written, events are refused at once, and answered
    requests wait for it, up to a limit. Events that the store is too slow for are refused. What can
    never be written costs nothing else: what shared its transaction is tried without it, unless
    much of that fails too.
    """

    def __init__(self, append: Append, *, max_waiting: int = 100_000) -> None:
        """Start the thread.

        Args:
            append: Writes requests and events, all or none.
            max_waiting: Answered requests that may wait for the store, and events likewise. At
                least 1.
        """
        self._append, self._max_waiting = append, max_waiting
        self._requests: list[ServedRequest] = []
        self._events: list[tuple[Sequence[Event], Future[list[bool]]]] = []
        self._num_events = 0
        self._is_closed = False
        self.num_lost = 0
        """Answered requests that are in no store: too many waited, or they cannot be written."""
        self._say_from = 0.0
        self._wakes = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tamis-recorder", daemon=True)
        self._thread.start()

    def record(self, request: ServedRequest) -> None:
        """Write an answered request soon."""
        with self._wakes:
            if len(self._requests) >= self._max_waiting:
                self._lose(1)
                return
            self._requests.append(request)
            if len(self._requests) == 1:
                self._wakes.notify()

    def write(self, events: Sequence[Event]) -> "Future[list[bool]]":
        """Write events.

        Returns:
            Done when they are on the disk: for each whether it is new. Fails where they could not
            be written, with ``StoreError`` if they may be written later.
        """
        future: Future[list[bool]] = Future()
        with self._wakes:
            if self._is_closed:
                future.set_exception(StoreError("store: must be open, got closed. Ask again."))
                return future
            if self._events and self._num_events + len(events) > self._max_waiting:
                future.set_exception(
                    StoreError(
                        f"store: must keep up with events, got {self._num_events:,} that wait. Ask "
                        f"again."
                    )
                )
                return future
            self._events.append((events, future))
            self._num_events += len(events)
            self._wakes.notify()
        return future

    def close(self) -> None:
        """Write what waits, end the thread, and say what was lost; a second time does nothing."""
        with self._wakes:
            was_closed, self._is_closed = self._is_closed, True
            self._wakes.notify()
        self._thread.join()
        if self.num_lost and not was_closed:
            _log.error("answered requests that are in no store: %d in all", self.num_lost)

    def _work(self) -> None:
        while True:
            with self._wakes:
                while not (self._requests or self._events or self._is_closed):
                    self._wakes.wait()
                self._wakes.wait_for(lambda: self._events or self._is_closed, _GATHER_S)
                if not (self._requests or self._events):
                    return
                requests, self._requests = self._requests, []
                events, self._events, self._num_events = self._events, [], 0
                is_closed = self._is_closed
            # From here on nobody can take back what was asked; whoever did before is not told.
            told = [
                (part, future if future.set_running_or_notify_cancel() else None)
                for part, future in events
            ]
            self._write(requests, told, is_closed=is_closed)

    def _write(
        self, requests: list[ServedRequest], events: list[_Told], *, is_closed: bool
    ) -> None:
        """Write it all at once; where that cannot be done, all but what is to blame.

        The events of one caller are written together or not at all. After ``_MOST_BLAMED``
        failures, whatever fails is given up as it is.
        """
        left, blamed = [(requests, events)], 0
        while left:
            requests, events = left.pop()
            try:
                is_new = self._append(requests, [one for part, _ in events for one in part]).events
            except StoreError as error:
                # Its message names no value of a row.
                _log.warning("%s", error)
                unwritten = [(requests, events), *reversed(left)]
                _fail([told for _, part in unwritten for told in part], error)
                waiting = [request for part, _ in unwritten for request in part]
                self._wait_for_store(waiting, is_closed=is_closed)
                return
            except Exception as error:  # noqa: BLE001  (whoever waits must be told, whatever it is)
                if len(requests) + len(events) > 1 and blamed < _MOST_BLAMED:
                    # In their order: an event must not be there before the request that it names.
                    left += reversed(_halves(requests, events))
                    continue
                name = type(error).__name__
                if blamed == 0:
                    _log.error("a request or a caller's events could not be recorded: %s", name)
                elif blamed == _MOST_BLAMED:
                    _log.error(
                        "more than %d could not be recorded in one write, and what fails with them "
                        "is given up in larger parts: %s",
                        blamed,
                        name,
                    )
                blamed += 1
                _fail(events, error)
                # Trying again would fail again, and nothing behind it would ever be written.
                with self._wakes:
                    self._lose(len(requests))
            else:
                start = 0
                for part, future in events:
                    if future is not None:
                        future.set_result(is_new[start : start + len(part)])
                    start += len(part)

    def _wait_for_store(self, requests: list[ServedRequest], *, is_closed: bool) -> None:
        """Keep requests for the next try: after a pause, unless events come before."""
        with self._wakes:
            room = self._max_waiting - len(self._requests)
            self._requests = [*requests[:room], *self._requests]
            self._lose(max(0, len(requests) - room))
            if is_closed:
                # Nobody comes after this: what cannot be written now is lost, and said.
                self._lose(len(self._requests))
                self._requests = []
            else:
                self._wakes.wait_for(lambda: self._events or self._is_closed, _PAUSE_S)

    def _lose(self, count: int) -> None:
        """Count answered requests that are in no store, and say so now and then."""
        self.num_lost += count
        now = time.monotonic()
        if count and now >= self._say_from:
            self._say_from = now + _SAY_S
            _log.error("answered requests that are in no store: %d so far", self.num_lost)


def _halves(
    requests: list[ServedRequest], events: list[_Told]
) -> list[tuple[list[ServedRequest], list[_Told]]]:
    if requests and events:
        return [(requests, []), ([], events)]
    at = (len(requests) + len(events)) // 2
    return [(requests[:at], events[:at]), (requests[at:], events[at:])]


def _fail(events: Iterable[_Told], error: Exception) -> None:
    for _, future in events:
        if future is not None:
            future.set_exception(error)
