"""Writes a simulated market: the log and, apart from it, the truth."""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.market.rules import MarketRules
from tamis.data.market.running import RunningMarket
from tamis.data.market.tables import ads_table, users_table
from tamis.errors import DataError

MARKET_VERSION = 1
ROWS_PER_FILE = 1 << 20
_FEWEST_ROWS = 1000
# Stands in the folder while it is written: what a killed run leaves is known as such.
_UNFINISHED = "unfinished"
_LOCK = ".lock"
# Columns that Parquet stores as a dictionary; trying it on the others costs a third of the time.
_FEW_VALUES = [
    *("age", "gender", "country", "category", "format", "device", "placement", "position"),
    *("hour", "weekday", "click", "conversion", "hide"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketSummary:
    """What was written."""

    out: Path
    """The folder."""
    rows: int
    """Impressions."""
    users: int
    """Users of the population."""
    ads: int
    """Ads of the population."""
    base_rates: dict[str, float]
    """Share of positives by task; conversions per click."""
    optimal_ne: dict[str, float]
    """NE of the true probabilities by task, on all rows: the best reachable. A task that has only
    one class has none."""


def simulate(
    rows: int,
    out: Path,
    *,
    seed: int = 0,
    rules: MarketRules | None = None,
    progress: Callable[[int], None] | None = None,
) -> MarketSummary:
    """Simulate a log of impressions.

    The same rows, seed and rules give the same bytes. Memory holds the state of users and ads, one
    file's rows and one hour's (at most 1/178 of a log of 14 days).

    Args:
        rows: Impressions, at least 1000.
        out: Folder that does not exist, is empty, or holds what a killed simulation left. Gets
            ``logs/`` and ``truth/`` with as many Parquet files of the same rows in the same order,
            ``users.parquet``, ``ads.parquet``, and ``market.json``, written last.
        seed: Decides everything, at least 0.
        rules: The market's rules; None for the frozen ones.
        progress: Told the rows that are done.

    Raises:
        DataError: ``out`` is not empty, there are too few rows, or ``seed`` is negative.
        ArtifactError: The disk is full.
        RunInUseError: Another process is writing ``out``.
    """
    if rows < _FEWEST_ROWS:
        raise DataError(f"rows: must be at least {_FEWEST_ROWS}, got {rows}.")
    if seed < 0:
        raise DataError(f"seed: must be at least 0, got {seed}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{out}: must be a folder or a free name for one, got {error.strerror}. Name another."
        ) from error
    with artifacts.folder_lock(out):
        _clear(out)
        artifacts.write_text(out / _UNFINISHED, "tamis simulate was writing this folder.\n")
        summary = _write(rows, out, seed, rules or MarketRules(), progress)
        (out / _UNFINISHED).unlink()
    return summary


def _clear(out: Path) -> None:
    """Remove what a killed simulation left; refuse anything else."""
    found = _entries(out)
    if _UNFINISHED in found:
        for folder in ("logs", "truth"):
            shutil.rmtree(out / folder, ignore_errors=True)
        for pattern in ("users.parquet", "ads.parquet", ".*.tmp"):
            for path in out.glob(pattern):
                path.unlink()
        found = _entries(out) - {_UNFINISHED}
    if found:
        raise DataError(
            f"{out}: must not exist or be empty, got {sorted(found)[0]!r} in it. Name another."
        )


def _entries(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if not path.name.startswith(_LOCK)}


def _write(
    rows: int,
    out: Path,
    seed: int,
    rules: MarketRules,
    progress: Callable[[int], None] | None,
) -> MarketSummary:
    market = RunningMarket(rows, rules, seed)
    users, ads = market.population.users, market.population.ads
    files = [
        _write_parquet(out / "users.parquet", users_table(users)),
        _write_parquet(out / "ads.parquet", ads_table(ads)),
    ]
    tally = _Tally()
    pending: list[tuple[pa.Table, pa.Table]] = []
    waiting = done = parts = 0
    for log, truth in market.hours():
        tally.add(log, truth)
        pending.append((log, truth))
        waiting += log.num_rows
        done += log.num_rows
        if waiting >= ROWS_PER_FILE or done == rows:
            files += _write_part(out, parts, pending)
            pending, waiting, parts = [], 0, parts + 1
        if progress is not None:
            progress(done)
    summary = MarketSummary(
        out=out,
        rows=done,
        users=len(users.age),
        ads=len(ads.category),
        base_rates=tally.base_rates(),
        optimal_ne=tally.optimal_ne(),
    )
    artifacts.write_json(out / "market.json", _manifest(summary, market, files))
    return summary


def _manifest(summary: MarketSummary, market: RunningMarket, files: list[Path]) -> dict[str, Any]:
    return {
        "kind": "market",
        "version": MARKET_VERSION,
        "seed": market.seed,
        "rules": dataclasses.asdict(market.rules),
        "intercepts": dataclasses.asdict(market.intercepts),
        "rows": summary.rows,
        "users": summary.users,
        "ads": summary.ads,
        "base_rates": summary.base_rates,
        "optimal_ne": summary.optimal_ne,
        "sha256": {
            file.relative_to(summary.out).as_posix(): artifacts.sha256_file(file) for file in files
        },
    }


class _Tally:
    """Rates of events and losses of the truth."""

    def __init__(self) -> None:
        self._sums = {task: np.zeros(3) for task in ("click", "conversion", "hide")}

    def add(self, log: pa.Table, truth: pa.Table) -> None:
        for task, sums in self._sums.items():
            column = log[task].combine_chunks()
            known = column.is_valid().to_numpy(zero_copy_only=False)
            labels = column.fill_null(0).to_numpy(zero_copy_only=False)[known].astype(np.float64)
            p = truth[task].to_numpy()[known]
            loss = -(labels * np.log(p) + (1 - labels) * np.log1p(-p)).sum()
            np.add(sums, (len(labels), labels.sum(), loss), out=sums)

    def base_rates(self) -> dict[str, float]:
        return {
            task: float(sums[1] / sums[0]) if sums[0] else 0.0 for task, sums in self._sums.items()
        }

    def optimal_ne(self) -> dict[str, float]:
        result = {}
        for task, (rows, positives, loss) in self._sums.items():
            if 0 < positives < rows:
                rate = positives / rows
                entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
                result[task] = float(loss / rows / entropy)
        return result


def _write_part(out: Path, index: int, tables: list[tuple[pa.Table, pa.Table]]) -> list[Path]:
    name = f"part-{index:05d}.parquet"
    log = pa.concat_tables([log for log, _ in tables])
    truth = pa.concat_tables([truth for _, truth in tables])
    return [
        _write_parquet(out / "logs" / name, log, _FEW_VALUES),
        _write_parquet(out / "truth" / name, truth),
    ]


def _write_parquet(path: Path, table: pa.Table, dictionary: list[str] | bool = False) -> Path:
    with artifacts.atomic_path(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="lz4",
            row_group_size=1 << 17,
            use_dictionary=dictionary,
            write_statistics=False,
        )
    return path
