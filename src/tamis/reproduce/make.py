"""From the name of a table to its files in ``results/``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamis import api, artifacts
from tamis.data.public import prepare
from tamis.errors import ConfigError, DataError
from tamis.evaluation.seeds import paired_t_test
from tamis.reproduce.runner import Cell, cells_of, run_cells
from tamis.reproduce.tables import TABLES, ResultTable

_METRICS = ("auc", "log_loss", "ne", "gauc", "calibration", "ece")


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeTable:
    """A finished table."""

    path: Path
    """Its JSON file; the Markdown file stands beside it."""
    columns: list[str]
    """Heads of the printed table."""
    display_rows: list[list[str]]
    """Cells of the printed table."""
    claims: list[dict[str, Any]]
    """What was claimed, and whether it holds."""


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
    if name not in TABLES:
        raise ConfigError(f"table: must be one of {', '.join(TABLES)}, got {name!r}.")
    table = TABLES[name]
    for model in table.models:
        if not (recipes / name / f"{model}.toml").exists():
            raise ConfigError(f"{recipes / name / model}.toml: must exist, got no such recipe.")
    dataset = table_dataset(table, data, work)
    cells = cells_of(table, work / name)
    done: list[Cell] = []

    def on_done(cell: Cell) -> None:
        done.append(cell)
        progress(len(done), len(cells))

    run_cells(cells, dataset=dataset, recipes=recipes / name, workers=workers, on_done=on_done)
    rows = [_row(table, cell) for cell in cells]
    claims = _claims(table, rows)
    payload = {
        "table": name,
        "command": f"tamis reproduce {name}",
        "commit": _commit(cells),
        "data": {table.dataset: api.open_dataset(dataset).fingerprint},
        "rows": rows,
        "published": [
            {"model": p.model, "auc": p.auc, "log_loss": p.log_loss, "protocol": p.protocol}
            for p in table.published
        ],
        "claims": claims,
    }
    path = out / f"{name}.json"
    artifacts.write_json(path, payload)
    columns, display = _display(table, rows)
    artifacts.write_text(out / f"{name}.md", _markdown(payload, columns, display))
    return MadeTable(path=path, columns=columns, display_rows=display, claims=claims)


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
        api.ingest(log, folder)
        return folder
    if data is None:
        raise DataError(
            f"table {table.name!r}: needs the public set {table.dataset!r}, got no folder of "
            f"public sets. Set TAMIS_DATA or --data."
        )
    prepared = prepare(table.dataset, data, work / "logs" / table.dataset)
    api.ingest(prepared.files, folder, schema=prepared.schema)
    return folder


def _row(table: ResultTable, cell: Cell) -> dict[str, Any]:
    record = artifacts.read_json(cell.run / "metrics.json")
    run = artifacts.read_json(cell.run / "run.json")
    split = "test" if "test" in record["metrics"] else "valid"
    row = {
        "model": cell.model,
        "dataset": table.dataset,
        "seed": cell.seed,
        "split": split,
        "metrics": {name: record["metrics"][split][table.task].get(name) for name in _METRICS},
        "parameters": run["parameters"]["total"],
        "dense_parameters": run["parameters"]["dense"],
        "forward_flops_per_row": run["forward_flops_per_row"],
        "curve": _curve(cell.run / "metrics.jsonl", table.task),
        "samples_per_second": round(run["samples_per_second"]),
    }
    gap = record.get("ne_gap", {}).get(split, {}).get(table.task)
    return row if gap is None else {**row, "ne_gap": gap}


def _curve(path: Path, task: str) -> list[list[float]]:
    """Steps and the validation NE after them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [[line["step"], line["valid"][task]["ne"]] for line in lines]


def _values(rows: Sequence[Mapping[str, Any]], model: str, metric: str) -> list[float]:
    return [row["metrics"][metric] for row in rows if row["model"] == model]


def _claims(table: ResultTable, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours against published figures on the same rows, and DHEN against every other model."""
    claims = []
    for figure in table.published:
        values = _values(rows, figure.model, "auc")
        mean = float(np.mean(values))
        claims.append(
            {
                "claim": f"{figure.model}: mean test AUC within 0.0005 of {figure.auc} or above "
                f"({figure.protocol})",
                "estimate": mean - figure.auc,
                "interval": None,
                "holds": mean - figure.auc >= -0.0005,
                "how": f"mean of {len(values)} seeds",
            }
        )
    for model in table.models:
        if model == "dhen" or "dhen" not in table.models:
            continue
        pair = [_values(rows, name, "ne") for name in (model, "dhen")]
        test = paired_t_test("ne", pair[0], pair[1])
        claims.append(
            {
                "claim": f"dhen has a lower NE than {model}",
                "estimate": test.difference,
                "interval": [test.lower, test.upper],
                "holds": test.upper < 0,
                "how": f"paired t test over {test.units} seeds",
            }
        )
    return claims


def _display(
    table: ResultTable, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    columns = ["model", "AUC", "log loss", "NE", "dense", "MFLOP/row", "rows/s"]
    display = []
    for model in table.models:
        cells = [model]
        for metric in ("auc", "log_loss", "ne"):
            values = _values(rows, model, metric)
            cells.append(f"{np.mean(values):.5f} ± {np.std(values, ddof=1):.5f}")
        chosen = [row for row in rows if row["model"] == model]
        cells.append(f"{chosen[0]['dense_parameters']:,}")
        cells.append(f"{chosen[0]['forward_flops_per_row'] / 1e6:.2f}")
        cells.append(f"{np.median([row['samples_per_second'] for row in chosen]):,.0f}")
        display.append(cells)
    return columns, display


def _markdown(
    payload: Mapping[str, Any], columns: Sequence[str], display: Sequence[Sequence[str]]
) -> str:
    lines = [
        f"# {payload['table']}",
        "",
        f"Made by `{payload['command']}` at commit {(payload['commit'] or 'unknown')[:10]}; mean ± "
        f"standard deviation over seeds, test split, weights chosen on the validation split.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(cells) + " |" for cells in display),
        "",
    ]
    if payload["published"]:
        lines += ["| published | AUC | log loss | protocol |", "|---|---|---|---|"]
        lines += [
            f"| {p['model']} | {p['auc']} | {p['log_loss']} | {p['protocol']} |"
            for p in payload["published"]
        ]
        lines.append("")
    lines += ["| claim | estimate | interval | holds |", "|---|---|---|---|"]
    for claim in payload["claims"]:
        interval = claim["interval"]
        shown = "" if interval is None else f"[{interval[0]:+.5f}, {interval[1]:+.5f}]"
        verdict = "yes" if claim["holds"] else "no"
        lines.append(f"| {claim['claim']} | {claim['estimate']:+.5f} | {shown} | {verdict} |")
    return "\n".join(lines) + "\n"


def _commit(cells: Sequence[Cell]) -> str | None:
    """The commit that every run was made at, or all of them if they differ."""
    found = {artifacts.read_json(cell.run / "run.json")["commit"] for cell in cells}
    known = sorted(commit for commit in found if commit)
    return ", ".join(known) or None
