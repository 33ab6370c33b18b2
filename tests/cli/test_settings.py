"""What a recipe may set, told by the command line."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tamis import api
from tamis.training.config import run_config_from_table


@pytest.mark.parametrize("model", api.models())
def test_printed_recipe_holds_every_setting_at_its_default(
    model: str, tamis: Callable[..., Result]
) -> None:
    recipe = tamis("settings", model).output

    defaults = run_config_from_table({"model": {"name": model}}).to_table()
    found = tomllib.loads(recipe)
    for name, table in api.settings_of(model).items():
        for setting in table:
            outer, _, key = setting.name.rpartition(".")
            assert setting.meaning
            assert re.search(rf"^(# )?{key} =", recipe, flags=re.M)
            if setting.default and not outer:
                assert key in found[name]
            elif outer:
                assert f"# [[{name}.{outer}]]" in recipe
    assert run_config_from_table(found).to_table() == defaults


def test_settings_are_listed_with_choices(tamis: Callable[..., Result]) -> None:
    result = tamis("settings", "hsnn", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["settings"]
    by_name = {item["name"]: item for item in found["model"]}
    assert by_name["index_learning"]["choices"] == ['"lti"', '"em"', '"sil"']
    assert by_name["codebooks"]["default"] == "[32, 8]"
    assert by_name["levels.user_tokens"]["default"] == "8"
    assert '"attention"' in by_name["levels.modules"]["choices"]
    assert {item["name"] for item in found["training"]} >= {"seed", "batch_size", "patience"}


def test_printed_recipe_trains_as_no_recipe_does(world: Path, tamis: Callable[..., Result]) -> None:
    Path("lr.toml").write_text(tamis("settings", "lr").output)

    one_epoch = ("--set", "training.max_epochs=1", "--no-report")
    for run, model in (("by-name", ("--model", "lr")), ("by-recipe", ("--recipe", "lr.toml"))):
        result = tamis("train", "d", *model, "--run", run, *one_epoch)
        assert result.exit_code == 0, result.output

    # The batch size follows from the rows, so that no one default can be printed.
    assert Path("by-recipe/config.toml").read_text() == Path("by-name/config.toml").read_text()


def test_models_are_named(tamis: Callable[..., Result]) -> None:
    lines = tamis("settings").output.splitlines()

    assert [line.split()[0] for line in lines] == list(api.models())
    assert all(len(line.split()) > 2 for line in lines)


def test_unknown_model_is_refused(tamis: Callable[..., Result]) -> None:
    result = tamis("settings", "dhne")

    assert result.exit_code == 2
    assert "Did you mean 'dhen'?" in result.output
