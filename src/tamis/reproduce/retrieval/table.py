"""How the rows of a table of retrieval are made and read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tamis import api, artifacts, config
from tamis.data.ingest import ingest
from tamis.data.market.retrieval import ROWS_PER_AD, market_retrieval
from tamis.data.public_sets.retrieval import RetrievalSet, amazon, gowalla
from tamis.data.retrieval_task import is_task, write_task
from tamis.errors import ConfigError, DataError
from tamis.reproduce.result_table import Average
from tamis.reproduce.results import markdown_of
from tamis.reproduce.retrieval.beams import LOSS_ON_VALIDATION
from tamis.reproduce.retrieval.checks import CHECKS_VERSION
from tamis.reproduce.retrieval.results import (
    claims_of,
    display_of,
    figure_of,
    levels_of,
    search_row_of,
)
from tamis.reproduce.retrieval.row import RowOrder
from tamis.reproduce.retrieval.tables import MARKET, RetrievalTable
from tamis.reproduce.row_settings import differences, settings_lines
from tamis.reproduce.runner import Cell

Row = Mapping[str, Any]

_LEVELS = (
    "Levels of each index. NE of test rows with what stands for their items' nodes: a blend of "
    "nodes, as in training; the node itself, which is served; or its representative. Calibration "
    "is the sum of served predictions over that of labels, levels shifted to rows that trained. "
    "Perplexity of codes, and the largest node in units of the mean one, are of the corpus' items, "
    "and of traffic: the test rows that are positives. A dash: not measured in every seed."
)
_SETS: dict[str, tuple[str, Callable[[Path], RetrievalSet]]] = {
    "amazon_sports_retrieval": ("seq_amazon_sports_and_outdoors", amazon),
    "gowalla": ("gowalla", gowalla),
}


class RetrievalRows:
    """Ways to search a corpus, one process for each row; see ``TableKind``.

    Several rows may search one model. Whichever comes first trains it, the others wait.
    """

    averages: tuple[Average, ...] = ()

    def __init__(self, table: RetrievalTable) -> None:
        """Take the table."""
        self._table = table
        self.name, self.dataset, self.seeds = table.name, table.dataset, table.seeds
        self.models = tuple(row.name for row in table.rows)
        self.tasks = ("click",)

    def recipes(self, folder: Path) -> dict[str, str]:
        """What decides each row: method, recipes of its models, how beams are chosen."""
        paths = {model: self._recipe(folder, model) for model in self._table.models}
        for path in paths.values():
            if not path.exists():
                raise ConfigError(f"{path}: must exist, got no such recipe.")
        found = {model: config.read_toml(path) for model, path in paths.items()}
        reference = found[self._reference]
        decides: dict[str, list[Any]] = {}
        for row in self._table.rows:
            recipe = found.get(row.model, {})
            decides[row.name] = [row.method, recipe, reference]
            if row.teacher:
                decides[row.name].append(found[row.teacher])
            model = recipe.get("model", {})
            if model.get("name") == "hsnn" and model.get("codebooks", True):
                users = self._table.exhaustive
                decides[row.name].append([LOSS_ON_VALIDATION, users, CHECKS_VERSION])
            if row.name == self._by_content:
                decides[row.name].append("items never shown are placed by content")
        return {name: config.fingerprint(parts) for name, parts in decides.items()}

    def settings(self, folder: Path) -> dict[str, str]:
        """What variants of the first index change."""
        first = self._table.row(self._table.indexed[0])
        paths = {
            row.name: self._recipe(folder, row.model)
            for row in self._table.rows
            if row is first or (row.name.startswith(f"{first.name}-") and not row.teacher)
        }
        return differences(paths, reference=first.name)

    def prepare(self, data: Path | None, work: Path, recipes: Path) -> tuple[Path, str]:  # noqa: ARG002
        """Dataset, and the tasks to choose beams on and to judge by, which no recipe decides."""
        name = f"{self.dataset.replace(':', '-')}-{self._table.requests}-requests"
        if self._table.tells_shown:
            name += f"-{ROWS_PER_AD}-rows-per-ad"
        folder = work / "tasks" / name
        dataset = folder / "dataset"
        tasks: dict[Literal["valid", "test"], Path] = {
            "valid": folder / "task-valid",
            "test": folder / "task",
        }
        if not (api.is_dataset(dataset) and all(is_task(task) for task in tasks.values())):
            found = _read(self._table, data)
            if not api.is_dataset(dataset):
                logs = {split: folder / "rows" / f"{split}.parquet" for split in found.tables}
                for split, path in logs.items():
                    found.write_rows(split, path)
                ingest(logs, dataset, schema=found.schema)
            for split, task in tasks.items():
                write_task(found, task, split=split, requests=self._table.requests)
        manifests = [artifacts.read_json(task / "manifest.json") for task in tasks.values()]
        return folder, config.fingerprint([api.open_dataset(dataset).fingerprint, *manifests])

    def command(self, cell: Cell, *, inputs: Path, recipes: Path) -> list[str]:
        """Order the row, and what makes it."""
        row = self._table.row(cell.model)
        reference = self._recipe(recipes, self._reference)
        recipe = self._recipe(recipes, row.model) if row.model else None
        teacher = self._recipe(recipes, row.teacher) if row.teacher else None
        order = RowOrder(
            method=row.method,
            inputs=str(inputs),
            seed=cell.seed,
            recipe="" if recipe is None else str(recipe),
            run="" if recipe is None else str(self._run(cell, recipe, inputs, teacher)),
            teacher_recipe="" if teacher is None else str(teacher),
            teacher_run="" if teacher is None else str(self._run(cell, teacher, inputs)),
            reference_recipe=str(reference),
            reference_run=str(self._run(cell, reference, inputs)),
            exhaustive=self._table.exhaustive,
            whole_curve=row.is_checked,
            by_content=row.name == self._by_content,
        )
        order.write(cell.run)
        return ["-m", "tamis.reproduce.retrieval", str(cell.run)]

    def row(self, cell: Cell) -> dict[str, Any]:
        """What was measured, beside what its training says."""
        order = artifacts.read_json(cell.run / "order.json")
        return search_row_of(
            cell.model,
            cell.seed,
            artifacts.read_json(cell.run / "metrics.json"),
            Path(order["run"]) if order["run"] else None,
            has_ne=self._table.row(cell.model).has_ne,
        )

    def is_current(self, row: Row) -> bool:
        """Whether a row that was read has been searched."""
        return bool(row.get("points"))

    def published(self) -> list[dict[str, Any]]:
        """Figures on the same test."""
        return [
            {
                "model": figure.model,
                "recall@20": figure.recall,
                "ndcg@20": figure.ndcg,
                "protocol": figure.protocol,
            }
            for figure in self._table.published
        ]

    def claims(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Comparisons, bars and checks."""
        return claims_of(self._table, rows)

    def display(self, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
        """One line per row, within 100 columns."""
        return display_of(self._table, rows, is_page=False)

    def figure(self, rows: Sequence[Row]) -> str:
        """Recall over processor time, a line for each way to search that the table draws."""
        return figure_of(self._table, rows)

    def display_levels(self, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
        """One line per level of each index, within 100 columns."""
        return levels_of(self._table, rows, is_page=False)

    def markdown(self, payload: Row, columns: list[str], display: list[list[str]]) -> str:
        """Wider than what is printed, with levels, published figures and what is claimed."""
        rows = payload["rows"]
        columns, display = display_of(self._table, rows, is_page=True)
        heads, levels = levels_of(self._table, rows, is_page=True)
        head = f"differs from {self._table.indexed[0]} in"
        more = settings_lines(payload["settings"], head=head)
        if levels:
            more += [_LEVELS, "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
            more += ["| " + " | ".join(cells) + " |" for cells in levels] + [""]
        caption = (
            "Recall over processor time, means over seeds. Not drawn: popularity, variants of an "
            "index, what a teacher taught, and widths that find less than half of the best."
        )
        return markdown_of(payload, columns, display, caption=caption, more=more)

    @property
    def _reference(self) -> str:
        """The recipe of two towers."""
        return self._table.row(self._table.reference).model

    @property
    def _by_content(self) -> str:
        """The row that tells how well items are found that were never shown; empty: none."""
        return self._table.indexed[0] if self._table.tells_shown else ""

    def _recipe(self, folder: Path, model: str) -> Path:
        """Recipes of several tables are the same, and stand beside the folder of each."""
        return folder.parent / self._table.recipes / f"{model}.toml"

    def _run(self, cell: Cell, recipe: Path, inputs: Path, teacher: Path | None = None) -> Path:
        """Run of a recipe, a teacher and a seed, shared by all rows of the table.

        Rows of an earlier version must not be made again of the weights that they had.
        """
        decides = [config.read_toml(path) for path in (recipe, teacher) if path is not None]
        data = api.open_dataset(inputs / "dataset").fingerprint
        stamp = config.fingerprint([*decides, data, CHECKS_VERSION])[:12]
        return cell.run.parent.parent / "trained" / recipe.stem / f"{stamp}-seed{cell.seed}"


def _read(table: RetrievalTable, data: Path | None) -> RetrievalSet:
    if table.dataset.startswith(MARKET):
        ads = int(table.dataset.removeprefix(MARKET))
        return market_retrieval(ads, requests=table.requests)
    if data is None:
        raise DataError(
            f"table {table.name!r}: needs the public set {table.dataset!r}, got no folder of "
            f"public sets. Set TAMIS_DATA or --data."
        )
    folder, read = _SETS[table.dataset]
    return read(data / folder)
