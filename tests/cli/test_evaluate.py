"""``tamis evaluate``: only on data that the run's model can read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
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
    assert "Evaluate on the raw log itself, which is then encoded as the run's was." in message
    assert not Path("a", "evaluations").exists()


def test_new_log_is_encoded_as_the_runs_was(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    own = tamis_json("evaluate", "a", "--split", "test")["metrics"]["test"]["y"]
    rows = pa.ipc.open_file("d/splits/test/data.arrow").read_all()["row"].to_pylist()
    table = pyarrow.csv.read_csv("that.csv")
    pyarrow.csv.write_csv(table.take(rows), "new.csv")

    found = tamis_json("evaluate", "a", "--data", "new.csv")

    assert found["metrics"]["test"]["y"] == own
    assert found["dataset"] == "new.csv"
    assert found["fields"]["user_id"]["rows"] == len(rows)
    assert [path for path in Path("a").iterdir() if path.name.startswith(".")] == []

    # Labels of one class, and categories that training did not know.
    strange = table.slice(0, 9).set_column(0, "user_id", [[f"new {k}" for k in range(9)]])
    pyarrow.csv.write_csv(strange.set_column(3, "y", [[1] * 9]), "strange.csv")
    found = tamis_json("evaluate", "a", "--data", "strange.csv")
    assert found["metrics"]["test"]["y"]["rows"] == 9
    assert found["fields"]["user_id"]["unknown"] == 9


def test_log_without_labels_or_of_another_split_is_refused(
    world: Path, refused: Callable[..., str]
) -> None:
    table = pyarrow.csv.read_csv("that.csv")
    pyarrow.csv.write_csv(table.drop_columns(["y"]), "bare.csv")

    assert "bare.csv: must hold column 'y', got user_id" in refused(
        "evaluate", "a", "--data", "bare.csv"
    )
    assert "split: must be test for a raw log" in refused(
        "evaluate", "a", "--data", "that.csv", "--split", "valid"
    )
    assert "none.csv: must exist, got no such file" in refused(
        "evaluate", "a", "--data", "none.csv"
    )


def test_dataset_of_other_fields_is_refused(
    world: Path, refused: Callable[..., str], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    table = pyarrow.csv.read_csv("that.csv").drop_columns(["price"])
    pyarrow.csv.write_csv(table, "other.csv")
    tamis_json("ingest", "other.csv", "--label", "y", "--out", "other")

    assert "got other fields or tables. Evaluate on the raw log itself" in refused(
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
    assert "b: must be a log file or a folder of logs, got a run" in refused(
        "evaluate", "a", "--data", "b"
    )


def test_json_names_dataset_and_split(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("evaluate", "a", "--data", "d", "--split", "valid")

    assert found.keys() >= {"command", "ok", "run", "seconds", "metrics"}
    assert found["split"] == "valid"
    assert found["dataset"] == "d"
