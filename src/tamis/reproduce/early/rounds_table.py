"""The table of rounds as the harness makes it: a process for each set of pools and seed."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tamis import api, artifacts, config
from tamis.reports.figures import Curve
from tamis.reports.table_figures import lines
from tamis.reproduce.early.market import TASKS, early_market_schema, serve_first_days, train_on
from tamis.reproduce.early.rounds import make_rounds
from tamis.reproduce.early.row import read_recipe
from tamis.reproduce.early.table import (
    cascade_folder,
    mean_and_sd,
    page,
    paired_claim,
)
from tamis.reproduce.early.variants import MarketCascade, RoundsTable
from tamis.reproduce.runner import Cell

Row = Mapping[str, Any]
_ORDER = "order.json"
_ROW = "metrics.json"
_RECIPE = "early_stage"


class RoundsRows:
    """Rounds of serving and retraining on one market."""

    averages = ()
    tasks = TASKS

    def __init__(self, table: RoundsTable) -> None:
        """Take the table."""
        self._table = table
        self.name, self.seeds, self.models = table.name, table.seeds, table.models
        self.dataset = table.cascade.dataset

    def recipes(self, folder: Path) -> dict[str, str]:
        """The recipe of the early stage, with the rounds and the pools."""
        stage, *_ = (read_recipe(folder, name) for name in (_RECIPE, "teacher", "incumbent"))
        rounds = [self._table.rounds, self._table.days]
        return {pools: config.fingerprint([stage, pools, rounds]) for pools in self.models}

    def settings(self, folder: Path) -> dict[str, str]:  # noqa: ARG002
        """Nothing: names and page say what rows are."""
        return {}

    def prepare(self, data: Path | None, work: Path, recipes: Path) -> tuple[Path, str]:  # noqa: ARG002
        """Both stages; what they learned and the sizes of the market decide the rest."""
        cascade = self._table.cascade
        stages = cascade_folder(cascade, work, recipes) / "stages"
        if not (stages / "stages.json").exists():
            train_on(serve_first_days(cascade)[1], recipes, stages)
        data_of_stages = api.open_dataset(stages / "dataset-final").fingerprint
        of_stages = [read_recipe(recipes, name) for name in ("teacher", "incumbent")]
        fields = [field.name for field in early_market_schema().fields]
        decides = [data_of_stages, config.to_table(cascade), of_stages, fields]
        return stages, config.fingerprint(decides)

    def command(self, cell: Cell, *, inputs: Path, recipes: Path) -> list[str]:
        """One process of one thread, told by a file in its folder what to make."""
        artifacts.write_json(
            cell.run / _ORDER,
            {
                "cascade": config.to_table(self._table.cascade),
                "pools": cell.model,
                "rounds": self._table.rounds,
                "days": self._table.days,
                "seed": cell.seed,
                "stages": str(inputs),
                "recipe": str(recipes / f"{_RECIPE}.toml"),
            },
        )
        return ["-m", "tamis.reproduce.early.rounds_table", str(cell.run)]

    def row(self, cell: Cell) -> dict[str, Any]:
        """Every round."""
        return {"model": cell.model, "seed": cell.seed, **artifacts.read_json(cell.run / _ROW)}

    def is_current(self, row: Row) -> bool:  # noqa: ARG002
        """Recipe and market say all."""
        return True

    def published(self) -> list[dict[str, Any]]:
        """Nothing: the source has no such figures."""
        return []

    def claims(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Whether the rows of more pools keep more recall in the last round."""
        last = {
            pools: [_rounds(row, "soft_recall")[-1] for row in rows if row["model"] == pools]
            for pools in self.models
        }
        changes = [
            [found[1], found[-1]]
            for found in (
                _rounds(row, "soft_recall") for row in rows if row["model"] == self.models[-1]
            )
        ]
        return [
            *(
                paired_claim(
                    f"pools up to {better} keep a higher soft recall in the last round than "
                    f"{worse} alone",
                    "soft_recall",
                    last[worse],
                    last[better],
                    0.0,
                )
                for worse, better in zip(self.models[:-1], self.models[1:], strict=True)
            ),
            paired_claim(
                f"with pools up to {self.models[-1]} soft recall rises from the first retrained "
                f"round to the last",
                "soft_recall",
                [first for first, _ in changes],
                [end for _, end in changes],
                0.0,
            ),
        ]

    def display(self, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
        """A line for each set of pools and figure, a column for each round."""
        columns = ["learns from", "figure", *(f"round {at}" for at in range(self._table.rounds))]
        display = []
        for pools in self.models:
            chosen = [row for row in rows if row["model"] == pools]
            for head, key in (
                ("soft recall", "soft_recall"),
                ("hard recall", "hard_recall"),
                ("value lost by early", "lost"),
                ("value per request", "value"),
                ("never shown", "never_shown"),
            ):
                by_round = np.array([_rounds(row, key) for row in chosen])
                cells = [mean_and_sd(values.tolist()) for values in by_round.T]
                display.append([f"up to {pools}", head, *cells])
        return columns, display

    def figure(self, rows: Sequence[Row]) -> str:
        """Soft recall after each round, a line for each set of pools."""
        drawn = []
        for pools in self.models:
            found = [_rounds(row, "soft_recall") for row in rows if row["model"] == pools]
            mean, spread = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
            drawn.append(
                Curve(
                    name=f"up to {pools}",
                    x=range(len(mean)),
                    y=mean.tolist(),
                    spread=spread.tolist(),
                )
            )
        return lines(
            drawn,
            title=f"{self.name}: what early stages learn from",
            xlabel="round of retraining",
            ylabel="soft recall",
        )

    def markdown(
        self, payload: Row, columns: Sequence[str], display: Sequence[Sequence[str]]
    ) -> str:
        """The table and its claims."""
        about = (
            f"Round 0 is the click-only incumbent's; from then on an early stage serves that "
            f"learned from the log of the round before, {self._table.days} days each. Recalls are "
            f"of {self._table.cascade.sizes.keep} candidates by the final stage's values, value "
            f"and what is lost of it are the market's truth. Means ± standard deviations over "
            f"{self.seeds} seeds."
        )
        caption = "Means, and standard deviations over seeds, of each set of pools."
        return page(payload, columns, display, about, caption=caption)


def _rounds(row: Row, key: str) -> list[float]:
    """A figure by round."""
    if key == "lost":
        return [found["lost"]["early"] for found in row["rounds"]]
    if key == "value":
        return [found["value"]["value"] for found in row["rounds"]]
    return [found[key] for found in row["rounds"]]


def make_ordered(run: Path) -> None:
    """Make the row that was ordered in a folder."""
    order = artifacts.read_json(run / _ORDER)
    made = make_rounds(
        config.from_table(MarketCascade, order["cascade"], where="cascade"),
        pools=order["pools"],
        rounds=order["rounds"],
        days=order["days"],
        seed=order["seed"],
        stages=Path(order["stages"]),
        recipe=Path(order["recipe"]),
        run=run,
    )
    artifacts.write_json(run / _ROW, made)


if __name__ == "__main__":
    api.prepare_process(1)
    make_ordered(Path(sys.argv[1]))
