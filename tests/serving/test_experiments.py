"""Two bundles at once: who is split how, what is found, and a shadow that nobody waits for."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.errors import StoreError
from tamis.evaluation import UserTotals, arm_difference, compare_arms
from tamis.evaluation.sequential import always_valid_looks
from tamis.funnel.ab_test import SplitByUser
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.funnel.value import ValueWeights
from tamis.serving import experiment_wire
from tamis.serving import experiments as module
from tamis.serving import shadow as shadow_module
from tamis.serving.app import make_app
from tamis.serving.drift import DriftWatch
from tamis.serving.engine import Engine
from tamis.serving.experiments import Experiments
from tamis.serving.live_ads import codes_of
from tamis.serving.metrics import Metrics
from tamis.serving.records import Experiment
from tamis.serving.store import Store

pytestmark = pytest.mark.slow

USERS = [f"user {number}" for number in range(60)]


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def client(engine: Engine, bundles: Path, call_app: Callable[[Any], Any]) -> Any:
    metrics = Metrics(DriftWatch(settle_s=0.3))
    engine._watch = metrics
    return call_app(make_app(engine, metrics, bundles=bundles))


@pytest.fixture
def releases(bundles: Path) -> tuple[str, str]:
    return read_bundle(bundles / "first").release, read_bundle(bundles / "second").release


@pytest.fixture
def body(releases: tuple[str, str]) -> dict[str, Any]:
    return {"replaces": releases[0], "release": releases[1]}


def _refused(response: Any, status: int, field: str, message: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["field"] == field
    assert re.search(message, error["message"])


def _rank(client: Any, user: str | None, **more: Any) -> dict[str, Any]:
    found = client.post("/v1/rank", json={"user": {"id": user}, "k": 3, **more})
    assert found.status_code == 200, found.text
    return found.json()


def _wait(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_users_are_split_by_their_id(
    client: Any, engine: Engine, body: dict[str, Any], releases: tuple[str, str]
) -> None:
    begun = client.post("/v1/admin/experiments/one", json={**body, "treated_share": 0.3})
    assert begun.status_code == 200, begun.text
    assert (begun.json()["is_running"], begun.json()["split"]) == (True, None)
    assert client.get("/v1/about").json()["experiment"] == "one"

    served = {user: _rank(client, user)["release"] for user in USERS}

    # By the very function that splits users offline.
    split = SplitByUser(salt=module._salt("one"), treated_share=0.3)
    treated = split.is_treated(codes_of(USERS))
    assert [served[user] == releases[1] for user in USERS] == treated.tolist()
    assert 5 < treated.sum() < 35
    assert {user: _rank(client, user)["release"] for user in USERS} == served
    # Who is not known is served by the control, and is in no experiment.
    assert {_rank(client, None)["release"] for _ in range(20)} == {releases[0]}

    engine.write([]).result(60)
    look = client.get("/v1/experiments/one").json()
    assert look["split"]["treated_users"] == treated.sum()
    assert look["split"]["control_users"] == len(USERS) - treated.sum()
    assert look["split"]["is_mismatch"] is False
    assert [item["difference"] for item in look["metrics"]] == [
        None, None, None, {**look["metrics"][3]["difference"]}
    ]  # fmt: skip

    assert client.delete("/v1/admin/experiments/one").status_code == 204
    assert {_rank(client, user)["release"] for user in USERS} == {releases[0]}
    ended = client.get("/v1/experiments/one").json()
    assert (ended["is_running"], ended["split"]) == (False, look["split"])
    assert ended["ended_micros"] >= ended["began_micros"]


def test_another_experiment_splits_users_anew() -> None:
    users = codes_of([f"user {number}" for number in range(20_000)])
    one, other = (
        SplitByUser(salt=module._salt(name), treated_share=0.5).is_treated(users)
        for name in ("one", "other")
    )

    # Shares of 20,000 users are within four standard deviations, of 0.35 % each.
    for share in (one.mean(), other.mean(), (one == other).mean()):
        assert share == pytest.approx(0.5, abs=0.015)


def test_estimate_is_that_of_what_users_did(
    client: Any,
    engine: Engine,
    body: dict[str, Any],
    releases: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tamis.evaluation.sequential.LEAST_USERS", 1)
    plan = {**body, "smallest": {"click_rate": 0.05, "value_per_user": 0.1}}
    client.post("/v1/admin/experiments/one", json=plan).raise_for_status()
    generator = np.random.default_rng(0)
    sums: dict[str, np.ndarray] = {}
    for number in range(150):
        user = USERS[number % len(USERS)]
        answer = _rank(client, user, request_id=f"r{number}")
        treated = answer["release"] == releases[1]
        mine = sums.setdefault(user, np.array([treated, 0, 0, 0, 0, 0, 0.0]))
        events = []
        for ad in answer["ads"]:
            clicked = generator.random() < (0.6 if treated else 0.3)
            hidden = generator.random() < 0.1
            kinds = ["impression", *["click"] * clicked, *["hide"] * hidden]
            mine += [0, 1, clicked, 0, 0, hidden, clicked * ad["bid"] + ad["quality"]]
            events += [
                {"event_id": f"{number} {ad['ad']} {kind}", "kind": kind, "ad": ad["ad"],
                 "user": user, "request_id": f"r{number}"}
                for kind in kinds
            ]  # fmt: skip
        client.post("/v1/events", json={"events": events}).raise_for_status()

    look = client.get("/v1/experiments/one").json()

    columns = np.stack(list(sums.values())).T
    totals = UserTotals(
        is_treated=columns[0] == 1, impressions=columns[1], clicks=columns[2],
        # No conversion is settled within a day.
        settled_clicks=np.ones_like(columns[0]), conversions=columns[4], hides=columns[5],
        value=columns[6],
    )  # fmt: skip
    metrics = {item["metric"]: item for item in look["metrics"]}
    for truth in compare_arms(totals).differences:
        if truth.metric == "conversion_rate":
            continue
        found = metrics[truth.metric]["difference"]
        assert found["difference"]["value"] == pytest.approx(truth.difference, rel=1e-9)
        assert found["difference"]["lower"] == pytest.approx(truth.lower, rel=1e-9)
        assert found["lift"]["upper"] == pytest.approx(truth.lift_upper, rel=1e-9)
        assert found["control"]["value"] == pytest.approx(truth.control.value, rel=1e-9)
        assert found["p_value"] == pytest.approx(truth.p_value, rel=1e-6, abs=1e-12)
    assert metrics["conversion_rate"] == {
        "metric": "conversion_rate", "difference": None, "guarded": None
    }  # fmt: skip
    clicks = metrics["click_rate"]
    assert clicks["difference"]["difference"]["lower"] > 0
    # One may look as often as one likes at what was fixed before, and pays with width.
    assert clicks["guarded"]["lower"] < clicks["difference"]["difference"]["lower"]
    assert clicks["guarded"]["upper"] > clicks["difference"]["difference"]["upper"]
    assert metrics["hide_rate"]["guarded"] is None
    # Three days later the same value is a third as much a day.
    worth = next(item for item in compare_arms(totals).differences if "value" in item.metric)
    plan_of = next(item for item in engine.store.experiments() if item.experiment == "one")
    later = module._look_at("value_per_user", totals, plan_of, 3.0).guarded
    assert later is not None
    expected = always_valid_looks(
        [worth.difference / 3], [worth.standard_error / 3], mixture_sd=0.1
    )
    assert later.lower.tolist() == expected.lower.tolist()
    now = metrics["value_per_user"]["guarded"]
    assert now["lower"] < later.lower[0]


def test_single_impressions_of_the_arms_are_not_certain(
    client: Any, body: dict[str, Any], releases: tuple[str, str]
) -> None:
    plan = {**body, "smallest": {"click_rate": 0.05}}
    client.post("/v1/admin/experiments/one", json=plan).raise_for_status()
    seen = set()
    for user in USERS:
        answer = _rank(client, user, request_id=f"of {user}")
        if answer["release"] in seen:
            continue
        seen.add(answer["release"])
        kinds = ["impression", *["click"] * (answer["release"] == releases[1])]
        events = [
            {"event_id": f"{user} {kind}", "kind": kind, "ad": answer["ads"][0]["ad"],
             "user": user, "request_id": f"of {user}"}
            for kind in kinds
        ]  # fmt: skip
        client.post("/v1/events", json={"events": events}).raise_for_status()

    clicks = client.get("/v1/experiments/one").json()["metrics"][0]

    assert clicks["metric"] == "click_rate"
    assert clicks["difference"]["difference"] == {"value": 1.0, "lower": None, "upper": None}
    assert (clicks["difference"]["p_value"], clicks["difference"]["lift"]) == (None, None)
    assert clicks["guarded"] is None


def test_arms_whose_users_are_all_alike_have_no_interval_on_the_wire() -> None:
    alike = arm_difference("click_rate", [0, 0, 1, 1], np.full(4, 0.1), np.ones(4))

    body = experiment_wire._difference(alike).model_dump()

    assert body["difference"] == {"value": 0.0, "lower": None, "upper": None}
    assert (body["lift"], body["p_value"]) == (None, 1.0)


def test_arms_have_the_same_ads(client: Any, body: dict[str, Any]) -> None:
    client.post("/v1/admin/experiments/one", json=body).raise_for_status()
    ad = {"features": {}, "bid": 1e6, "billing": "click", "advertiser": "me", "popularity": 1e6}
    client.put("/v1/ads/new", json=ad).raise_for_status()

    both = [_rank(client, user) for user in USERS[:20]]
    assert {answer["ads"][0]["ad"] for answer in both} == {"new"}
    assert len({answer["release"] for answer in both}) == 2
    client.delete("/v1/ads/new").raise_for_status()
    again = [_rank(client, user) for user in USERS[:20]]
    assert "new" not in {ad["ad"] for answer in again for ad in answer["ads"]}


def test_experiment_that_cannot_be_is_refused(
    client: Any, engine: Engine, body: dict[str, Any], releases: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def begin(name: str = "one", **changes: Any) -> Any:
        return client.post(f"/v1/admin/experiments/{name}", json={**body, **changes})

    _refused(begin(replaces="0" * 64), 409, "body.replaces", "must be the release that serves")
    _refused(begin(release="0" * 64), 404, "body.release", "must be of a bundle in the server's")
    _refused(begin(release=releases[0]), 409, "body.release", "must be another release than the")
    _refused(begin("A/B"), 404, "path", "openapi")
    _refused(begin("AB"), 422, "path.experiment", "pattern")
    _refused(begin(treated_share=1.0), 422, "body.treated_share", "less than 1")
    _refused(begin(smallest={"revenue": 1.0}), 422, "body.smallest.revenue.[key]", "click_rate")
    _refused(begin(smallest={"click_rate": 0}), 422, "body.smallest.click_rate", "greater than 0")
    _refused(client.get("/v1/experiments/none"), 404, "path.experiment", "must be an experiment")
    _refused(client.delete("/v1/admin/experiments/none"), 404, "path.experiment", "there is none")

    def other_value(folder: Path, release: str) -> Bundle:
        found = read_bundle(folder / "second")
        weights = ValueWeights(penalties={"hide": 1.0})
        return replace(found, blueprint=replace(found.blueprint, weights=weights))

    with monkeypatch.context() as patched:
        patched.setattr(module, "take_bundle", other_value)
        _refused(begin(), 409, "body.release", "must value events as the bundle that serves")
    with monkeypatch.context() as patched:
        patched.setattr(engine.store, "put_experiment", _fail)
        assert begin().status_code == 503
    assert (engine.beside, client.get("/v1/about").json()["experiment"]) == (None, None)

    begin().raise_for_status()
    _refused(begin("other"), 409, "path.experiment", "must be the only one; another runs")
    swap = {"replaces": releases[0], "release": releases[1]}
    _refused(client.post("/v1/admin/bundle", json=swap), 409, "server", "must run no experiment")
    client.delete("/v1/admin/experiments/one").raise_for_status()
    _refused(begin(), 409, "path.experiment", "must be new; it was used before")
    assert engine.beside is None
    client.post("/v1/admin/bundle", json=swap).raise_for_status()


def _fail(*arguments: Any, **named: Any) -> Any:
    raise StoreError("store: must be reachable, got nothing.")


@pytest.fixture
def make_experiments(bundles: Path) -> Iterator[Callable[..., Experiments]]:
    made: list[Experiments] = []

    def make(engine: Engine, folder: Path = bundles) -> Experiments:
        made.append(Experiments(engine, folder, DriftWatch()))
        return made[-1]

    yield make
    for experiments in made:
        experiments.close()


@pytest.fixture
def plan(releases: tuple[str, str]) -> Experiment:
    return Experiment(
        experiment="one", kind="split", control=releases[0], treatment=releases[1],
        treated_share=0.5, attribution_micros=10**9, smallest={}, began_micros=10**15,
    )  # fmt: skip


def test_experiment_goes_on_when_the_server_starts_again(
    make_engine: Callable[..., Engine], make_experiments: Callable[..., Experiments],
    plan: Experiment, tmp_path: Path,
) -> None:  # fmt: skip
    before = make_experiments(make_engine())
    before.start(plan)
    arms = [before.choose(user)[1] for user in USERS]
    before.close()

    again = make_experiments(make_engine())
    assert [again.choose(user)[1] for user in USERS] == arms
    assert len({again.choose(user)[0].served.release for user in USERS}) == 2

    # Without its bundle, and beside another control, it waits; what serves goes on.
    for engine, folder in ((make_engine(), tmp_path), (make_engine("second"), None)):
        waiting = make_experiments(engine) if folder is None else make_experiments(engine, folder)
        assert waiting.running is None
        assert {waiting.choose(user) for user in USERS[:5]} == {(engine.live, None)}
        assert waiting.look("one", now_micros=10**15).is_running is False
    waiting.stop("one", now_micros=10**15 + 1)
    assert make_experiments(make_engine()).running is None


def test_exposure_is_on_the_disk_with_the_event_that_names_it(
    client: Any, body: dict[str, Any], tmp_path: Path
) -> None:
    client.post("/v1/admin/experiments/one", json=body).raise_for_status()
    answer = _rank(client, "u", request_id="r")
    ad = answer["ads"][0]
    event = {"event_id": "e", "kind": "click", "ad": ad["ad"], "user": "u", "request_id": "r"}
    client.post("/v1/events", json={"events": [event]}).raise_for_status()

    # As another process sees it, without the server having been closed.
    store = Store(f"sqlite:///{tmp_path / 'engine.db'}")
    (plan,) = store.experiments()
    totals = store.totals(plan, now_micros=plan.began_micros)
    assert totals.clicks.tolist() == [1.0]
    assert totals.value.tolist() == [pytest.approx(ad["bid"] + ad["quality"])]
    store.close()


def test_shadow_scores_what_is_served_and_serves_nobody(
    client: Any, engine: Engine, body: dict[str, Any], releases: tuple[str, str]
) -> None:
    client.post("/v1/admin/experiments/dark", json={**body, "kind": "shadow"}).raise_for_status()
    for number, user in enumerate(USERS[:12]):
        answer = _rank(client, user, request_id=f"r{number}")
        assert answer["release"] == releases[0]
        _wait(lambda n=number: client.get("/v1/experiments/dark").json()["shadow"]["scored"] > n)
        events = [
            {"event_id": f"{number} {ad['ad']}", "kind": "click" if number % 3 else "impression",
             "ad": ad["ad"], "request_id": f"r{number}"}
            for ad in answer["ads"]
        ]  # fmt: skip
        client.post("/v1/events", json={"events": events}).raise_for_status()
    time.sleep(0.4)

    look = client.get("/v1/experiments/dark").json()

    assert (look["split"], look["metrics"]) == (None, [])
    assert look["shadow"]["failed"] == look["shadow"]["dropped"] == 0
    assert look["shadow"]["overlap"] == 1.0
    # The second bundle has the same models, and differs in its reserve price alone; but it scores
    # fewer ads at a time, and some processors round a row by how many there are.
    for found in look["shadow"]["log_loss_differences"].values():
        interval = (found["value"], found["lower"], found["upper"])
        assert interval == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    drift = {item["release"]: item["tasks"] for item in client.get("/v1/watch").json()["drift"]}
    assert drift.keys() == set(releases)
    served, shadow = (drift[release]["click"]["all"] for release in releases)
    assert shadow["rows"] == served["rows"] > 0
    assert shadow["log_loss"] == pytest.approx(served["log_loss"])
    assert "tamis_shadow_scored 12.0" in client.get("/metrics").text
    # Nothing of the shadow is written down: its requests are not those of users.
    engine.write([]).result(60)
    assert {item.request.release for item in engine.store.joined()} == {releases[0]}
    assert engine.store.counts(USERS[0])["request"] == 1


def test_shadow_that_hangs_holds_up_nobody(
    client: Any, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    answer_all = shadow_module.answer_all

    def hang(*arguments: Any) -> Any:
        assert goes_on.wait(120)
        return answer_all(*arguments)

    monkeypatch.setattr(shadow_module, "answer_all", hang)
    client.post("/v1/admin/experiments/dark", json={**body, "kind": "shadow"}).raise_for_status()
    for number in range(80):
        _rank(client, str(number))

    # One is being scored, 64 wait, and the others were dropped at once.
    report = client.get("/v1/experiments/dark").json()["shadow"]
    assert (report["scored"], report["dropped"]) == (0, 15)
    assert "tamis_shadow_dropped 15.0" in client.get("/metrics").text
    time.sleep(2.1)
    goes_on.set()
    # What has waited for longer than two seconds is of no use any more.
    _wait(lambda: client.get("/v1/experiments/dark").json()["shadow"]["dropped"] == 79)
    assert client.get("/v1/experiments/dark").json()["shadow"]["scored"] == 1


def test_shadow_waits_while_others_do(
    client: Any, engine: Engine, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/v1/admin/experiments/dark", json={**body, "kind": "shadow"}).raise_for_status()
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "num_waiting", 1)
        _rank(client, "u")
        time.sleep(0.3)
        assert client.get("/v1/experiments/dark").json()["shadow"]["scored"] == 0

    _wait(lambda: client.get("/v1/experiments/dark").json()["shadow"]["scored"] == 1)


def test_shadow_that_fails_is_counted_and_says_nothing_of_users(
    client: Any, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(*arguments: Any) -> Any:
        raise ValueError("secret user")

    monkeypatch.setattr(shadow_module, "answer_all", fail)
    client.post("/v1/admin/experiments/dark", json={**body, "kind": "shadow"}).raise_for_status()
    _rank(client, "secret user")

    _wait(lambda: client.get("/v1/experiments/dark").json()["shadow"]["failed"] == 1)
    assert "a shadow could not score: ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_experiments_need_the_token(
    engine: Engine, bundles: Path, call_app: Callable[[Any], Any], body: dict[str, Any]
) -> None:
    from tamis.serving.guard import Token

    client = call_app(make_app(engine, Metrics(), bundles=bundles, token=Token("a" * 20)))
    for method, path in (
        ("POST", "/v1/admin/experiments/one"), ("DELETE", "/v1/admin/experiments/one"),
        ("GET", "/v1/experiments/one"),
    ):  # fmt: skip
        found = client.request(method, path, json=body if method == "POST" else None)
        _refused(found, 401, "header.authorization", "Bearer")
    assert engine.beside is None
