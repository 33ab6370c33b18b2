"""Writes a simulated market: the log and, apart from it, the truth."""

from collections.abc import Callable
from pathlib import Path

from tamis.data.market.folder import MarketFolder, MarketSummary, market_folder
from tamis.data.market.live import LiveMarket
from tamis.data.market.rules import MarketRules
from tamis.data.market.running import RunningMarket
from tamis.data.market.serving import Policy
from tamis.errors import DataError

ROWS_PER_FILE = 1 << 20
_FEWEST_ROWS = 1000


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
    with market_folder(out):
        market = RunningMarket(rows, rules or MarketRules(), seed)
        folder = MarketFolder(out, market, rows_per_file=ROWS_PER_FILE)
        for log, truth in market.hours():
            folder.add({"logs": log, "truth": truth})
            if progress is not None:
                progress(folder.rows)
        return folder.finish({})


def simulate_served(
    market: LiveMarket,
    policy: Policy,
    out: Path,
    *,
    days: int,
    progress: Callable[[int], None] | None = None,
) -> MarketSummary:
    """Serve a live market by a policy and write its log.

    Beside what :func:`simulate` writes, in parts of the same names: ``slates/`` with prices and
    propensities of the impressions, ``candidates/`` with stage scores of all candidates of the
    judged requests, and ``candidate_truth/`` with the chances of these, row by row. Whoever ingests
    the folder reads logs and truth alone, as of any market.

    Args:
        market: Goes on from its next hour.
        policy: Chooses the slates.
        out: Folder that does not exist, is empty, or holds what a killed simulation left.
        days: Days to serve and write.
        progress: Told the rows that are done.

    Raises:
        DataError: ``out`` is not empty, the market has fewer days left, an answer cannot be shown,
            or nothing was shown at all.
        ArtifactError: The disk is full.
        RunInUseError: Another process is writing ``out``.
    """
    market.require_days(days)
    first_hour = market.hour
    with market_folder(out):
        folder = MarketFolder(out, market.running, rows_per_file=ROWS_PER_FILE)
        for hour in market.serve(policy, days=days):
            tables = {"logs": hour.log, "truth": hour.truth, "slates": hour.slates}
            folder.add(tables, [part.tables() for part in hour.candidates])
            if progress is not None:
                progress(folder.rows)
        if not folder.rows:
            raise DataError(
                f"{out}: must get impressions, got none in {days} days. Check the policy."
            )
        return folder.finish({"served": {"first_hour": first_hour, "days": days}})
