"""Choose width and L2 of a table's embeddings: the same trials for each model without index.

    python recipes/tune_retrieval.py hsnn-market

Two towers and the three networks by themselves try every width of embeddings with every L2; two
towers, from which bars are measured, do so by either objective. A trial trains on the training
split with seed 0 and is judged by the table's recall at 100 of validation users, every item
scored; test users are never looked at. Validation rows would choose otherwise: they are of what was
shown, which is popular, and an L2 that lets popular items be learnt lets the noise of all others
into the lists. What was chosen for the medium network, which scores the items of every index, is
also what the rows with an index train with. All else stands in ``recipes/<folder>/<model>.toml``
and stays, LightGCN's settings among it. ``tuning.json`` beside them keeps every trial, and one that
stands in it is not done again; trials that other validation users judged are in
``tuning-first-users.json``. A million ads train as 200,000 do.
"""

import copy
import itertools
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune import Ledger, parser_of, run_trial

from tamis import api, artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.retrieval_task import read_task
from tamis.reproduce.retrieval import searchers
from tamis.reproduce.retrieval.results import recall_of
from tamis.reproduce.retrieval.scores import Measurer, of_users, spread
from tamis.reproduce.retrieval.searchers import Prepared
from tamis.reproduce.retrieval.table import RetrievalRows
from tamis.reproduce.retrieval.tables import retrieval_tables
from tamis.retrieval.search import Retriever

USERS = {"hsnn-market": 60}
"""Validation users who judge a trial, where the true value of every ad is known. Elsewhere a user
tells of the items that he went for alone, and all of the table's users judge."""
TUNED = ("two_tower", "monn-small", "monn-medium", "monn-large")
ITEMS_NETWORK = "monn-medium"

Recipe = dict[str, Any]
Space = dict[tuple[str, str], tuple[Any, ...]]
"""Values to try of a setting, by its section and name."""

EMBEDDINGS: Space = {
    ("model", "embedding_dim"): (32, 16),
    ("optimizer", "embedding_l2"): (0.001, 0.01, 0.0001),
}
SPACES: dict[str, Space] = {
    "two_tower": {("model", "objective"): ("cross_entropy", "softmax"), **EMBEDDINGS}
}
"""Of models that try more than their embeddings."""


def candidates(model: str, recipe: Recipe) -> Iterator[Recipe]:
    """The recipe at all values that the model tries."""
    space = SPACES.get(model, EMBEDDINGS)
    for values in itertools.product(*space.values()):
        changed = copy.deepcopy(recipe)
        for (section, name), value in zip(space, values, strict=True):
            changed[section][name] = value
        yield changed


class Judge:
    """Recall of a run on validation users, with every item scored."""

    def __init__(self, inputs: Path, users: int) -> None:
        """Take the folder with the dataset and the task of the validation users."""
        self._dataset = Dataset.open(inputs / "dataset")
        task = read_task(inputs / "task-valid")
        encoders = Encoders.load(inputs / "dataset" / "encoders", task.schema)
        prepared = Prepared.of(task, encoders, self._dataset.spec)
        places = spread(len(prepared.requests), users)
        self._task, requests = of_users(task, prepared.requests, places)
        self._prepared = replace(prepared, requests=requests)

    def __call__(self, run: Path) -> dict[str, float]:
        """The table's recall at 100, as what the ledger keeps of a trial."""
        if config.read_toml(run / "config.toml")["model"]["name"] == "two_tower":
            points = searchers.exact_points(run, self._prepared)
        else:
            published = searchers.published(run, self._prepared, self._dataset)
            points = searchers.all_items_points(Retriever(*published))
        searcher = next(points).searcher
        measurer = Measurer(self._task, self._prepared.requests, searcher)
        return {"recall": recall_of(measurer.quality(searcher))}


def main() -> None:
    """Run the trials that are missing and write the recipes."""
    first = {table.recipes: table for table in reversed(retrieval_tables())}
    tables = {table.name: table for table in first.values()}
    parser = parser_of(__doc__, tables)
    parser.add_argument("--models", nargs="*", choices=TUNED, default=TUNED)
    arguments = parser.parse_args()
    table = tables[arguments.table]
    rows = RetrievalRows(table)
    recipes = Path(__file__).parent / table.recipes
    inputs, _ = rows.prepare(arguments.data, arguments.work, recipes)
    api.prepare_process(1)
    users = USERS.get(table.name, table.requests)
    judge = Judge(inputs, users)
    found = {model: config.read_toml(recipes / f"{model}.toml") for model in table.models}
    ledger = Ledger(
        recipes / "tuning.json",
        command=f"python recipes/tune_retrieval.py {table.name}",
        judged_by=f"{users} of {table.requests} validation users",
    )

    def work(cell: tuple[str, Recipe]) -> None:
        model, recipe = cell
        if ledger.lacks(model, recipe):
            name = f"{model}-{config.fingerprint(recipe)[:12]}"
            folder = arguments.work / "tuning" / table.name / name
            trial = run_trial(inputs / "dataset", recipe, folder, rows.tasks, judge=judge)
            ledger.add(model, trial)

    models = arguments.models
    trials = [(model, recipe) for model in models for recipe in candidates(model, found[model])]
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(work, trials))
    chosen = {model: ledger.best(model, "recall")["recipe"] for model in models}
    if ITEMS_NETWORK in chosen:
        indexed = [model for model in table.models if model not in (*TUNED, "lightgcn")]
        chosen |= dict.fromkeys(indexed, chosen[ITEMS_NETWORK])
    for model, best in chosen.items():
        path = recipes / f"{model}.toml"
        text = path.read_text()
        for section, name in SPACES.get(model, EMBEDDINGS):
            line = config.write_toml({name: best[section][name]}).strip()
            text, found_lines = re.subn(rf"^{name} = .*$", line, text, flags=re.MULTILINE)
            assert found_lines == 1, f"{path}: must set {name} once"
        artifacts.write_text(path, text)
        l2 = best["optimizer"]["embedding_l2"]
        sys.stdout.write(f"{model}: embedding_dim {best['model']['embedding_dim']}, L2 {l2}\n")


if __name__ == "__main__":
    main()
