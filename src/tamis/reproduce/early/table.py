"""Tables of early stages as the harness makes them: cascade, processes, claims, printed form."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tamis import config
from tamis.evaluation.seeds import paired_t_test
from tamis.reports.table_figures import Seeds, seed_dots
from tamis.reproduce.early.calibration import calibration_claims
from tamis.reproduce.early.market import early_market_schema, make_market_study
from tamis.reproduce.early.public import ROWS_VERSION, make_public_study
from tamis.reproduce.early.row import ROW_VERSION, RowOrder, make_row, read_recipe
from tamis.reproduce.early.study import SIMULATED, Study, is_study
from tamis.reproduce.early.variants import (
    FULL,
    EarlyClaim,
    EarlyTable,
    Judges,
    MarketCascade,
    OneModelEach,
    PublicCascade,
    recipes_of,
    variant_to_json,
    words_of,
)
from tamis.reproduce.results import SEEDS, picture_of
from tamis.reproduce.row_settings import settings_lines
from tamis.reproduce.runner import Cell
from tamis.training.consolidation import Consolidation, RequestCost

Row = Mapping[str, Any]
_SHOWN = (
    ("soft_recall", "soft recall"),
    ("hard_recall", "hard recall"),
    ("golden_rejected", "of pool III"),
    ("ndcg", "NDCG"),
    ("true_value", "true value"),
)
_COSTS: tuple[tuple[str, str, float, int], ...] = (
    ("flops", "MFLOP", 1e6, 1),
    ("dense_parameters", "parameters outside tables", 1, 0),
    ("table_bytes", "tables, kB", 1e3, 0),
    ("activation_bytes", "activations, kB", 1e3, 0),
    ("features_fetched", "columns fetched", 1, 1),
    ("vectors_fetched", "vectors of ads fetched", 1, 0),
)
"""Modelled costs of a request: key, what is shown, its unit and digits."""


class EarlyRows:
    """Early stages on one cascade, which is simulated once."""

    averages = ()

    def __init__(self, table: EarlyTable) -> None:
        """Take the table."""
        self._table = table
        self.name, self.seeds, self.models = table.name, table.seeds, table.models
        self.dataset, self.tasks = table.cascade.dataset, table.cascade.tasks

    def recipes(self, folder: Path) -> dict[str, str]:
        """What each row is trained by, with what it changes."""
        decides: dict[str, list[Any]] = {}
        for name, variant in self._table.variants.items():
            decides[name] = [ROW_VERSION, variant_to_json(variant)]
            decides[name] += [read_recipe(folder, recipe) for recipe in recipes_of(variant)]
        return {name: config.fingerprint(parts) for name, parts in decides.items()}

    def settings(self, folder: Path) -> dict[str, str]:  # noqa: ARG002
        """What each row is, in words."""
        return {name: words_of(variant) for name, variant in self._table.variants.items()}

    def prepare(self, data: Path | None, work: Path, recipes: Path) -> tuple[Path, str]:
        """The cascade, which its sizes and the recipes of its stages decide."""
        study = self.study(data, work, recipes)
        return study, Study(study).fingerprint

    def study(
        self, data: Path | None, work: Path, recipes: Path, *, judges: Judges = "test"
    ) -> Path:
        """Folder of the cascade; made unless it is there."""
        cascade = self._table.cascade
        folder = cascade_folder(cascade, work, recipes)
        out = folder / ("study" if judges == "test" else f"study-{judges}")
        if not is_study(out):
            stages = folder / "stages"
            if isinstance(cascade, MarketCascade):
                make_market_study(cascade, recipes, stages, out, judges=judges)
            else:
                make_public_study(cascade, data, recipes, stages, out, judges=judges)
        return out

    def command(self, cell: Cell, *, inputs: Path, recipes: Path) -> list[str]:
        """One process of one thread, told by a file in its folder what to make."""
        RowOrder(
            variant=self._table.variants[cell.model],
            seed=cell.seed,
            study=inputs,
            recipes=recipes,
        ).write(cell.run)
        return ["-m", "tamis.reproduce.early", str(cell.run)]

    def row(self, cell: Cell) -> dict[str, Any]:
        """Everything that was measured."""
        return {"model": cell.model, "seed": cell.seed, **make_row(cell.run)}

    def is_current(self, row: Row) -> bool:  # noqa: ARG002
        """Recipe and cascade say all."""
        return True

    def published(self) -> list[dict[str, Any]]:
        """Nothing: the source's figures could not be read."""
        return []

    def claims(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Paired over seeds, and of calibration for each seed."""
        made = []
        for claim in self._table.claims:
            if isinstance(claim, EarlyClaim):
                made.append(_claim(claim, rows))
            else:
                made += calibration_claims(claim, self.tasks, rows)
        return made

    def display(self, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
        """One line per model: means and standard deviations over seeds."""
        columns = ["model", *(head for _, head in _SHOWN), *(f"NE {task}" for task in self.tasks)]
        columns += ["MFLOP/request"]
        display = []
        for model in self.models:
            chosen = [row for row in rows if row["model"] == model]
            cells = [model]
            cells += [mean_and_sd([row["metrics"][key] for row in chosen]) for key, _ in _SHOWN]
            for task in self.tasks:
                found = [row.get("heads", {}).get(task, {}).get("served") for row in chosen]
                cells.append(mean_and_sd([None if item is None else item["ne"] for item in found]))
            costs = [row["request_cost"]["flops"] / 1e6 for row in chosen if "request_cost" in row]
            cells.append(f"{costs[0]:.1f}" if costs else "")
            display.append(cells)
        return columns, display

    def figure(self, rows: Sequence[Row]) -> str:
        """What every seed keeps of the final stage's ranking, and of true value."""
        panels = [
            Seeds(
                xlabel=head,
                values=[
                    [row["metrics"][key] for row in rows if row["model"] == model]
                    for model in self.models
                ],
            )
            for key, head in (
                ("soft_recall", "soft recall"),
                ("true_value", "true value, times the final stage's"),
            )
        ]
        title = f"{self.name}: every seed, and the mean"
        return seed_dots(self.models, panels, title=title, reference=FULL)

    def markdown(
        self, payload: Row, columns: Sequence[str], display: Sequence[Sequence[str]]
    ) -> str:
        """The table and its claims."""
        cascade = self._table.cascade
        sizes = cascade.sizes
        about = (
            f"The early stage keeps {sizes.keep} of a request's candidates; recalls are of these, "
            f"hard recall of the {sizes.slots} most valuable ones by the final stage. "
            f"Means ± standard deviations over {self.seeds} seeds on the test days; NE is of the "
            f"head that serves, on impressions. MFLOP are modelled. Claims "
            f"of calibration give the ratio farthest from 1, and the lowest and the highest, over "
            f"seeds and parts. No early stage may have more than half of the final stage's "
            f"parameters outside tables, for which PLE's experts are narrower."
        )
        if isinstance(cascade, PublicCascade):
            share = payload["rows"][0][SIMULATED]
            about += (
                f" What the set does not tell is drawn by an oracle: {share:.1%} of the labels of "
                f"judged impressions, and the true value of every candidate."
            )
        caption = f"{SEEDS} The dotted lines stand at the means of {FULL}."
        costs = self._costs(payload["rows"])
        return page(payload, columns, display, about, caption=caption, costs=costs)

    def _costs(self, rows: Sequence[Row]) -> list[str]:
        """A request by the one model, and by those that have a model for each task."""
        variants = self._table.variants.items()
        apart = [name for name, variant in variants if isinstance(variant, OneModelEach)]
        if not apart:
            return []
        rows_of = {name: [row for row in rows if row["model"] == name] for name in (FULL, *apart)}
        together, *each = (_request_cost(found[0]) for found in rows_of.values())
        compared = [Consolidation(together=together, apart=cost) for cost in each]
        lines = [
            "What a request costs by one model of all tasks and by one for each; in parentheses "
            "how many times as much.",
            "",
            f"| a request | {' | '.join(rows_of)} |",
            "|" + "---|" * (1 + len(rows_of)),
        ]
        for key, head, unit, digits in _COSTS:
            cells = [f"{getattr(together, key) / unit:,.{digits}f}"]
            cells += [
                f"{getattr(both.apart, key) / unit:,.{digits}f} ({both.ratios[key]:.2f})"
                for both in compared
            ]
            lines.append(f"| {head} | {' | '.join(cells)} |")
        return [*lines, ""]


def _request_cost(row: Row) -> RequestCost:
    stored = {key: value for key, value in row["request_cost"].items() if key != "source"}
    return RequestCost(**stored)


def cascade_folder(cascade: MarketCascade | PublicCascade, work: Path, recipes: Path) -> Path:
    """Where a cascade of these sizes and recipes stands."""
    is_public = isinstance(cascade, PublicCascade)
    names = ["teacher", "incumbent", *(["oracle"] if is_public else [])]
    decides = [config.to_table(cascade), *(read_recipe(recipes, name) for name in names)]
    if is_public:
        decides.append({"rows": ROWS_VERSION})
    else:
        decides.append({"fields": [field.name for field in early_market_schema().fields]})
    return work / "cascades" / f"{recipes.name}-{config.fingerprint(decides)[:12]}"


def mean_and_sd(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation; empty where a value is not known."""
    if not values or any(value is None or math.isnan(value) for value in values):
        return ""
    numbers = np.array(values, np.float64)
    return f"{numbers.mean():.4f} ± {numbers.std(ddof=1):.4f}"


def page(
    payload: Row,
    columns: Sequence[str],
    display: Sequence[Sequence[str]],
    about: str,
    *,
    caption: str,
    costs: Sequence[str] = (),
) -> str:
    """A table of early stages as Markdown, with lines on costs and its claims."""
    commits = ", ".join(sorted({row["commit"][:10] for row in payload["rows"] if row["commit"]}))
    lines = [
        f"# {payload['table']}",
        "",
        f"Made by `{payload['command']}` at commit {commits or 'unknown'}. {about}",
        "",
        *picture_of(payload, caption),
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(cells) + " |" for cells in display),
        "",
        *settings_lines(payload["settings"], head="what it is"),
        *costs,
        "| claim | estimate | interval | holds |",
        "|---|---|---|---|",
    ]
    for claim in payload["claims"]:
        low, high = claim["interval"]
        verdict = "yes" if claim["holds"] else "no"
        lines.append(
            f"| {claim['claim']} | {claim['estimate']:+.4f} | [{low:+.4f}, {high:+.4f}] | "
            f"{verdict} |"
        )
    return "\n".join(lines) + "\n"


def paired_claim(
    text: str,
    metric: str,
    worse: Sequence[float],
    better: Sequence[float],
    at_least: float,
    *,
    over: str = "seeds",
) -> dict[str, Any]:
    """A claim that holds where the interval lies above 0 and the mean reaches what is asked."""
    test = paired_t_test(metric, worse, better)
    return {
        "claim": text,
        "estimate": test.difference,
        "interval": [test.lower, test.upper],
        "holds": test.lower > 0 and test.difference >= at_least,
        "how": f"paired t test over {test.units} {over}",
    }


def _claim(claim: EarlyClaim, rows: Sequence[Row]) -> dict[str, Any]:
    worse, better = (
        [row["metrics"][claim.metric] for row in rows if row["model"] == model]
        for model in (claim.worse, claim.better)
    )
    by = f" by at least {claim.at_least:g}" if claim.at_least else ""
    name = claim.metric.replace("_", " ")
    text = f"{claim.better} has a higher {name} than {claim.worse}{by}"
    return paired_claim(text, claim.metric, worse, better, claim.at_least)
