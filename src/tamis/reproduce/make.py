"""From the name of a table to its files in ``results/``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis import artifacts, config
from tamis.errors import ConfigError, DataError
from tamis.reports.canvas import standalone
from tamis.reproduce.ab.table import AbRows
from tamis.reproduce.ab.tables import AbTable
from tamis.reproduce.early.rounds_table import RoundsRows
from tamis.reproduce.early.table import EarlyRows
from tamis.reproduce.early.variants import EarlyTable, RoundsTable
from tamis.reproduce.kinds import TableKind, TrainedRows
from tamis.reproduce.result_table import ResultTable
from tamis.reproduce.results import row_of_average
from tamis.reproduce.retrieval.table import RetrievalRows
from tamis.reproduce.retrieval.tables import RetrievalTable
from tamis.reproduce.runner import Cell, cells_of, run_cells
from tamis.reproduce.tables import GROUPS, TABLES


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeTable:
    """A finished table."""

    path: Path
    """Its JSON file; the page and its figure stand beside it."""
    columns: list[str]
    """Heads of the printed table."""
    display_rows: list[list[str]]
    """Cells of the printed table."""
    claims: list[dict[str, Any]]
    """What was claimed, and whether it holds."""
    levels: tuple[list[str], list[list[str]]] | None = None
    """Heads and cells of the levels of indexes, where the table has any."""

    @property
    def failed_checks(self) -> list[str]:
        """Claims that do not hold and without which no number beside them means what it says."""
        return [
            claim["claim"]
            for claim in self.claims
            if claim.get("is_check", False) and not claim["holds"]
        ]


def make_table(
    name: str,
    *,
    data: Path | None,
    recipes: Path,
    work: Path,
    out: Path,
    workers: int,
    progress: Callable[[int, int], None],
) -> MadeTable:
    """Train what is missing of a table and write its results.

    Args:
        name: One of ``TABLES``.
        data: Folder of the public sets; not needed for the market.
        recipes: ``recipes/<table>/<model>.toml``.
        work: Folder for datasets and runs; kept, so that a stopped table goes on.
        out: Folder of the results.
        workers: Trainings at a time.
        progress: Told trainings done and in all.

    Raises:
        ConfigError: There is no such table or recipe.
        DataError: The public set is not at hand.
        TamisError: A training failed.
    """
    check_recipes(name, recipes)
    table, folder = kind_of(TABLES[name]), _copied(recipes, work) / name
    inputs, fingerprint = table.prepare(data, work, folder)
    ledger = _Ledger(table, folder, out, fingerprint)
    cells = cells_of(table.models, table.seeds, work / name, ledger.stamps)
    missing = [cell for cell in cells if not ledger.has(cell)]
    progress(len(cells) - len(missing), len(cells))

    def on_done(cell: Cell) -> None:
        ledger.add(cell)
        ledger.add_averages(cells, seed=cell.seed)
        progress(ledger.num_trained, len(cells))

    def command(cell: Cell) -> list[str]:
        return table.command(cell, inputs=inputs, recipes=folder)

    run_cells(missing, command=command, workers=workers, on_done=on_done)
    for seed in range(table.seeds):
        ledger.add_averages(cells, seed=seed)
    return ledger.finish(cells)


def check_recipes(name: str, recipes: Path) -> None:
    """Check that a table is known and that all of its recipes are there.

    Raises:
        ConfigError: There is no such table or recipe.
    """
    if name not in TABLES:
        known = ", ".join((*TABLES, *GROUPS))
        raise ConfigError(f"table: must be one of {known}, got {name!r}.")
    kind_of(TABLES[name]).recipes(recipes / name)


def kind_of(
    table: ResultTable | RetrievalTable | EarlyTable | RoundsTable | AbTable,
) -> TableKind:
    """A table with what its kind of rows needs."""
    match table:
        case ResultTable():
            return TrainedRows(table)
        case RetrievalTable():
            return RetrievalRows(table)
        case EarlyTable():
            return EarlyRows(table)
        case RoundsTable():
            return RoundsRows(table)
        case AbTable():
            return AbRows(table)


def _copied(recipes: Path, work: Path) -> Path:
    """A copy of all recipes below ``work``, so that what trains days later is what rows will name.

    Its folder has the name of what it holds: a table that goes on has the same one.
    """
    found = {
        path.relative_to(recipes): path.read_text("utf-8") for path in recipes.glob("*/*.toml")
    }
    decides = {str(name): text for name, text in found.items()}
    copy = work / "recipes" / config.fingerprint(decides)[:12]
    for name, text in found.items():
        if not (copy / name).exists():
            artifacts.write_text(copy / name, text)
    return copy


class _Ledger:
    """The rows of a table, in ``results/<table>.json`` from the first finished training on.

    A row that stands there is taken as it is where its recipe, its seed and the data are those
    asked for; so a table may be made in several sittings, on several machines. Two of them may
    write the same file at once: it is read again before each row is added.
    """

    def __init__(self, table: TableKind, recipes: Path, out: Path, fingerprint: str) -> None:
        self._table, self._path = table, out / f"{table.name}.json"
        self._data = {table.dataset: fingerprint}
        self._recipes, self._settings = table.recipes(recipes), table.settings(recipes)
        for average in table.averages:
            parts = [self._recipes[model] for model in average.of]
            self._recipes[average.name] = config.fingerprint(parts)
        self._rows = self._read()

    @property
    def stamps(self) -> dict[str, str]:
        """For each model 12 digits that its recipe and the data decide."""
        return {
            model: config.fingerprint([recipe, self._data])[:12]
            for model, recipe in self._recipes.items()
        }

    @property
    def num_trained(self) -> int:
        return sum(model in self._table.models for model, _ in self._rows)

    def has(self, cell: Cell) -> bool:
        return (cell.model, cell.seed) in self._rows

    def add(self, cell: Cell) -> None:
        row = self._table.row(cell)
        self._rows = self._read() | self._rows
        self._rows[cell.model, cell.seed] = {**row, "recipe": self._recipes[cell.model]}
        self._write(list(self._rows.values()), claims=None)

    def add_averages(self, cells: list[Cell], *, seed: int) -> None:
        """Rows of the averages of one seed that are missing and whose runs are all finished here.

        They are read off the runs, which may stay behind on this machine.
        """
        runs = {cell.model: cell for cell in cells if cell.seed == seed}
        for average in self._table.averages:
            parts = [runs[model] for model in average.of]
            if (average.name, seed) in self._rows or not all(part.is_done for part in parts):
                continue
            row = row_of_average(average.name, parts, task=self._table.tasks[0])
            self._rows[average.name, seed] = {**row, "recipe": self._recipes[average.name]}
            self._write(list(self._rows.values()), claims=None)

    def finish(self, cells: list[Cell]) -> MadeTable:
        """The finished table.

        Raises:
            DataError: Rows of an average's models stand in the results, and its own does not.
        """
        for average in self._table.averages:
            for seed in range(self._table.seeds):
                if (average.name, seed) not in self._rows:
                    raise DataError(
                        f"{self._path}: must hold a row {average.name!r} of seed {seed}, or the "
                        f"runs of {', '.join(average.of)} must be here; their rows were made "
                        f"elsewhere. Remove those rows."
                    )
        rows = [self._rows[cell.model, cell.seed] for cell in cells]
        rows += [
            self._rows[average.name, seed]
            for seed in range(self._table.seeds)
            for average in self._table.averages
        ]
        claims = self._table.claims(rows)
        payload = self._write(rows, claims=claims)
        columns, display = self._table.display(rows)
        text = self._table.markdown(payload, columns, display)
        figure = standalone(self._table.figure(rows))
        artifacts.write_text(self._path.with_suffix(".svg"), figure)
        artifacts.write_text(self._path.with_suffix(".md"), text)
        levels = None
        if isinstance(self._table, RetrievalRows):
            levels = self._table.display_levels(rows)
        return MadeTable(
            path=self._path, columns=columns, display_rows=display, claims=claims, levels=levels
        )

    def _read(self) -> dict[tuple[str, int], dict[str, Any]]:
        before = artifacts.read_json(self._path) if self._path.exists() else {}
        found = before["rows"] if before.get("data") == self._data else []
        return {
            (row["model"], row["seed"]): row
            for row in found
            if self._recipes.get(row["model"]) == row["recipe"] and self._table.is_current(row)
        }

    def _write(
        self, rows: list[dict[str, Any]], *, claims: list[dict[str, Any]] | None
    ) -> Mapping[str, Any]:
        payload = {
            "table": self._table.name,
            "command": f"tamis reproduce {self._table.name}",
            "commit": ", ".join(sorted({row["commit"] for row in rows if row["commit"]})) or None,
            "complete": claims is not None,
            "data": self._data,
            "rows": [{"dataset": self._table.dataset, **row} for row in rows],
            "settings": self._settings,
            "published": self._table.published(),
            "claims": claims or [],
        }
        artifacts.write_json(self._path, payload)
        return payload
