"""The store: what is confirmed stays, once; on SQLite and on PostgreSQL, killed or not."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.errors import ArtifactError, ConfigError, StoreError
from tamis.serving.records import Event, ServedRequest, StoredAd
from tamis.serving.store import Appended, Store, Window


def test_what_was_written_is_read_back(
    store: Store,
    store_url: str,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
) -> None:
    served, event = (
        make_served("r"),
        make_event("a", columns={"position": 2}, ad_columns={"b": "ö"}),
    )
    assert store.append([served], [event]) == Appended(requests=[True], events=[True])

    again = Store(store_url)
    (found,) = again.joined()
    again.close()

    assert found.request == served
    assert found.events == (event,)


def test_known_ids_stay_as_they_were_first_told(
    store: Store,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
) -> None:
    store.append([make_served("r")], [make_event("a"), make_event("b")])

    new = store.append(
        [make_served("r", user="other"), make_served("s")],
        [make_event("b", ad="9"), make_event("c"), make_event("c", ad="9")],
    )

    assert new == Appended(requests=[False, True], events=[False, True, False])
    assert store.num_events() == 3
    assert [event.ad for event in store.last_events("u", "click", 9)] == ["7", "7", "7"]
    assert [item.request.user for item in store.joined()] == ["u", "u"]


def test_more_rows_than_one_statement_takes(
    store: Store, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    requests = [make_served(f"r{k}") for k in range(1203)]
    events = [make_event(f"e{k}", request_id=f"r{k // 2}") for k in range(2405)]

    assert all(store.append(requests, events).events)

    found = list(store.joined())
    assert [item.request.request_id for item in found] == [f"r{k}" for k in range(1203)]
    assert [event.event_id for item in found for event in item.events] == [
        f"e{k}" for k in range(2405)
    ]


def test_last_events_are_the_users_newest_of_a_kind(
    store: Store, make_event: Callable[..., Event]
) -> None:
    # In the order in which they came, not that of their clocks.
    times = [50, 40, 60, 10, 20]
    store.append(
        [],
        [make_event(f"e{k}", ad=str(k), time_micros=when) for k, when in enumerate(times)]
        + [make_event("other", user="v"), make_event("hidden", kind="hide")],
    )

    assert [event.ad for event in store.last_events("u", "click", 3)] == ["2", "3", "4"]
    assert [event.event_id for event in store.last_events("u", "hide", 3)] == ["hidden"]
    assert store.last_events("nobody", "click", 3) == []


def test_counts_are_those_of_the_user(
    store: Store, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    store.append(
        [make_served("r"), make_served("s"), make_served("t", user=None)],
        [make_event("a"), make_event("b"), make_event("c", kind="hide"), make_event("d", user="v")],
    )

    assert store.counts("u") == {"click": 2, "hide": 1, "request": 2}
    assert store.counts("v") == {"click": 1, "request": 0}


def test_ads_are_replaced_and_their_deletion_remembered(
    store: Store, make_ad: Callable[..., StoredAd]
) -> None:
    store.put_ad(make_ad("7"))
    store.put_ad(make_ad("8", popularity=4.5))
    store.put_ad(make_ad("7", bid=2.0, columns={}))
    store.delete_ad("8")
    store.delete_ad("bundles")

    assert store.ads() == {"7": make_ad("7", bid=2.0, columns={}), "8": None, "bundles": None}
    store.put_ad(make_ad("8", advertiser=None))
    assert store.ads("8") == {"8": make_ad("8", advertiser=None)}
    assert store.ads("9") == {}


def test_newest_schema_is_that_of_the_bundle_that_began_last(store: Store) -> None:
    assert store.newest_schema() is None
    for release in ("a", "b", "a"):
        store.put_release(release, f"schema of {release}")

    assert store.newest_schema() == "schema of a"


def test_nothing_of_a_refused_append_stays(
    store: Store, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    broken = make_event("b", kind=None)

    with pytest.raises(StoreError, match=r"must be a store that can be reached and written") as got:
        store.append([make_served("secret")], [make_event("a"), broken])

    assert "secret" not in str(got.value)
    assert store.num_events() == 0
    assert list(store.joined()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/db", r"must be sqlite:///FILE or postgresql://.*, got the kind 'mysql'"),
        ("store.db", r"must be sqlite:///FILE or .*, got no URL"),
        ("sqlite://", r"must be a file, got a database in memory"),
    ],
)
def test_url_of_another_kind_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Store(url)


@pytest.mark.parametrize("url", ["//me:secret@127.0.0.1:1/none",
                                 "//me:x@127.0.0.1:1/none?password=secret"])  # fmt: skip
def test_password_is_in_no_message(url: str) -> None:
    with pytest.raises(StoreError, match=r"postgresql\+psycopg://me:\*\*\*@") as got:
        Store(f"postgresql:{url}")
    assert "secret" not in str(got.value)


def test_store_of_another_version_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    Store(url).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE tamis_store SET version = 99")

    with pytest.raises(ArtifactError, match=r"must be a store of version 1, got 99"):
        Store(url)


def test_other_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" * 200)

    with pytest.raises(StoreError, match=r"file is not a database"):
        Store(f"sqlite:///{tmp_path / 'log.csv'}")


def test_full_disk_is_an_error_and_what_was_there_stays(
    tmp_path: Path, make_event: Callable[..., Event]
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    store.append([], [make_event("a")])
    pages = [connection.execute("PRAGMA page_count").fetchone()[0]
             for connection in [sqlite3.connect(tmp_path / "store.db")]]  # fmt: skip
    with store._engine.connect() as connection:  # what a full disk says, without filling one
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages[0]}")

    with pytest.raises(StoreError, match=r"database or disk is full"):
        store.append([], [make_event(f"b{k}", ad="x" * 500) for k in range(400)])

    assert store.num_events() == 1
    store.close()


_WRITER = """
import os, sys
from tamis.serving.records import Event
from tamis.serving.store import Store
url, name = sys.argv[1:]
store = Store(url)
os.write(1, b"ready\\n")
number = 0
while True:
    ids = [f"{name}-{number + k}" for k in range(1 + number % 7)]
    number += len(ids)
    events = [Event(event_id=i, kind="click", ad="7", user="u", request_id=None, time_micros=1)
              for i in ids]
    # Written before the call, so that what is on the way at the kill is known too.
    os.write(2, ("".join(f"{i}\\n" for i in ids)).encode())
    store.append([], events)
    os.write(1, ("".join(f"{i}\\n" for i in ids)).encode())
