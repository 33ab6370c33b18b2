"""Choose the recipes of a table: the same number of random trials for every model.

    python recipes/tune.py criteo-attribution --trials 6 --workers 1

The first trial of a model is the field's common setting for such data: on the public sets Adam at
1e-3, batch norm, dropout and strong L2 on embeddings, FinalMLP as published for Frappe; on the
market tamis' own default optimizer. Each further trial draws the settings that all models share
(optimizer, step sizes, regularisation, batch size), once for all of them, and the model's own. On
the market all models have the same number of dense parameters, and step sizes fall along a cosine:
in one or two passes over the rows a plateau cannot be told from noise. After the random trials come
refinements, the same for every model of a table: each changes one setting of the model's best
recipe so far. A trial trains on the training split with seed 0 and is judged by the validation
split (AUC on the public sets, NE on the market); the test split is never read. The best trial
becomes ``recipes/<table>/<model>.toml``, on Frappe with twice the patience: a run passes through
all weights of a less patient one, so its best can only be better on the validation split.
``recipes/<table>/tuning.json`` keeps every trial; it is written after each one, and a trial that
stands in it is not done again.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sizing import scaled_to

from tamis import api, artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec
from tamis.reproduce.make import table_dataset
from tamis.reproduce.tables import TABLES

Recipe = dict[str, Any]


def averaged(recipe: Recipe) -> Recipe:
    """Evaluate and keep a moving average of the weights, over about 100 steps."""
    return {**recipe, "training": {**recipe["training"], "ema_decay": 0.99}}


def averaged_longer(recipe: Recipe) -> Recipe:
    """The same over about 333 steps."""
    return {**recipe, "training": {**recipe["training"], "ema_decay": 0.997}}


def more_l2(recipe: Recipe) -> Recipe:
    """Twice the L2 on embeddings."""
    l2 = 2 * recipe["optimizer"]["embedding_l2"]
    return {**recipe, "optimizer": {**recipe["optimizer"], "embedding_l2": l2}}


def two_epochs(recipe: Recipe) -> Recipe:
    """Pass over the rows twice, the step sizes falling half as fast."""
    return {**recipe, "training": {**recipe["training"], "max_epochs": 2}}


def with_patience(recipe: Recipe, patience: int) -> Recipe:
    """Stop after this many evaluations without improvement."""
    return {**recipe, "training": {**recipe["training"], "patience": patience}}


# What a table's data ask for; the same for all of its models. The first L2 is the first trial's.
SIZES: dict[str, dict[str, Any]] = {
    "frappe": {
        "monitor": "auc",
        "embedding_dim": 10,
        "tokens": [4, 8],
        "units": [400, 400, 400],
        "batch": [4096, 2048],
        "l2": [0.05, 0.02, 0.1, 0.005],
        "dropout": [0.4, 0.2, 0.3, 0.5],
        "norm": ["batch"],
        "kinds": ["adam"],
        "sides": True,
        "refine": [averaged, averaged_longer, more_l2],
        "final_patience": 4,
    },
    "movielens1m": {
        "monitor": "auc",
        "embedding_dim": 10,
        "tokens": [4, 8],
        "units": [400, 400, 400],
        "batch": [4096, 8192],
        "l2": [0.01, 0.003, 0.03],
        "dropout": [0.4, 0.0, 0.2],
        "norm": ["batch", "none"],
        "kinds": ["adam", "adam", "rowwise_adagrad"],
        "sides": True,
    },
    "criteo-attribution": {
        "monitor": "auc",
        "embedding_dim": 8,
        "tokens": [4, 8],
        "units": [64, 64],
        "batch": [2048, 4096],
        "l2": [1e-4, 0.0, 1e-3, 0.01],
        "dropout": [0.4, 0.0, 0.2],
        "norm": ["batch", "none"],
        "kinds": ["adam", "adam", "rowwise_adagrad"],
        "sides": False,
    },
    "market": {
        "monitor": "ne",
        "embedding_dim": 16,
        "tokens": [8, 16],
        "units": [256, 128],
        "batch": [4096],
        "l2": [0.0, 1e-5, 1e-4],
        "dropout": [0.1, 0.0],
        "norm": ["batch", "none"],
        "kinds": ["rowwise_adagrad", "adam"],
        "sides": True,
        "refine": [two_epochs, averaged_longer],
        # Widths that give every model the same size.
        "dense_parameters": 800_000,
    },
}


def draw(model: str, table: str, trial: int) -> Recipe:
    """Settings of one trial, as a recipe; they depend on the three arguments only.

    What all models share is the same for all of them in the same trial.
    """
    sizes, many_epochs = SIZES[table], table != "market"
    generator = random.Random(f"{table}/{trial}")

    def pick(options: list[Any], *, first: Any) -> Any:  # noqa: ANN401  (settings of any type)
        chosen = generator.choice(options)
        return chosen if trial else first

    kind = pick(sizes["kinds"], first=sizes["kinds"][0])
    rates, first_rate = [5e-4, 1e-3, 3e-3], 1e-3
    if kind == "rowwise_adagrad":
        rates, first_rate = [0.02, 0.05, 0.1], 0.05
    decays = sizes["l2"]
    if model in ("lr", "fm"):  # nothing but tables: they need larger steps and bear far less L2
        kind, rates, first_rate = "adam", [1e-3, 3e-3, 0.01], 3e-3
        decays = [0.0, 1e-5, 1e-4, 1e-3]
    recipe = {
        "model": {"name": model},
        "optimizer": {
            "embedding": kind,
            "embedding_lr": pick(rates, first=first_rate),
            "embedding_l2": pick(decays, first=decays[0]),
            "dense_lr": pick([5e-4, 1e-3, 2e-3], first=1e-3),
        },
        "schedule": (
            {"plateau_factor": pick([0.1, 0.3], first=0.1)} if many_epochs else {"kind": "cosine"}
        ),
        "training": {
            "batch_size": pick(sizes["batch"], first=sizes["batch"][0]),
            "max_epochs": 100 if many_epochs else 1,
            "evaluations_per_epoch": 1 if many_epochs else 2,
            "monitor": sizes["monitor"],
            "patience": 2 if many_epochs else 4,
            "precision": "bfloat16",
        },
    }
    dropout = pick(sizes["dropout"], first=sizes["dropout"][0])
    norm = pick(sizes["norm"], first=sizes["norm"][0])
    init_std = pick([1e-4, 0.01], first=0.01)
    generator = random.Random(f"{table}/{model}/{trial}")
    settings: dict[str, Any] = {}
    if model != "lr":
        settings = {"embedding_dim": sizes["embedding_dim"], "init_std": init_std}
    if model in ("deepfm", "dcn_v2", "autoint", "xdeepfm"):
        settings |= {"hidden_units": sizes["units"], "dropout": dropout, "norm": norm}
    if model == "dcn_v2":
        settings["num_cross_layers"] = pick([2, 3, 4], first=4)
    if model == "autoint":
        settings["num_layers"] = pick([2, 3], first=3)
        settings["attention_dim"] = pick([16, 32], first=32)
        settings["layer_norm"] = pick([True, False], first=True)
    if model == "dlrm":
        settings |= {"top_units": sizes["units"], "dropout": dropout, "norm": norm}
    if model == "final_mlp":
        widest = sizes["units"][0]
        settings |= {
            "first_units": pick([sizes["units"], [widest]], first=[widest]),
            "second_units": pick([sizes["units"], [widest]], first=[widest]),
            "gate_units": [widest],
            "gating": pick([True, False], first=True),
            "num_heads": pick([1, 2, 4], first=4),
            "first_dropout": dropout,
            "second_dropout": pick(sizes["dropout"], first=dropout),
            "norm": norm,
        }
        if sizes["sides"]:
            settings |= {"first_context": ["user"], "second_context": ["item"]}
    if model == "wukong":
        settings |= {
            "head_units": sizes["units"],
            "num_layers": pick([1, 2, 3], first=2),
            "fm_tokens": pick(sizes["tokens"], first=8),
            "linear_tokens": pick(sizes["tokens"], first=8),
            "dropout": dropout,
            "head_norm": norm,
        }
    if model == "dhen":
        choices = [
            ["dot", "linear", "dcn_v2"],
            ["dot", "linear"],
            ["dot", "dcn_v2"],
            ["attention", "linear", "dot"],
        ]
        settings |= {
            "head_units": sizes["units"],
            "num_layers": pick([1, 2, 3], first=2),
            "module_tokens": pick(sizes["tokens"], first=sizes["tokens"][-1]),
            "modules": pick(choices, first=choices[0]),
            "dropout": dropout,
            "head_norm": norm,
        }
        if table == "market":
            settings["norm"] = pick([True, False], first=False)
            settings["num_dense_tokens"] = pick([1, 4], first=1)
    recipe["model"] |= settings
    return recipe


def fitted(recipe: Recipe, spec: InputSpec, size: int) -> Recipe:
    """The recipe at a given number of dense parameters; DHEN emits fewer tokens if it must."""
    try:
        return scaled_to(recipe, spec, size)
    except ValueError:
        tokens = recipe["model"].get("module_tokens", 1)
        if tokens == 1:
            raise
        model = {**recipe["model"], "module_tokens": tokens // 2}
        return fitted({**recipe, "model": model}, spec, size)


def run_trial(dataset: Path, recipe: Recipe, folder: Path, task: str) -> dict[str, Any]:
    """Train a trial in a process of one thread and read the best validation metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_text(folder / "recipe.toml", config.write_toml(recipe))
    run = folder / "run"
    command = [
        *(sys.executable, "-m", "tamis", "train", str(dataset), "--no-report", "--threads", "1"),
        *("--recipe", str(folder / "recipe.toml"), "--run", str(run)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"recipe": recipe, "error": done.stderr.strip()[-300:]}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = [line for line in lines if line["is_best"]][-1]["valid"][task]
    shutil.rmtree(run)
    return {"recipe": recipe, "auc": best["auc"], "log_loss": best["log_loss"]}


class Ledger:
    """The trials of a table by model, on disk after each one."""

    def __init__(self, path: Path, *, command: str) -> None:
        self._path, self._command = path, command
        self._lock = threading.Lock()
        self._trials: dict[str, list[dict[str, Any]]] = (
            artifacts.read_json(path)["trials"] if path.exists() else {}
        )

    def lacks(self, model: str, recipe: Recipe) -> bool:
        """Whether this very recipe has not been tried."""
        return all(trial["recipe"] != recipe for trial in self._trials.get(model, []))

    def refined(self, model: str, refinement: str) -> bool:
        """Whether the refinement has been tried, on whatever recipe was the best then."""
        return any(trial.get("refinement") == refinement for trial in self._trials[model])

    def add(self, model: str, trial: dict[str, Any]) -> None:
        """Keep a trial."""
        with self._lock:
            self._trials.setdefault(model, []).append(trial)
            artifacts.write_json(self._path, {"command": self._command, "trials": self._trials})

    def best(self, model: str, monitor: str) -> dict[str, Any]:
        """The trial with the best monitored validation metric; NE goes by the log loss."""
        finished = [trial for trial in self._trials[model] if "auc" in trial]
        if monitor == "auc":
            return max(finished, key=lambda trial: trial["auc"])
        return min(finished, key=lambda trial: trial["log_loss"])


def main() -> None:
    """Run the trials that are missing and write the recipes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", choices=sorted(SIZES))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=os.environ.get("TAMIS_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    dataset = table_dataset(table, arguments.data, arguments.work)
    out = Path(__file__).parent / table.name
    spec = Dataset.open(dataset).spec
    task = spec.tasks[0].name
    size, monitor = SIZES[table.name].get("dense_parameters"), SIZES[table.name]["monitor"]
    assert task == table.tasks[0], "the first task is the one that early stopping looks at"
    api.prepare_process(1)
    models = arguments.models or list(table.models)
    ledger = Ledger(out / "tuning.json", command=f"python recipes/tune.py {table.name}")

    def try_out(model: str, recipe: Recipe, **about: str) -> None:
        if ledger.lacks(model, recipe):
            name = f"{model}-{config.fingerprint(recipe)[:12]}"
            folder = arguments.work / "tuning" / table.name / name
            ledger.add(model, run_trial(dataset, recipe, folder, task) | about)

    def work(cell: tuple[int, str]) -> None:
        trial, model = cell
        recipe = draw(model, table.name, trial)
        if size is not None:
            recipe = fitted(recipe, spec, size)
        try_out(model, recipe)

    def refine(model: str) -> None:
        for change in SIZES[table.name].get("refine", []):
            if not ledger.refined(model, change.__name__):
                best = ledger.best(model, monitor)["recipe"]
                try_out(model, change(best), refinement=change.__name__)

    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(work, itertools.product(range(arguments.trials), models)))
        list(pool.map(refine, models))
    for model in models:
        best = ledger.best(model, monitor)
        patience = SIZES[table.name].get("final_patience", best["recipe"]["training"]["patience"])
        recipe = with_patience(best["recipe"], patience)
        artifacts.write_text(out / f"{model}.toml", config.write_toml(recipe))
        sys.stdout.write(
            f"{model}: validation AUC {best['auc']:.5f}, log loss {best['log_loss']:.5f}\n"
        )


if __name__ == "__main__":
    main()
