"""``tamis ingest``: what it says about an inferred schema, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
from typer.testing import Result


@pytest.fixture
def leaky(world: Path) -> Path:
    """The log with a column that gives the label away, and one of a single value."""
    table = pyarrow.csv.read_csv(world / "that.csv")
    table = table.append_column("paid", table["y"])
    table = table.append_column("site", pa.array(["x"] * table.num_rows))
    pyarrow.csv.write_csv(table, world / "leaky.csv")
    return world / "leaky.csv"


@pytest.mark.parametrize("more", [("--schema-only", "--out", "s.toml"), ("--out", "new")])
def test_warnings_of_inference_are_printed_and_in_json(
    leaky: Path,
    tamis: Callable[..., Result],
    tamis_json: Callable[..., dict[str, Any]],
    more: tuple[str, ...],
) -> None:
    command = ("ingest", "leaky.csv", "--label", "y", *more)

    warnings = tamis_json(*command)["warnings"]

    assert [warning.split(":")[0] for warning in warnings] == ["paid", "site", "time"]
    assert "gives the label away" in warnings[0]
    if "--schema-only" in more:
        output = " ".join(tamis(*command).output.split())
        assert "warning: paid: left out, it gives the label away" in output


def test_ingest_says_how_the_rows_were_split(world: Path, tamis: Callable[..., Result]) -> None:
    result = tamis("ingest", "that.csv", "--label", "y", "--split", "user", "--out", "new")

    assert result.exit_code == 0, result.output
    assert "split at random by user: 10 % validation, 10 % test" in result.output


def test_json_of_ingest_holds_split_and_counts(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("ingest", "that.csv", "--label", "y", "--test", "0.2", "--out", "new")

    assert found["split"]["by"] == "ratio"
    assert found["split"]["test"] == 0.2
    assert found["fields"]["price"]["missing"] == 0
    assert sum(found["rows"].values()) == found["fields"]["price"]["rows"] == 1200


def test_schema_beside_options_that_it_decides_is_refused(
    world: Path, refused: Callable[..., str]
) -> None:
    schema = ("ingest", "that.csv", "--schema", "d/schema.toml", "--out", "new")

    assert "--schema: must not be given with --label, got d/schema.toml beside" in refused(
        *schema, "--label", "price"
    )
    assert "--schema: must not be given with --schema-only" in refused(*schema, "--schema-only")
    assert not Path("new").exists()


@pytest.mark.parametrize("out", ["that.csv", "schema.csv"])
def test_schema_is_not_written_to_a_file_of_another_kind(
    world: Path, refused: Callable[..., str], out: str
) -> None:
    message = refused("ingest", "that.csv", "--label", "y", "--schema-only", "--out", out)

    assert f"{out}: must be a .toml file or a folder, got the ending '.csv'" in message
    assert not Path("schema.csv").exists()


def test_schema_that_is_a_folder_is_refused(world: Path, refused: Callable[..., str]) -> None:
    message = refused("ingest", "that.csv", "--schema", "d", "--out", "new")

    assert "d: must be a schema file, got a folder. Name the file" in message
