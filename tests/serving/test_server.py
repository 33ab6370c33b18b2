"""The whole server as a process: started, asked, killed, and its store made a dataset."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tamis.errors import ArtifactError, ConfigError
from tamis.funnel.bundle import read_bundle, write_bundle
from tamis.serving.server import ServerSettings, _listener, serve
from tamis.serving.store import Store

pytestmark = pytest.mark.slow


def test_server_answers_and_ends_with_everything_written(
    start: Callable[..., Any], bundles: Path, tmp_path: Path
) -> None:
    server = start()
    with httpx.Client(base_url=server.address, timeout=60) as client:
        assert client.get("/readyz").json()["release"] == read_bundle(bundles / "first").release
        body = {"user": {"id": "3"}, "k": 3, "request_id": "last"}
        answer = client.post("/v1/rank", json=body).json()
        assert len(answer["ads"]) == 3
        document = client.get("/openapi.json").json()
    paths = {"/v1/rank", "/v1/events", "/v1/ads/{ad}", "/v1/admin/bundle", "/healthz", "/readyz"}
    paths |= {"/metrics", "/v1/watch", "/v1/about", "/v1/ads", "/v1/experiments/{experiment}"}
    assert paths | {"/v1/admin/experiments/{experiment}"} == document["paths"].keys()

    server.end()

    assert "Traceback" not in server.text
    store = Store(f"sqlite:///{tmp_path / 'tamis-store.db'}")
    (joined,) = store.joined()
    assert joined.request.request_id == "last"
    assert [shown.ad for shown in joined.request.shown] == [ad["ad"] for ad in answer["ads"]]
    store.close()


def test_answers_do_not_wait_until_their_heads_are_acknowledged() -> None:
    listener = _listener(ServerSettings(port=0))
    with listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_bundle_without_the_ads_columns_is_refused_by_its_path(
    bundles: Path, tmp_path: Path
) -> None:
    blueprint = read_bundle(bundles / "first").blueprint
    inventory = replace(blueprint.inventory, raw=None)
    write_bundle(tmp_path / "bare", replace(blueprint, inventory=inventory))

    with pytest.raises(ArtifactError, match=r"/bare: must hold the ids and columns of its ads"):
        serve(
            tmp_path / "bare",
            f"sqlite:///{tmp_path / 'store.db'}",
            ServerSettings(port=0),
            ready=lambda address, live: None,
        )


def test_stopped_by_hand_ends_well(start: Callable[..., Any]) -> None:
    server = start()

    assert server.end(signal.SIGINT) == 0
    assert server.text.rstrip().endswith("stopped")
    assert "Traceback" not in server.text


def test_bundle_changed_and_rolled_back_under_load_fails_no_request(
    start: Callable[..., Any], bundles: Path
) -> None:
    # Nobody is turned away because the machine is busy, so that every answer is to be 200.
    server = start("--max-wait-ms", "60000")
    first, second = (read_bundle(bundles / name).release for name in ("first", "second"))
    done = threading.Event()
    answers: list[httpx.Response] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            while not done.is_set():
                body = {"user": {"id": str(number)}, "k": 3}
                answers.append(client.post("/v1/rank", json=body))

    with ThreadPoolExecutor(4) as askers, httpx.Client(base_url=server.address, timeout=60) as us:
        asked = [askers.submit(ask, number) for number in range(4)]
        try:
            for _ in range(5):
                for body in (
                    {"replaces": first, "release": second},
                    {"replaces": second, "roll_back": True},
                ):
                    changed = us.post("/v1/admin/bundle", json=body)
                    assert changed.status_code == 200, changed.text
                    answered = us.post("/v1/rank", json={"user": {"id": "9"}, "k": 3}).json()
                    assert answered["release"] == changed.json()["release"] != body["replaces"]
        finally:
            done.set()
        for one in asked:
            one.result(60)
    server.end()

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["release"] for answer in answers} == {first, second}
    assert all(len(answer.json()["ads"]) == 3 for answer in answers)
    assert "Traceback" not in server.text


@pytest.mark.slow(seconds=230)
@pytest.mark.timeout(3600)
def test_server_that_is_killed_fifty_times_loses_no_event_it_confirmed(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    confirmed: set[str] = set()
    sent: set[str] = set()
    for number in range(50):
        server = start("--store", f"sqlite:///{tmp_path / 'killed.db'}")

        def tell(part: int, server: Any = server, number: int = number) -> None:
            with httpx.Client(base_url=server.address, timeout=60) as client:
                for count in range(10_000):
                    ids = [f"{number}-{part}-{count}-{k}" for k in range(1 + count % 5)]
                    sent.update(ids)
                    events = [{"event_id": i, "kind": "click", "ad": "7", "user": "u"} for i in ids]
                    try:
                        found = client.post("/v1/events", json={"events": events})
                    except httpx.TransportError:
                        return
                    assert found.status_code == 200, found.text
                    confirmed.update(ids)

        tellers = [threading.Thread(target=tell, args=(part,)) for part in range(3)]
        for teller in tellers:
            teller.start()
        time.sleep(generator.uniform(0.1, 0.8))
        server.end(signal.SIGKILL)
        for teller in tellers:
            teller.join(60)
        store = Store(f"sqlite:///{tmp_path / 'killed.db'}")
        stored = [event.event_id for event in store.last_events("u", "click", 10**9)]
        assert len(stored) == len(set(stored)) == store.num_events()
        assert confirmed <= set(stored) <= sent
        store.close()
    assert len(confirmed) > 50


def test_store_of_a_server_becomes_a_dataset(start: Callable[..., Any], tmp_path: Path) -> None:
    server = start()
    generator = np.random.default_rng(0)
    with httpx.Client(base_url=server.address, timeout=60) as client:
        for number in range(80):
            body = {"user": {"id": str(number % 7)}, "k": 3, "request_id": f"r{number}"}
            ads = [ad["ad"] for ad in client.post("/v1/rank", json=body).json()["ads"]]
            events = [
                {"event_id": f"{number} {ad} {kind}", "kind": kind, "ad": ad,
                 "request_id": f"r{number}", "user": str(number % 7),
                 "time_micros": 1_704_067_200_000_000 + number * 10**9}
                for ad in ads
                for kind in ("impression", "click", "conversion", "hide")
                if kind == "impression" or generator.random() < 0.5
            ]  # fmt: skip
            client.post("/v1/events", json={"events": events}).raise_for_status()
    server.end()

    made = subprocess.run(
        [sys.executable, "-m", "tamis", "ingest", "sqlite:///tamis-store.db", "--out", "loop",
         "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    found: dict[str, Any] = json.loads(made.stdout)
    assert found["joined"]["rows"] == sum(found["rows"].values()) == 240
    assert (found["joined"]["of_no_request"], found["joined"]["implied"]) == (0, 0)
    # By time, as the bundle's schema names one.
    assert found["split"]["by"] == "time"
    assert found["fields"]["history_ads"]["rows"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "0.0.0.0"}, r"token: must be set to listen at 0.0.0.0, which other machines rea"),
        ({"token": "short"}, r"token: must have at least 16 characters, got 5"),
        ({"token": "short of nothing"}, r"token: must be of ASCII letters, digits and signs"),
        ({"token": "short" * 4 + "\u00e4"}, r"token: must be of ASCII letters, digits and signs"),
        ({"token": "short" * 4 + "\n"}, r"token: must be of ASCII letters, digits and signs"),
        ({"host": "0.0.0.0"}, r"Set TAMIS_TOKEN or --token, or listen at 127.0.0.1"),
        ({"settle_s": 0.0}, r"settle_s: must be positive seconds, got 0.0"),
        ({"port": 70_000}, r"port: must be in 0 to 65535, got 70000"),
    ],
)
def test_unsafe_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as got:
        ServerSettings(**changes)
    assert "short" not in str(got.value)
