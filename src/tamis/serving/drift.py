"""Drift watch: are probabilities that were served still right, and still spread as they were?

A request is held for a while after its answer. What its events have said by then are its labels:
an ad with any event was seen, and an ad that nobody saw is no row. What comes later is counted and
changes nothing, so every row has had the same time to be clicked. Memory is bounded everywhere.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tamis.data.schema import Schema
from tamis.errors import ConfigError
from tamis.evaluation.loss import LogLossAccumulator
from tamis.evaluation.stability import StabilityIndex, stability_index
from tamis.funnel.online import EventKind
from tamis.serving.answers import Answer
from tamis.serving.records import Event

_KINDS: tuple[str, ...] = get_args(EventKind)
_SHIFT_ROWS = 2_000
"""Rows of the reference, and of the newest rows that are compared with it."""
_SHIFT_BINS = 10
_MAX_PARTS, _FIRST_PART_S = 60, 10.0
_MAX_RELEASES = 4
_SETTLE_EVERY_S = 1.0
"""Rows are added up many at a time, since every addition has a cost of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How well the probabilities of some rows fit what happened; None: the rows cannot tell."""

    rows: int
    """Ads that were seen and whose label is known."""
    positives: int
    """Those whose label is 1."""
    log_loss: float | None
    """Mean log loss, nats."""
    ne: float | None
    """Normalised entropy against the base rate of the same rows; smaller is better."""
    predicted: float
    """Sum of probabilities."""
    calibration: float | None
    """Sum of probabilities over number of positives; 1 is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOfPart(Fit):
    """The same of a part of the time."""

    start_s: float
    """When the part began, in seconds since the release went live."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDrift:
    """One task of one release, since the release went live."""

    all: Fit
    """All rows."""
    shift: StabilityIndex | None
    """The newest rows' probabilities against those of the first rows. None: too few rows yet."""
    parts: tuple[FitOfPart, ...]
    """Parts of the time, oldest first; they grow longer, so that their number is bounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseDrift:
    """One release, since it first answered here."""

    release: str
    """Which."""
    since_micros: int
    """When it first answered, in microseconds since 1970 UTC."""
    tasks: Mapping[str, TaskDrift]
    """By task; those of which no event tells are left out."""


class DriftWatch:
    """Joins answers with events, and adds up how well they agree; any thread may call.

    The reference of the shift are the first rows that the release itself was seen with, and not its
    evaluation: the ads that win an auction are scored higher than the ads of a log, so that every
    bundle would seem to have shifted on its first day. A model that was wrong from the first row on
    shows in the entropy and the calibration, and not in the shift.
    """

    def __init__(
        self,
        *,
        settle_s: float = 600.0,
        max_waiting: int = 20_000,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing.

        Args:
            settle_s: How long after an answer its events count. Positive. What takes longer, such
                as a conversion after a day, counts as if it had not happened.
            max_waiting: Most requests that are held; while so many are, others are passed over.
            now: Seconds that only grow, whatever is done to the clock.

        Raises:
            ConfigError: ``settle_s`` is not positive.
        """
        if not 0 < settle_s < float("inf"):
            raise ConfigError(f"settle_s: must be positive seconds, got {settle_s!r}.")
        self.settle_s, self._max_waiting, self._now = settle_s, max_waiting, now
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._releases: OrderedDict[str, _Release] = OrderedDict()
        self._settle_from = 0.0
        self._lock = threading.Lock()
        self.num_late = 0
        """Events of requests that were not held any more, or never were."""
        self.num_passed_over = 0
        """Requests that were not held, as too many were."""

    def answered(self, answer: Answer) -> None:
        """Hold an answer until its events are in."""
        if not any(ad.predictions for ad in answer.ads):
            return
        now = self._now()
        with self._lock:
            self._settle(now)
            release = self._release_of(answer.release, answer.live.served.schema, now)
            request_id = answer.served.request_id
            if request_id in self._held:
                return  # It was told before; the store keeps the first, too.
            if len(self._held) >= self._max_waiting:
                self.num_passed_over += 1
                return
            self._held[request_id] = _Held(
                release=release,
                due=now + self.settle_s,
                predictions={ad.ad: ad.predictions for ad in answer.ads},
            )

    def happened(self, events: Sequence[Event]) -> None:
        """Take in events that are in the store; one that is told twice is told once."""
        with self._lock:
            self._settle(self._now())
            for event in events:
                if event.request_id is None:
                    continue
                held = self._held.get(event.request_id)
                if held is None:
                    self.num_late += 1
                elif event.ad in held.predictions:
                    held.kinds.setdefault(event.ad, set()).add(event.kind)

    def report(self) -> list[ReleaseDrift]:
        """Every release, the one that answered last being last."""
        with self._lock:
            self._settle_from = 0.0
            self._settle(self._now())
            return [
                ReleaseDrift(
                    release=name,
                    since_micros=release.since_micros,
                    tasks={task: state.drift() for task, state in release.tasks.items()},
                )
                for name, release in self._releases.items()
            ]

    def _release_of(self, name: str, schema: Schema, now: float) -> "_Release":
        release = self._releases.get(name)
        if release is None:
            release = self._releases[name] = _Release(
                since=now,
                since_micros=time.time_ns() // 1_000,
                tasks={task: _Task() for task in _parents(schema)},
                parents=_parents(schema),
            )
            if len(self._releases) > _MAX_RELEASES:
                self._releases.popitem(last=False)
        self._releases.move_to_end(name)
        return release

    def _settle(self, now: float) -> None:
        """Add up the requests whose time has come; the caller holds the lock."""
        if now < self._settle_from:
            return
        self._settle_from = now + _SETTLE_EVERY_S
        rows: dict[tuple[int, str], list[tuple[float, bool]]] = {}
        releases: dict[int, _Release] = {}
        while self._held:
            held = next(iter(self._held.values()))
            if now < held.due:
                break
            self._held.popitem(last=False)
            releases[id(held.release)] = held.release
            for task, probability, label in held.rows():
                rows.setdefault((id(held.release), task), []).append((probability, label))
        for (number, task), found in rows.items():
            release = releases[number]
            columns = np.array(found, np.float64)
            release.tasks[task].add(columns[:, 0], columns[:, 1], at_s=now - release.since)


