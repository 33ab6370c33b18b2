"""Stages from plans: the model's own predictions, whatever columns the requests have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tamis.data.batch import concatenate
from tamis.data.dataset import Dataset
from tamis.errors import ArtifactError, ConfigError, SchemaError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.candidates import Candidates
from tamis.funnel.early import EarlyStageRanker
from tamis.funnel.log import logged_requests
from tamis.funnel.plan import Surroundings, ad_features
from tamis.funnel.plans import PLANS, EarlyStagePlan, RankerPlan, RankerSettings, ReadsPart
from tamis.funnel.ranker import RankerStage
from tamis.funnel.request import Request
from tamis.funnel.tally import PredictsPairs
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.models.early_serving import served_logits
from tamis.testing.stages import check_stage


def _surroundings(blueprint: Blueprint) -> Surroundings:
    return Surroundings(
        encoders=blueprint.encoders,
        requests=blueprint.encoders,
        inventory=blueprint.inventory,
        value=ValueFunction(blueprint.weights),
    )


def _requests(blueprint: Blueprint, data: Dataset, count: int) -> list[Request]:
    stream = logged_requests(data.split("train"), data.spec, blueprint.inventory.codes)
    return [next(stream) for _ in range(count)]


def test_every_kind_is_in_the_table_under_its_own_name() -> None:
    assert {name: plan.kind for name, plan in PLANS.items()} == {
        "popularity": "popularity", "index": "index", "two_tower": "two_tower",
        "early": "early", "ranker": "ranker",
    }  # fmt: skip


@pytest.mark.parametrize("at", [0, 1, 2])
def test_stages_pass_the_suite(blueprint: Blueprint, market_data: Dataset, at: int) -> None:
    stage = blueprint.stages[at].plan.build(_surroundings(blueprint))
    (request,) = _requests(blueprint, market_data, 1)

    check_stage(stage, request, np.array([14, 3, 9, 25, 0, 7, 2, 31]))


def test_model_of_fewer_inputs_reads_its_own_columns(
    blueprint: Blueprint, market_data: Dataset
) -> None:
    plan = blueprint.stages[1].plan
    assert isinstance(plan, EarlyStagePlan)
    stage = replace(plan, calibration=type(plan.calibration)()).build(_surroundings(blueprint))
    assert isinstance(stage, ReadsPart)
    assert isinstance(stage.stage, EarlyStageRanker)
    whole = concatenate([r.features for r in _requests(blueprint, market_data, 8) if r.features])
    rows, ads = np.arange(8), np.arange(8) * 5

    found = stage.predict(whole, rows, ads)

    # The model itself, on rows that were made by hand, category by category.
    assert plan.encoders is not None
    spec, names = plan.model.spec, [item.name for item in blueprint.encoders.spec.categorical]
    by_hand = whole.ids[:, [names.index(item.name) for item in spec.categorical]].clone()
    inventory = blueprint.inventory.rows
    for column, item in enumerate(spec.categorical):
        before = blueprint.encoders.vocabularies[item.name].values.to_pylist()
        after = plan.encoders.vocabularies[item.name].values.to_pylist()
        of_item = inventory.ids.get(item.name)
        for row in rows.tolist():
            had = int(by_hand[row, column] if of_item is None else of_item[ads[row]])
            text = before[had - 1] if had else None
            by_hand[row, column] = after.index(text) + 1 if text in after else 0
    numbers = [blueprint.encoders.spec.numeric.index(name) for name in spec.numeric]
    numeric = whole.numeric[:, numbers].clone()
    for column, name in enumerate(spec.numeric):
        if name in inventory.numeric:
            numeric[:, column] = torch.from_numpy(inventory.numeric[name][ads])
    pairs = replace(whole, ids=by_hand, numeric=numeric, sequences={})
    with torch.inference_mode():
        logits = served_logits(plan.model.module(pairs).logits, spec.tasks, "distilled")
    expected = logits.double().sigmoid().numpy()
    np.testing.assert_allclose(np.stack(list(found.values()), axis=1), expected, atol=1e-6)
    features = ad_features(blueprint.inventory, blueprint.encoders, blueprint.encoders)
    as_one = features.pairs(whole, torch.from_numpy(rows), torch.from_numpy(ads))
    of_rows = stage.predict_rows(as_one, ads)
    np.testing.assert_allclose(np.stack(list(of_rows.values()), axis=1), expected, atol=1e-6)
    assert expected.std(axis=0).min() > 1e-4


def test_model_of_the_requests_inputs_reads_them_as_they_are(blueprint: Blueprint) -> None:
    stage = blueprint.stages[2].plan.build(_surroundings(blueprint))

    assert isinstance(stage, RankerStage)


def test_request_without_features_is_refused_by_the_stage_itself(blueprint: Blueprint) -> None:
    stage = blueprint.stages[1].plan.build(_surroundings(blueprint))
    request = Request(request_id=3, user=0, time_micros=0, slots=1)

    with pytest.raises(ValueError, match=r"request 3: must have features for a ranker"):
        stage(request, Candidates(ads=np.arange(2), scores=np.zeros(2)), 1)


def test_model_that_takes_the_ads_id_from_the_request_is_refused(blueprint: Blueprint) -> None:
    schema = blueprint.encoders.schema
    fields = [
        replace(item, side="context") if item.name == "ad_id" else item for item in schema.fields
    ]
    encoders = replace(blueprint.encoders, schema=replace(schema, fields=tuple(fields)))
    plan = replace(blueprint.stages[2].plan, encoders=encoders)

    with pytest.raises(SchemaError, match=r"stage: field 'ad_id' must be of side 'item'"):
        plan.build(_surroundings(blueprint))


def test_early_stage_that_counts_events_by_category_is_refused(
    blueprint: Blueprint, counting: Blueprint
) -> None:
    plan = blueprint.stages[1].plan
    assert isinstance(plan, EarlyStagePlan)
    model = replace(plan.model, spec=replace(counting.encoders.spec, tasks=plan.model.spec.tasks))

    with pytest.raises(
        SchemaError,
        match=r"field 'user_requests' must not count events of 'history_categories', as a stage of "
        r"kind 'early' .*, got side 'context'\. Take it out of schema.toml, ingest the log anew",
    ):
        replace(plan, model=model).build(_surroundings(blueprint))


@pytest.mark.parametrize("at", [1, 2])
def test_stage_that_lacks_a_prediction_of_the_value_is_refused(
    blueprint: Blueprint, at: int
) -> None:
    wants_more = replace(blueprint, weights=ValueWeights(penalties={"report": 1.0}))

    with pytest.raises(ConfigError, match=r"report: must be a task of .*, got 'report' beside a"):
        blueprint.stages[at].plan.build(_surroundings(wants_more))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_plan_survives_the_disk(blueprint: Blueprint, tmp_path: Path, at: int) -> None:
    plan = blueprint.stages[at].plan
    plan.write(tmp_path)

    found = PLANS[plan.kind].read(tmp_path)

    assert type(found) is type(plan)
    if isinstance(plan, (EarlyStagePlan, RankerPlan)):
        assert isinstance(found, (EarlyStagePlan, RankerPlan))
        assert (found.settings, found.calibration) == (plan.settings, plan.calibration)
        assert found.model.spec == plan.model.spec
        assert (found.encoders is None) == (plan.encoders is None)
        if found.encoders is not None:
            assert found.encoders.spec == plan.model.spec


def test_scores_of_ads_are_the_same_with_and_without_a_cache_that_is_hit(
    blueprint: Blueprint, of_ads_alone: RankerPlan, market_data: Dataset, tmp_path: Path
) -> None:
    plain = of_ads_alone
    replace(plain, settings=RankerSettings(max_ads=40)).write(tmp_path)
    kept = RankerPlan.read(tmp_path)
    assert kept.settings == RankerSettings(max_ads=40)
    without, stage = (plan.build(_surroundings(blueprint)) for plan in (plain, kept))
    assert isinstance(without, PredictsPairs)
    assert isinstance(stage, PredictsPairs)
    ads, hits = np.arange(len(blueprint.inventory)), []

    for at, request in enumerate(_requests(blueprint, market_data, 6)):
        # Half of them are those of the request before.
        asked = np.arange(10 * at, 10 * at + 20)
        candidates = Candidates(ads=asked, scores=np.zeros(20))
        scored = stage(request, candidates, 20)
        expected, found = without(request, candidates, 20).candidates, scored.candidates
        order = np.argsort(found.ads)
        assert found.ads[order].tolist() == expected.ads.tolist()
        np.testing.assert_allclose(found.scores[order], expected.scores, rtol=1e-6)
        for name, values in expected.predictions.items():
            np.testing.assert_allclose(found.predictions[name][order], values, rtol=1e-6)
        hits.append((scored.cache_hits, stage(request, candidates, 20).cache_hits))
        rows = np.zeros(len(ads), np.int64)
        assert request.features is not None
        pairs = [one.predict(request.features, rows, ads) for one in (without, stage)]
        assert pairs[0]["click"].tolist() == pairs[1]["click"].tolist()

    assert hits == [(0, 20), *[(10, 20)] * 5]
    check_stage(stage, request, np.array([14, 3, 9, 25, 0, 7, 2, 31]))
    # Another building is of other ads, and knows nothing of these.
    fresh = kept.build(_surroundings(blueprint))(request, candidates, 20)
    assert (fresh.cache_lookups, fresh.cache_hits) == (20, 0)


@pytest.mark.parametrize(
    ("name", "side"), [("gender", "user"), ("hour", "context"), ("history_ads", "user")]
)
def test_scores_that_depend_on_the_request_are_not_kept(
    blueprint: Blueprint, of_ads_alone: RankerPlan, name: str, side: str
) -> None:
    whole, spec = blueprint.encoders.spec, of_ads_alone.model.spec
    for group in whole.sequences:
        if name in group.fields:
            spec, name = replace(spec, sequences=(group,)), group.name
    more = tuple(item for item in whole.categorical if item.name == name)
    model = replace(of_ads_alone.model, spec=replace(spec, categorical=(*spec.categorical, *more)))

    with pytest.raises(
        ConfigError, match=rf"max_ads must be left out .*, got '{name}' of side '{side}'\. Remove"
    ):
        RankerPlan(model=model, settings=RankerSettings(max_ads=40))
    assert RankerPlan(model=model).settings.max_ads is None


def test_early_stage_of_another_model_is_refused(blueprint: Blueprint) -> None:
    final = blueprint.stages[2].plan
    assert isinstance(final, RankerPlan)

    with pytest.raises(ConfigError, match=r"kind 'early': model must be 'early_stage', got 'din'"):
        EarlyStagePlan(model=final.model)


def test_settings_that_are_not_known_are_refused(blueprint: Blueprint, tmp_path: Path) -> None:
    blueprint.stages[1].plan.write(tmp_path)
    (tmp_path / "settings.json").write_text('{"heads": "label"}')

    with pytest.raises(ArtifactError, match=r"settings.json: heads: must be a known key"):
        EarlyStagePlan.read(tmp_path)
