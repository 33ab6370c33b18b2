"""Stages of a published funnel trained further on the logs of a round, by the recipes they carry.

Rankers learn first, then early stages, which learn what the new final stage would say. Everything
else of the bundle stays as it is: encoders and with them the rows of every table, ads, index. A
category that came later is served as an unknown one until the funnel is trained from the beginning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tamis import api, artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.ingest import ingest
from tamis.data.schema import Schema, Task
from tamis.data.times import latest
from tamis.errors import ConfigError, DataError, TamisError
from tamis.evaluation.calibrators import CalibrationMethod, fit_by_group
from tamis.evaluation.imitation import evaluate_imitation
from tamis.funnel.blueprint import Blueprint, PlannedStage
from tamis.funnel.calibration import Calibration
from tamis.funnel.inventory import Inventory
from tamis.funnel.plans import EarlyStagePlan, RankerPlan
from tamis.models.early_serving import ServedHead, label_tasks
from tamis.models.trained import TrainedModel
from tamis.publishing.calibrate import (
    billing_of_rows,
    calibrating_rows,
    served_predictions,
)
from tamis.publishing.cascade import CascadeSampling, write_cascade
from tamis.refreshing.ledger import Losses
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.evaluate import Predictor
from tamis.training.loop import Observer, train
from tamis.training.predict import load_trained

_STEP_SIZE = 0.1
"""Share of a recipe's step sizes. A bundle holds no state of the optimizers, and the first steps
of fresh ones are as long as the step size itself. On the simulated market (90,000 impressions, then
48,000 more, judged on the next 6,000; one seed) steps of full length raised the log loss of clicks
by 2.2 % for DeepFM and 1.5 % for DHEN; a tenth lowered it by 0.7 % and 0.1 %."""

Trainable = RankerPlan | EarlyStagePlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What a round learns from."""

    logs: Mapping[str, Path]
    """A log for each of ``train``, ``valid`` and ``test``, one after another in time."""
    folder: Path
    """Where datasets and runs go; what is finished there is not done again."""
    settings: tuple[str, ...] = ()
    """Overrides of the stages' recipes, such as ``training.max_epochs=3``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Learnt:
    """A funnel with stages that were trained further."""

    blueprint: Blueprint
    """The new funnel."""
    losses: tuple[Losses, ...]
    """How its stages and those before did on the ``test`` log."""


def log_schema(blueprint: Blueprint) -> Schema:
    """The columns that a round's logs need: all inputs, and the labels of all stages that learn.

    Raises:
        ConfigError: No stage of the funnel learns, or one that imitates has none to imitate.
    """
    tasks: dict[str, Task] = {}
    for place, stage in enumerate(blueprint.stages):
        if isinstance(stage.plan, Trainable):
            tasks |= {task.name: task for task in label_tasks(stage.plan.model.spec.tasks)}
            if _imitates(stage.plan) and not _teachers(blueprint, place):
                raise ConfigError(
                    f"refresh: a ranker must follow the early stage {stage.budget.name!r}, which "
                    f"imitates one, got none. Publish a funnel with one."
                )
    if not tasks:
        raise ConfigError(
            "refresh: a stage of the bundle must be an early stage or a ranker, got none, and "
            "others do not learn from events. Publish a funnel with one."
        )
    return _with_tasks(blueprint.encoders.schema, tuple(tasks.values()))


def learn(
    base: Blueprint,
    lesson: Lesson,
    *,
    say: Callable[[str], None],
    observer: Observer | None = None,
) -> Learnt:
    """Train the stages of a funnel further, and compare each with the one before.

    Args:
        base: The funnel that serves.
        lesson: Logs, and where work goes.
        say: Told what begins.
        observer: Draws the progress of each training.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The logs do not suffice, such as for labels of one class.
        DivergedError: A loss, or a prediction for the validation rows, is no finite number.
        TamisError: A training was interrupted.
    """
    stages, losses = {stage.budget.name: stage for stage in base.stages}, []
    times = {base.trained_until}
    order = [stage for stage in base.stages if isinstance(stage.plan, RankerPlan)]
    order += [stage for stage in base.stages if isinstance(stage.plan, EarlyStagePlan)]
    for stage in order:
        name, plan = stage.budget.name, stage.plan
        assert isinstance(plan, Trainable)
        now = replace(base, stages=tuple(stages.values()))
        say(f"the {name} stage learns")
        dataset = _dataset(now, name, plan, lesson)
        settings = _settings(plan.model, dataset, lesson.settings)
        run = lesson.folder / name
        result = train(dataset, settings, run, start=plan.model, observer=observer)
        if result.status != "finished":
            raise TamisError(f"{run}: stopped with a checkpoint; give the command again to go on.")
        new = _plan(plan, run, dataset, base.inventory, say)
        losses += _compared(name, plan, new, dataset, base.inventory)
        times.add(dataset.trained_until())
        stages[name] = replace(stage, plan=new)
    learnt = replace(
        base,
        stages=tuple(stages.values()),
        trained_until=latest(times),
    )
    return Learnt(blueprint=learnt, losses=tuple(losses))


def _dataset(now: Blueprint, name: str, plan: Trainable, lesson: Lesson) -> Dataset:
    """What a stage learns from, encoded as what it has learnt from before."""
    tasks = plan.model.spec.tasks
    if not _imitates(plan):
        reads = plan.encoders or now.encoders
        return _ingested(lesson, f"{name}-data", reads, tasks)
    whole = _ingested(lesson, f"{name}-log", now.encoders, label_tasks(tasks))
    out = lesson.folder / f"{name}-data"
    if artifacts.kind_of(out) == "dataset":
        return Dataset.open(out)
    place = [stage.budget.name for stage in now.stages].index(name)
    # With the very stage, whose cut decides what it keeps and what it turns away.
    cascade = replace(now, stages=(*now.stages[: place + 1], _teachers(now, place)[-1]))
    return write_cascade(cascade, whole, out, sampling=CascadeSampling(), reads=plan.encoders)


def _imitates(plan: Trainable) -> bool:
    return any(task.distils for task in plan.model.spec.tasks)


def _teachers(blueprint: Blueprint, place: int) -> list[PlannedStage]:
    """Rankers behind a stage."""
    return [one for one in blueprint.stages[place + 1 :] if isinstance(one.plan, RankerPlan)]


def _ingested(lesson: Lesson, name: str, encoders: Encoders, tasks: tuple[Task, ...]) -> Dataset:
    out = lesson.folder / name
    if artifacts.kind_of(out) == "dataset":
        return Dataset.open(out)
    schema = _with_tasks(encoders.schema, tasks)
    with artifacts.disk_errors(out):
        return ingest(lesson.logs, out, schema=schema, encoders=encoders)


def _with_tasks(schema: Schema, tasks: tuple[Task, ...]) -> Schema:
    """A schema with other labels, and without weights, which a store has none of."""
    return replace(schema, tasks=tasks, roles=replace(schema.roles, weight=""))


def _settings(model: TrainedModel, dataset: Dataset, overrides: Sequence[str]) -> RunConfig:
    """The recipe that a model carries, for one pass in short steps over new rows."""
    table = {"model": {"name": model.name, **config.to_table(model.config)}, **model.training}
    before = run_config_from_table(table)
    size = api.default_batch_size(dataset.split("train").num_rows)
    device = before.training.device
    after = replace(
        before,
        optimizer=replace(
            before.optimizer,
            embedding_lr=_STEP_SIZE * before.optimizer.embedding_lr,
            dense_lr=_STEP_SIZE * before.optimizer.dense_lr,
        ),
        training=replace(
            before.training,
            max_epochs=1,
            batch_size=min(before.training.batch_size, size),
            # The machine that refreshes need not be the one that trained.
            device="auto" if device.startswith("cuda") else device,
        ),
    )
    return run_config_from_table(config.override(after.to_table(), overrides))


def _plan(
    plan: Trainable, run: Path, dataset: Dataset, inventory: Inventory, say: Callable[[str], None]
) -> Trainable:
    """The stage with a run's model, calibrated in the way in which it was before."""
    # Its own recipe, not that of the run: else every refresh would shorten the steps again.
    model = replace(load_trained(run), training=plan.model.training)
    if not plan.calibration.by_task:
        return replace(plan, model=model)
    columns, groups = calibrating_rows(run, dataset, inventory)
    maps = dict(plan.calibration.by_task)
    for task, target, predicted in served_predictions(columns, dataset.spec.tasks, _head(plan)):
        if task not in maps:
            continue
        method: CalibrationMethod = maps[task].other.to_json()["method"]
        try:
            maps[task] = fit_by_group(
                method, target, predicted, groups, weights=columns.get("weight")
            )
        except DataError as error:
            # Too few conversions, say. The comparison that follows judges what this gives.
            say(f"{run.name}, task {task!r}: keeps the calibration that serves. {error}")
    return replace(plan, model=model, calibration=Calibration(by_task=maps))


