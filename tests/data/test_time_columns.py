"""Which column is the time, and what is said of those that may be."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.inference import InferredSchema, infer_schema
from tamis.data.splits import SplitConfig

SECOND = 1_700_000_000


def _infer(tmp_path: Path, name: str, values: Sequence[object], **split: str) -> InferredSchema:
    clicks = np.random.default_rng(0).integers(0, 2, len(values))
    rows = [f"x{k % 3};{value};{clicks[k]}" for k, value in enumerate(values)]
    (tmp_path / "log.csv").write_text("\n".join([f"device;{name};click", *rows]) + "\n")
    return infer_schema(tmp_path / "log.csv", ["click"], split=SplitConfig(**split))


@pytest.mark.parametrize(
    "values",
    [
        [SECOND + 60 * (k // 4) for k in range(200)],
        [1000 * SECOND + 60 * (k // 4) for k in range(200)],
        [SECOND + 60.5 * (k // 4) for k in range(199)] + ["inf"],
        [f"2024-01-{k // 8 + 1:02}" for k in range(200)],
    ],
    ids=["seconds", "milliseconds", "an infinity", "days"],
)
def test_times_under_another_name_are_inputs_with_a_warning(
    tmp_path: Path, values: list[object]
) -> None:
    inferred = _infer(tmp_path, "logged", values)

    assert inferred.warnings == (
        "logged: may be the time of the row, or of something else; roles.time is empty and rows "
        "are split at random; set roles.time = 'logged' if it is the row's",
    )
    assert inferred.times == ("logged",)
    assert [field.name for field in inferred.schema.fields] == ["device", "logged"]


@pytest.mark.parametrize(
    ("first", "form", "is_input"),
    [
        ("01/01/2024 10:00", "{day:02}/01/2024 10:{minute:02}", False),
        ("2024/01/01 10:00:00", "2024/01/{day:02} 10:{minute:02}:00", False),
        ("01/Jan/2024:10:00:00 +0000", "{day:02}/Jan/2024:10:{minute:02}:00 +0000", False),
        ("Mon Jan 01 10:00:00 2024", "Mon Jan {day:02} 10:{minute:02}:00 2024", False),
        ("1.1.2024", "{day}.1.2024", True),
        (20240101, "202401{day:02}", True),
        (20240101100000, "202401{day:02}10{minute:02}00", True),
    ],
)
def test_times_that_are_not_read_are_said_under_any_name(
    tmp_path: Path, first: object, form: str, is_input: bool
) -> None:
    values = [form.format(day=k // 8 + 1, minute=k // 4 % 60) for k in range(200)]

    inferred = _infer(tmp_path, "logged", values)

    assert inferred.warnings == (
        f"logged: {'' if is_input else 'left out, '}looks like a time of a form that is not read "
        f"(such as {first!r}), so that roles.time is empty and rows are split at random; if it is "
        f"the time of the row, write it as ISO 8601 or a number since 1970",
    )
    assert ("logged" in {field.name for field in inferred.schema.fields}) == is_input


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("thing_id", [SECOND + k // 4 for k in range(200)]),
        ("area", [100_000_000 + 20_000_000 * (k % 150) for k in range(200)]),
        ("bytes", [900_000_000 + k // 4 for k in range(200)]),
        ("address", [f"10.0.{k % 9}.{k % 7}" for k in range(200)]),
        ("version", [f"1.{k % 12}.{k % 28}" for k in range(200)]),
        ("slot", [f"{k % 24:02}:00:00" for k in range(200)]),
        ("segment", [f"market {k % 28}" for k in range(200)]),
        ("game", [f"Mario {k % 9}" for k in range(200)]),
        ("number", [3_100_000_000 + k // 4 for k in range(200)]),
    ],
)
def test_ids_numbers_and_codes_are_not_taken_for_times(
    tmp_path: Path, name: str, values: list[object]
) -> None:
    assert _infer(tmp_path, name, values).warnings == ()


def test_hours_in_digits_are_no_seconds(tmp_path: Path) -> None:
    hours = [2_024_013_100 + k % 24 for k in range(200)]
    (warning,) = _infer(tmp_path, "logged", hours).warnings

    assert warning.startswith("logged: looks like a time of a form that is not read (such as 20240")


def test_column_of_times_gets_one_warning(tmp_path: Path) -> None:
    # Every row has another value, and so it would be left out whatever it holds.
    (warning,) = _infer(tmp_path, "ts", [20_240_101_100_000 + k for k in range(200)]).warnings

    assert warning.startswith("ts: left out, nearly every row has another value; named like a time")


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"by": "time"}, "roles.time is empty and rows cannot be split by time; set"),
        ({"by": "ratio"}, "roles.time is empty; set"),
    ],
)
def test_what_is_said_of_the_split_is_so(tmp_path: Path, split: dict[str, str], said: str) -> None:
    (warning,) = _infer(tmp_path, "logged", [SECOND + k // 4 for k in range(200)], **split).warnings

    assert said in warning


def test_when_is_the_name_of_a_time(tmp_path: Path) -> None:
    inferred = _infer(tmp_path, "when", [1000 * SECOND + k // 4 for k in range(200)])

    assert inferred.schema.roles.time == "when"
    assert inferred.warnings == ()


def _infer_two(tmp_path: Path, columns: dict[str, list[object]]) -> InferredSchema:
    count = len(next(iter(columns.values())))
    clicks = np.random.default_rng(0).integers(0, 2, count)
    lines = [";".join(map(str, row)) for row in zip(*columns.values(), clicks, strict=True)]
    (tmp_path / "log.csv").write_text("\n".join([";".join([*columns, "click"]), *lines]) + "\n")
    return infer_schema(tmp_path / "log.csv", ["click"])


def test_the_time_is_the_column_that_rises_from_row_to_row(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(200)
    signed_up = [f"2023-0{1 + user % 9}-01T10:00:00" for user in shuffled]
    # As many different ones, in no order.
    starts = [SECOND + 7 * int(user) for user in shuffled]
    logged = [SECOND + 60 * k for k in range(200)]
    columns = {"signup_time": signed_up, "start_ts": starts, "event_ts": logged}
    inferred = _infer_two(tmp_path, {"device": ["x", "y"] * 100, **columns})

    assert inferred.schema.roles.time == "event_ts"
    assert [text for text in inferred.warnings if "may be the time of the row too" in text] == [
        f"{name}: may be the time of the row too; roles.time is 'event_ts', set it to {name!r} if "
        f"that says when a row was logged"
        for name in ("start_ts", "signup_time")
    ]


def test_the_time_is_finer_than_the_day_beside_it(tmp_path: Path) -> None:
    days = [f"2024-01-{1 + k // 20:02}" for k in range(200)]
    times = [f"{day} {10 + k % 20 // 2}:00:00" for k, day in enumerate(days)]
    inferred = _infer_two(tmp_path, {"device": ["x", "y"] * 100, "date": days, "ts": times})

    assert inferred.schema.roles.time == "ts"


def test_hours_written_in_digits_are_no_seconds(tmp_path: Path) -> None:
    values = [int(f"202501{1 + k // 24:02}{k % 24:02}") for k in range(200)]
    inferred = _infer(tmp_path, "event_time", values)

    assert not inferred.schema.roles.time
    (warning,) = inferred.warnings
    assert "named like a time, but 0% of its values can be read as one" in warning


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (pa.array(np.arange(-200, 0) * 86_400, pa.timestamp("s")), "'1969-06-15 00:00:00."),
        (pa.array(np.arange(-200, 0), pa.int32()).cast(pa.date32()), "'1969-06-15'"),
        (pa.array([f"1492-10-{1 + k % 28:02} 10:00:00" for k in range(200)]), "'1492-10-01 10:0"),
        (pa.array([k // 4 for k in range(200)]), "0)"),
        (pa.array([k // 4 + 0.5 for k in range(200)]), "0.5)"),
    ],
    ids=["time stamps", "dates", "texts", "integers", "floats"],
)
def test_times_of_another_age_are_said_to_be_so(
    tmp_path: Path, values: pa.Array, first: str
) -> None:
    clicks = np.random.default_rng(0).integers(0, 2, 200)
    table = {"device": ["x", "y"] * 100, "event_time": values, "click": clicks}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")

    (warning,) = infer_schema(tmp_path / "log.parquet", ["click"]).warnings

    assert (
        f"named like a time, but 100% of its values lie outside of 1973 to 2128 (the first is "
        f"{first}"
    ) in warning
    assert warning.endswith("write it as ISO 8601 or a number since 1970, between 1973 and 2128")
