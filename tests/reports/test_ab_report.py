"""The page of an A/B test, from its record alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamis.reports.ab_report import (
    METRICS,
    difference_table,
    fallback_table,
    loss_table,
    render,
    unjudged,
    verdict,
    write_ab_test,
)


def _difference(**changes: Any) -> dict[str, Any]:
    return {
        "control": {"value": 0.4, "lower": 0.3},
        "treatment": {"value": 0.5},
        "difference": 0.1,
        "lower": 0.05,
        "upper": 0.15,
        "p_value": 0.00321,
        "is_significant": True,
        "lift": 0.25,
        "lift_lower": 0.125,
        "lift_upper": 0.375,
        **changes,
    }


def _losses(*lost: float) -> dict[str, Any]:
    names = ("known", "retrieval", "auction")
    return {
        "requests": 40,
        "regret": {"value": sum(lost)},
        "stages": [
            {"stage": name, "died": {"value": 0.5 * value}, "lost": {"value": value}}
            for name, value in zip(names, lost, strict=True)
        ],
    }


def _record(**changes: Any) -> dict[str, Any]:
    looks = {"days": [1, 2], "lower": [-0.1, 0.02], "upper": [0.3, 0.2], "stopped_on": 2}
    return {
        "arms": {
            "control": {"name": "old <1>", "release": "0123456789abcdef" * 4, "fallbacks": []},
            "treatment": {"name": "new", "release": "fedcba9876543210" * 4, "fallbacks": []},
        },
        "rows": 60_000,
        "seed": 3,
        "first_day": 10,
        "days": 4,
        "sample_ratio": {
            "control_users": 1200,
            "treated_users": 1210,
            "treated_share": 0.5,
            "p_value": 0.84,
            "is_mismatch": False,
        },
        "differences": {name: _difference() for name in METRICS},
        "guarded": {"click_rate": looks, "hide_rate": None},
        "losses": {"control": None, "treatment": _losses(0.0, 0.3, 0.1)},
        **changes,
    }


def test_tables_hold_the_numbers_of_the_record() -> None:
    columns, rows = difference_table(_record())
    assert columns == ["metric", "control", "treatment", "difference", "lift", "p"]
    assert rows[0] == [
        "total value a request", "0.4", "0.5", "+0.1 [+0.05, +0.15]", "+25.0%", "0.0032",
    ]  # fmt: skip
    assert len(rows) == len(METRICS)
    assert loss_table(_record())[1] == [
        ["treatment", "retrieval", "15.0%", "0.3", "75%"],
        ["treatment", "auction", "5.0%", "0.1", "25%"],
    ]
    assert loss_table(_record(losses={"control": None, "treatment": None}))[1] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"lift": None, "lift_lower": None, "lift_upper": None},
        # A lift over next to nothing is any number.
        {"control": {"value": 0.001, "lower": -0.2}, "lift": 267.0},
    ],
)
def test_lift_over_nothing_is_left_out_and_the_difference_stays(changes: dict[str, Any]) -> None:
    record = _record(differences={name: _difference(**changes) for name in METRICS})

    assert difference_table(record)[1][0][3:5] == ["+0.1 [+0.05, +0.15]", "-"]
    assert "from +0.05 to +0.15; lift -" in render(record)


def test_difference_without_an_error_has_neither_interval_nor_verdict() -> None:
    unknown = dict.fromkeys(("lower", "upper", "p_value", "lift", "lift_lower", "lift_upper"))
    found = _difference(**unknown, is_significant=False)
    record = _record(differences=dict.fromkeys(METRICS, found))

    assert difference_table(record)[1][0][3:] == ["+0.1", "-", "-"]
    assert "interval not known; lift -" in render(record)
    assert verdict(record) == "too few events to compare total value a request"


def test_metric_that_could_not_be_compared_is_left_out() -> None:
    differences = {name: _difference() for name in METRICS if name != "conversion_rate"}

    rows = difference_table(_record(differences=differences))[1]

    assert len(rows) == len(METRICS) - 1


def test_answers_that_a_stage_did_not_order_are_told() -> None:
    record = _record()
    record["arms"]["treatment"]["fallbacks"] = [
        {"stage": "early", "reason": "RuntimeError: <x>", "requests": 1234}
    ]

    assert fallback_table(record)[1] == [["treatment", "early", "RuntimeError: <x>", "1,234"]]
    assert "RuntimeError: &lt;x&gt;" in render(record)
    assert fallback_table(_record())[1] == []


def test_why_losses_are_not_known_stands_on_the_page() -> None:
    assert "Too few requests of control were asked" in render(_record())
    neither = _record(losses={"control": None, "treatment": None})
    assert "Too few requests of control and treatment were asked" in render(neither)
    assert (
        unjudged(_record(losses={arm: _losses(0, 1, 1) for arm in ("control", "treatment")})) == ""
    )


def test_looks_that_contradict_each_other_are_not_drawn() -> None:
    looks = {
        "days": [3, 4, 5], "lower": [0.1, 0.15, 0.3], "upper": [0.5, 0.4, 0.2], "stopped_on": 3
    }  # fmt: skip

    text = render(_record(guarded={"click_rate": looks}))

    assert "decided on day 3; the days after 4 contradict" in text
    assert "Too few events for total value a user, conversions a click, hides" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "new earns more total value a request than old <1>"),
        ({"difference": -0.1}, "new earns less total value a request than old <1>"),
        ({"is_significant": False}, "no certain difference in total value a request"),
    ],
)
def test_verdict_is_of_total_value(changes: dict[str, Any], said: str) -> None:
    differences = {name: _difference() for name in METRICS}
    differences["value_per_request"] |= changes

    assert verdict(_record(differences=differences)) == said


def test_arms_of_another_size_than_planned_are_not_believed() -> None:
    ratio = {**_record()["sample_ratio"], "is_mismatch": True}

    assert "trust no difference" in verdict(_record(sample_ratio=ratio))


def test_page_names_both_arms_and_draws_each_metric_that_was_looked_at(tmp_path: Path) -> None:
    write_ab_test(_record(), tmp_path)

    assert json.loads((tmp_path / "ab-test.json").read_text()) == _record()
    text = (tmp_path / "report.html").read_text()
    assert "A/B test: new against old &lt;1&gt;" in text
    assert text.count("<svg") == 1
    assert "decided on day 2" in text
    assert "old <1>" not in text
