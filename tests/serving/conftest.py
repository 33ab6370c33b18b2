"""A store of each kind of database, and records that a test varies."""

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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
