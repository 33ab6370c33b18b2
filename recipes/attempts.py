"""Further attempts with DHEN on the market, beyond the trials that every model had.

    python recipes/attempts.py

Each changes one thing of ``recipes/market/dhen.toml``: its modules, its depth, its norm, its
optimizer. They are trained on the training split with seed 0 and judged by the validation split,
as trials are, and ``recipes/market/attempts.json`` keeps what they reached. The table of results is
made from the recipes that came out of equal budgets; nothing here changes them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from spaces import SIZES, Recipe
from tune import fitted, run_trial

from tamis import api, artifacts, config
from tamis.data.dataset import Dataset
from tamis.reproduce.kinds import table_dataset
from tamis.reproduce.tables import TABLES

ONE_LAYER = {"num_layers": 1, "module_tokens": 16}
ATTEMPTS: dict[str, dict[str, dict[str, Any]]] = {
    "as tuned": {},
    "modules: dot and linear, one layer": {"model": {"modules": ["dot", "linear"], **ONE_LAYER}},
    "modules: the same, 1,024 units behind the products": {
        "model": {"modules": ["dot", "linear"], "dot_units": 1024, **ONE_LAYER}
    },
    "modules: dot alone, one layer": {
        "model": {"modules": ["dot"], "dot_units": 1024, **ONE_LAYER}
    },
    "modules: the same without a shortcut, so that the head sees products alone": {
        "model": {"modules": ["dot"], "dot_units": 1024, "shortcut": "none", **ONE_LAYER}
    },
    "modules: dot, linear and dcn_v2": {"model": {"modules": ["dot", "linear", "dcn_v2"]}},
    "modules: attention, linear and dot": {"model": {"modules": ["attention", "linear", "dot"]}},
    "depth: one layer": {"model": ONE_LAYER},
    "depth: three layers": {"model": {"num_layers": 3}},
    "norm between layers": {"model": {"norm": True}},
    "norm between layers; attention, linear and dot": {
        "model": {"norm": True, "modules": ["attention", "linear", "dot"]}
    },
    "optimizer: dense step size 1e-3": {"optimizer": {"dense_lr": 1e-3}},
    "optimizer: step size 5e-4 on tables": {"optimizer": {"embedding_lr": 5e-4}},
}


def main() -> None:
    """Train the attempts that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    table, here = TABLES["market"], Path(__file__).parent / "market"
    dataset = table_dataset(table, None, arguments.work)
    spec, size = Dataset.open(dataset).spec, SIZES["market"]["dense_parameters"]
    api.prepare_process(1)
    base = config.read_toml(here / "dhen.toml")
    path = here / "attempts.json"
    done = artifacts.read_json(path)["attempts"] if path.exists() else {}
    for name, changes in ATTEMPTS.items():
        recipe: Recipe = {
            section: {**values, **changes.get(section, {})} for section, values in base.items()
        }
        recipe = fitted(recipe, spec, size)
        if done.get(name, {}).get("recipe") != recipe:
            folder = arguments.work / "attempts" / config.fingerprint(recipe)[:12]
            done[name] = run_trial(dataset, recipe, folder, table.tasks)
            artifacts.write_json(path, {"command": "python recipes/attempts.py", "attempts": done})
        found = done[name]
        sys.stdout.write(
            f"{name}: validation AUC {found['auc']:.5f}, log loss {found['log_loss']:.6f}\n"
        )


if __name__ == "__main__":
    main()
