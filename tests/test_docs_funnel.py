"""docs/funnel.md runs as it stands, on a smaller market."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tamis.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "funnel.md"
_SMALLER = {
    "400000": "20000",
    "--requests 4000": "--requests 100",
    "--limit 500": "--limit 50",
    "--judge-every 10": "--judge-every 3",
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.S)


@pytest.mark.slow
def test_every_recipe_and_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for recipe in _blocks("toml"):
        name = recipe.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(recipe)
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    verbs = []
    for size in _SMALLER:
        assert any(size in line for line in lines)

    for line in lines:
        command = line.removeprefix("$ tamis ")
        for size, smaller in _SMALLER.items():
            command = command.replace(size, smaller)
        arguments = shlex.split(command)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}: {result.output}"
        verbs.append(arguments[0])

    assert [*dict.fromkeys(verbs)] == [
        *("simulate", "ingest", "train", "publish", "cascade", "replay", "ab-test"),
    ]
    test = json.loads((tmp_path / "ab-tests" / "funnel-1" / "ab-test.json").read_text())
    assert test["arms"]["control"]["name"] == "simple"
    assert [stage["stage"] for stage in test["losses"]["treatment"]["stages"]] == [
        *("known", "index", "early", "final", "auction"),
    ]
