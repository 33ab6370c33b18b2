"""Kinds of tables: what the rows of each are made of, how they are made, and how they are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tamis import api, config
from tamis.data.ingest import ingest
from tamis.data.market import market_schema
from tamis.data.public_sets.prepare import prepare
from tamis.errors import ConfigError, DataError
from tamis.reproduce.result_table import Average, ResultTable
from tamis.reproduce.results import claims_of, display_of, figure_of, page_of, row_of
from tamis.reproduce.row_settings import differences
from tamis.reproduce.runner import Cell

Row = Mapping[str, Any]


class TableKind(Protocol):
    """A table, and everything about its rows that depends on their kind."""

    @property
    def name(self) -> str:
        """Name of the table."""
        ...

    @property
    def dataset(self) -> str:
        """Name of what its rows are made of."""
        ...

    @property
    def models(self) -> tuple[str, ...]:
        """Rows of each seed, one process for each."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the models predict, the most important first."""
        ...

    @property
    def averages(self) -> tuple[Average, ...]:
        """Rows that follow from others."""
        ...

    @property
    def seeds(self) -> int:
        """Seeds 0 to seeds - 1."""
        ...

    def recipes(self, folder: Path) -> dict[str, str]:
        """Fingerprint of the recipe of each model.

        Raises:
            ConfigError: A recipe is not there.
        """
        ...

    def settings(self, folder: Path) -> dict[str, str]:
        """What tells rows apart that their names alone do not, in words or as a recipe says it."""
        ...

    def prepare(self, data: Path | None, work: Path, recipes: Path) -> tuple[Path, str]:
        """Make what all rows are made of, if it is not there yet: its folder and fingerprint."""
        ...

    def command(self, cell: Cell, *, inputs: Path, recipes: Path) -> list[str]:
        """What makes a cell, after the interpreter; it ends with the cell's ``metrics.json``."""
        ...

    def row(self, cell: Cell) -> dict[str, Any]:
        """What the table keeps of a finished cell."""
        ...

    def is_current(self, row: Row) -> bool:
        """Whether a row that was read holds what the table now asks for."""
        ...

    def published(self) -> list[dict[str, Any]]:
        """Figures of others."""
        ...

    def claims(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What is claimed, and whether it holds."""
        ...

    def display(self, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
        """Heads and cells of the printed table."""
        ...

    def figure(self, rows: Sequence[Row]) -> str:
        """The figure of the table, as SVG within a page."""
        ...

    def markdown(self, payload: Row, columns: list[str], display: list[list[str]]) -> str:
        """The page of the table."""
        ...


class TrainedRows:
    """Models of the catalog, each trained by ``tamis train`` on one dataset."""

    def __init__(self, table: ResultTable) -> None:
        """Take the table."""
        self._table = table
        self.name, self.dataset, self.seeds = table.name, table.dataset, table.seeds
        self.models, self.averages, self.tasks = table.models, table.averages, table.tasks

    def recipes(self, folder: Path) -> dict[str, str]:
        """A recipe for each model."""
        paths = {model: self._recipe(folder, model) for model in self.models}
        for path in paths.values():
            if not path.exists():
                raise ConfigError(f"{path}: must exist, got no such recipe.")
        return {model: config.fingerprint(config.read_toml(path)) for model, path in paths.items()}

    def settings(self, folder: Path) -> dict[str, str]:
        """What each recipe changes, where they change one."""
        if not self._table.varied:
            return {}
        paths = {model: self._recipe(folder, model) for model in self.models}
        return differences(paths, reference=self._table.varied)

    def prepare(self, data: Path | None, work: Path, recipes: Path) -> tuple[Path, str]:  # noqa: ARG002
        """The dataset, which no recipe decides."""
        dataset = table_dataset(self._table, data, work)
        return dataset, api.open_dataset(dataset).fingerprint

    def command(self, cell: Cell, *, inputs: Path, recipes: Path) -> list[str]:
        """One training of one thread."""
        return [
            *("-m", "tamis", "train", str(inputs)),
            *("--recipe", str(self._recipe(recipes, cell.model))),
            *("--set", f"training.seed={cell.seed}"),
            *("--run", str(cell.run), "--threads", "1", "--no-report"),
        ]

    def row(self, cell: Cell) -> dict[str, Any]:
        """Metrics, sizes and speed."""
        return row_of(cell, tasks=self._table.tasks)

    def is_current(self, row: Row) -> bool:
        """Whether the row has the table's tasks."""
        return set(row.get("other_tasks", {})) == set(self._table.tasks[1:])

    def published(self) -> list[dict[str, Any]]:
        """Figures on the same rows."""
        return [
            {"model": p.model, "auc": p.auc, "log_loss": p.log_loss, "protocol": p.protocol}
            | ({"task": p.task} if p.task else {})
            | ({} if p.gauc is None else {"gauc": p.gauc})
            for p in self._table.published
        ]

    def claims(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Against published figures, and between models."""
        return claims_of(self._table, rows)

    def display(self, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
        """One line per model."""
        return display_of(self._table, rows)

    def figure(self, rows: Sequence[Row]) -> str:
        """What every seed gave, a panel for each task."""
        return figure_of(self._table, rows)

    def markdown(self, payload: Row, columns: list[str], display: list[list[str]]) -> str:  # noqa: ARG002
        """Wider than what is printed, with published figures and claims."""
        return page_of(self._table, payload)

    def _recipe(self, folder: Path, model: str) -> Path:
        """Recipes of two tables may be the same, and stand beside the folder of each."""
        return folder.parent / (self._table.recipes or self.name) / f"{model}.toml"


def table_dataset(table: ResultTable, data: Path | None, work: Path) -> Path:
    """Folder of a table's dataset below ``work``, made if it is not there yet.

    Raises:
        DataError: The public set is not at hand.
    """
    folder = work / "datasets" / table.dataset.replace(":", "-")
    if api.is_dataset(folder):
        return folder
    if table.dataset.startswith("market:"):
        log = work / "logs" / table.dataset.replace(":", "-")
        if not (log / "market.json").exists():
            api.simulate(int(table.dataset.partition(":")[2]), log)
        ingest(log, folder, schema=market_schema())
        return folder
    if data is None:
        raise DataError(
            f"table {table.name!r}: needs the public set {table.dataset!r}, got no folder of "
            f"public sets. Set TAMIS_DATA or --data."
        )
    prepared = prepare(table.dataset, data, work / "logs" / table.dataset)
    ingest(prepared.files, folder, schema=prepared.schema, vectors=prepared.vectors)
    return folder
