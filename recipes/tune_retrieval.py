"""Choose step size and L2 of a table of retrieval: the same trials for each model without index.

    python recipes/tune_retrieval.py hsnn-market

Two towers and the three networks by themselves try every step size with every L2 on embeddings. A
trial trains on the training split with seed 0 and is judged by the validation split, by what the
recipe monitors; test users are never looked at. What was chosen for the small network, which scores
the items of every index, is also what the rows with an index train with. All else stands in
``recipes/<folder>/<model>.toml`` and stays. ``tuning.json`` beside them keeps every trial, and one
that stands in it is not done again. A million ads train as 200,000 do, and Gowalla as Sports.
"""

import argparse
import copy
import itertools
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tune import Ledger, run_trial

from tamis import api, artifacts, config
from tamis.reproduce.retrieval.table import RetrievalRows
from tamis.reproduce.retrieval.tables import retrieval_tables

DENSE_RATES = (0.0005, 0.001, 0.002)
EMBEDDING_L2 = (0.001, 0.0001)
TUNED = ("two_tower", "monn-small", "monn-medium", "monn-large")
ITEMS_NETWORK = "monn-small"

Recipe = dict[str, Any]


def with_settings(recipe: Recipe, dense_lr: float, embedding_l2: float) -> Recipe:
    """The recipe at a step size and an L2."""
    changed = copy.deepcopy(recipe)
    changed["optimizer"] |= {"dense_lr": dense_lr, "embedding_l2": embedding_l2}
    return changed


def main() -> None:
    """Run the trials that are missing and write the recipes."""
    first = {table.recipes: table for table in reversed(retrieval_tables())}
    tables = {table.name: table for table in first.values()}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", choices=sorted(tables))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=os.environ.get("TAMIS_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    table = tables[arguments.table]
    rows = RetrievalRows(table)
    recipes = Path(__file__).parent / table.recipes
    inputs, _ = rows.prepare(arguments.data, arguments.work, recipes)
    api.prepare_process(1)
    found = {model: config.read_toml(recipes / f"{model}.toml") for model in table.models}
    ledger = Ledger(
        recipes / "tuning.json", command=f"python recipes/tune_retrieval.py {table.name}"
    )

    def work(cell: tuple[float, float, str]) -> None:
        *settings, model = cell
        recipe = with_settings(found[model], *settings)
        if ledger.lacks(model, recipe):
            name = f"{model}-{config.fingerprint(recipe)[:12]}"
            folder = arguments.work / "tuning" / table.name / name
            ledger.add(model, run_trial(inputs / "dataset", recipe, folder, rows.tasks))

    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(work, itertools.product(DENSE_RATES, EMBEDDING_L2, TUNED)))
    chosen = {
        model: ledger.best(model, found[model]["training"]["monitor"])["recipe"] for model in TUNED
    }
    for model in table.models:
        path, best = recipes / f"{model}.toml", chosen.get(model, chosen[ITEMS_NETWORK])
        text = path.read_text()
        for name in ("dense_lr", "embedding_l2"):
            line = f"{name} = {best['optimizer'][name]}"
            text = re.sub(rf"^{name} = .*$", line, text, flags=re.MULTILINE)
        artifacts.write_text(path, text)
        sys.stdout.write(f"{model}: {best['optimizer']}\n")


if __name__ == "__main__":
    main()
