"""The recorder: in order, together, and without a loss while the store is away."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from tamis.errors import StoreError
from tamis.serving.recorder import Recorder
from tamis.serving.records import Event, ServedRequest
from tamis.serving.store import Appended


class FakeStore:
    """Remembers its transactions; waits where it is told to, and fails where it is told to."""

    def __init__(self) -> None:
        self.written: list[tuple[list[str], list[str]]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.entered = threading.Event()
        self.fails = False

    def append(self, requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        self.entered.set()
        assert self.may_go_on.wait(30)
        if self.fails:
            raise StoreError("the store is away")
        ids = [item.request_id for item in requests], [event.event_id for event in events]
        self.written.append(ids)
        is_new = [event.event_id != "old" for event in events]
        return Appended(requests=[True] * len(requests), events=is_new)


@pytest.fixture
def fake() -> FakeStore:
    return FakeStore()


def test_what_waits_shares_a_transaction_in_its_order(
    fake: FakeStore, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    recorder = Recorder(fake.append)
    fake.may_go_on.clear()
    first = recorder.write([make_event("a")])
    assert fake.entered.wait(30)
    recorder.record(make_served("r"))
    second = recorder.write([make_event("b"), make_event("old")])
    third = recorder.write([make_event("c")])
    assert not first.done()
    fake.may_go_on.set()

    assert third.result(30) == [True]
    assert second.result(30) == [True, False]
    assert first.result(30) == [True]
    assert fake.written == [([], ["a"]), (["r"], ["b", "old", "c"])]
    recorder.close()


def test_events_fail_and_requests_wait_while_the_store_is_away(
    fake: FakeStore, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    recorder = Recorder(fake.append)
    fake.fails = True
    recorder.record(make_served("r"))
    with pytest.raises(StoreError, match="the store is away"):
        recorder.write([make_event("a")]).result(30)
    recorder.record(make_served("s"))

    fake.fails = False
    recorder.write([make_event("a")]).result(30)

    assert [name for requests, _ in fake.written for name in requests] == ["r", "s"]
    assert [name for _, events in fake.written for name in events] == ["a"]
    assert recorder.num_lost == 0
    recorder.close()


def test_unforeseen_failure_ends_nothing(
    fake: FakeStore, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    def append(requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        if any(event.event_id == "odd" for event in events):
            raise ZeroDivisionError
        return fake.append(requests, events)

    recorder = Recorder(append)
    with pytest.raises(ZeroDivisionError):
        recorder.write([make_event("odd")]).result(30)

    assert recorder.write([make_event("a")]).result(30) == [True]
    recorder.close()


@pytest.mark.parametrize("odd", ["r0", "r3", "r4", "e0", "e2", "e4"])
def test_what_cannot_be_written_costs_nothing_that_waited_beside_it(
    fake: FakeStore,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    odd: str,
) -> None:
    def append(requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        names = [item.request_id for item in requests] + [event.event_id for event in events]
        if odd in names and fake.may_go_on.wait(30):
            raise ZeroDivisionError
        return fake.append(requests, events)

    recorder = Recorder(append)
    fake.may_go_on.clear()
    first = recorder.write([make_event("first")])
    assert fake.entered.wait(30)
    for number in range(5):
        recorder.record(make_served(f"r{number}"))
    futures = {
        f"e{number}": recorder.write([make_event(f"e{number}"), make_event("old")])
        for number in range(5)
    }
    fake.may_go_on.set()

    assert first.result(30) == [True]
    for name, future in futures.items():
        if name == odd:
            with pytest.raises(ZeroDivisionError):
                future.result(30)
        else:
            assert future.result(30) == [True, False]
    recorder.close()
    # In their order, and all requests before the events, which may name them.
    written = [name for requests, events in fake.written for name in (*requests, *events)]
    expected = ["first", *(f"r{k}" for k in range(5)), *(f"e{k}" for k in range(5))]
    assert [name for name in written if name != "old"] == [n for n in expected if n != odd]
    assert recorder.num_lost == odd.startswith("r")


def test_failure_of_everything_is_not_tried_for_each_and_said_twice(
    fake: FakeStore,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []

    def append(requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        if not calls:
            assert fake.may_go_on.wait(30)
        calls.append(len(requests))
        raise ZeroDivisionError

    recorder = Recorder(append)
    fake.may_go_on.clear()
    for number in range(1000):
        recorder.record(make_served(str(number)))
    event = recorder.write([make_event("a")])
    fake.may_go_on.set()

    with pytest.raises(ZeroDivisionError):
        event.result(30)
    recorder.close()
    # Each of the few that are traced takes ten halvings at most, and so do those that are left.
    assert len(calls) < 400
    assert recorder.num_lost == 1000
    first, _, whole, last = caplog.messages
    assert first == "a request or a caller's events could not be recorded: ZeroDivisionError"
    assert whole.startswith("more than 16 could not be recorded in one write, and what fails")
    assert last == "answered requests that are in no store: 1000 in all"


def test_store_that_goes_away_meanwhile_keeps_what_is_not_written_yet(
    fake: FakeStore, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    def append(requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        if len(requests) > 1 or (requests and requests[0].request_id == "odd"):
            raise ZeroDivisionError
        found = fake.append(requests, events)
        fake.fails = True
        return found

    recorder = Recorder(append)
    for name in ("r", "odd", "s"):
        recorder.record(make_served(name))
    with pytest.raises(StoreError, match="the store is away"):
        recorder.write([make_event("a")]).result(30)
    assert fake.written == [(["r"], [])]

    fake.fails = False
    recorder.close()

    assert fake.written == [(["r"], []), (["s"], [])]
    assert recorder.num_lost == 1


def test_who_no_longer_waits_is_written_for_and_not_told(
    fake: FakeStore, make_event: Callable[..., Event]
) -> None:
    recorder = Recorder(fake.append)
    fake.may_go_on.clear()
    first = recorder.write([make_event("a")])
    assert fake.entered.wait(30)
    # As when a client has gone: the one is on its way already, the other not yet.
    assert not first.cancel()
    assert recorder.write([make_event("b"), make_event("c")]).cancel()
    last = recorder.write([make_event("old"), make_event("d")])
    fake.may_go_on.set()

    assert last.result(30) == [False, True]
    assert fake.written == [([], ["a"]), ([], ["b", "c", "old", "d"])]
    recorder.close()


def test_requests_beyond_the_limit_are_counted_and_said_once_in_a_while(
    fake: FakeStore,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder(fake.append, max_waiting=2)
    fake.may_go_on.clear()
    first = recorder.write([make_event("a")])
    assert fake.entered.wait(30)
    for name in "rstuv":
        recorder.record(make_served(name))
    assert caplog.messages == ["answered requests that are in no store: 1 so far"]
    fake.may_go_on.set()
    first.result(30)

    for _ in range(2):
        recorder.close()

    assert recorder.num_lost == 3
    assert caplog.messages[1:] == ["answered requests that are in no store: 3 in all"]
    assert [name for requests, _ in fake.written for name in requests] == ["r", "s"]


def test_store_that_is_away_is_not_asked_for_every_request(
    make_served: Callable[..., ServedRequest],
) -> None:
    tries: list[int] = []

    def append(requests: Sequence[ServedRequest], events: Sequence[Event]) -> Appended:
        tries.append(len(requests))
        raise StoreError("the store is away")

    recorder = Recorder(append)
    started = time.monotonic()
    for number in range(100):
        recorder.record(make_served(str(number)))
        time.sleep(0.002)
    waited_s = time.monotonic() - started
    recorder.close()

    # The first one, one a second, one that was on its way, and the last.
    assert len(tries) <= waited_s + 4
    assert recorder.num_lost == 100


def test_events_beyond_the_limit_are_refused_and_can_be_told_again(
    fake: FakeStore, make_event: Callable[..., Event]
) -> None:
    recorder = Recorder(fake.append, max_waiting=2)
    fake.may_go_on.clear()
    first = recorder.write([make_event("a")])
    assert fake.entered.wait(30)
    second = recorder.write([make_event("b"), make_event("c")])
    with pytest.raises(StoreError, match=r"must keep up with events, got 2 that wait"):
        recorder.write([make_event("d")]).result(30)
    fake.may_go_on.set()

    assert (first.result(30), second.result(30)) == ([True], [True, True])
    assert recorder.write([make_event("d")]).result(30) == [True]
    assert fake.written == [([], ["a"]), ([], ["b", "c"]), ([], ["d"])]
    recorder.close()


def test_closing_writes_what_waits_and_refuses_what_comes(
    fake: FakeStore,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder(fake.append)
    recorder.record(make_served("r"))
    recorder.close()

    assert fake.written == [(["r"], [])]
    assert not caplog.messages
    with pytest.raises(StoreError, match="must be open"):
        recorder.write([make_event("a")]).result(30)


def test_closing_without_a_store_says_what_is_lost(
    fake: FakeStore, make_served: Callable[..., ServedRequest], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(fake.append)
    fake.may_go_on.clear()
    recorder.record(make_served("r"))
    assert fake.entered.wait(30)
    fake.fails = True
    closing = threading.Thread(target=recorder.close)
    closing.start()
    fake.may_go_on.set()
    closing.join(30)

    assert not closing.is_alive()
    assert (recorder.num_lost, fake.written) == (1, [])
    assert caplog.messages[-1] == "answered requests that are in no store: 1 in all"


def test_answered_requests_wait_a_moment_for_each_other_and_events_do_not(
    fake: FakeStore, make_event: Callable[..., Event], make_served: Callable[..., ServedRequest]
) -> None:
    recorder = Recorder(fake.append)
    for name in ("a", "b", "c"):
        recorder.record(make_served(name))
        time.sleep(0.005)
    while not fake.written:
        time.sleep(0.005)
    assert fake.written == [(["a", "b", "c"], [])]

    recorder.record(make_served("d"))
    assert recorder.write([make_event("e")]).result(30) == [True]

    assert fake.written[1:] == [(["d"], ["e"])]
    recorder.close()