"""


def _kill_writer_over_and_over(url: str, folder: Path, rounds: int) -> None:
    generator = np.random.default_rng(0)
    store = Store(url)
    confirmed: set[str] = set()
    sent: set[str] = set()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(rounds):
        told, tried = folder / f"told-{number}", folder / f"tried-{number}"
        with told.open("wb") as out, tried.open("wb") as err:
            writer = subprocess.Popen(
                [sys.executable, "-c", _WRITER, url, str(number)],
                stdout=out, stderr=err, env=environment,
            )  # fmt: skip
            while not told.read_text():
                assert writer.poll() is None, tried.read_text()
                time.sleep(0.005)
            time.sleep(generator.uniform(0.0, 0.3))
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
        confirmed |= set(told.read_text().split()) - {"ready"}
        again = sorted(set(tried.read_text().split()))
        sent.update(again)
        # A server of its own may still end the transaction that the killed writer sent, between
        # two reads of ours: what was read counts once nothing came in meanwhile.
        counted = -1
        while counted != store.num_events():
            counted = store.num_events()
            stored = [event.event_id for event in store.last_events("u", "click", 10**9)]
        assert len(stored) == len(set(stored)) == counted
        assert confirmed <= set(stored) <= sent
        # Whoever got no answer sends again: nothing is there twice.
        store.append([], [
            Event(event_id=i, kind="click", ad="7", user="u", request_id=None, time_micros=1)
            for i in again
        ])  # fmt: skip
        assert store.num_events() == len(sent)
    assert len(confirmed) > rounds
    store.close()


@pytest.mark.slow
def test_writer_that_is_killed_loses_nothing_it_confirmed(store_url: str, tmp_path: Path) -> None:
    _kill_writer_over_and_over(store_url, tmp_path, rounds=3)


@pytest.mark.slow(seconds=90)
@pytest.mark.timeout(1800)
def test_writer_that_is_killed_fifty_times_loses_nothing(store_url: str, tmp_path: Path) -> None:
    _kill_writer_over_and_over(store_url, tmp_path, rounds=50)


def test_postgres_that_stops_is_an_error_and_serves_again(
    postgres: Any, make_event: Callable[..., Event]
) -> None:
    store = Store(postgres.new_database("stops"))
    store.append([], [make_event("a")])

    postgres.stop()
    with pytest.raises(StoreError, match=r"must be a store that can be reached"):
        store.append([], [make_event("b")])
    postgres.start()

    assert store.append([], [make_event("a"), make_event("b")]).events == [False, True]
    store.close()


def test_table_that_stays_locked_is_an_error_and_not_a_hang(
    postgres: Any, make_event: Callable[..., Event]
) -> None:
    url = postgres.new_database("locked")
    other = Store(url)
    with other._engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "10s"
    # Or the test would wait as long.
    store = Store(f"{url}&options=-c lock_timeout=200")

    with other._engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreError, match=r"lock|LockNotAvailable"):
            store.append([], [make_event("a")])

    assert store.append([], [make_event("a")]).events == [True]
    store.close()
    other.close()


def test_window_holds_requests_by_their_number(
    store: Store, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    served = [make_served(name, time_micros=100 + place) for place, name in enumerate("abcdef")]
    events = [make_event(name, request_id=name) for name in "abdef"]
    store.append(served, [*events, make_event("of nothing", request_id="x")])
    store.append([], [make_event("once more", request_id="d")])

    inside = [item.request.request_id for item in store.joined(Window(after=1, until=4))]
    assert inside == ["b", "c", "d"]
    assert [len(item.events) for item in store.joined(Window(after=2, until=4))] == [0, 2]
    assert [item.request.request_id for item in store.joined(Window(after=5))] == ["f"]

    def numbers(window: Window, before_micros: int = 1000) -> list[int]:
        return store.requests_with_events(window, before_micros=before_micros).tolist()

    assert numbers(Window()) == [1, 2, 4, 5, 6]
    assert numbers(Window(after=1, until=5)) == [2, 4, 5]
    # The request of time 103 and all after it wait, whatever their own times.
    assert numbers(Window(), before_micros=103) == [1, 2]
    store.append([make_served("late", time_micros=50)], [make_event("l", request_id="late")])
    assert numbers(Window(), before_micros=103) == [1, 2]
    assert numbers(Window(), before_micros=0) == []
