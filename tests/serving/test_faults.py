"""Faults that are really made: a disk without room, a database that stops, clocks that jump."""

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.serving import app as app_module
from tamis.serving.app import make_app
from tamis.serving.engine import Engine
from tamis.serving.metrics import Metrics
from tamis.serving.store import Store

pytestmark = pytest.mark.slow

RANK = {"user": {"id": "3"}, "context": {"device": "phone"}, "k": 2}


def _events(*ids: str, columns: int = 0) -> dict[str, Any]:
    return {
        "events": [
            {"event_id": name, "kind": "click", "ad": "x" * columns or "7", "user": "u"}
            for name in ids
        ]
    }


def _confirmed_until_refused(client: httpx.Client, prefix: str) -> tuple[set[str], httpx.Response]:
    confirmed: set[str] = set()
    for number in range(10_000):
        ids = [f"{prefix}-{number}-{part}" for part in range(200)]
        response = client.post("/v1/events", json=_events(*ids, columns=100))
        if response.status_code != 200:
            return confirmed, response
        confirmed.update(ids)
    raise AssertionError("the disk never filled up")


def test_full_disk_refuses_events_ranks_on_and_loses_nothing_it_confirmed(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    server = start("--store", f"sqlite:///{tmp_path / 'full.db'}")
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    with httpx.Client(base_url=server.address, timeout=60) as client:
        # The kernel refuses to let files of this process grow, as it does where a disk is full.
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4 << 20, before[1]))
        confirmed, refused = _confirmed_until_refused(client, "full")

        assert refused.status_code == 503
        assert refused.json()["error"]["field"] == "server"
        assert refused.headers["retry-after"] == "1"
        # Nobody who asks for ads notices.
        for number in range(5):
            answer = client.post("/v1/rank", json={**RANK, "request_id": f"meanwhile-{number}"})
            assert (answer.status_code, len(answer.json()["ads"])) == (200, 2)

        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        response = _asked_again(client, _events("again"))
        assert response.json() == {"accepted": 1, "duplicates": 0, "unknown_ads": 0}
    server.end()

    assert "Traceback" not in server.text
    store = Store(f"sqlite:///{tmp_path / 'full.db'}")
    stored = {event.event_id for event in store.last_events("u", "click", 10**9)}
    assert confirmed | {"again"} <= stored
    assert store.counts("3")["request"] == 5
    store.close()


def test_postgres_that_stops_and_starts_costs_no_answer_and_no_confirmed_event(
    start: Callable[..., Any], postgres: Any
) -> None:
    url = postgres.new_database("under_a_server")
    server = start("--store", url)
    with httpx.Client(base_url=server.address, timeout=60) as client:
        client.post("/v1/rank", json={**RANK, "request_id": "before"}).raise_for_status()
        client.post("/v1/events", json=_events("a")).raise_for_status()

        postgres.stop()
        try:
            for number in range(3):
                answer = client.post("/v1/rank", json={**RANK, "request_id": f"away-{number}"})
                assert (answer.status_code, len(answer.json()["ads"])) == (200, 2)
            refused = client.post("/v1/events", json=_events("b"))
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
        finally:
            postgres.start()

        assert _asked_again(client, _events("a", "b")).json() == {
            "accepted": 1,
            "duplicates": 1,
            "unknown_ads": 0,
        }
    server.end()

    assert "Traceback" not in server.text
    store = Store(url)
    assert store.num_events() == 2
    # Answers of the time without a store were kept for it.
    assert store.counts("3")["request"] == 4
    store.close()


def _asked_again(client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    """The answer to events that are sent again as the server says, until it takes them."""
    until = time.monotonic() + 60
    while (response := client.post("/v1/events", json=body)).status_code == 503:
        assert time.monotonic() < until
        time.sleep(float(response.headers["retry-after"]) / 4)
    response.raise_for_status()
    return response


def test_clock_that_jumps_back_and_forth_changes_neither_order_nor_answers(
    make_engine: Callable[..., Engine],
    call_app: Callable[[Any], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    client = call_app(make_app(engine, Metrics(), bundles=tmp_path))
    now = 1_704_067_200_000_000
    hour = 3_600_000_000
    kinds = []

    for number, jump in enumerate((0, hour, -24 * hour, 365 * 24 * hour, -400 * 24 * hour)):
        monkeypatch.setattr(app_module, "_now_micros", lambda at=now + jump: at)
        body = {**RANK, "request_id": f"r{number}", "trace": True}
        answer = client.post("/v1/rank", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["fallbacks"] == {}
        shown = answer.json()["ads"][0]["ad"]
        event = {"event_id": f"e{number}", "kind": "click", "ad": shown, "user": "3"}
        assert client.post("/v1/events", json={"events": [event]}).status_code == 200
        kinds.append(shown)

    # What a user did last is what was told last, whatever the clock said then.
    assert engine._users.past("3").events["click"][-1].event_id == "e4"
    engine._users._states.clear()
    assert [event.ad for event in engine._users.past("3").events["click"]] == kinds


class Hangs:
    """A stage that never returns while it may not, alone and for many."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def __call__(self, request: Any, candidates: Candidates, keep: int) -> Any:
        self.may_go_on.wait(120)
        raise AssertionError("nobody waits for this any more")

    def score_all(self, requests: Any, candidates: Any, keep: int) -> Any:
        self(requests, candidates, keep)


def test_final_stage_that_hangs_under_load_costs_a_batch_one_budget(
    make_engine: Callable[..., Engine], make_query: Callable[..., Any], watched: Any
) -> None:
    engine, stage, budget_ms = make_engine(max_batch=8), Hangs(), 300.0
    funnel = engine.live.funnel
    assert funnel is not None
    last = Step(name="final", stage=stage, keep=8, budget_ms=budget_ms)
    engine._live = replace(
        engine.live, funnel=Funnel([*funnel.steps[:-1], last], funnel.ads, funnel.value)
    )
    started = time.perf_counter()

    futures = [engine.rank(make_query(str(number)), engine.live) for number in range(17)]
    answers = [future.result(60) for future in futures]

    # One alone, two batches of eight: three budgets, where each by itself would cost seventeen.
    assert time.perf_counter() - started < 8 * budget_ms / 1e3
    for answer in answers:
        assert answer.stages()[2]["fallback"] == "took longer than 300 ms"
        assert len(answer.ads) == 3
        assert all(ad.value is not None for ad in answer.ads)
    stage.may_go_on.set()
