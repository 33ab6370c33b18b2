"""FuxiCTR's DCNv2 and FinalMLP on public data: the accuracy that tamis' tables stand beside.

Both are put together from FuxiCTR's own layers and trained by its own trainer, on the very files
that tamis ingests (``tamis.data.public_sets``). The settings are the published ones for Frappe
(BARS, ``frappe_x1``: DCNv2 007, FinalMLP 004). Other sets have none, so there each model keeps
these settings and its L2 coefficient is picked on the validation split; the test split chooses
nothing.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import peers
import pyarrow.parquet as pq
from rich.table import Table

from tamis.data.public_sets.prepare import PublicSet, prepare

MAX_EPOCHS = 100
PUBLISHED_L2 = 0.05
L2_GRID = (0.05, 0.01, 0.001)

COMMON: dict[str, Any] = {
    "embedding_dim": 10,
    "batch_size": 4096,
    "learning_rate": 1e-3,
    "dropout": 0.4,
    "batch_norm": True,
    "patience": 2,
    "keep_best": True,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "dcn_v2": {"num_cross_layers": 4, "hidden_units": [400, 400, 400]},
    "final_mlp": {
        "first_units": [400],
        "second_units": [100],
        "gate_units": [400],
        "num_heads": 5,
    },
}
# Fields that condition FinalMLP's two gates: user and item where the set has them.
GATE_CONTEXTS = {
    "frappe": (["user"], ["item"]),
    "movielens_1m": (["user_id"], ["movie_id"]),
    "criteo_attribution_5cat": (["cat1"], ["cat4"]),
}


def measure(
    model: str, dataset: str, *, seed: int, embedding_l2: float, threads: int, root: Path
) -> dict[str, Any]:
    """Train one model on one public set and evaluate the weights that its validation AUC chose.

    Args:
        model: ``dcn_v2`` or ``final_mlp``.
        dataset: One of ``tamis.data.public_sets.prepare.PUBLIC_SETS``.
        seed: Seed of weights, dropout and order.
        embedding_l2: FuxiCTR's ``embedding_regularizer``.
        threads: Compute threads.
        root: Folder of the published files.

    Returns:
        ``model``, ``dataset``, ``seed``, ``embedding_l2``, ``metrics`` by split, ``parameters``,
        ``epochs``, ``samples_per_second``.

    Raises:
        PeerError: FuxiCTR cannot be installed, does not come up, or fails.
    """
    name = f"{dataset}-{model}-{seed}-{embedding_l2:g}"
    with tempfile.TemporaryDirectory(prefix="tamis-peer-") as scratch:
        prepared = prepare(dataset, root, Path(scratch) / "files")
        first, second = GATE_CONTEXTS[dataset]
        config = {
            **COMMON,
            **SETTINGS[model],
            "task": "train",
            "model": model,
            "seed": seed,
            "threads": threads,
            "embedding_l2": embedding_l2,
            "columns": _columns(prepared),
            "label": prepared.schema.tasks[0].name,
            "files": {split: str(path) for split, path in prepared.files.items()},
            "first_context": first,
            "second_context": second,
            "scratch": str(Path(scratch) / "fuxictr"),
        }
        log = peers.cache_folder() / "logs" / f"quality-{name}.log"
        with peers.start(peers.PEERS["fuxictr"], config, log=log) as worker:
            fitted = worker.ask("fit", epochs=MAX_EPOCHS)
            metrics = {split: worker.ask("evaluate", split=split) for split in ("valid", "test")}
            return {
                "model": model,
                "dataset": dataset,
                "seed": seed,
                "embedding_l2": embedding_l2,
                "metrics": {
                    split: {"auc": answer["auc"], "log_loss": answer["log_loss"]}
                    for split, answer in metrics.items()
                },
                "parameters": worker.hello["parameters"],
                "epochs": len(fitted["seconds"]),
                "samples_per_second": fitted["rows"]
                * len(fitted["seconds"])
                / sum(fitted["seconds"]),
            }


def choose_l2(model: str, dataset: str, *, threads: int, root: Path) -> float:
    """The published coefficient on Frappe; elsewhere the best of ``L2_GRID`` on validation, seed 0.

    Raises:
        PeerError: As for ``measure``.
    """
    if dataset == "frappe":
        return PUBLISHED_L2
    tried = [
        measure(model, dataset, seed=0, embedding_l2=l2, threads=threads, root=root)
        for l2 in L2_GRID
    ]
    best = max(tried, key=lambda row: row["metrics"]["valid"]["auc"])
    return float(best["embedding_l2"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--datasets", default=",".join(GATE_CONTEXTS))
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the measurements here")
    options = parser.parse_args(arguments)
    if "TAMIS_DATA" not in os.environ:
        print("TAMIS_DATA: must be the folder of the public sets, got nothing.", file=sys.stderr)
        return 2
    root = Path(os.environ["TAMIS_DATA"])
    rows: list[dict[str, Any]] = []
    for dataset in options.datasets.split(","):
        for model in options.models.split(","):
            try:
                l2 = choose_l2(model, dataset, threads=options.threads, root=root)
                for seed in range(options.seeds):
                    rows.append(
                        measure(
                            model,
                            dataset,
                            seed=seed,
                            embedding_l2=l2,
                            threads=options.threads,
                            root=root,
                        )
                    )
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            except peers.PeerError as error:
                rows.append({"model": model, "dataset": dataset, "error": str(error)})
    harness.console().print(_table(rows))
    if options.json:
        harness.write_json(options.json, "peer_quality", quick=False, rows=rows, ratios={})
    return 0


def _columns(prepared: PublicSet) -> list[dict[str, str]]:
    """Inputs with the type that FuxiCTR reads them as; sequences with their separator."""
    types = pq.read_schema(prepared.files["train"])
    columns = []
    for field in prepared.schema.fields:
        kind = str(types.field(field.source).type)
        dtype = "int" if "int" in kind else "float" if kind in ("float", "double") else "str"
        column = {"name": field.source, "dtype": dtype}
        if field.kind == "sequence":
            column["separator"] = field.separator
        columns.append(column)
    return columns


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="FuxiCTR 2.3.10 on public data")
    for name in ("data", "model", "seed", "L2", "test AUC", "test log loss", "epochs", "error"):
        table.add_column(name)
    for row in rows:
        if "error" in row:
            table.add_row(row["dataset"], row["model"], *[""] * 5, row["error"])
            continue
        test = row["metrics"]["test"]
        table.add_row(
            row["dataset"],
            row["model"],
            str(row["seed"]),
            f"{row['embedding_l2']:g}",
            f"{test['auc']:.5f}",
            f"{test['log_loss']:.4f}",
            str(row["epochs"]),
            "",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
