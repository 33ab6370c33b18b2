"""One row of an early-stage table: trained, served, judged, and written as one JSON file."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis import api, artifacts, config
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError, DataError
from tamis.models.early_serving import ServedHead
from tamis.reproduce.early.boosted import BoostedConfig, boosted_scores
from tamis.reproduce.early.judge import judge, soft_recall_of
from tamis.reproduce.early.study import SIMULATED, Judged, Study
from tamis.reproduce.early.trained import (
    cost_of,
    equal_cost_recipe,
    serve,
    train_tasks,
)
from tamis.reproduce.early.variants import (
    Boosted,
    Given,
    OneModel,
    OneModelEach,
    Variant,
    recipes_of,
    variant_from_json,
    variant_to_json,
)
from tamis.training import runlog
from tamis.training.asymmetry import check_sizes
from tamis.training.consolidation import RequestCost
from tamis.training.cost import count_parameters

ROW = "metrics.json"
ROW_VERSION = 2
"""Of what rows say and how it is measured; those of another one are made anew."""
_ORDER = "order.json"
_HEADS: tuple[ServedHead, ...] = ("label", "distilled", "mean")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOrder:
    """What a process is told to make."""

    variant: Variant
    """What is trained."""
    seed: int
    """Of its trainings."""
    study: Path
    """The cascade."""
    recipes: Path
    """Folder of what it is trained by."""

    def write(self, run: Path) -> None:
        """Write it into the row's folder, where :func:`make_row` reads it."""
        artifacts.write_json(
            run / _ORDER,
            {
                "variant": variant_to_json(self.variant),
                "seed": self.seed,
                "study": str(self.study),
                "recipes": str(self.recipes),
            },
        )


def make_row(run: Path) -> dict[str, Any]:
    """Make the row that was ordered in a folder; one that is finished is returned as it is.

    Raises:
        DataError: The final stage as its own early stage does not have a recall of 1.
    """
    if (run / ROW).exists():
        found: dict[str, Any] = artifacts.read_json(run / ROW)
        return found
    order = artifacts.read_json(run / _ORDER)
    study, started = Study(Path(order["study"])), time.perf_counter()
    variant = variant_from_json(order["variant"])
    recipes = [read_recipe(Path(order["recipes"]), name) for name in recipes_of(variant)]
    made = _Row(study, run, recipes, order["seed"]).make(variant)
    made |= {
        SIMULATED: study.record["notes"][SIMULATED],
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": runlog.peak_rss_bytes(),
        **runlog.provenance(),
    }
    artifacts.write_json(run / ROW, made)
    return made


def read_recipe(folder: Path, name: str) -> dict[str, Any]:
    """A recipe of a table.

    Raises:
        ConfigError: It is not there, or no TOML.
    """
    path = folder / f"{name}.toml"
    if not path.exists():
        raise ConfigError(f"{path}: must exist, got no such recipe.")
    return config.read_toml(path)


