"""Wrong usage, with and without ``--json``."""

import importlib.metadata
import json
from collections.abc import Callable

import pytest
from typer.testing import Result


@pytest.mark.parametrize(
    ("arguments", "command", "message"),
    [
        (("train", "--json"), "train", "Missing argument"),
        (("evaluate", "a", "--splitt", "test", "--json"), "evaluate", "No such option: --splitt"),
        (
            ("simulate", "--json", "--out", "m", "--rows", "many"),
            "simulate",
            "Invalid value for '--rows'",
        ),
        (
            ("simulate", "--json", "--out", "m", "--rows", "9", "--seed", "-1"),
            "simulate",
            "'--seed'",
        ),
        (("tabel", "--json"), "", "No such command 'tabel'"),
        (("--jsonn", "--json", "train"), "train", "No such option: --jsonn"),
    ],
)
def test_wrong_usage_beside_json_is_an_object(
    tamis: Callable[..., Result], arguments: tuple[str, ...], command: str, message: str
) -> None:
    result = tamis(*arguments)

    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["command"] == command
    assert found["ok"] is False
    assert message in found["error"]
    assert found["seconds"] >= 0
    assert "Traceback" not in result.stderr


def test_wrong_usage_without_json_leaves_standard_output_alone(
    tamis: Callable[..., Result],
) -> None:
    result = tamis("train")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Missing argument" in result.stderr


def test_version_is_printed(tamis: Callable[..., Result]) -> None:
    result = tamis("--version")

    assert result.exit_code == 0
    assert result.stdout == f"tamis {importlib.metadata.version('tamis')}\n"
    assert "--version" in tamis("--help").stdout
