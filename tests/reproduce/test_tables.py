"""Every table can be made: its recipes are there, and are recipes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tamis import config
from tamis.reproduce.early.boosted import BoostedConfig
from tamis.reproduce.early.trained import settings_of
from tamis.reproduce.early.variants import VARIANTS, EarlyTable, recipes_of
from tamis.reproduce.make import check_recipes
from tamis.reproduce.result_table import ResultTable
from tamis.reproduce.tables import GROUPS, TABLES
from tamis.training.config import read_run_config, run_config_from_table

_RECIPES = Path(__file__).parents[2] / "recipes"
_UNTUNED = "# Untuned: the first trial of recipes/tune.py.\n"


def _spaces() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spaces", _RECIPES / "spaces.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_all_of_its_recipes(name: str) -> None:
    check_recipes(name, _RECIPES)

    table = TABLES[name]
    if isinstance(table, ResultTable):
        for model in table.models:
            recipe = read_run_config(_RECIPES / (table.recipes or name) / f"{model}.toml")
            assert set(recipe.training.monitor_tasks) <= set(table.tasks)


@pytest.mark.parametrize("name", [n for n, t in TABLES.items() if isinstance(t, EarlyTable)])
def test_recipes_of_early_stages_are_read_before_a_cascade_is_made(name: str) -> None:
    names = {each for variant in VARIANTS.values() for each in recipes_of(variant)}
    for each in (*names, "teacher", "incumbent"):
        recipe = config.read_toml(_RECIPES / name / f"{each}.toml")
        if each.startswith("lightgbm"):
            config.from_table(BoostedConfig, recipe)
        else:
            run_config_from_table(settings_of(recipe))


def test_rounds_train_by_the_recipe_that_was_chosen_on_their_market() -> None:
    market, rounds = (
        config.read_toml(_RECIPES / f"early-stage-{name}" / "early_stage.toml")
        for name in ("market", "rounds")
    )
    assert market == rounds


def test_recipes_that_are_said_to_be_untuned_are_first_trials() -> None:
    draw = _spaces().draw
    for path in _RECIPES.glob("*/*.toml"):
        if path.read_text().startswith(_UNTUNED):
            assert config.read_toml(path) == draw(path.stem, path.parent.name, 0)
            assert not (path.parent / "tuning.json").exists()


def test_groups_hold_tables() -> None:
    assert {name for names in GROUPS.values() for name in names} <= set(TABLES)
    assert all(GROUPS.values())
