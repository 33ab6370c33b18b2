"""Ads, answered requests and events in SQLite or PostgreSQL; what it has confirmed, it keeps.

    tamis_store   version of these tables
    ads           ads by id; one that was deleted stays as a row that says so
    events        one row an event, in the order in which they came
    requests      one row a request that was answered, with the columns that it was ranked by
    releases      schema of each bundle that has served
    experiments   and what belongs to them: see ``exposures.py``

Everything that is appended goes through :meth:`Store.append` in one transaction, which has reached
the disk when the call returns.
"""

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tamis.errors import ArtifactError, ConfigError, StoreError
from tamis.evaluation.experiment import UserTotals
from tamis.funnel.online import EventKind
from tamis.serving import exposures
from tamis.serving.records import Event, Experiment, RawRow, ServedRequest, ShownAd, StoredAd

STORE_VERSION = 1
_ROWS_PER_PAGE = 500
_BUSY_MS = 10_000
# Without limits a lock that is never given back, or a network that swallows what is sent, would
# hold up the thread that writes for ever.
_POSTGRES = {
    "connect_timeout": 5,
    "tcp_user_timeout": _BUSY_MS,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "options": f"-c lock_timeout={_BUSY_MS}",
}
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
# The number of PostgreSQL's lock is ours alone, and otherwise without meaning.
_LOCK = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(7461696)"}

