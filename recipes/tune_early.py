"""Choose the recipes of a table of early stages: as many random trials for rivals as for ours.

    python recipes/tune_early.py early-stage-market

One model for all tasks, one model each at equal cost, one of clicks that nothing was distilled into
and LightGBM on the total value each try the recipe that stands and seven draws of what decides
their training; networks draw the same. A trial is a row of the table, made with seed 0 from the
rows that train and judged by the soft recall of requests that validate, on all of their candidates;
test requests are never looked at. The best one becomes ``recipes/<table>/<recipe>.toml``, which the
variants of its kind share. The incumbent, which wrote the log, keeps its own. ``tuning.json``
beside them keeps every trial, and one that stands in it is not done again.
"""

import argparse
import os
import random
import sys
from pathlib import Path
from typing import Any

from tune import Ledger

from tamis import api, artifacts, config
from tamis.reproduce.early.row import RowOrder, make_row, read_recipe
from tamis.reproduce.early.table import EarlyRows
from tamis.reproduce.early.variants import (
    FULL,
    VARIANTS,
    EarlyTable,
    early_tables,
    recipes_of,
)
from tamis.reproduce.runner import Cell, run_cells

TRIALS = 8
TUNED = (FULL, "one model each, equal cost", "click", "lightgbm, value")
"""A row of each kind. The first decides what the second may cost."""

Recipe = dict[str, Any]


def draw(table: str, name: str, standing: Recipe, trial: int) -> Recipe:
    """Settings of one trial; the first is what stands."""
    if trial == 0:
        return standing
    if name == "lightgbm":
        generator = random.Random(f"{table}/{name}/{trial}")
        return {
            "rounds": generator.choice([150, 300]),
            "num_leaves": generator.choice([31, 63, 127]),
            "learning_rate": generator.choice([0.03, 0.05, 0.1]),
            "min_data_in_leaf": generator.choice([20, 50, 200]),
            "feature_fraction": generator.choice([0.6, 0.8, 1.0]),
        }
    generator = random.Random(f"{table}/{trial}")
    epochs = generator.choice([3, 6])
    return {
        **standing,
        "model": {**standing["model"], "init_std": generator.choice([0.01, 0.1])},
        "optimizer": {
            **standing["optimizer"],
            "embedding_lr": generator.choice([0.02, 0.05, 0.1]),
            "dense_lr": generator.choice([0.001, 0.002, 0.004]),
        },
        "schedule": {"kind": generator.choice(["constant", "cosine", "cosine"])},
        "training": {
            **standing["training"],
            "batch_size": generator.choice([1024, 2048]),
            "max_epochs": epochs,
            "patience": epochs,
        },
    }


def main() -> None:
    """Make the trials that are missing and write the recipes."""
    tables = {table.name: table for table in early_tables() if isinstance(table, EarlyTable)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", choices=sorted(tables))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=os.environ.get("TAMIS_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    table = tables[arguments.table]
    recipes = Path(__file__).parent / table.name
    api.prepare_process(1)
    study = EarlyRows(table).study(arguments.data, arguments.work, recipes, judges="valid")
    ledger = Ledger(
        recipes / "tuning.json",
        command=f"python recipes/tune_early.py {table.name}",
        judged_by="soft recall of requests that validate",
    )
    for variant in TUNED:
        name, *others = recipes_of(VARIANTS[variant])
        # What was tried first stands first when it is no longer what stands.
        standing = ledger.first(variant) or read_recipe(recipes, name)
        tried: dict[Path, Recipe] = {}
        cells = []
        for trial in range(TRIALS):
            recipe = draw(table.name, name, standing, trial)
            if ledger.lacks(variant, recipe) and recipe not in tried.values():
                decides = [variant, recipe, *(read_recipe(recipes, other) for other in others)]
                folder = arguments.work / "tuning" / table.name / config.fingerprint(decides)[:12]
                tried[folder] = recipe
                for other in others:
                    copied = config.write_toml(read_recipe(recipes, other))
                    artifacts.write_text(folder / f"{other}.toml", copied)
                artifacts.write_text(folder / f"{name}.toml", config.write_toml(recipe))
                order = RowOrder(variant=VARIANTS[variant], seed=0, study=study, recipes=folder)
                order.write(folder)
                cells.append(Cell(model=variant, seed=0, run=folder))

        def keep(cell: Cell, tried: dict[Path, Recipe] = tried) -> None:
            metrics = make_row(cell.run)["metrics"]
            figures = {key: metrics[key] for key in ("soft_recall", "hard_recall", "ndcg")}
            ledger.add(cell.model, {"recipe": tried[cell.run], **figures})

        run_cells(
            cells,
            command=lambda cell: ["-m", "tamis.reproduce.early", str(cell.run)],
            workers=arguments.workers,
            on_done=keep,
        )
        best = ledger.best(variant, "soft_recall")
        artifacts.write_text(recipes / f"{name}.toml", config.write_toml(best["recipe"]))
        sys.stdout.write(f"{variant}: soft recall {best['soft_recall']:.4f} {best['recipe']}\n")


if __name__ == "__main__":
    main()
