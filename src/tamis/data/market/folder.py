"""The folder of a market on disk: parts, counts and manifest, known as unfinished until the end."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis import artifacts
from tamis.data.market.running import RunningMarket
from tamis.data.market.tables import ads_table, users_table
from tamis.errors import DataError

MARKET_VERSION = 1
# Stands in the folder while it is written: what a killed run leaves is known as such.
_UNFINISHED = "unfinished"
# Written last: a folder that has it is finished.
_MANIFEST = "market.json"
_LOCK = ".lock"
_FOLDERS = ("logs", "truth", "slates", "candidates", "candidate_truth")
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


class MarketFolder:
    """Writes a market part by part; memory holds the rows of one part."""

    def __init__(self, out: Path, market: RunningMarket, *, rows_per_file: int) -> None:
        """Write who is there; use :func:`market_folder` to prepare the folder."""
        self._out, self._market, self._rows_per_file = out, market, rows_per_file
        users, ads = market.population.users, market.population.ads
        self._files = [
            _write_parquet(out / "users.parquet", users_table(users)),
            _write_parquet(out / "ads.parquet", ads_table(ads)),
        ]
        self._tally = _Tally()
        self._pending: dict[str, list[pa.Table]] = {}
        self._waiting = self._parts = 0
        self.rows = 0

    def add(
        self,
        tables: Mapping[str, pa.Table],
        candidates: Sequence[tuple[pa.Table, pa.Table]] = (),
    ) -> None:
        """Add an hour.

        Args:
            tables: Tables of the impressions by folder, ``logs`` and ``truth`` at least.
            candidates: Candidates and their truth, by funnel.
        """
        log = tables["logs"]
        self._tally.add(log, tables["truth"])
        judged = [("candidates", found) for found, _ in candidates]
        judged += [("candidate_truth", truth) for _, truth in candidates]
        for name, table in (*tables.items(), *judged):
            self._pending.setdefault(name, []).append(table)
        self._waiting += log.num_rows
        self.rows += log.num_rows
        if self._waiting >= self._rows_per_file:
            self._flush()

    def finish(self, payload: Mapping[str, Any]) -> MarketSummary:
        """Write what is left, and ``market.json``.

        Args:
            payload: Further entries of ``market.json``; JSON values.
        """
        if self._pending:
            self._flush()
        population = self._market.population
        summary = MarketSummary(
            out=self._out,
            rows=self.rows,
            users=len(population.users.age),
            ads=len(population.ads.category),
            base_rates=self._tally.base_rates(),
            optimal_ne=self._tally.optimal_ne(),
        )
        artifacts.write_json(self._out / _MANIFEST, self._manifest(summary) | dict(payload))
        return summary

    def _flush(self) -> None:
        name = f"part-{self._parts:05d}.parquet"
        for folder, tables in self._pending.items():
            # Hours of other funnels have other columns of scores.
            table = pa.concat_tables(tables, promote_options="permissive")
            dictionary = _FEW_VALUES if folder == "logs" else False
            self._files.append(_write_parquet(self._out / folder / name, table, dictionary))
        self._pending, self._waiting, self._parts = {}, 0, self._parts + 1

    def _manifest(self, summary: MarketSummary) -> dict[str, Any]:
        market = self._market
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
                file.relative_to(summary.out).as_posix(): artifacts.sha256_file(file)
                for file in self._files
            },
        }


@contextmanager
def market_folder(out: Path) -> Iterator[None]:
    """Hold a folder while a market is written into it.

    Args:
        out: Folder that does not exist, is empty, or holds what a killed simulation left.

    Raises:
        DataError: ``out`` is not empty, or no folder.
        RunInUseError: Another process is writing ``out``.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{out}: must be a folder or a free name for one, got {error.strerror}. Name another."
        ) from error
    with artifacts.folder_lock(out):
        _clear(out)
        artifacts.write_text(out / _UNFINISHED, "tamis simulate was writing this folder.\n")
        yield
        (out / _UNFINISHED).unlink()


def _clear(out: Path) -> None:
    """Remove what a killed simulation left; refuse anything else."""
    found = _entries(out)
    if _MANIFEST in found:
        # Still there if the process was killed between the two.
        (out / _UNFINISHED).unlink(missing_ok=True)
        found.discard(_UNFINISHED)
    elif _UNFINISHED in found:
        for folder in _FOLDERS:
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
