"""Plans of an index and of two towers: back from the disk, with other ads, with other weights."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tamis.data.batch import blank_batch
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.errors import ArtifactError, ConfigError, DataError, SchemaError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.cache import UserCache
from tamis.funnel.candidates import Candidates
from tamis.funnel.log import logged_requests
from tamis.funnel.plan import Surroundings
from tamis.funnel.plans import PLANS, RankerPlan
from tamis.funnel.ranker import AdFeatures
from tamis.funnel.request import Request
from tamis.funnel.retrieval_plans import IndexPlan, IndexSettings, TwoTowerPlan, TwoTowerSettings
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.models.trained import TrainedModel
from tamis.models.two_tower import TwoTower, TwoTowerConfig
from tamis.retrieval.exact import ExactSearcher
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.searcher import Request as Query
from tamis.testing.stages import check_stage


def _index(blueprint: Blueprint) -> IndexPlan:
    plan = blueprint.stages[0].plan
    assert isinstance(plan, IndexPlan)
    return plan


@pytest.fixture(scope="module")
def towers(market_data: Dataset) -> TrainedModel:
    config = TwoTowerConfig(embedding_dim=4, tower_dim=8, attention_units=4, init_std=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = TwoTower(config, market_data.spec).eval()
    return TrainedModel(name="two_tower", config=config, spec=market_data.spec, module=module)


def _surroundings(blueprint: Blueprint, requests: Encoders | None = None) -> Surroundings:
    return Surroundings(
        encoders=blueprint.encoders,
        requests=requests or blueprint.encoders,
        inventory=blueprint.inventory,
        value=ValueFunction(blueprint.weights),
    )


def _request(blueprint: Blueprint, data: Dataset) -> Request:
    return next(logged_requests(data.split("train"), data.spec, blueprint.inventory.codes))


def _all(blueprint: Blueprint) -> Candidates:
    count = len(blueprint.inventory)
    return Candidates(ads=np.arange(count), scores=np.zeros(count))


def test_index_survives_the_disk(searched: Blueprint, market_data: Dataset, tmp_path: Path) -> None:
    plan, request = _index(searched), _request(searched, market_data)
    plan.write(tmp_path)

    found = PLANS["index"].read(tmp_path)

    assert isinstance(found, IndexPlan)
    assert (found.snapshot.version, found.settings) == (plan.snapshot.version, plan.settings)
    before, after = (
        made.build(_surroundings(searched))(request, _all(searched), 30) for made in (plan, found)
    )
    assert before.candidates.ads.tolist() == after.candidates.ads.tolist()
    assert before.candidates.scores.tolist() == after.candidates.scores.tolist()
    assert before.levels == after.levels


def test_index_of_other_weights_is_refused(searched: Blueprint, tmp_path: Path) -> None:
    plan = _index(searched)
    plan.write(tmp_path)
    other = PLANS["index"].read(tmp_path)
    assert isinstance(other, IndexPlan)
    with torch.no_grad():
        other.model.module.levels[0].shift += 1e-3

    with pytest.raises(ArtifactError, match=r"weights must be those it was published from"):
        replace(plan, model=other.model)


def test_index_with_more_ads_and_without_them_is_the_same(searched: Blueprint) -> None:
    plan, inventory = _index(searched), searched.inventory
    new = inventory.without_ads(inventory.codes[4:])
    # The same features under codes that nobody knows.
    new = replace(new, codes=np.array([11, 12, 13, 14]))

    grown = plan.with_ads(new, searched.encoders)

    assert isinstance(grown, IndexPlan)
    assert grown.snapshot.num_items == plan.snapshot.num_items + 4
    assert grown.snapshot.version != plan.snapshot.version
    assert grown.without_ads(new.codes).snapshot.version == plan.snapshot.version  # type: ignore[attr-defined]
    again = plan.of_ads(inventory, searched.encoders)
    assert again.snapshot.version == plan.snapshot.version


def test_ads_that_the_index_does_not_hold_need_not_be_taken_out(searched: Blueprint) -> None:
    plan, codes = _index(searched), searched.inventory.codes

    smaller = plan.without_ads(codes[:2])
    again = smaller.without_ads(codes[:3])

    assert plan.snapshot.num_items - smaller.snapshot.num_items == 2
    assert smaller.without_ads(codes[:2]) is smaller
    assert again.snapshot.version == plan.without_ads(codes[:3]).snapshot.version


def test_ads_that_stand_in_the_index_alone_are_refused(searched: Blueprint) -> None:
    codes = searched.inventory.codes
    smaller = replace(searched, inventory=searched.inventory.without_ads(codes[:2]))

    with pytest.raises(DataError, match=r"its ads must be of the inventory, got 2 of \d+ that are"):
        smaller.build()


def test_value_that_the_model_does_not_predict_is_refused(searched: Blueprint) -> None:
    other = replace(searched, weights=ValueWeights(penalties={"report": 1.0}))

    with pytest.raises(ConfigError, match=r"report: must be a task of .*, got 'report' beside a"):
        _index(searched).build(_surroundings(other))
    plan = replace(
        _index(searched), settings=IndexSettings(beams=(3, 5), task_weights=(1.0, 0.0, 0.0))
    )
    plan.build(_surroundings(other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (IndexSettings(beams=(3,)), r"one for each of 2 index levels of the model, got \(3,\)"),
        (IndexSettings(beams=(3, 0)), r"beams must be at least 1, .*, got \(3, 0\)"),
        (IndexSettings(beams=(3, 5), task_weights=(1.0,)), r"one for each of 3 tasks, got 1"),
    ],
)
def test_settings_of_another_model_are_refused(
    searched: Blueprint, settings: IndexSettings, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(_index(searched), settings=settings)


def test_other_models_are_refused(searched: Blueprint, towers: TrainedModel) -> None:
    final = searched.stages[2].plan
    assert isinstance(final, RankerPlan)

    with pytest.raises(ConfigError, match=r"kind 'index': model must be 'hsnn', got 'two_tower'"):
        replace(_index(searched), model=towers)
    with pytest.raises(ConfigError, match=r"'two_tower': model must be 'two_tower', got 'din'"):
        TwoTowerPlan(model=final.model)
    with pytest.raises(ConfigError, match=r"task_weights must be one for each of 3 tasks, got 2"):
        TwoTowerPlan(model=towers, settings=TwoTowerSettings(task_weights=(1.0, 2.0)))


def test_two_towers_find_what_exact_search_finds(
    blueprint: Blueprint, market_data: Dataset, towers: TrainedModel
) -> None:
    request, inventory = _request(blueprint, market_data), blueprint.inventory
    settings = TwoTowerSettings(task_weights=(1.0, 0.0, -2.0), by_bid=False)
    stage = TwoTowerPlan(model=towers, settings=settings).build(_surroundings(blueprint))

    found = stage(request, _all(blueprint), 12)

    module, features = towers.module, AdFeatures.of_rows(
        inventory.rows, market_data.schema, market_data.spec
    )  # fmt: skip
    assert isinstance(module, TwoTower)
    ads = torch.arange(len(inventory))
    items = features.pairs(
        blank_batch(market_data.spec, 1, torch.device("cpu")), torch.zeros_like(ads), ads
    )
    vectors = ItemVectors.encode(module, [(torch.from_numpy(inventory.codes), items)])
    queries = module.queries((1.0, 0.0, -2.0))
    assert request.features is not None
    expected = ExactSearcher(vectors, queries).search(Query(user=request.features), 12)
    assert inventory.codes[found.candidates.ads].tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.candidates.scores, expected.scores.numpy(), rtol=1e-5)
    assert found.scored_pairs == len(inventory)
    assert found.flops == expected.trace.flops


def test_bids_move_the_order_of_two_towers_as_logarithms(
    blueprint: Blueprint, market_data: Dataset, towers: TrainedModel
) -> None:
    request, bid = _request(blueprint, market_data), blueprint.inventory.attributes.bid
    count = len(bid)
    plain, by_bid = (
        TwoTowerPlan(model=towers, settings=TwoTowerSettings(by_bid=chosen))
        .build(_surroundings(blueprint))(request, _all(blueprint), count)
        .candidates
        for chosen in (False, True)
    )

    scores = np.zeros(count)
    scores[plain.ads] = plain.scores
    np.testing.assert_allclose(by_bid.scores, (scores + np.log(bid))[by_bid.ads], rtol=1e-5)
    assert plain.ads[:10].tolist() != by_bid.ads[:10].tolist()


def test_two_towers_survive_the_disk_and_keep_the_promises(
    blueprint: Blueprint, market_data: Dataset, towers: TrainedModel, tmp_path: Path
) -> None:
    plan = TwoTowerPlan(model=towers, settings=TwoTowerSettings(by_bid=False))
    plan.write(tmp_path)

    found = PLANS["two_tower"].read(tmp_path)

    assert isinstance(found, TwoTowerPlan)
    assert (found.settings, found.model_name) == (plan.settings, "two_tower")
    request = _request(blueprint, market_data)
    stages = [made.build(_surroundings(blueprint)) for made in (plan, found)]
    scores = [s(request, _all(blueprint), 9).candidates.scores.tolist() for s in stages]
    assert scores[0] == scores[1]
    check_stage(stages[1], request, np.array([14, 3, 9, 25, 0, 7, 2, 31]))
    nobody = Request(request_id=3, user=0, time_micros=0, slots=1)
    with pytest.raises(DataError, match=r"request 3: must have features for retrieval"):
        stages[1](nobody, _all(blueprint), 9)


@pytest.mark.parametrize("kind", ["index", "two_tower"])
def test_answers_are_the_same_with_and_without_a_cache_that_is_hit(
    searched: Blueprint, market_data: Dataset, towers: TrainedModel, kind: str, tmp_path: Path
) -> None:
    plain = _index(searched) if kind == "index" else TwoTowerPlan(model=towers)
    cache = UserCache(time_to_live_ms=60_000.0, max_users=7)
    replace(plain, settings=replace(plain.settings, cache=cache)).write(tmp_path)
    kept = PLANS[kind].read(tmp_path)
    assert kept.settings.cache == cache  # type: ignore[attr-defined]
    without, stage = (plan.build(_surroundings(searched)) for plan in (plain, kept))
    stream = logged_requests(market_data.split("train"), market_data.spec, searched.inventory.codes)
    # Each of six users comes back, and some ads are not allowed the second time.
    requests = list({one.user: one for one in itertools.islice(stream, 40)}.values())[:6]
    few = _all(searched).take(np.arange(0, len(searched.inventory), 2))

    for candidates, hits in ((_all(searched), 0), (_all(searched), 1), (few, 0), (few, 1)):
        for request in requests:
            expected, found = without(request, candidates, 12), stage(request, candidates, 12)
            assert found.candidates.ads.tolist() == expected.candidates.ads.tolist()
            assert found.candidates.scores.tolist() == expected.candidates.scores.tolist()
            assert (found.cache_lookups, found.cache_hits) == (1, hits)
            assert found.scored_pairs == (0 if hits else expected.scored_pairs)
        together = stage.score_all(requests, [candidates] * len(requests), 12)  # type: ignore[attr-defined]
        assert [scored.cache_hits for scored in together] == [1] * len(requests)
    check_stage(stage, requests[0], np.array([14, 3, 9, 25, 0, 7, 2, 31]))


def test_answer_serves_a_user_whose_features_change_until_its_time_is_over(
    blueprint: Blueprint, market_data: Dataset, towers: TrainedModel
) -> None:
    settings = TwoTowerSettings(cache=UserCache(time_to_live_ms=10.0))
    stage = TwoTowerPlan(model=towers, settings=settings).build(_surroundings(blueprint))
    stream = logged_requests(
        market_data.split("train"), market_data.spec, blueprint.inventory.codes
    )
    first, other = next(stream), next(stream)
    changed = replace(first, features=other.features)

    before, during, after = (
        stage(replace(one, time_micros=first.time_micros + micros), _all(blueprint), 12)
        for one, micros in ((first, 0), (changed, 10_000), (changed, 10_001))
    )

    assert [one.cache_hits for one in (before, during, after)] == [0, 1, 0]
    assert during.candidates.scores.tolist() == before.candidates.scores.tolist()
    assert after.candidates.scores.tolist() != before.candidates.scores.tolist()


def test_settings_without_a_cache_are_written_as_before_there_was_one(
    towers: TrainedModel, tmp_path: Path
) -> None:
    TwoTowerPlan(model=towers).write(tmp_path)

    assert json.loads((tmp_path / "settings.json").read_text()) == {
        "task_weights": [], "by_bid": True
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["index", "two_tower"])
def test_requests_of_the_same_inputs_in_another_order_give_the_same_answers(
    searched: Blueprint, market_data: Dataset, towers: TrainedModel, kind: str
) -> None:
    plan = _index(searched) if kind == "index" else TwoTowerPlan(model=towers)
    schema = searched.encoders.schema
    other = replace(searched.encoders, schema=replace(schema, fields=schema.fields[::-1]))
    request = _request(searched, market_data)
    assert request.features is not None
    backwards = replace(
        request,
        shown=None,
        features=replace(
            request.features,
            ids=request.features.ids.flip(1),
            numeric=request.features.numeric.flip(1),
            sequences={
                name: replace(jagged, values=jagged.values.flip(1))
                for name, jagged in request.features.sequences.items()
            },
        ),
    )

    plain = plan.build(_surroundings(searched))(request, _all(searched), 20)
    turned = plan.build(_surroundings(searched, other))(backwards, _all(searched), 20)

    assert plain.candidates.ads.tolist() == turned.candidates.ads.tolist()
    assert plain.candidates.scores.tolist() == turned.candidates.scores.tolist()


@pytest.mark.parametrize("kind", ["index", "two_tower"])
def test_requests_that_lack_an_input_are_refused(
    searched: Blueprint, towers: TrainedModel, kind: str
) -> None:
    plan = _index(searched) if kind == "index" else TwoTowerPlan(model=towers)
    schema = searched.encoders.schema
    fields = tuple(item for item in schema.fields if item.name != "gender")
    narrow = replace(searched.encoders, schema=replace(schema, fields=fields))

    with pytest.raises(SchemaError, match=r"stage: field 'gender' must be a category of the user"):
        plan.build(_surroundings(searched, narrow))
