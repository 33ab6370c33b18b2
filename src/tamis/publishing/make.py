"""From a recipe and finished runs to a blueprint, from which a funnel is built or published."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tamis import artifacts
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.times import latest
from tamis.errors import ConfigError, DataError
from tamis.funnel.blueprint import Blueprint, Budget, PlannedStage
from tamis.funnel.bundle import write_bundle
from tamis.funnel.calibration import UNCALIBRATED, Calibration
from tamis.funnel.inventory import Inventory
from tamis.funnel.plan import Plan, check_counts, check_reads_ads
from tamis.funnel.plans import (
    EarlyStagePlan,
    EarlyStageSettings,
    PopularityPlan,
    RankerPlan,
    RankerSettings,
)
from tamis.funnel.retrieval_plans import (
    IndexPlan,
    IndexSettings,
    TwoTowerPlan,
    TwoTowerSettings,
)
from tamis.funnel.value import ValueWeights
from tamis.models.early_serving import ServedHead
from tamis.models.early_stage import EarlyStage
from tamis.publishing.ads import make_inventory
from tamis.publishing.calibrate import fit_calibration
from tamis.publishing.doubts import doubts_about
from tamis.publishing.recipe import FunnelRecipe, StageRecipe, read_recipe
from tamis.training.cost import count_call_flops
from tamis.training.predict import load_trained
from tamis.training.run_folder import check_finished, run_encoders, verified_inputs

_CANDIDATES = 1000
"""Candidates over which the cost of the request's part of an early stage is shared."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Publication:
    """A funnel that was published."""

    path: Path
    """Folder of the bundle."""
    release: str
    """Name of its contents, 64 hexadecimal digits."""
    blueprint: Blueprint = field(repr=False)
    """What is in it."""
    warnings: tuple[str, ...] = ()
    """What a person should look at."""


def publish(recipe: Path, out: Path) -> Publication:
    """Publish the funnel of a recipe file as a bundle.

    What a person should look at is among its warnings; see ``publishing/doubts.py``.

    Raises:
        ConfigError: The recipe is wrong, or its stages do not make a funnel.
        TamisError: As :func:`make_blueprint` and ``write_bundle`` do.
    """
    found = read_recipe(recipe)
    try:
        blueprint = make_blueprint(found)
        warnings = doubts_about(found, blueprint, Dataset.open(_dataset_of_ads(found)))
        release = write_bundle(out, blueprint)
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from error
    return Publication(path=out, release=release, blueprint=blueprint, warnings=warnings)


def make_blueprint(recipe: FunnelRecipe) -> Blueprint:
    """Collect everything that the funnel of a recipe answers with.

    Raises:
        ArtifactError: A run is unfinished, or a run or the dataset is damaged.
        ConfigError: A stage's run is of another kind of model.
        DataError: The ads cannot be made, or a calibration cannot be fitted.
        SchemaError: A stage reads fields that the dataset does not have, or encodes otherwise,
            reads no field of the ad, or counts events where its kind cannot.
    """
    runs = [Path(stage.run) for stage in recipe.stages if stage.run]
    for run in runs:
        check_finished(run)
    dataset = Dataset.open(_dataset_of_ads(recipe), verify=True)
    encoders = Encoders.load(dataset.encoders_path, dataset.schema)
    inventory = make_inventory(recipe.ads, dataset)
    stages = tuple(
        PlannedStage(
            budget=Budget(name=stage.name, keep=stage.keep, budget_ms=stage.budget_ms),
            plan=_plan(stage, encoders, inventory, recipe.value),
        )
        for stage in recipe.stages
    )
    return Blueprint(
        encoders=encoders,
        inventory=inventory,
        weights=recipe.value,
        stages=stages,
        reserve=recipe.reserve,
        online=recipe.online,
        trained_until=_trained_until(dataset, recipe.ads.splits, runs),
    )


def _trained_until(dataset: Dataset, splits: Sequence[str], runs: Sequence[Path]) -> int | None:
    """Last time of what encoders and ads are made of, and of what the stages were trained on."""
    times = [dataset.trained_until(("train", *splits))]
    for run in runs:
        record = artifacts.read_json(run / "run.json")["dataset"]
        if "trained_until" in record:
            times.append(record["trained_until"])
        else:  # a run of an earlier version
            times.append(_own_dataset(run, why="say until when it was trained").trained_until())
    return latest(times)


