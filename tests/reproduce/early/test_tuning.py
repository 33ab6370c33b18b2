"""How recipes of early stages are chosen: the same trials for all, and the best one is written."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tamis import artifacts, config
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.variants import EarlyTable, early_tables
from tamis.reproduce.runner import Cell

_RECIPES = Path(__file__).parents[3] / "recipes"
TABLE = "early-stage-market"


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(_RECIPES))
    return importlib.import_module("tune_early")


@pytest.fixture
def incumbent() -> dict[str, Any]:
    return config.read_toml(_RECIPES / TABLE / "incumbent.toml")


def test_networks_of_every_kind_make_the_same_trials(
    tune: ModuleType, incumbent: dict[str, Any]
) -> None:
    full, each, labels = (
        tune.trials_of(TABLE, name, incumbent)
        for name in ("early_stage", "one_model_each", "labels_alone")
    )
    assert full == each
    assert labels[0] == incumbent
    for alone, distilled in zip(labels, full, strict=True):
        assert distilled == {**alone, "distillation": {"weight": 10.0}}
    trees = tune.trials_of(TABLE, "lightgbm", incumbent)
    for trials in (full, trees):
        assert len({json.dumps(trial, sort_keys=True) for trial in trials}) == tune.TRIALS
        # No model is larger than another: what is drawn decides how it is trained.
        assert all(trial.keys() >= trials[0].keys() for trial in trials)


def test_the_best_trial_is_written_and_no_trial_is_made_twice(
    tune: ModuleType,
    incumbent: dict[str, Any],
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes = tmp_path / "recipes" / TABLE
    artifacts.write_text(recipes / "incumbent.toml", config.write_toml(incumbent))
    asked: list[Path] = []

    def recall(recipe: dict[str, Any]) -> float:
        """More passes, chained and distilled with 30 is best."""
        model, weight = recipe["model"], recipe["distillation"]["weight"]
        return float(
            recipe["training"]["max_epochs"] + model.get("chain", False) - abs(weight - 30) / 100
        )

    def run_cells(cells: list[Cell], *, on_done: Any, **_: Any) -> None:
        for cell in cells:
            asked.append(cell.run)
            on_done(cell)

    def make_row(run: Path) -> dict[str, Any]:
        found = recall(config.read_toml(run / "early_stage.toml"))
        return {"metrics": {"soft_recall": found, "hard_recall": 1.0, "ndcg": 1.0}}

    monkeypatch.setattr(tune, "run_cells", run_cells)
    monkeypatch.setattr(tune, "make_row", make_row)
    table = next(table for table in early_tables() if table.name == TABLE)
    assert isinstance(table, EarlyTable)

    def choose() -> dict[str, Any]:
        tuning = tune.Tuning(table, recipes, study.folder, tmp_path / "work")
        found: dict[str, Any] = tuning.choose(tune.FULL, workers=1)
        return found

    best = choose()["recipe"]
    assert (best["training"]["max_epochs"], best["model"]["chain"]) == (6, True)
    assert best["distillation"] == {"weight": 30.0}
    assert config.read_toml(recipes / "early_stage.toml") == best
    assert config.read_toml(recipes.parent / "early-stage-rounds" / "early_stage.toml") == best
    assert len(asked) == tune.TRIALS + 3
    choose()
    assert len(asked) == tune.TRIALS + 3
