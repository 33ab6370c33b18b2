"""A store of each kind of database, and records that a test varies."""

import asyncio
import glob
import os
import shutil
import subprocess
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tamis import api
from tamis.data.vocabulary import Vocabulary
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.funnel.online import OnlineFeatures
from tamis.serving.answers import Answer, Query
from tamis.serving.engine import Engine, EngineSettings
from tamis.serving.records import Event, ServedRequest, ShownAd, StoredAd
from tamis.serving.store import Store

JANUARY = 1_704_067_200_000_000


class Postgres:
    """A server of its own, reached through a socket in its folder."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        self._run(
            "initdb", "--username=postgres", "--auth=trust", "--no-sync", str(folder / "data")
        )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def start(self) -> None:
        # The clients are killed here, never the machine: nothing needs to reach the disk.
        options = f"-c fsync=off -c listen_addresses='' -c unix_socket_directories='{self._folder}'"
        log = str(self._folder / "log")
        self._run(
            "pg_ctl", "-D", str(self._folder / "data"), "-l", log, "-o", options, "-w", "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "fast", "-w", "stop")

    def new_database(self, name: str) -> str:
        self._run("createdb", "--host", str(self._folder), "--username", "postgres", name)
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    initdb = found[-1] if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL's initdb is not installed: apt-get install postgresql")
    # It refuses to run as root, and must reach its folder, which those of pytest do not let it.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="tamis-postgres-"))
    try:
        if user is not None:
            try:
                shutil.chown(folder, user)
            except LookupError:
                pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres'")
        server = Postgres(Path(initdb).parent, folder, user)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database(f"t{abs(hash(str(tmp_path)))}")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def make_event() -> Callable[..., Event]:
    usual = Event(
        event_id="e",
        kind="click",
        ad="7",
        user="u",
        request_id="r",
        time_micros=JANUARY,
    )

    def make(event_id: str, **changes: Any) -> Event:
        return replace(usual, event_id=event_id, **changes)

    return make


@pytest.fixture
def make_served() -> Callable[..., ServedRequest]:
    usual = ServedRequest(
        request_id="r",
        user="u",
        time_micros=JANUARY,
        release="f" * 64,
        columns={"device": "phone", "past": ["1", "2"], "visits": 3.0, "age": None},
        shown=(ShownAd(ad="7", columns={"price": 1.5}), ShownAd(ad="8", columns={"price": 2})),
    )

    def make(request_id: str, **changes: Any) -> ServedRequest:
        return replace(usual, request_id=request_id, **changes)

    return make


@pytest.fixture
def make_ad() -> Callable[..., StoredAd]:
    usual = StoredAd(
        ad="7", columns={"brand": "ö", "words": ["a"]}, bid=1 / 3, billing="click", advertiser="x"
    )

    def make(ad: str, **changes: Any) -> StoredAd:
        return replace(usual, ad=ad, **changes)

    return make


@pytest.fixture(scope="session")
def bundles(market_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two bundles of the simulated market, ``first`` and ``second``."""
    folder = tmp_path_factory.mktemp("bundles")
    recipe = f"""
    [ads]
    log = "{market_world}/market"
    table = "{market_world}/market/ads.parquet"
    bid = "bid_micros"
    bid_unit = 1e-6
    advertiser = "advertiser_id"

    [online]
    histories = [{{group = "history", event = "click"}}]
    counters = [{{field = "user_requests", counts = "request"}}]

    [[stages]]
    name = "popular"
    kind = "popularity"
    keep = 60

    [[stages]]
    name = "early"
    kind = "early"
    run = "{market_world}/early"
    keep = 20

    [[stages]]
    name = "final"
    kind = "ranker"
    run = "{market_world}/final"
    keep = 8
    """
    for name, reserve in (("first", 0.0), ("second", 1e-6)):
        (folder / "funnel.toml").write_text(f"reserve = {reserve}\n{textwrap.dedent(recipe)}")
        api.publish(folder / "funnel.toml", folder / name)
    return folder


@pytest.fixture
def make_hashed(bundles: Path) -> Callable[[str], Bundle]:
    """The second bundle's first stage, with a number's column as a hashed category."""

    def make(name: str) -> Bundle:
        blueprint = read_bundle(bundles / "second").blueprint
        encoders, inventory = blueprint.encoders, blueprint.inventory
        hashed: dict[str, Any] = {
            "kind": "categorical", "encoding": "hashing", "num_buckets": 10,
            "transform": "standardise",
        }  # fmt: skip
        fields = tuple(
            replace(item, **hashed) if item.name == name else item
            for item in encoders.schema.fields
        )
        vocabularies = {**encoders.vocabularies, name: Vocabulary(values=None, num_rows=10)}
        numeric = {key: value for key, value in encoders.numeric.items() if key != name}
        schema = replace(encoders.schema, fields=fields)
        encoders = replace(encoders, schema=schema, vocabularies=vocabularies, numeric=numeric)
        rows = inventory.rows
        if name in rows.numeric:
            numbers = {key: value for key, value in rows.numeric.items() if key != name}
            ids = {**rows.ids, name: np.zeros(len(rows.row), np.int32)}
            inventory = replace(inventory, rows=replace(rows, numeric=numbers, ids=ids))
        changed = replace(
            blueprint,
            encoders=encoders,
            inventory=inventory,
            stages=blueprint.stages[:1],
            online=OnlineFeatures(),
        )
        return Bundle(release="hashed", blueprint=changed)

    return make


class Watched:
    """Remembers what an engine did."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.num_turned_away = 0
        self.num_past_missing = 0

    def answered(self, answer: Answer, *, waited_ms: float, took_ms: float) -> None:
        assert waited_ms >= 0
        assert took_ms > 0
        self.answers.append(answer)

    def turned_away(self) -> None:
        self.num_turned_away += 1

    def past_missing(self) -> None:
        self.num_past_missing += 1


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def make_engine(bundles: Path, tmp_path: Path, watched: Watched) -> Iterator[Callable[..., Engine]]:
    """An engine of the first bundle and of a store on SQLite."""
    opened: list[tuple[Engine, Store]] = []

    def make(name: str = "first", **settings: Any) -> Engine:
        store = Store(f"sqlite:///{tmp_path / 'engine.db'}")
        # Nobody is turned away because the machine is busy.
        chosen = EngineSettings(**({"max_wait_ms": 60_000.0} | settings))
        engine = Engine(read_bundle(bundles / name), store, watched, chosen)
        opened.append((engine, store))
        return engine

    yield make
    for engine, store in opened:
        engine.close()
        store.close()


@pytest.fixture
def make_query() -> Callable[..., Query]:
    usual = Query(
        request_id="q",
        user="3",
        columns={"device": "phone", "age": "25-34"},
        slots=3,
        candidates=None,
        time_micros=JANUARY,
    )

    def make(request_id: str = "q", **changes: Any) -> Query:
        return replace(usual, request_id=request_id, **changes)

    return make


class Client:
    """Calls an ASGI application as if over HTTP; from any thread."""

    def __init__(self, app: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        transport = httpx.ASGITransport(app=app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        call = self._client.request(method, path, **options)
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(120)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> httpx.Response:
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Any) -> httpx.Response:
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", path, **options)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


@pytest.fixture
def call_app() -> Iterator[Callable[[Any], Client]]:
    """A client of an application."""
    clients: list[Client] = []

    def make(app: Any) -> Client:
        clients.append(Client(app))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def start(bundles: Path, tmp_path: Path, start_server: Callable[..., Any]) -> Callable[..., Any]:
    def make(*options: str) -> Any:
        return start_server(bundles / "first", tmp_path, *options)

    return make
