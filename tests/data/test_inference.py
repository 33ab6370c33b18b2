"""Inferred schemas: sensible kinds with reasons, and columns that must not be inputs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.inference import infer_schema
from tamis.errors import DataError

COUNT = 2000


def _write(tmp_path: Path, **columns: object) -> Path:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def columns() -> dict[str, object]:
    generator = np.random.default_rng(0)
    return {
        "user_id": generator.integers(0, 500, COUNT),
        "device": np.array(["ios", "web", "tv"])[generator.integers(0, 3, COUNT)],
        "hour": generator.integers(0, 24, COUNT),
        "price": generator.lognormal(2, 2, COUNT),
        "score": generator.standard_normal(COUNT),
        "tags": np.array(["a|b", "b|c|d", "a"])[generator.integers(0, 3, COUNT)],
        "title": [f"the {a} thing number {b}" for a, b in generator.integers(0, 99, (COUNT, 2))],
        "past": [list(range(k % 4)) for k in range(COUNT)],
        "event_time": np.arange(COUNT) + 1_700_000_000,
        "click": generator.integers(0, 2, COUNT),
    }


def test_kinds_follow_types_and_values(tmp_path: Path, columns: dict[str, object]) -> None:
    schema = infer_schema(_write(tmp_path, **columns), ["click"]).schema

    fields = {field.name: field for field in schema.fields}
    assert {name: field.kind for name, field in fields.items()} == {
        "user_id": "categorical",
        "device": "categorical",
        "hour": "categorical",
        "price": "numeric",
        "score": "numeric",
        "tags": "sequence",
        "title": "text",
        "past": "sequence",
    }
    assert fields["price"].transform == "log"
    assert fields["score"].transform == "standardise"
    assert fields["tags"].separator == "|"
    assert all(field.reason for field in schema.fields)
    assert schema.roles.time == "event_time"
    assert schema.roles.user == "user_id"


def test_label_is_found_by_its_usual_name(tmp_path: Path, columns: dict[str, object]) -> None:
    assert infer_schema(_write(tmp_path, **columns)).schema.tasks[0].name == "click"


def test_column_that_gives_the_label_away_is_left_out_and_said(
    tmp_path: Path, columns: dict[str, object]
) -> None:
    click = np.asarray(columns["click"])
    when = np.where(click == 1, "2024-01-01 10:00", None)
    path = _write(tmp_path, **columns, revenue=click * 1.5, click_time=when)

    inferred = infer_schema(path, ["click"])

    names = {field.name for field in inferred.schema.fields}
    assert not names & {"revenue", "click_time"}
    reasons = {item.column: item.reason for item in inferred.schema.ignored}
    assert "gives the label away" in reasons["revenue"]
    assert any(warning.startswith("revenue: left out") for warning in inferred.warnings)


def test_constant_and_all_different_columns_are_left_out(
    tmp_path: Path, columns: dict[str, object]
) -> None:
    path = _write(tmp_path, **columns, version=["v1"] * COUNT, row=[f"r{k}" for k in range(COUNT)])

    reasons = {item.column: item.reason for item in infer_schema(path, ["click"]).schema.ignored}

    assert reasons["version"] == "it has one value only"
    assert reasons["row"] == "nearly every row has another value"


def test_rare_categories_do_not_look_like_a_leak(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    path = _write(
        tmp_path,
        user_id=generator.integers(0, COUNT, COUNT),
        device=generator.integers(0, 3, COUNT),
        click=generator.integers(0, 2, COUNT),
    )

    names = [field.name for field in infer_schema(path, ["click"]).schema.fields]

    assert names == ["user_id", "device"]


def test_label_that_is_not_there_is_named(tmp_path: Path, columns: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"must hold the label column 'clik'"):
        infer_schema(_write(tmp_path, **columns), ["clik"])


def test_label_of_two_other_values_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, device=["a", "b"] * 50, y=[1, 2] * 50)

    with pytest.raises(DataError, match="a binary label must be 0 or 1, got 1 and 2"):
        infer_schema(path, ["y"])


def test_log_without_any_usable_column_says_why(tmp_path: Path) -> None:
    path = _write(tmp_path, same=[1] * 100, click=[0, 1] * 50)

    with pytest.raises(DataError, match=r"got none beside the labels: same: left out"):
        infer_schema(path, ["click"])
