"""What a stage learns from: labels of the store, or a final stage that learnt just before."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis import api
from tamis.data.cascade_log import POOL, RATE, REJECTED
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.errors import ConfigError
from tamis.funnel.bundle import read_bundle
from tamis.publishing.calibrate import came_to_final, fit_calibration
from tamis.publishing.cascade import CascadeSampling
from tamis.refreshing.learn import Lesson, learn, log_schema
from tamis.serving.joined_log import write_joined_log
from tamis.serving.store import Window
from tamis.training.predict import load_run_config

pytestmark = pytest.mark.slow

WINDOWS = {"train": (0, 120), "valid": (120, 135), "test": (135, 150)}


@pytest.fixture
def imitating(market_world: Path, world: Any) -> Path:
    """A bundle whose early stage imitates its final one, without reading histories."""
    blueprint = read_bundle(world.bundle).blueprint
    teacher = world.folder / "teacher"
    recipe = f"""
    [ads]
    log = "{market_world}/market"
    table = "{market_world}/market/ads.parquet"
    bid = "bid_micros"
    bid_unit = 1e-6

    [[stages]]
    name = "popular"
    kind = "popularity"
    keep = 40
    STAGE
    [[stages]]
    name = "final"
    kind = "ranker"
    run = "{market_world}/final"
    keep = 8
    """
    recipe = textwrap.dedent(recipe)
    (world.folder / "teacher.toml").write_text(recipe.replace("STAGE", ""))
    api.publish(world.folder / "teacher.toml", teacher)
    cascade = api.write_cascade(
        teacher,
        market_world / "data",
        world.folder / "cascade",
        sampling=CascadeSampling(requests=30),
        without=("history_ads", "history_categories"),
    )
    settings = ("training.max_epochs=1", "model.embedding_dim=4", "model.tower_units=[8]")
    settings += ("model.tower_dim=4", "model.bottom_units=[8]", "model.head_units=[]")
    run = world.folder / "imitating"
    api.train(cascade, model="early_stage", settings=settings, run=run, report=False)
    stage = f'\n[[stages]]\nname = "early"\nkind = "early"\nrun = "{run}"\nkeep = 20\n'
    stage += 'calibration = "isotonic"\n'
    (world.folder / "funnel.toml").write_text(recipe.replace("STAGE", stage))
    out = world.folder / "imitation"
    api.publish(world.folder / "funnel.toml", out)
    assert len(blueprint.stages) == 3
    return out


def _lesson(world: Any, schema: Any, *settings: str) -> Lesson:
    logs = {}
    for name, (after, until) in WINDOWS.items():
        logs[name] = world.folder / f"{name}.parquet"
        window = Window(after=after, until=until)
        write_joined_log(world.store, schema, logs[name], window=window)
    return Lesson(logs=logs, folder=world.folder / "lesson", settings=settings)


def test_early_stage_imitates_the_final_stage_that_learnt_before_it(
    world: Any, imitating: Path
) -> None:
    base = read_bundle(imitating).blueprint
    lesson = _lesson(world, log_schema(base), "training.batch_size=128")
    begun: list[str] = []

    learnt = learn(base, lesson, say=begun.append)

    assert begun == ["the final stage learns", "the early stage learns"]
    data = Dataset.open(lesson.folder / "early-data")
    assert base.encoders.spec.sequences
    assert data.spec == base.stages[1].plan.model.spec == learnt.blueprint.stages[1].plan.model.spec
    assert not data.spec.sequences
    assert [task.name for task in data.spec.tasks] == [
        "click", "conversion", "hide", "final_click", "final_conversion", "final_hide",
    ]  # fmt: skip
    # On later rows stands what the refreshed final stage says, not the one before.
    split = data.split("test")
    shown = np.flatnonzero(~np.isnan(split.labels()[:, 0]))
    plain = Dataset.open(lesson.folder / "final-data").split("test")
    assert len(shown) == plain.num_rows
    (batch,) = Loader(plain, base.encoders.spec, batch_size=10_000, shuffle=False).epoch(0)
    final = learnt.blueprint.build().steps[-1].stage
    order = np.argsort(base.inventory.codes)
    item = plain.role("item")
    ads = order[np.searchsorted(base.inventory.codes, item, sorter=order)]
    expected = final.predict(batch, np.arange(len(ads)), ads)["click"]
    np.testing.assert_allclose(split.labels()[shown, 3], expected, rtol=1e-4)
    assert {loss.stage for loss in learnt.losses} == {"final", "early"}
    # Of what the early stage that serves turns away, half is just below its cut, and so certain.
    train = data.split("train")
    rates = train.role(RATE)[train.role(POOL) == REJECTED]
    assert len(rates)
    assert np.mean(rates == 1) == pytest.approx(0.5)
    # Calibrated on what came to the final stage, as it serves.
    early = learnt.blueprint.stages[1].plan
    calibration = fit_calibration(
        lesson.folder / "early", data, base.inventory, method="isotonic", head=early.settings.head
    )
    assert early.calibration.to_json() == calibration.to_json()
    came = came_to_final(split)
    assert 0 < came.sum() < len(came)
    # Judged on what the stage before turned away too.
    assert {loss.rows for loss in learnt.losses if loss.stage == "early"} == {split.num_rows}


def test_steps_are_a_tenth_of_the_recipes_for_one_pass(world: Any) -> None:
    base = read_bundle(world.bundle).blueprint
    recipe = base.stages[2].plan.model.training
    lesson = _lesson(world, log_schema(base), "training.seed=9")

    learn(base, lesson, say=lambda text: None)

    found = load_run_config(lesson.folder / "final")
    assert found.optimizer.embedding_lr == pytest.approx(recipe["optimizer"]["embedding_lr"] / 10)
    assert found.optimizer.dense_lr == pytest.approx(recipe["optimizer"]["dense_lr"] / 10)
    assert (found.training.max_epochs, found.training.seed) == (1, 9)
    assert found.training.batch_size == 64


def test_bundle_that_says_nothing_of_its_training_is_trained_by_the_defaults(world: Any) -> None:
    base = read_bundle(world.bundle).blueprint
    stage = base.stages[2]
    bare = replace(stage, plan=replace(stage.plan, model=replace(stage.plan.model, training={})))
    base = replace(base, stages=(base.stages[0], bare))
    lesson = _lesson(world, log_schema(base))

    learn(base, lesson, say=lambda text: None)

    assert load_run_config(lesson.folder / "final").optimizer.dense_lr == pytest.approx(1e-4)


def test_early_stage_that_nobody_can_teach_is_refused(world: Any, imitating: Path) -> None:
    base = read_bundle(imitating).blueprint
    popular, early, final = base.stages

    for stages in ((popular, early), (popular, final, early)):
        with pytest.raises(ConfigError, match="a ranker must follow the early stage 'early'"):
            log_schema(replace(base, stages=stages))


def test_funnel_without_a_stage_that_learns_is_refused(world: Any) -> None:
    base = read_bundle(world.bundle).blueprint

    with pytest.raises(ConfigError, match="must be an early stage or a ranker, got none"):
        log_schema(replace(base, stages=base.stages[:1]))