class _Row:
    def __init__(
        self, study: Study, run: Path, recipes: Sequence[Mapping[str, Any]], seed: int
    ) -> None:
        self._study, self._run, self._recipes, self._seed = study, run, recipes, seed
        self._judged: Judged = study.judged()
        self._candidates = round(study.record["candidates"])

    def make(self, variant: Variant) -> dict[str, Any]:
        match variant:
            case OneModel():
                return self._one_model(variant)
            case OneModelEach():
                return self._one_model_each(variant)
            case Boosted():
                return self._boosted(variant)
            case Given():
                return self._given(variant)

    def _one_model(self, variant: OneModel) -> dict[str, Any]:
        tasks, run = self._study.tasks[: variant.tasks], self._run / "model"
        settings = config.override(self._recipes[0], list(variant.settings))
        costs = self._costs([(settings, tasks)], variant)
        dataset = self._study.dataset(variant.pools)
        train_tasks(dataset, variant, tasks, recipe=self._recipes[0], seed=self._seed, run=run)
        is_distilled = variant.distillation != "none"
        served = serve(
            self._study,
            run,
            tasks,
            pools=variant.pools,
            head="distilled" if is_distilled else "label",
        )
        values = self._study.values(served.predictions, self._judged)
        made: dict[str, Any] = {
            "metrics": judge(self._study, self._judged, values),
            "heads": dict(served.heads),
        }
        if variant.distillation == "separate":
            # Which head serves is not in the source: all ways are reported, none is picked by it.
            made["soft_recall_by_head"] = {
                head: made["metrics"]["soft_recall"]
                if head == "distilled"
                else self._soft_recall(run, tasks, variant, head)
                for head in _HEADS
            }
        return made | costs | _sizes([run])

    def _soft_recall(
        self, run: Path, tasks: Sequence[str], variant: OneModel, head: ServedHead
    ) -> float:
        served = serve(self._study, run, tasks, pools=variant.pools, head=head)
        values = self._study.values(served.predictions, self._judged)
        return soft_recall_of(self._study, self._judged, values)

    def _one_model_each(self, variant: OneModelEach) -> dict[str, Any]:
        one = OneModel(tasks=1)
        tasks = self._study.tasks
        settings = self._recipes[0]
        if variant.equal_cost:
            of_each, of_all = self._recipes
            settings = equal_cost_recipe(
                of_each, of_all, self._spec(one), tasks, candidates=self._candidates
            )
        costs = self._costs([(settings, [task]) for task in tasks], one)
        predictions: dict[str, NDArray[np.float64]] = {}
        heads: dict[str, Any] = {}
        runs = []
        for task in tasks:
            run = self._run / task
            dataset = self._study.dataset(one.pools)
            train_tasks(dataset, one, [task], recipe=settings, seed=self._seed, run=run)
            served = serve(self._study, run, [task], pools=one.pools, head="distilled")
            predictions |= dict(served.predictions)
            heads |= dict(served.heads)
            runs.append(run)
        values = self._study.values(predictions, self._judged)
        return {
            "metrics": judge(self._study, self._judged, values),
            "heads": heads,
            **costs,
            **_sizes(runs),
        }

    def _boosted(self, variant: Boosted) -> dict[str, Any]:
        settings = config.from_table(BoostedConfig, self._recipes[0], where="lightgbm")
        found = boosted_scores(self._study, variant, settings, seed=self._seed)
        is_value = variant.objective != "rank"
        return {
            "metrics": judge(self._study, self._judged, found.score, is_value=is_value),
            "trees": found.trees,
            "models": found.models,
        }

    def _given(self, variant: Given) -> dict[str, Any]:
        score = {
            "teacher": self._study.values(self._judged.final, self._judged),
            "incumbent": self._judged.incumbent,
            "chance": np.zeros(len(self._judged.bid)),
        }[variant.order]
        metrics = judge(self._study, self._judged, score, is_value=variant.order != "chance")
        if variant.order == "teacher" and metrics["soft_recall"] != 1.0:
            raise DataError(
                f"{self._study.folder}: the final stage must have a soft recall of exactly 1 as "
                f"its own early stage, got {metrics['soft_recall']!r}. Make the cascade anew."
            )
        return {"metrics": metrics}

    def _costs(
        self, models: Sequence[tuple[Mapping[str, Any], Sequence[str]]], variant: OneModel
    ) -> dict[str, Any]:
        """Modelled cost of a request by all models together.

        Raises:
            ConfigError: A model has more than half the size of the final stage.
        """
        spec = self._spec(variant)
        final = self._study.record["notes"]["dense_parameters"]["final"]
        costs: list[RequestCost] = []
        for settings, tasks in models:
            cost, model = cost_of(settings, spec, tasks, candidates=self._candidates)
            check_sizes(count_parameters(model)["dense"], final)
            costs.append(cost)
        total = costs[0]
        for cost in costs[1:]:
            total = total + cost
        return {"request_cost": {"source": "modelled", **config.to_table(total)}}

    def _spec(self, variant: OneModel) -> InputSpec:
        return api.open_dataset(self._study.dataset(variant.pools)).spec


def _sizes(runs: Sequence[Path]) -> dict[str, Any]:
    records = [artifacts.read_json(run / "run.json") for run in runs]
    return {
        "dense_parameters": sum(record["parameters"]["dense"] for record in records),
        "training_seconds": sum(record["training_seconds"] for record in records),
    }
