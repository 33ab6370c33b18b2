"""From runs to a blueprint: the runs' own predictions, subsets of inputs, and refusals."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tamis import api
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.data.market.schema import market_schema
from tamis.errors import ArtifactError, ConfigError, DataError, SchemaError
from tamis.evaluation.calibrators import IsotonicCalibrator
from tamis.funnel.bundle import read_bundle, write_bundle
from tamis.funnel.cache import UserCache
from tamis.funnel.log import logged_requests
from tamis.funnel.plans import EarlyStagePlan, RankerPlan, ReadsPart
from tamis.funnel.ranker import RankerStage
from tamis.funnel.retrieval_plans import (
    IndexPlan,
    IndexSettings,
    TwoTowerPlan,
    TwoTowerSettings,
)
from tamis.funnel.tally import PredictsPairs
from tamis.publishing.make import make_blueprint, publish
from tamis.publishing.recipe import AdsRecipe, FunnelRecipe, StageRecipe
from tamis.training.compare import read_predictions


def _recipe(world: Path, *, early: str = "early", **options: object) -> FunnelRecipe:
    stages = (
        StageRecipe(name="popular", kind="popularity", keep=80),
        StageRecipe(name="early", kind="early", keep=20, run=str(world / early), **options),  # type: ignore[arg-type]
        StageRecipe(name="final", kind="ranker", keep=5, run=str(world / "final"), budget_ms=1e5),
    )
    ads = AdsRecipe(table=str(world / "market" / "ads.parquet"), bid="bid_micros", bid_unit=1e-6)
    return FunnelRecipe(stages=stages, ads=ads)


def _check_predictions(run: Path, stage: PredictsPairs, codes: np.ndarray, data: Dataset) -> None:
    """Compare a stage with what its run predicted, on the last row of each ad of the test split.

    The inventory must be of that split: there it has the ads' features as these rows do.
    """
    split = data.split("test")
    item = split.role("item")
    assert item is not None
    (batch,) = Loader(split, data.spec, batch_size=10_000, shuffle=False).epoch(0)
    known, last = np.unique(item[::-1], return_index=True)
    rows = len(item) - 1 - last
    order = np.argsort(codes)

    found = stage.predict(batch, rows, order[np.searchsorted(codes, known, sorter=order)])

    saved = read_predictions(run / "predictions", "test")
    for task in ("click", "conversion", "hide"):
        expected = saved[f"prediction:{task}"].to_numpy()[rows]
        # Runs predict in bfloat16 where the machine multiplies it fast: 8 bits of a logit.
        np.testing.assert_allclose(found[task], expected, rtol=0.03)
        assert np.corrcoef(found[task], expected)[0, 1] > 0.99


def test_final_stage_predicts_what_its_run_predicted(market_world: Path) -> None:
    blueprint = make_blueprint(replace(_recipe(market_world), ads=AdsRecipe(splits=("test",))))
    stage = blueprint.build().steps[2].stage
    assert isinstance(stage, RankerStage)

    data = Dataset.open(market_world / "data")
    _check_predictions(market_world / "final", stage, blueprint.inventory.codes, data)


def test_recipe_becomes_a_blueprint(market_world: Path) -> None:
    blueprint = make_blueprint(_recipe(market_world, head="label", max_users=7))

    assert [stage.budget.name for stage in blueprint.stages] == ["popular", "early", "final"]
    early, final = blueprint.stages[1].plan, blueprint.stages[2].plan
    assert isinstance(early, EarlyStagePlan)
    assert isinstance(final, RankerPlan)
    assert (early.settings.head, early.settings.max_users) == ("label", 7)
    # 12 of query and ad to 8 units, of which the query's part is shared by 1000 candidates, and
    # three heads on them; a multiplication with its addition is two.
    assert early.settings.flops_per_pair == 2 * (4 * 8 + 8 * 8 / 1000 + 3 * 8)
    record = json.loads((market_world / "final" / "run.json").read_text())
    assert final.settings.flops_per_pair == record["forward_flops_per_row"]
    assert not early.calibration.by_task
    assert blueprint.inventory.attributes.bid.max() < 1e3  # money, not micros


def _searching(world: Path, **stage: object) -> FunnelRecipe:
    """The recipe with another first stage."""
    recipe = _recipe(world)
    first = StageRecipe(name="search", keep=80, **stage)  # type: ignore[arg-type]
    return replace(recipe, stages=(first, *recipe.stages[1:]))


def test_index_is_published_from_the_ads_of_the_recipe(market_world: Path) -> None:
    run = str(market_world / "index")
    recipe = _searching(market_world, kind="index", run=run, beams=(3,), time_to_live_ms=1.0)

    blueprint = make_blueprint(recipe)

    plan = blueprint.stages[0].plan
    assert isinstance(plan, IndexPlan)
    of_user, of_pairs = plan.model.module.count_flops()
    assert plan.settings == IndexSettings(
        beams=(3,), flops=(of_user, *of_pairs), cache=UserCache(time_to_live_ms=1.0)
    )
    indexed = plan.snapshot.members.ids.numpy()
    assert np.sort(indexed).tolist() == np.sort(blueprint.inventory.codes).tolist()
    data = Dataset.open(market_world / "data")
    stream = logged_requests(data.split("valid"), data.spec, blueprint.inventory.codes)
    funnel = blueprint.build()
    for request in itertools.islice(stream, 5):
        trace = funnel.answer(replace(request, shown=None))
        assert [stage.fallback for stage in trace.stages] == ["", "", ""]
        assert len(trace.stages[0].levels) == 2
        assert trace.stages[0].scored_pairs < len(blueprint.inventory)


def test_two_towers_are_published_with_what_the_recipe_sets(market_world: Path) -> None:
    run = str(market_world / "towers")
    weights = (1.0, 0.5, -1.0)
    kept = {"time_to_live_ms": 5e3, "max_users": 40}
    plain, other = (
        make_blueprint(_searching(market_world, kind="two_tower", run=run, **more)).stages[0].plan
        for more in ({}, {"task_weights": weights, "by_bid": False, **kept})
    )

    assert isinstance(plain, TwoTowerPlan)
    assert isinstance(other, TwoTowerPlan)
    assert plain.settings == TwoTowerSettings()
    cache = UserCache(time_to_live_ms=5e3, max_users=40)
    assert other.settings == TwoTowerSettings(task_weights=weights, by_bid=False, cache=cache)


@pytest.mark.parametrize(
    ("kind", "run", "more", "message"),
    [
        ("index", "towers", {"beams": (3,)}, r"kind 'index': model must be 'hsnn', got 'two_tow"),
        ("index", "index", {"beams": (3, 3)}, r"one for each of 1 index levels of the model, got"),
        ("two_tower", "index", {}, r"kind 'two_tower': model must be 'two_tower', got 'hsnn'"),
    ],
)
def test_run_of_another_model_does_not_search(
    market_world: Path, kind: str, run: str, more: dict, message: str
) -> None:
    recipe = _searching(market_world, kind=kind, run=str(market_world / run), **more)

    with pytest.raises(ConfigError, match=message):
        make_blueprint(recipe)


def test_scores_of_a_model_that_reads_the_user_are_not_kept(market_world: Path) -> None:
    recipe = _recipe(market_world)
    last = replace(recipe.stages[2], max_ads=50)

    with pytest.raises(ConfigError, match=r"max_ads must be left out where .*, got '\w+' of side"):
        make_blueprint(replace(recipe, stages=(*recipe.stages[:2], last)))


def test_calibration_is_fitted_where_it_is_asked_for(market_world: Path) -> None:
    plan = make_blueprint(_recipe(market_world, calibration="isotonic")).stages[1].plan

    assert isinstance(plan, EarlyStagePlan)
    assert plan.calibration.by_task.keys() == {"click", "conversion", "hide"}
    assert isinstance(plan.calibration.by_task["click"].other, IsotonicCalibrator)


def test_early_stage_of_fewer_fields_is_served_beside_the_final_one(
    market_world: Path, tmp_path: Path
) -> None:
    schema = market_schema()
    dropped = {"history_ads", "history_categories", "campaign_id", "user_requests"}
    fields = tuple(item for item in schema.fields if item.name not in dropped)
    data = api.ingest(
        market_world / "market", tmp_path / "narrow", schema=replace(schema, fields=fields)
    )
    settings = ["training.max_epochs=1", "model.tower_units=[4]", "model.tower_dim=4"]
    api.train(data, model="early_stage", settings=settings, run=tmp_path / "early", report=False)

    recipe = _recipe(market_world, early=str(tmp_path / "early"))
    blueprint = make_blueprint(replace(recipe, ads=AdsRecipe(splits=("test",))))

    # Without histories the table of ads knows fewer of them, in another order.
    plan = blueprint.stages[1].plan
    assert isinstance(plan, EarlyStagePlan)
    assert plan.encoders is not None
    sizes = [e.spec.num_rows_by_table["ad_id"] for e in (plan.encoders, blueprint.encoders)]
    assert sizes[0] < sizes[1]
    stage = blueprint.build().steps[1].stage
    assert isinstance(stage, ReadsPart)
    wide = Dataset.open(market_world / "data")
    _check_predictions(tmp_path / "early", stage, blueprint.inventory.codes, wide)
    # The other way round the final stage would read what a request does not hold.
    backwards = replace(_recipe(market_world), dataset=str(tmp_path / "narrow"))
    with pytest.raises(SchemaError, match=r"stage 'early', .*field 'user_requests' must be a num"):
        make_blueprint(backwards)


def test_run_of_other_encoders_is_refused(market_world: Path, tmp_path: Path) -> None:
    other = api.ingest(
        market_world / "market",
        tmp_path / "other",
        split=api.split_config("ratio", valid=0.2, test=0.2),
    )
    api.train(other, model="lr", settings=["training.max_epochs=1"], run=tmp_path / "lr",
              report=False)  # fmt: skip
    recipe = _recipe(market_world)
    last = replace(recipe.stages[2], run=str(tmp_path / "lr"))
    mixed = replace(recipe, stages=(*recipe.stages[:2], last), dataset=str(market_world / "data"))

    with pytest.raises(SchemaError, match=r"stage 'final', .*lr: (table|field) '\w+' must be"):
        make_blueprint(mixed)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            ("user_id", "ad_id", "price"),
            r"stage 'final', .*lr: field 'ad_id' must be of side 'item', .* got 'context'. Set",
        ),
        (
            ("user_id", "price"),
            r"stage 'final', .*lr: must read a field of side 'item' .* none among 'user_id', 'pric",
        ),
    ],
)
def test_run_that_does_not_read_the_ad_is_refused(
    market_world: Path, tmp_path: Path, kept: tuple[str, ...], message: str
) -> None:
    schema = market_schema()
    fields = [replace(item, side="context") for item in schema.fields if item.name in kept]
    data = api.ingest(
        market_world / "market",
        tmp_path / "data",
        schema=replace(schema, fields=tuple(fields)),
    )
    api.train(data, model="lr", settings=["training.max_epochs=1"], run=tmp_path / "lr",
              report=False)  # fmt: skip
    stages = (StageRecipe(name="final", kind="ranker", keep=5, run=str(tmp_path / "lr")),)

    with pytest.raises(SchemaError, match=message):
        make_blueprint(FunnelRecipe(stages=stages))


@pytest.mark.parametrize(
    ("kind", "side", "advice"),
    [
        ("early", "context", r"Take it out of schema.toml, ingest"),
        ("index", "user", r"Set its side = 'context' in schema.toml, or take it out, ingest"),
    ],
)
def test_run_that_counts_where_no_pair_is_looked_at_is_refused(
    market_world: Path, tmp_path: Path, kind: str, side: str, advice: str
) -> None:
    schema = market_schema()
    counts = {"side": side, "transform": "none", "counts": "history_categories"}
    fields = tuple(
        replace(item, **counts) if item.name == "user_requests" else item for item in schema.fields
    )
    market = market_world / "market"
    data = api.ingest(market, tmp_path / "data", schema=replace(schema, fields=fields))
    api.train(data, model="lr", settings=["training.max_epochs=1"], run=tmp_path / "lr",
              report=False)  # fmt: skip
    beams = {"beams": (3,)} if kind == "index" else {}
    stage = StageRecipe(name="one", kind=kind, keep=5, run=str(tmp_path / "lr"), **beams)

    with pytest.raises(
        SchemaError, match=rf"stage 'one', .*lr: field 'user_requests' must not count .* {advice}"
    ):
        make_blueprint(FunnelRecipe(stages=(stage,)))


def test_run_of_another_model_is_no_early_stage(market_world: Path) -> None:
    with pytest.raises(ConfigError, match=r"model must be 'early_stage', got 'deepfm'"):
        make_blueprint(_recipe(market_world, early="final"))


def test_unfinished_run_is_refused(market_world: Path, tmp_path: Path) -> None:
    shutil.copytree(market_world / "early", tmp_path / "early")
    (tmp_path / "early" / "metrics.json").unlink()

    with pytest.raises(ArtifactError, match=r"must be a finished run, got status"):
        make_blueprint(_recipe(market_world, early=str(tmp_path / "early")))


def test_calibration_on_another_dataset_is_refused(market_world: Path, tmp_path: Path) -> None:
    shutil.copytree(market_world / "early", tmp_path / "early")
    path = tmp_path / "early" / "run.json"
    record = json.loads(path.read_text())
    record["dataset"]["fingerprint"] = "f" * 64
    path.write_text(json.dumps(record))

    with pytest.raises(DataError, match=r"data: must be the dataset of .*early to calibrate"):
        make_blueprint(_recipe(market_world, early=str(tmp_path / "early"), calibration="isotonic"))


def test_publication_is_what_stands_on_disk(market_world: Path, tmp_path: Path) -> None:
    (tmp_path / "funnel.toml").write_text(
        f'dataset = "{market_world / "data"}"\n[[stages]]\nname = "popular"\n'
        f'kind = "popularity"\nkeep = 3\n'
    )

    made = publish(tmp_path / "funnel.toml", tmp_path / "bundle")

    found = read_bundle(made.path)
    assert found.release == made.release
    assert len(found.blueprint.inventory) == len(made.blueprint.inventory)
    # What a notebook shows of it.
    assert repr(made) == f"Publication(path={made.path!r}, release={made.release!r}, warnings=())"


def test_early_stage_that_leaves_nothing_to_distil_is_published_with_a_warning(
    market_world: Path, tmp_path: Path
) -> None:
    schema = market_schema()
    fields = tuple(item for item in schema.fields if not item.is_jagged)
    data = api.ingest(
        market_world / "market", tmp_path / "narrow", schema=replace(schema, fields=fields)
    )
    tiny = ["training.max_epochs=1", "model.embedding_dim=2", "model.tower_dim=4"]
    tiny += ["model.tower_units=[4]", "model.head_units=[]"]
    for name, units in (("small", "[4]"), ("large", "[64, 64, 64]")):
        settings = [*tiny, f"model.bottom_units={units}"]
        api.train(data, model="early_stage", settings=settings, run=tmp_path / name, report=False)

    def published(early: Path) -> tuple[str, ...]:
        (tmp_path / "funnel.toml").write_text(
            f'[[stages]]\nname = "early"\nkind = "early"\nkeep = 9\nrun = "{early}"\n'
            f'[[stages]]\nname = "final"\nkind = "ranker"\nkeep = 5\n'
            f'run = "{market_world / "final"}"\n'
        )
        made = publish(tmp_path / "funnel.toml", tmp_path / "bundles" / early.name)
        assert read_bundle(made.path).release == made.release
        return made.warnings

    (alike,) = published(market_world / "early")
    assert alike.startswith("stage 'early' before 'final': early stage: the final stage must see m")
    (large,) = published(tmp_path / "large")
    assert "must have 2 times as many parameters" in large
    assert published(tmp_path / "small") == ()


def test_bundle_says_until_when_its_stages_were_trained(market_world: Path, tmp_path: Path) -> None:
    # Popularity is counted on the validation split too, and runs chose their weights there.
    last = _last_time(market_world, "valid")
    made = make_blueprint(_recipe(market_world))
    write_bundle(tmp_path / "bundle", made)

    assert made.trained_until == last
    assert read_bundle(tmp_path / "bundle").blueprint.trained_until == last


@pytest.mark.parametrize(
    ("splits", "last"),
    [(("train",), "train"), (("train", "valid"), "valid"), (("train", "test"), "test")],
)
def test_bundle_has_learnt_from_the_splits_of_its_ads(
    market_world: Path, splits: tuple[str, ...], last: str
) -> None:
    made = make_blueprint(
        FunnelRecipe(
            stages=(StageRecipe(name="popular", kind="popularity", keep=3),),
            dataset=str(market_world / "data"),
            ads=AdsRecipe(splits=splits),
        )
    )

    assert made.trained_until == _last_time(market_world, last)


def test_bundle_knows_what_a_run_learnt_from_whose_dataset_is_gone(
    market_world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "early"
    shutil.copytree(market_world / "early", run)
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["path"] = str(tmp_path / "gone")
    recipe = replace(_recipe(market_world, early=str(run)), ads=AdsRecipe(splits=("train",)))

    # Later than the dataset of the funnel.
    record["dataset"]["trained_until"] += 1
    (run / "run.json").write_text(json.dumps(record))
    assert make_blueprint(recipe).trained_until == _last_time(market_world, "valid") + 1

    # As earlier versions wrote it.
    del record["dataset"]["trained_until"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="gone"):
        make_blueprint(recipe)


def _last_time(world: Path, split: str) -> int:
    times = Dataset.open(world / "data").split(split).role("time")
    assert times is not None
    return int(times.max())
