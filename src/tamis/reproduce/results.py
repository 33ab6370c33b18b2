"""What is read off a table's finished trainings: rows, claims, printed form, figure, Markdown."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tamis import artifacts
from tamis.errors import ArtifactError
from tamis.evaluation import evaluate_task
from tamis.evaluation.seeds import paired_t_test
from tamis.reports.table_figures import Seeds, seed_dots
from tamis.reproduce.result_table import Comparison, ResultTable
from tamis.reproduce.row_settings import settings_lines
from tamis.reproduce.runner import Cell
from tamis.training.compare import read_predictions
from tamis.training.runlog import device_of

_METRICS = ("auc", "log_loss", "ne", "gauc", "calibration", "ece")
_LESS_IS_BETTER = {"ne": "NE", "ece": "ECE", "calibration": "distance of calibration from 1"}
SEEDS = (
    "A dot is a seed, a stroke the mean of them; a mean far outside all others is told at the edge."
)
"""What the marks of a figure of seeds are."""
_HEADS = {"auc": "AUC", "log_loss": "log loss", "ndcg@20": "NDCG@20"}
"""How metrics of published figures are written, where not as they are named."""


def row_of(cell: Cell, *, tasks: tuple[str, ...]) -> dict[str, Any]:
    """What the table keeps of a finished training: metrics of the first task, then the others."""
    record = artifacts.read_json(cell.run / "metrics.json")
    run = artifacts.read_json(cell.run / "run.json")
    split = "test" if "test" in record["metrics"] else "valid"
    first, *others = (
        {name: record["metrics"][split][task].get(name) for name in _METRICS} for task in tasks
    )
    row = {
        "model": cell.model,
        "seed": cell.seed,
        "split": split,
        "metrics": first,
        "parameters": run["parameters"]["total"],
        "dense_parameters": run["parameters"]["dense"],
        "forward_flops_per_row": run["forward_flops_per_row"],
        "curve": _curve(cell.run / "metrics.jsonl", tasks[0]),
        "samples_per_second": round(run["samples_per_second"]),
        "commit": run["commit"],
        "device": device_of(run["environment"]),
        "precision": run["precision"],
    }
    members = record.get("members", {}).get(split, {})
    if members:
        row["members"] = {
            name: {metric: values[tasks[0]].get(metric) for metric in _METRICS}
            for name, values in members.items()
        }
    if others:
        row["other_tasks"] = dict(zip(tasks[1:], others, strict=True))
    gap = record.get("ne_gap", {}).get(split, {}).get(tasks[0])
    return row if gap is None else {**row, "ne_gap": gap}


def metrics_of_average(predictions: Sequence[Path], split: str, *, task: str) -> Mapping[str, Any]:
    """Metrics of the mean prediction of several runs, from the folders of what each predicted.

    Raises:
        ArtifactError: The runs predicted different rows.
    """
    tables = [read_predictions(folder, split) for folder in predictions]
    first = tables[0]
    if any(not table["row"].equals(first["row"]) for table in tables):
        raise ArtifactError(
            f"{predictions[0].parent}: must have predicted the rows that {predictions[-1].parent} "
            f"did, got others."
        )
    mean = np.mean([table[f"prediction:{task}"].to_numpy() for table in tables], axis=0)
    return evaluate_task(
        first[f"label:{task}"].to_numpy(),
        mean,
        weights=first["weight"].to_numpy() if "weight" in first.column_names else None,
        groups=first["user"].to_numpy() if "user" in first.column_names else None,
    ).to_json()


def row_of_average(name: str, cells: Sequence[Cell], *, task: str) -> dict[str, Any]:
    """The row of the mean prediction of finished trainings of one seed.

    Raises:
        ArtifactError: The runs predicted different rows.
    """
    found = metrics_of_average([cell.run / "predictions" for cell in cells], "test", task=task)
    rows = [row_of(cell, tasks=(task,)) for cell in cells]
    sums = ("parameters", "dense_parameters", "forward_flops_per_row")
    return {
        "model": name,
        "seed": cells[0].seed,
        "split": "test",
        "metrics": {metric: found.get(metric) for metric in _METRICS},
        **{key: sum(row[key] for row in rows) for key in sums},
        "curve": [],
        # One after the other, as members of an ensemble train.
        "samples_per_second": round(1 / sum(1 / row["samples_per_second"] for row in rows)),
        "commit": rows[0]["commit"],
        "device": rows[0]["device"],
        "precision": rows[0]["precision"],
    }


def _curve(path: Path, task: str) -> list[list[float]]:
    """Steps and the validation NE after them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [[line["step"], line["valid"][task]["ne"]] for line in lines]


