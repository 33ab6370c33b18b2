"""Attempts to lift CETNet above the average of its members trained alone, on Rees46.

    python recipes/ensemble_attempts.py

Each changes a few settings of ``recipes/ensemble-rees46/cetnet.toml``: what members teach each
other, how much their own losses count, how they are fused, the optimizer that they share. Every
attempt trains with three seeds and is judged by the mean AUC of the validation split beside that of
the average of InterFormer and DHEN, which train alone with the same seeds by their own recipes; the
test split is never looked at. ``recipes/ensemble-rees46/attempts.json`` keeps what each seed
reached; it is written after each training, and one that stands in it is not done again. Nothing
here changes a recipe.
"""

import argparse
import itertools
import os
import shutil
import statistics
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from spaces import Recipe
from tune import run_trial

from tamis import api, artifacts, config
from tamis.evaluation import evaluate_task
from tamis.reproduce.kinds import table_dataset
from tamis.reproduce.tables import TABLES
from tamis.training.compare import read_predictions

ALONE = ("interformer", "dhen")
AVERAGE = "average of both alone"
SEEDS = 3
MEAN_OF_LOGITS = {"confidence": "none", "fuse": "logit"}
BETWEEN = {"embedding_lr": 0.0015, "embedding_l2": 0.03}
"""Step size and L2 between those of InterFormer, which are CETNet's, and of DHEN alone."""
ATTEMPTS: dict[str, dict[str, dict[str, Any]]] = {
    "as its recipe": {},
    "taught: not at all": {"model": {"collaboration": "none"}},
    "taught: three times as much": {"model": {"collaboration_weight": 0.3}},
    "taught: ten times as much": {"model": {"collaboration_weight": 1.0}},
    "own losses: twice as much": {"model": {"member_weight": 1.0}},
    "own losses alone, then averaged": {
        "model": {
            "member_weight": 1.0,
            "fused_weight": 0.0,
            "collaboration": "none",
            "confidence": "none",
        }
    },
    "own losses and teaching, then averaged": {
        "model": {"member_weight": 1.0, "fused_weight": 0.0, "confidence": "none"}
    },
    "fused: mean of logits": {"model": MEAN_OF_LOGITS},
    "fused: mean of logits, own losses twice as much": {
        "model": {**MEAN_OF_LOGITS, "member_weight": 1.0}
    },
    "optimizer: between both members'": {"optimizer": BETWEEN},
    "optimizer: DHEN's": {"optimizer": {"embedding_lr": 0.002, "embedding_l2": 0.1}},
    "optimizer: three times the L2 on tables": {"optimizer": {"embedding_l2": 0.03}},
    "optimizer: twice the step size on tables": {"optimizer": {"embedding_lr": 0.002}},
    "optimizer: average of weights over more steps": {"training": {"ema_decay": 0.997}},
    "stops later": {"training": {"patience": 6}},
}


def changed(recipe: Recipe, changes: dict[str, dict[str, Any]], *, seed: int) -> Recipe:
    """The recipe with some settings changed, and a seed."""
    found = {section: {**values, **changes.get(section, {})} for section, values in recipe.items()}
    return {**found, "training": {**found["training"], "seed": seed}}


def averaged(folders: list[Path], *, task: str) -> dict[str, float]:
    """Metrics of the mean prediction of the validation rows, as a table takes it of test rows."""
    tables = [read_predictions(folder, "valid") for folder in folders]
    assert all(table["row"].equals(tables[0]["row"]) for table in tables)
    mean = np.mean([table[f"prediction:{task}"].to_numpy() for table in tables], axis=0)
    found = evaluate_task(tables[0][f"label:{task}"].to_numpy(), mean).to_json()
    return {metric: found[metric] for metric in ("auc", "log_loss")}


class Ledger:
    """What each seed of each attempt reached, on disk after each one."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.attempts: dict[str, dict[str, Any]] = (
            artifacts.read_json(path)["attempts"] if path.exists() else {}
        )

    def has(self, name: str, recipe: Any) -> bool:  # noqa: ANN401  (one recipe or several)
        """Whether these very recipes have been tried."""
        return self.attempts.get(name, {}).get("recipe") == recipe

    def add(self, name: str, trial: dict[str, Any]) -> None:
        """Keep what a seed of an attempt reached."""
        with self._lock:
            self.attempts[name] = trial
            payload = {"command": "python recipes/ensemble_attempts.py", "attempts": self.attempts}
            artifacts.write_json(self._path, payload)

    def aucs(self, name: str) -> list[float]:
        """Validation AUC of every seed."""
        return [self.attempts[f"{name}, seed {seed}"]["auc"] for seed in range(SEEDS)]


def main() -> None:
    """Train the attempts that are missing, and print each beside the average."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=os.environ.get("TAMIS_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    table, here = TABLES["ensemble-rees46"], Path(__file__).parent / "ensemble-rees46"
    dataset = table_dataset(table, arguments.data, arguments.work)
    api.prepare_process(1)
    ledger = Ledger(here / "attempts.json")
    recipes = {name: config.read_toml(here / f"{name}.toml") for name in (*ALONE, "cetnet")}
    work = arguments.work / "ensemble-attempts"

    def train(name: str, recipe: Recipe) -> Path:
        """Train where that is missing; where predictions are, of members alone."""
        folder = work / config.fingerprint(recipe)[:12]
        kept = folder / "predictions"

        def keep(run: Path) -> dict[str, float]:
            shutil.copytree(run / "predictions", kept, dirs_exist_ok=True)
            return {}

        is_alone = name.startswith(ALONE)
        if not ledger.has(name, recipe) or (is_alone and not kept.exists()):
            judge = {"judge": keep} if is_alone else {}
            ledger.add(name, run_trial(dataset, recipe, folder, table.tasks, **judge))
        return kept

    def alone(seed: int) -> None:
        name = f"{AVERAGE}, seed {seed}"
        parts = {model: changed(recipes[model], {}, seed=seed) for model in ALONE}
        if not ledger.has(name, parts):
            kept = [train(f"{model}, seed {seed}", recipe) for model, recipe in parts.items()]
            ledger.add(name, {"recipe": parts, **averaged(kept, task=table.tasks[0])})

    def attempt(cell: tuple[int, str]) -> None:
        seed, name = cell
        train(f"{name}, seed {seed}", changed(recipes["cetnet"], ATTEMPTS[name], seed=seed))

    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(alone, range(SEEDS)))
        list(pool.map(attempt, itertools.product(range(SEEDS), ATTEMPTS)))
    averages = ledger.aucs(AVERAGE)
    for name in (AVERAGE, *ALONE, *ATTEMPTS):
        found = ledger.aucs(name)
        apart = [auc - average for auc, average in zip(found, averages, strict=True)]
        sys.stdout.write(
            f"{name}: validation AUC {statistics.fmean(found):.5f}, beside the average "
            f"{statistics.fmean(apart):+.5f} ({', '.join(f'{value:+.5f}' for value in apart)})\n"
        )


if __name__ == "__main__":
    main()
