"""The log of a cascade: what its rows may say, and that they come back as written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.cascade_log import (
    CascadeLog,
    cascade_schema,
    read_cascade_log,
    write_cascade_log,
)
from tamis.data.ingest import ingest
from tamis.data.market import market_schema
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.data.splits import SplitConfig
from tamis.errors import ArtifactError, DataError, SchemaError
from tamis.training.config import run_config_from_table
from tamis.training.loop import train

_NAN = float("nan")


def _log(**changes: object) -> CascadeLog:
    columns = {
        "request": np.array([1, 1, 1, 2, 2]),
        "candidate": np.array([7, 8, 9, 7, 8]),
        "pool": np.array([0, 1, 2, 0, 2], np.int8),
        "sampling_rate": np.array([1.0, 1.0, 0.01, 1.0, 0.5]),
        "labels": {"click": np.array([1, _NAN, _NAN, 0, _NAN], np.float32)},
        "final": {"click": np.array([0.5, 0.25, _NAN, 0.125, 0.75], np.float32)},
    }
    return CascadeLog(**(columns | changes))


def _replaced(values: list[float], row: int, value: float) -> np.ndarray:
    return np.array([*values[:row], value, *values[row + 1 :]], np.float32)


def test_weights_undo_the_sampling_up_to_the_cap() -> None:
    assert _log().weights(cap=20).tolist() == [1, 1, 20, 1, 2]
    assert _log().weights(cap=1000).tolist() == pytest.approx([1, 1, 100, 1, 2])
    with pytest.raises(DataError, match=r"cap of weights must be at least 1, got 0.5"):
        _log().weights(cap=0.5)


def test_counts_say_what_each_pool_teaches() -> None:
    counts = _log().counts()

    assert [counts[pool].rows for pool in ("impressed", "scored", "rejected")] == [2, 1, 2]
    assert [count.labels["click"] for count in counts.values()] == [2, 0, 0]
    assert [count.final["click"] for count in counts.values()] == [2, 1, 1]
    assert [count.candidates for count in counts.values()] == pytest.approx([2, 1, 102])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sampling_rate": np.array([1, 1, 0.0, 1, 1])},
            r"sampling_rate must be in \(0, 1\], got 0.0 in row 2 \(pool 2; 1 such rows\)",
        ),
        (
            {"sampling_rate": np.array([1, 1, 1.5, 1, 1])},
            r"sampling_rate must be in \(0, 1\], got 1.5 in row 2",
        ),
        ({"pool": np.array([0, 1, 3, 0, 2], np.int8)}, r"pool must be the place of .* got 3 in"),
        (
            {"labels": {"click": _replaced([1, _NAN, _NAN, 0, _NAN], 1, 0.0)}},
            r"click must be NaN for a candidate that nobody saw, got 0.0 in row 1 \(pool 1",
        ),
        (
            {"labels": {"click": _replaced([1, _NAN, _NAN, 0, _NAN], 0, 0.5)}},
            r"click must be 0, 1 or NaN, got 0.5 in row 0",
        ),
        (
            {"final": {"click": _replaced([0.5, 0.25, _NAN, 0.1, 0.7], 1, _NAN)}},
            r"final_click must be known in the scored pool, got nan in row 1",
        ),
        (
            {"final": {"click": _replaced([0.5, 0.25, _NAN, 0.1, 0.7], 4, 1.25)}},
            r"final_click must be in \[0, 1\] or NaN, got 1.25 in row 4",
        ),
        (
            {"candidate": np.array([7, 8, 7, 7, 8])},
            r"must stand once in a request, got candidate 7 twice in request 1",
        ),
        (
            {"candidate": np.array([7, 8])},
            r"column 'candidate_id' must be of shape \(5,\) as request_id is, got \(2,\)",
        ),
    ],
)
def test_rows_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _log(**change)


def test_log_comes_back_as_written(tmp_path: Path) -> None:
    path, log = tmp_path / "log.parquet", _log()
    inputs = pa.table({"user": ["a", "a", "a", "b", "b"], "price": [1.0, 2.0, 3.0, 4.0, 5.0]})
    write_cascade_log(path, log, inputs, user_column="user", weight_cap=20)

    found = read_cascade_log(path)

    for name in ("request", "candidate", "pool", "sampling_rate"):
        np.testing.assert_array_equal(getattr(found, name), getattr(log, name))
    np.testing.assert_array_equal(found.labels["click"], log.labels["click"])
    np.testing.assert_array_equal(found.final["click"], log.final["click"])
    table = pq.read_table(path)
    assert table["weight"].to_pylist() == [1, 1, 20, 1, 2]
    pools = ["impressed", "scored", "rejected"]
    assert table["pool"].to_pylist() == [*pools, "impressed", "rejected"]
    assert table["price"].to_pylist() == inputs["price"].to_pylist()


def test_selected_rows_are_a_log() -> None:
    log = _log()
    some = log.select(log.pool == 2)

    assert some.candidate.tolist() == [9, 8]
    assert some.sampling_rate.tolist() == [0.01, 0.5]


def test_request_of_several_users_is_refused(tmp_path: Path) -> None:
    inputs = pa.table({"user": ["a", "a", "c", "b", "b"]})
    with pytest.raises(DataError, match=r"must have one user, got several in request 1"):
        write_cascade_log(
            tmp_path / "log.parquet", _log(), inputs, user_column="user", weight_cap=1
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"user": ["a"]}, "must hold the 5 rows of the log, got 1"),
        ({"user": ["a"] * 5, "pool": [0] * 5}, "must not hold columns of the log, got pool"),
        ({"person": ["a"] * 5}, "must hold the user's column 'user', got person"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, inputs: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_cascade_log(
            tmp_path / "log.parquet", _log(), pa.table(inputs), user_column="user", weight_cap=1
        )


def test_other_file_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"user": [1]}), path)
    with pytest.raises(ArtifactError, match="must be a cascade log of version 1, got version None"):
        read_cascade_log(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ArtifactError, match="must be a Parquet file"):
        read_cascade_log(path)


def test_schema_distils_tasks_and_shows_nothing_of_the_cascade() -> None:
    schema = cascade_schema(market_schema(), final=("click", "conversion", "hide"))

    assert [task.name for task in schema.tasks] == [
        "click",
        "conversion",
        "hide",
        "final_click",
        "final_conversion",
        "final_hide",
    ]
    assert [task.distils for task in schema.tasks[3:]] == ["click", "conversion", "hide"]
    assert all(task.may_be_missing for task in schema.tasks if not task.observed_when)
    assert schema.roles.weight == "weight"
    sources = {field.source for field in schema.fields}
    assert not any(name.startswith("final_") for name in sources)
    assert not sources & {"pool", "sampling_rate", "weight", "request_id", "candidate_id"}


@pytest.mark.parametrize("column", ["final_click", "pool", "sampling_rate"])
def test_early_stage_that_peeks_at_the_cascade_is_refused(column: str) -> None:
    schema = Schema(
        fields=(Field(name="x", kind="numeric", column=column),), tasks=(Task(name="click"),)
    )
    with pytest.raises(SchemaError, match=f"'x': must read a column of another name .*{column}"):
        cascade_schema(schema, final=("click",))


def test_final_stage_predicts_tasks_of_the_schema() -> None:
    with pytest.raises(SchemaError, match=r"must hold tasks of \['click', .* got 'like'"):
        cascade_schema(market_schema(), final=("like",))


@pytest.fixture
def cascade(tmp_path: Path) -> Callable[..., Path]:
    """Write a log of requests with ten candidates: two shown, four scored, four rejected."""

    def write(requests: int = 120) -> Path:
        generator = np.random.default_rng(0)
        count = requests * 10
        request, place = np.divmod(np.arange(count), 10)
        user, ad = generator.integers(0, 15, requests)[request], generator.integers(0, 900, count)
        ad = (ad // 10) * 10 + place  # Differs within a request.
        rate = 0.1 + 0.5 * ((user + ad) % 2)
        pool = np.where(place < 2, 0, np.where(place < 6, 1, 2)).astype(np.int8)
        click, hide = (generator.random(count) < rate), (generator.random(count) < 0.3 * (1 - rate))
        conversion = np.where(click, generator.random(count) < 0.4, _NAN)
        shown = pool == 0
        scored = (pool < 2) | (generator.random(count) < 0.5)
        log = CascadeLog(
            request=request,
            candidate=ad,
            pool=pool,
            sampling_rate=np.where(pool == 2, 0.25, 1.0),
            labels={
                name: np.where(shown, values, _NAN).astype(np.float32)
                for name, values in {"click": click, "conversion": conversion, "hide": hide}.items()
            },
            final={
                name: np.where(scored, values, _NAN).astype(np.float32)
                for name, values in {
                    "click": rate,
                    "conversion": np.full(count, 0.4),
                    "hide": 0.3 * (1 - rate),
                }.items()
            },
        )
        part = np.where(request < 100, "train", "valid")
        inputs = pa.table({"user": user, "ad_id": ad % 30, "odd": (ad % 2).astype(float)})
        inputs = inputs.append_column("part", pa.array(part))
        path = tmp_path / "cascade.parquet"
        write_cascade_log(path, log, inputs, user_column="user", weight_cap=3.0)
        return path

    return write


def _cascade_schema() -> Schema:
    impressions = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="ad_id", kind="categorical", side="item"),
            Field(name="odd", kind="numeric", side="item"),
        ),
        tasks=(
            Task(name="click"),
            Task(name="conversion", observed_when="click"),
            Task(name="hide"),
        ),
        roles=Roles(user="user"),
    )
    return cascade_schema(impressions, final=("click", "conversion", "hide"))


def test_dataset_of_a_log_keeps_labels_predictions_and_weights(
    cascade: Callable[..., Path], tmp_path: Path
) -> None:
    path = cascade()
    log = read_cascade_log(path)
    by_part = SplitConfig(by="column", column="part")
    dataset = ingest(path, tmp_path / "data", schema=_cascade_schema(), split=by_part)
    train_split = dataset.split("train")

    rows = train_split.rows()
    expected = log.select(rows)
    columns = [*expected.labels.values(), *expected.final.values()]
    np.testing.assert_array_equal(train_split.labels(), np.stack(columns, axis=1))
    weights = train_split.weights()
    assert weights is not None
    np.testing.assert_array_equal(weights, expected.weights(cap=3.0))
    assert set(np.unique(weights)) == {1.0, 3.0}


def test_early_stage_trains_on_a_log_by_the_ordinary_loop(
    cascade: Callable[..., Path], tmp_path: Path
) -> None:
    by_part = SplitConfig(by="column", column="part")
    dataset = ingest(cascade(), tmp_path / "data", schema=_cascade_schema(), split=by_part)
    settings = run_config_from_table(
        {
            "model": {
                "name": "early_stage",
                "embedding_dim": 4,
                "tower_units": [16],
                "tower_dim": 8,
                "bottom_units": [16],
                "head_units": [],
                "chain": True,
            },
            "training": {
                "batch_size": 100,
                "max_epochs": 15,
                "task_weights": [1.0, 1.0, 1.0, 2.0, 2.0, 2.0],
                "monitor_tasks": ["final_click"],
                "patience": 20,
            },
        }
    )
    metrics = train(dataset, settings, tmp_path / "run").metrics["metrics"]["valid"]

    # The final stage's click rate is 0.1 or 0.6: a constant is off by 0.25.
    assert metrics["final_click"]["rmse"] < 0.15
    assert metrics["final_click"]["rows"] > metrics["click"]["rows"]
    # Quality has a head of its own, with figures of its own.
    assert 0 < metrics["hide"]["auc"] < 1
    assert metrics["hide"]["calibration"] > 0
    assert metrics["final_hide"]["calibration"] == pytest.approx(1, abs=0.3)


def test_log_of_impressions_alone_counts_no_distillation_elsewhere() -> None:
    log = _log()
    counts = log.select(log.pool == 0).counts()

    assert counts["scored"].rows == counts["rejected"].rows == 0
    assert counts["scored"].final == {"click": 0}