@dataclass(kw_only=True, slots=True)
class _Held:
    """A request whose events are waited for."""

    release: "_Release"
    due: float
    predictions: Mapping[str, Mapping[str, float]]
    kinds: dict[str, set[str]] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[str, float, bool]]:
        """Task, probability and label of every ad that was seen."""
        for ad, kinds in self.kinds.items():
            for task, parents in self.release.parents.items():
                # A label that needs another one, such as a conversion a click, may not exist.
                if task in self.predictions[ad] and kinds.issuperset(parents):
                    yield task, self.predictions[ad][task], task in kinds


@dataclass(frozen=True, kw_only=True, slots=True)
class _Release:
    since: float
    since_micros: int
    tasks: "dict[str, _Task]"
    parents: Mapping[str, tuple[str, ...]]


def _parents(schema: Schema) -> dict[str, tuple[str, ...]]:
    """The tasks that events tell of, each with those whose label must be 1 for it to exist."""
    by_name = {task.name: task for task in schema.tasks}
    found = {}
    for task in schema.tasks:
        parents: list[str] = []
        parent = task.observed_when
        while parent:
            parents.append(parent)
            parent = by_name[parent].observed_when
        if task.kind == "binary" and {task.name, *parents}.issubset(_KINDS):
            found[task.name] = tuple(parents)
    return found


class _Task:
    """Sums of one task."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._part_s = _FIRST_PART_S
        self._shift = _Shift()

    def add(
        self, probabilities: NDArray[np.float64], labels: NDArray[np.float64], *, at_s: float
    ) -> None:
        number = int(at_s / self._part_s)
        while number >= _MAX_PARTS:
            self._part_s *= 2.0
            number //= 2
            self._parts = _in_twos(self._parts)
        if not self._parts or self._parts[-1].number != number:
            self._parts.append(_Part(number=number))
        part = self._parts[-1]
        part.losses.update(labels, probabilities)
        part.predicted += float(probabilities.sum())
        self._shift.add(probabilities)

    def drift(self) -> TaskDrift:
        whole = _Part(number=0)
        for part in self._parts:
            whole = whole.plus(part)
        return TaskDrift(
            all=Fit(**whole.fit()),
            shift=self._shift.index(),
            parts=tuple(
                FitOfPart(start_s=part.number * self._part_s, **part.fit()) for part in self._parts
            ),
        )


@dataclass(kw_only=True, slots=True)
class _Part:
    """Sums of a part of the time: the ``number``-th of its length."""

    number: int
    losses: LogLossAccumulator = field(default_factory=LogLossAccumulator)
    predicted: float = 0.0

    def plus(self, other: "_Part") -> "_Part":
        return _Part(
            number=self.number,
            losses=self.losses.merge(other.losses),
            predicted=self.predicted + other.predicted,
        )

    def fit(self) -> dict[str, Any]:
        rows, positives = self.losses.rows, self.losses.positives
        return {
            "rows": rows,
            "positives": positives,
            "log_loss": self.losses.log_loss() if rows else None,
            "ne": self.losses.normalised_entropy().value if 0 < positives < rows else None,
            "predicted": self.predicted,
            "calibration": self.predicted / positives if positives else None,
        }


def _in_twos(parts: Sequence[_Part]) -> list[_Part]:
    """Parts of twice the length."""
    found: list[_Part] = []
    for part in parts:
        wider = _Part(number=part.number // 2).plus(part)
        if found and found[-1].number == wider.number:
            found[-1] = found[-1].plus(wider)
        else:
            found.append(wider)
    return found


class _Shift:
    """The first rows' probabilities, and the newest ones' in the bins of the first."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._edges: NDArray[np.float64] | None = None
        self._reference = self._newest_counts = np.zeros(_SHIFT_BINS)
        self._newest: deque[int] = deque()

    def add(self, probabilities: NDArray[np.float64]) -> None:
        if self._edges is None:
            room = _SHIFT_ROWS - len(self._first)
            self._first += probabilities[:room].tolist()
            probabilities = probabilities[room:]
            if len(self._first) < _SHIFT_ROWS:
                return
            # Probabilities that stand for many rows would make edges that are alike.
            steps = np.arange(1, _SHIFT_BINS) / _SHIFT_BINS
            self._edges = np.unique(np.quantile(self._first, steps))
            self._reference = self._counts(self._bins(np.array(self._first)))
            self._newest_counts = np.zeros_like(self._reference)
            self._first = []
        bins = self._bins(probabilities)
        self._newest.extend(bins.tolist())
        self._newest_counts = self._newest_counts + self._counts(bins)
        while len(self._newest) > _SHIFT_ROWS:
            self._newest_counts[self._newest.popleft()] -= 1

    def index(self) -> StabilityIndex | None:
        # Fewer rows would say more of chance than of a shift.
        if self._edges is None or len(self._newest) < _SHIFT_ROWS // 10:
            return None
        return stability_index(self._reference, self._newest_counts)

    def _bins(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        assert self._edges is not None
        return np.searchsorted(self._edges, probabilities, side="left").astype(np.int64)

    def _counts(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self._edges is not None
        return np.bincount(bins, minlength=self._edges.size + 1).astype(np.float64)
