"""Metrics and predictions of a split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis import artifacts
from tamis.data.dataset import Dataset
from tamis.data.schema import Task
from tamis.errors import ArtifactError
from tamis.training.config import run_config_from_table
from tamis.training.evaluate import ne_gaps, task_metrics, write_predictions
from tamis.training.loop import train

_TASKS = (Task(name="click"), Task(name="buy", observed_when="click"))


def test_task_metrics_count_observed_labels_only(make_dataset: Callable[..., Dataset]) -> None:
    split = make_dataset().split("test")
    labels = split.labels()
    predictions = np.full((200, 2), 0.25)

    metrics = task_metrics(split, predictions, _TASKS, grouped=True)

    assert metrics["click"]["rows"] == 200
    assert metrics["buy"]["rows"] == int((labels[:, 0] == 1).sum()) < 200
    # One probability for all: rows cannot be told apart.
    assert metrics["click"]["auc"] == 0.5
    assert metrics["click"]["gauc"] == 0.5
    positives = labels[:, 0].mean()
    assert metrics["click"]["log_loss"] == pytest.approx(
        -positives * np.log(0.25) - (1 - positives) * np.log(0.75)
    )


def test_regression_metric_is_the_root_of_the_mean_square(
    make_dataset: Callable[..., Dataset],
) -> None:
    split = make_dataset().split("test")
    tasks = (Task(name="click", kind="regression"), Task(name="buy", kind="regression"))
    predictions = split.labels().astype(np.float64) + np.array([3.0, -0.5])

    metrics = task_metrics(split, np.nan_to_num(predictions), tasks, grouped=False)

    assert metrics["click"]["rmse"] == pytest.approx(3.0)
    assert metrics["buy"]["rmse"] == pytest.approx(0.5)


def test_probabilities_are_compared_as_such(make_dataset: Callable[..., Dataset]) -> None:
    split = make_dataset().split("test")
    tasks = (Task(name="click", kind="probability"), Task(name="buy", kind="probability"))
    predictions = np.full((split.num_rows, 2), 0.5)

    metrics = task_metrics(split, predictions, tasks, grouped=False)

    # Labels are 0 or 1: each costs log 2, and is off by a half.
    assert metrics["click"]["divergence"] == pytest.approx(np.log(2))
    assert metrics["buy"]["rmse"] == pytest.approx(0.5)
    assert metrics["buy"]["rows"] == np.isfinite(split.labels()[:, 1]).sum()


def test_ne_gap_is_the_model_less_the_truth() -> None:
    metrics = {"click": {"ne": 0.9}, "buy": {"ne": None}}
    oracle = {"click": {"ne": 0.75}, "buy": {"ne": 0.5}}

    assert ne_gaps(metrics, oracle) == {"click": pytest.approx(0.15), "buy": None}


def test_predictions_come_back_as_written(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    split = make_dataset().split("test")
    predictions = np.random.default_rng(0).random((200, 2))

    write_predictions(tmp_path / "p.arrow", split, predictions, _TASKS, {})

    with pa.memory_map(str(tmp_path / "p.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.column_names == [
            "row",
            "user",
            "label:click",
            "prediction:click",
            "label:buy",
            "prediction:buy",
        ]
        assert np.array_equal(table["prediction:buy"].to_numpy(), predictions[:, 1])
        np.testing.assert_array_equal(table["label:buy"].to_numpy(), split.labels()[:, 1])
        assert np.array_equal(table["row"].to_numpy(), split.rows())


def test_predictions_of_a_run_are_sealed(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    settings = run_config_from_table(
        {"model": {"name": "lr"}, "training": {"batch_size": 64, "max_epochs": 1}}
    )
    train(make_dataset(), settings, tmp_path / "run")
    folder = tmp_path / "run" / "predictions"

    manifest = artifacts.read_manifest(folder, kind="predictions", version=1, verify=True)
    assert set(manifest["files"]) == {"valid.arrow", "test.arrow"}

    content = bytearray((folder / "test.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "test.arrow").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"test\.arrow: must have sha256"):
        artifacts.read_manifest(folder, kind="predictions", version=1, verify=True)
