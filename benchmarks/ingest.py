"""Ingest of one file of 20 string columns: tamis beside FuxiCTR's preprocessing.

Both read the same file, fit a vocabulary per column on all rows (categories seen once share the
out-of-vocabulary row) and write the encoded rows; runs take turns. FuxiCTR's Ray is started before
the clock. Its peak memory counts its main process only, not Ray's workers or object store; tamis
is one process. Ratios are named ``fuxictr/csv`` and ``fuxictr/parquet``.
"""

import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import harness
import numpy as np
import peers
import synthetic

NUM_COLUMNS = 20
MIN_COUNT = 2
NUM_ROWS = {False: 5_000_000, True: 200_000}
ROUNDS = {False: 3, True: 2}
FORMATS = ("csv", "parquet")
BARS = {f"fuxictr/{name}": 8.0 for name in FORMATS}
COLUMNS = {
    "contender": str,
    "format": str,
    "rows": lambda value: f"{value:,}",
    "rows_per_second": lambda value: f"{value:,.0f}",
    "peak_rss_bytes": lambda value: f"{value / 2**20:,.0f} MiB",
}


class Contender:
    """A worker that can encode the file, and what it took each time."""

    def __init__(self, name: str, worker: peers.Worker, scratch: Path) -> None:
        """Take a worker that is ready."""
        self.name = name
        self._worker = worker
        self._scratch = scratch
        self.seconds: list[float] = []
        self.peak_rss_bytes = 0

    def encode(self) -> float:
        """Seconds of one run into an empty folder.

        Raises:
            PeerError: It failed.
        """
        shutil.rmtree(self._scratch, ignore_errors=True)
        do = "ingest" if self.name == "tamis" else "preprocess"
        answer = self._worker.ask(do, out=str(self._scratch / "out"))
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        shutil.rmtree(self._scratch, ignore_errors=True)
        self.seconds.append(answer["seconds"])
        return float(answer["seconds"])


def measure(
    form: str, *, num_rows: int, rounds: int, threads: int
) -> tuple[list[dict[str, Any]], dict[str, harness.Ratio]]:
    """Encode one file with both contenders in turn.

    Args:
        form: ``csv`` or ``parquet``.
        num_rows: Rows of the file.
        rounds: Runs of each contender.
        threads: Threads of each contender.

    Returns:
        Rows of the table and ratios by name.
    """
    cache = peers.cache_folder()
    cardinalities = np.geomspace(10, max(20, num_rows // 5), NUM_COLUMNS).astype(int).tolist()
    log = synthetic.raw_log(
        cache / "data" / f"ingest.{form}", num_rows=num_rows, cardinalities=cardinalities
    )
    about = {"format": form, "rows": num_rows, "columns": NUM_COLUMNS, "threads": threads}
    shared = {"label": synthetic.LABEL, "min_count": MIN_COUNT, "threads": threads}
    tamis = {
        **shared,
        "task": "ingest",
        "categorical": log.categorical,
        "numeric": log.numeric,
        "file": str(log.path),
    }
    fuxictr = {
        **shared,
        "task": "preprocess",
        "columns": log.categorical,
        "dtype": "str",
        "files": {"train": str(log.path)},
    }
    rows: list[dict[str, Any]] = []
    contenders: dict[str, Contender] = {}
    with contextlib.ExitStack() as stack:
        try:
            worker = stack.enter_context(
                peers.start(
                    peers.PEERS["fuxictr"], fuxictr, log=cache / "logs" / f"fuxictr-{form}.log"
                )
            )
            contenders["fuxictr"] = Contender("fuxictr", worker, cache / "scratch" / "encode-f")
        except peers.PeerError as error:
            rows.append({"contender": "fuxictr", "error": str(error), **about})
        worker = stack.enter_context(
            peers.Worker(
                "tamis_worker.py",
                tamis,
                python=Path(sys.executable),
                log=cache / "logs" / f"tamis-{form}.log",
            )
        )
        contenders["tamis"] = Contender("tamis", worker, cache / "scratch" / "encode-t")
        try:
            harness.interleave({k: c.encode for k, c in contenders.items()}, rounds=rounds)
        except peers.PeerError as error:
            rows.append({"contender": "fuxictr or tamis", "error": str(error), **about})
    ratios = {}
    for name, contender in contenders.items():
        if contender.seconds:
            rows.append(
                {
                    "contender": name,
                    **about,
                    "rows_per_second": num_rows / median(contender.seconds),
                    "seconds": contender.seconds,
                    "peak_rss_bytes": contender.peak_rss_bytes,
                }
            )
    if "fuxictr" in contenders:
        pairs = list(zip(contenders["fuxictr"].seconds, contenders["tamis"].seconds, strict=False))
        if pairs:
            ratios[f"fuxictr/{form}"] = harness.ratio_of(pairs)
    return rows, ratios


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--formats", default=",".join(FORMATS))
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, harness.Ratio] = {}
    for form in options.formats.split(","):
        more_rows, more_ratios = measure(
            form,
            num_rows=NUM_ROWS[options.quick],
            rounds=ROUNDS[options.quick],
            threads=options.threads,
        )
        rows += more_rows
        ratios |= more_ratios
        if options.json:
            harness.write_json(
                options.json, "ingest", quick=options.quick, rows=rows, ratios=ratios
            )
    console = harness.console()
    console.print(harness.table_of("ingest of 20 string columns", COLUMNS, rows))
    console.print(harness.ratio_table(ratios, BARS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
