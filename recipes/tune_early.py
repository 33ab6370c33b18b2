"""Choose the recipes of a table of early stages: as many random trials for rivals as for ours.

    python recipes/tune_early.py early-stage-market

One model for all tasks, one model each at equal cost, one of clicks that nothing was distilled
into, LightGBM on the total value and LightGBM task by task each make eight trials of what decides
their training: the incumbent's settings, or common ones of LightGBM, and seven draws, which
networks have in common. Then the best one's weight of distillation is changed, and one model of all
tasks may chain them; trees become more, larger and slower to learn. A trial is a row of the table,
made with seed 0 from the rows that train and judged by the soft recall of requests that validate,
on all of their candidates; test requests are never looked at. The best one becomes
``recipes/<table>/<recipe>.toml``, which the variants of its kind share. The incumbent, which wrote
the log, keeps its own. ``tuning.json`` beside them keeps every trial, and one that stands in it is
not done again.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune import Ledger, parser_of

from tamis import api, artifacts, config
from tamis.reproduce.early.row import ROW_VERSION, RowOrder, make_row, read_recipe
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.table import EarlyRows
from tamis.reproduce.early.variants import (
    FULL,
    VARIANTS,
    EarlyTable,
    early_tables,
    recipes_of,
    variant_to_json,
)
from tamis.reproduce.runner import Cell, run_cells

TRIALS = 8
EACH = "one model each, equal cost"
TUNED = (FULL, EACH, "click", "lightgbm, value", "lightgbm, parts")
"""A row of each kind. The first decides what the second may cost."""
ALSO = {("early-stage-market", FULL): "early-stage-rounds"}
"""Table whose recipe of the same name is the same."""

Recipe = dict[str, Any]
Refinement = Callable[[Recipe], Recipe]
FIRST_DISTILLATION: Recipe = {"distillation": {"weight": 10.0}}
FIRST_TREES: Recipe = {
    "rounds": 300,
    "num_leaves": 63,
    "learning_rate": 0.05,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.8,
}


def chained(recipe: Recipe) -> Recipe:
    """Conversions learned from all impressions, through clicks; it takes a model of both."""
    return {**recipe, "model": {**recipe["model"], "chain": True}}


def less_distilled(recipe: Recipe) -> Recipe:
    """A third of the weight of distillation."""
    return {**recipe, "distillation": {"weight": round(recipe["distillation"]["weight"] / 3, 1)}}


def more_distilled(recipe: Recipe) -> Recipe:
    """Three times the weight of distillation."""
    return {**recipe, "distillation": {"weight": 3 * recipe["distillation"]["weight"]}}


def more_trees(recipe: Recipe) -> Recipe:
    """Twice as many."""
    return {**recipe, "rounds": 2 * recipe["rounds"]}


def larger_trees(recipe: Recipe) -> Recipe:
    """Twice the leaves."""
    return {**recipe, "num_leaves": 2 * recipe["num_leaves"] + 1}


def smaller_steps(recipe: Recipe) -> Recipe:
    """Half the share of each tree's step."""
    return {**recipe, "learning_rate": recipe["learning_rate"] / 2}


_OF_TREES = ((more_trees, larger_trees), (smaller_steps,))
REFINED: dict[str, tuple[tuple[Refinement, ...], ...]] = {
    FULL: ((chained,), (less_distilled, more_distilled)),
    EACH: ((less_distilled, more_distilled),),
    "lightgbm, value": _OF_TREES,
    "lightgbm, parts": _OF_TREES,
}
"""Changes of the best recipe so far, those of one step of the same one."""


def trials_of(table: str, name: str, incumbent: Recipe) -> list[Recipe]:
    """Recipes that are tried: the incumbent's, or LightGBM's common one, and draws.

    Args:
        table: Name of the table.
        name: Name of the recipe.
        incumbent: Recipe of the early stage that wrote the log.
    """
    if name.startswith("lightgbm"):
        draws = [_trees(random.Random(f"{table}/{name}/{trial}")) for trial in range(1, TRIALS)]
        return [FIRST_TREES, *draws]
    first = incumbent if name == "labels_alone" else {**incumbent, **FIRST_DISTILLATION}
    draws = [_network(first, random.Random(f"{table}/{trial}")) for trial in range(1, TRIALS)]
    return [first, *draws]


def _trees(generator: random.Random) -> Recipe:
    return {
        "rounds": generator.choice([150, 300]),
        "num_leaves": generator.choice([31, 63, 127]),
        "learning_rate": generator.choice([0.03, 0.05, 0.1]),
        "min_data_in_leaf": generator.choice([20, 50, 200]),
        "feature_fraction": generator.choice([0.6, 0.8, 1.0]),
    }


