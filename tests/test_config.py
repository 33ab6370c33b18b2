"""Strict TOML: what is said about a file or a key that is not right."""

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
