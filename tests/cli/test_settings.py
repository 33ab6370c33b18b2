"""What a recipe may set, told by the command line."""

import json
import tomllib
from collections.abc import Callable

import pytest
from typer.testing import Result

from tamis import api
from tamis.training.config import run_config_from_table


@pytest.mark.parametrize("model", api.models())
def test_printed_recipe_is_that_of_all_defaults(model: str, tamis: Callable[..., Result]) -> None:
    recipe = tamis("settings", model).output

    defaults = run_config_from_table({"model": {"name": model}})
    assert run_config_from_table(tomllib.loads(recipe)) == defaults
    for table in api.settings_of(model).values():
        for setting in table:
            assert setting.meaning
            assert f"{setting.name} =" in recipe


def test_settings_are_listed_with_choices(tamis: Callable[..., Result]) -> None:
    result = tamis("settings", "hsnn", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["settings"]
    by_name = {item["name"]: item for item in found["model"]}
    assert by_name["index_learning"]["choices"] == ['"lti"', '"em"', '"sil"']
    assert by_name["codebooks"]["default"] == "[32, 8]"
    assert by_name["levels.user_tokens"]["meaning"]
    assert {item["name"] for item in found["training"]} >= {"seed", "batch_size", "patience"}


def test_models_are_named(tamis: Callable[..., Result]) -> None:
    lines = tamis("settings").output.splitlines()

    assert [line.split()[0] for line in lines] == list(api.models())
    assert all(len(line.split()) > 2 for line in lines)


def test_unknown_model_is_refused(tamis: Callable[..., Result]) -> None:
    result = tamis("settings", "dhne")

    assert result.exit_code == 2
    assert "Did you mean 'dhen'?" in result.output
