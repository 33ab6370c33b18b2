"""Early-stage rankers of a table's row: their training, what they serve, and what that costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from tamis import api, artifacts, config
from tamis.data.batch import blank_batch
from tamis.data.cascade_log import FINAL_PREFIX, REJECTED
from tamis.data.schema import InputSpec
from tamis.data.sides import side_spec
from tamis.errors import ConfigError
from tamis.evaluation import evaluate_imitation, evaluate_task
from tamis.models.early_serving import ServedHead, served_tasks
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.reproduce.early.calibration import ValidationRows, calibration_ratios
from tamis.reproduce.early.study import Judged, Study
from tamis.reproduce.early.variants import OneModel, Pools
from tamis.reproduce.training import train
from tamis.training.compare import read_predictions
from tamis.training.config import run_config_from_table
from tamis.training.consolidation import Load, RequestCost, equal_cost_config, request_cost

_DISTILLATION = "distillation"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Served:
    """What a finished training serves of some tasks for all judged candidates."""

    predictions: Mapping[str, NDArray[np.float64]]
    """(N,) by task, calibrated."""
    heads: Mapping[str, Any]
    """By task, metrics of the label's head and of the one that serves, each calibrated apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Table ``[distillation]`` of an early stage's recipe."""

    weight: float = 1.0
    """Weight k of each distillation loss beside 1 of each label's. Positive."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"weight: must be positive, got {self.weight}.")


def settings_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides any training, of an early stage's recipe."""
    return {name: values for name, values in recipe.items() if name != _DISTILLATION}


def _distillation(recipe: Mapping[str, Any]) -> Distillation:
    return config.from_table(Distillation, recipe.get(_DISTILLATION, {}), where=_DISTILLATION)


def train_tasks(
    dataset: Path,
    variant: OneModel,
    tasks: Sequence[str],
    *,
    recipe: Mapping[str, Any],
    seed: int,
    run: Path,
) -> None:
    """Train a ranker for some tasks; the others' heads get no loss and stay as they were drawn.

    Args:
        dataset: Of the variant's rows.
        variant: How final-stage predictions are learned.
        tasks: That are learned.
        recipe: Of the early stage, with changes that are not the variant's. Beside what decides any
            training it may have a table ``[distillation]``.
        seed: Of weights and order of rows.
        run: Run folder; a stopped training goes on.

    Raises:
        TamisError: A signal stopped the training.
    """
    spec = api.open_dataset(dataset).spec
    is_distilled = variant.distillation != "none"
    distil_weight = variant.distil_weight
    if distil_weight is None:
        distil_weight = _distillation(recipe).weight
    weights = [
        0.0
        if (task.distils or task.name) not in tasks
        else distil_weight
        if task.distils and is_distilled
        else float(not task.distils)
        for task in spec.tasks
    ]
    # Weights are picked by what serves: the imitation of the final stage, of all tasks, as rare
    # ones are learned last. Labels of rare events are too few to pick by.
    monitored = [FINAL_PREFIX + task for task in tasks] if is_distilled else [tasks[0]]
    settings = [
        f"model.distillation={variant.distillation!r}",
        *variant.settings,
        f"training.task_weights={weights}",
        f"training.monitor_tasks={monitored}",
        f"training.seed={seed}",
    ]
    path = run.parent / f"{run.name}.toml"
    artifacts.write_text(path, config.write_toml(config.override(settings_of(recipe), settings)))
    train(dataset, recipe=path, run=run)


def serve(
    study: Study, run: Path, tasks: Sequence[str], *, pools: Pools, head: ServedHead
) -> Served:
    """Calibrated predictions of a training for the judged candidates.

    Each head is calibrated on :class:`ValidationRows`: one that imitates on all of them, one of a
    label on the impressions among them. That of the label is so even where it does not serve, as
    nobody may be billed by an imitation.

    Args:
        study: The cascade.
        run: A finished training.
        tasks: That serve.
        pools: Rows that trained it.
        head: Which head serves.
    """
    spec = api.open_dataset(study.dataset(pools)).spec
    valid = read_predictions(run / "predictions", "valid")
    test = read_predictions(run / "predictions", "test")
    rows, judged = ValidationRows(study, pools), study.judged()
    names = [task.name for task in spec.tasks]
    predictions, heads = {}, {}
    label_tasks = [task.name for task in spec.tasks if not task.distils]
    for task, places in zip(label_tasks, served_tasks(spec.tasks, head), strict=True):
        if task not in tasks:
            continue
        parts = {"label": [task], "served": [names[place] for place in places]}
        found = {
            name: _calibrated(columns, valid, test, rows, judged) for name, columns in parts.items()
        }
        predictions[task] = found["served"].values
        heads[task] = {
            **_on_impressions(test[f"label:{task}"].to_numpy(), found),
            "imitation": _imitation(judged, task, found["served"].values),
            "is_calibrated": {name: head.is_calibrated for name, head in found.items()},
            "calibration": {
                name: calibration_ratios(
                    head.target, head.values, billing=judged.billing, bid=judged.bid
                )
                for name, head in found.items()
            },
        }
    return Served(predictions=predictions, heads=heads)


