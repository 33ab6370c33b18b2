"""Further attempts with one model of a table, beyond the trials that every model had.

    python recipes/attempts.py market
    python recipes/attempts.py sequence-rees46
    python recipes/attempts.py ensemble-rees46

Each changes a few settings of the model's recipe. It trains on the training split and is judged by
the validation split, as trials are; the test split is never looked at. Where a study names rivals,
they train by their own recipes with the same seeds, and where it says so, the average of their
predictions stands beside them too. ``recipes/<table>/attempts.json`` keeps what every seed reached;
it is written after each training, and one that stands in it is not done again. Nothing here
changes a recipe: those of tables come out of equal budgets. But CETNet, which had no trials of its
own, has taken over its best attempt on Rees46, by hand.
"""

import itertools
import shutil
import statistics
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaces import SIZES, Recipe
from tune import fitted, parser_of, run_trial

from tamis import api, artifacts, config
from tamis.data.dataset import Dataset
from tamis.errors import ConfigError
from tamis.reproduce.kinds import table_dataset
from tamis.reproduce.results import metrics_of_average
from tamis.reproduce.tables import TABLES

Changes = dict[str, dict[str, Any]]
"""New values of settings, by section and name."""

AS_TUNED = "as tuned"
AVERAGE = "average of the rivals"


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The attempts with one model of a table."""

    model: str
    attempts: dict[str, Changes]
    seeds: int = 2
    rivals: tuple[str, ...] = ()
    averages_rivals: bool = False


_ONE_LAYER = {"num_layers": 1, "module_tokens": 16}
_ALONE = {"member_weight": 1.0, "fused_weight": 0.0, "confidence": "none"}
_FIRST = {"collaboration_weight": 0.1}
"""What CETNet's attempts start from; its recipe has the weight of the best of them."""

STUDIES = {
    "market": Study(
        model="dhen",
        seeds=1,
        attempts={
            AS_TUNED: {},
            "modules: dot and linear, one layer": {
                "model": {"modules": ["dot", "linear"], **_ONE_LAYER}
            },
            "modules: the same, 1,024 units behind the products": {
                "model": {"modules": ["dot", "linear"], "dot_units": 1024, **_ONE_LAYER}
            },
            "modules: dot alone, one layer": {
                "model": {"modules": ["dot"], "dot_units": 1024, **_ONE_LAYER}
            },
            "modules: the same without a shortcut, so that the head sees products alone": {
                "model": {"modules": ["dot"], "dot_units": 1024, "shortcut": "none", **_ONE_LAYER}
            },
            "modules: dot, linear and dcn_v2": {"model": {"modules": ["dot", "linear", "dcn_v2"]}},
            "modules: attention, linear and dot": {
                "model": {"modules": ["attention", "linear", "dot"]}
            },
            "depth: one layer": {"model": _ONE_LAYER},
            "depth: three layers": {"model": {"num_layers": 3}},
            "norm between layers": {"model": {"norm": True}},
            "norm between layers; attention, linear and dot": {
                "model": {"norm": True, "modules": ["attention", "linear", "dot"]}
            },
            "optimizer: dense step size 1e-3": {"optimizer": {"dense_lr": 1e-3}},
            "optimizer: step size 5e-4 on tables": {"optimizer": {"embedding_lr": 5e-4}},
        },
    ),
    "sequence-rees46": Study(
        model="interformer",
        rivals=("transact", "bst"),
        attempts={
            AS_TUNED: {},
            "flow: from events to fields alone": {"model": {"flow": "to_fields"}},
            "events: all alike, no matrix of each row": {"model": {"personal": "none"}},
            "events: a full matrix of each row": {"model": {"personal": "full"}},
            "events: norms before updates": {"model": {"style": "pre_norm"}},
            "events: as the equations are written": {"model": {"style": "literal"}},
            "events: no attention": {"model": {"attention": False}},
            "summary: eight tokens of the fields": {"model": {"summary_tokens": 8}},
            "summary: six pooled tokens, six recent events": {
                "model": {"pooled_tokens": 6, "recent_tokens": 6}
            },
            "fields: DCNv2 as backbone": {"model": {"backbone": "dcn_v2"}},
            "gate: the sign kept": {"model": {"gate": "identity"}},
            "depth: two layers, the sign kept": {"model": {"num_layers": 2, "gate": "identity"}},
            "width: tokens twice as wide": {"model": {"embedding_dim": 32}},
        },
    ),
    # The bar is the average of both members trained alone.
    "ensemble-rees46": Study(
        model="cetnet",
        rivals=("interformer", "dhen"),
        averages_rivals=True,
        attempts={
            "as at first": {"model": _FIRST},
            "taught: not at all": {"model": {**_FIRST, "collaboration": "none"}},
            "taught: three times as much": {"model": {"collaboration_weight": 0.3}},
            "taught: ten times as much": {"model": {"collaboration_weight": 1.0}},
            "taught: thirty times as much": {"model": {"collaboration_weight": 3.0}},
            "taught: a hundred times as much": {"model": {"collaboration_weight": 10.0}},
            "taught: ten times as much, own losses twice": {
                "model": {"collaboration_weight": 1.0, "member_weight": 1.0}
            },
            "taught: ten times as much, plain mean": {
                "model": {"collaboration_weight": 1.0, "confidence": "none"}
            },
            "own losses: twice as much": {"model": {**_FIRST, "member_weight": 1.0}},
            "own losses alone, then averaged": {
                "model": {**_FIRST, **_ALONE, "collaboration": "none"}
            },
            "own losses and teaching, then averaged": {"model": {**_FIRST, **_ALONE}},
            "fused: mean of logits": {"model": {**_FIRST, "confidence": "none", "fuse": "logit"}},
            # InterFormer's, which CETNet has, are 0.001 and 0.01; DHEN's 0.002 and 0.1.
            "optimizer: between both members'": {
                "model": _FIRST,
                "optimizer": {"embedding_lr": 0.0015, "embedding_l2": 0.03},
            },
        },
    ),
}