def _head(plan: Trainable) -> ServedHead | None:
    return plan.settings.head if isinstance(plan, EarlyStagePlan) else None


def _compared(
    name: str, before: Trainable, after: Trainable, dataset: Dataset, inventory: Inventory
) -> list[Losses]:
    """Losses of two stages on the test rows, as each would serve.

    The loss is the divergence from the target: the log loss where that is a label. What an early
    stage turned away counts too, by the weights of its rows: a new one that overrates it is worse,
    and rows that the stage before chose by its own scores would speak against that one alone.
    """
    groups = billing_of_rows(dataset, "test", inventory)
    columns = [_served(plan, dataset, groups) for plan in (before, after)]
    weights = dataset.split("test").weights()
    found = []
    for task, (target, serving) in columns[0].items():
        refreshed = columns[1][task][1]
        if np.isnan(target).all():
            continue
        losses = [
            evaluate_imitation(target, predicted, weights=weights)
            for predicted in (serving, refreshed)
        ]
        found.append(
            Losses(
                stage=name,
                task=task,
                rows=losses[0].rows,
                serving=losses[0].divergence,
                refreshed=losses[1].divergence,
            )
        )
    return found


def _served(
    plan: Trainable, dataset: Dataset, groups: NDArray[np.str_]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Targets and calibrated predictions of the test rows, by task that serves."""
    settings, split, tasks = plan.settings, dataset.split("test"), dataset.spec.tasks
    predictor = Predictor(
        model=plan.model.module,
        device=torch.device("cpu"),
        precision=getattr(torch, getattr(settings, "precision", "float32")),
        batch_size=4096,
    )
    predictions, labels = predictor.predict(dataset, "test"), split.labels()
    columns: dict[str, NDArray[Any]] = {}
    for place, task in enumerate(tasks):
        columns[f"label:{task.name}"] = labels[:, place].astype(np.float64)
        columns[f"prediction:{task.name}"] = predictions[:, place]
    found = {}
    for task_name, target, predicted in served_predictions(columns, tasks, _head(plan)):
        calibrated = plan.calibration.apply({task_name: predicted}, groups)[task_name]
        found[task_name] = (target, calibrated)
    return found
