"""The report of one run, from its records alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tamis import artifacts
from tamis.reports import figures, page
from tamis.reports.record import RunRecord, describe_split, read_run

_SHOWN_FIELDS = 20


def write_run_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder.

    Raises:
        ArtifactError: The run is unfinished or damaged.
    """
    record = read_run(folder)
    path = folder / "report.html"
    artifacts.write_text(path, render(record))
    return path


def render(record: RunRecord) -> str:
    """The page of a run as HTML."""
    split = "test" if "test" in record.metrics["metrics"] else "valid"
    rows = record.run["dataset"]["rows"]
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    model = _model_name(record.config)
    return page.page(
        title=record.name,
        subtitle=f"{model} on {counts} rows; commit {(record.run.get('commit') or 'none')[:10]}",
        sections=[
            page.cards(_headline(record, split)),
            page.section("Metrics", _metrics_table(record), lead=_METRICS_LEAD),
            page.section("Learning", page.figures(_curves(record))),
            page.section(
                "Calibration",
                page.figures(_reliability(record)),
                lead="Observed share against predicted probability on rows that chose nothing.",
            ),
            page.section(
                "Importance",
                page.figures(_importance(record)),
                lead="Rise of NE when one field is shuffled between rows; 0 means not used.",
            ),
            *_inspections(record),
            *_loss_gradients(record),
            *_tables(record),
            page.section("Slices", *_slices(record), lead=f"Metrics by value, {split} split."),
            page.section("Run", _environment(record)),
            page.section("Configuration", page.code(record.config)),
        ],
    )


_HEADS = {
    "ne": "NE",
    "log_loss": "log loss",
    "auc": "AUC",
    "gauc": "GAUC",
    "calibration": "calibration",
    "ece": "ECE",
    "rmse": "RMSE",
    "r2": "R²",
}
_METRICS_LEAD = (
    "NE is the log loss over the entropy of the same rows' base rate: 1 is a constant guess, "
    "smaller is better. Calibration is predicted over observed positives: 1 is right."
)


def _model_name(config: str) -> str:
    for line in config.splitlines():
        if line.startswith("name = "):
            return line.removeprefix("name = ").strip('"')
    return "model"


def _headline(record: RunRecord, split: str) -> list[page.Card]:
    cards = []
    for task, metrics in record.metrics["metrics"][split].items():
        if "rmse" in metrics:
            note = f"R² {_number(metrics['r2'])}" if "r2" in metrics else ""
            cards.append(page.Card(name=f"{task}: RMSE", value=_number(metrics["rmse"]), note=note))
            continue
        gap = record.metrics.get("ne_gap", {}).get(split, {}).get(task)
        oracle = record.metrics.get("oracle", {}).get(split, {}).get(task, {})
        note = f"best reachable {_number(oracle.get('ne'))}, gap {_number(gap)}" if oracle else ""
        cards.append(page.Card(name=f"{task}: NE", value=_number(metrics["ne"]), note=note))
        note = f"true probabilities {_number(oracle.get('auc'))}" if oracle else ""
        cards.append(page.Card(name=f"{task}: AUC", value=_number(metrics["auc"]), note=note))
    return cards


def _metrics_table(record: RunRecord) -> str:
    names = ("ne", "log_loss", "auc", "gauc", "calibration", "ece", "rmse", "r2")
    columns = ["split and task", "rows", "base rate", *(_HEADS[name] for name in names)]
    table = []
    for kind, label in (("metrics", ""), ("oracle", " (true probabilities)")):
        for split, tasks in record.metrics.get(kind, {}).items():
            for task, metrics in tasks.items():
                row = [f"{split}, {task}{label}", f"{metrics['rows']:,}"]
                row += [_number(metrics.get(name)) for name in ("base_rate", *names)]
                table.append(row)
    used = [i for i, _ in enumerate(columns) if i < 2 or any(row[i] != "-" for row in table)]
    return page.table([columns[i] for i in used], [[row[i] for i in used] for row in table])


