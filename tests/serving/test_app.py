"""The routes: what is answered, what is refused, and that a refusal names the field alone."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.artifacts import MANIFEST
from tamis.data.columns import Origin
from tamis.data.numeric import NumericEncoder
from tamis.data.schema import Field
from tamis.data.vocabulary import Vocabulary
from tamis.errors import StoreError
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.serving import shelf
from tamis.serving.app import make_app
from tamis.serving.engine import Engine
from tamis.serving.guard import LOOPBACK, Token
from tamis.serving.joined_log import write_joined_log
from tamis.serving.metrics import Metrics
from tamis.serving.pace import Pace
from tamis.serving.users import Past

SECRET = "a secret of many characters"


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def make_client(
    engine: Engine, bundles: Path, call_app: Callable[[Any], Any]
) -> Callable[..., Any]:
    def make(**settings: Any) -> Any:
        metrics = Metrics()
        engine._watch = metrics
        return call_app(make_app(engine, metrics, **({"bundles": bundles} | settings)))

    return make


@pytest.fixture
def client(make_client: Callable[..., Any]) -> Any:
    return make_client(hosts=LOOPBACK)


def _problem(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["field"]
    assert error["message"]
    return error


RANK = {"user": {"id": "3", "features": {"age": "25-34"}}, "context": {"device": "phone"}, "k": 2}
AD = {
    "features": {"price": 2.5, "format": "video", "category": 4},
    "bid": 2,
    "billing": "click",
    "advertiser": "me",
}


def test_ranked_ads_say_why(client: Any, engine: Engine) -> None:
    found = client.post("/v1/rank", json={**RANK, "trace": True, "request_id": "mine"})

    assert found.status_code == 200, found.text
    answer = found.json()
    assert (answer["request_id"], answer["release"]) == ("mine", engine.live.served.release)
    assert (answer["unknown_candidates"], answer["fallbacks"]) == (0, {})
    assert len(answer["ads"]) == 2
    for ad in answer["ads"]:
        # The recipe weighs neither quality nor what users do not want.
        assert ad["value"] == pytest.approx(ad["bid"] * ad["probabilities"]["click"])
        assert ad["probabilities"].keys() == {"click", "conversion", "hide"}
        assert 0 <= ad["price"] <= ad["bid"]
    assert [stage["name"] for stage in answer["trace"]] == ["popular", "early", "final"]
    assert [stage["candidates_out"] for stage in answer["trace"]] == [60, 20, 8]
    assert client.post("/v1/rank", json=RANK).json()["trace"] is None
    assert client.post("/v1/rank", json=RANK).json()["request_id"] != "mine"


def test_events_of_ads_that_are_not_there_are_kept_and_counted(client: Any) -> None:
    events = [
        {"event_id": f"at {ad}", "kind": "click", "ad": ad, "user": "3"}
        for ad in ("7", "none", "x")
    ]

    answer = client.post("/v1/events", json={"events": events}).json()

    assert answer == {"accepted": 3, "duplicates": 0, "unknown_ads": 2}


def test_nothing_to_show_is_an_empty_answer(client: Any) -> None:
    answer = client.post("/v1/rank", json={"k": 100, "candidates": ["none", "of these"]}).json()

    assert (answer["ads"], answer["unknown_candidates"]) == ([], 2)


def test_events_are_counted_once_and_change_the_ranking(client: Any, engine: Engine) -> None:
    first = client.post("/v1/rank", json=RANK).json()
    ad = first["ads"][0]["ad"]
    events = [
        {"event_id": f"{kind} 1", "kind": kind, "ad": ad, "user": "3",
         "request_id": first["request_id"], "columns": {"position": 1}}
        for kind in ("impression", "click")
    ]  # fmt: skip

    once = client.post("/v1/events", json={"events": events})
    again = client.post("/v1/events", json={"events": [*events, {**events[0], "event_id": "x"}]})

    assert once.json() == {"accepted": 2, "duplicates": 0, "unknown_ads": 0}
    assert again.json() == {"accepted": 1, "duplicates": 2, "unknown_ads": 0}
    client.post("/v1/rank", json={**RANK, "request_id": "after"})
    engine.write([]).result(60)
    after = next(j for j in engine._store.joined() if j.request.request_id == "after")
    assert after.request.columns["history_ads"] == [ad]
    joined = next(j for j in engine._store.joined() if j.request.request_id == first["request_id"])
    assert [event.kind for event in joined.events] == ["impression", "click", "impression"]
    assert joined.events[0].columns == {"position": "1"}
    assert joined.events[0].ad_columns["ad_id"] == ad


def test_bundle_is_changed_and_rolled_back(client: Any, engine: Engine, bundles: Path) -> None:
    first, second = (read_bundle(bundles / name).release for name in ("first", "second"))

    changed = client.post("/v1/admin/bundle", json={"replaces": first, "release": second})
    assert changed.json() == {"release": second}
    assert client.post("/v1/rank", json=RANK).json()["release"] == second
    stale = client.post("/v1/admin/bundle", json={"replaces": first, "release": second})
    assert _problem(stale, 409)["field"] == "body.replaces"
    back = client.post("/v1/admin/bundle", json={"replaces": second, "roll_back": True})
    assert back.json() == {"release": first}
    assert client.get("/readyz").json()["release"] == first


def _alter_weights(bundle: Path) -> None:
    weights = next((bundle / "stages" / "final").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\0")


def _alter_version(bundle: Path) -> None:
    manifest = bundle / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 0}))


@pytest.mark.parametrize(
    ("alter", "said"), [(_alter_weights, "sha256"), (_alter_version, "of version 0")]
)
def test_bundle_that_was_altered_is_refused_and_the_one_before_serves_on(
    make_client: Callable[..., Any],
    engine: Engine,
    bundles: Path,
    tmp_path: Path,
    alter: Callable[[Path], None],
    said: str,
) -> None:
    shutil.copytree(bundles / "second", tmp_path / "bundles" / "altered")
    alter(tmp_path / "bundles" / "altered")
    client = make_client(bundles=tmp_path / "bundles")
    release, second = engine.live.served.release, read_bundle(bundles / "second").release

    refused = client.post("/v1/admin/bundle", json={"replaces": release, "release": second})

    problem = _problem(refused, 409)
    assert problem["field"] == "body.release"
    assert said in problem["message"]
    assert client.post("/v1/rank", json=RANK).json()["release"] == release


def test_folder_of_bundles_that_is_gone_is_an_answer(
    make_client: Callable[..., Any], engine: Engine, tmp_path: Path
) -> None:
    client = make_client(bundles=tmp_path / "gone")
    body = {"replaces": engine.live.served.release, "release": "0" * 64}

    assert _problem(client.post("/v1/admin/bundle", json=body), 404)["field"] == "body.release"


def test_bundle_that_becomes_another_while_it_is_read_is_refused(
    client: Any, engine: Engine, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (read_bundle(bundles / name).release for name in ("first", "second"))
    # As when somebody publishes anew into the folder between the look and the reading.
    monkeypatch.setattr(shelf, "_says", lambda path: second if path.name == "first" else "")

    found = client.post("/v1/admin/bundle", json={"replaces": first, "release": second})

    assert _problem(found, 409)["field"] == "body.release"
    assert engine.live.served.release == first


def test_release_that_lies_nowhere_is_refused(client: Any, engine: Engine) -> None:
    body = {"replaces": engine.live.served.release, "release": "0" * 64}
    assert _problem(client.post("/v1/admin/bundle", json=body), 404)["field"] == "body.release"
    both = {"replaces": "0" * 64, "release": "0" * 64, "roll_back": True}
    assert _problem(client.post("/v1/admin/bundle", json=both), 422)["field"] == "body.release"
    path = {"replaces": "0" * 64, "release": "../second"}
    assert _problem(client.post("/v1/admin/bundle", json=path), 422)["field"] == "body.release"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.k"),
        ({"k": 0}, "body.k"),
        ({"k": 101}, "body.k"),
        ({"k": "3"}, "body.k"),
        ({"k": 2.5}, "body.k"),
        ({"k": True}, "body.k"),
        ({"k": 10**400}, "body.k"),
        ({"k": 1, "secret": 2}, "body.secret"),
        ({"k": 1, "request_id": ""}, "body.request_id"),
        ({"k": 1, "request_id": "secret" * 30}, "body.request_id"),
        ({"k": 1, "request_id": "a\u0000b"}, "body.request_id"),
        ({"k": 1, "user": {"id": 3}}, "body.user.id"),
        ({"k": 1, "user": {"id": "\ud800"}}, "body.user.id"),
        ({"k": 1, "user": {"features": {"secret": 1}}}, "body.user.features"),
        ({"k": 1, "user": {"features": {"user_id": "7"}}}, "body.user.features"),
        ({"k": 1, "user": {"features": {"age": ["secret"]}}}, "body.user.features.age"),
        ({"k": 1, "context": {"device": {"secret": 1}}}, "body.context.device"),
        ({"k": 1, "context": {"price": 1}}, "body.context"),
        ({"k": 1, "context": {"\ud800": 1}}, "body.context"),
        ({"k": 1, "candidates": ["a"] * 10_001}, "body.candidates"),
        ({"k": 1, "candidates": [1]}, "body.candidates.0"),
        ([1], "body"),
        (None, "body"),
    ],
)
def test_wrong_field_is_named_and_its_value_is_not(client: Any, body: Any, field: str) -> None:
    found = client.post(
        "/v1/rank", content=json.dumps(body), headers={"content-type": "application/json"}
    )

    problem = _problem(found, 422)
    assert problem["field"].startswith(field)
    assert "secret" not in problem["message"]


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [
        (b"", 422, "body"),
        (b"{", 422, "body"),
        (b'{"k": "\xff"}', 400, "body"),
        (
            b'{"k": 1, "user": {"features": {"user_requests": NaN}}}',
            422,
            "body.user.features.user_",
        ),
        (b'{"k": 1, "user": {"features": {"user_requests": 1e999}}}', 422, "body.user.features.us"),
        (b'{"k": NaN}', 422, "body.k"),
        (b"[" * 100_000, 400, "body"),
        (b'{"k": 1, "k": "x"}', 422, "body.k"),
        (b" " * (1 << 20) + b"{}", 413, "body"),
    ],
)
def test_bytes_that_are_no_request_are_refused(
    client: Any, content: bytes, status: int, field: str
) -> None:
    found = client.post("/v1/rank", content=content, headers={"content-type": "application/json"})

    assert _problem(found, status)["field"].startswith(field)


def test_body_without_its_type_is_refused(client: Any) -> None:
    # What a web page can send to another origin without being asked whether it may.
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"content-type": kind} if kind else {}
        found = client.post("/v1/rank", content=b'{"k": 1}', headers=headers)
        problem = _problem(found, 422)
        assert problem["field"] == "body"
        assert "Send it with Content-Type: application/json" in problem["message"]
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/rank", content=b'{"k": 1}', headers=headers).status_code == 200
    found = client.post("/v1/rank", content=b"[]", headers=headers)
    assert "openapi.json" in _problem(found, 422)["message"]


def test_other_places_and_methods_are_refused(client: Any) -> None:
    assert _problem(client.get("/v1/nothing"), 404)["field"] == "path"
    assert _problem(client.get("/docs"), 404)["field"] == "path"
    found = client.get("/v1/rank")
    assert _problem(found, 405)["field"] == "method"
    assert found.headers["allow"] == "POST"
    assert _problem(client.get("/v1/ads/" + "x" * 129), 422)["field"] == "path.ad"
    assert _problem(client.get("/v1/ads/%00"), 422)["field"] == "path.ad"


def test_event_that_means_nothing_refuses_all(client: Any, engine: Engine) -> None:
    good = {"event_id": "a", "kind": "click", "ad": "7"}
    for bad, field in (
        ({"kind": "visit"}, "body.events.1.kind"),
        ({"event_id": None}, "body.events.1.event_id"),
        ({"time_micros": 5}, "body.events.1.time_micros"),
        ({"columns": {"age": "1"}}, "body.events.1.columns"),
        ({"columns": {"position": []}}, "body.events.1.columns.position"),
    ):
        found = client.post("/v1/events", json={"events": [good, {**good, **bad}]})
        assert _problem(found, 422)["field"] == field
    assert _problem(client.post("/v1/events", json={"events": []}), 422)["field"] == "body.events"
    many = client.post("/v1/events", json={"events": [good] * 1001})
    assert _problem(many, 422)["field"] == "body.events"
    assert engine._store.num_events() == 0


def test_writes_and_changes_need_the_token(make_client: Callable[..., Any], engine: Engine) -> None:
    client = make_client(token=Token(SECRET))
    event = {"events": [{"event_id": "a", "kind": "click", "ad": "7"}]}
    release = engine.live.served.release
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/v1/events", event),
        ("PUT", "/v1/ads/mine", AD),
        ("PATCH", "/v1/ads/mine", {"bid": 3}),
        ("DELETE", "/v1/ads/mine", None),
        ("POST", "/v1/admin/bundle", {"replaces": release, "release": "0" * 64}),
    ]
    wrong = ("", "Bearer", f"Basic {SECRET}", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}",
             "Bearer ä", SECRET)  # fmt: skip

    for method, path, body in calls:
        for authorization in wrong:
            headers = {"authorization": authorization.encode()} if authorization else {}
            found = client.request(method, path, json=body, headers=headers)
            problem = _problem(found, 401)
            assert problem["field"] == "header.authorization"
            assert SECRET not in found.text
            assert found.headers["www-authenticate"] == "Bearer"
    assert engine._store.num_events() == 0
    assert engine._store.ads() == {}
    right = {"authorization": f"Bearer {SECRET}"}
    statuses = [
        client.request(method, path, json=body, headers=right).status_code
        for method, path, body in calls
    ]
    assert statuses == [200, 200, 200, 204, 404]
    # Reading needs none.
    assert client.post("/v1/rank", json=RANK).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_page_whose_name_points_here_is_kept_out(client: Any) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        found = client.post("/v1/rank", json=RANK, headers={"host": host})
        assert _problem(found, 421)["field"] == "header.host"
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:80", "[::1]"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_every_answer_has_its_headers(client: Any) -> None:
    for found in (
        client.get("/healthz"),
        client.get("/nothing"),
        client.post("/v1/rank", json={}),
        client.get("/healthz", headers={"host": "evil"}),
    ):
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["cache-control"] == "no-store"
        assert found.headers["x-frame-options"] == "DENY"
        assert found.headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in found.headers


def test_store_that_is_away_refuses_events_and_ads_and_ranks_on(
    client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object) -> None:
        raise StoreError("sqlite:///secret: away")

    monkeypatch.setattr(engine._store, "append", away)
    monkeypatch.setattr(engine._store, "put_ad", away)
    event = {"events": [{"event_id": "a", "kind": "click", "ad": "7"}]}

    for found in (client.post("/v1/events", json=event), client.put("/v1/ads/mine", json=AD)):
        assert _problem(found, 503)["field"] == "server"
        assert found.headers["retry-after"] == "1"
        assert "secret" not in found.text
    assert client.post("/v1/rank", json=RANK).status_code == 200
    assert client.get("/v1/ads/mine").status_code == 404
    monkeypatch.undo()
    assert client.post("/v1/events", json=event).json() == {
        "accepted": 1,
        "duplicates": 0,
        "unknown_ads": 0,
    }


def test_unforeseen_failure_says_nothing_of_the_request(
    client: Any,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(user: str | None) -> Past:
        raise ZeroDivisionError(f"a secret of {user}")

    monkeypatch.setattr(engine, "past", fail)
    found = client.post("/v1/rank", json=RANK)

    assert _problem(found, 500)["field"] == "server"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in found.text + caplog.text
    assert 'route="/v1/rank",status="500"' in client.get("/metrics").text
    monkeypatch.undo()
    assert client.post("/v1/rank", json=RANK).status_code == 200


def test_too_many_are_told_when_to_come_again(
    client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    def past(user: str | None) -> Past:
        assert waits.wait(60)
        return Past()

    monkeypatch.setattr(engine, "past", past)
    # The first one is taken at once, and those behind it would wait for it for ever.
    engine._pace = Pace({}, 1)
    engine._pace.observe(1, 1e9, ())
    found: list[httpx.Response] = []

    def ask() -> None:
        found.append(client.post("/v1/rank", json=RANK))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers[:1]:
        asker.join(1.0)
    waits.set()
    monkeypatch.undo()
    for asker in askers:
        asker.join(60)

    refused = [response for response in found if response.status_code == 503]
    assert refused
    for response in refused:
        assert _problem(response, 503)["field"] == "server"
        assert response.headers["retry-after"] == "1"


def test_state_and_metrics_are_shown(client: Any, engine: Engine) -> None:
    client.post("/v1/rank", json=RANK)
    client.post("/v1/rank", json={})
    client.post("/v1/events", json={"events": [{"event_id": "a", "kind": "hide", "ad": "7"}]})
    client.get("/v1/ads/some secret ad")

    text = client.get("/metrics").text

    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {
        "status": "ok", "release": engine.live.served.release, "ads": len(engine.live.ads)
    }  # fmt: skip
    assert 'tamis_http_answers_total{route="/v1/rank",status="200"} 1.0' in text
    assert 'tamis_http_answers_total{route="/v1/rank",status="422"} 1.0' in text
    assert 'tamis_events_total{kind="hide"} 1.0' in text
    assert 'tamis_stage_seconds_count{stage="final"} 1.0' in text
    assert "tamis_ads_shown_total 2.0" in text
    assert "secret" not in text


def test_server_that_ends_is_not_ready(client: Any, engine: Engine) -> None:
    engine.close()

    assert _problem(client.get("/readyz"), 503)["field"] == "server"
    assert client.get("/healthz").status_code == 200
    assert _problem(client.post("/v1/rank", json=RANK), 503)["field"] == "server"


def _mutated(generator: np.random.Generator, body: Any) -> Any:
    """A body with one part of it replaced, removed, doubled or buried."""
    strange: list[Any] = [None, True, -1, 0, 2**63, 1e308, "", "x" * 300, "\u0000", "\ud800", [],
                          {}, [[]], {"k": {}}, "7", 1.5, ["a"] * 3]  # fmt: skip
    if isinstance(body, dict) and body and generator.random() < 0.8:
        key = list(body)[int(generator.integers(len(body)))]
        choice = generator.random()
        rest = {name: value for name, value in body.items() if name != key}
        if choice < 0.15:
            return rest
        if choice < 0.3:
            return {**body, f"{key}\u00e9": body[key]}
        return {**body, key: _mutated(generator, body[key])}
    if isinstance(body, list) and body and generator.random() < 0.6:
        return [_mutated(generator, body[0]), *body[1:]]
    return strange[int(generator.integers(len(strange)))]


def _check_mutations(client: Any, count: int, caplog: pytest.LogCaptureFixture) -> None:
    generator = np.random.default_rng(0)
    release = client.get("/readyz").json()["release"]
    event = {"event_id": "e", "kind": "click", "ad": "7", "user": "3", "request_id": "r",
             "time_micros": 1_704_067_200_000_000, "columns": {"position": 1}}  # fmt: skip
    rank = {**RANK, "request_id": "r", "candidates": ["7", "8"], "trace": True}
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/v1/rank", rank),
        ("POST", "/v1/rank", rank),
        ("POST", "/v1/events", {"events": [event, event]}),
        ("PUT", "/v1/ads/mine", AD | {"popularity": 2.0, "quality": 0.5}),
        ("PATCH", "/v1/ads/mine", AD | {"popularity": 2.0, "quality": 0.5}),
        (
            "POST",
            "/v1/admin/bundle",
            {"replaces": release, "release": "0" * 64, "roll_back": False},
        ),
    ]
    statuses: dict[int, int] = {}
    for number in range(count):
        method, path, body = calls[number % len(calls)]
        for _ in range(1 + int(generator.integers(3))):
            body = _mutated(generator, body)
        content = json.dumps(body).encode()
        if generator.random() < 0.2:
            at = int(generator.integers(len(content) + 1))
            content = content[:at] + bytes(generator.integers(0, 256, 3).tolist()) + content[at:]
        found = client.request(
            method, path, content=content, headers={"content-type": "application/json"}
        )
        statuses[found.status_code] = statuses.get(found.status_code, 0) + 1
        assert found.status_code < 500, content
        if found.status_code >= 400:
            assert found.json()["error"]["field"], content
    assert not caplog.records
    # Mutations that leave a request whole are answered.
    assert statuses[200] > count / 50
    assert statuses[422] > count / 3


def test_mutated_requests_are_answered_or_refused_with_the_field(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _check_mutations(client, 300, caplog)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_mutated_requests_are_answered_or_refused_with_the_field(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _check_mutations(client, 10_000, caplog)


@pytest.mark.parametrize(
    "features",
    [
        {"history_ads": ["1", "2"], "history_categories": ["3"]},
        {"history_ads": ["1"]},
        {"history_ads": ["1"], "history_categories": None},
        # Nothing beside what events have made of the other column.
        {"history_ads": None},
        {"history_ads": []},
    ],
)
def test_histories_that_do_not_go_together_are_refused(
    client: Any, features: dict[str, Any]
) -> None:
    response = client.post("/v1/rank", json={"user": {"features": features}, "k": 1})

    problem = _problem(response, 422)
    assert problem["field"] == "body.user.features.history_ads"
    assert "as many events as history_ads, history_categories" in problem["message"]


@pytest.fixture
def widened(bundles: Path) -> Bundle:
    """A bundle of one stage with groups of two columns, and a number that is a category, too."""
    blueprint = read_bundle(bundles / "second").blueprint
    encoders, inventory = blueprint.encoders, blueprint.inventory
    assert inventory.raw is not None
    hashed: dict[str, Any] = {"encoding": "hashing", "num_buckets": 10}
    fields = (
        Field(name="past_ads", kind="sequence", group="past", **hashed),
        Field(name="past_kinds", kind="sequence", group="past", separator="|", **hashed),
        Field(name="tags", kind="sequence", group="tags", side="item", **hashed),
        Field(name="marks", kind="sequence", group="tags", side="item", **hashed),
        Field(name="warmth", kind="numeric"),
        Field(name="weather", kind="categorical", column="warmth", **hashed),
        Field(name="wind", kind="numeric"),
        Field(name="storm", kind="categorical", column="wind", side="user", **hashed),
    )
    number = NumericEncoder(transform="standardise", mean=0.0, std=1.0, minimum=0.0, maximum=1.0)
    hashes = {item.name: Vocabulary(values=None, num_rows=10) for item in fields}
    schema = replace(encoders.schema, fields=(*encoders.schema.fields, *fields))
    encoders = replace(
        encoders,
        schema=schema,
        numeric={**encoders.numeric, "warmth": number, "wind": number},
        vocabularies={**encoders.vocabularies, **hashes},
    )
    raw = inventory.raw
    for name in ("tags", "marks"):
        raw = raw.append_column(name, pa.nulls(raw.num_rows))
    blueprint = replace(
        blueprint,
        encoders=encoders,
        inventory=replace(inventory, raw=raw),
        stages=blueprint.stages[:1],
    )
    return Bundle(release="widened", blueprint=blueprint)


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"past_ads": ["1"]}, "past_ads"),
        ({"past_ads": None}, "past_ads"),
        ({"past_ads": ["1"], "past_kinds": "a|b"}, "past_ads"),
        ({"past_ads": [], "past_kinds": ["a"]}, "past_ads"),
        ({"warmth": "warm"}, "warmth"),
        ({"warmth": "1_0"}, "warmth"),
        ({"wind": "strong"}, "wind"),
    ],
)
def test_what_no_log_could_hold_is_refused_of_requests_and_events(
    client: Any, engine: Engine, widened: Bundle, columns: dict[str, Any], field: str
) -> None:
    engine.swap(widened, replaces=engine.live.served.release)
    event = {"event_id": "e", "kind": "impression", "ad": "7", "columns": columns}

    ranked = client.post("/v1/rank", json={"k": 2, "context": columns})
    told = client.post("/v1/events", json={"events": [{**event, "columns": {}}, event]})

    assert _problem(ranked, 422)["field"] == f"body.context.{field}"
    assert _problem(told, 422)["field"] == f"body.events.1.columns.{field}"
    assert engine.store.num_events() == 0


@pytest.mark.parametrize(
    "columns",
    [
        {"past_ads": ["1", "2"], "past_kinds": "a|b", "warmth": "21.5", "wind": "3"},
        {"past_ads": ["1"], "past_kinds": ["a"], "warmth": 7},
        {"past_ads": None, "past_kinds": None, "warmth": None},
        {"warmth": " "},
    ],
)
def test_what_is_confirmed_can_be_joined_and_encoded(
    client: Any, engine: Engine, widened: Bundle, columns: dict[str, Any], tmp_path: Path
) -> None:
    engine.swap(widened, replaces=engine.live.served.release)
    asked = {"past_ads": ["3"], "past_kinds": "c", "warmth": 1}
    ranked = client.post("/v1/rank", json={"k": 1, "context": asked}).json()
    event = {"kind": "impression", "ad": ranked["ads"][0]["ad"], "request_id": ranked["request_id"]}
    events = [{**event, "event_id": "e", "columns": columns}]
    assert client.post("/v1/events", json={"events": events}).json()["accepted"] == 1

    schema, path = engine.live.served.schema, tmp_path / "log.parquet"
    write_joined_log(engine.store, schema, path)

    encoders = engine.live.served.bundle.blueprint.encoders
    log = pq.read_table(path)
    rows = encoders.encode(log, first_row=0, origin=Origin(file="log"), inputs_only=True)
    expected = columns.get("past_ads", ["3"]) or []
    assert rows.sequences["past"][1].tolist() == [len(expected)]


def test_ad_whose_histories_do_not_go_together_is_refused(
    client: Any, engine: Engine, widened: Bundle
) -> None:
    engine.swap(widened, replaces=engine.live.served.release)
    put = {"bid": 1, "billing": "click", "advertiser": "me"}

    wrong = client.put("/v1/ads/mine", json={**put, "features": {"tags": ["a"], "marks": []}})
    right = client.put("/v1/ads/mine", json={**put, "features": {"tags": ["a"], "marks": ["b"]}})

    assert _problem(wrong, 422)["field"] == "body.features.tags"
    assert right.status_code == 200
    # What is not named of a group stays, and must still go with the rest.
    wrong = client.patch("/v1/ads/mine", json={"features": {"tags": ["a", "b"]}})
    right = client.patch("/v1/ads/mine", json={"features": {"tags": ["c"]}})
    assert _problem(wrong, 422)["field"] == "body.features.tags"
    assert (right.json()["features"]["tags"], right.json()["features"]["marks"]) == (["c"], ["b"])
