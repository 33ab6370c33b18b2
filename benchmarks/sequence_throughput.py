"""Training throughput on long histories: DIN and TransAct beside FuxiCTR's, and InterFormer's cost.

Eight fields and a history of up to 100 events a row, on tables of 1e6 rows. Lengths vary first,
log-normally with a median of 20 events; then every history is full, so that nothing is gained by
leaving padding out. Same model, sizes, batch and epochs on both sides, in processes of their own
with the same number of threads; an epoch's seconds hold loader, forward, backward and optimizer,
and epochs take turns. DIN has attention units of 64 and 16 with dice; TransAct two layers of one
head, the maximum and the last ten outputs, and two cross layers.

InterFormer has no peer, and is trained on full histories. Its tokens are 64 wide, as published for
two of three public sets. Beside samples a second stands the share of the machine's matrix-product
peak: operations of an epoch, a training step counted as three forward passes, at the peak's rate,
over the epoch's seconds. The peak, the best of some large products, is measured after each epoch.
Ratios are named peer/model/histories; ``.../fp32`` is tamis in float32, ``peak/interformer`` that
share.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import peers
import synthetic
import torch
from train_throughput import COLUMNS, TAMIS_OPTIMIZER, Contender, start

from tamis import api
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.models.interformer import InterFormer, InterFormerConfig
from tamis.training.cost import count_forward_flops

HISTORY, FIELDS, TABLE_ROWS = 100, 8, 1_000_000
ROWS = {False: (100_000, 3), True: (20_000, 1)}
TEST_ROWS = {False: 20_000, True: 5_000}
MODELS = {"varied": ("din", "transact"), "full": ("din", "transact", "interformer")}
BARS = {"fuxictr/din/full": 5.0, "fuxictr/din/varied": 5.0, "peak/interformer/fp32": 0.4}
CONFIG: dict[str, Any] = {
    "embedding_dim": 16,
    "hidden_units": [200, 80],
    "attention_units": [64, 16],
    "history": HISTORY,
    "batch_size": 1024,
    "learning_rate": 1e-3,
    "seed": 1,
}
# What tamis names otherwise than the peer's side of the benchmark.
SETTINGS: dict[str, dict[str, Any]] = {
    "din": {"attention_units": [64, 16], "activation": "relu"},
    "transact": {"feed_forward": 32},
    "interformer": {"embedding_dim": 64},
}


def measure(
    model: str, log: synthetic.EncodedLog, histories: str, *, rounds: int, threads: int
) -> tuple[list[dict[str, Any]], dict[str, harness.Ratio]]:
    """Train one model with every contender in turn; rows of the table, and ratios by name."""
    cache = peers.cache_folder()
    config = {
        **CONFIG,
        "model_settings": SETTINGS[model],
        "optimizer": TAMIS_OPTIMIZER,
        "task": "train",
        "model": model,
        "threads": threads,
        "files": {split: str(path) for split, path in log.files.items()},
        "rows_by_field": log.rows_by_field,
        "label": synthetic.LABEL,
        "epochs": rounds + 1,
    }
    names = (
        ["tamis", "tamis_fp32"] if model == "interformer" else ["fuxictr", "tamis", "tamis_fp32"]
    )
    about = {
        "model": model,
        "table_rows": TABLE_ROWS,
        "threads": threads,
        "history": HISTORY,
        "histories": histories,
        "mean_history": log.mean_history,
    }
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name in names:
            worker = stack.enter_context(start(name, config, cache))
            if name == "tamis_fp32" and contenders["tamis"].worker.hello["precision"] == "float32":
                continue
            contenders[name] = Contender(name, worker)
        peaks: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds + 1):
            for name, contender in contenders.items():
                contender.epoch()
                if model == "interformer":
                    peaks[name].append(peak_flops(contender.worker.hello["precision"]))
        rows = {name: {**contender.row(), **about} for name, contender in contenders.items()}
    failed = [row["error"] for row in rows.values() if "error" in row]
    if failed:
        raise peers.PeerError(failed[0])
    flops = interformer_flops(cache) if model == "interformer" else 0.0
    ratios = {}
    for suffix, wanted in (("", "tamis"), ("/fp32", "tamis_fp32")):
        ours = contenders.get(wanted, contenders["tamis"])
        if model == "interformer":
            share = share_of_peak(ours, flops, peaks[ours.name])
            ratios[f"peak/{model}{suffix}"] = share
            rows[ours.name] |= {
                "mflop_per_row": flops / 1e6,
                "peak_flops": peaks[ours.name],
                "share_of_peak": share.median,
            }
        else:
            pairs = zip(contenders["fuxictr"].seconds[1:], ours.seconds[1:], strict=True)
            ratios[f"fuxictr/{model}/{histories}{suffix}"] = harness.ratio_of(list(pairs))
    return list(rows.values()), ratios


def share_of_peak(contender: Contender, flops: float, peaks: Sequence[float]) -> harness.Ratio:
    """Seconds that an epoch's operations take at the peak's rate, over those that it took."""
    at_peak = [3 * flops * contender.rows / peak for peak in peaks[1:]]
    return harness.ratio_of(list(zip(at_peak, contender.seconds[1:], strict=True)))


def peak_flops(precision: str) -> float:
    """Floating-point operations a second of large matrix products, the best of some."""
    a, b = (torch.randn(2048, 2048, dtype=getattr(torch, precision)) for _ in range(2))
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    return best


def interformer_flops(cache: Path) -> float:
    """Forward operations a row of the model that was trained here last."""
    dataset = Dataset.open(cache / "scratch" / "tamis" / "dataset")
    model = InterFormer(InterFormerConfig(**SETTINGS["interformer"]), dataset.spec)
    loader = Loader(dataset.split("valid"), dataset.spec, batch_size=256, prefetch=0)
    return count_forward_flops(model, next(loader.epoch(0)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON if asked."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--models", default="din,transact,interformer")
    options = parser.parse_args(arguments)
    wanted = options.models.split(",")
    api.prepare_process(options.threads)
    train_rows, rounds = ROWS[options.quick]
    rows: list[dict[str, Any]] = []
    ratios: dict[str, harness.Ratio] = {}
    for histories, of_histories in MODELS.items():
        models = [model for model in of_histories if model in wanted]
        if not models:
            continue
        log = synthetic.encoded_log(
            peers.cache_folder() / "data" / f"sequences-{histories}",
            table_rows=TABLE_ROWS,
            train_rows=train_rows,
            test_rows=TEST_ROWS[options.quick],
            num_fields=FIELDS,
            history=HISTORY,
            varied=histories == "varied",
        )
        for model in models:
            more_rows, more_ratios = measure(
                model, log, histories, rounds=rounds, threads=options.threads
            )
            rows += more_rows
            ratios |= more_ratios
            if options.json:  # after each model, as all of them take an hour
                harness.write_json(
                    options.json,
                    "sequence_throughput",
                    quick=options.quick,
                    rows=rows,
                    ratios=ratios,
                )
    columns = {"histories": str, **COLUMNS, "share_of_peak": lambda value: f"{100 * value:.0f} %"}
    title = f"training on histories of up to {HISTORY}"
    harness.print_tables(title, columns, rows, ratios, BARS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