def _plan(
    stage: StageRecipe, encoders: Encoders, inventory: Inventory, value: ValueWeights
) -> Plan:
    if stage.kind == "popularity":
        return PopularityPlan()
    run = Path(stage.run)
    own = _encoders_of(run, encoders, stage)
    model = load_trained(run)
    if stage.kind == "index":
        assert stage.beams is not None  # its recipe says so
        return IndexPlan.publish(
            model,
            inventory,
            encoders,
            settings=IndexSettings(
                beams=stage.beams, task_weights=stage.task_weights or (), cache=stage.user_cache()
            ),
            encoders=own,
        )
    if stage.kind == "two_tower":
        towers = TwoTowerSettings(
            **_given(stage, "task_weights", "by_bid"), cache=stage.user_cache()
        )
        return TwoTowerPlan(model=model, encoders=own, settings=towers)
    if stage.kind == "ranker":
        flops = artifacts.read_json(run / "run.json").get("forward_flops_per_row")
        settings = RankerSettings(
            precision=stage.precision or "float32", flops_per_pair=flops, max_ads=stage.max_ads
        )
        # Made before it is calibrated, as it refuses a cache that would be wrong.
        ranker = RankerPlan(model=model, encoders=own, settings=settings)
        return replace(ranker, calibration=_calibration(stage, inventory, value, head=None))
    serving = EarlyStageSettings(
        **_given(stage, "head", "max_users", "time_to_live_ms", "precision")
    )
    # Made before it is calibrated, as it refuses runs of other models.
    plan = EarlyStagePlan(model=model, encoders=own, settings=serving)
    assert isinstance(model.module, EarlyStage)
    return replace(
        plan,
        settings=replace(serving, flops_per_pair=_flops_per_pair(model.module, serving.head)),
        calibration=_calibration(stage, inventory, value, head=serving.head),
    )


def _given(stage: StageRecipe, *names: str) -> dict[str, Any]:
    """What a recipe sets; the rest is the plan's to choose."""
    return {name: value for name in names if (value := getattr(stage, name)) is not None}


def _encoders_of(run: Path, funnels: Encoders, stage: StageRecipe) -> Encoders | None:
    """What a run was trained with; None where the funnel's own encoders do the same."""
    verified_inputs(run)
    own, where = run_encoders(run), f"stage {stage.name!r}, {run}"
    check_reads_ads(own.schema, where=where)
    check_counts(own.spec, stage.kind, where=where)
    selection = InputSelection(funnels, own, where=where)
    return None if selection.changes_nothing else own


def _calibration(
    stage: StageRecipe, inventory: Inventory, value: ValueWeights, *, head: ServedHead | None
) -> Calibration:
    if stage.calibration is None:
        return UNCALIBRATED
    run = Path(stage.run)
    dataset = _own_dataset(run, why="calibrate its predictions")
    needed = value.read_of(inventory.attributes.billing).values()
    try:
        return fit_calibration(
            run, dataset, inventory, method=stage.calibration, head=head, needed=needed
        )
    except DataError as error:
        raise DataError(f"stage {stage.name!r}: {error}") from error


def _own_dataset(run: Path, *, why: str) -> Dataset:
    dataset = Dataset.open(_dataset_of(run))
    if dataset.fingerprint != artifacts.read_json(run / "run.json")["dataset"]["fingerprint"]:
        raise DataError(
            f"{dataset.path}: must be the dataset of {run} to {why}, got another in its place. "
            f"Put it back, or train anew."
        )
    return dataset


def _dataset_of_ads(recipe: FunnelRecipe) -> Path:
    if recipe.dataset:
        return Path(recipe.dataset)
    return _dataset_of(Path([stage.run for stage in recipe.stages if stage.run][-1]))


def _dataset_of(run: Path) -> Path:
    return Path(artifacts.read_json(run / "run.json")["dataset"]["path"])


def _flops_per_pair(model: EarlyStage, head: ServedHead) -> float:
    parts, width = model.export(head=head), model.config.tower_dim
    queries = 1 if parts.context_tower is None else 2
    vectors = (torch.zeros(1, queries * width), torch.zeros(_CANDIDATES, width))
    return count_call_flops(parts.scorer, *vectors) / _CANDIDATES