_tables = sa.MetaData()
_versions = sa.Table("tamis_store", _tables, sa.Column("version", sa.Integer, primary_key=True))
_ads = sa.Table(
    "ads",
    _tables,
    sa.Column("ad_id", sa.Text, primary_key=True),
    sa.Column("is_deleted", sa.Boolean, nullable=False),
    sa.Column("columns", sa.Text, nullable=False),
    sa.Column("bid", sa.Double, nullable=False),
    sa.Column("billing", sa.Text, nullable=False),
    sa.Column("advertiser", sa.Text, nullable=False),
    sa.Column("quality", sa.Double, nullable=False),
    sa.Column("popularity", sa.Double),
)
_events = sa.Table(
    "events",
    _tables,
    sa.Column("number", exposures.NUMBER, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("ad_id", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("time_micros", sa.BigInteger, nullable=False),
    sa.Column("columns", sa.Text, nullable=False),
    sa.Column("ad_columns", sa.Text, nullable=False),
    sa.Index("events_of_user", "user_id", "kind", "number"),
    sa.Index("events_of_request", "request_id"),
)
_requests = sa.Table(
    "requests",
    _tables,
    sa.Column("number", exposures.NUMBER, primary_key=True, autoincrement=True),
    sa.Column("request_id", sa.Text, nullable=False, unique=True),
    sa.Column("user_id", sa.Text),
    sa.Column("time_micros", sa.BigInteger, nullable=False),
    sa.Column("release", sa.Text, nullable=False),
    sa.Column("columns", sa.Text, nullable=False),
    sa.Column("shown", sa.Text, nullable=False),
    sa.Index("requests_of_user", "user_id"),
)
_releases = sa.Table(
    "releases",
    _tables,
    sa.Column("number", exposures.NUMBER, primary_key=True, autoincrement=True),
    sa.Column("release", sa.Text, nullable=False, unique=True),
    sa.Column("schema", sa.Text, nullable=False),
)

# Built once: making such a statement takes three times as long as its answer.
_COUNTS = sa.union_all(
    sa.select(_events.c.kind, sa.func.count())
    .where(_events.c.user_id == sa.bindparam("user"))
    .group_by(_events.c.kind),
    sa.select(sa.literal("request"), sa.func.count()).where(
        _requests.c.user_id == sa.bindparam("user")
    ),
)
_NEWEST = (
    sa.select(_events)
    .where(_events.c.user_id == sa.bindparam("user"), _events.c.kind == sa.bindparam("kind"))
    .order_by(_events.c.number.desc())
    .limit(sa.bindparam("limit"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Answered requests by their number, in the order in which they were answered."""

    after: int = 0
    """The last one before the window; 0: it begins with the first."""
    until: int | None = None
    """The last one in it; None: whatever is the last."""


EVERYTHING = Window()
"""All answered requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedRequest:
    """A request that was answered, with every event that names it."""

    request: ServedRequest
    """The request."""
    events: tuple[Event, ...]
    """In the order in which they came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What an append found new."""

    requests: list[bool]
    """For each request whether its id was not known."""
    events: list[bool]
    """For each event whether its id was not known."""


class Store:
    """Ads and events; every method may be called from any thread.

    SQLite keeps its write-ahead log in step with the disk at every commit; PostgreSQL does so by
    default. Errors of the database name neither values nor users.
    """

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        """Open a store, and make its tables where there are none.

        Args:
            url: ``sqlite:///file.db``, or ``postgresql://user:password@host/database``.
            must_exist: Refuse a file that is not there, as whoever reads needs one; else it is
                made.

        Raises:
            ArtifactError: The store is of another version, or its file must exist and does not.
            ConfigError: The URL is none that this store knows.
            StoreError: The database cannot be reached or written, or the file is no database.
        """
        parsed = _parsed(url)
        # What stands behind the question mark may be a password too.
        self.url = parsed.set(query={}).render_as_string(hide_password=True)
        self._is_sqlite = parsed.get_backend_name() == "sqlite"
        if must_exist and self._is_sqlite and not Path(str(parsed.database)).exists():
            raise ArtifactError(
                f"{self.url}: must be a store that a server has kept, got no file "
                f"{parsed.database}. Check the path; four slashes begin an absolute one."
            )
        # A connection that the server dropped is found out before it is used; a file drops none.
        self._engine = sa.create_engine(
            parsed,
            hide_parameters=True,
            pool_pre_ping=not self._is_sqlite,
            # What the URL says goes before.
            connect_args={}
            if self._is_sqlite
            else {name: value for name, value in _POSTGRES.items() if name not in parsed.query},
        )
        if self._is_sqlite:
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
        with self._errors():
            self._create()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def append(self, requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        """Write answered requests and events, all or none; on return they are on the disk.

        A request or event whose id is known already is left as it was first told.

        Raises:
            StoreError: The database cannot be reached or written; nothing was changed, unless the
                connection was lost at the very end. What is told again is not written twice.
        """
        with self._errors(), self._engine.begin() as connection:
            rows = [_row_of(request) for request in requests]
            new_requests = self._insert(connection, _requests, "request_id", rows)
            rows = [_row_of_event(event) for event in events]
            new_events = self._insert(connection, _events, "event_id", rows)
            is_new = _first_of_each([item.request_id for item in requests], new_requests)
            exposures.expose(connection, list(itertools.compress(requests, is_new)))
        return Appended(
            requests=is_new,
            events=_first_of_each([item.event_id for item in events], new_events),
        )

    def put_ad(self, ad: StoredAd) -> None:
        """Add an ad, or replace it.

        Raises:
            StoreError: The database cannot be reached or written.
        """
        self._put(
            {
                "ad_id": ad.ad,
                "is_deleted": False,
                "columns": _text(ad.columns),
                "bid": ad.bid,
                "billing": ad.billing,
                "advertiser": ad.advertiser or "",
                "quality": ad.quality,
                "popularity": ad.popularity,
            }
        )

    def delete_ad(self, ad: str) -> None:
        """Remember that an ad must not be shown, whether or not a bundle holds it.

        Raises:
            StoreError: The database cannot be reached or written.
        """
        self._put(
            {
                "ad_id": ad,
                "is_deleted": True,
                "columns": "{}",
                "bid": 0.0,
                "billing": "click",
                "advertiser": "",
                "quality": 0.0,
                "popularity": None,
            }
        )

    def ads(self, only: str | None = None) -> dict[str, StoredAd | None]:
        """Ads that were put in, by id; None for those that were deleted.

        Args:
            only: Look at the ad of this id alone; None: at all.

        Raises:
            StoreError: The database cannot be reached.
        """
        query = sa.select(_ads).order_by(_ads.c.ad_id)
        if only is not None:
            query = query.where(_ads.c.ad_id == only)
        with self._errors(), self._engine.connect() as connection:
            rows = connection.execute(query)
            return {row.ad_id: None if row.is_deleted else _ad_of(row) for row in rows}

    def last_events(self, user: str, kind: EventKind, limit: int) -> list[Event]:
        """The newest events of a user, oldest first.

        Raises:
            StoreError: The database cannot be reached.
        """
        with self._errors(), self._engine.connect() as connection:
            found = connection.execute(_NEWEST, {"user": user, "kind": kind, "limit": limit})
            return [_event_of(row) for row in found][::-1]

    def counts(self, user: str) -> dict[str, int]:
        """How many events of each kind a user has, and how many answered requests (``request``).

        Raises:
            StoreError: The database cannot be reached.
        """
        with self._errors(), self._engine.connect() as connection:
            found = connection.execute(_COUNTS, {"user": user})
            return {kind: int(count) for kind, count in found}

    def num_events(self) -> int:
        """How many events there are.

        Raises:
            StoreError: The database cannot be reached.
        """
        with self._errors(), self._engine.connect() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(_events))
            return int(count.scalar_one())

    def joined(self, window: Window = EVERYTHING) -> Iterator[JoinedRequest]:
        """Every answered request of a window, in the order in which they were, with its events.

        Memory does not grow with the store.

        Raises:
            StoreError: The database cannot be reached.
        """
        last = window.after
        while True:
            page = (
                sa.select(_requests)
                .where(*_inside(replace(window, after=last)))
                .order_by(_requests.c.number)
                .limit(_ROWS_PER_PAGE)
            )
            with self._errors(), self._engine.connect() as connection:
                requests = connection.execute(page).all()
                of_page = (
                    sa.select(_events)
                    .where(_events.c.request_id.in_([row.request_id for row in requests]))
                    .order_by(_events.c.number)
                )
                events: dict[str, list[Event]] = {}
                for row in connection.execute(of_page):
                    events.setdefault(row.request_id, []).append(_event_of(row))
            if not requests:
                return
            for row in requests:
                found = tuple(events.get(row.request_id, ()))
                yield JoinedRequest(request=_request_of(row), events=found)
            last = requests[-1].number

    def requests_with_events(self, window: Window, *, before_micros: int) -> NDArray[np.int64]:
        """Numbers of the answered requests of a window that an event names, in their order.

        Args:
            window: Which requests.
            before_micros: Requests that were asked at this time or later are left out, and all that
                were answered after the first of them.

        Raises:
            StoreError: The database cannot be reached.
        """
        late = sa.select(sa.func.min(_requests.c.number)).where(
            _requests.c.time_micros >= before_micros, *_inside(window)
        )
        named = sa.exists().where(_events.c.request_id == _requests.c.request_id)
        with self._errors(), self._engine.connect() as connection:
            first_late = connection.execute(late).scalar_one_or_none()
            query = sa.select(_requests.c.number).where(named, *_inside(window))
            if first_late is not None:
                query = query.where(_requests.c.number < first_late)
            found = connection.execution_options(yield_per=_ROWS_PER_PAGE).execute(
                query.order_by(_requests.c.number)
            )
            return np.fromiter(found.scalars(), np.int64)

    def put_release(self, release: str, schema: str) -> None:
        """Remember the schema of a bundle that serves; it becomes the newest one.

        Args:
            release: Name of the bundle's contents.
            schema: Text of its ``schema.toml``.

        Raises:
            StoreError: The database cannot be reached or written.
        """
        with self._errors(), self._engine.begin() as connection:
            connection.execute(sa.delete(_releases).where(_releases.c.release == release))
            connection.execute(sa.insert(_releases).values(release=release, schema=schema))

    def newest_schema(self) -> str | None:
        """Text of the schema of the bundle that began to serve last; None where none has.

        Raises:
            StoreError: The database cannot be reached.
        """
        query = sa.select(_releases.c.schema).order_by(_releases.c.number.desc()).limit(1)
        with self._errors(), self._engine.connect() as connection:
            found: str | None = connection.execute(query).scalar_one_or_none()
            return found

    def put_experiment(self, item: Experiment) -> bool:
        """Remember an experiment that begins.

        Returns:
            Whether its id is new; else nothing was changed.

        Raises:
            StoreError: The database cannot be reached or written.
        """
        with self._errors(), self._engine.begin() as connection:
            rows = [exposures.row_of(item)]
            return bool(self._insert(connection, exposures.experiments, "experiment", rows))

    def end_experiment(self, name: str, *, now_micros: int) -> None:
        """Remember that an experiment has ended, if it has not before.

        Raises:
            StoreError: The database cannot be reached or written.
        """
        table = exposures.experiments
        mine = (table.c.experiment == name) & table.c.ended_micros.is_(None)
        with self._errors(), self._engine.begin() as connection:
            connection.execute(sa.update(table).where(mine).values(ended_micros=now_micros))

    def experiments(self) -> list[Experiment]:
        """Every experiment, oldest first.

        Raises:
            StoreError: The database cannot be reached.
        """
        query = sa.select(exposures.experiments).order_by(exposures.experiments.c.number)
        with self._errors(), self._engine.connect() as connection:
            return [exposures.experiment_of(row) for row in connection.execute(query)]

    def totals(self, item: Experiment, *, now_micros: int) -> UserTotals:
        """Sums of every user that was exposed to an experiment.

        Raises:
            StoreError: The database cannot be reached.
        """
        with self._errors(), self._engine.connect() as connection:
            return exposures.totals_of(connection, _events, item, now_micros=now_micros)

    def _create(self) -> None:
        with self._engine.begin() as connection:
            # Else two servers that start at once would both find no tables.
            connection.exec_driver_sql(_LOCK[self._engine.dialect.name])
            _tables.create_all(connection)
            # Stores of this version that have none yet are given them.
            exposures.TABLES.create_all(connection)
            version = connection.execute(sa.select(_versions.c.version)).scalar_one_or_none()
            if version is None:
                connection.execute(sa.insert(_versions).values(version=STORE_VERSION))
            elif version != STORE_VERSION:
                raise ArtifactError(
                    f"{self.url}: must be a store of version {STORE_VERSION}, got {version}. Use "
                    f"the tamis that made it, or name another store."
                )

    def _insert(
        self, connection: sa.Connection, table: sa.Table, key: str, rows: list[dict[str, Any]]
    ) -> set[str]:
        """Insert rows whose key is not there, and give the keys of those that were inserted."""
        if not rows:
            return set()
        insert = sqlite.insert if self._is_sqlite else postgresql.insert
        statement = insert(table).on_conflict_do_nothing(index_elements=[key])
        # As one text with a list of rows, which is compiled once and cut to the database's limits.
        inserted = connection.execute(statement.returning(table.c[key]), rows)
        return set(inserted.scalars())

    def _put(self, row: Mapping[str, Any]) -> None:
        insert = (sqlite.insert if self._is_sqlite else postgresql.insert)(_ads).values(**row)
        changed = {name: insert.excluded[name] for name in row if name != "ad_id"}
        with self._errors(), self._engine.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["ad_id"], set_=changed))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise StoreError(
                f"{self.url}: must be a store that can be reached and written, got "
                f"{_said(error)}. Check the address, the disk and the database's own log."
            ) from error


def _inside(window: Window) -> list[sa.ColumnElement[bool]]:
    """Conditions of the requests of a window."""
    number = _requests.c.number
    return [number > window.after, *([] if window.until is None else [number <= window.until])]


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        parsed = None
    backend = "" if parsed is None else parsed.get_backend_name()
    if parsed is None or backend not in _DRIVERS:
        raise ConfigError(
            f"store: must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE, got "
            f"{f'the kind {backend!r}' if backend else 'no URL'}. Name one of the two."
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            "store: must be a file, got a database in memory, which keeps nothing. Name a file as "
            "sqlite:///FILE."
        )
    return parsed.set(drivername=_DRIVERS[backend])


def _set_up_sqlite(connection: Any, record: object) -> None:  # noqa: ANN401
    del record
    cursor = connection.cursor()
    # First of all, since setting the journal takes a lock itself.
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    # In this mode the default leaves the last commits to the operating system.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _said(error: SQLAlchemyError) -> str:
    """What went wrong, without values: PostgreSQL quotes those of a row that it refuses."""
    cause = getattr(error, "orig", None)
    if cause is None:
        return type(error).__name__
    if isinstance(error, sa.exc.OperationalError) or isinstance(cause, sqlite3.Error):
        return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
    return type(cause).__name__


def _first_of_each(ids: Sequence[str], new: set[str]) -> list[bool]:
    """Whether each id is new; of one that stands twice the first counts."""
    left, found = set(new), []
    for name in ids:
        found.append(name in left)
        left.discard(name)
    return found


def _text(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _row_of(request: ServedRequest) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "user_id": request.user,
        "time_micros": request.time_micros,
        "release": request.release,
        "columns": _text(request.columns),
        "shown": _text([[shown.ad, shown.columns] for shown in request.shown]),
    }


def _request_of(row: Any) -> ServedRequest:  # noqa: ANN401  (a row of any table)
    return ServedRequest(
        request_id=row.request_id,
        user=row.user_id,
        time_micros=row.time_micros,
        release=row.release,
        columns=_read(row.columns),
        shown=tuple(ShownAd(ad=ad, columns=columns) for ad, columns in json.loads(row.shown)),
    )


def _row_of_event(event: Event) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "kind": event.kind,
        "ad_id": event.ad,
        "user_id": event.user,
        "request_id": event.request_id,
        "time_micros": event.time_micros,
        "columns": _text(event.columns),
        "ad_columns": _text(event.ad_columns),
    }


def _event_of(row: Any) -> Event:  # noqa: ANN401
    return Event(
        event_id=row.event_id,
        kind=row.kind,
        ad=row.ad_id,
        user=row.user_id,
        request_id=row.request_id,
        time_micros=row.time_micros,
        columns=_read(row.columns),
        ad_columns=_read(row.ad_columns),
    )


def _ad_of(row: Any) -> StoredAd:  # noqa: ANN401
    return StoredAd(
        ad=row.ad_id,
        columns=_read(row.columns),
        bid=row.bid,
        billing=row.billing,
        advertiser=row.advertiser or None,
        quality=row.quality,
        popularity=row.popularity,
    )


def _read(text: str) -> RawRow:
    found: RawRow = json.loads(text)
    return found
