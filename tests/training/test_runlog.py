"""The records of a run, over several processes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tamis.errors import ArtifactError
from tamis.training.runlog import Events, MetricsLog, environment, processor_name, source_commit


def test_log_drops_lines_after_the_checkpoint_and_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, keep_lines=0)
    for step in range(3):
        log.append({"step": step})
    with path.open("a") as stream:
        stream.write('{"step": 3, "val')

    again = MetricsLog(path, keep_lines=2)
    again.append({"step": 20})

    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [0, 1, 20]
    assert again.lines == 3


def test_log_that_lost_lines_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, keep_lines=0).append({"step": 1})

    with pytest.raises(ArtifactError, match=r"must hold the 2 lines of the checkpoint, got 1"):
        MetricsLog(path, keep_lines=2)


def test_log_refuses_nan(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_lines=0)

    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"loss": float("nan")})


def test_events_of_a_resumed_run_replace_those_after_its_checkpoint(tmp_path: Path) -> None:
    first = Events(tmp_path, purge_step=1)
    for step in (1, 2, 3):
        first.add(step, {"loss": float(step), "auc": None})
    first.close()

    second = Events(tmp_path, purge_step=3)
    second.add(3, {"loss": 30.0})
    second.close()

    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_environment_names_versions_and_no_paths() -> None:
    found = environment(torch.device("cpu"))

    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert processor_name() == f"{found['device_name']}, {found['vectors']}"
    assert found["threads"] == torch.get_num_threads() <= found["cores"]
    assert not any("/" in str(value) for value in found.values())


def test_git_that_does_not_answer_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(command: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", wait)

    assert source_commit() is None
