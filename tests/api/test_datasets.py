"""Logs from Python: what is warned of, what is refused and in which words."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.data.splits import SplitConfig
from tamis.errors import ConfigError, DataError, SchemaError, TamisWarning


@pytest.fixture
def log(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = np.arange(300)
    table = pa.table(
        {
            "user_id": rows % 20,
            "price": generator.random(300),
            "fold": np.where(rows % 3 == 0, "valid", np.where(rows % 3 == 1, "test", "train")),
            "click": generator.integers(0, 2, 300),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def test_what_a_person_should_look_at_is_warned_of_where_the_schema_is_inferred(
    log: Path, tmp_path: Path
) -> None:
    with pytest.warns(TamisWarning, match="no column was recognised as one, so rows") as caught:
        api.ingest(log, tmp_path / "data", labels=["click"])
    assert [Path(one.filename) for one in caught] == [Path(__file__)]
    with pytest.warns(TamisWarning, match="no column was recognised as one, so rows") as caught:
        api.infer_schema(log, tmp_path / "schema.toml", labels=["click"])
    assert [Path(one.filename) for one in caught] == [Path(__file__)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.ingest(log, tmp_path / "other", schema=tmp_path / "schema.toml")
        # Nobody splits by time here.
        by_user = SplitConfig(by="user")
        api.ingest(log, tmp_path / "by-user", labels=["click"], split=by_user)
        api.ingest({"train": log, "valid": log}, tmp_path / "split", labels=["click"])


def test_what_splits_lack_is_warned_of_or_told(log: Path, tmp_path: Path) -> None:
    schema = api.schema_of(log, ["click"]).schema
    by_fold = api.split_config("fold", valid=0.1, test=0.1)

    with pytest.warns(TamisWarning, match="fold: no row of valid and test has a value") as caught:
        api.ingest(log, tmp_path / "data", schema=schema, split=by_fold)
    assert [Path(one.filename) for one in caught] == [Path(__file__)]

    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.ingest(log, tmp_path / "more", schema=schema, split=by_fold, on_warning=told.append)
        api.ingest(log, tmp_path / "other", labels=["click"], on_warning=told.append)
    assert [text.split(":")[0] for text in told] == ["fold", "time"]


def test_column_that_names_the_split_is_no_input(log: Path, tmp_path: Path) -> None:
    split = api.split_config("fold", valid=0.1, test=0.1)

    dataset = api.ingest(log, tmp_path / "data", labels=["click"], split=split)

    assert [field.name for field in dataset.schema.fields] == ["user_id", "price"]
    assert [one.reason for one in dataset.schema.ignored] == ["says which split a row belongs to"]
    assert dataset.split("valid").num_rows == 100


def test_time_that_may_be_there_is_warned_of_once(log: Path, tmp_path: Path) -> None:
    table = pq.read_table(log)
    table = table.append_column("logged", pa.array([1_700_000_000 + k // 3 for k in range(300)]))
    pq.write_table(table, tmp_path / "timed.parquet")

    (warning,) = api.schema_of(tmp_path / "timed.parquet", ["click"]).warnings

    assert warning.startswith("logged: may be the time of the row")


@pytest.mark.parametrize("name", ["", "__index_level_0__", "Unnamed: 0"])
def test_index_of_a_frame_is_no_input(tmp_path: Path, name: str) -> None:
    rows = np.arange(300)
    click = np.random.default_rng(0).integers(0, 2, 300)
    table = pa.table({name: rows, "user_id": rows % 20, "price": rows % 7 / 3, "click": click})
    pyarrow.csv.write_csv(table, tmp_path / "log.csv")

    found = api.schema_of(tmp_path / "log.csv", ["click"])

    assert [field.name for field in found.schema.fields] == ["user_id", "price"]
    assert [(one.column, one.reason) for one in found.schema.ignored] == [(name, "numbers rows")]
    what = name or "a column without a name"
    assert f"{what}: left out, it is named like an index, which numbers rows" in found.warnings


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (7, "got int"),
        ({"train": 7}, "got int"),
        ([pa.table({"x": [1]})], "got Table"),
        ({"log.csv"}, "got set"),
        ((path for path in ["log.csv"]), "got generator"),
        ({}, "got an empty mapping"),
        ({"train": {"a": "log.csv"}}, "got dict"),
    ],
)
def test_source_that_is_no_path_is_refused(tmp_path: Path, source: Any, got: str) -> None:
    with pytest.raises(DataError, match=f"^source: must .*{got}"):
        api.ingest(source, tmp_path / "data", labels=["click"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "click"}, r"labels: must be a list of texts, got 'click'"),
        ({"labels": None}, r"labels: must be a list of texts, got None. Make a list"),
        ({"labels": [1], "schema": "schema.toml"}, r"labels: must be a list of texts, got \[1\]"),
        ({"split": "user"}, r"split: must be a SplitConfig, got 'user'. Make one, such as"),
    ],
)
def test_arguments_of_another_kind_are_refused(
    log: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        api.ingest(log, tmp_path / "data", **{"labels": ["click"], **arguments})


def test_split_beside_logs_that_are_split_is_refused_at_once(log: Path, tmp_path: Path) -> None:
    logs = {"train": log, "valid": log}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match="must not be given for logs that are split already"):
            api.ingest(logs, tmp_path / "data", labels=["click"], split=SplitConfig(by="user"))


def test_unknown_way_to_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="by must be one of auto, time, user, ratio, column, got"):
        SplitConfig(by="tim")  # type: ignore[arg-type]


def test_field_that_reads_the_label_is_refused(log: Path) -> None:
    schema = api.schema_of(log, ["click"]).schema
    text = (
        schema.to_editable_toml()
        + '\n[[fields]]\nname = "leak"\ncolumn = "click"\nkind = "numeric"\n'
    )
    path = log.parent / "schema.toml"
    path.write_text(text)

    with pytest.raises(SchemaError, match="'click': a label must not be an input too, got field"):
        api.ingest(log, log.parent / "data", schema=path)


def test_schema_is_written_to_a_path_in_text(log: Path, tmp_path: Path) -> None:
    written = api.infer_schema(log, str(tmp_path / "schema.toml"), labels=["click"])

    assert api.ingest(log, tmp_path / "data", schema=written).split("train").num_rows > 200


@pytest.fixture
def dataset(log: Path, tmp_path: Path) -> Path:
    api.ingest(log, tmp_path / "data", labels=["click"])
    return tmp_path / "data"


def test_dataset_is_read_and_trained_on_from_another_folder(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset.parent)
    opened = api.open_dataset("data")
    (dataset.parent / "elsewhere").mkdir()
    os.chdir("elsewhere")

    run = api.train(opened, model="lr", run="run", settings=["training.max_epochs=1"], report=False)

    assert api.dataset_of(run) == dataset.resolve()
    assert repr(opened) == "Dataset('data': train 243, valid 27, test 30 rows)"


@pytest.mark.parametrize(
    ("read", "name", "names"),
    [
        ("numeric", "user_id", "price"),
        ("numeric", "no", "price"),
        ("ids", "price", "user_id, fold"),
    ],
)
def test_column_of_another_kind_is_refused(dataset: Path, read: str, name: str, names: str) -> None:
    split = api.open_dataset(dataset).split("train")
    call: Callable[[str], Any] = getattr(split, read)

    with pytest.raises(DataError, match=rf"must have a \w+ field '{name}', got {names}\."):
        call(name)
    assert len(split.numeric("price")) == len(split.ids("user_id")) == split.num_rows