def _curves(record: RunRecord) -> list[str]:
    if not record.history:
        return []
    steps = [line["step"] for line in record.history]
    best = record.run.get("best_step")
    drawn = []
    for task in record.history[0]["valid"]:
        name = "ne" if "ne" in record.history[0]["valid"][task] else "rmse"
        values = [line["valid"][task].get(name) for line in record.history]
        if any(value is None for value in values):
            continue
        oracle = record.metrics.get("oracle", {}).get("valid", {}).get(task, {}).get("ne")
        drawn.append(
            figures.learning_curves(
                [figures.Curve(name="validation", x=steps, y=values)],
                title=f"Validation {name.upper()}, {task}",
                ylabel=name.upper(),
                best_step=best,
                oracle=oracle,
            )
        )
    loss = [line["train_loss"] for line in record.history]
    curve = figures.Curve(name="training, all tasks", x=steps, y=loss)
    has_regression = any("r2" in metrics for metrics in record.history[0]["valid"].values())
    unit = "loss per row" if has_regression else "nats per row"
    drawn.append(
        figures.learning_curves(
            [curve], title="Training loss since the last evaluation", ylabel=unit
        )
    )
    return drawn


def _reliability(record: RunRecord) -> list[str]:
    return [
        figures.reliability(bins, title=f"Calibration, {task}")
        for task, bins in record.diagnostics.get("reliability", {}).items()
    ]


def _importance(record: RunRecord) -> list[str]:
    entries: Sequence[Mapping[str, Any]] = record.diagnostics.get("importance", [])
    if not entries or not entries[0]["ne_increase"]:
        return []
    task = next(iter(entries[0]["ne_increase"]))
    shown = entries[:_SHOWN_FIELDS]
    return [
        figures.bars(
            [entry["field"] for entry in shown],
            [entry["ne_increase"][task] for entry in shown],
            title=f"Permutation importance, {task}",
            xlabel="rise of NE",
        )
    ]


def _inspections(record: RunRecord) -> list[str]:
    """A section on the inside of the model, for models that show one."""
    found = record.diagnostics.get("inspections", [])
    if not found:
        return []
    drawn = [
        figures.matrix(item["rows"], item["columns"], item["values"], title=item["title"])
        for item in found
    ]
    lead = "Means over a sample of the rows that chose nothing."
    return [page.section("Inside the model", page.figures(drawn), lead=lead)]


def _loss_gradients(record: RunRecord) -> list[str]:
    """How hard the terms of a loss pull, for models with more than one."""
    norms: Mapping[str, float] = record.diagnostics.get("loss_gradients", {})
    if not norms:
        return []
    whole = norms["labels"]
    rows = [
        [name, _number(norm), "-" if whole == 0 else _number(norm / whole)]
        for name, norm in norms.items()
    ]
    table = page.table(["term", "gradient norm", "over that of the labels"], rows)
    lead = "Norm of each loss term's gradient over all weights, on one batch, without dropout."
    return [page.section("Loss terms", table, lead=lead)]


def _tables(record: RunRecord) -> list[str]:
    """Sizes of the embedding tables and how many of their directions carry something."""
    found = record.diagnostics.get("tables", [])
    if not found:
        return []
    rows = [
        [
            entry["table"],
            entry["module"],
            f"{entry['rows']:,}",
            str(entry["width"]),
            _number(entry["information_abundance"]),
        ]
        for entry in found
    ]
    table = page.table(["table", "of", "rows", "width", "information abundance"], rows)
    lead = (
        "Information abundance is the sum of a table's singular values over the largest: between 1 "
        "(all rows along one line) and the width."
    )
    return [page.section("Embedding tables", page.folded("all tables", table), lead=lead)]


def _slices(record: RunRecord) -> list[str]:
    parts = []
    for task, fields in record.diagnostics.get("slices", {}).items():
        for field, entries in fields.items():
            rows = [
                [
                    str(entry["value"]),
                    f"{entry['rows']:,}",
                    *(_number(entry[name]) for name in ("base_rate", "ne", "auc", "calibration")),
                ]
                for entry in entries
            ]
            columns = [field, "rows", "base rate", "NE", "AUC", "calibration"]
            parts.append(page.folded(f"{task} by {field}", page.table(columns, rows)))
    return parts


def _environment(record: RunRecord) -> str:
    run = record.run
    environment = run.get("environment", {})
    entries = {
        "dataset": run["dataset"]["fingerprint"][:16],
        "split": describe_split(run["dataset"].get("split", {})) or "unknown",
        "seed": run.get("seed"),
        "parameters": f"{run['parameters']['total']:,} ({run['parameters']['tables']:,} in tables)",
        "steps": f"{run['steps']:,}, weights of step {run['best_step']:,} kept",
        "training": f"{run['training_seconds']:.1f} s, {run['samples_per_second']:,.0f} rows/s",
        "peak memory": f"{run['peak_rss_bytes'] / 2**20:,.0f} MiB",
        "precision": run.get("precision"),
        **{name: environment[name] for name in environment},
    }
    return page.table(["", ""], [[name, str(value)] for name, value in entries.items()])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
