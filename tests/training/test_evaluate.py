"""Metrics and predictions of a split."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis import artifacts
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows, Split
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
    clicks = split.labels()[:, 0].mean()
    assert metrics["click"]["r2"] == pytest.approx(1 - 9.0 / (clicks * (1 - clicks)))


def test_share_of_the_variance_is_unknown_where_there_is_none(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    split = make_dataset().split("test")
    tasks = (Task(name="click", kind="regression"), Task(name="buy", kind="regression"))
    alone = (split.labels()[:, 0] == 1).astype(np.float64)

    metrics = task_metrics(
        _weighted(make_dataset(name="b"), tmp_path, alone),
        np.ones((len(alone), 2)),
        tasks,
        grouped=False,
    )

    assert (metrics["click"]["rmse"], metrics["click"]["r2"]) == (0.0, None)


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


def _weighted(dataset: Dataset, tmp_path: Path, weights: np.ndarray, **changes: object) -> Split:
    """A split of the rows of another with weights, and other columns."""
    split = dataset.split("test")
    rows = EncodedRows(
        row=split.rows(),
        numeric={"price": split.numeric("price")},
        ids={name: split.ids(name) for name in ("user", "item")},
        sequences={"past": (np.zeros((0, 1), np.int32), np.zeros(split.num_rows, np.int64))},
        labels={"click": split.labels()[:, 0], "buy": split.labels()[:, 1]},
        roles={"user": split.role("user")},
        weights=weights.astype(np.float32),
    )
    with DatasetWriter(tmp_path / "weighted", dataset.schema, dataset.spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        writer.append("test", replace(rows, **changes))
        return writer.finish({}).split("test")


def test_regression_metric_counts_weights(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    weights = np.arange(200) % 3
    split = _weighted(make_dataset(), tmp_path, weights)
    errors = np.arange(200) % 7
    tasks = (Task(name="click", kind="regression"), Task(name="buy", kind="regression"))

    metrics = task_metrics(
        split, np.nan_to_num(split.labels()) + errors[:, None], tasks, grouped=False
    )

    known = ~np.isnan(split.labels()[:, 1])
    for task, chosen in (("click", np.ones(200, bool)), ("buy", known)):
        square = (weights * errors**2)[chosen].sum() / weights[chosen].sum()
        assert metrics[task]["rmse"] == pytest.approx(np.sqrt(square))


def test_row_without_a_user_is_a_user_of_its_own(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()
    users = dataset.split("test").role("user").copy()
    alone = np.arange(200) % 2 == 0
    users[alone] = -1
    split = _weighted(dataset, tmp_path, np.ones(200), roles={"user": users})
    # Right for every pair of rows of one user; the other way round for those without.
    click = split.labels()[:, 0]
    predictions = np.where(alone, 0.9 - 0.8 * click, 0.1 + 0.8 * click)[:, None].repeat(2, 1)

    write_predictions(tmp_path / "test.arrow", split, predictions, _TASKS, {})

    assert task_metrics(split, predictions, _TASKS, grouped=True)["click"]["gauc"] == 1.0
    with pa.memory_map(str(tmp_path / "test.arrow")) as source:
        written = pa.ipc.open_file(source).read_all()["user"].to_numpy()
    assert (written[~alone] == users[~alone]).all()
    assert len(set(written[alone])) == 100
    assert (written[alone] < 0).all()
