"""``tamis predict``: counted repairs, and logs that it does not touch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import Result


def test_repairs_are_counted_by_field_and_printed(
    world: Path, tamis: Callable[..., Result]
) -> None:
    Path("new.csv").write_text("user_id,item_id,price\n1,2,3.5\n1,999,\n1,998,\n")

    result = tamis("predict", "a", "new.csv", "--out", "p.csv", "--json")

    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["rows"] == 3
    assert found["fields"]["item_id"] == {
        "rows": 3,
        "missing": 0,
        "unknown": 2,
        "clipped": 0,
        "shortened": 0,
    }
    assert found["fields"]["price"] == {
        "rows": 3,
        "missing": 2,
        "unknown": 0,
        "clipped": 0,
        "shortened": 0,
    }
    assert found["fields"]["user_id"]["unknown"] == 0
    lines = [line.split() for line in result.stderr.splitlines()]
    assert ["item_id", "3", "0", "(0.0%)", "2", "(66.7%)", "0", "(0.0%)"] in lines
    assert ["price", "3", "2", "(66.7%)", "0", "(0.0%)", "0", "(0.0%)"] in lines
    assert not any(line[:1] == ["user_id"] for line in lines)


def test_field_that_training_hardly_knows_is_warned_of(
    world: Path, tamis: Callable[..., Result]
) -> None:
    Path("new.csv").write_text("user_id,item_id,price\n1,2.0,3.5\n1,3.0,\n1,998,\n")

    result = tamis("predict", "a", "new.csv", "--out", "p.csv", "--json")

    (warning,) = json.loads(result.stdout)["warnings"]
    assert warning.startswith("item_id: 3 of 3 values are outside the vocabulary.")
    assert f"warning: {warning}" in result.stderr


def test_log_without_surprises_says_so(world: Path, tamis: Callable[..., Result]) -> None:
    Path("new.csv").write_text("user_id,item_id,price\n1,2,3.5\n")

    result = tamis("predict", "a", "new.csv", "--out", "p.csv")

    assert "no value was missing, unknown or out of range" in result.output


@pytest.mark.parametrize("source", ["that.csv", "."])
def test_log_is_not_overwritten_by_its_predictions(
    world: Path, refused: Callable[..., str], source: str
) -> None:
    folder = world / "logs"
    folder.mkdir()
    log = folder / "that.csv"
    (world / "that.csv").rename(log)
    before = log.read_bytes()

    message = refused("predict", "a", folder / source, "--out", "logs/../logs/that.csv")

    assert "must not be one of the logs that are predicted, got one of them" in message
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("p.xlsx", "p.xlsx: must end in one of .parquet, .pq, .csv, got '.xlsx'"),
        ("p", "p: must end in one of .parquet, .pq, .csv, got 'no ending'"),
        ("p.csv", "p.csv: must be a file to write, got a folder"),
    ],
)
def test_place_for_predictions_is_checked_first(
    world: Path, refused: Callable[..., str], out: str, message: str
) -> None:
    if out == "p.csv":
        Path(out).mkdir()

    assert message in refused("predict", "a", "that.csv", "--out", out)


def test_log_without_rows_is_refused(world: Path, refused: Callable[..., str]) -> None:
    Path("empty.csv").write_text("user_id,item_id,price\n")
    pq.write_table(pyarrow.csv.read_csv("that.csv").slice(0, 0), "empty.parquet")

    for name in ("empty.csv", "empty.parquet"):
        message = refused("predict", "a", name, "--out", "p.csv")
        assert f"{name}: must hold rows, got a header only" in message
    assert not Path("p.csv").exists()


def test_unfinished_run_is_refused_with_status_and_step(
    world: Path, refused: Callable[..., str]
) -> None:
    Path("a", "metrics.json").unlink()
    record = json.loads(Path("a", "run.json").read_text())
    Path("a", "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    step = record["steps"]

    for command in (("predict", "a", "that.csv", "--out", "p.csv"), ("evaluate", "a")):
        message = refused(*command)
        assert f"a: must be a finished run, got status 'interrupted' at step {step:,}" in message
        assert "Give its training command again with --run a to finish it" in message


def test_dataset_is_not_predicted_as_a_log(world: Path, refused: Callable[..., str]) -> None:
    message = refused("predict", "a", "d", "--out", "p.csv")

    assert "d: must be a log file or a folder of logs, got a dataset" in message


def test_altered_inputs_of_a_run_are_refused(world: Path, refused: Callable[..., str]) -> None:
    path = next(Path("a", "inputs", "encoders").glob("vocabulary-*.arrow"))
    table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.take(list(reversed(range(table.num_rows)))))

    message = refused("predict", "a", "that.csv", "--out", "p.csv")

    assert f"{path}: must have sha256" in message
