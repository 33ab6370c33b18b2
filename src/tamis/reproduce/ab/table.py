"""The table of A/B tests as the harness makes it: a process for each seed, claims, the page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis import config
from tamis.evaluation.seeds import paired_t_test
from tamis.evaluation.significance import normal_quantile
from tamis.funnel.trace import AUCTION, KNOWN
from tamis.reports.table_figures import Difference, differences
from tamis.reproduce.ab.funnels import EARLY_WITHOUT, RECIPES
from tamis.reproduce.ab.row import RowOrder, read_row
from tamis.reproduce.ab.tables import FULL, RIVALS, AbTable
from tamis.reproduce.early.row import read_recipe
from tamis.reproduce.early.table import mean_and_sd, page, paired_claim
from tamis.reproduce.runner import Cell

Row = Mapping[str, Any]
_VALUE = "value_per_request"
_SHOWN = (_VALUE, "click_rate", "conversion_rate", "hide_rate")
# The funnels' stages from the first to the last; popularity is one stage that retrieves.
_STAGES = {
    KNOWN: KNOWN,
    "retrieval": "retrieval",
    "popularity": "retrieval",
    "early": "early",
    "final": "final",
    AUCTION: AUCTION,
}


class AbRows:
    """A full funnel against its rivals in a live market; see ``TableKind``."""

    averages = ()
    tasks = ("click", "conversion", "hide")
    models = (FULL,)

    def __init__(self, table: AbTable) -> None:
        """Take the table."""
        self._table = table
        self.name, self.seeds, self.dataset = table.name, table.seeds, table.dataset

    def recipes(self, folder: Path) -> dict[str, str]:
        """All recipes, the sizes of the funnels, and what early stages do not read."""
        found = [read_recipe(folder, name) for name in RECIPES]
        sizes = config.to_table(self._table.sizes)
        return {FULL: config.fingerprint([*found, sizes, EARLY_WITHOUT])}

    def settings(self, folder: Path) -> dict[str, str]:  # noqa: ARG002
        """Nothing: names and page say what rows are."""
        return {}

    def prepare(self, data: Path | None, work: Path, recipes: Path) -> tuple[Path, str]:  # noqa: ARG002
        """Nothing to make: each row draws a market of its own, as the table says."""
        decides = [
            config.to_table(self._table.market),
            self._table.judge_every,
            self._table.smallest,
        ]
        return work, config.fingerprint(decides)

    def command(self, cell: Cell, *, inputs: Path, recipes: Path) -> list[str]:  # noqa: ARG002
        """One process of one thread, told by a file in its folder what to make."""
        RowOrder(table=self._table, seed=cell.seed, recipes=str(recipes)).write(cell.run)
        return ["-m", "tamis.reproduce.ab", str(cell.run)]

    def row(self, cell: Cell) -> dict[str, Any]:
        """Both tests."""
        return {"model": cell.model, "seed": cell.seed, **read_row(cell.run)}

    def is_current(self, row: Row) -> bool:
        """Whether the row has a test of every rival."""
        return set(row["tests"]) == set(RIVALS)

    def published(self) -> list[dict[str, Any]]:
        """Nothing: there are no figures of others."""
        return []

    def claims(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Whether the full funnel earns more than each rival, over markets and over users."""
        claims = []
        for rival in RIVALS:
            found = [row["tests"][rival]["differences"][_VALUE] for row in rows]
            claims.append(_over_markets(rival, rows))
            if all(_error(row, rival) is not None for row in rows):
                claims.append(_pooled_claim(rival, found))
        return claims

    def display(self, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
        """Two lines for each test, one of either arm."""
        columns = ["test", "funnel", *(name.replace("_", " ") for name in _SHOWN), "regret"]
        display = []
        for rival in RIVALS:
            tests = [row["tests"][rival] for row in rows]
            for arm, funnel in (("treatment", FULL), ("control", rival)):
                cells = [f"against {rival}", funnel]
                for metric in _SHOWN:
                    found = [test["differences"][metric][arm]["value"] for test in tests]
                    cells.append(mean_and_sd(found))
                regrets = [test["losses"][arm]["regret"]["value"] for test in tests]
                cells.append(mean_and_sd(regrets))
                display.append(cells)
        return columns, display

    def figure(self, rows: Sequence[Row]) -> str:
        """The difference in value per request of every test, and over all markets."""
        found = []
        for rival in RIVALS:
            for row in rows:
                one = row["tests"][rival]["differences"][_VALUE]
                is_known = one["lower"] is not None
                found.append(
                    Difference(
                        name=f"against {rival}, market {row['seed']}",
                        estimate=one["difference"],
                        lower=one["lower"] if is_known else math.nan,
                        upper=one["upper"] if is_known else math.nan,
                    )
                )
            claim = _over_markets(rival, rows)
            lower, upper = claim["interval"]
            found.append(
                Difference(
                    name=f"against {rival}, over markets",
                    estimate=claim["estimate"],
                    lower=lower,
                    upper=upper,
                )
            )
        return differences(
            found,
            title=f"{self.name}: what the {FULL} funnel earns more",
            xlabel="value per request",
        )

    def markdown(
        self, payload: Row, columns: Sequence[str], display: Sequence[Sequence[str]]
    ) -> str:
        """The arms, the claims, every test by itself, and where the best ad was lost."""
        market, sizes = self._table.market, self._table.sizes
        about = (
            f"The market's own policy serves {market.train_days} days; {FULL} (HSNN index, "
            f"multi-task early stage that imitates the final one, InterFormer), baseline (two "
            f"towers, click-only early stage, DCNv2) and popularity learn from their log, and "
            f"serve the next {market.test_days} days to half of the users each. Both trained "
            f"funnels keep {sizes.retrieved}, {sizes.early} and {sizes.final} ads. Values are "
            f"money of what users did; regret is the market's truth, of one request in "
            f"{self._table.judge_every}. Means ± standard deviations over {self.seeds} markets, "
            f"each with trainings of its own."
        )
        caption = (
            "Bars are 95 % intervals: of each test over users, below them over markets. A dot is "
            "hollow where its interval holds 0 or is not known."
        )
        text = page(payload, columns, display, about, caption=caption)
        rows = payload["rows"]
        return text + "\n".join(["", *_tests_of(rows), "", *_regret_of(rows), ""])


def _over_markets(rival: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The claim with markets as the only chance."""
    found = [row["tests"][rival]["differences"][_VALUE] for row in rows]
    return paired_claim(
        f"{FULL} has a higher value per request than {rival}, over markets",
        _VALUE,
        [item["control"]["value"] for item in found],
        [item["treatment"]["value"] for item in found],
        0.0,
        over="markets",
    )


def _pooled_claim(rival: str, found: Sequence[Row]) -> dict[str, Any]:
    """The mean of independent tests, with users as the only chance."""
    estimate = float(np.mean([item["difference"] for item in found]))
    error = math.hypot(*(item["standard_error"] for item in found)) / len(found)
    half = normal_quantile(0.95) * error
    return {
        "claim": f"{FULL} has a higher value per request than {rival}, over users",
        "estimate": estimate,
        "interval": [estimate - half, estimate + half],
        "holds": estimate - half > 0,
        "how": f"mean of {len(found)} A/B tests, normal interval with users as units",
    }


def _tests_of(rows: Sequence[Row]) -> list[str]:
    """A line for each test: its difference with its interval, and when its guard stopped it."""
    lines = [
        "Each test by itself. The guard looks at the value per user after every day, and its "
        "intervals hold at all looks.",
        "",
        "| against | seed | value per request | lift | guard |",
        "|---|---|---|---|---|",
    ]
    for rival in RIVALS:
        for row in rows:
            test = row["tests"][rival]
            found, guard = test["differences"][_VALUE], test["guarded"]["value_per_user"]
            lift = "" if found["lift"] is None else f"{found['lift']:+.1%}"
            difference = f"{found['difference']:+.4f}"
            if found["lower"] is not None:
                difference += f" [{found['lower']:+.4f}, {found['upper']:+.4f}]"
            lines.append(f"| {rival} | {row['seed']} | {difference} | {lift} | {_verdict(guard)} |")
    for rival in RIVALS:
        silent = [str(row["seed"]) for row in rows if _error(row, rival) is None]
        if silent:
            lines += [
                "",
                f"No claim over users against {rival}: in markets {', '.join(silent)} all users of "
                f"an arm have one value per request, which shows no error.",
            ]
    return lines


def _error(row: Row, rival: str) -> float | None:
    error: float | None = row["tests"][rival]["differences"][_VALUE]["standard_error"]
    return error


def _verdict(guard: Row | None) -> str:
    if guard is None:
        return "too few events"
    if guard["stopped_on"] is None:
        return "no difference yet"
    at = guard["days"].index(guard["stopped_on"])
    better = FULL if guard["lower"][at] > 0 else "rival"
    return f"{better} wins after day {guard['stopped_on']}"


def _regret_of(rows: Sequence[Row]) -> list[str]:
    """Regret by stage and funnel, and how much of the difference each stage makes."""
    stages = list(dict.fromkeys(_STAGES.values()))
    lines = [
        "Where the best ad was lost: true value per request that each stage loses of the best ad "
        "before it. A gain is what the full funnel loses less at that stage, with its interval "
        "over markets.",
        "",
        "| against | funnel | " + " | ".join([*stages, "all"]) + " |",
        "|" + "---|" * (len(stages) + 3),
    ]
    for rival in RIVALS:
        lost = {
            arm: np.array([_lost(row["tests"][rival]["losses"][arm], stages) for row in rows])
            for arm in ("treatment", "control")
        }
        for name, values in ((FULL, lost["treatment"]), (rival, lost["control"])):
            cells = [mean_and_sd(column) for column in _with_sum(values)]
            lines.append(f"| {rival} | {name} | " + " | ".join(cells) + " |")
        pairs = zip(_with_sum(lost["treatment"]), _with_sum(lost["control"]), strict=True)
        gains = [_gain(*pair) for pair in pairs]
        lines.append(f"| {rival} | gain | " + " | ".join(gains) + " |")
    return lines


def _with_sum(values: NDArray[np.float64]) -> list[list[float]]:
    """Columns of (markets, stages), and what they add up to."""
    return [column.tolist() for column in (*values.T, values.sum(axis=1))]


def _gain(of_full: Sequence[float], of_rival: Sequence[float]) -> str:
    test = paired_t_test("regret", of_full, of_rival)
    return f"{test.difference:+.4f} [{test.lower:+.4f}, {test.upper:+.4f}]"


def _lost(losses: Row, stages: Sequence[str]) -> list[float]:
    """Losses by the stages of the page; a funnel without one loses nothing there."""
    by_stage = dict.fromkeys(stages, 0.0)
    for stage in losses["stages"]:
        by_stage[_STAGES[stage["stage"]]] += stage["lost"]["value"]
    return list(by_stage.values())
