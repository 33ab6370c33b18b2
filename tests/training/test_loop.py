"""Runs that are repeated, killed, interrupted, damaged, and still come out the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tamis import artifacts
from tamis.data.dataset import Dataset
from tamis.data.schema import Task
from tamis.errors import ArtifactError, ConfigError, TamisError
from tamis.models.output import Output
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.loop import train, training_loss

_WORKER = """
import sys
import torch
from pathlib import Path
from tamis.data.dataset import Dataset
from tamis.training.config import run_config_from_table
from tamis.training.loop import train
from tamis.config import read_toml
torch.set_num_threads(1)
data, config, run = (Path(argument) for argument in sys.argv[1:])
train(Dataset.open(data), run_config_from_table(read_toml(config)), run)
"""


def _settings(**training: Any) -> RunConfig:
    return run_config_from_table(
        {
            "model": {"name": "deepfm", "hidden_units": [16], "dropout": 0.3, "embedding_dim": 4},
            "schedule": {"plateau_factor": 0.5, "warmup_steps": 5},
            "training": {"batch_size": 32, "max_epochs": 4, "patience": 9, **training},
        }
    )


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def _weights(run: Path) -> bytes:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return (newest / "model.safetensors").read_bytes()


def test_training_learns_and_leaves_a_complete_run(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    result = train(make_dataset(train=2000), _settings(max_epochs=6), tmp_path / "run")

    # Clicks follow the parity of user + item, which one-hot fields and their products can learn.
    assert result.metrics["metrics"]["test"]["click"]["auc"] > 0.7
    assert result.metrics["metrics"]["test"]["buy"]["rows"] < 200
    for name in ("config.toml", "run.json", "metrics.jsonl", "predictions/test.arrow"):
        assert (tmp_path / "run" / name).exists()
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    record = artifacts.read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "finished"
    assert record["parameters"]["total"] > record["parameters"]["tables"] > 0


def test_two_runs_of_one_seed_write_the_same_metrics(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()

    train(dataset, _settings(), tmp_path / "a")
    train(dataset, _settings(), tmp_path / "b")
    train(dataset, _settings(seed=1), tmp_path / "c")

    assert _lines(tmp_path / "a") == _lines(tmp_path / "b")
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b")
    assert _lines(tmp_path / "a") != _lines(tmp_path / "c")


def test_training_leaves_the_callers_generator_alone(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    before = torch.get_rng_state()

    train(make_dataset(), _settings(max_epochs=1), tmp_path / "run")

    assert torch.equal(before, torch.get_rng_state())


def _start(dataset: Path, config: Path, run: Path) -> subprocess.Popen[bytes]:
    log = run.with_suffix(".log")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _WORKER, str(dataset), str(config), str(run)]
    with log.open("wb") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


def _kill_and_resume(
    dataset: Path, tmp_path: Path, *, kills: int, seed: int, seconds: float
) -> None:
    config, run = tmp_path / "config.toml", tmp_path / "killed"
    from tamis.config import write_toml

    config.write_text(write_toml(_settings(max_epochs=12, checkpoint_seconds=0.05).to_table()))
    reference = tmp_path / "reference"
    assert _start(dataset, config, reference).wait() == 0
    generator = random.Random(seed)
    killed = 0
    while killed < kills:
        process = _start(dataset, config, run)
        # Imports take most of a second; what comes after is training, in steps of milliseconds.
        deadline = time.monotonic() + generator.uniform(0.3, seconds)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        elif (run / "metrics.json").exists():
            break
    assert _start(dataset, config, run).wait() == 0, run.with_suffix(".log").read_text()
    assert _weights(run) == _weights(reference)
    assert _lines(run) == _lines(reference)
    best = "checkpoints/best/model.safetensors"
    assert (run / best).read_bytes() == (reference / best).read_bytes()


def test_run_killed_twice_ends_bit_equal(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    _kill_and_resume(make_dataset().path, tmp_path, kills=2, seed=0, seconds=4.0)


@pytest.mark.slow
def test_run_killed_twenty_times_ends_bit_equal(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    _kill_and_resume(make_dataset(train=6000).path, tmp_path, kills=20, seed=1, seconds=5.0)


def test_interrupted_run_keeps_a_checkpoint_and_goes_on(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset, run = make_dataset(), tmp_path / "run"

    class Interrupter:
        def on_message(self, text: str) -> None: ...

        def on_evaluation(self, record: Any) -> None: ...

        def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)

    stopped = train(dataset, _settings(), run, observer=Interrupter())
    assert stopped.status == "interrupted"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000000007"]

    assert train(dataset, _settings(), run).status == "finished"
    train(dataset, _settings(), tmp_path / "whole")
    assert _weights(run) == _weights(tmp_path / "whole")


def test_damaged_checkpoint_is_passed_over(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset, run = make_dataset(), tmp_path / "run"
    train(dataset, _settings(), run)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    expected = newest.read_bytes()
    altered = bytearray(expected)
    altered[-1] ^= 1
    newest.write_bytes(altered)
    (run / "metrics.json").unlink()
    messages = []

    class Listener:
        def on_message(self, text: str) -> None:
            messages.append(text)

        def on_evaluation(self, record: Any) -> None: ...

        def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None: ...

    assert train(dataset, _settings(), run, observer=Listener()).status == "finished"

    assert "sha256" in messages[0]
    assert newest.read_bytes() == expected


def test_run_without_a_whole_checkpoint_says_so(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset, run = make_dataset(), tmp_path / "run"
    train(dataset, _settings(), run)
    (run / "metrics.json").unlink()
    for checkpoint in (run / "checkpoints").glob("step-*"):
        path = checkpoint / "state.safetensors"
        path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(ArtifactError, match="must hold a whole checkpoint, got 2 damaged"):
        train(dataset, _settings(), run)


def test_finished_run_is_not_trained_again(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()
    first = train(dataset, _settings(max_epochs=1), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns

    again = train(dataset, _settings(max_epochs=1), tmp_path / "run")

    assert again.metrics == first.metrics
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before


def test_run_refuses_another_config(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset()
    train(dataset, _settings(max_epochs=1), tmp_path / "run")

    with pytest.raises(ConfigError, match=r"got training.max_epochs=2 instead of 1"):
        train(dataset, _settings(max_epochs=2), tmp_path / "run")


def test_run_refuses_another_dataset(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    train(make_dataset(), _settings(max_epochs=1), tmp_path / "run")

    with pytest.raises(ConfigError, match="must be of the same dataset"):
        train(make_dataset(train=700, name="other"), _settings(max_epochs=1), tmp_path / "run")


def test_loss_that_is_not_finite_stops_the_run(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    settings = run_config_from_table(
        {
            "model": {"name": "deepfm", "hidden_units": [8]},
            "optimizer": {"dense_lr": 1e30, "embedding_lr": 1e30},
            "training": {"batch_size": 32},
        }
    )

    with pytest.raises(TamisError, match=r"the loss must be finite, got .*Lower optimizer"):
        train(make_dataset(), settings, tmp_path / "run")


def test_loss_ignores_labels_that_were_not_observed() -> None:
    nan = float("nan")
    output = Output(logits=torch.tensor([[0.0, 9.0], [2.0, -1.0]]))
    labels = torch.tensor([[1.0, nan], [0.0, 1.0]])
    tasks = (Task(name="click"), Task(name="buy"))

    loss = training_loss(output, labels, torch.ones(2), tasks, torch.tensor([1.0, 2.0]))

    # click: (log 2 + log(1 + e^2)) / 2 = (0.693147 + 2.126928) / 2; buy: log(1 + e) = 1.313262.
    assert loss.item() == pytest.approx(1.410038 + 2 * 1.313262, abs=1e-5)


def test_loss_weighs_rows_and_adds_auxiliary_losses() -> None:
    output = Output(
        logits=torch.tensor([[0.0], [2.0]]), auxiliary_losses={"extra": torch.tensor(0.5)}
    )
    labels, weights = torch.tensor([[1.0], [0.0]]), torch.tensor([3.0, 1.0])

    loss = training_loss(output, labels, weights, (Task(name="click"),), torch.ones(1))

    # Three times 0.693147 and once 2.126928, over the weight of 4, and 0.5 on top.
    assert loss.item() == pytest.approx(1.551592, abs=1e-5)


def test_loss_of_a_regression_task_is_the_squared_error() -> None:
    tasks = (Task(name="click"), Task(name="spend", kind="regression"))
    output = Output(logits=torch.tensor([[0.0, 3.0], [0.0, 1.0]]))
    labels = torch.tensor([[1.0, 1.0], [1.0, 1.0]])

    loss = training_loss(output, labels, torch.ones(2), tasks, torch.ones(2))

    # log 2 + ((3 - 1)^2 + 0) / 2
    assert loss.item() == pytest.approx(0.693147 + 2.0, abs=1e-5)