def cost_of(
    settings: Mapping[str, Any], spec: InputSpec, tasks: Sequence[str], *, candidates: int
) -> tuple[RequestCost, EarlyStage]:
    """What a request costs by a ranker that has heads for some tasks alone, and that ranker.

    Args:
        settings: The recipe with all changes; only its model matters.
        spec: Inputs and all tasks.
        tasks: That are served.
        candidates: Of a request.
    """
    model_config: EarlyStageConfig = run_config_from_table(settings_of(settings)).model
    model = EarlyStage(model_config, with_tasks(spec, tasks)).eval()
    return request_cost(model, Load(candidates=candidates)), model


def equal_cost_recipe(
    recipe: Mapping[str, Any],
    of_all: Mapping[str, Any],
    spec: InputSpec,
    tasks: Sequence[str],
    *,
    candidates: int,
) -> dict[str, Any]:
    """A recipe with the widths at which a model for each task costs what one for all does.

    Args:
        recipe: Of a model for each task.
        of_all: Of the one model.
        spec: Inputs and all tasks.
        tasks: That are served.
        candidates: Of a request.
    """
    together, _ = cost_of(of_all, spec, tasks, candidates=candidates)
    model = equal_cost_config(
        run_config_from_table(settings_of(recipe)).model,
        with_tasks(spec, tasks[:1]),
        Load(candidates=candidates),
        flops=together.flops / len(tasks),
    )
    return {**recipe, "model": {"name": recipe["model"]["name"], **config.to_table(model)}}


def with_tasks(spec: InputSpec, tasks: Sequence[str]) -> InputSpec:
    """The same inputs with some of the tasks, and the final stage's predictions of them."""
    kept = tuple(task for task in spec.tasks if (task.distils or task.name) in tasks)
    have = {task.name for task in kept}
    return replace(
        spec,
        tasks=tuple(
            task if task.observed_when in have else replace(task, observed_when="") for task in kept
        ),
    )


def request_call(models: Sequence[EarlyStage], *, candidates: int) -> Callable[[], None]:
    """What a request computes with cached ads: user and context towers, and all pairs.

    Args:
        models: Called one after the other.
        candidates: Of a request.
    """
    device = torch.device("cpu")
    calls = []
    for model in models:
        part = model.export()
        ads = torch.randn(candidates, model.config.tower_dim)
        user = blank_batch(side_spec(model.spec, "user"), 1, device)
        context = (
            None
            if part.context_tower is None
            else blank_batch(side_spec(model.spec, "context"), 1, device)
        )
        calls.append((part, user, context, ads))

    def answer() -> None:
        with torch.inference_mode():
            for part, user, context, ads in calls:
                part.scorer(part.query(part.embed_user(user), context), ads)

    return answer


def _mean_logit(table: pa.Table, tasks: Sequence[str]) -> NDArray[np.float64]:
    """Probability of the mean of some tasks' logits."""
    columns = [table[f"prediction:{task}"].to_numpy() for task in tasks]
    if len(columns) == 1:
        only: NDArray[np.float64] = columns[0]
        return only
    clipped = [np.clip(column, 1e-12, 1 - 1e-12) for column in columns]
    logit = np.mean([np.log(column) - np.log1p(-column) for column in clipped], axis=0)
    probability: NDArray[np.float64] = 1 / (1 + np.exp(-logit))
    return probability


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Head:
    """What a head says of the N judged candidates."""

    values: NDArray[np.float64]
    """(N,) probabilities."""
    target: NDArray[np.float32]
    """(N,) what it is calibrated to; NaN where there is none, or the final stage did not score."""
    is_calibrated: bool
    """Whether it learned enough for that."""


def _calibrated(
    columns: Sequence[str], valid: pa.Table, test: pa.Table, rows: ValidationRows, judged: Judged
) -> _Head:
    """The mean of some tasks' logits, calibrated."""
    # The last is the one that imitates, where one does.
    target = f"label:{columns[-1]}"
    calibrator = rows.fit(valid[target].to_numpy(), _mean_logit(valid, columns))
    values = _mean_logit(test, columns)
    return _Head(
        values=values if calibrator is None else calibrator.apply(values, judged.billing),
        target=np.where(judged.pool < REJECTED, test[target].to_numpy(), np.float32(np.nan)),
        is_calibrated=calibrator is not None,
    )


def _on_impressions(
    label: NDArray[np.float32], heads: Mapping[str, _Head]
) -> dict[str, dict[str, float | None]]:
    """Metrics of heads on impressions."""
    is_shown = ~np.isnan(label)
    return {
        name: {
            key: evaluate_task(label[is_shown], head.values[is_shown]).to_json()[key]
            for key in ("ne", "auc", "calibration")
        }
        for name, head in heads.items()
    }


def _imitation(judged: Judged, task: str, served: NDArray[np.float64]) -> dict[str, float | None]:
    """How close a head comes to the final stage on what that scored for the log."""
    is_scored = judged.pool < REJECTED
    copied = evaluate_imitation(judged.final[task][is_scored], served[is_scored])
    return {"divergence": _known(copied.divergence), "calibration": _known(copied.calibration)}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
