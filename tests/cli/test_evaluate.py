"""``tamis evaluate``: only on data that the run's model can read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.csv


def test_dataset_with_other_vocabularies_is_refused(
    world: Path, refused: Callable[..., str], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    # The same fields and as many categories, so that only the encoders tell them apart.
    table = pyarrow.csv.read_csv("that.csv")
    users = [user + 1000 for user in table["user_id"].to_pylist()]
    table = table.set_column(0, "user_id", [users])
    pyarrow.csv.write_csv(table, "other.csv")
    tamis_json("ingest", "other.csv", "--schema", "d/schema.toml", "--out", "other")

    message = refused("evaluate", "a", "--data", "other")

    assert "other: must be encoded with the run's own encoders, got another encoders/" in message
    assert not Path("a", "evaluations").exists()


def test_dataset_of_other_fields_is_refused(
    world: Path, refused: Callable[..., str], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    table = pyarrow.csv.read_csv("that.csv").drop_columns(["price"])
    pyarrow.csv.write_csv(table, "other.csv")
    tamis_json("ingest", "other.csv", "--label", "y", "--out", "other")

    assert "got other fields or tables. Evaluate on the run's own dataset" in refused(
        "evaluate", "a", "--data", "other"
    )


def test_flipped_bit_in_the_dataset_is_found(world: Path, refused: Callable[..., str]) -> None:
    path = world / "d" / "splits" / "test" / "data.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    assert "d/splits/test/data.arrow: must have sha256" in refused("evaluate", "a", "--data", "d")


def test_file_in_place_of_a_run_or_a_dataset_is_refused(
    world: Path, refused: Callable[..., str]
) -> None:
    assert "that.csv: must be a run folder, got a file" in refused("evaluate", "that.csv")
    assert "that.csv: must be a finished dataset with a manifest.json, got none" in refused(
        "evaluate", "a", "--data", "that.csv"
    )


def test_json_names_dataset_and_split(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("evaluate", "a", "--data", "d", "--split", "valid")

    assert found.keys() >= {"command", "ok", "run", "seconds", "metrics"}
    assert found["split"] == "valid"
    assert found["dataset"] == "d"
