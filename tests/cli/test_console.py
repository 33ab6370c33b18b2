"""Exit statuses, error objects, and text that stays whole."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from tamis.cli.console import Session, print_table
from tamis.models import weights
from tamis.training import runlog


def _full_disk(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("simulate", "--rows", "1000", "--out", "m"), "m/"),
        (("quickstart", "--rows", "10000", "--out", "q", "--model", "lr"), "q/market-10000-0/"),
    ],
)
def test_full_disk_while_simulating_is_a_failure_that_names_the_place(
    tmp_path: Path,
    tamis: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pq, "write_table", _full_disk)

    result = tamis(*arguments)

    assert result.exit_code == 1
    message = " ".join(result.output.split())
    assert f"tamis {arguments[0]}: {place}" in message
    assert "must fit on the disk, got No space left on device. Free space" in message


def test_full_disk_while_training_is_a_failure_that_names_the_run(
    world: Path, tamis: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlog.MetricsLog, "append", _full_disk)

    result = tamis("train", "d", "--model", "lr", "--run", "r", "--set", "training.max_epochs=1")

    assert result.exit_code == 1
    assert "tamis train: r: must fit on the disk, got No space left on device" in result.output


def test_full_disk_while_writing_weights_is_a_failure(
    world: Path, tamis: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        raise weights.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights.safetensors.torch, "save_file", full)

    result = tamis("train", "d", "--model", "lr", "--run", "r", "--set", "training.max_epochs=1")

    assert result.exit_code == 1
    assert "model.safetensors: must be writable, got I/O error: No space left" in result.output


def test_damaged_artifact_is_bad_input(world: Path, tamis: Callable[..., Result]) -> None:
    (world / "d" / "splits" / "test" / "data.arrow").unlink()

    assert tamis("evaluate", "a", "--data", "d").exit_code == 2


def test_error_object_has_the_seconds(world: Path, tamis: Callable[..., Result]) -> None:
    found = json.loads(tamis("evaluate", "nowhere", "--json").stdout)

    assert found.keys() == {"command", "ok", "error", "seconds"}
    assert found["command"] == "evaluate"
    assert found["ok"] is False
    assert found["seconds"] >= 0


def test_table_does_not_break_its_title_or_read_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "runs/" + "a-rather-long-name/" * 6 + "[red]run"
    session = Session("evaluate", as_json=False)

    print_table(session, title=f"Run {path}", columns=["a"], rows=[["[b]1"]])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Run {path}"
    assert "[b]1" in [line.strip() for line in lines]
