"""Training throughput on long histories: DIN and TransAct beside FuxiCTR's, and InterFormer's cost.

Eight fields and a history of up to 100 events a row, on tables of 1e6 rows. Lengths vary first,
log-normally with a median of 20 events; then every history is full, so that nothing is gained by
leaving padding out. Same model, sizes, batch and epochs on both sides, in processes of their own
with the same number of threads; an epoch's seconds hold loader, forward, backward and optimizer,
and epochs take turns. DIN has attention units of 64 and 16 with dice; TransAct two layers of one
head, the maximum and the last ten outputs, and two cross layers.

InterFormer has no peer, and is trained on full histories. Its tokens are 64 wide, as published for
two of three public sets; its row says how many samples a second it trains, and which share of the
machine's measured matrix-product peak that is, counting a training step as three forward passes.
Ratios are named peer/model/histories; ``.../fp32`` is tamis in float32, ``peak/interformer`` that
share.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
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
from tamis.training.predict import choose_precision

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
        for _ in range(rounds + 1):
            for contender in contenders.values():
                contender.epoch()
        rows = [{**contender.row(), **about} for contender in contenders.values()]
    failed = [row["error"] for row in rows if "error" in row]
    if failed:
        raise peers.PeerError(failed[0])
    ratios = {}
    for suffix, name in (("", "tamis"), ("/fp32", "tamis_fp32")):
        ours = contenders.get(name, contenders["tamis"])
        if "fuxictr" in contenders:
            pairs = zip(contenders["fuxictr"].seconds[1:], ours.seconds[1:], strict=True)
            ratios[f"fuxictr/{model}/{histories}{suffix}"] = harness.ratio_of(list(pairs))
    return rows, ratios


def peak_flops(precision: torch.dtype) -> float:
    """Floating-point operations a second of large matrix products, the best of some."""
    a, b = (torch.randn(2048, 2048, dtype=precision) for _ in range(2))
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    return best


def interformer_flops(dataset: Dataset) -> float:
    """Forward operations a row of the model that is trained here."""
    model = InterFormer(InterFormerConfig(**SETTINGS["interformer"]), dataset.spec)
    loader = Loader(dataset.split("valid"), dataset.spec, batch_size=256, prefetch=0)
    return count_forward_flops(model, next(loader.epoch(0)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON if asked."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    train_rows, rounds = ROWS[options.quick]
    rows: list[dict[str, Any]] = []
    ratios: dict[str, harness.Ratio] = {}
    for histories, models in MODELS.items():
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
    api.prepare_process(options.threads)
    # Of what was trained last: InterFormer, on full histories.
    scratch = peers.cache_folder() / "scratch" / "tamis" / "dataset"
    flops = interformer_flops(Dataset.open(scratch))
    default = choose_precision("auto", torch.device("cpu"))
    for row in rows:
        if row["model"] == "interformer":
            precision = torch.float32 if row["precision"] == "float32" else default
            achieved = 3 * flops * row["samples_per_second"]
            row |= {"mflop_per_row": flops / 1e6, "peak_flops": peak_flops(precision)}
            row["share_of_peak"] = achieved / row["peak_flops"]
            suffix = "/fp32" if precision == torch.float32 else ""
            share = row["share_of_peak"]
            ratios[f"peak/interformer{suffix}"] = harness.Ratio(
                median=share, min=share, max=share, pairs=1
            )
    columns = {"histories": str, **COLUMNS, "share_of_peak": lambda value: f"{100 * value:.0f} %"}
    harness.report(
        options,
        "sequence_throughput",
        f"training on histories of up to {HISTORY}",
        columns,
        rows=rows,
        ratios=ratios,
        bars=BARS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
