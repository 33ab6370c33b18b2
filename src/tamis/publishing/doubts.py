"""What a person should look at in a funnel that can be published all the same."""

import datetime
import time
from collections.abc import Iterator, Sequence

import numpy as np

from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec, Task
from tamis.errors import ConfigError
from tamis.funnel.blueprint import Blueprint, PlannedStage
from tamis.funnel.plans import EarlyStagePlan, RankerPlan
from tamis.models.early_serving import label_tasks
from tamis.publishing.ads import count_unshown
from tamis.publishing.recipe import FunnelRecipe
from tamis.training.asymmetry import check_asymmetry

_ROWS = 200_000
_LEAST_REPEATED = 20
_ALWAYS, _SOMETIMES = 0.999, 0.9


def doubts_about(recipe: FunnelRecipe, blueprint: Blueprint, dataset: Dataset) -> tuple[str, ...]:
    """A line for each doubt.

    Args:
        recipe: That was published.
        blueprint: What was made of it.
        dataset: Whose ads serve.
    """
    return (
        *_early_stage(blueprint),
        *_fallback(blueprint),
        *_conversions(blueprint, dataset),
        *_uncalibrated(recipe, blueprint),
        *_ads(recipe, blueprint),
        *_sides(dataset),
        *_histories(recipe, blueprint),
        *_clock(blueprint),
    )


def _early_stage(blueprint: Blueprint) -> Iterator[str]:
    """Where an early stage is no less than the final one, which leaves nothing to distil."""
    final = blueprint.stages[-1]
    if not isinstance(final.plan, RankerPlan):
        return
    teacher = final.plan.model
    for stage in blueprint.stages:
        if isinstance(stage.plan, EarlyStagePlan):
            model = stage.plan.model
            try:
                check_asymmetry(model.module, model.spec, teacher.module, teacher.spec)
            except ConfigError as error:
                yield f"stage {stage.budget.name!r} before {final.budget.name!r}: {error}"


def _fallback(blueprint: Blueprint) -> Iterator[str]:
    """Where ads are priced by what only imitates the final stage, as soon as that gives nothing."""
    final = blueprint.stages[-1]
    if not isinstance(final.plan, RankerPlan):
        return
    read = blueprint.weights.read_of(blueprint.inventory.attributes.billing).values()
    for stage in blueprint.stages:
        if not isinstance(stage.plan, EarlyStagePlan):
            continue
        model, head = stage.plan.model, stage.plan.settings.head
        if head == "label" or model.config.distillation != "separate":
            continue
        imitated = {task.distils for task in model.spec.tasks}
        names = sorted((imitated & set(read)) - set(stage.plan.calibration.by_task))
        if names:
            yield (
                f"stage {stage.budget.name!r}: where {final.budget.name!r} fails or is late, its "
                f"predictions of {', '.join(names)} price the ads; they imitate those of "
                f"{final.budget.name!r} and are not calibrated. Set calibration, or head = 'label'."
            )


def _conversions(blueprint: Blueprint, dataset: Dataset) -> Iterator[str]:
    """Where a value multiplies by the click what is learned from rows without one."""
    click, conversion = blueprint.weights.click, blueprint.weights.conversion
    names = [task.name for task in dataset.spec.tasks]
    is_paid = (blueprint.inventory.attributes.billing == "conversion").any()
    if not is_paid or not {click, conversion} <= set(names):
        return
    labels = dataset.split("train").labels()[-_ROWS:]
    clicks, conversions = (labels[:, names.index(name)] for name in (click, conversion))
    without_click = conversions[clicks == 0]
    if not len(without_click) or np.isnan(without_click).mean() > _SOMETIMES:
        return
    for stage in blueprint.stages:
        if any(task.name == conversion and not task.observed_when for task in _tasks(stage)):
            yield (
                f"stage {stage.budget.name!r}: task {conversion!r} is learned from rows without "
                f"{click!r} too, and the value multiplies it by that prediction once more. Set "
                f"observed_when = {click!r} for it in the schema, ingest the log anew and train "
                f"again."
            )


