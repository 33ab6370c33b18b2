"""Every table can be made: its recipes are there, and are recipes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tamis import config
from tamis.reproduce.make import check_recipes
from tamis.reproduce.result_table import ResultTable
from tamis.reproduce.tables import GROUPS, TABLES
from tamis.training.config import read_run_config

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


def test_recipes_that_are_said_to_be_untuned_are_first_trials() -> None:
    draw = _spaces().draw
    for path in _RECIPES.glob("*/*.toml"):
        if path.read_text().startswith(_UNTUNED):
            assert config.read_toml(path) == draw(path.stem, path.parent.name, 0)
            assert not (path.parent / "tuning.json").exists()


def test_groups_hold_tables() -> None:
    assert {name for names in GROUPS.values() for name in names} <= set(TABLES)
    assert all(GROUPS.values())
