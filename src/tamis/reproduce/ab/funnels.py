"""Three funnels of one log: the full one, one of simpler stages, and popularity, as bundles.

Both trained funnels keep as many candidates at every stage, so that what differs is which.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis import api, artifacts
from tamis.data.ingest import ingest
from tamis.data.market import market_schema
from tamis.data.splits import SplitConfig
from tamis.evaluation.calibrators import GroupedCalibrator, IsotonicCalibrator
from tamis.funnel.blueprint import Blueprint, PlannedStage
from tamis.funnel.bundle import write_bundle
from tamis.funnel.calibration import Calibration
from tamis.funnel.plans import EarlyStagePlan
from tamis.publishing.cascade import CascadeSampling
from tamis.publishing.make import make_blueprint
from tamis.publishing.recipe import read_recipe
from tamis.reproduce.ab.tables import FULL, FunnelSizes
from tamis.reproduce.training import train

EARLY_WITHOUT = ("history_ads", "history_categories")
"""Fields that final stages alone read: an early stage knows less than what it precedes."""
RECIPES = ("index", "early", "final", "two_tower", "click_early", "baseline_final")
"""Models to train: three stages of the full funnel, and three of the baseline."""


def make_funnels(
    log: pa.Table, ads: pa.Table, sizes: FunnelSizes, *, recipes: Path, seed: int, folder: Path
) -> dict[str, Path]:
    """Train and publish what is missing.

    Args:
        log: What is known of the market's own days.
        ads: All ads of the market.
        sizes: Of the funnels.
        recipes: A TOML file for each of ``RECIPES``.
        seed: Of all trainings.
        folder: For log, datasets, runs and bundles, which are kept.

    Returns:
        Folders of the bundles, by funnel.

    Raises:
        TamisError: A signal stopped a training.
    """
    dataset = _dataset(log, ads, folder)
    narrow = _ingested(folder, "narrow", without=EARLY_WITHOUT)

    def run_of(name: str, learns_from: Path) -> Path:
        run, settings = folder / "runs" / name, [f"training.seed={seed}"]
        train(learns_from, recipe=recipes / f"{name}.toml", settings=settings, run=run)
        return run

    def publish(
        name: str,
        *stages: Mapping[str, Any],
        change: Callable[[Blueprint], Blueprint] = lambda blueprint: blueprint,
    ) -> Path:
        bundle = folder / "bundles" / name
        if not api.is_bundle(bundle):
            recipe = {
                "dataset": str(dataset),
                "ads": {
                    "table": str(folder / "ads.parquet"),
                    "bid": "bid_micros",
                    "bid_unit": 1e-6,
                    "advertiser": "advertiser_id",
                },
                "value": {"penalties": {"hide": sizes.hide_cost}},
                "stages": list(stages),
            }
            path = api.write_recipe(recipe, folder / "recipes" / f"{name}.toml")
            blueprint = make_blueprint(read_recipe(path))
            write_bundle(bundle, change(blueprint))
        return bundle

    trained = {
        name: run_of(name, narrow if name == "click_early" else dataset)
        for name in RECIPES
        if name != "early"
    }

    def ranker(model: str) -> dict[str, Any]:
        return _stage("final", "ranker", sizes.final, trained[model])

    index = _stage("retrieval", "index", sizes.retrieved, trained["index"])
    index["beams"] = list(sizes.beams)
    teacher = publish("teacher", index, ranker("final"))
    trained["early"] = run_of("early", _cascade(teacher, dataset, sizes, folder))
    return {
        FULL: publish(
            FULL,
            index,
            _stage("early", "early", sizes.early, trained["early"]),
            ranker("final"),
        ),
        "baseline": publish(
            "baseline",
            _stage("retrieval", "two_tower", sizes.retrieved, trained["two_tower"]),
            {**_stage("early", "early", sizes.early, trained["click_early"]), "head": "label"},
            ranker("baseline_final"),
            change=lambda blueprint: click_only(blueprint, log),
        ),
        "popularity": publish(
            "popularity", {"name": "popularity", "kind": "popularity", "keep": sizes.final}
        ),
    }


def click_only(blueprint: Blueprint, log: pa.Table) -> Blueprint:
    """The same funnel with an early stage of which clicks alone count.

    The heads that did not learn would add noise to its order; the mean rates of their events stand
    for them, so that it ranks by clicks and bids.

    Args:
        blueprint: Its stage ``early`` is an early-stage ranker.
        log: Has the rates.
    """
    rates = {task: float(pc.mean(log[task]).as_py()) for task in ("conversion", "hide")}
    # A map of one knot is a constant.
    constants = Calibration(
        by_task={
            task: GroupedCalibrator(
                by_group={}, other=IsotonicCalibrator(predicted=(0.5,), calibrated=(rate,))
            )
            for task, rate in rates.items()
        }
    )

    def changed(stage: PlannedStage) -> PlannedStage:
        if stage.budget.name != "early":
            return stage
        assert isinstance(stage.plan, EarlyStagePlan)
        return replace(stage, plan=replace(stage.plan, calibration=constants))

    return replace(blueprint, stages=tuple(changed(stage) for stage in blueprint.stages))


def _stage(name: str, kind: str, keep: int, run: Path) -> dict[str, Any]:
    return {"name": name, "kind": kind, "keep": keep, "run": str(run)}


def _dataset(log: pa.Table, ads: pa.Table, folder: Path) -> Path:
    """The log as a dataset; the last tenth selects weights, and the test is the market's."""
    if not api.is_dataset(folder / "dataset"):
        for name, table in (("log", log), ("ads", ads)):
            with artifacts.atomic_path(folder / f"{name}.parquet") as temporary:
                pq.write_table(table, temporary)
    return _ingested(folder, "dataset")


def _ingested(folder: Path, name: str, *, without: tuple[str, ...] = ()) -> Path:
    out, schema = folder / name, market_schema()
    fields = tuple(field for field in schema.fields if field.name not in without)
    if not api.is_dataset(out):
        ingest(
            folder / "log.parquet",
            out,
            schema=replace(schema, fields=fields),
            split=SplitConfig(by="time", valid=0.1, test=0.0),
        )
    return out


def _cascade(teacher: Path, dataset: Path, sizes: FunnelSizes, folder: Path) -> Path:
    out = folder / "cascade"
    if not api.is_dataset(out):
        api.write_cascade(
            teacher,
            dataset,
            out,
            sampling=CascadeSampling(requests=sizes.cascade_requests),
            without=EARLY_WITHOUT,
        )
    return out
