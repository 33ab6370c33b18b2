"""From a store to a log: a row for each ad that was seen, as it was ranked, and what came of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.schema import Schema, Task
from tamis.errors import DataError, SchemaError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.online import EventKind
from tamis.funnel.plans import EarlyStagePlan, RankerPlan
from tamis.models.early_serving import label_tasks
from tamis.serving.columns import Columns
from tamis.serving.records import Event, RawRow, ServedRequest, ShownAd
from tamis.serving.store import EVERYTHING, JoinedRequest, Store, Window

_ROWS_PER_GROUP = 65_536
_TIME = ""
"""Where a row keeps its time; no column has this name."""
_STAMP = pa.timestamp("us", tz="UTC")
_KINDS: tuple[str, ...] = get_args(EventKind)
_RENAME = "Rename the label's column in the log, and ingest and train anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinReport:
    """What was joined, and what could not be."""

    requests: int
    """Requests that were answered."""
    rows: int
    """Ads of their answers that were seen; rows of the log."""
    not_seen: int
    """Ads of their answers of which no event tells: they are no rows."""
    implied: int
    """Rows without an impression, which a click or another event implies."""
    events: int
    """Events in the store; of a window, those that name its requests."""
    of_no_request: int
    """Events that name no request of the store: they are in no row."""
    of_other_ads: int
    """Events that name a request, but an ad that was not in its answer: they are in no row."""
    late: int
    """Events that came after the time of attribution of their request: they are in no row."""


def write_joined_log(
    store: Store,
    schema: Schema,
    path: Path,
    *,
    window: Window = EVERYTHING,
    attribution_micros: int | None = None,
) -> JoinReport:
    """Write the log of a store as Parquet.

    Columns of user and context are those that the request was ranked by, histories and counters
    included, so that a model is trained on what it will be served; those of the ad are as they were
    scored. A label is 1 where there is an event of its name. Events that come later, such as a
    conversion a week after its click, are in the log that is written then. Memory does not grow
    with the store.

    Args:
        store: Requests and events.
        schema: Which columns to write; its labels are kinds of events.
        path: File to write.
        window: Which answered requests; of some only their own events are counted.
        attribution_micros: How long after a request its events count; without it labels of old
            requests have waited longer than those of new ones. None: however late they come.

    Raises:
        DataError: No ad was seen, or of the whole store only ads that a user acted on.
        SchemaError: A label is no kind of event, or rows have weights.
        StorageError: The disk is full or the folder cannot be written.
        StoreError: The store cannot be reached.
    """
    for name in _not_events(schema.tasks):
        raise SchemaError(
            f"task {name!r}: must be named as a kind of event to be read from a store, got none of "
            f"{', '.join(_KINDS)}. {_RENAME}, or ingest the store with a schema without the task."
        )
    if schema.roles.weight:
        raise SchemaError(
            f"roles.weight: must be empty to read from a store, which has no weights, got "
            f"{schema.roles.weight!r}. Take it out of the schema."
        )
    join = _Join(schema, attribution_micros)
    with artifacts.disk_errors(path), artifacts.atomic_path(path) as temporary:
        writer: pq.ParquetWriter | None = None
        for table in join.tables(store.joined(window)):
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
        if writer is None:
            raise DataError(
                f"{store.url}: must hold an answered request with an event that names it, got none "
                f"among {store.num_events():,} events{join.advice()}"
            )
        writer.close()
        if window == EVERYTHING:  # of a part they may be missing by chance
            join.check_impressions(store.url)
    return join.report(store.num_events() if window == EVERYTHING else None)


def refresh_warnings(blueprint: Blueprint) -> tuple[str, ...]:
    """Why a store could not be learnt from by the stages of a funnel that learn."""
    tasks: dict[str, Task] = {}
    for stage in blueprint.stages:
        if isinstance(stage.plan, RankerPlan | EarlyStagePlan):
            tasks |= {task.name: task for task in label_tasks(stage.plan.model.spec.tasks)}
    return tuple(
        f"task {name!r}: no event is of this kind ({', '.join(_KINDS)}), so that tamis refresh "
        f"cannot learn from what is stored. {_RENAME}."
        for name in _not_events(tasks.values())
    )


def _not_events(tasks: Iterable[Task]) -> list[str]:
    """Labels that no event tells."""
    return [task.name for task in tasks if task.name not in _KINDS]


class _Join:
    """Rows of a log and their count."""

    def __init__(self, schema: Schema, attribution_micros: int | None) -> None:
        self._schema, self._columns = schema, Columns(schema)
        self._attribution_micros = attribution_micros
        self.late = 0
        self._requests = self._rows = self._not_seen = self._implied = 0
        self._joined_events = self._of_other_ads = 0
        self._positives = dict.fromkeys((task.name for task in schema.tasks), 0)

    def advice(self) -> str:
        """The end of a sentence on events that make no row."""
        if self.late:
            return (
                f", {self.late:,} of which came too late. Let events count for longer after their "
                f"request."
            )
        return ". Send events with the request_id of the answer."

    def check_impressions(self, url: str) -> None:
        """Refuse a log in which a label is always 1, as nobody told of ads without an event."""
        for name, positives in self._positives.items():
            if self._implied == self._rows == positives:
                raise DataError(
                    f"{url}: must hold impression events, without which no row has {name} = 0, got "
                    f"none among {self._joined_events:,} events of answered requests. Send an "
                    f"impression for each ad that a user saw."
                )

    def tables(self, requests: Iterator[JoinedRequest]) -> Iterator[pa.Table]:
        rows: list[dict[str, Any]] = []
        for item in requests:
            rows += self._rows_of(item.request, item.events)
            if len(rows) >= _ROWS_PER_GROUP:
                yield self._table(rows)
                rows = []
        if rows:
            yield self._table(rows)

    def report(self, num_events: int | None) -> JoinReport:
        joined = self._joined_events + self._of_other_ads + self.late
        num_events = joined if num_events is None else num_events
        return JoinReport(
            requests=self._requests,
            rows=self._rows,
            not_seen=self._not_seen,
            implied=self._implied,
            events=num_events,
            of_no_request=num_events - joined,
            of_other_ads=self._of_other_ads,
            late=self.late,
        )

    def _rows_of(
        self, request: ServedRequest, events: tuple[Event, ...]
    ) -> Iterator[dict[str, Any]]:
        by_ad: dict[str, list[Event]] = {}
        for event in events:
            delay = event.time_micros - request.time_micros
            if self._attribution_micros is not None and delay >= self._attribution_micros:
                self.late += 1
            else:
                by_ad.setdefault(event.ad, []).append(event)
        self._requests += 1
        for shown in request.shown:
            found = by_ad.pop(shown.ad, [])
            self._joined_events += len(found)
            if found:
                self._rows += 1
                yield self._row(request, shown, found)
            else:
                self._not_seen += 1
        self._of_other_ads += sum(map(len, by_ad.values()))

    def _row(self, request: ServedRequest, shown: ShownAd, events: list[Event]) -> dict[str, Any]:
        seen = next((event for event in events if event.kind == "impression"), None)
        self._implied += seen is None
        roles, own = self._schema.roles, {} if seen is None else seen.columns
        columns: RawRow = {**request.columns, **shown.columns, **own}
        kinds = {event.kind for event in events}
        for name in self._positives.keys() & kinds:
            self._positives[name] += 1
        ids = {roles.user: request.user, roles.item: shown.ad, roles.request: request.request_id}
        return {
            **columns,
            **{role: value for role, value in ids.items() if role},
            **{task.name: int(task.name in kinds) for task in self._schema.tasks},
            # Of an impression that nobody told, when its ad was asked for.
            _TIME: request.time_micros if seen is None else seen.time_micros,
        }

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        roles = self._schema.roles
        table = self._columns.table(rows)
        for role in (roles.user, roles.item, roles.request):
            if role and role not in table.column_names:
                table = table.append_column(
                    role, pa.array([row[role] for row in rows], pa.string())
                )
        for task in self._schema.tasks:
            labels = pa.array([row[task.name] for row in rows], pa.int8())
            table = table.append_column(task.name, labels)
        if roles.time:
            times = pa.array([row[_TIME] for row in rows], _STAMP)
            if roles.time in table.column_names:
                table = table.drop_columns(roles.time)
            table = table.append_column(roles.time, times)
        return table
