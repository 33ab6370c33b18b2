"""The routes of one ad: what is put is what is looked at; what means nothing changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tamis.errors import DataError
from tamis.serving.app import make_app
from tamis.serving.engine import Engine
from tamis.serving.metrics import Metrics
from tamis.serving.records import StoredAd

RANK = {"user": {"id": "3", "features": {"age": "25-34"}}, "context": {"device": "phone"}, "k": 2}
AD = {
    "features": {"price": 2.5, "format": "video", "category": 4},
    "bid": 2,
    "billing": "click",
    "advertiser": "me",
}


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def client(engine: Engine, bundles: Path, call_app: Callable[[Any], Any]) -> Any:
    return call_app(make_app(engine, Metrics(), bundles=bundles))


def _problem(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    error: dict[str, str] = response.json()["error"]
    return error


def test_ads_are_put_looked_at_and_deleted(client: Any) -> None:
    put = client.put("/v1/ads/brand/new ä", json=AD | {"popularity": 1e6, "bid": 1e6})
    assert put.status_code == 200, put.text
    looked = client.get("/v1/ads/brand/new ä").json()

    assert put.json() == looked
    assert (looked["ad"], looked["bid"], looked["is_from_bundle"]) == ("brand/new ä", 1e6, False)
    assert (looked["features"]["category"], looked["features"]["price"]) == ("4", 2.5)
    assert client.post("/v1/rank", json=RANK).json()["ads"][0]["ad"] == "brand/new ä"
    assert client.delete("/v1/ads/brand/new ä").status_code == 204
    assert _problem(client.get("/v1/ads/brand/new ä"), 404)["field"] == "path.ad"
    assert _problem(client.delete("/v1/ads/brand/new ä"), 404)["field"] == "path.ad"
    assert client.post("/v1/rank", json=RANK).json()["ads"][0]["ad"] != "brand/new ä"


def test_bundles_ad_can_be_deleted_and_put_back(client: Any, engine: Engine) -> None:
    ad = engine.live.ads.ids[0]
    before = client.get(f"/v1/ads/{ad}").json()
    assert before["is_from_bundle"] is True

    assert client.delete(f"/v1/ads/{ad}").status_code == 204
    assert client.get(f"/v1/ads/{ad}").status_code == 404
    assert client.put(f"/v1/ads/{ad}", json=before).json() == before | {"is_from_bundle": False}


def test_ad_that_is_looked_at_changed_and_put_back_is_otherwise_the_same(
    client: Any, engine: Engine
) -> None:
    client.put("/v1/ads/mine", json=AD | {"quality": 0.5, "popularity": 3}).raise_for_status()

    for ad in (engine.live.ads.ids[5], "mine"):
        before = client.get(f"/v1/ads/{ad}").json()
        attributes = engine.live.ads.inventory.attributes
        advertiser = attributes.advertiser[engine.live.ads.row_by_id[ad]]
        put = client.put(f"/v1/ads/{ad}", json=before | {"bid": 7.5})
        assert put.json() == before | {"bid": 7.5, "is_from_bundle": False}
        attributes = engine.live.ads.inventory.attributes
        assert attributes.advertiser[engine.live.ads.row_by_id[ad]] == advertiser
    another = client.put("/v1/ads/yours", json=client.get("/v1/ads/mine").json())
    assert _problem(another, 422)["field"] == "body.ad"


@pytest.mark.parametrize("name", ["features", "bid", "billing", "advertiser"])
def test_put_of_a_part_is_refused(client: Any, engine: Engine, name: str) -> None:
    ad = {key: value for key, value in AD.items() if key != name}

    problem = _problem(client.put("/v1/ads/mine", json=ad), 422)

    assert problem["field"] == f"body.{name}"
    assert "PATCH changes a part" in problem["message"]
    assert engine._store.ads() == {}


def test_patch_changes_what_it_names(client: Any, engine: Engine) -> None:
    ad = engine.live.ads.ids[5]
    before = client.get(f"/v1/ads/{ad}").json()

    first = client.patch(f"/v1/ads/{ad}", json={"bid": 7.5, "features": {"price": None}})
    second = client.patch(f"/v1/ads/{ad}", json={"advertiser": "me", "bid": None})

    features = before["features"] | {"price": None}
    changed = before | {"features": features, "bid": 7.5, "is_from_bundle": False}
    assert first.json() == changed
    assert second.json() == client.get(f"/v1/ads/{ad}").json() == changed | {"advertiser": "me"}
    stored = engine._store.ads()[ad]
    assert stored is not None
    assert (stored.bid, stored.advertiser) == (7.5, "me")


def test_patch_of_nothing_is_refused_and_leaves_the_ad_to_the_bundle(
    client: Any, engine: Engine
) -> None:
    ad = engine.live.ads.ids[0]

    assert _problem(client.patch(f"/v1/ads/{ad}", json={"bid": None}), 422)["field"] == "body"
    assert client.get(f"/v1/ads/{ad}").json()["is_from_bundle"] is True


def test_only_ads_that_are_there_are_changed(client: Any, engine: Engine) -> None:
    gone = engine.live.ads.ids[0]
    client.delete(f"/v1/ads/{gone}")

    for ad in (gone, "never was"):
        assert _problem(client.patch(f"/v1/ads/{ad}", json={"bid": 1}), 404)["field"] == "path.ad"
    assert engine._store.ads() == {gone: None}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bid": -1}, "body.bid"),
        ({"bid": 1e13}, "body.bid"),
        ({"advertiser": ""}, "body.advertiser"),
        ({"billing": "visit"}, "body.billing"),
        ({"popularity": -1}, "body.popularity"),
        ({"features": {"device": "x"}}, "body.features"),
        ({"features": {"ad_id": "x"}}, "body.features"),
        ({"features": {"price": "x"}}, "body.features.price"),
        ({"ship": "x"}, "body.ship"),
    ],
)
def test_ad_that_means_nothing_is_refused(
    client: Any, engine: Engine, changes: dict[str, Any], field: str
) -> None:
    ad = engine.live.ads.ids[0]

    assert _problem(client.put(f"/v1/ads/{ad}", json=AD | changes), 422)["field"] == field
    assert _problem(client.patch(f"/v1/ads/{ad}", json=changes), 422)["field"] == field
    assert engine._store.ads() == {}


def test_ad_that_the_funnel_has_no_place_for_is_refused(
    client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(ad: StoredAd) -> None:
        raise DataError(f"no stage predicts what {ad.ad} is billed by")

    monkeypatch.setattr(engine.live.served.catalogue, "check", check)
    ad = engine.live.ads.ids[0]

    for found in (client.put("/v1/ads/mine", json=AD), client.patch(f"/v1/ads/{ad}", json=AD)):
        assert _problem(found, 422)["field"] == "body.billing"
    assert engine._store.ads() == {}
