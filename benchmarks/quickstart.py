"""Seconds that ``tamis quickstart`` takes, from a simulated log to the report of a replayed funnel.

Each round is the whole command in an empty folder, by its defaults: three stages trained on the
market, published as a bundle and replayed. ``budget/quickstart`` is four minutes over its time.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import harness

BUDGET_SECONDS = 240.0
BARS = {"budget/quickstart": 1.0}
COLUMNS = {
    "rows": lambda value: f"{value:,}",
    "threads": str,
    "seconds": lambda value: ", ".join(f"{seconds:.0f}" for seconds in value),
}


def measure(rows: int, threads: int) -> float:
    """Seconds of one run.

    Raises:
        subprocess.CalledProcessError: It failed; what it printed is on standard error.
    """
    command = [sys.executable, "-m", "tamis", "quickstart", "--rows", str(rows)]
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        subprocess.run(
            [*command, "--threads", str(threads)],
            cwd=work,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    count, rounds = (20_000, 1) if options.quick else (400_000, 3)
    seconds = [measure(count, options.threads) for _ in range(rounds)]
    harness.report(
        options,
        "quickstart",
        "tamis quickstart",
        COLUMNS,
        rows=[{"rows": count, "threads": options.threads, "seconds": seconds}],
        ratios={"budget/quickstart": harness.ratio_of([(BUDGET_SECONDS, s) for s in seconds])},
        bars=BARS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
