"""One row: a market's own days, the funnels that learn from them, and a test for each rival."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tamis import artifacts, config
from tamis.data.market import LiveMarket, LoggingPolicy, ServedHour, known_at
from tamis.funnel.ab_test import AbTest, SplitByUser, run_ab_test, smallest_differences
from tamis.funnel.bundle import read_bundle
from tamis.funnel.bundle_policy import bundle_policy
from tamis.funnel.live import ad_table
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.reproduce.ab.funnels import make_funnels
from tamis.reproduce.ab.tables import FULL, RIVALS, AbMarket, AbTable
from tamis.training import runlog

_ORDER, _ROW = "order.json", "metrics.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOrder:
    """What a row's process is told to make."""

    table: AbTable
    """The table."""
    seed: int
    """Of the market and of all trainings."""
    recipes: str
    """Folder of the recipes."""

    def write(self, run: Path) -> None:
        """Write the order into the row's folder."""
        artifacts.write_json(run / _ORDER, config.to_table(self))

    @staticmethod
    def read(run: Path) -> "RowOrder":
        """Read what :meth:`write` wrote."""
        return config.from_table(RowOrder, artifacts.read_json(run / _ORDER), where="order")


def make_row(run: Path) -> None:
    """Make the row that was ordered in a folder; what is finished of it is not made again.

    Each test begins after the same days of the same market, so that it meets the same users and
    the same luck whatever the rival.
    """
    order = RowOrder.read(run)
    tests = {}
    for rival in RIVALS:
        path = run / f"test-{rival}.json"
        if not path.exists():
            test = _test(order, rival, run)
            artifacts.write_json(path, test.to_json())
        tests[rival] = artifacts.read_json(path)
    artifacts.write_json(run / _ROW, {"tests": tests, **runlog.provenance()})


def read_row(run: Path) -> dict[str, Any]:
    """Read what :func:`make_row` wrote."""
    row: dict[str, Any] = artifacts.read_json(run / _ROW)
    return row


def _test(order: RowOrder, rival: str, run: Path) -> AbTest:
    table, seed = order.table, order.seed
    market, hours = serve_own_days(table.market, seed)
    log = known_at(pa.concat_tables([hour.log for hour in hours]), market.now_micros)
    bundles = make_funnels(
        log, market.ads(), table.sizes, recipes=Path(order.recipes), seed=seed, folder=run
    )
    control, treatment = (
        bundle_policy(read_bundle(bundles[name]).blueprint, market, judge_every=table.judge_every)
        for name in (rival, FULL)
    )
    ads = ad_table(market.ads())
    value = ValueFunction(ValueWeights(penalties={"hide": table.sizes.hide_cost}))
    return run_ab_test(
        market,
        control,
        treatment,
        days=table.market.test_days,
        split=SplitByUser(salt=seed),
        value=value,
        ads=ads,
        smallest=smallest_differences(
            hours, market, ads, value, days=table.market.train_days, share=table.smallest
        ),
    )


def serve_own_days(market: AbMarket, seed: int) -> tuple[LiveMarket, list[ServedHour]]:
    """A market after the days that its own policy served, and these days."""
    live = LiveMarket(market.rows, seed=seed, rules=market.rules())
    return live, list(live.serve(LoggingPolicy(live, seed=seed), days=market.train_days))
