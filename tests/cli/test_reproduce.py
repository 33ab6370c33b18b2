"""``tamis reproduce``: a real table of a small market, and a group of tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tamis.reproduce import make, tables
from tamis.reproduce.make import MadeTable
from tamis.reproduce.result_table import Comparison, ResultTable


def _table(name: str) -> ResultTable:
    return ResultTable(
        name=name,
        dataset="market:3000",
        models=("lr", "fm"),
        tasks=("click", "hide"),
        comparisons=(Comparison(better="fm", worse="lr", metric="auc", task="hide"),),
        seeds=2,
    )


@pytest.mark.slow
def test_group_makes_its_tables_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make, "TABLES", {name: _table(name) for name in ("one", "two")})
    monkeypatch.setattr(tables, "GROUPS", {"both": ("one", "two")})
    for name in ("one", "two"):
        Path("recipes", name).mkdir(parents=True)
        for model in ("lr", "fm"):
            Path("recipes", name, f"{model}.toml").write_text(
                f'[model]\nname = "{model}"\n[training]\nmax_epochs = 1\n'
                f'monitor_tasks = ["click", "hide"]\n'
            )

    made = tamis_json("reproduce", "both")["tables"]

    assert list(made) == ["one", "two"]
    payload = json.loads(Path("results", "two.json").read_text())
    assert payload["complete"]
    assert [(row["model"], row["seed"]) for row in payload["rows"]] == [
        *(("lr", 0), ("fm", 0), ("lr", 1), ("fm", 1)),
    ]
    row = payload["rows"][0]
    assert row["other_tasks"]["hide"]["auc"] != row["metrics"]["auc"]
    assert made["two"]["claims"][0]["claim"] == "fm has a higher AUC on hide than lr"
    page = Path("results", "two.md").read_text()
    assert "| model | AUC click | AUC hide | parameters | dense |" in page


@pytest.mark.parametrize("is_check", [True, False])
def test_a_check_that_does_not_hold_is_told_by_the_exit_status_and_the_table_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tamis: Callable[..., Result],
    is_check: bool,
) -> None:
    claim = {
        "claim": "sums add up",
        "holds": False,
        "estimate": 2.0,
        "interval": None,
        "is_check": is_check,
    }
    table = MadeTable(
        path=tmp_path / "one.json", columns=["model"], display_rows=[["lr"]], claims=[claim]
    )
    monkeypatch.setattr(make, "check_recipes", lambda *_: None)
    monkeypatch.setattr(make, "make_table", lambda *_, **__: table)

    found = tamis("reproduce", "one", "--json")

    assert found.exit_code == int(is_check)
    told = json.loads(found.stdout)
    assert told["ok"] is not is_check
    assert told["claims"] == [claim]
    assert told["failed_checks"] == (["sums add up"] if is_check else [])
    assert ("every check must hold, got 1 that failed" in found.stderr) == is_check
    assert ("one: sums add up" in found.stderr) == is_check


def test_claims_are_printed_with_their_figures_within_100_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamis: Callable[..., Result]
) -> None:
    better = "adatt has a higher AUC on education than ml_mmoe"
    published = (
        "ple: mean test AUC on education within 0.005 of 0.8683 (AdaTT, table 5, "
        "6 experts of 128-64, mean of 100 runs)"
    )
    claims = [
        {"claim": better, "estimate": 0.00507, "interval": [0.00211, 0.00804], "holds": True},
        {"claim": published, "estimate": 0.01119, "interval": None, "holds": False},
    ]
    table = MadeTable(
        path=tmp_path / "one.json", columns=["model"], display_rows=[["lr"]], claims=claims
    )
    monkeypatch.setattr(make, "check_recipes", lambda *_: None)
    monkeypatch.setattr(make, "make_table", lambda *_, **__: table)

    lines = tamis("reproduce", "one").stdout.splitlines()

    assert f"holds, +0.00507 [+0.00211, +0.00804]: {better}" in lines
    first = next(place for place, line in enumerate(lines) if "DOES NOT HOLD" in line)
    told = " ".join(line.strip() for line in lines[first : first + 2])
    assert told == f"DOES NOT HOLD, +0.01119: {published}"
    assert max(map(len, lines)) <= 100


def test_levels_of_indexes_are_printed_below_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamis: Callable[..., Result]
) -> None:
    table = MadeTable(
        path=tmp_path / "one.json",
        columns=["row"],
        display_rows=[["hsnn-2"]],
        claims=[],
        levels=(["row", "level"], [["hsnn-2", "items"]]),
    )
    monkeypatch.setattr(make, "check_recipes", lambda *_: None)
    monkeypatch.setattr(make, "make_table", lambda *_, **__: table)

    printed = tamis("reproduce", "one").output

    assert printed.index("Table one") < printed.index("Levels of one") < printed.index("items")
