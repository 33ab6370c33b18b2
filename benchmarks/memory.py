"""Peak memory of ingesting and training on a file that does not fit: 20M rows x 40 columns.

A process of its own ingests the file, another trains one epoch of DeepFM on it. Each runs under a
hard limit on its private memory (Linux): what the claim allows plus embedding tables and optimizer
state, which are as large as the model and not as the data. The claim is about resident memory,
memory-mapped pages included, with tables and state taken off. A smaller file is measured too: what
a streaming reader needs does not grow with the rows. Ratios are ``cap/ingest`` and ``cap/train``,
the cap over the peak: above 1 it fits.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import peers
import synthetic

CAP_BYTES = 2 << 30
NUM_ROWS = {False: 20_000_000, True: 500_000}
NUM_CATEGORICAL, NUM_NUMERIC = 27, 13
LARGEST_VOCABULARY = 500_000
MIN_COUNT = 2
EMBEDDING_DIM = 8
TRAINING = (
    "training.max_epochs=1",
    "training.batch_size=8192",
    f"model.embedding_dim={EMBEDDING_DIM}",
    "model.hidden_units=[64]",
)
BARS = {"cap/ingest": 1.0, "cap/train": 1.0}
COLUMNS = {
    "phase": str,
    "rows": lambda value: f"{value:,}",
    "seconds": lambda value: f"{value:,.0f}",
    "rows_per_second": lambda value: f"{value:,.0f}",
    "peak_rss_bytes": lambda value: f"{value / 2**20:,.0f} MiB",
    "model_bytes": lambda value: f"{value / 2**20:,.0f} MiB",
    "own_bytes": lambda value: f"{value / 2**20:,.0f} MiB",
}


def measure(num_rows: int, *, threads: int) -> list[dict[str, Any]]:
    """Ingest a file of so many rows and train on it; a row for each of the two.

    Args:
        num_rows: Rows of the file.
        threads: Compute threads.
    """
    scratch = peers.cache_folder() / "scratch" / "memory"
    shutil.rmtree(scratch, ignore_errors=True)
    largest = min(LARGEST_VOCABULARY, num_rows // 10)
    log = synthetic.raw_log(
        scratch / "log.parquet",
        num_rows=num_rows,
        cardinalities=np.geomspace(10, largest, NUM_CATEGORICAL).astype(int).tolist(),
        num_numeric=NUM_NUMERIC,
    )
    about = {
        "rows": num_rows,
        "columns": NUM_CATEGORICAL + NUM_NUMERIC,
        "file_bytes": log.path.stat().st_size,
        "threads": threads,
    }
    ingest = _ask(
        "ingest",
        {
            "categorical": log.categorical,
            "numeric": log.numeric,
            "label": synthetic.LABEL,
            "min_count": MIN_COUNT,
            "file": str(log.path),
            "split": True,
            "memory_limit_bytes": CAP_BYTES,
        },
        threads=threads,
        out=str(scratch / "dataset"),
    )
    rows = [_row("ingest", ingest, about, model_bytes=0)]
    if "error" in ingest:
        return rows
    log.path.unlink()
    # DeepFM's tables are EMBEDDING_DIM and 1 wide; row-wise Adagrad adds one number a row to each.
    model_bytes = 4 * ingest["table_rows"] * (EMBEDDING_DIM + 1 + 2)
    trained = _ask(
        "fit",
        {
            "dataset": str(scratch / "dataset"),
            "run": str(scratch / "run"),
            "model": "deepfm",
            "settings": TRAINING,
            "memory_limit_bytes": CAP_BYTES + model_bytes,
        },
        threads=threads,
    )
    rows.append(_row("train", trained, about, model_bytes=model_bytes))
    shutil.rmtree(scratch, ignore_errors=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    whole = NUM_ROWS[options.quick]
    rows = measure(whole // 10, threads=options.threads)
    rows += measure(whole, threads=options.threads)
    ratios = {
        f"cap/{row['phase']}": harness.ratio_of([(CAP_BYTES, row["own_bytes"])])
        for row in rows
        if row["rows"] == whole and "own_bytes" in row
    }
    harness.report(
        options,
        "memory",
        "memory under a cap of 2 GiB",
        COLUMNS,
        rows=rows,
        ratios=ratios,
        bars=BARS,
    )
    return 0


def _ask(task: str, config: dict[str, Any], *, threads: int, **message: str) -> dict[str, Any]:
    try:
        with peers.Worker(
            "tamis_worker.py",
            {**config, "task": task, "threads": threads},
            python=Path(sys.executable),
            log=peers.cache_folder() / "logs" / f"memory-{task}.log",
        ) as worker:
            return worker.ask(task, **message)
    except peers.PeerError as error:
        return {"error": str(error)}


def _row(
    phase: str, answer: dict[str, Any], about: dict[str, Any], *, model_bytes: int
) -> dict[str, Any]:
    if "error" in answer:
        return {"phase": phase, **about, "error": answer["error"]}
    return {
        "phase": phase,
        **about,
        "seconds": answer["seconds"],
        "rows_per_second": about["rows"] / answer["seconds"],
        "peak_rss_bytes": answer["peak_rss_bytes"],
        "model_bytes": model_bytes,
        "own_bytes": answer["peak_rss_bytes"] - model_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
