"""A published funnel against a log: the record of it, and what cannot be compared."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.errors import ConfigError, DataError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.bundle import read_bundle, write_bundle
from tamis.funnel.bundle_replay import heads_of, replay_bundle
from tamis.funnel.log import logged_requests
from tamis.funnel.plans import RankerPlan, RankerSettings
from tamis.funnel.replay import Reference, replay

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(blueprint: Blueprint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(path, blueprint)
    return path


def test_record_is_that_of_a_replay_of_the_same_funnel(
    bundle: Path, blueprint: Blueprint, market_data: Dataset
) -> None:
    told: list[tuple[int, int]] = []

    record = replay_bundle(
        bundle,
        market_data,
        split="test",
        scope="all",
        progress=lambda done, total: told.append((done, total)),
    )

    funnel = blueprint.build(Encoders.load(market_data.encoders_path, market_data.schema))
    requests = logged_requests(
        market_data.split("test"),
        market_data.spec,
        blueprint.inventory.codes,
        may_be_unknown=True,
    )
    stage = funnel.steps[-1].stage
    expected = replay(
        funnel, requests, reference=Reference(stage=stage, scope="all"), heads=heads_of(funnel)
    ).to_json()
    for name in ("requests", "compared", "scope", "slate_value", "slate_revenue", "heads"):
        assert record[name] == expected[name]
    for ours, theirs in zip(record["stages"], expected["stages"], strict=True):
        for name in ("name", "candidates_out", "measures", "measures_by_value", "cache_hits"):
            assert ours[name] == theirs[name]
        assert ours["fallbacks"] == {}
    item = market_data.split("test").role("item")
    unknown = int((~np.isin(item, blueprint.inventory.codes)).sum())
    assert record["unknown_impressions"] == unknown > 0
    assert record["release"] == read_bundle(bundle).release
    assert record["dataset"] == market_data.fingerprint
    assert record["budgets"]["early"] == {"kind": "early", "keep": 12, "budget_ms": None}
    assert told == [(done, expected["requests"]) for done in range(1, expected["requests"] + 1)]
    json.dumps(record, allow_nan=False)


def test_record_tells_the_mean_cost_of_each_level_of_the_index(
    searched: Blueprint, market_data: Dataset, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "b", searched)

    record = replay_bundle(tmp_path / "b", market_data, split="test", scope="all", limit=12)

    funnel = searched.build()
    codes = searched.inventory.codes
    stream = logged_requests(
        market_data.split("test"), market_data.spec, codes, may_be_unknown=True
    )
    levels = [funnel.answer(next(stream)).stages[0].levels for _ in range(12)]
    found = record["stages"][0]["levels"]
    assert len(found) == 3
    for at, level in enumerate(found):
        for name in ("nodes", "pairs", "kept", "flops"):
            mean = sum(getattr(each[at], name) for each in levels) / 12
            assert level[name] == pytest.approx(mean, rel=1e-12)
    assert found[-1]["nodes"] == len(codes) > found[-1]["pairs"] > found[0]["pairs"]
    assert record["stages"][1]["levels"] == []
    names = [stage["name"] for stage in record["stages"]]
    assert names == ["index", "early", "final", "auction"]
    assert 0 < record["stages"][0]["measures"]["value_kept"] < 1


def test_comparison_of_every_ad_does_not_put_out_scores_that_are_kept(
    blueprint: Blueprint, of_ads_alone: RankerPlan, market_data: Dataset, tmp_path: Path
) -> None:
    for name, settings in (("plain", {}), ("kept", {"max_ads": 70})):
        plan = replace(of_ads_alone, settings=RankerSettings(**settings))
        final = replace(blueprint.stages[2], plan=plan)
        stages = (blueprint.stages[0], final)
        write_bundle(tmp_path / name, replace(blueprint, stages=stages))

    plain, kept, alone = (
        replay_bundle(tmp_path / name, market_data, split="test", scope=scope, limit=20)
        for name, scope in (("plain", "all"), ("kept", "all"), ("kept", None))
    )

    ours, theirs = kept["stages"][1], plain["stages"][1]
    assert ours["measures"] == pytest.approx(theirs["measures"], rel=1e-6)
    assert kept["slate_value"] == pytest.approx(plain["slate_value"], rel=1e-6)
    assert kept["heads"] == plain["heads"]
    # Most popular ads come back each time.
    assert ours["cache_lookups"] == alone["stages"][1]["cache_lookups"] == 20 * 60
    assert ours["cache_hits"] == alone["stages"][1]["cache_hits"] > 1000
    assert theirs["cache_lookups"] == 0


def test_models_are_compared_on_the_labels_that_are_known(
    bundle: Path, market_data: Dataset
) -> None:
    record = replay_bundle(bundle, market_data, split="test", scope=None)

    split = market_data.split("test")
    shown = split.num_rows - record["unknown_impressions"]
    # The imitation of the final stage is no label of what happened.
    assert set(record["heads"]["early"]) == {"click", "conversion", "hide"}
    assert record["heads"]["early"]["click"]["rows"] == shown
    assert record["heads"]["final"]["click"]["rows"] == shown
    assert record["heads"]["final"]["conversion"]["rows"] <= np.nansum(split.labels()[:, 0])
    assert "popular" not in record["heads"]
    assert (record["compared"], record["scope"]) == (0, None)
    assert record["stages"][0]["measures"]["recall"] is None


def test_limit_and_every_thin_the_requests_out(bundle: Path, market_data: Dataset) -> None:
    record = replay_bundle(bundle, market_data, split="test", scope="first", every=4, limit=10)

    assert (record["requests"], record["compared"], record["scope"]) == (10, 3, "first")
    # Of the ten requests alone, not of all rows that were read for them.
    split, codes = market_data.split("test"), read_bundle(bundle).blueprint.inventory.codes
    item, request = split.role("item"), split.role("request")
    last = np.flatnonzero(np.diff(request))[9] + 1
    assert record["unknown_impressions"] == (~np.isin(item[:last], codes)).sum()
    assert record["unknown_impressions"] < (~np.isin(item, codes)).sum()
    # The first stage's own losses are left out.
    assert record["stages"][0]["measures"]["recall"] == 1


def test_last_stage_that_predicts_nothing_is_no_reference(
    blueprint: Blueprint, market_data: Dataset, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "b", replace(blueprint, stages=blueprint.stages[:1]))

    with pytest.raises(ConfigError, match=r"reference: the last stage must predict .*'popular'"):
        replay_bundle(tmp_path / "b", market_data, split="test", scope="all")
    record = replay_bundle(tmp_path / "b", market_data, split="test", scope=None, limit=3)
    assert record["slate_value"] is None


def test_request_for_nothing_and_splits_that_are_not_there_are_refused(
    bundle: Path, market_data: Dataset
) -> None:
    with pytest.raises(ConfigError, match=r"limit: must be at least 1 request, got 0"):
        replay_bundle(bundle, market_data, split="test", scope=None, limit=0)
    with pytest.raises(DataError, match=r"must have a split 'tset', got train, valid, test"):
        replay_bundle(bundle, market_data, split="tset", scope=None)
