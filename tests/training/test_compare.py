"""Two runs on the same rows: what may be compared, and what may not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tamis import artifacts
from tamis.errors import ArtifactError, DataError
from tamis.training.compare import compare_runs

ROWS = 400


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes what a finished run leaves behind, with given columns and task kinds."""

    def make(name: str, *, fingerprint: str = "f00d", **changes: Any) -> Path:
        generator = np.random.default_rng(0)
        label = (generator.random(ROWS) < 0.4).astype(np.float32)
        columns: dict[str, Any] = {
            "row": np.arange(ROWS),
            "user": np.arange(ROWS) % 50,
            "label:click": label,
            "prediction:click": np.clip(0.3 + 0.2 * label, 0.01, 0.99).astype(np.float64),
        }
        metrics = changes.pop("metrics", {"click": {"ne": 0.9, "auc": 0.7}})
        columns |= {key.replace("__", ":"): value for key, value in changes.items()}
        run = tmp_path / name
        artifacts.write_json(run / "run.json", {"dataset": {"fingerprint": fingerprint}})
        artifacts.write_json(run / "metrics.json", {"metrics": {"test": metrics}})
        path = run / "predictions" / "test.arrow"
        path.parent.mkdir()
        table = pa.table({key: value for key, value in columns.items() if value is not None})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        artifacts.write_manifest(
            path.parent, kind="predictions", version=1, files=[path], payload={}
        )
        return run

    return make


def test_better_predictions_have_a_lower_ne(make_run: Callable[..., Path]) -> None:
    noise = np.random.default_rng(1).uniform(0.2, 0.6, ROWS)

    (found,) = compare_runs(make_run("a", prediction__click=noise), make_run("b"), split="test")

    assert found.task == "click"
    assert found.ne is not None
    assert found.ne.upper < 0
    assert found.auc is not None
    assert found.auc.candidate == 1.0
    assert found.note == ""


def test_datasets_with_other_fields_but_the_same_rows_are_compared(
    make_run: Callable[..., Path],
) -> None:
    first = make_run("a", fingerprint="beef", user=None)

    (found,) = compare_runs(first, make_run("b"), split="test")

    # The users are known to one of the two, and are those of both.
    assert found.auc is not None
    assert found.auc.units == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label__click": np.ones(ROWS, np.float32)}, "got another label click in the datasets"),
        ({"user": np.arange(ROWS) % 49}, "got another user in the datasets f00d and beef"),
        ({"weight": np.ones(ROWS, np.float32)}, "got another weight in the datasets"),
        ({"row": np.arange(ROWS) + 1}, "must have predicted the same rows of the split 'test'"),
    ],
)
def test_other_logs_are_refused(
    make_run: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    second = make_run("b", fingerprint="beef", **changes)

    with pytest.raises(DataError, match=rf"{message}.*Train both on one dataset"):
        compare_runs(make_run("a"), second, split="test")


def test_tasks_of_another_kind_or_name_are_refused(make_run: Callable[..., Path]) -> None:
    binary = make_run("a")
    regression = make_run("b", metrics={"click": {"rmse": 1.0, "rows": ROWS}})
    other = make_run("c", metrics={"buy": {"ne": 0.5}})

    with pytest.raises(DataError, match=r"of one kind in both runs, got binary in .*regression in"):
        compare_runs(binary, regression, split="test")
    with pytest.raises(DataError, match=r"one task must be binary, got only regression .click.,"):
        compare_runs(regression, regression, split="test")
    with pytest.raises(DataError, match=r"must have a task in common, got click in .*buy in"):
        compare_runs(binary, other, split="test")


def test_regression_beside_a_binary_task_is_noted(make_run: Callable[..., Path]) -> None:
    metrics = {"click": {"ne": 0.9}, "spend": {"rmse": 1.0}}
    spend = np.ones(ROWS, np.float32)
    runs = [make_run(name, metrics=metrics, label__spend=spend) for name in ("a", "b")]

    click, spent = compare_runs(runs[0], runs[1], split="test")

    assert click.ne is not None
    assert spent.ne is spent.auc is None
    assert "there is no paired test" in spent.note


def test_rows_of_one_class_are_noted(make_run: Callable[..., Path]) -> None:
    runs = [make_run(name, label__click=np.zeros(ROWS, np.float32)) for name in ("a", "b")]

    (found,) = compare_runs(runs[0], runs[1], split="test")

    assert found.ne is found.auc is None
    assert "must hold both classes, got 0 positives in 400 observed rows" in found.note


def test_predictions_that_are_not_sealed_are_refused(make_run: Callable[..., Path]) -> None:
    first, second = make_run("a"), make_run("b")
    (second / "predictions" / "manifest.json").unlink()

    with pytest.raises(ArtifactError, match=r"must be finished predictions with a manifest.json"):
        compare_runs(first, second, split="test")


def test_truncated_predictions_are_refused_whatever_the_manifest_says(
    make_run: Callable[..., Path],
) -> None:
    first, second = make_run("a"), make_run("b")
    path = second / "predictions" / "test.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"test.arrow: must hold \d+ bytes"):
        compare_runs(first, second, split="test")

    artifacts.write_manifest(path.parent, kind="predictions", version=1, files=[path], payload={})
    with pytest.raises(ArtifactError, match=r"test.arrow: must be a whole Arrow file"):
        compare_runs(first, second, split="test")


def test_unfinished_run_is_refused(make_run: Callable[..., Path]) -> None:
    first, second = make_run("a"), make_run("b")
    (second / "metrics.json").unlink()
    record = {"status": "running", "dataset": {"fingerprint": "f00d"}}
    (second / "run.json").write_text(json.dumps(record))

    with pytest.raises(ArtifactError, match="b: must be a finished run, got status 'running'"):
        compare_runs(first, second, split="test")
