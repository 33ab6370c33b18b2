"""The engine: owns what is live, answers requests in few threads, and turns away what is too much.

Requests wait in one queue. A thread takes what has gathered, as long as the stages keep their
budgets, and answers it together: whatever the load, nobody waits for a batch to fill, and the more
come the less each costs. Each thread computes alone: batches that are split over cores would wait
for the slower core layer by layer. How long a batch takes is known from those before. So who would
wait longer than it may is turned away at the door, before the queue has grown.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from tamis.errors import ConfigError, StoreError
from tamis.funnel.bundle import Bundle
from tamis.serving.answers import Answer, Query, answer_all
from tamis.serving.arrivals import Arrivals
from tamis.serving.live import Live, ServedBundle
from tamis.serving.pace import Pace
from tamis.serving.recorder import Recorder
from tamis.serving.records import Event, StoredAd
from tamis.serving.refused import RefusedError, no_such_ad
from tamis.serving.store import Store
from tamis.serving.users import Past, Users

_log = logging.getLogger(__name__)
_WARM_UPS = 3
_STORE_PAUSE_S = 1.0
"""How long nobody's past is asked for after the store could not be reached."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What the engine may spend."""

    threads: int = 1
    """Threads that answer, each of which computes alone. At least 1."""
    max_batch: int = 3
    """Most requests that are answered together. At least 1."""
    max_wait_ms: float = 80.0
    """Longest that a request may wait for its turn; who would wait longer is turned away. In a
    rush, of R > 1 times what can be answered, it is ``1 / R**2`` of this. Positive."""

    def __post_init__(self) -> None:
        if self.threads < 1 or self.max_batch < 1 or not self.max_wait_ms > 0:
            raise ConfigError(
                f"engine: threads and max_batch must be at least 1 and max_wait_ms positive, got "
                f"threads={self.threads!r}, max_batch={self.max_batch!r}, max_wait_ms="
                f"{self.max_wait_ms!r}."
            )


class Watch(Protocol):
    """Is told what the engine does; it must be quick and never raise."""

    def answered(self, answer: Answer, *, waited_ms: float, took_ms: float) -> None:
        """A request was answered, after a wait for its turn."""
        ...

    def turned_away(self) -> None:
        """A request was turned away, as too many wait."""
        ...

    def past_missing(self) -> None:
        """A user's past could not be read, and counted as none."""
        ...


