"""Progress bars and tables of the verbs that work long."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.cli.console import Session, number, print_table

if TYPE_CHECKING:
    from rich.progress import Progress

    from tamis.data.dataset import Dataset
    from tamis.data.ingest import Source
    from tamis.data.schema import Schema
    from tamis.data.splits import SplitConfig

_PHASES = {"times": "reading times", "fit": "fitting encoders", "encode": "encoding"}
_SECONDS_BETWEEN_DRAWINGS = 0.1
_FIELDS_SHOWN = 20
METRICS = ("ne", "log_loss", "auc", "gauc", "calibration", "ece")


@contextlib.contextmanager
def ingest_progress(current: Session) -> Iterator[Callable[[str, int], None]]:
    """A bar for each pass over the log; the number of rows is known after the first."""
    with current.progress() as progress:
        bars: dict[str, Any] = {}
        total: list[int] = []

        def draw(phase: str, rows: int) -> None:
            if phase not in bars:
                known = max(total) if bars and total else None
                bars[phase] = progress.add_task(_PHASES[phase], total=known, note="rows")
            total.append(rows)
            progress.update(bars[phase], completed=rows)

        yield draw


def ingest_with_bars(
    current: Session,
    source: "Source | Mapping[str, Source]",
    out: Path,
    *,
    schema: "Schema | Path | None" = None,
    split: "SplitConfig | None" = None,
    vectors: "Mapping[str, Path] | None" = None,
) -> "tuple[Dataset, list[str]]":
    """Call ``api.ingest`` under bars; the dataset, and warnings that are to be drawn below it."""
    from tamis import api

    warnings: list[str] = []
    with ingest_progress(current) as progress:
        dataset = api.ingest(
            source,
            out,
            schema=schema,
            split=split,
            vectors=vectors,
            progress=progress,
            on_warning=warnings.append,
        )
    return dataset, warnings


def draw_tasks(current: Session, dataset: "Dataset") -> None:
    """The labels that models learn, and how often or how much each is in the training rows."""
    rates = dataset.manifest["report"]["label_rates"]
    for task in dataset.schema.tasks:
        what = "mean" if task.kind == "regression" else "base rate"
        where = f" of rows with {task.observed_when} = 1" if task.observed_when else ""
        current.say(
            f"label {task.name} ({task.kind}): {what} {number(rates.get(task.name))} in training"
            f"{where}"
        )


def draw_ingest(current: Session, dataset: "Dataset") -> None:
    """The labels, and what was met in each field."""
    draw_tasks(current, dataset)
    report = dataset.manifest["report"]
    sizes = dataset.spec.num_rows_by_table
    rows = []
    for item in dataset.schema.fields:
        counts = report["fields"].get(item.name, {})
        total = max(1, counts.get("rows", 0))
        rows.append(
            [
                item.name,
                item.kind,
                f"{sizes[item.name]:,}" if item.name in sizes else item.shares or "-",
                f"{counts.get('missing', 0) / total:.2%}",
                f"{counts.get('unknown', 0) / total:.2%}",
                f"{counts.get('clipped', 0):,}",
            ]
        )
    columns = ["field", "kind", "table rows", "missing", "unknown", "clipped"]
    print_table(current, title="Fields", columns=columns, rows=rows)
    lengths = {item.name: item.max_length for item in dataset.schema.fields}
    for name, counts in report["fields"].items():
        if shortened := counts.get("shortened", 0):
            current.say(
                f"{name}: in {shortened:,} of {report['rows']:,} rows longer than "
                f"{lengths[name]}, of which the last {lengths[name]} are kept; max_length in the "
                f"schema keeps more"
            )
    if report["times_out_of_order"]:
        current.say(
            f"{report['times_out_of_order']:,} rows are earlier than the row before them; splits "
            f"by time are right all the same"
        )


def draw_split(current: Session, dataset: "Dataset") -> None:
    """How the rows were split."""
    from tamis.reports.record import describe_split

    current.say(f"split {describe_split(dataset.manifest['split'])}")


def draw_warnings(current: Session, warnings: Sequence[str]) -> None:
    """What a person should look at, such as in an inferred schema."""
    for warning in warnings:
        draw_warning(current, warning)


def draw_warning(current: Session, warning: str) -> None:
    """One thing that a person should look at."""
    current.say(f"warning: {warning}", style="yellow")


def draw_repairs(current: Session, fields: Mapping[str, Mapping[str, int]]) -> None:
    """What encoding met in the fields of new rows; fields as the training knew them are left out.

    Args:
        current: The command.
        fields: By field: ``rows``, ``missing``, ``unknown`` and ``clipped``.
    """
    kinds = ("missing", "unknown", "clipped")
    found = {name: n for name, n in fields.items() if any(n[kind] for kind in kinds)}
    if not found:
        current.say("no value was missing, unknown or out of range")
        return
    worst = sorted(found, key=lambda name: -sum(found[name][kind] for kind in kinds))
    rows = []
    for name in worst[:_FIELDS_SHOWN]:
        total = max(1, found[name]["rows"])
        cells = [f"{found[name][k]:,} ({found[name][k] / total:.1%})" for k in kinds]
        rows.append([name, f"{total:,}", *cells])
    title = "Values that were missing, unknown or out of range, replaced as in training"
    print_table(current, title=title, columns=["field", "values", *kinds], rows=rows)
    if len(found) > _FIELDS_SHOWN:
        current.say(f"and {len(found) - _FIELDS_SHOWN:,} more fields; --json has them all")


class TrainingDisplay:
    """Draws a training: a bar, and a line for each evaluation."""

    def __init__(self, current: Session, progress: "Progress") -> None:
        """Draw into an open progress display."""
        self._current, self._progress = current, progress
        self._bar = progress.add_task("steps", total=None, note="")
        self._drawn = 0.0
        self._rate = 0.0

    def on_message(self, text: str) -> None:
        """Print a message."""
        self._current.say(text)

    def on_warning(self, text: str) -> None:
        """Print a warning."""
        draw_warning(self._current, text)

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
        """Move the bar, a few times a second at most."""
        self._rate = 0.9 * self._rate + 0.1 * rows_per_second if self._rate else rows_per_second
        now = time.monotonic()
        if now - self._drawn < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._drawn = now
        note = f"{self._rate:,.0f} rows/s"
        self._progress.update(self._bar, completed=step, total=total_steps, note=note)

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """Print one line of metrics."""
        parts = [f"step {record['step']:>6,}  loss {record['train_loss']:.4f}"]
        for task, metrics in record["valid"].items():
            name = "ne" if "ne" in metrics else "rmse"
            auc = f" auc {number(metrics.get('auc'))}" if "auc" in metrics else ""
            # There only where it is monitored.
            gauc = f" gauc {number(metrics['gauc'])}" if metrics.get("gauc") is not None else ""
            parts.append(f"{task}: {name} {number(metrics[name])}{auc}{gauc}")
        mark = "  best so far" if record["is_best"] else ""
        self._current.say("  ".join(parts) + mark)


def draw_metrics(current: Session, record: Mapping[str, Any], *, title: str) -> None:
    """Metrics by split and task, and on the market what the true probabilities reach."""
    rows = []
    for split, tasks in record["metrics"].items():
        for task, metrics in tasks.items():
            if "rmse" in metrics:
                rows.append([f"{split} {task}", f"{metrics['rows']:,}", *(["-"] * 6), "-"])
                continue
            gap = record.get("ne_gap", {}).get(split, {}).get(task)
            cells = [number(metrics.get(name)) for name in METRICS]
            rows.append([f"{split} {task}", f"{metrics['rows']:,}", *cells, number(gap)])
    columns = ["split and task", "rows", "NE", "log loss", "AUC", "GAUC", "calib.", "ECE", "gap"]
    if all(row[-1] == "-" for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(current, title=title, columns=columns, rows=rows)
    for split, tasks in record["metrics"].items():
        for task, metrics in tasks.items():
            if "rmse" in metrics:
                fit = f", R2 {number(metrics['r2'])}" if "r2" in metrics else ""
                current.say(f"{split} {task}: RMSE {number(metrics['rmse'])}{fit}")
    if record.get("ne_gap"):
        current.say("gap: NE above that of the true probabilities, the best reachable")
