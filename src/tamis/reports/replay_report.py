"""The page of a replayed funnel, from the record of the replay alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamis import artifacts
from tamis.reports import page
from tamis.reports.narrowing import narrowing

MEASURES = {
    "recall": "recall",
    "soft_recall": "soft recall",
    "value_kept": "value kept",
    "regret": "regret",
}
"""Headings of what a stage keeps, by measure."""
_KEPT_LEAD = (
    "Against the last stage's total value of every candidate, mean over requests. Recall: share of "
    "the most valuable ads that is kept. Soft recall: value of what is kept over that of as many "
    "best ads. Value kept: what later stages can still reach. Regret: share of the best ad's value "
    "that this stage loses."
)


def write_replay(record: Mapping[str, Any], folder: Path) -> None:
    """Write ``replay.json`` and its page ``report.html``.

    Args:
        record: Of ``replay_bundle``.
        folder: Made where it does not exist.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    artifacts.write_json(folder / "replay.json", record)
    artifacts.write_text(folder / "report.html", render(record))


def render(record: Mapping[str, Any]) -> str:
    """The page as HTML."""
    compared = ""
    if record["compared"]:
        scope = {"all": "every candidate", "first": "what the first stage kept"}[record["scope"]]
        compared = f", {record['compared']:,} of them compared on {scope}"
    return page.page(
        title="A replayed funnel",
        subtitle=(
            f"{record['requests']:,} requests of the split {record['split']}{compared}; "
            f"release {record['release'][:12]}, dataset {record['dataset'][:12]}"
        ),
        sections=[
            page.cards(_headline(record)),
            page.section("Narrowing", page.figures([narrowing(record)])),
            page.section("Stages", page.table(*stage_table(record))),
            *_index_section(record),
            page.section("What is kept", page.table(*kept_table(record)), lead=_KEPT_LEAD),
            page.section(
                "What is kept, by value",
                page.table(*kept_table(record, by_value=True)),
                lead="The same, with every request weighed by the value of its candidates.",
            ),
            page.section("Predictions", page.table(*head_table(record)), lead=_heads_lead(record)),
            page.section("Fallbacks", page.table(*_fallback_table(record))),
        ],
    )


def stage_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: candidates, cost and latency of each stage."""
    columns = ["stage", "in", "out", "budget", "p50 ms", "p95 ms", "p99 ms", "cached", "fell back"]
    rows = []
    for stage in record["stages"]:
        budget = record["budgets"].get(stage["name"], {}).get("budget_ms")
        latency, lookups = stage["latency_ms"], stage["cache_lookups"]
        rows.append(
            [
                stage["name"],
                _count(stage["candidates_in"]),
                _count(stage["candidates_out"]),
                "-" if budget is None else f"{budget:g} ms",
                *(f"{latency[name]:.3g}" for name in ("p50", "p95", "p99")),
                f"{stage['cache_hits'] / lookups:.1%}" if lookups else "-",
                f"{sum(stage['fallbacks'].values()):,}",
            ]
        )
    return columns, rows


def level_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what searching an index cost on each level; no rows without an index."""
    rows = []
    for stage in record["stages"]:
        levels = stage["levels"]
        for place, level in enumerate(levels, start=1):
            what = "ads" if place == len(levels) else f"level {place}"
            numbers = [_count(level[name]) for name in ("nodes", "pairs", "kept", "flops")]
            rows.append([f"{stage['name']}, {what}", *numbers])
    return ["stage and level", "there", "scored", "kept", "operations"], rows


def kept_table(
    record: Mapping[str, Any], *, by_value: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what each stage keeps; no rows where nothing was compared."""
    if not record["compared"]:
        return ["stage", *MEASURES.values()], []
    key = "measures_by_value" if by_value else "measures"
    rows = [
        [stage["name"], *(_share(stage[key].get(name)) for name in MEASURES)]
        for stage in record["stages"]
    ]
    return ["stage", *MEASURES.values()], rows


def head_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each model's binary tasks on the impressions of the log."""
    rows = [
        [
            f"{model} {task}",
            f"{loss['rows']:,}",
            *(
                "-" if loss[n] is None else f"{loss[n]:.4f}"
                for n in ("base_rate", "log_loss", "ne")
            ),
        ]
        for model, tasks in record["heads"].items()
        for task, loss in tasks.items()
    ]
    return ["stage and task", "impressions", "base rate", "log loss", "NE"], rows


def _index_section(record: Mapping[str, Any]) -> list[str]:
    columns, rows = level_table(record)
    if not rows:
        return []
    lead = (
        "Mean of a request. On each level of the index only the children of nodes that were kept "
        "are scored, and of the ads only those under the last ones. Operations are modelled."
    )
    return [page.section("Search of the index", page.table(columns, rows), lead=lead)]


def _headline(record: Mapping[str, Any]) -> list[page.Card]:
    latency, rate = record["latency_ms"], record["requests_per_second"]
    found = [
        page.Card(
            name="a request, median",
            value=f"{latency['p50']:.3g} ms",
            note=f"p95 {latency['p95']:.3g}, p99 {latency['p99']:.3g}",
        ),
        page.Card(
            name="requests a second",
            value="-" if rate is None else f"{rate:,.0f}",
            note="one after another",
        ),
    ]
    if record["compared"]:
        last = record["stages"][-1]["measures"]
        found.append(page.Card(name="value kept in the end", value=_share(last["value_kept"])))
        regrets = [stage["measures"]["regret"] for stage in record["stages"]]
        known = [regret for regret in regrets if regret is not None]
        found.append(page.Card(name="regret of all stages", value=_share(sum(known))))
    if record["slate_value"] is not None:
        found.append(
            page.Card(
                name="value of a slate",
                value=f"{record['slate_value']:.4g}",
                note=f"expected revenue {record['slate_revenue']:.4g}",
            )
        )
    return found


def _heads_lead(record: Mapping[str, Any]) -> str:
    lead = "On every impression of the log, whether or not the funnel would have let it through."
    if unknown := record["unknown_impressions"]:
        lead += f" {unknown:,} impressions of ads that the bundle does not have are left out."
    return lead


def _fallback_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [stage["name"], reason, f"{count:,}"]
        for stage in record["stages"]
        for reason, count in stage["fallbacks"].items()
    ]
    return ["stage", "reason", "requests"], rows


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
