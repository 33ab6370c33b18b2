"""What a person is told of a funnel that can be published all the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.data.dataset import Dataset
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.evaluation.calibrators import GroupedCalibrator, PlattCalibrator
from tamis.funnel.blueprint import Blueprint, Budget, PlannedStage
from tamis.funnel.calibration import Calibration
from tamis.funnel.online import History, OnlineFeatures
from tamis.funnel.plans import EarlyStagePlan, EarlyStageSettings
from tamis.funnel.value import ValueWeights
from tamis.models.early_serving import ServedHead
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.models.trained import TrainedModel
from tamis.publishing.doubts import doubts_about
from tamis.publishing.make import make_blueprint
from tamis.publishing.recipe import AdsRecipe, FunnelRecipe, StageRecipe

_HOUR = 3_600_000_000
_TINY = EarlyStageConfig(
    embedding_dim=2, tower_units=(), tower_dim=2, bottom_units=(2,), head_units=()
)


def _recipe(world: Path, **ads: str) -> FunnelRecipe:
    final = StageRecipe(name="final", kind="ranker", keep=5, run=str(world / "final"))
    return FunnelRecipe(stages=(final,), ads=AdsRecipe(**ads))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def blueprint(market_world: Path) -> Blueprint:
    return make_blueprint(_recipe(market_world))


@pytest.fixture(scope="module")
def data(market_world: Path) -> Dataset:
    return Dataset.open(market_world / "data")


def test_funnel_of_the_market_leaves_no_doubt(
    market_world: Path, blueprint: Blueprint, data: Dataset
) -> None:
    assert doubts_about(_recipe(market_world), blueprint, data) == ()


def test_conversion_that_is_learned_without_a_click_is_doubted(
    market_world: Path, tmp_path: Path, data: Dataset
) -> None:
    log = pq.read_table(market_world / "market" / "logs")
    at = log.column_names.index("conversion")
    known = log.set_column(at, "conversion", log["conversion"].fill_null(0))
    pq.write_table(known, tmp_path / "log.parquet")
    tasks = tuple(replace(task, observed_when="") for task in data.schema.tasks)
    schema = replace(data.schema, tasks=tasks)
    other = api.ingest(tmp_path / "log.parquet", tmp_path / "data", schema=schema)

    fast = ["training.max_epochs=1"]
    api.train(other, model="lr", settings=fast, run=tmp_path / "final", report=False)

    def doubts(world: Path, pays_for: str, data: Dataset) -> tuple[str, ...]:
        recipe = _recipe(world, pays_for=pays_for)
        return doubts_about(recipe, make_blueprint(recipe), data)

    assert doubts(market_world, "conversion", data) == doubts(tmp_path, "click", other) == ()
    (doubt,) = doubts(tmp_path, "conversion", other)
    assert doubt.startswith("stage 'final': task 'conversion' is learned from rows without 'click'")


def test_prices_must_not_hang_on_an_imitation_that_is_not_calibrated(
    market_world: Path, blueprint: Blueprint, data: Dataset
) -> None:
    twins = [
        Task(name=f"final_{task.name}", kind="probability", distils=task.name)
        for task in data.spec.tasks
    ]
    spec = replace(data.spec, tasks=(*data.spec.tasks, *twins))
    recipe = _recipe(market_world)
    early = StageRecipe(name="early", kind="early", keep=9, run=str(market_world / "early"))
    recipe = replace(recipe, stages=(early, *recipe.stages))
    calibrator = GroupedCalibrator(by_group={}, other=PlattCalibrator(slope=1.0, intercept=0.0))

    def doubts(
        *calibrated: str, head: ServedHead = "distilled", config: EarlyStageConfig = _TINY
    ) -> list[str]:
        module = EarlyStage(config, spec)
        plan = EarlyStagePlan(
            model=TrainedModel(name="early_stage", config=config, spec=spec, module=module),
            settings=EarlyStageSettings(head=head),
            calibration=Calibration(by_task=dict.fromkeys(calibrated, calibrator)),
        )
        stage = PlannedStage(budget=Budget(name="early", keep=9), plan=plan)
        hides = ValueWeights(penalties={"hide": 0.05})
        made = replace(blueprint, stages=(stage, *blueprint.stages), weights=hides)
        found = doubts_about(recipe, made, data)
        return [doubt for doubt in found if "late" in doubt]

    (doubt,) = doubts()
    assert doubt.startswith(
        "stage 'early': where 'final' fails or is late, its predictions of click, hide price"
    )
    assert doubts(head="mean") == [doubt]
    assert len(doubts("click")) == 1
    assert doubts("click", "hide") == doubts(head="label") == []
    # What imitates nothing is learned from labels.
    assert doubts(config=replace(_TINY, distillation="none")) == []


def test_ads_that_nobody_saw_are_counted(
    market_world: Path, blueprint: Blueprint, data: Dataset
) -> None:
    table = market_world / "market" / "ads.parquet"
    recipe = _recipe(market_world, table=str(table), bid="bid_micros")

    (doubt,) = doubts_about(recipe, blueprint, data)

    unshown = pq.read_table(table).num_rows - len(blueprint.inventory)
    assert doubt.startswith(f"{table}: {unshown:,} ads were not shown in train, valid and are not")


def test_field_that_is_one_for_each_ad_belongs_to_its_side(
    market_world: Path, tmp_path: Path, blueprint: Blueprint
) -> None:
    count = 2000
    ad = np.random.default_rng(0).integers(0, 30, count)
    log = {
        "ad": ad,
        "price": ad % 7 + 0.5,
        "hour": np.arange(count) % 24,
        "always": np.ones(count),
        "click": np.arange(count) % 2,
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    schema = Schema(
        fields=(
            Field(name="ad", kind="categorical", side="item"),
            Field(name="price", kind="numeric"),
            Field(name="hour", kind="categorical"),
            Field(name="always", kind="numeric"),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(item="ad"),
    )
    data = api.ingest(tmp_path / "log.parquet", tmp_path / "data", schema=schema)

    (doubt,) = doubts_about(_recipe(market_world), blueprint, data)

    assert doubt.startswith("field 'price' has one value for each ad and is of side 'context'")


def test_history_that_no_server_would_make_is_doubted(
    market_world: Path, blueprint: Blueprint, data: Dataset
) -> None:
    recipe = _recipe(market_world, log=str(market_world / "market"))
    made = OnlineFeatures(histories=(History(group="history"),))

    (doubt,) = doubts_about(recipe, blueprint, data)

    assert doubt.startswith("sequence group 'history' is not made from events")
    assert doubts_about(recipe, replace(blueprint, online=made), data) == ()


def test_task_that_could_not_be_calibrated_is_told(
    market_world: Path, blueprint: Blueprint, data: Dataset
) -> None:
    recipe = _recipe(market_world)
    (final,) = recipe.stages
    wanted = replace(recipe, stages=(replace(final, calibration="platt"),))

    found = doubts_about(wanted, blueprint, data)

    assert [doubt.split("'")[3] for doubt in found] == ["click", "conversion", "hide"]
    assert found[1].startswith("stage 'final': predictions of 'conversion' stay as they are")


def test_clock_that_is_ahead_is_told(
    market_world: Path, blueprint: Blueprint, data: Dataset
) -> None:
    ahead = replace(blueprint, trained_until=4_102_444_800 * 1_000_000 + _HOUR)

    (doubt,) = doubts_about(_recipe(market_world), ahead, data)

    assert doubt.startswith("the latest row that trained is of 2100-01-01 01:00:00+00:00, which is")