class Engine:
    """One served funnel: requests, events, changes of ads and of the bundle, from any thread."""

    def __init__(
        self, bundle: Bundle, store: Store, watch: Watch, settings: EngineSettings
    ) -> None:
        """Build the funnel, and start the threads.

        Raises:
            ArtifactError: The bundle was published without the ads' columns.
            TamisError: An ad of the store has no place in the funnel.
            StoreError: The store cannot be reached or written.
        """
        self.settings = settings
        self._store, self._watch = store, watch
        self._users = Users(store)
        self._live = self._prepared(bundle).live(store.ads())
        self._pace = _warmed_up(self._live, settings.max_batch)
        self._remember(self._live.served)
        self._previous: ServedBundle | None = None
        self._beside: Live | None = None
        self.recorder = Recorder(self._users.append)
        # One change at a time; what asks for new ads meanwhile shares the next change.
        self._change = threading.Lock()
        # Held from the look at an ad until it is written as it was changed, and from the last look
        # at all of them until a bundle is live that has a place for each.
        self._ad_writes = threading.Lock()
        self._asked, self._made = 0, 0
        self._queue: deque[_Job] = deque()
        self._wakes = threading.Condition()
        # When each thread's batch that is under way should be done.
        self._busy_until = [0.0] * settings.threads
        self._arrivals = Arrivals()
        self._is_closed = False
        self._ask_store_from = 0.0
        self._workers = [
            threading.Thread(
                target=self._work, args=(number,), name=f"tamis-engine-{number}", daemon=True
            )
            for number in range(settings.threads)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def live(self) -> Live:
        """What answers now."""
        return self._live

    @property
    def beside(self) -> Live | None:
        """A second bundle over the same ads, for whoever asks for it; None: there is none."""
        return self._beside

    @property
    def store(self) -> Store:
        """Where ads and events are."""
        return self._store

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return all(worker.is_alive() for worker in self._workers) and not self._is_closed

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether whoever comes now would wait too long, or would not be answered at all."""
        now, pace = time.perf_counter(), self._pace
        free_at = [max(now, until) for until in self._busy_until]
        room = pace.room
        batch_s = pace.ms(room) / 1e3
        # Whole batches go first, each to the thread that is free by then.
        for _ in range(len(self._queue) // room):
            first = free_at.index(min(free_at))
            free_at[first] += batch_s
        # What comes together by chance is worth a wait, as it passes. In a rush it does not: as
        # many are answered, however long they wait.
        rush = self._arrivals.counted(now, batch_s) / (room * len(free_at))
        max_wait_s = self.settings.max_wait_ms / 1e3 / max(1.0, rush) ** 2
        return self._is_closed or min(free_at) - now > max_wait_s

    def rank(self, query: Query, live: Live) -> "Future[Answer]":
        """Answer a request.

        Args:
            query: The request.
            live: What its columns were checked against; it answers, though another may be live by
                then.

        Raises:
            RefusedError: It would wait too long.
        """
        job = _Job(query=query, live=live, future=Future(), arrived=time.perf_counter())
        self._count_arrival()
        with self._wakes:
            if self.is_full:
                raise self._refusal()
            self._queue.append(job)
            self._wakes.notify()
        return job.future

    def turn_away(self) -> RefusedError:
        """Count a request that came while the engine was full, and say what it is told."""
        self._count_arrival()
        return self._refusal()

    def _count_arrival(self) -> None:
        pace = self._pace
        self._arrivals.add(time.perf_counter(), pace.ms(pace.room) / 1e3)

    def _refusal(self) -> RefusedError:
        self._watch.turned_away()
        return RefusedError(
            503,
            "server",
            "must have time for the request, and has not. Ask again.",
            retry_after_s=1,
        )

    def write(self, events: Sequence[Event]) -> "Future[list[bool]]":
        """Write events: done when they are on the disk and in the pasts of their users."""
        return self.recorder.write(events)

    def put_ad(self, ad: StoredAd) -> None:
        """Add or replace an ad; on return it may be shown.

        Raises:
            TamisError: The ad has no place in the funnel; nothing was changed.
            StoreError: The store cannot be reached or written.
        """
        with self._ad_writes:
            self._check_ad(ad)
            self._store.put_ad(ad)
        self._refresh()

    def change_ad(self, ad: str, change: Callable[[StoredAd], StoredAd]) -> None:
        """Replace an ad by what is made of it as it is now; on return it may be shown.

        Args:
            ad: Its id.
            change: Makes the new one; its errors come through, and leave all as it was.

        Raises:
            RefusedError: There is no such ad.
            TamisError: The ad has no place in the funnel; nothing was changed.
            StoreError: The store cannot be reached or written.
        """
        with self._ad_writes:
            # The store's word, since what is live may lag behind it.
            stored = self._store.ads(ad)
            now = stored[ad] if ad in stored else self._live.ads.of_bundle(ad)
            if now is None:
                raise no_such_ad()
            changed = change(now)
            self._check_ad(changed)
            self._store.put_ad(changed)
        self._refresh()

    def _check_ad(self, ad: StoredAd) -> None:
        """Refuse an ad now, or no later change of the ads would ever succeed."""
        for live in (self._live, self._beside):
            if live is not None:
                live.served.catalogue.check(ad)

    def delete_ad(self, ad: str) -> None:
        """Take an ad away; on return no new request is shown it.

        Raises:
            StoreError: The store cannot be reached or written.
        """
        with self._ad_writes:
            self._store.delete_ad(ad)
        self._refresh()

    def swap(self, bundle: Bundle, *, replaces: str) -> None:
        """Serve another bundle; requests that were taken before are answered by the one before.

        Args:
            bundle: What is to serve.
            replaces: Release that it was meant to follow.

        Raises:
            RefusedError: Another release serves by now.
            TamisError: The bundle cannot serve; the one before goes on.
        """
        with self._change:
            self._check_replaces(replaces)
            self._serve(self._prepared(bundle))

    def roll_back(self, *, replaces: str) -> None:
        """Serve the bundle before this one again.

        Raises:
            RefusedError: Another release serves by now, or there was none before.
            TamisError: The bundle cannot serve any more; this one goes on.
        """
        with self._change:
            self._check_replaces(replaces)
            if self._previous is None:
                raise RefusedError(
                    409, "body.roll_back", "must follow a change of the bundle; there was none."
                )
            self._serve(self._previous)

    def put_beside(self, bundle: Bundle, *, control: str) -> None:
        """Keep a second bundle ready beside the one that serves.

        Args:
            bundle: The second one.
            control: Release that it is to stand beside.

        Raises:
            RefusedError: Another release serves by now.
            TamisError: The bundle cannot serve.
        """
        with self._change:
            self._check_replaces(control)
            served = self._prepared(bundle)
            ads = self._store.ads()
            beside = served.live(ads)
            _warmed_up(beside, self.settings.max_batch)
            self._users.keep(served.online.lengths)
            with self._ad_writes:
                self._beside = self._with_ads_since(ads, beside)

    def drop_beside(self) -> None:
        """Let the second bundle go; requests that it was to answer are answered."""
        with self._change:
            self._beside = None

    def close(self) -> None:
        """Answer what waits, write what was answered, and end the threads."""
        with self._wakes:
            self._is_closed = True
            self._wakes.notify_all()
        for worker in self._workers:
            worker.join()
        # A second time does nothing.
        self.recorder.close()

    def _prepared(self, bundle: Bundle) -> ServedBundle:
        return ServedBundle(bundle, threads=self.settings.threads)

    def _check_replaces(self, replaces: str) -> None:
        if replaces != self._live.served.release:
            raise RefusedError(
                409,
                "body.replaces",
                f"must be the release that serves, {self._live.served.release}. Look at what "
                f"serves now before you change it.",
            )

    def _serve(self, served: ServedBundle) -> None:
        """Make a bundle live; the caller holds the lock of changes."""
        if self._beside is not None:
            raise RefusedError(
                409, "server", "must run no experiment when its bundle changes. End it first."
            )
        before, asked = self._live.served, self._asked
        ads = self._store.ads()
        live = served.live(ads)
        pace = _warmed_up(live, self.settings.max_batch)
        with self._ad_writes:
            live = self._with_ads_since(ads, live)
            self._remember(served)
            # One assignment: a request takes the one or the other, whole.
            self._live, self._previous, self._made = live, before, asked
        self._pace = pace

    def _with_ads_since(self, before: Mapping[str, StoredAd | None], live: Live) -> Live:
        """A state with the ads that came while it warmed up; another bundle has checked these.

        Raises:
            TamisError: One of them has no place in its funnel.
        """
        now = self._store.ads()
        return live if now == before else live.served.live(now)

    def _remember(self, served: ServedBundle) -> None:
        """Keep what a bundle needs before it answers anybody."""
        self._users.keep(served.online.lengths)
        # After the first answers: the newest schema is what a store's log is read by. Before all
        # others, so that it is that of what serves. A bundle beside it is not remembered.
        self._store.put_release(served.release, served.schema.to_toml())

    def _refresh(self) -> None:
        """Make the store's ads live; whoever comes while another works shares one more turn."""
        with self._wakes:
            self._asked += 1
            mine = self._asked
        with self._change:
            if self._made >= mine:
                return
            asked = self._asked
            ads = self._store.ads()
            self._live = self._live.served.live(ads)
            if self._beside is not None:
                self._beside = self._beside.served.live(ads)
            self._made = asked

    def _work(self, number: int) -> None:
        import torch

        # Threads beyond the cores cost a factor; this setting is the calling thread's own.
        torch.set_num_threads(1)
        while jobs := self._next(number):
            pace, started = self._pace, time.perf_counter()
            answers = self._answer_all(jobs)
            ended = time.perf_counter()
            self._busy_until[number], took_ms = ended, (ended - started) * 1e3
            traces = [one.trace for one in answers if isinstance(one, Answer) and one.trace]
            if len(traces) == len(jobs):
                pace.observe(len(jobs), took_ms, traces[0].stages)
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                    continue
                # Recorded first: an event that names the request is then written after it.
                self.recorder.record(answer.served)
                self._watch.answered(
                    answer, waited_ms=(started - job.arrived) * 1e3, took_ms=took_ms / len(jobs)
                )
                job.future.set_result(answer)

    def _answer_all(self, jobs: "Sequence[_Job]") -> list[Answer | Exception]:
        """Answers of one state; one that cannot be answered costs the others time alone."""
        try:
            return [*answer_all(jobs[0].live, [job.query for job in jobs], self.past)]
        except Exception as error:  # noqa: BLE001  (whoever waits must be told)
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._answer_all([job])]
            # Nothing of the request may stand in a log.
            _log.error("a request could not be answered: %s", type(error).__name__)
            return [error]

    def _next(self, number: int) -> "list[_Job]":
        """Requests of one state that have gathered, for a thread that is busy from now on.

        None when the engine is closed.
        """
        with self._wakes:
            jobs: list[_Job] = []
            while not jobs:
                while not self._queue and not self._is_closed:
                    self._wakes.wait()
                if not self._queue:
                    return []
                while self._queue and len(jobs) < self._pace.room:
                    if jobs and self._queue[0].live is not jobs[0].live:
                        break
                    job = self._queue.popleft()
                    waited_ms = (time.perf_counter() - job.arrived) * 1e3
                    if not job.future.set_running_or_notify_cancel():
                        continue  # Whoever asked is gone.
                    if waited_ms > self.settings.max_wait_ms:
                        # Something held all up: the answer would come too late to be of use.
                        job.future.set_exception(self._refusal())
                    else:
                        jobs.append(job)
            # Before anybody else may look: what has left the queue is under way.
            self._busy_until[number] = time.perf_counter() + self._pace.ms(len(jobs)) / 1e3
            return jobs

    def past(self, user: str | None) -> Past:
        """A user's past; none where the store cannot be reached, so that ranking goes on."""
        if user is None:
            return Past()
        if time.monotonic() < self._ask_store_from:
            self._watch.past_missing()
            return Past()
        try:
            return self._users.past(user)
        except StoreError as error:
            _log.warning("%s", error)
            self._ask_store_from = time.monotonic() + _STORE_PAUSE_S
            self._watch.past_missing()
            return Past()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Job:
    query: Query
    live: Live
    future: "Future[Answer]"
    arrived: float


def _warmed_up(live: Live, max_batch: int) -> Pace:
    """Answer nobody's requests, of which the first are slower than all others, and time the last.

    One alone and a whole batch: the line between them says what all sizes take.
    """
    funnel = live.funnel
    steps = () if funnel is None else funnel.steps
    budgets_ms = {step.name: step.budget_ms for step in steps if step.budget_ms is not None}
    pace = Pace(budgets_ms, max_batch)
    query = Query(
        request_id="warm-up", user=None, columns={}, slots=1, candidates=None, time_micros=0
    )
    for size in dict.fromkeys((1, max_batch)):
        for number in range(_WARM_UPS):
            started = time.perf_counter()
            answers = answer_all(live, [query] * size, lambda user: Past())  # noqa: ARG005
            took_ms = (time.perf_counter() - started) * 1e3
            if number == _WARM_UPS - 1:
                trace = answers[0].trace
                pace.observe(size, took_ms, () if trace is None else trace.stages)
    return pace
