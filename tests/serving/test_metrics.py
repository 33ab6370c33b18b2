"""What a server measures of itself, as Prometheus and the page read it."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tamis.serving.app import make_app
from tamis.serving.drift import DriftWatch
from tamis.serving.engine import Engine
from tamis.serving.metrics import Metrics
from tamis.serving.pulse import TICK_S


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def client(engine: Engine, bundles: Path, call_app: Callable[[Any], Any]) -> Any:
    metrics = Metrics(DriftWatch(settle_s=0.2))
    engine._watch = metrics
    return call_app(make_app(engine, metrics, bundles=bundles))


def test_drift_is_that_of_what_was_served_and_what_came_of_it(client: Any, engine: Engine) -> None:
    before = time.time()
    answers = [
        client.post("/v1/rank", json={"user": {"id": str(number)}, "k": 4}).json()
        for number in range(5)
    ]
    clicked = {0, 7, 9}
    shown = [(answer["request_id"], ad) for answer in answers for ad in answer["ads"]]
    for at, (request_id, ad) in enumerate(shown):
        kinds = ["impression", *["click"] * (at in clicked)]
        events = [
            {"event_id": f"{at} {kind}", "kind": kind, "ad": ad["ad"], "request_id": request_id}
            for kind in kinds
        ]
        client.post("/v1/events", json={"events": events}).raise_for_status()
    time.sleep(0.25)

    watch = client.get("/v1/watch").json()

    release = engine.live.served.release
    assert (watch["release"], watch["settle_s"]) == (release, 0.2)
    (drift,) = watch["drift"]
    assert drift["release"] == release
    assert before <= drift["since_micros"] / 1e6 <= time.time()
    # Events may be late on a busy machine, and then they are counted as that.
    text = client.get("/metrics").text
    late = float(re.search(r"^tamis_drift_late_events (\S+)$", text, re.M).group(1))
    click = drift["tasks"]["click"]
    assert click["all"]["rows"] <= len(shown) <= click["all"]["rows"] + late
    assert drift["tasks"].keys() == {"click", "conversion", "hide"}
    if not late:
        predicted = sum(ad["probabilities"]["click"] for _, ad in shown)
        assert click["all"]["calibration"] == pytest.approx(predicted / len(clicked))
        assert sum(part["positives"] for part in click["parts"]) == len(clicked)
        assert drift["tasks"]["conversion"]["all"]["rows"] == len(clicked)
    labels = f'{{release="{release[:12]}",task="click"}}'
    assert f"tamis_drift_rows{labels} {float(click['all']['rows'])}" in text
    assert f"tamis_drift_calibration{labels} {click['all']['calibration']}" in text
    # Without 200 rows beyond the reference nothing is said of a shift.
    assert click["shift"] is None
    assert "tamis_drift_stability_index{" not in text


def test_ticks_tell_of_rankings_alone(client: Any) -> None:
    for number in range(3):
        client.post("/v1/rank", json={"k": 1, "request_id": f"r{number}"})
    client.post("/v1/rank", json={"k": 0})
    client.get("/healthz")
    time.sleep(TICK_S)

    watch = client.get("/v1/watch").json()

    assert watch["tick_s"] == TICK_S
    assert sum(tick["ranked"] for tick in watch["ticks"]) == 3
    for busy in (tick for tick in watch["ticks"] if tick["ranked"]):
        assert 0 < busy["p50_ms"] <= busy["p99_ms"]


def test_rankings_that_are_turned_away_are_seen(client: Any, engine: Engine) -> None:
    engine.close()
    assert client.post("/v1/rank", json={"k": 1}).status_code == 503
    time.sleep(TICK_S)

    ticks = client.get("/v1/watch").json()["ticks"]

    assert sum(tick["turned_away"] for tick in ticks) == 1
    assert all(tick["p50_ms"] is None for tick in ticks)


def test_what_is_watched_names_no_user(client: Any) -> None:
    body = {"user": {"id": "somebody"}, "k": 2, "request_id": "secret request"}
    client.post("/v1/rank", json=body)
    client.post(
        "/v1/events",
        json={"events": [{"event_id": "secret event", "kind": "click", "ad": "1"}]},
    )

    seen = json.dumps(client.get("/v1/watch").json()) + client.get("/metrics").text
    assert not re.search("somebody|secret", seen)