def _uncalibrated(recipe: FunnelRecipe, blueprint: Blueprint) -> Iterator[str]:
    """Tasks that decide nothing as the ads are billed now, and could not be calibrated."""
    for wanted, stage in zip(recipe.stages, blueprint.stages, strict=True):
        if wanted.calibration is None or not isinstance(stage.plan, EarlyStagePlan | RankerPlan):
            continue
        for task in _tasks(stage):
            if task.kind == "binary" and task.name not in stage.plan.calibration.by_task:
                yield (
                    f"stage {wanted.name!r}: predictions of {task.name!r} stay as they are, as "
                    f"they could not be calibrated; ads that are put later and pay for it are "
                    f"valued by these."
                )


def _tasks(stage: PlannedStage) -> Sequence[Task]:
    """Tasks with labels that a stage predicts; none where it predicts nothing for the value."""
    if isinstance(stage.plan, EarlyStagePlan | RankerPlan):
        return label_tasks(stage.plan.model.spec.tasks)
    return ()


def _ads(recipe: FunnelRecipe, blueprint: Blueprint) -> Iterator[str]:
    """Ads of the table that no row of the splits shows: new ones, as often as not."""
    count = count_unshown(recipe.ads, blueprint.inventory.codes, blueprint.encoders.schema.roles)
    if count:
        yield (
            f"{recipe.ads.table}: {count:,} ads were not shown in {', '.join(recipe.ads.splits)} "
            f"and are not in the bundle. A server takes them by PUT /v1/ads."
        )


def _sides(dataset: Dataset) -> Iterator[str]:
    """Fields that are one for each ad and are looked for in the request."""
    split = dataset.split("train")
    item = split.role("item")
    if item is None:
        return
    first = max(0, len(item) - _ROWS)
    order = first + np.argsort(item[first:], kind="stable")
    is_same = item[order][1:] == item[order][:-1]
    if min(is_same.sum(), (~is_same).sum()) < _LEAST_REPEATED:
        return
    spec: InputSpec = dataset.spec
    single = {*spec.numeric, *(field.name for field in spec.categorical)}
    for field in dataset.schema.fields:
        if field.side != "context" or field.name not in single:
            continue
        read = split.numeric if field.kind == "numeric" else split.ids
        values = read(field.name)[order]
        is_alike = values[1:] == values[:-1]
        if is_alike[is_same].mean() > _ALWAYS and is_alike[~is_same].mean() < _SOMETIMES:
            yield (
                f"field {field.name!r} has one value for each ad and is of side 'context': it is "
                f"taken from the request, whichever ad is scored. Set side = 'item' in the schema, "
                f"ingest the log anew and train again."
            )


def _histories(recipe: FunnelRecipe, blueprint: Blueprint) -> Iterator[str]:
    """Histories of ads that a server would not make from events."""
    if not recipe.ads.log:
        return
    schema = blueprint.encoders.schema
    of_ads = {
        field.shares or field.name
        for field in schema.fields
        if field.side == "item" and field.kind == "categorical"
    }
    made = {history.group for history in blueprint.online.histories}
    for name, fields in schema.sequence_groups.items():
        is_of_ads = all(field.side != "item" and field.shares in of_ads for field in fields)
        if name in made or not is_of_ads:
            continue
        yield (
            f"sequence group {name!r} is not made from events: a request that does not bring it is "
            f"answered as that of a user without history. Under [online] set histories = "
            f"[{{ group = {name!r} }}]."
        )


def _clock(blueprint: Blueprint) -> Iterator[str]:
    until = blueprint.trained_until
    if until is not None and until > 1e6 * time.time():
        day = datetime.datetime.fromtimestamp(until / 1e6, datetime.UTC).isoformat(" ", "seconds")
        yield (
            f"the latest row that trained is of {day}, which is still to come; a refresh learns "
            f"from what is served after it. Times without a zone count as UTC: write the zone into "
            f"the log, or mend the clock that wrote it."
        )
