"""The page of a replay, from its record alone."""

import json
from pathlib import Path
from typing import Any

from tamis.reports.replay_report import (
    head_table,
    kept_table,
    level_table,
    render,
    stage_table,
    write_replay,
)

_MEASURES = ("recall", "soft_recall", "value_kept", "regret")


def _stage(name: str, count: float, kept: tuple[float | None, ...], **changes: Any) -> dict:
    measures = dict(zip(_MEASURES, kept, strict=True))
    return {
        "name": name,
        "candidates_in": 5000.0,
        "candidates_out": count,
        "latency_ms": {"p50": 1.25, "p95": 2.5, "p99": 3.75},
        "cache_lookups": 0,
        "cache_hits": 0,
        "fallbacks": {},
        "measures": measures,
        "levels": [],
        "measures_by_value": {name: None if v is None else v / 2 for name, v in measures.items()},
        **changes,
    }


def _record(**changes: Any) -> dict[str, Any]:
    late = {"took longer than 20 ms": 3, "RuntimeError: <b>": 1}
    return {
        "release": "abcdef0123456789" * 4,
        "dataset": "9876543210fedcba" * 4,
        "split": "test",
        "budgets": {"early": {"kind": "early", "keep": 60, "budget_ms": 20.0}},
        "unknown_impressions": 137,
        "requests": 1200,
        "compared": 300,
        "scope": "all",
        "requests_per_second": 321.7,
        "latency_ms": {"p50": 4.5, "p95": 6.5, "p99": 8.5},
        "slate_value": 0.0375,
        "slate_revenue": 0.03125,
        "stages": [
            _stage("early", 60.0, (0.5, 0.75, 0.875, 0.0625), cache_lookups=8, cache_hits=2,
                   fallbacks=late),
            _stage("auction", 3.96, (0.25, 0.5, 0.8, None)),
        ],
        "heads": {
            "early": {
                "click": {"rows": 2000, "base_rate": 0.05, "log_loss": 0.19, "ne": 0.93},
                "hide": {"rows": 0, "base_rate": None, "log_loss": None, "ne": None},
            }
        },
        **changes,
    }  # fmt: skip


def test_tables_hold_the_numbers_of_the_record() -> None:
    assert stage_table(_record())[1] == [
        ["early", "5,000", "60", "20 ms", "1.25", "2.5", "3.75", "25.0%", "4"],
        ["auction", "5,000", "3.96", "-", "1.25", "2.5", "3.75", "-", "0"],
    ]
    columns, rows = kept_table(_record())
    assert columns == ["stage", "recall", "soft recall", "value kept", "regret"]
    assert rows == [
        ["early", "50.00%", "75.00%", "87.50%", "6.25%"],
        ["auction", "25.00%", "50.00%", "80.00%", "-"],
    ]
    assert kept_table(_record(), by_value=True)[1][0][1:3] == ["25.00%", "37.50%"]
    assert head_table(_record())[1] == [
        ["early click", "2,000", "0.0500", "0.1900", "0.9300"],
        ["early hide", "0", "-", "-", "-"],
    ]


def test_page_shows_funnel_tables_and_fallbacks() -> None:
    page = render(_record())

    assert "1,200 requests of the split test, 300 of them compared on every candidate" in page
    assert "release abcdef012345, dataset 9876543210fe" in page
    for text in ("<svg", "6.25%", "0.9300", "322", "80.00%", "4.5 ms"):
        assert text in page
    assert "137 impressions of ads that the bundle does not have are left out" in page
    assert "RuntimeError: &lt;b&gt;" in page
    assert "<b>" not in page


def test_page_of_a_replay_that_compared_nothing_has_no_such_tables() -> None:
    stages = [_stage("popular", 9.0, (None,) * 4)]
    record = _record(
        compared=0, scope=None, stages=stages, heads={}, slate_value=None,
        slate_revenue=None, requests_per_second=None,
    )  # fmt: skip

    page = render(record)

    assert kept_table(record)[1] == []
    assert "What is kept" not in page
    assert "value kept in the end" not in page
    assert "Predictions" not in page
    assert "compared" not in page
    assert "<svg" in page


def test_files_hold_the_record_and_its_page(tmp_path: Path) -> None:
    write_replay(_record(), tmp_path / "replay")

    assert json.loads((tmp_path / "replay" / "replay.json").read_text()) == _record()
    assert (tmp_path / "replay" / "report.html").read_text() == render(_record())


def test_levels_of_an_index_are_told_one_by_one() -> None:
    levels = [
        {"nodes": 32.0, "pairs": 30.5, "kept": 8.0, "flops": 1.5e6},
        {"nodes": 1600.0, "pairs": 410.25, "kept": 100.0, "flops": 2e6},
    ]
    record = _record()
    record["stages"][0]["levels"] = levels

    columns, rows = level_table(record)

    assert columns == ["stage and level", "there", "scored", "kept", "operations"]
    assert rows == [
        ["early, level 1", "32", "30", "8", "1,500,000"],
        ["early, ads", "1,600", "410", "100", "2,000,000"],
    ]
    assert "Search of the index" in render(record)
    assert "410" in render(record)
    assert "Search of the index" not in render(_record())
