"""``tamis compare``: its object, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result


def test_json_holds_the_second_run_and_its_baseline(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("compare", "a", "b")

    scores = {
        name: json.loads(Path(name, "metrics.json").read_text())["metrics"]["test"]
        for name in ("a", "b")
    }
    assert found["run"] == "b"
    assert found["runs"] == ["a", "b"]
    assert found["metrics"] == {"test": scores["b"]}
    assert found["baseline"] == {"run": "a", "metrics": {"test": scores["a"]}}


def test_runs_on_logs_with_other_labels_are_refused(
    world: Path, refused: Callable[..., str], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    lines = Path("that.csv").read_text().splitlines()
    other = [lines[0], *(f"{line[:-1]}{1 - int(line[-1])}" for line in lines[1:])]
    Path("other.csv").write_text("\n".join(other) + "\n")
    tamis_json("ingest", "other.csv", "--label", "y", "--out", "other")
    settings = ("--set", "training.max_epochs=1", "--no-report")
    tamis_json("train", "other", "--model", "lr", "--run", "c", *settings)

    message = refused("compare", "a", "c")

    assert "must have been trained on the same log, got another label y in the datasets" in message


def test_task_that_one_run_alone_has_is_told(
    world: Path, tamis: Callable[..., Result], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    tamis_json("ingest", "that.csv", "--label", "y", "--label", "price", "--out", "two")
    settings = ("--set", "training.max_epochs=1", "--no-report")
    tamis_json("train", "two", "--model", "lr", "--run", "c", *settings)

    result = tamis("compare", "a", "c")

    assert result.exit_code == 0, result.output
    assert "price: not compared, as c alone has it" in result.output


def test_damaged_predictions_are_refused(world: Path, refused: Callable[..., str]) -> None:
    path = Path("b", "predictions", "test.arrow")
    whole = path.read_bytes()

    path.write_bytes(whole[:-20])
    assert "b/predictions/test.arrow: must hold" in refused("compare", "a", "b")

    path.write_bytes(bytes([*whole[:-200], whole[-200] ^ 1, *whole[-199:]]))
    assert "b/predictions/test.arrow: must have sha256" in refused("compare", "a", "b")


def test_split_without_predictions_is_refused(world: Path, refused: Callable[..., str]) -> None:
    assert "a: must hold predictions of the split 'train', got none" in refused(
        "compare", "a", "b", "--split", "train"
    )
