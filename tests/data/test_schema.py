"""Schema files: what is wrong with one is said once, with its path."""

from pathlib import Path

import pytest

from tamis.data.schema import load_schema
from tamis.errors import SchemaError


def test_schema_that_is_no_toml_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text("fields = [\n")

    with pytest.raises(
        SchemaError, match=r"schema.toml: must be valid TOML, got .* Mend"
    ) as caught:
        load_schema(path)

    assert str(caught.value).count(str(path)) == 1


def test_missing_schema_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"no.toml: must exist, got no such file") as caught:
        load_schema(tmp_path / "no.toml")

    assert str(caught.value).count("no.toml") == 1


def test_folder_given_as_schema_says_which_file_to_name(tmp_path: Path) -> None:
    with pytest.raises(
        SchemaError, match=r"must be a schema file, got a folder. Name .*schema.tom"
    ):
        load_schema(tmp_path)
