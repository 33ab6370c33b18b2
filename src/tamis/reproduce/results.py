"""What is read off a table's finished trainings: rows, claims, the printed form, Markdown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tamis import artifacts
from tamis.evaluation.seeds import paired_t_test
from tamis.reproduce.runner import Cell
from tamis.reproduce.tables import ResultTable

_METRICS = ("auc", "log_loss", "ne", "gauc", "calibration", "ece")


def row_of(cell: Cell, *, task: str) -> dict[str, Any]:
    """What the table keeps of a finished training; ``task`` is the one that it compares."""
    record = artifacts.read_json(cell.run / "metrics.json")
    run = artifacts.read_json(cell.run / "run.json")
    split = "test" if "test" in record["metrics"] else "valid"
    row = {
        "model": cell.model,
        "seed": cell.seed,
        "split": split,
        "metrics": {name: record["metrics"][split][task].get(name) for name in _METRICS},
        "parameters": run["parameters"]["total"],
        "dense_parameters": run["parameters"]["dense"],
        "forward_flops_per_row": run["forward_flops_per_row"],
        "curve": _curve(cell.run / "metrics.jsonl", task),
        "samples_per_second": round(run["samples_per_second"]),
        "commit": run["commit"],
        "device": run["environment"]["device_name"],
        "precision": run["precision"],
    }
    gap = record.get("ne_gap", {}).get(split, {}).get(task)
    return row if gap is None else {**row, "ne_gap": gap}


def _curve(path: Path, task: str) -> list[list[float]]:
    """Steps and the validation NE after them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [[line["step"], line["valid"][task]["ne"]] for line in lines]


def _values(rows: Sequence[Mapping[str, Any]], model: str, metric: str) -> list[float]:
    return [row["metrics"][metric] for row in rows if row["model"] == model]


def claims_of(table: ResultTable, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def display_of(
    table: ResultTable, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table, one line per model."""
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


def markdown_of(
    payload: Mapping[str, Any], columns: Sequence[str], display: Sequence[Sequence[str]]
) -> str:
    """The table as Markdown, with published figures and claims."""
    commits = ", ".join(sorted({row["commit"][:10] for row in payload["rows"] if row["commit"]}))
    lines = [
        f"# {payload['table']}",
        "",
        f"Made by `{payload['command']}` at commit {commits or 'unknown'}; mean ± standard "
        f"deviation over seeds, test split, weights chosen on the validation split.",
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
