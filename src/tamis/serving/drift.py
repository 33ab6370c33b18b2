"""Drift watch: are probabilities that were served still right, and still spread as they were?

A request is held for a while after its answer. What its events have said by then are its labels:
an ad with any event was seen, and an ad that nobody saw is no row. What comes later is counted and
changes nothing, so every row has had the same time to be clicked. Memory is bounded everywhere.
"""

import math
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from tamis.data.schema import Schema
from tamis.errors import ConfigError
from tamis.evaluation.loss import PROBABILITY_FLOOR
from tamis.evaluation.ratio import Estimate, ratio_of_sums
from tamis.funnel.online import EventKind
from tamis.serving.answers import Answer
from tamis.serving.fit import TaskDrift, TaskSums
from tamis.serving.records import Event

_KINDS: tuple[str, ...] = get_args(EventKind)
_MAX_RELEASES = 4
_NUM_UNITS = 1_024
"""Users that share the remainder of a hash are one unit: the error of a difference then holds for
any number of users in a memory that does not grow."""
_A_FEW, _MANY = 4, 256
"""Requests that are settled at a time: with every answer more than come in, so that none of them
waits for a crowd; and by whoever looks, before it lets others have a turn."""


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
        self._pairs: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
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
            self._settle(now, _A_FEW)
            release = self._release_of(answer.release, answer.live.served.schema, now)
            request_id = answer.served.request_id
            if request_id in self._held:
                return  # It was told before; the store keeps the first, too.
            if len(self._held) >= self._max_waiting:
                self.num_passed_over += 1
                return
            self._held[request_id] = _Held(
                served=_Scored(
                    release=release, predictions={ad.ad: ad.predictions for ad in answer.ads}
                ),
                due=now + self.settle_s,
                # Whoever is not known is a user of one request.
                unit=zlib.crc32((answer.served.user or request_id).encode()) % _NUM_UNITS,
            )

    def happened(self, events: Sequence[Event]) -> None:
        """Take in events that are in the store; one that is told twice is told once."""
        now = self._now()
        with self._lock:
            for event in events:
                if event.request_id is None:
                    continue
                held = self._held.get(event.request_id)
                if held is None or held.due <= now:
                    self.num_late += 1
                elif event.ad in held.served.predictions:
                    held.kinds.setdefault(event.ad, set()).add(event.kind)

    def shadowed(
        self,
        request_id: str,
        release: str,
        schema: Schema,
        predictions: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Add what another release says of an answer that is still held; too late is nothing.

        Args:
            request_id: The answered request.
            release: Which release.
            schema: Its schema.
            predictions: By ad and task.
        """
        now = self._now()
        with self._lock:
            held = self._held.get(request_id)
            if held is not None:
                held.shadow = _Scored(
                    release=self._release_of(release, schema, now, is_shadow=True),
                    predictions=predictions,
                )

    def differences(self, shadow: str, served: str) -> dict[str, Estimate]:
        """Log loss of a shadow minus that of what was served, nats, on the very same rows.

        Users are the units: rows of one user hang together, and their interval knows it.

        Args:
            shadow: Release that scored without serving.
            served: Release that served.

        Returns:
            By task; those without rows of two units are left out.
        """
        self._settle_all()
        with self._lock:
            pairs = self._pairs.get((shadow, served), {})
            return {
                task: ratio_of_sums(sums[0][sums[1] > 0], sums[1][sums[1] > 0])
                for task, sums in pairs.items()
                if np.count_nonzero(sums[1]) > 1
            }

    def report(self) -> list[ReleaseDrift]:
        """Every release, the one that answered last being last."""
        self._settle_all()
        with self._lock:
            return [
                ReleaseDrift(
                    release=name,
                    since_micros=release.since_micros,
                    tasks={task: state.drift() for task, state in release.tasks.items()},
                )
                for name, release in self._releases.items()
            ]

    def _release_of(
        self, name: str, schema: Schema, now: float, *, is_shadow: bool = False
    ) -> "_Release":
        release = self._releases.get(name)
        if release is None:
            release = self._releases[name] = _Release(
                name=name,
                since=now,
                since_micros=time.time_ns() // 1_000,
                tasks={task: TaskSums() for task in _parents(schema)},
                parents=_parents(schema),
            )
            if len(self._releases) > _MAX_RELEASES:
                gone, _ = self._releases.popitem(last=False)
                self._pairs = {pair: sums for pair, sums in self._pairs.items() if gone not in pair}
        # Who answered last is last, and a shadow answers nobody.
        self._releases.move_to_end(name, last=not is_shadow)
        return release

    def _settle_all(self) -> None:
        """Settle all requests whose time has come; answers get in between."""
        now, is_more = self._now(), True
        while is_more:
            with self._lock:
                is_more = self._settle(now, _MANY)

    def _settle(self, now: float, most: int) -> bool:
        """Add up requests whose time has come; the caller holds the lock.

        Returns:
            Whether there may be more of them.
        """
        for _ in range(most):
            held = next(iter(self._held.values()), None)
            if held is None or now < held.due:
                return False
            self._held.popitem(last=False)
            for scored in (held.served, held.shadow):
                if scored is not None:
                    release = scored.release
                    for (_, task), (probability, label) in scored.rows(held.kinds):
                        release.tasks[task].add(probability, label, at_s=now - release.since)
            if held.shadow is not None:
                self._compare(held, held.shadow)
        return True

    def _compare(self, held: "_Held", shadow: "_Scored") -> None:
        """Add the difference of two releases' losses on the rows that both have scored."""
        pair = shadow.release.name, held.served.release.name
        by_task = self._pairs.setdefault(pair, {})
        served = dict(held.served.rows(held.kinds))
        for place, (probability, label) in shadow.rows(held.kinds):
            if place in served:
                sums = by_task.setdefault(place[1], np.zeros((2, _NUM_UNITS)))
                loss, other = (_log_loss(p, label) for p in (probability, served[place][0]))
                sums[:, held.unit] += (loss - other, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    """What a release said of the ads of an answer."""

    release: "_Release"
    predictions: Mapping[str, Mapping[str, float]]

    def rows(
        self, happened: Mapping[str, set[str]]
    ) -> Iterator[tuple[tuple[str, str], tuple[float, bool]]]:
        """Ad and task, probability and label, of every ad that was seen."""
        for ad, kinds in happened.items():
            said = self.predictions.get(ad, {})
            for task, parents in self.release.parents.items():
                # A label that needs another one, such as a conversion a click, may not exist.
                if task in said and kinds.issuperset(parents):
                    yield (ad, task), (said[task], task in kinds)


def _log_loss(probability: float, label: bool) -> float:
    right = probability if label else 1.0 - probability
    return -math.log(max(right, PROBABILITY_FLOOR))


@dataclass(kw_only=True, slots=True)
class _Held:
    """A request whose events are waited for."""

    served: _Scored
    due: float
    unit: int
    shadow: _Scored | None = None
    kinds: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Release:
    name: str
    since: float
    since_micros: int
    tasks: dict[str, TaskSums]
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
