"""Runs that are repeated, killed, interrupted, damaged, and still come out the same."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tamis import artifacts
from tamis.config import write_toml
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows
from tamis.data.schema import CategoricalInput, Field, InputSpec, Schema, Table, Task
from tamis.errors import ArtifactError, ConfigError, DataError, RunInUseError, TamisError
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.loop import train
from tamis.training.predict import load_trained

# One process pays for the imports; each training is a fork of it, which it kills.
_WORKER = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
import torch
from tamis.config import read_toml
from tamis.data.dataset import Dataset, DatasetWriter
from tamis.training.config import run_config_from_table
from tamis.training.loop import train
from tamis.training.predict import load_trained

folder, data, kills, threads = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
torch.set_num_threads(threads)
settings = run_config_from_table(read_toml(folder / "config.toml"))
generator = random.Random(kills)

def start(run):
    child = os.fork()
    if child:
        return child
    try:
        train(Dataset.open(data), settings, run)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def checkpoints(run):
    return {path.name for path in run.glob("checkpoints/step-*")}

began = time.monotonic()
assert os.waitpid(start(folder / "reference"), 0)[1] == 0
duration = time.monotonic() - began
runs, resumed, killed = 0, 0, 0
while killed < kills or not resumed:
    run, before = folder / f"killed-{runs}", checkpoints(folder / f"killed-{runs}")
    child, ended = start(run), False
    resumed += bool(before)
    # Every other kill comes anywhere, the opening of the run included; the rest come after a
    # checkpoint, so that the run gets on.
    deadline = time.monotonic() + generator.uniform(0, duration / 2)
    while not ended:
        ended = os.waitpid(child, os.WNOHANG)[0] != 0
        if killed % 2 and checkpoints(run) <= before:
            deadline = time.monotonic() + generator.uniform(0, duration / 10)
        if not ended and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed, ended = killed + 1, True
        time.sleep(0.001)
    if (run / "metrics.json").exists():
        runs += 1
assert os.waitpid(start(folder / f"killed-{runs}"), 0)[1] == 0
print(json.dumps({"runs": runs + 1, "killed": killed, "resumed": resumed}))
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
    result = train(make_dataset(train=2000), _settings(max_epochs=4), tmp_path / "run")

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


@pytest.mark.gpu
@pytest.mark.parametrize("embedding", ["rowwise_adagrad", "adagrad", "adam"])
def test_run_on_cuda_learns_as_on_a_cpu_and_serves_on_either(
    make_dataset: Callable[..., Dataset], tmp_path: Path, embedding: str
) -> None:
    dataset = make_dataset(train=2000)
    results = {}
    for device in ("cpu", "cuda"):
        table = _settings(ema_decay=0.9, precision="float32", device=device).to_table()
        table["model"]["dropout"] = 0.0
        table["optimizer"]["embedding"] = embedding
        settings = run_config_from_table(table)
        if device == "cuda":
            listener = _Listener(interrupts=1)
            stopped = train(dataset, settings, tmp_path / device, observer=listener)
            assert stopped.status == "interrupted"
        results[device] = train(dataset, settings, tmp_path / device)

    # Sums in another order, over some hundred steps.
    losses = [[line["train_loss"] for line in _lines(tmp_path / d)] for d in ("cpu", "cuda")]
    assert np.allclose(*losses, rtol=1e-3)
    auc = [results[d].metrics["metrics"]["test"]["click"]["auc"] for d in ("cpu", "cuda")]
    assert abs(auc[0] - auc[1]) < 0.01
    device = artifacts.read_json(tmp_path / "cuda" / "run.json")["environment"]["device"]
    assert device.startswith("cuda")
    model = load_trained(tmp_path / "cuda").module
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}


def test_averaged_weights_are_evaluated_and_kept(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()

    train(dataset, _settings(), tmp_path / "plain")
    train(dataset, _settings(ema_decay=0.9), tmp_path / "averaged")

    # The average follows training without taking part in it.
    plain, averaged = _lines(tmp_path / "plain"), _lines(tmp_path / "averaged")
    assert averaged[0]["train_loss"] == plain[0]["train_loss"]
    assert averaged[0]["valid"] != plain[0]["valid"]
    best = tmp_path / "averaged" / "checkpoints" / "best" / "model.safetensors"
    assert best.read_bytes() != _weights(tmp_path / "averaged")


def test_training_leaves_the_callers_generator_alone(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    before = torch.get_rng_state()

    train(make_dataset(), _settings(max_epochs=1), tmp_path / "run")

    assert torch.equal(before, torch.get_rng_state())


def _kill_and_resume(data: Path, folder: Path, *, kills: int, threads: int) -> None:
    table = _settings(
        max_epochs=4, evaluations_per_epoch=2, checkpoint_seconds=0.03, ema_decay=0.9
    ).to_table()
    (folder / "config.toml").write_text(write_toml(table))
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", _WORKER, *map(str, (folder, data, kills, threads))]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["killed"] >= kills
    assert counts["resumed"] > 0
    expected = _result(folder / "reference")
    for number in range(counts["runs"]):
        assert _result(folder / f"killed-{number}") == expected
        assert not list((folder / f"killed-{number}").rglob(".*.tmp"))


def _result(run: Path) -> dict[str, Any]:
    """Everything that a run leaves and that does not depend on time."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    files = [
        newest / "model.safetensors",
        newest / "state.safetensors",
        run / "checkpoints" / "best" / "model.safetensors",
        run / "predictions" / "test.arrow",
        run / "metrics.json",
    ]
    return {"lines": _lines(run), **{file.name: file.read_bytes() for file in files}}


