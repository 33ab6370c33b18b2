"""What users did before, as new as the last event that the store has confirmed."""

import threading
from collections import Counter as Counts
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tamis.data.schema import Schema
from tamis.errors import ConfigError
from tamis.funnel.online import EventKind, OnlineFeatures
from tamis.serving.columns import category_of
from tamis.serving.records import Event, RawRow, RawValue, ServedRequest
from tamis.serving.store import Appended, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """What one user did."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Events by kind, and answered requests as ``request``."""
    events: Mapping[EventKind, tuple[Event, ...]] = field(default_factory=dict)
    """The newest events of the kinds that are kept, oldest first."""


class OnlineColumns:
    """The columns of a log that a user's past makes."""

    def __init__(self, online: OnlineFeatures, schema: Schema) -> None:
        """Find the columns.

        Raises:
            ConfigError: The schema has no such fields.
        """
        online.check(schema)
        fields = {item.name: item for item in schema.fields}
        self._item = schema.roles.item
        self._counters = {fields[item.field].source: item.counts for item in online.counters}
        self._histories: dict[str, tuple[EventKind, int, str]] = {}
        """By column: events, how many at most, and the ad's column that enters it."""
        self.lengths: dict[EventKind, int] = {}
        """How many of the newest events of a kind are needed."""
        for history in online.histories:
            members = schema.sequence_groups[history.group]
            longest = max(item.max_length for item in members)
            self.lengths[history.event] = max(longest, self.lengths.get(history.event, 0))
            for item in members:
                of_ad = fields[item.shares].source
                self._histories[item.source] = (history.event, longest, of_ad)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return (*self._histories, *self._counters)

    def of(self, past: Past) -> RawRow:
        """The columns of one user."""
        row: dict[str, RawValue] = {}
        for name, (kind, longest, of_ad) in self._histories.items():
            events = past.events.get(kind, ())[-longest:]
            row[name] = [self._of_ad(event, of_ad) for event in events]
        for name, counts in self._counters.items():
            row[name] = float(past.counts.get(counts, 0))
        return row

    def _of_ad(self, event: Event, column: str) -> str:
        """A column of an event's ad as a category; empty where it is missing."""
        if column == self._item:
            return event.ad
        value = event.ad_columns.get(column)
        # A schema that had the column as a list has nothing to say here.
        return "" if isinstance(value, list) else category_of(value) or ""


@dataclass(kw_only=True, slots=True)
class _State:
    """A past that grows."""

    counts: Counts[str]
    events: dict[EventKind, deque[Event]]

    def frozen(self) -> Past:
        events = {kind: tuple(newest) for kind, newest in self.events.items()}
        return Past(counts=dict(self.counts), events=events)


class Users:
    """The pasts of users; the store is the truth, and what was asked for last is kept in memory.

    Any thread may ask. All appends to the store go through :meth:`append`, one at a time, so that
    what is kept is what the store would say, as long as no other server writes to it.
    """

    def __init__(self, store: Store, *, max_users: int = 100_000) -> None:
        """Start with nobody in memory.

        Args:
            store: Where events are.
            max_users: Most users that are kept in memory. At least 1.

        Raises:
            ConfigError: ``max_users`` is below 1.
        """
        if max_users < 1:
            raise ConfigError(f"Users: max_users must be at least 1, got {max_users!r}.")
        self._store, self._max_users = store, max_users
        self._lengths: dict[EventKind, int] = {}
        self._states: OrderedDict[str, _State] = OrderedDict()
        # Users of the append that is under way, and those whose past is being read; a past that
        # was read while it changed may hold the change or not, and is not kept.
        self._changing: set[str] = set()
        self._reading: Counts[str] = Counts()
        self._changed_meanwhile: set[str] = set()
        self._lock = threading.Lock()

    def keep(self, lengths: Mapping[EventKind, int]) -> None:
        """Keep at least so many of the newest events of each kind from now on."""
        with self._lock:
            wider = {kind: max(n, self._lengths.get(kind, 0)) for kind, n in lengths.items()}
            if any(self._lengths.get(kind) != count for kind, count in wider.items()):
                self._lengths = {**self._lengths, **wider}
                self._states.clear()
                self._changed_meanwhile.update(self._reading)

    def past(self, user: str | None) -> Past:
        """What a user did; nothing where the user is not known.

        Raises:
            StoreError: The database cannot be reached.
        """
        if user is None:
            return Past()
        with self._lock:
            if user in self._states:
                self._states.move_to_end(user)
                return self._states[user].frozen()
            self._reading[user] += 1
            is_stable = user not in self._changing
            lengths = dict(self._lengths)
        state = None
        try:
            state = self._read(user, lengths)
        finally:
            with self._lock:
                is_stable = is_stable and user not in self._changed_meanwhile
                self._reading[user] -= 1
                if not self._reading[user]:
                    del self._reading[user]
                    self._changed_meanwhile.discard(user)
                if state is not None and is_stable:
                    self._states[user] = state
                    if len(self._states) > self._max_users:
                        self._states.popitem(last=False)
        return state.frozen()

    def append(self, requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        """Append to the store, and to what is kept; for one caller at a time.

        Raises:
            StoreError: As :meth:`Store.append` does.
        """
        users = {request.user for request in requests if request.user is not None}
        users |= {event.user for event in events if event.user is not None}
        with self._lock:
            self._changing = users
            self._changed_meanwhile.update(user for user in users if user in self._reading)
        appended: Appended | None = None
        try:
            appended = self._store.append(requests, events)
        finally:
            with self._lock:
                self._changing = set()
                if appended is None:
                    # Whether a commit that was not answered took place, only the store knows.
                    for user in users:
                        self._states.pop(user, None)
                else:
                    self._add(requests, events, appended)
        return appended

    def _add(
        self, requests: Sequence[ServedRequest], events: Sequence[Event], appended: Appended
    ) -> None:
        """Add what was new to the pasts that are kept; the caller holds the lock."""
        for request, is_new in zip(requests, appended.requests, strict=True):
            if is_new and request.user is not None and request.user in self._states:
                self._states[request.user].counts["request"] += 1
        for event, is_new in zip(events, appended.events, strict=True):
            if is_new and event.user is not None and event.user in self._states:
                state = self._states[event.user]
                state.counts[event.kind] += 1
                if event.kind in state.events:
                    state.events[event.kind].append(event)

    def _read(self, user: str, lengths: Mapping[EventKind, int]) -> _State:
        counts = Counts(self._store.counts(user))
        events = {
            # Most users that are new here are new to the store, and need no second look into it.
            kind: deque(self._store.last_events(user, kind, n) if counts[kind] else (), maxlen=n)
            for kind, n in lengths.items()
        }
        return _State(counts=counts, events=events)
