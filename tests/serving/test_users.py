"""Pasts of users: always what the store would say, and the columns that come of them."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import ConfigError, StoreError
from tamis.funnel.online import Counter, History, OnlineFeatures
from tamis.serving.records import Event, ServedRequest
from tamis.serving.store import Store
from tamis.serving.users import OnlineColumns, Past, Users

SCHEMA = Schema(
    fields=(
        Field(name="ad", kind="categorical", column="ad_id", side="item"),
        Field(name="brand", kind="categorical", side="item"),
        Field(name="past", kind="sequence", side="user", shares="ad", group="g", max_length=2),
        Field(name="brands", kind="sequence", side="user", shares="brand", group="g", max_length=2),
        Field(name="hidden", kind="sequence", side="user", shares="brand", column="hid"),
        Field(name="visits", kind="numeric", side="user", column="num_visits"),
        Field(name="clicks", kind="numeric", side="user"),
    ),
    tasks=(Task(name="click"),),
    roles=Roles(item="ad_id"),
)
ONLINE = OnlineFeatures(
    histories=(History(group="g"), History(group="hidden", event="hide")),
    counters=(Counter(field="visits", counts="request"), Counter(field="clicks", counts="click")),
)


@pytest.fixture
def users(store: Store) -> Users:
    found = Users(store)
    found.keep(OnlineColumns(ONLINE, SCHEMA).lengths)
    return found


def test_columns_hold_what_the_last_events_ads_were(make_event: Callable[..., Event]) -> None:
    clicks = [
        make_event(str(k), ad=f"a{k}", ad_columns={"brand": None if k == 2 else f"b{k}"})
        for k in range(4)
    ]
    hides = (make_event("h", ad="a9", ad_columns={}),)
    past = Past(counts={"request": 3, "click": 5}, events={"click": tuple(clicks), "hide": hides})

    columns = OnlineColumns(ONLINE, SCHEMA)

    # The last two clicks, oldest first; the third ad's brand is missing.
    assert columns.of(past) == {
        "past": ["a2", "a3"],
        "brands": ["", "b3"],
        "hid": [""],
        "num_visits": 3.0,
        "clicks": 5.0,
    }
    assert set(columns.names) == columns.of(past).keys() == columns.of(Past()).keys()
    assert columns.of(Past()) == {
        "past": [], "brands": [], "hid": [], "num_visits": 0.0, "clicks": 0.0
    }  # fmt: skip
    assert columns.lengths == {"click": 2, "hide": 50}


@pytest.mark.parametrize(
    ("value", "expected"), [("7", "7"), (7.0, "7"), (True, "1"), (0.5, "0.5"), (["7"], "")]
)
def test_category_of_an_ad_is_that_of_a_log_whatever_kind_its_column_was(
    make_event: Callable[..., Event], value: Any, expected: str
) -> None:
    past = Past(events={"click": (make_event("e", ad_columns={"brand": value}),)})

    assert OnlineColumns(ONLINE, SCHEMA).of(past)["brands"] == [expected]


def test_past_is_that_of_the_store_before_and_after_it_is_in_memory(
    store: Store,
    users: Users,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
) -> None:
    users.append([make_served("r")], [make_event(f"e{k}", ad=str(k)) for k in range(3)])
    first = users.past("u")
    users.append(
        [make_served("r"), make_served("s")],
        # One is known already, one is another user's, one stands twice.
        [make_event("e0"), make_event("new", ad="9"), make_event("new"), make_event("v", user="v")],
    )

    assert [event.ad for event in first.events["click"]] == ["1", "2"]
    assert first.counts == {"request": 1, "click": 3}
    assert [event.ad for event in users.past("u").events["click"]] == ["2", "9"]
    assert users.past("u").counts == {"request": 2, "click": 4}
    fresh = Users(store)
    fresh.keep({"click": 2, "hide": 50})
    assert fresh.past("u") == users.past("u")
    assert fresh.past("v") == users.past("v")
    assert users.past(None) == Past()


def test_past_is_read_from_the_store_once(
    store: Store, make_event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    users = Users(store, max_users=2)
    reads: list[str] = []
    counts = store.counts
    monkeypatch.setattr(store, "counts", lambda user: (reads.append(user), counts(user))[1])

    for user in ("a", "b", "a", "c", "a", "b"):
        users.past(user)

    # When c came, b was the one asked for longest ago.
    assert reads == ["a", "b", "c", "b"]
    users.keep({"click": 5})
    users.past("a")
    users.keep({"click": 3})
    users.past("a")
    assert reads == ["a", "b", "c", "b", "a"]


@pytest.mark.parametrize("is_written_before_it_is_read", [True, False])
def test_past_that_changes_while_it_is_read_is_not_kept(
    store: Store,
    users: Users,
    make_event: Callable[..., Event],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_written_before_it_is_read: bool,
) -> None:
    counts = store.counts

    def slow_counts(user: str) -> dict[str, int]:
        found = {} if is_written_before_it_is_read else counts(user)
        users.append([], [make_event("meanwhile")])
        return counts(user) if is_written_before_it_is_read else found

    monkeypatch.setattr(store, "counts", slow_counts)
    users.past("u")
    monkeypatch.undo()

    assert users.past("u").counts["click"] == 1
    assert [event.event_id for event in users.past("u").events["click"]] == ["meanwhile"]


def test_past_that_is_read_while_it_changes_is_not_kept(
    store: Store, users: Users, make_event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = store.append

    def append_late(*arguments: object) -> object:
        users.past("u")
        return append(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "append", append_late)
    users.append([], [make_event("e")])

    assert users.past("u").counts["click"] == 1


def test_append_that_fails_changes_nothing(
    store: Store, users: Users, make_event: Callable[..., Event]
) -> None:
    users.append([], [make_event("e")])
    before = users.past("u")

    with pytest.raises(StoreError):
        users.append([], [replace(make_event("f"), kind=None)])  # type: ignore[arg-type]

    assert users.past("u") == before


def test_append_whose_confirmation_is_lost_is_in_the_past_all_the_same(
    store: Store, users: Users, make_event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    users.append([], [make_event("a")])
    users.past("u")
    append = store.append

    def append_and_lose(*arguments: Any) -> None:
        append(*arguments)
        raise StoreError("the connection was lost at the commit")

    monkeypatch.setattr(store, "append", append_and_lose)
    with pytest.raises(StoreError, match="lost at the commit"):
        users.append([], [make_event("b")])
    monkeypatch.undo()

    # Whoever got no answer sends again, and it is known already.
    assert users.append([], [make_event("b")]).events == [False]
    assert users.past("u").counts["click"] == 2
    assert [event.event_id for event in users.past("u").events["click"]] == ["a", "b"]


def test_many_threads_read_what_one_appends(
    store: Store, users: Users, make_event: Callable[..., Event]
) -> None:
    done = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        last = 0
        while not done.is_set():
            count = users.past("u").counts.get("click", 0)
            # What was confirmed is never forgotten again.
            if count < last:
                wrong.append(count)
            last = count

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(60):
        users.append([], [make_event(str(number))])
        users.keep({"click": 3 + number // 20})
    done.set()
    for reader in readers:
        reader.join()

    assert not wrong
    assert users.past("u").counts["click"] == 60
    assert [event.event_id for event in users.past("u").events["click"]] == [
        str(k) for k in range(55, 60)
    ]


def test_number_of_users_out_of_range_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"max_users must be at least 1, got 0"):
        Users(store, max_users=0)