def _values(
    rows: Sequence[Mapping[str, Any]],
    model: str,
    metric: str,
    task: str = "",
    *,
    of_members: bool = False,
) -> list[float]:
    """A metric of a model over seeds, of the first task or another one, or its members' mean."""
    if of_members:
        return [
            float(np.mean([values[metric] for values in row["members"].values()]))
            for row in rows
            if row["model"] == model
        ]
    return [
        row["other_tasks"][task][metric] if task else row["metrics"][metric]
        for row in rows
        if row["model"] == model
    ]


def claims_of(table: ResultTable, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours against published figures on the same rows, and the table's comparisons."""
    claims = []
    for figure in table.published:
        values = _values(rows, figure.model, "auc", table.key_of(figure.task))
        away = float(np.mean(values)) - figure.auc
        above = "" if figure.both_ways else " or above"
        claims.append(
            {
                "claim": f"{figure.model}: mean test AUC{_on(figure.task)} within "
                f"{figure.tolerance:g} of {figure.auc}{above} ({figure.protocol})",
                "estimate": away,
                "interval": None,
                "holds": away >= -figure.tolerance
                and (not figure.both_ways or away <= figure.tolerance),
                "how": f"mean of {len(values)} seeds",
            }
        )
    for claim in table.comparisons:
        key = table.key_of(claim.task)
        worse, better = (
            _values(rows, model, claim.metric, key, of_members=of_members)
            for model, of_members in (
                (claim.worse, claim.members_of_worse),
                (claim.better, claim.members_of_better),
            )
        )
        if claim.metric == "calibration":
            worse, better = ([abs(value - 1.0) for value in values] for values in (worse, better))
        test = paired_t_test(claim.metric, worse, better)
        is_less = claim.metric in _LESS_IS_BETTER
        claims.append(
            {
                "claim": _said(claim, is_less=is_less),
                "estimate": test.difference,
                "interval": [test.lower, test.upper],
                "holds": test.upper < -claim.margin if is_less else test.lower > claim.margin,
                "how": f"paired t test over {test.units} seeds",
            }
        )
    return claims


def _said(claim: Comparison, *, is_less: bool) -> str:
    members = "the members of "
    better = f"{members if claim.members_of_better else ''}{claim.better}"
    worse = f"{members if claim.members_of_worse else ''}{claim.worse}"
    metric = f"{_LESS_IS_BETTER.get(claim.metric, claim.metric.upper())}{_on(claim.task)}"
    if claim.margin < 0:
        side = "above" if is_less else "below"
        return f"{better}: {metric} less than {-claim.margin:g} {side} that of {worse}"
    verb = "have" if claim.members_of_better else "has"
    margin = f" by more than {claim.margin:g}" if claim.margin else ""
    return f"{better} {verb} a {'lower' if is_less else 'higher'} {metric} than {worse}{margin}"


def _on(task: str) -> str:
    return f" on {task}" if task else ""


def display_of(
    table: ResultTable, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the printed table, one line per model, within 100 columns.

    Only an AUC has its standard deviation here; every metric has one on the page.
    """
    return _lines(table, rows, is_page=False)


def figure_of(table: ResultTable, rows: Sequence[Mapping[str, Any]]) -> str:
    """A dot for every seed: of what the table compares, or of the AUC of each of its tasks."""
    models = (*table.models, *(average.name for average in table.averages))
    metric = "ne" if {claim.metric for claim in table.comparisons} == {"ne"} else "auc"
    head = "NE, less is better" if metric == "ne" else "AUC"
    panels = [
        Seeds(
            xlabel=head if len(table.tasks) == 1 else f"{head}, {task}",
            values=[_values(rows, model, metric, table.key_of(task)) for model in models],
        )
        for task in table.tasks
    ]
    return seed_dots(
        models,
        panels,
        title=f"{table.name}: every seed, and the mean",
        reference=_mostly_claimed(table),
    )


def _mostly_claimed(table: ResultTable) -> str | None:
    """The model that most of the table's comparisons are about, if there is one."""
    counts = Counter(claim.better for claim in table.comparisons).most_common(1)
    return next((name for name, count in counts if 2 * count > len(table.comparisons)), None)


def page_of(table: ResultTable, payload: Mapping[str, Any]) -> str:
    """The table as Markdown, with published figures and claims."""
    columns, lines = _lines(table, payload["rows"], is_page=True)
    reference = _mostly_claimed(table)
    caption = SEEDS + (f" The dotted line stands at the mean of {reference}." if reference else "")
    more = settings_lines(payload["settings"], head=f"differs from {table.varied} in")
    return markdown_of(
        payload, columns, lines, chosen_on=table.chosen_on, caption=caption, more=more
    )


def _lines(
    table: ResultTable, rows: Sequence[Mapping[str, Any]], *, is_page: bool
) -> tuple[list[str], list[list[str]]]:
    models = (*table.models, *(average.name for average in table.averages))
    rows_of = {model: [row for row in rows if row["model"] == model] for model in models}
    is_single = len(table.tasks) == 1
    # Three AUCs, each with its spread and a published one, leave no room for the fifth digit.
    digits = 5 if is_page or is_single else 4
    columns, lines = ["model"], [[model] for model in models]

    def add(head: str, cell: Callable[[str], str]) -> None:
        columns.append(head)
        for line in lines:
            line.append(cell(line[0]))

    def metric(name: str, task: str = "", *, has_spread: bool) -> Callable[[str], str]:
        def cell(model: str) -> str:
            values = _values(rows, model, name, task)
            mean, spread = (f"{f(values):.{digits}f}" for f in (np.mean, _spread))
            return mean + (" ± " if is_page else "±") + spread if has_spread else mean

        return cell

    def add_published(name: Literal["auc", "gauc"], task: str = "") -> None:
        figures = _published(table, name, task)
        if figures:
            add("published" if is_page else "publ.", lambda model: figures.get(model, ""))

    for task in table.tasks:
        key = table.key_of(task)
        add("AUC" if is_single else f"AUC {task}", metric("auc", key, has_spread=True))
        add_published("auc", key)
    if is_single:
        add("log loss", metric("log_loss", has_spread=is_page))
        add("NE", metric("ne", has_spread=is_page))
        if is_page:
            add("calibration", metric("calibration", has_spread=True))
            add("ECE", metric("ece", has_spread=True))
        if all(row["metrics"].get("gauc") is not None for row in rows):
            add("GAUC", metric("gauc", has_spread=is_page))
            add_published("gauc")
    first = {model: found[0] for model, found in rows_of.items()}
    count = "{:,}".format if is_page else three_digits
    add("parameters" if is_page else "params", lambda model: count(first[model]["parameters"]))
    add("dense", lambda model: count(first[model]["dense_parameters"]))
    if is_page:
        add("MFLOP/row", lambda model: f"{first[model]['forward_flops_per_row'] / 1e6:.2f}")
    else:  # as fast as each training went beside others: for whoever waits, and no comparison
        add("rows/s", lambda model: f"{np.median(_speeds(rows_of[model])):,.0f}")
    return columns, lines


def _speeds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["samples_per_second"] for row in rows]


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def _published(table: ResultTable, metric: Literal["auc", "gauc"], task: str) -> dict[str, str]:
    """A published metric of each model that has one on a task, the first of several."""
    found: dict[str, str] = {}
    for figure in table.published:
        value = figure.auc if metric == "auc" else figure.gauc
        if value is not None and table.key_of(figure.task) == task:
            found.setdefault(figure.model, str(value))
    return found


def three_digits(count: int) -> str:
    """A count in thousands, millions or billions: ``5.39k``."""
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if count >= 0.9995 * 10**power:
            return f"{count / 10**power:.3g}{letter}"
    return str(count)


def markdown_of(
    payload: Mapping[str, Any],
    columns: Sequence[str],
    display: Sequence[Sequence[str]],
    *,
    caption: str,
    chosen_on: str = "validation",
    more: Sequence[str] = (),
) -> str:
    """The table as Markdown, with more lines below it, published figures and claims."""
    commits = ", ".join(sorted({row["commit"][:10] for row in payload["rows"] if row["commit"]}))
    splits = " and ".join(sorted({row["split"] for row in payload["rows"]}))
    lines = [
        f"# {payload['table']}",
        "",
        f"Made by `{payload['command']}` at commit {commits or 'unknown'}; mean ± standard "
        f"deviation over seeds, {splits} split, weights chosen on the {chosen_on} split.",
        "",
        *picture_of(payload, caption),
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(cells) + " |" for cells in display),
        "",
        *more,
    ]
    if payload["published"]:
        lines += [*_published_lines(payload["published"]), ""]
    lines += ["| claim | estimate | interval | holds |", "|---|---|---|---|"]
    for claim in payload["claims"]:
        estimate, interval = figures_of(claim)
        verdict = "yes" if claim["holds"] else "no"
        lines.append(f"| {claim['claim']} | {estimate} | {interval} | {verdict} |")
    return "\n".join(lines) + "\n"


def picture_of(payload: Mapping[str, Any], caption: str) -> list[str]:
    """Lines that show the figure beside the page, and say what its marks are."""
    return [f"![{caption}]({payload['table']}.svg)", "", caption, ""]


def figures_of(claim: Mapping[str, Any]) -> tuple[str, str]:
    """A claim's estimate and its interval, which is empty where there is none."""
    interval = claim["interval"]
    shown = "" if interval is None else f"[{interval[0]:+.5f}, {interval[1]:+.5f}]"
    return f"{claim['estimate']:+.5f}", shown


def _published_lines(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    metrics = [name for name in figures[0] if name not in ("model", "task", "protocol")]
    heads = ["published", *(_HEADS.get(name, name) for name in metrics), "protocol"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for figure in figures:
        shown = ["" if figure[name] is None else str(figure[name]) for name in metrics]
        cells = [f"{figure['model']}{_on(figure.get('task', ''))}", *shown, figure["protocol"]]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