def changed(recipe: Recipe, changes: Changes, *, seed: int) -> Recipe:
    """The recipe with some settings changed, and a seed."""
    found = {section: {**values, **changes.get(section, {})} for section, values in recipe.items()}
    return {**found, "training": {**found["training"], "seed": seed}}


class Reached:
    """What each seed of each attempt reached, on disk after each one."""

    def __init__(self, path: Path, *, command: str) -> None:
        self._path, self._command, self._lock = path, command, threading.Lock()
        found = artifacts.read_json(path)["attempts"] if path.exists() else {}
        self._attempts: dict[str, dict[str, Any]] = found

    def has(self, name: str, recipe: Any) -> bool:  # noqa: ANN401  (one recipe or several)
        """Whether these very recipes have been tried."""
        return self._attempts.get(name, {}).get("recipe") == recipe

    def add(self, name: str, trial: dict[str, Any]) -> None:
        """Keep what a seed of an attempt reached."""
        with self._lock:
            self._attempts[name] = trial
            payload = {"command": self._command, "attempts": self._attempts}
            artifacts.write_json(self._path, payload)

    def mean(self, name: str, metric: str, *, seeds: int) -> float:
        """Mean of a metric over seeds."""
        return statistics.fmean(
            self._attempts[_seeded(name, seed)][metric] for seed in range(seeds)
        )


def main() -> None:
    """Train the attempts that are missing, and print what each reached."""
    arguments = parser_of(__doc__, STUDIES).parse_args()
    study, table = STUDIES[arguments.table], TABLES[arguments.table]
    here = Path(__file__).parent / table.name
    dataset = table_dataset(table, arguments.data, arguments.work)
    spec, size = Dataset.open(dataset).spec, SIZES.get(table.name, {}).get("dense_parameters")
    api.prepare_process(1)
    command = f"python recipes/attempts.py {table.name}"
    reached = Reached(here / "attempts.json", command=command)
    models = (*study.rivals, study.model)
    recipes = {model: config.read_toml(here / f"{model}.toml") for model in models}

    def train(name: str, recipe: Recipe, *, keeps_predictions: bool = False) -> Path:
        """Train where that is missing; where the predictions are, if they are kept."""
        folder = arguments.work / "attempts" / config.fingerprint(recipe)[:12]
        predictions = folder / "predictions"

        def keep(run: Path) -> dict[str, float]:
            if keeps_predictions:
                shutil.copytree(run / "predictions", predictions, dirs_exist_ok=True)
            return {}

        is_kept = predictions.exists() or not keeps_predictions
        if not (reached.has(name, recipe) and is_kept):
            trial = run_trial(dataset, recipe, folder, table.tasks, judge=keep)
            if "error" in trial:
                raise ConfigError(f"{name}: {trial['error']}")
            reached.add(name, trial)
        return predictions

    def rivals(seed: int) -> None:
        parts = {model: changed(recipes[model], {}, seed=seed) for model in study.rivals}
        name, averages = _seeded(AVERAGE, seed), study.averages_rivals
        is_averaged = reached.has(name, parts)
        kept = [
            train(_seeded(model, seed), recipe, keeps_predictions=averages and not is_averaged)
            for model, recipe in parts.items()
        ]
        if averages and not is_averaged:
            found = metrics_of_average(kept, "valid", task=table.tasks[0])
            judged = {metric: found[metric] for metric in ("auc", "log_loss")}
            reached.add(name, {"recipe": parts, **judged})

    def attempt(cell: tuple[int, str]) -> None:
        seed, name = cell
        recipe = changed(recipes[study.model], study.attempts[name], seed=seed)
        train(_seeded(name, seed), recipe if size is None else fitted(recipe, spec, size))

    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(rivals, range(study.seeds)))
        list(pool.map(attempt, itertools.product(range(study.seeds), study.attempts)))
    averages = (AVERAGE,) if study.averages_rivals else ()
    for name in (*study.rivals, *averages, *study.attempts):
        auc, log_loss = (
            reached.mean(name, metric, seeds=study.seeds) for metric in ("auc", "log_loss")
        )
        sys.stdout.write(f"{name}: validation AUC {auc:.5f}, log loss {log_loss:.6f}\n")


def _seeded(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


if __name__ == "__main__":
    main()