def _network(first: Recipe, generator: random.Random) -> Recipe:
    epochs = generator.choice([3, 6])
    return {
        **first,
        "model": {**first["model"], "init_std": generator.choice([0.01, 0.1])},
        "optimizer": {
            **first["optimizer"],
            "embedding_lr": generator.choice([0.02, 0.05, 0.1]),
            "dense_lr": generator.choice([0.001, 0.002, 0.004]),
        },
        "schedule": {"kind": generator.choice(["constant", "cosine", "cosine"])},
        "training": {
            **first["training"],
            "batch_size": generator.choice([1024, 2048]),
            "max_epochs": epochs,
            "patience": epochs,
        },
    }


class Tuning:
    """Trials of a table's kinds of rankers, made as its rows are."""

    def __init__(self, table: EarlyTable, recipes: Path, study: Path, work: Path) -> None:
        """Take the table, the folder of its recipes, the cascade that judges, and one for runs."""
        self._table, self._recipes, self._study, self._work = table, recipes, study, work
        self._cascade = Study(study).fingerprint[:12]
        self._ledger = Ledger(
            recipes / "tuning.json",
            command=f"python recipes/tune_early.py {table.name}",
            judged_by=f"soft recall of requests that validate, cascade {self._cascade}",
        )

    def choose(self, variant: str, *, workers: int) -> dict[str, Any]:
        """Make the trials of a row that are missing, write the best recipe, and return its trial.

        Args:
            variant: Name of the row.
            workers: Trials at a time.
        """
        name, *_ = recipes_of(VARIANTS[variant])
        recipes = trials_of(self._table.name, name, read_recipe(self._recipes, "incumbent"))
        self._make(variant, {"": recipes}, workers=workers)
        for step in REFINED.get(variant, ()):
            changes = [one for one in step if not self._ledger.refined(variant, one.__name__)]
            best = self._ledger.best(variant, "soft_recall")["recipe"]
            refined = {change.__name__: [change(best)] for change in changes}
            self._make(variant, refined, workers=workers)
        best = self._ledger.best(variant, "soft_recall")
        text = config.write_toml(best["recipe"])
        artifacts.write_text(self._recipes / f"{name}.toml", text)
        if also := ALSO.get((self._table.name, variant)):
            artifacts.write_text(self._recipes.parent / also / f"{name}.toml", text)
        return best

    def _make(self, variant: str, recipes: dict[str, list[Recipe]], *, workers: int) -> None:
        """Make trials that are missing, by the refinement that they are of; none has no name."""
        tried = {
            self._ordered(variant, recipe): (refinement, recipe)
            for refinement, some in recipes.items()
            for recipe in some
            if self._ledger.lacks(variant, recipe)
        }

        def keep(cell: Cell) -> None:
            refinement, recipe = tried[cell.run]
            metrics = make_row(cell.run)["metrics"]
            figures = {key: metrics[key] for key in ("soft_recall", "hard_recall", "ndcg")}
            about = {"refinement": refinement} if refinement else {}
            self._ledger.add(variant, {"recipe": recipe, **figures, **about})

        run_cells(
            [Cell(model=variant, seed=0, run=folder) for folder in tried],
            command=lambda cell: ["-m", "tamis.reproduce.early", str(cell.run)],
            workers=workers,
            on_done=keep,
        )

    def _ordered(self, variant: str, recipe: Recipe) -> Path:
        """Folder of a trial, with its recipe, those beside it, and what is to be made."""
        name, *others = recipes_of(VARIANTS[variant])
        found = {name: recipe, **{other: read_recipe(self._recipes, other) for other in others}}
        what = [ROW_VERSION, self._cascade, variant_to_json(VARIANTS[variant]), found]
        trial = config.fingerprint(what)[:12]
        folder = self._work / "tuning" / self._table.name / trial
        for each, settings in found.items():
            artifacts.write_text(folder / f"{each}.toml", config.write_toml(settings))
        RowOrder(variant=VARIANTS[variant], seed=0, study=self._study, recipes=folder).write(folder)
        return folder


def main() -> None:
    """Make the trials that are missing and write the recipes."""
    tables = {table.name: table for table in early_tables() if isinstance(table, EarlyTable)}
    arguments = parser_of(__doc__, tables).parse_args()
    table = tables[arguments.table]
    recipes = Path(__file__).parent / table.name
    api.prepare_process(1)
    study = EarlyRows(table).study(arguments.data, arguments.work, recipes, judges="valid")
    tuning = Tuning(table, recipes, study, arguments.work)
    for variant in TUNED:
        best = tuning.choose(variant, workers=arguments.workers)
        sys.stdout.write(f"{variant}: soft recall {best['soft_recall']:.4f} {best['recipe']}\n")


if __name__ == "__main__":
    main()
