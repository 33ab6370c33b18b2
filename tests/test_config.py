"""Strict TOML: what is said about a file or a key that is not right."""

import tomllib
from pathlib import Path

import pytest

from tamis import config
from tamis.errors import ConfigError


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a TOML file, got a folder. Name the file"):
        config.read_toml(tmp_path)


def test_file_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "that.csv").write_text("a\n")

    with pytest.raises(ConfigError, match=r"s.toml: must be a readable file, got Not a directory"):
        config.read_toml(tmp_path / "that.csv" / "s.toml")


@pytest.mark.parametrize(
    ("known", "where", "message"),
    [
        ((), "model", "model.width: must be a known key, got 'width'. model takes no keys; remove"),
        ((), "", "width: must be a known key, got 'width'. This table takes no keys; remove it"),
        (("lr", "seed"), "", "width: must be a known key, got 'width'. Use one of lr, seed"),
        (("widths",), "", r"got 'width'. Did you mean 'widths'\?"),
    ],
)
def test_unknown_key_says_what_may_stand_there(
    known: tuple[str, ...], where: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check_keys({"width": 1}, known, where=where)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"a": {}, "b": {"c": {"d": 1}}},
        {"a b": {"c.d": [{"x": 1, "y": [{"z": 2}]}, {}], "e": []}},
        {"a": [1, {"b": 2}], "c": [{"d": [{}]}]},
    ],
)
def test_written_tables_are_read_as_they_were(table: dict[str, object]) -> None:
    assert tomllib.loads(config.write_toml(table)) == table


def test_lists_of_tables_are_never_inline() -> None:
    text = config.write_toml({"a": {"b": [{"c": 1}, {"c": 2}]}, "v": 1})

    assert text == "v = 1\n\n[[a.b]]\nc = 1\n\n[[a.b]]\nc = 2\n"