@pytest.mark.slow
def test_run_killed_at_random_ends_bit_equal(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    _kill_and_resume(make_dataset().path, tmp_path, kills=3, threads=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("threads", "kills"), [(1, 20), (2, 6)])
def test_run_killed_many_times_ends_bit_equal(
    make_dataset: Callable[..., Dataset], tmp_path: Path, threads: int, kills: int
) -> None:
    _kill_and_resume(make_dataset(train=2000).path, tmp_path, kills=kills, threads=threads)


class _Listener:
    """Collects messages and interrupts the run when it is first told of a step."""

    def __init__(self, interrupts: int = 0) -> None:
        self.messages: list[str] = []
        self._interrupts = interrupts

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_warning(self, text: str) -> None:
        self.messages.append(text)

    def on_evaluation(self, record: Any) -> None: ...

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
        while self._interrupts:
            self._interrupts -= 1
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("embedding", ["rowwise_adagrad", "adagrad", "adam"])
def test_interrupted_run_keeps_a_checkpoint_and_goes_on(
    make_dataset: Callable[..., Dataset], tmp_path: Path, embedding: str
) -> None:
    dataset, run = make_dataset(train=900), tmp_path / "run"
    table = _settings(max_epochs=2, ema_decay=0.9).to_table()
    table["optimizer"]["embedding"] = embedding
    settings = run_config_from_table(table)
    listener = _Listener(interrupts=1)

    stopped = train(dataset, settings, run, observer=listener)

    assert stopped.status == "interrupted"
    assert artifacts.read_json(run / "run.json")["status"] == "interrupted"
    assert re.fullmatch(r"stopped at step \d+ with a checkpoint", listener.messages[0])
    assert train(dataset, settings, run).status == "finished"
    train(dataset, settings, tmp_path / "whole")
    assert _result(run) == _result(tmp_path / "whole")


def test_second_interrupt_ends_the_run_at_once(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset, run = make_dataset(), tmp_path / "run"

    with pytest.raises(KeyboardInterrupt):
        train(dataset, _settings(), run, observer=_Listener(interrupts=2))

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(dataset, _settings(), run).status == "finished"


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
    listener = _Listener()

    assert train(dataset, _settings(), run, observer=listener).status == "finished"

    assert "sha256" in listener.messages[0]
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


def test_run_in_use_is_refused(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    with (
        artifacts.folder_lock(tmp_path / "run"),
        pytest.raises(RunInUseError, match="must not be in use"),
    ):
        train(make_dataset(), _settings(max_epochs=1), tmp_path / "run")


def test_training_stops_when_patience_runs_out(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    settings = _settings(max_epochs=30, patience=3)

    train(make_dataset(train=100), settings, tmp_path / "run")

    # 100 rows are learnt by heart soon; the first run of 3 evaluations without a best ends it.
    bests = [line["is_best"] for line in _lines(tmp_path / "run")]
    assert len(bests) < 30
    assert bests[-4:] == [True, False, False, False]
    assert not any(bests[i : i + 3] == [False] * 3 for i in range(len(bests) - 3))


@pytest.mark.slow
def test_weights_from_before_a_learnt_index_are_not_kept(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    level = {"user_tokens": 2, "width": 6, "module_tokens": 2, "head_units": [8]}
    table = {
        "model": {"name": "hsnn", "levels": [level, level], "codebooks": [4], "start_steps": 22},
        "optimizer": {"dense_lr": 0.03},
        "training": {"batch_size": 32, "max_epochs": 7, "patience": 2, "ema_decay": 0.5},
    }

    train(make_dataset(train=100), run_config_from_table(table), tmp_path / "run")

    # An epoch has 4 steps. 100 rows are learnt by heart in the second one.
    lines = _lines(tmp_path / "run")
    errors = [line["valid"]["click"]["ne"] for line in lines]
    assert [line["step"] for line in lines][:6] == [4, 8, 12, 16, 20, 24]
    assert min(errors[:5]) < min(errors[5:])
    assert [line["is_best"] for line in lines][:6] == [True] * 6
    assert artifacts.read_json(tmp_path / "run" / "run.json")["best_step"] >= 22
    assert load_trained(tmp_path / "run").module.index.is_live


def test_step_sizes_halve_after_each_evaluation_without_improvement(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    train(make_dataset(train=200), _settings(max_epochs=8), tmp_path / "run")

    lines = _lines(tmp_path / "run")
    # Warm-up lasts 5 steps and an epoch 7, so only the plateau rule is at work.
    expected = 1.0
    for line in lines:
        assert line["step_sizes"] == {"tables": 0.05 * expected, "dense": 1e-3 * expected}
        expected *= 1.0 if line["is_best"] else 0.5
    assert expected < 1.0


def test_clipping_acts_only_above_its_norm(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()
    table = _settings(max_epochs=2).to_table()
    lines = []
    for clip_norm in (0.0, 1e6, 0.05):
        table["optimizer"]["clip_norm"] = clip_norm
        run = tmp_path / f"clip-{clip_norm}"
        train(dataset, run_config_from_table(table), run)
        lines.append(_lines(run))

    assert lines[0] == lines[1]
    assert lines[0] != lines[2]


def test_auc_within_users_picks_the_weights(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()
    by_gauc, by_auc = (
        train(dataset, _settings(monitor=monitor), tmp_path / monitor)
        for monitor in ("gauc", "auc")
    )

    lines = _lines(tmp_path / "gauc")
    found = [line["valid"]["click"]["gauc"] for line in lines]
    assert found != [line["valid"]["click"]["auc"] for line in lines]
    best = artifacts.read_json(tmp_path / "gauc" / "run.json")["best_step"]
    assert best == lines[found.index(max(found))]["step"]
    # What is watched is what is told in the end.
    assert by_gauc.metrics["metrics"]["valid"]["click"]["gauc"] == max(found)
    # Nobody else pays for it.
    assert all(line["valid"]["click"]["gauc"] is None for line in _lines(tmp_path / "auc"))
    assert by_auc.metrics["metrics"]["valid"]["click"]["gauc"] is not None


def test_unknown_monitor_task_is_found_before_training(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset, run = make_dataset(), tmp_path / "run"

    with pytest.raises(ConfigError, match="monitor_tasks: must be of click, buy, got 'clik'"):
        train(dataset, _settings(monitor_tasks=["clik"]), run)

    # The folder is free for the mended config.
    assert (
        train(dataset, _settings(max_epochs=1, monitor_tasks=["click", "buy"]), run).status
        == "finished"
    )


def _write(
    folder: Path,
    task: Task,
    labels: dict[str, list[float]],
    weights: Callable[[str, np.ndarray], np.ndarray] | None = None,
    rows_per_user: int | None = None,
) -> Dataset:
    """One categorical field of four values, labels, and weights of split and labels."""
    item = Field(name="item", kind="categorical")
    spec = InputSpec(
        numeric=(),
        categorical=(CategoricalInput(name="item", table="item"),),
        sequences=(),
        tables=(Table(name="item", num_rows=4),),
        tasks=(task,),
    )
    with DatasetWriter(folder, Schema(fields=(item,), tasks=(task,)), spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        for split, values in labels.items():
            rows = np.arange(len(values))
            writer.append(
                split,
                EncodedRows(
                    row=rows,
                    ids={"item": (rows % 4).astype(np.int32)},
                    labels={task.name: np.array(values, np.float32)},
                    weights=None if weights is None else weights(split, np.array(values)),
                    roles={} if rows_per_user is None else {"user": rows // rows_per_user},
                ),
            )
        return writer.finish({})


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0.0, r"both classes of 'click' for training.monitor='ne', got only 0. .*'log_loss'"),
        (float("nan"), r"must hold labels of 'click', got none in 50 rows"),
    ],
)
def test_validation_labels_that_define_no_metric_are_found_before_training(
    tmp_path: Path, label: float, message: str
) -> None:
    labels = {"train": [0.0, 1.0] * 50, "valid": [label] * 50}

    with pytest.raises(DataError, match=message):
        train(_write(tmp_path / "data", Task(name="click"), labels), _settings(), tmp_path / "run")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            lambda split, labels: 1 - labels * (split == "valid"),
            r"both classes of 'click' for training.monitor='ne', got only 0 in rows with a weight",
        ),
        (
            lambda split, labels: np.full(len(labels), float(split != "test")),
            r"split 'test': rows with a label of 'click' must have a weight above 0, got 0 in all",
        ),
        (
            lambda split, labels: np.full(len(labels), float(split != "train")),
            r"split 'train': rows with a label of 'click' must have a weight above 0, got 0 in all",
        ),
    ],
)
def test_weights_that_define_no_metric_are_found_before_training(
    tmp_path: Path, weights: Callable[[str, np.ndarray], np.ndarray], message: str
) -> None:
    labels = dict.fromkeys(("train", "valid", "test"), [0.0, 1.0] * 50)
    dataset = _write(tmp_path / "data", Task(name="click"), labels, weights)

    with pytest.raises(DataError, match=message):
        train(dataset, _settings(), tmp_path / "run")

    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("rows_per_user", "error", "message"),
    [
        (
            None,
            ConfigError,
            r"training.monitor: must be 'ne', 'log_loss' or 'auc' without a user, got 'gauc'",
        ),
        (
            1,
            DataError,
            r"both classes of 'click' of one user for training.monitor='gauc', got none in 50 rows",
        ),
    ],
)
def test_users_that_define_no_metric_are_found_before_training(
    tmp_path: Path, rows_per_user: int | None, error: type[TamisError], message: str
) -> None:
    labels = {"train": [0.0, 1.0] * 50, "valid": [0.0, 1.0] * 25}
    dataset = _write(tmp_path / "data", Task(name="click"), labels, rows_per_user=rows_per_user)

    with pytest.raises(error, match=message):
        train(dataset, _settings(monitor="gauc"), tmp_path / "run")

    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_validation_labels_of_one_class_will_do_for_log_loss(tmp_path: Path) -> None:
    labels = {"train": [0.0, 1.0] * 50, "valid": [0.0] * 50}
    dataset = _write(tmp_path / "data", Task(name="click"), labels)

    result = train(dataset, _settings(max_epochs=1, monitor="log_loss"), tmp_path / "run")

    assert result.metrics["metrics"]["valid"]["click"]["log_loss"] > 0


def test_regression_task_keeps_the_weights_of_least_error(tmp_path: Path) -> None:
    spend = [1.0, 2.0, 3.0, 4.0] * 50
    task = Task(name="spend", kind="regression")
    dataset = _write(tmp_path / "data", task, {"train": spend, "valid": spend})

    train(dataset, _settings(max_epochs=8, monitor="auc"), tmp_path / "run")

    lines = _lines(tmp_path / "run")
    errors = [line["valid"]["spend"]["rmse"] for line in lines]
    assert errors[-1] < errors[0]
    kept = artifacts.read_json(tmp_path / "run" / "run.json")["best_step"]
    assert kept == lines[errors.index(min(errors))]["step"]


def test_unit_of_a_regression_does_not_matter(tmp_path: Path) -> None:
    spend, found = np.array([1.0, 2.0, 3.0, 4.0] * 50), {}
    # Powers of 2, so that float32 holds both labels exactly.
    for name, factor in (("euros", 1.0), ("cents", 128.0)):
        labels = list(spend * factor + 64)
        task = Task(
            name="spend",
            kind="regression",
            mean=float(np.mean(labels)),
            std=float(np.std(labels)),
        )
        dataset = _write(tmp_path / name, task, {"train": labels, "valid": labels, "test": labels})
        run = train(dataset, _settings(max_epochs=8), tmp_path / f"run-{name}")
        found[name] = run.metrics["metrics"]["test"]["spend"]

    assert found["cents"]["rmse"] == pytest.approx(128 * found["euros"]["rmse"], rel=1e-4)
    # Without its scale a label of 290 is hardly left from 0 in so few steps.
    assert found["cents"]["r2"] == pytest.approx(found["euros"]["r2"], abs=1e-4)
    assert found["cents"]["r2"] > 0.5


def test_last_batch_of_one_row_is_refused_with_batch_norm(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    table = _settings(max_epochs=1).to_table()
    table["model"]["norm"] = "batch"
    settings = run_config_from_table(table)

    with pytest.raises(ConfigError, match=r"last batch of one row .* got 32 for 97 rows"):
        train(make_dataset(train=97), settings, tmp_path / "run")
    assert train(make_dataset(train=98, name="b"), settings, tmp_path / "run").status == "finished"


def test_task_weights_must_match_the_tasks(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="one weight for each of 2 tasks, got 3"):
        train(make_dataset(), _settings(task_weights=[1.0, 2.0, 3.0]), tmp_path / "run")


_THREADS_WORKER = """
import json, sys
from pathlib import Path
from tamis import api
from tamis.data.dataset import Dataset

def seconds():
    # Fields 14 and 15 of a thread's stat are its CPU time; they follow the name in parentheses.
    found = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name] = int(fields[11]) + int(fields[12])
    return found

class Listener:
    def on_message(self, text): pass
    def on_warning(self, text): pass
    def on_step(self, *, step, total_steps, rows_per_second): pass
    def on_evaluation(self, record): after.append(seconds())

after = []
api.prepare_process(1)
before = seconds()
settings = ("training.max_epochs=2", "training.batch_size=512", "model.hidden_units=[256,256]")
api.train(sys.argv[1], model="deepfm", settings=settings, run=sys.argv[2], report=False,
          observer=Listener())
print(json.dumps({task: spent - before.get(task, 0) for task, spent in after[-1].items()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see threads")
def test_training_with_one_thread_computes_in_one_thread(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", _THREADS_WORKER, str(make_dataset(train=8000).path)]

    done = subprocess.run(
        [*command, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    spent = sorted(json.loads(done.stdout).values(), reverse=True)
    # The loader's and TensorBoard's threads only wait; a second compute thread would do half.
    assert spent[0] > 0
    assert sum(spent[1:]) <= 0.25 * sum(spent)


@pytest.mark.slow
def test_training_starts_from_the_weights_of_another_model(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset(train=2000)
    train(dataset, _settings(max_epochs=4), tmp_path / "first")
    start = load_trained(tmp_path / "first")
    still = _settings(max_epochs=1).to_table()
    still["optimizer"] |= {"embedding_lr": 1e-12, "dense_lr": 1e-12}

    train(dataset, run_config_from_table(still), tmp_path / "second", start=start)

    # Steps of no length leave the predictions where they were, and far from those of a new model.
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]["test"]["click"]
        for name in ("first", "second")
    )
    assert second["ne"] == pytest.approx(first["ne"], abs=1e-6)
    train(dataset, run_config_from_table(still), tmp_path / "new")
    new = json.loads((tmp_path / "new" / "metrics.json").read_text())["metrics"]["test"]["click"]
    assert abs(new["ne"] - first["ne"]) > 0.01


def test_run_is_resumed_with_the_weights_that_it_started_from(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()
    train(dataset, _settings(max_epochs=1), tmp_path / "a")
    train(dataset, _settings(max_epochs=1, seed=1), tmp_path / "b")
    starts = [load_trained(tmp_path / name) for name in "ab"]
    train(dataset, _settings(max_epochs=1), tmp_path / "run", start=starts[0])

    again = train(dataset, _settings(max_epochs=1), tmp_path / "run", start=starts[0])

    assert again.status == "finished"
    for other in (starts[1], None):
        with pytest.raises(ConfigError, match="must be resumed with the weights that it started"):
            train(dataset, _settings(max_epochs=1), tmp_path / "run", start=other)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "lr"}, "model.name"),
        ({"config": None}, "model"),
        (
            {"spec": InputSpec(numeric=(), categorical=(), sequences=(), tables=(), tasks=())},
            "inputs",
        ),
    ],
)
def test_start_of_another_kind_is_refused(
    make_dataset: Callable[..., Dataset], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    dataset = make_dataset()
    train(dataset, _settings(max_epochs=1), tmp_path / "a")
    start = replace(load_trained(tmp_path / "a"), **changes)

    with pytest.raises(ConfigError, match=f"start: must be .* got another {what}\\. Train with"):
        train(dataset, _settings(max_epochs=1), tmp_path / "run", start=start)
    assert not (tmp_path / "run" / "config.toml").exists()
