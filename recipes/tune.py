"""Choose the recipes of a table: the same number of random trials for every model.

    python recipes/tune.py criteo-attribution --trials 6 --workers 1
    python recipes/tune.py movielens1m --untuned

The first trial of a model is the field's common setting for such data: on the public sets Adam at
1e-3, batch norm, dropout and strong L2 on embeddings, FinalMLP as published for Frappe; on the
market tamis' own default optimizer; on Census-Income the step size, batch size and number of passes
of the harness that multi-task papers share. Each further trial draws the settings that all models
share (optimizer, step sizes, regularisation, batch size), once for all of them, and the model's own
(``spaces.py``). On the market all models have the same number of dense parameters, train on the
clicks alone, and pass over the rows once. After the random trials come refinements, the same for
every model of a table: each changes one setting of the model's best recipe so far. A trial trains
on the training split with seed 0 and is judged by the validation split (AUC on the public sets, NE
on the market); the test split is never looked at. The best trial becomes
``recipes/<table>/<model>.toml``, on Frappe with twice the patience: a run passes through all
weights of a less patient one, so its best can only be better on the validation split.
``recipes/<table>/tuning.json`` keeps every trial; it is written after each one, and a trial that
stands in it is not done again. ``--untuned`` trains nothing: it writes every model's first trial as
its recipe, so that a table can be made before anyone had the time to tune it.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sizing import scaled_to
from spaces import SIZES, Recipe, draw, with_patience

from tamis import api, artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.reproduce.kinds import table_dataset
from tamis.reproduce.tables import TABLES

_INTERRUPTED = 130
_UNTUNED = "# Untuned: the first trial of recipes/tune.py.\n"


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


def run_trial(
    dataset: Path,
    recipe: Recipe,
    folder: Path,
    tasks: tuple[str, ...],
    *,
    judge: Callable[[Path], dict[str, float]] = lambda _: {},
) -> dict[str, Any]:
    """Train a trial in a process of one thread; the best validation metrics, mean over tasks.

    What ``judge`` says of the run stands beside them; then the run is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_text(folder / "recipe.toml", config.write_toml(recipe))
    run = folder / "run"
    command = [
        *(sys.executable, "-m", "tamis", "train", str(dataset), "--no-report", "--threads", "1"),
        *("--recipe", str(folder / "recipe.toml"), "--run", str(run)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0 or done.returncode == _INTERRUPTED:
        raise KeyboardInterrupt  # no result of the trial
    if done.returncode:
        return {"recipe": recipe, "error": done.stderr.strip()[-300:]}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = [line for line in lines if line["is_best"]][-1]["valid"]
    judged = judge(run)
    shutil.rmtree(run)
    means = {
        metric: statistics.fmean(best[task][metric] for task in tasks)
        for metric in ("auc", "log_loss")
    }
    return {"recipe": recipe, **means, **judged}


class Ledger:
    """The trials of a table by model, on disk after each one."""

    def __init__(self, path: Path, *, command: str, judged_by: str = "") -> None:
        self._path, self._about = path, {"command": command}
        if judged_by:
            self._about["judged_by"] = judged_by
        self._lock = threading.Lock()
        found = artifacts.read_json(path) if path.exists() else {"trials": {}, **self._about}
        if found.get("judged_by", "") != judged_by:
            raise ConfigError(
                f"{path}: trials must be judged alike, got those by "
                f"{found.get('judged_by', 'nobody knows whom')} beside {judged_by}. Move the file "
                f"away to try all of them anew."
            )
        self._trials: dict[str, list[dict[str, Any]]] = found["trials"]

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
            artifacts.write_json(self._path, {**self._about, "trials": self._trials})

    def best(self, model: str, monitor: str) -> dict[str, Any]:
        """The trial with the best monitored validation metric; NE goes by the log loss."""
        key, sign = ("log_loss", -1) if monitor == "ne" else (monitor, 1)
        finished = [trial for trial in self._trials[model] if key in trial]
        return max(finished, key=lambda trial: sign * trial[key])


def write_untuned(table: str, models: list[str], out: Path) -> None:
    """Write the first trial of each model as its recipe; a recipe that is there stays.

    Raises:
        ValueError: The models of the table are scaled to one size, which takes its dataset.
    """
    if "dense_parameters" in SIZES[table]:
        raise ValueError(f"{table}: must be of models of any size, got one for all. Tune it.")
    for model in models:
        path = out / f"{model}.toml"
        if not path.exists():
            artifacts.write_text(path, _UNTUNED + config.write_toml(draw(model, table, 0)))


def parser_of(description: str | None, tables: Iterable[str]) -> argparse.ArgumentParser:
    """Reads what every script that chooses recipes is told: a table, and where and how to work."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", choices=sorted(tables))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=os.environ.get("TAMIS_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    return parser


def main() -> None:
    """Run the trials that are missing and write the recipes."""
    parser = parser_of(__doc__, SIZES)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--untuned", action="store_true")
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    out = Path(__file__).parent / table.name
    models = arguments.models or list(table.models)
    if arguments.untuned:
        write_untuned(table.name, models, out)
        return
    dataset = table_dataset(table, arguments.data, arguments.work)
    spec = Dataset.open(dataset).spec
    size, monitor = SIZES[table.name].get("dense_parameters"), SIZES[table.name]["monitor"]
    assert spec.tasks[0].name == table.tasks[0], "early stopping looks at the first task"
    api.prepare_process(1)
    command = f"python recipes/tune.py {table.name} --trials {arguments.trials}"
    ledger = Ledger(out / "tuning.json", command=command)

    def try_out(model: str, recipe: Recipe, **about: str) -> None:
        if ledger.lacks(model, recipe):
            name = f"{model}-{config.fingerprint(recipe)[:12]}"
            folder = arguments.work / "tuning" / table.name / name
            ledger.add(model, run_trial(dataset, recipe, folder, table.tasks) | about)

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
