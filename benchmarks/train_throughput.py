"""Whole-epoch training throughput of DeepFM and DCNv2: tamis beside FuxiCTR and DeepCTR-Torch.

Every contender trains the same model (20 fields x 16, MLP 400x3, three cross layers) on the same
rows with the same batch size, step size and number of epochs, in a process of its own with the same
number of threads. An epoch's seconds hold loader, forward, backward and optimizer; preprocessing,
validation and checkpoints are left out on every side. Epochs take turns (FuxiCTR, tamis, tamis in
float32, DeepCTR-Torch, FuxiCTR, ...); the first one warms up and is not counted. Optimizers are
each library's own: Adam with step size 1e-3 for the peers (their published setting), for tamis
row-wise Adagrad on tables with 0.02, chosen on such a log's validation split, and AdamW with 1e-3.
AUC and log loss are those of the epoch with the best validation log loss, on the test split.

FuxiCTR and DeepCTR-Torch add nothing to the loss here: their L2 would walk every table once more.
DeepCTR-Torch's DCN always has a linear part beside it. Ratios are named peer/model/table rows;
``.../fp32`` is tamis in float32 where its default is bfloat16 here, else the same figure.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import harness
import peers
import synthetic

MODELS = ("deepfm", "dcn_v2")
SIZES = {"1e5": 10**5, "1e6": 10**6, "1e7": 10**7}
FULL = {"1e5": (400_000, 3), "1e6": (400_000, 3), "1e7": (100_000, 2)}
"""Rows of an epoch and counted epochs, by table rows."""
QUICK = {"1e5": (200_000, 1), "1e6": (200_000, 1), "1e7": (60_000, 1)}
TEST_ROWS = {False: 100_000, True: 30_000}
BARS = {
    f"{peer}/{model}/{size}": bar
    for peer in peers.PEERS
    for model, bars in {"deepfm": (2.5, 5.0, 20.0), "dcn_v2": (2.0, 4.0, 15.0)}.items()
    for size, bar in zip(SIZES, bars, strict=True)
}
MODEL_CONFIG: dict[str, Any] = {
    "embedding_dim": 16,
    "hidden_units": [400, 400, 400],
    "num_cross_layers": 3,
    "batch_size": 4096,
    "learning_rate": 1e-3,
    "seed": 1,
}


# Picked on the validation split of the 1e6 log, seed 7: 0.05 overfits within the first epoch.
TAMIS_OPTIMIZER = {"embedding": "rowwise_adagrad", "embedding_lr": 0.02}


class Contender:
    """One library in one configuration: its worker, its epochs, and its row of the table."""

    def __init__(self, name: str, worker: peers.Worker) -> None:
        """Take a worker that is ready."""
        self.name = name
        self.worker = worker
        self.seconds: list[float] = []
        self.valid: list[float] = []
        self.test: list[dict[str, float]] = []
        self.peak_rss_bytes = 0
        self.error = ""

    def epoch(self) -> None:
        """Train one epoch and, for a peer, evaluate; a failure ends this contender only."""
        if self.error:
            return
        try:
            answer = self.worker.ask("epoch")
            self.seconds.append(answer["seconds"][0])
            self.peak_rss_bytes = answer["peak_rss_bytes"]
            self.rows = answer["rows"]
            if not self.name.startswith("tamis"):
                self.valid.append(self.worker.ask("evaluate", split="valid")["log_loss"])
                self.test.append(self.worker.ask("evaluate", split="test"))
        except peers.PeerError as error:
            self.error = str(error)

    def quality(self) -> dict[str, float]:
        """Test metrics of the epoch that the validation split chose."""
        if self.name.startswith("tamis"):
            answer = self.worker.ask("finish")
        else:
            answer = self.test[self.valid.index(min(self.valid))]
        return {"auc": answer["auc"], "log_loss": answer["log_loss"]}

    def row(self) -> dict[str, Any]:
        """What was measured."""
        if self.error:
            return {"contender": self.name, "error": self.error}
        counted = self.seconds[1:]
        return {
            "contender": self.name,
            "version": self.worker.hello["version"],
            "precision": self.worker.hello.get("precision", "float32"),
            "samples_per_second": self.rows / median(counted),
            "epoch_seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            **self.quality(),
        }


def measure(
    model: str, size: str, *, quick: bool, threads: int, only: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, harness.Ratio]]:
    """Train every contender on one model and table size, epoch by epoch in turn.

    Args:
        model: ``deepfm`` or ``dcn_v2``.
        size: Key of ``SIZES``.
        quick: Few rows and one counted epoch.
        threads: Compute threads of each contender.
        only: Peers to compare with.

    Returns:
        Rows of the table and ratios by name.
    """
    train_rows, rounds = (QUICK if quick else FULL)[size]
    cache = peers.cache_folder()
    log = synthetic.encoded_log(
        cache / "data" / f"train-{size}",
        table_rows=SIZES[size],
        train_rows=train_rows,
        test_rows=TEST_ROWS[quick],
    )
    config = {
        **MODEL_CONFIG,
        "optimizer": TAMIS_OPTIMIZER,
        "task": "train",
        "model": model,
        "threads": threads,
        "files": {split: str(path) for split, path in log.files.items()},
        "rows_by_field": log.rows_by_field,
        "label": synthetic.LABEL,
        "epochs": rounds + 1,
    }
    about = {
        "model": model,
        "table_rows": SIZES[size],
        "train_rows": train_rows,
        "batch_size": MODEL_CONFIG["batch_size"],
        "epochs": rounds + 1,
        "threads": threads,
        "oracle_log_loss": log.oracle_log_loss,
    }
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name in _order(only):
            try:
                worker = stack.enter_context(start(name, config, cache))
            except peers.PeerError as error:
                rows.append({"contender": name, "error": str(error), **about})
                continue
            if name == "tamis_fp32" and contenders["tamis"].worker.hello["precision"] == "float32":
                continue
            contenders[name] = Contender(name, worker)
        for _ in range(rounds + 1):
            for contender in contenders.values():
                contender.epoch()
        rows += [{**contender.row(), **about} for contender in contenders.values()]
        ratios = _ratios(contenders, model, size)
    return rows, ratios


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sizes", default=",".join(SIZES), help="table rows: 1e5,1e6,1e7")
    parser.add_argument("--peers", default=",".join(peers.PEERS))
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, harness.Ratio] = {}
    for model in options.models.split(","):
        for size in options.sizes.split(","):
            more_rows, more_ratios = measure(
                model,
                size,
                quick=options.quick,
                threads=options.threads,
                only=options.peers.split(","),
            )
            rows += more_rows
            ratios |= more_ratios
            if options.json:  # after each step: a long run that is cut short keeps its figures
                harness.write_json(
                    options.json,
                    "train_throughput",
                    quick=options.quick,
                    rows=rows,
                    ratios=ratios,
                )
    harness.print_tables("training, whole epochs", COLUMNS, rows, ratios, BARS)
    return 0


COLUMNS = {
    "contender": str,
    "model": str,
    "table_rows": lambda value: f"{value:.0e}",
    "samples_per_second": lambda value: f"{value:,.0f}",
    "peak_rss_bytes": lambda value: f"{value / 2**20:,.0f} MiB",
    "auc": lambda value: f"{value:.4f}",
    "log_loss": lambda value: f"{value:.4f}",
    "precision": str,
}


def _order(only: Sequence[str]) -> list[str]:
    """Peers on both sides of tamis."""
    first, rest = list(only[:1]), list(only[1:])
    return [*first, "tamis", "tamis_fp32", *rest]


def start(name: str, config: Mapping[str, Any], cache: Path) -> peers.Worker:
    """A contender's process: a peer in its own environment, or tamis in a precision."""
    fields = len(config["rows_by_field"]) + bool(config.get("history"))
    log = cache / "logs" / f"{name}-{config['model']}-{fields}.log"
    mine = {**config, "scratch": str(cache / "scratch" / name)}
    if name in peers.PEERS:
        return peers.start(peers.PEERS[name], mine, log=log)
    mine["precision"] = "float32" if name == "tamis_fp32" else "auto"
    return peers.Worker("tamis_worker.py", mine, python=Path(sys.executable), log=log)


def _ratios(contenders: Mapping[str, Contender], model: str, size: str) -> dict[str, harness.Ratio]:
    ratios = {}
    for suffix, name in (("", "tamis"), ("/fp32", "tamis_fp32")):
        ours = contenders.get(name) or contenders.get("tamis")
        for peer in peers.PEERS:
            theirs = contenders.get(peer)
            if ours is None or theirs is None or ours.error or theirs.error:
                continue
            pairs = list(zip(theirs.seconds[1:], ours.seconds[1:], strict=True))
            ratios[f"{peer}/{model}/{size}{suffix}"] = harness.ratio_of(pairs)
    return ratios


if __name__ == "__main__":
    sys.exit(main())
