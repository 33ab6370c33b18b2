"""Rows per second of tamis' loader beside PyTorch's DataLoader, and its share of a training step.

All read the same shuffled rows of 20 ids and a label in batches of 4096, in one process. The peers
hold the rows in memory already; tamis reads its memory-mapped dataset. ``dataloader/rows`` fetches
one NumPy row at a time and collates, as most training scripts do; ``dataloader/tensors`` is
``TensorDataset``. ``step/loader`` is the time of a DeepFM training epoch over the time that the
loader alone takes for the same rows without its background thread: 20 means 5 % of a step.
"""

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import harness
import numpy as np
import peers
import pyarrow.parquet as pq
import synthetic
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tamis import api
from tamis.data.dataset import Split
from tamis.data.loader import Loader
from tamis.data.schema import InputSpec

BATCH_SIZE = 4096
NUM_ROWS = {False: 2_000_000, True: 300_000}
ROUNDS = {False: 5, True: 3}
TABLE_ROWS = 1_000_000
BARS = {"dataloader/rows": 15.0, "step/loader": 20.0}
COLUMNS = {
    "contender": str,
    "rows": lambda value: f"{value:,}",
    "rows_per_second": lambda value: f"{value:,.0f}",
    "cost_us_per_row": lambda value: f"{value:.3f}",
}


class RowDataset(Dataset[tuple[NDArray[np.int64], np.float32]]):
    """A map-style dataset as it is commonly written: one row, one label."""

    def __init__(self, ids: NDArray[np.int64], labels: NDArray[np.float32]) -> None:
        """Keep the arrays."""
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        """Rows."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], np.float32]:
        """One row."""
        return self.ids[index], self.labels[index]


def seconds_of(batches: Iterable[Any], *, num_rows: int, max_rows: int | None = None) -> float:
    """Seconds that it takes to go through batches, those after the first scaled up to all rows.

    Before its first batch a loader shuffles the whole epoch, which counts once.

    Args:
        batches: What is measured.
        num_rows: Rows of a whole epoch.
        max_rows: Stop after so many rows: slow loaders need not finish an epoch to be timed.

    Returns:
        Seconds for ``num_rows`` at the measured rate.
    """
    limit = num_rows if max_rows is None else min(max_rows, num_rows)
    begun = time.perf_counter()
    remaining = iter(batches)
    next(remaining)
    seen, started = BATCH_SIZE, time.perf_counter()
    while seen < limit and next(remaining, None) is not None:
        seen += BATCH_SIZE
    rate = (time.perf_counter() - started) / (min(seen, num_rows) - BATCH_SIZE)
    return started - begun + rate * (num_rows - BATCH_SIZE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    api.prepare_process(options.threads)
    from tamis_worker import write_dataset

    num_rows, scratch = NUM_ROWS[options.quick], peers.cache_folder() / "scratch" / "loader"
    shutil.rmtree(scratch, ignore_errors=True)
    log = synthetic.encoded_log(
        scratch / "log", table_rows=TABLE_ROWS, train_rows=num_rows, test_rows=20_000
    )
    files = {split: str(path) for split, path in log.files.items()}
    dataset = write_dataset(scratch / "dataset", files, log.rows_by_field, synthetic.LABEL)
    table = pq.read_table(log.files["train"])
    ids = np.stack([table[name].to_numpy() for name in log.rows_by_field], axis=1)
    labels = table[synthetic.LABEL].to_numpy()
    peer_rows: dict[str, Dataset[Any]] = {
        "rows": RowDataset(ids, labels),
        "tensors": TensorDataset(torch.from_numpy(ids), torch.from_numpy(labels)),
    }
    split, spec = dataset.split("train"), dataset.spec
    slow = num_rows // 10  # a tenth of an epoch is seconds of work for a row-wise loader
    costs = harness.interleave(
        {
            "dataloader/rows": lambda: seconds_of(
                DataLoader(peer_rows["rows"], batch_size=BATCH_SIZE, shuffle=True),
                num_rows=num_rows,
                max_rows=slow,
            ),
            "tamis": lambda: seconds_of(_epoch(split, spec, prefetch=2), num_rows=num_rows),
            "dataloader/tensors": lambda: seconds_of(
                DataLoader(peer_rows["tensors"], batch_size=BATCH_SIZE, shuffle=True),
                num_rows=num_rows,
                max_rows=slow,
            ),
            "loader alone": lambda: seconds_of(_epoch(split, spec, prefetch=0), num_rows=num_rows),
            "training": lambda: _training_seconds(dataset.path, scratch / "run"),
        },
        rounds=ROUNDS[options.quick],
    )
    ratios = {
        name: harness.ratio_of(list(zip(costs[name], costs["tamis"], strict=True)))
        for name in ("dataloader/rows", "dataloader/tensors")
    }
    ratios["step/loader"] = harness.ratio_of(
        list(zip(costs["training"], costs["loader alone"], strict=True))
    )
    rows = [
        {
            "contender": name,
            "rows": num_rows,
            "rows_per_second": num_rows / median(seconds),
            "cost_us_per_row": 1e6 * median(seconds) / num_rows,
            "seconds": seconds,
            "batch_size": BATCH_SIZE,
            "threads": options.threads,
        }
        for name, seconds in costs.items()
    ]
    harness.report(
        options,
        "loader",
        "loading 20 ids and a label",
        COLUMNS,
        rows=rows,
        ratios=ratios,
        bars=BARS,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _epoch(split: Split, spec: InputSpec, *, prefetch: int) -> Iterable[Any]:
    return Loader(split, spec, batch_size=BATCH_SIZE, seed=1, prefetch=prefetch).epoch(0)


def _training_seconds(dataset: Path, run: Path) -> float:
    """Seconds of the steps of one DeepFM epoch, validation left out."""
    from tamis import artifacts

    shutil.rmtree(run, ignore_errors=True)
    api.train(
        dataset,
        model="deepfm",
        settings=("training.max_epochs=1", f"training.batch_size={BATCH_SIZE}"),
        run=run,
        report=False,
    )
    return float(artifacts.read_json(run / "run.json")["training_seconds"])


if __name__ == "__main__":
    sys.exit(main())
