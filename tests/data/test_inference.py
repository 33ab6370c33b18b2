"""Inferred schemas: sensible kinds with reasons, and columns that must not be inputs."""

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data import sampling
from tamis.data.encoders import Encoders
from tamis.data.inference import infer_schema
from tamis.data.ingest import encode_log, ingest
from tamis.data.splits import SplitConfig
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


def test_label_that_is_guessed_among_several_is_said(
    tmp_path: Path, columns: dict[str, object]
) -> None:
    other = np.random.default_rng(6).integers(0, 2, COUNT)
    path = _write(tmp_path, **columns, label=other, purchase=other)

    guessed = infer_schema(path)

    assert [task.name for task in guessed.schema.tasks] == ["click"]
    assert guessed.warnings[0] == (
        "click: taken as the label, though label, purchase may be it too; name the right one as a "
        "label, or several"
    )
    named = infer_schema(path, ["click"]).warnings
    assert not any("taken as the label" in warning for warning in named)


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


@pytest.mark.parametrize("values", [[np.nan, None], [np.inf, None], [np.inf, -np.inf]])
def test_floats_of_which_none_is_finite_are_left_out(
    tmp_path: Path, columns: dict[str, object], values: list[float | None]
) -> None:
    score = pa.array(values * (COUNT // 2), pa.float64(), from_pandas=False)

    inferred = infer_schema(_write(tmp_path, **columns | {"score": score}), ["click"])

    assert "score: left out, it holds no finite number in any row" in inferred.warnings


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


def test_labels_that_alternate_make_no_column_look_like_a_leak(tmp_path: Path) -> None:
    device = np.random.default_rng(2).integers(0, 3, COUNT)

    schema = infer_schema(_write(tmp_path, device=device, click=[0, 1] * (COUNT // 2))).schema

    assert [field.name for field in schema.fields] == ["device"]


def test_label_that_is_not_there_is_named(tmp_path: Path, columns: dict[str, object]) -> None:
    said = r"must hold the label column '{}', got user_id, .*, click\. {}$"
    path = _write(tmp_path, **columns)

    with pytest.raises(DataError, match=said.format("clik", r"Did you mean 'click'\?")):
        infer_schema(path, ["clik"])
    with pytest.raises(DataError, match=said.format("bought", "Name the right one as the label.")):
        infer_schema(path, ["bought"])


def test_blanks_in_a_header_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("device, click\na,0\nb,1\n")

    for labels in (["click"], []):
        with pytest.raises(DataError, match="got device, ' click'\\. "):
            infer_schema(path, labels)


def test_label_of_two_other_values_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, device=["a", "b"] * 50, y=[1, 2] * 50)

    with pytest.raises(DataError, match="a binary label must be 0 or 1, got 1 and 2"):
        infer_schema(path, ["y"])


def test_log_without_any_usable_column_says_why(tmp_path: Path) -> None:
    path = _write(tmp_path, same=[1] * 100, click=[0, 1] * 50)

    with pytest.raises(DataError, match=r"got none beside the labels: same: left out"):
        infer_schema(path, ["click"])


# Bad values do not change what a column is.


def _csv(tmp_path: Path, **columns: Sequence[object]) -> Path:
    path = tmp_path / "log.csv"
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path


def _good(count: int = 100) -> dict[str, list[object]]:
    generator = np.random.default_rng(3)
    return {
        "device": [("ios", "web", "tv")[k] for k in generator.integers(0, 3, count)],
        "ts": [1_700_000_000 + 60 * k for k in range(count)],
        "click": generator.integers(0, 2, count).tolist(),
    }


@pytest.mark.parametrize("text", [False, True], ids=["numbers", "ISO 8601"])
@pytest.mark.parametrize(
    ("value", "got"),
    [("", "none"), ("nan", "none"), ("hello", "'hello'"), ("-1", "'?-1'?"), ("inf", "'?inf'?")],
)
def test_one_bad_time_leaves_the_time_role_and_is_named_by_ingest(
    tmp_path: Path, value: str, got: str, text: bool
) -> None:
    columns = _good()
    if text:
        columns["ts"] = [f"2024-01-31 10:{k // 60:02}:{k % 60:02}" for k in range(100)]
    columns["ts"][41] = value
    path = _csv(tmp_path, **columns)

    schema = infer_schema(path, ["click"]).schema

    assert schema.roles.time == "ts"
    with pytest.raises(DataError, match=rf"log.csv, column 'ts', row 42: .* got {got}\. "):
        ingest(path, tmp_path / "d", schema=schema)


def test_most_values_suffice_in_a_column_named_like_a_time(tmp_path: Path) -> None:
    columns = _good(20)
    columns["ts"][3:9] = ["?"] * 6

    assert infer_schema(_csv(tmp_path, **columns), ["click"]).schema.roles.time == "ts"


def test_time_stamps_of_parquet_with_a_null_are_times(tmp_path: Path) -> None:
    columns = _good()
    times = pa.array([*columns["ts"][:-1], None], pa.timestamp("s"))
    path = _write(tmp_path, **(columns | {"ts": times}))

    schema = infer_schema(path, ["click"]).schema

    assert schema.roles.time == "ts"
    with pytest.raises(DataError, match=r"'ts', row 100: every row must have a time, got none"):
        ingest(path, tmp_path / "d", schema=schema)


def test_time_of_an_event_that_few_rows_have_is_no_time_of_the_row(tmp_path: Path) -> None:
    columns = _good()
    bought = ["" if k % 4 else "2024-01-31 10:00:07" for k in range(100)]
    del columns["ts"]

    assert not infer_schema(_csv(tmp_path, **columns, buy_time=bought)).schema.roles.time


def test_dates_of_an_unknown_form_are_left_out_with_a_warning(tmp_path: Path) -> None:
    columns = _good() | {"ts": [f"{k % 12 + 1:02}/{k % 28 + 1:02}/2024" for k in range(100)]}

    inferred = infer_schema(_csv(tmp_path, **columns), ["click"])

    assert not inferred.schema.roles.time
    assert [field.name for field in inferred.schema.fields] == ["device"]
    assert [item.column for item in inferred.schema.ignored] == ["ts"]
    (warning,) = inferred.warnings
    assert warning.startswith(
        "ts: left out, named like a time, but 0% of its values can be read as one (such"
    )
    assert "roles.time is empty and rows are split at random" in warning


def test_dates_are_times_in_a_column_named_like_a_day_only(tmp_path: Path) -> None:
    columns = _good()
    del columns["ts"]
    days = [f"2024-01-{k // 4 + 1:02}" for k in range(100)]

    by_day = infer_schema(_csv(tmp_path, **columns, date=days), ["click"])
    by_release = infer_schema(_csv(tmp_path, **columns, release_date=days), ["click"])

    assert by_day.schema.roles.time == "date"
    assert not by_release.schema.roles.time
    assert by_release.warnings[0].startswith("release_date: may be the time of the row, or of some")


@pytest.mark.parametrize(("value", "got"), [(2, "2"), (-1, "-1"), ("inf", "inf")])
def test_one_bad_label_leaves_a_binary_task_and_is_named_by_ingest(
    tmp_path: Path, value: object, got: str
) -> None:
    columns = _good()
    columns["click"][17] = value
    path = _csv(tmp_path, **columns)

    inferred = infer_schema(path, ["click"])

    assert inferred.schema.tasks[0].kind == "binary"
    with pytest.raises(DataError, match=rf"'click', row 18: a binary label must .* got {got}\. "):
        ingest(path, tmp_path / "d", schema=inferred.schema)


def test_infinite_label_of_a_regression_is_named_by_ingest(tmp_path: Path) -> None:
    columns = _good() | {"click": [k / 7 for k in range(100)]}
    columns["click"][17] = "inf"
    path = _csv(tmp_path, **columns)

    schema = infer_schema(path, ["click"]).schema

    assert schema.tasks[0].kind == "regression"
    with pytest.raises(DataError, match=r"'click', row 18: a label must be a finite number, got i"):
        ingest(path, tmp_path / "d", schema=schema)


@pytest.mark.parametrize(
    ("labels", "warning"),
    [
        ([k / 7 for k in range(100)], "it holds 100 different numbers from 0 to 14.1429"),
        ([k % 5 + 1 for k in range(100)], "it holds 5 different whole numbers from 1 to 5"),
        ([0] * 90 + list(range(1, 11)), "it holds 11 different whole numbers from 0 to 10"),
    ],
)
def test_regression_label_is_taken_with_a_warning(
    tmp_path: Path, labels: list[float], warning: str
) -> None:
    inferred = infer_schema(_csv(tmp_path, **(_good() | {"click": labels})), ["click"])

    assert inferred.schema.tasks[0].kind == "regression"
    assert inferred.warnings[0].startswith(f"click: taken as a regression label, since {warning}")


@pytest.mark.parametrize("words", [("True", "False"), ("true", "FALSE")])
def test_true_and_false_are_binary_labels(tmp_path: Path, words: tuple[str, str]) -> None:
    columns = _good()
    columns["click"] = [words[k % 2] for k in range(99)] + ["0"]

    assert infer_schema(_csv(tmp_path, **columns), ["click"]).schema.tasks[0].kind == "binary"


def test_labels_of_other_words_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = _csv(tmp_path, **(_good() | {"click": ["yes", "no"] * 50}))

    with pytest.raises(DataError, match=r"'click', row 1: .* got 'yes'. Map the labels to 0 and 1"):
        infer_schema(path, ["click"])


@pytest.mark.parametrize("first", [2**63, 2**64 + 5], ids=["64 bits", "more"])
def test_ids_beyond_63_bits_are_categories_that_stay_apart(tmp_path: Path, first: int) -> None:
    count = 120
    columns = _good(count) | {"thing": [first + k % 40 for k in range(count)]}
    path = _csv(tmp_path, **columns)

    schema = infer_schema(path, ["click"]).schema
    dataset = ingest(path, tmp_path / "d", schema=schema, split=SplitConfig(by="ratio"))

    assert [field.kind for field in schema.fields if field.name == "thing"] == ["categorical"]
    assert dataset.spec.num_rows_by_table["thing"] == 41


@pytest.mark.parametrize("size", [10**12, 2**64])
def test_whole_decimals_are_integers_or_texts(tmp_path: Path, size: int) -> None:
    ids = pa.array([Decimal(size + k % 80) for k in range(100)], pa.decimal128(38, 0))

    (_, field) = infer_schema(_write(tmp_path, **_good(), ad_id=ids), ["click"]).schema.fields

    said = "strings, 80 values" if size > 2**63 else "integers named like an id"
    assert (field.kind, field.reason) == ("categorical", said)


def test_ids_of_json_beyond_64_bits_stay_apart_and_large_floats_are_warned_of(
    tmp_path: Path,
) -> None:
    rows = [
        {"user_id": 2**63 + 10**6 + k % 40, "ad_id": 2.0**60 + 2**12 * (k % 9), "click": k // 2 % 2}
        for k in range(120)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))

    inferred = infer_schema(tmp_path / "log.jsonl")
    split = SplitConfig(by="ratio")
    dataset = ingest(tmp_path / "log.jsonl", tmp_path / "d", schema=inferred.schema, split=split)

    assert dataset.spec.num_rows_by_table["user_id"] == 41
    assert [text.split(" as ")[0] for text in inferred.warnings] == [
        "ad_id: holds whole numbers of 2^53 and more"
    ]


def test_large_floats_stay_numbers(tmp_path: Path) -> None:
    columns = _good() | {"mass": [f"{k + 1}.5e24" for k in range(100)]}

    schema = infer_schema(_csv(tmp_path, **columns), ["click"]).schema

    assert [field.kind for field in schema.fields if field.name == "mass"] == ["numeric"]


def test_number_column_with_a_word_is_a_category_with_a_warning(tmp_path: Path) -> None:
    columns = _good() | {"size": [k % 30 for k in range(99)] + ["huge"]}

    warnings = infer_schema(_csv(tmp_path, **columns), ["click"]).warnings

    assert warnings == (
        "size: taken as a category, since 'huge' is no number as nearly all other values are; "
        "mend it if the column is numeric",
    )


def test_value_of_another_type_in_a_later_block_does_not_end_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_BLOCK_BYTES", 512)
    columns = _good() | {"shop": [k % 30 for k in range(99)] + ["A7"]}

    schema = infer_schema(_csv(tmp_path, **columns), ["click"]).schema

    assert [field.kind for field in schema.fields if field.name == "shop"] == ["categorical"]


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (None, pa.null(), "it holds no value in any row"),
        ({"a": 1}, None, "its type is struct<a: int64>: each of its values is a record"),
        ([("a", 1)], pa.map_(pa.string(), pa.int64()), "its type is map<string, int64"),
        ([[1]], None, "its type is list<"),
        ([{"a": 1}], None, "its type is list<"),
        (1, pa.duration("s"), "its type is duration["),
        (1, pa.time32("s"), "its type is time32["),
        (b"\xff", None, "its type is binary: its values are bytes"),
    ],
)
def test_column_of_a_type_that_can_be_nothing_is_left_out_with_a_reason(
    tmp_path: Path, value: object, kind: pa.DataType | None, reason: str
) -> None:
    path = _write(tmp_path, **_good(), odd=pa.array([value] * 100, kind))

    inferred = infer_schema(path, ["click"])

    assert [field.name for field in inferred.schema.fields] == ["device"]
    assert inferred.schema.ignored[-1].reason.startswith(reason)
    assert inferred.warnings[0].startswith(f"odd: left out, {reason}")


def test_dictionaries_views_decimals_and_lists_of_a_fixed_size_are_what_they_hold(
    tmp_path: Path,
) -> None:
    numbers = np.random.default_rng(4).integers(0, 30, 100)
    path = _write(
        tmp_path,
        **_good(),
        kind=pa.array([f"k{k}" for k in numbers]).dictionary_encode(),
        code=pa.array(numbers).dictionary_encode(),
        name=pa.array([f"n{k}" for k in numbers], pa.string_view()),
        price=pa.array([f"{k}.{m:02}" for m, k in enumerate(numbers)]).cast(pa.decimal128(9, 2)),
        past=pa.array([[int(k), 1] for k in numbers], pa.list_(pa.int64(), 2)),
    )

    schema = infer_schema(path, ["click"]).schema
    ingest(path, tmp_path / "d", schema=schema)

    assert {field.name: field.kind for field in schema.fields} == {
        "device": "categorical",
        "kind": "categorical",
        "code": "categorical",
        "name": "categorical",
        "price": "numeric",
        "past": "sequence",
    }


def test_times_of_day_in_text_are_categories(tmp_path: Path) -> None:
    columns = _good() | {"slot": [f"{k % 24:02}:00:00" for k in range(100)]}

    fields = infer_schema(_csv(tmp_path, **columns), ["click"]).schema.fields

    assert {field.name: field.kind for field in fields}["slot"] == "categorical"


def test_texts_in_square_brackets_are_sequences_of_their_items(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    pairs = [f'"[{a}, {b}]"' for a, b in generator.integers(1, 4, (100, 2))]
    path = _csv(tmp_path, **_good(), past=pairs)

    schema = infer_schema(path, ["click"]).schema
    dataset = ingest(path, tmp_path / "d", schema=schema)

    field = next(field for field in schema.fields if field.name == "past")
    assert (field.kind, field.separator) == ("sequence", ",")
    encoders = Encoders.load(dataset.encoders_path, schema)
    assert sorted(encoders.vocabularies["past"].values.to_pylist()) == ["1", "2", "3"]
    (rows,) = encode_log(path, encoders)
    assert rows.sequences["past"][1].tolist() == [2] * 100
    assert encoders.counts["past"].unknown == 0


@pytest.mark.parametrize("name", ["campaign_id", "user_id", "item"])
def test_whole_floats_named_like_an_id_are_categories(tmp_path: Path, name: str) -> None:
    ids = pa.array([None if k % 9 == 0 else float(k % 80) for k in range(100)])

    (_, field) = infer_schema(_write(tmp_path, **_good(), **{name: ids}), ["click"]).schema.fields

    assert (field.kind, field.reason) == ("categorical", "whole numbers named like an id")


def test_whole_floats_of_another_name_and_fractions_stay_numbers(tmp_path: Path) -> None:
    columns = {"age": [float(k % 80) for k in range(100)], "bid": [k / 7 for k in range(100)]}

    fields = infer_schema(_write(tmp_path, **_good(), **columns), ["click"]).schema.fields

    assert [field.kind for field in fields] == ["categorical", "numeric", "numeric"]


def test_request_groups_rows_and_is_no_input(tmp_path: Path) -> None:
    requests = [f"r{k // 4}" for k in range(100)]

    inferred = infer_schema(_csv(tmp_path, **_good(), request_id=requests), ["click"])

    assert inferred.schema.roles.request == "request_id"
    assert [field.name for field in inferred.schema.fields] == ["device"]
    ignored = {item.column: item.reason for item in inferred.schema.ignored}
    assert ignored["request_id"] == "groups rows, not an input"
    assert inferred.warnings == ()


def test_csv_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,click,a\n1,0,2\n2,1,3\n")

    with pytest.raises(DataError, match=r"log.csv: column names must differ, got 'a' twice"):
        infer_schema(tmp_path / "log.csv")


def test_ragged_row_is_named_when_inferring(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,click\n1,0\n2,1,3\n")

    with pytest.raises(DataError, match=r"log.csv, row 2: every row must have as many values"):
        infer_schema(tmp_path / "log.csv")


def test_lines_that_end_in_a_carriage_return_alone_are_read(tmp_path: Path) -> None:
    rows = [f"{'ab'[k % 2]},{k // 2 % 2}" for k in range(100)]
    (tmp_path / "log.csv").write_bytes("\r".join(["device,click", *rows, ""]).encode())

    assert infer_schema(tmp_path / "log.csv").schema.fields[0].name == "device"


def test_column_named_like_one_of_every_dataset_is_an_input_like_any_other(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    kilos = generator.integers(1, 9, COUNT)
    log = _write(
        tmp_path,
        weight=kilos,
        row=generator.standard_normal(COUNT),
        price=generator.standard_normal(COUNT),
        click=generator.integers(0, 2, COUNT),
    )

    schema = infer_schema(log).schema
    dataset = ingest(log, tmp_path / "d", schema=schema, split=SplitConfig(by="ratio"))

    assert [(field.name, field.source) for field in schema.fields] == [
        ("field:weight", "weight"),
        ("field:row", "row"),
        ("price", "price"),
    ]
    split = dataset.split("train")
    assert split.weights() is None
    rows = split.rows()
    names = Encoders.load(dataset.encoders_path, schema).category_names("field:weight")
    assert names is not None
    assert [names[place] for place in split.ids("field:weight")] == [str(k) for k in kilos[rows]]
    assert abs(split.numeric("field:row")).max() < 6


def test_histories_that_are_cut_are_told_of(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    log = _write(
        tmp_path,
        past=[list(range(60 if k % 4 == 0 else 3)) for k in range(COUNT)],
        click=generator.integers(0, 2, COUNT),
    )

    inferred = infer_schema(log)
    dataset = ingest(log, tmp_path / "d", schema=inferred.schema, split=SplitConfig(by="ratio"))

    assert inferred.warnings == (
        "past: longer than 50 in 25% of the rows, of which the last 50 are kept; to keep more, set "
        "max_length",
    )
    assert dataset.manifest["report"]["fields"]["past"]["shortened"] == COUNT // 4


def _days(folder: Path, days: Sequence[dict[str, object]]) -> Path:
    folder.mkdir()
    for number, columns in enumerate(days):
        names = [*columns]
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(names), *(",".join(map(str, row)) for row in rows)]
        (folder / f"day-{number:02}.csv").write_text("\n".join(lines) + "\n")
    return folder


def _day(number: int, **more: object) -> dict[str, object]:
    return {
        "day": [f"2024-01-{number + 1:02}"] * 40,
        "user_id": [k % 9 for k in range(40)],
        **more,
        "click": np.random.default_rng(number).integers(0, 2, 40).tolist(),
    }


def test_files_of_days_are_known_from_several_of_them(tmp_path: Path) -> None:
    # No row was logged on the first day; whole prices on one are numbers all the same.
    days = [_day(k, price=[k + j / (1 if k == 3 else 2) for j in range(40)]) for k in range(6)]
    days[0] = {name: [] for name in days[0]}
    inferred = infer_schema(_days(tmp_path / "log", days), ["click"])

    assert inferred.schema.roles.time == "day"
    assert {field.name: field.kind for field in inferred.schema.fields} == {
        "user_id": "categorical",
        "price": "numeric",
    }
    assert inferred.warnings == ()


def test_column_that_the_first_file_lacks_is_told(tmp_path: Path) -> None:
    days = [_day(k, **({"coupon": ["a", "b"] * 20} if k else {})) for k in range(3)]
    inferred = infer_schema(_days(tmp_path / "log", days), ["click"])

    assert inferred.warnings == ("coupon: left out, day-01.csv has it and day-00.csv has not",)


def test_files_whose_types_differ_are_known_from_the_first(tmp_path: Path) -> None:
    days = [_day(k, size=["xl" if k else j for j in range(40)]) for k in range(3)]
    inferred = infer_schema(_days(tmp_path / "log", days), ["click"])

    assert {field.name for field in inferred.schema.fields} == {"user_id", "size"}
    assert not inferred.schema.roles.time


def test_label_of_a_later_file_that_is_no_number_is_named_with_it(tmp_path: Path) -> None:
    days = [_day(k) for k in range(3)]
    days[2]["click"] = [0, "maybe"] * 20
    with pytest.raises(
        DataError, match=r"day-02.csv, column 'click', row 2: a label must be a num"
    ):
        infer_schema(_days(tmp_path / "log", days), ["click"])


def test_log_of_headers_alone_is_refused(tmp_path: Path) -> None:
    days = [{name: [] for name in _day(0)}] * 3
    with pytest.raises(DataError, match=r"day-00.csv: must hold rows, got a header only"):
        infer_schema(_days(tmp_path / "log", days), ["click"])


def test_digits_with_zeros_in_front_are_a_code_and_link_their_history(tmp_path: Path) -> None:
    shops = [f"{k * 137 % 9000:05d}" for k in range(80)]
    columns = {
        "shop": [shops[k % 80] for k in range(400)],
        "price": [k * 7 % 300 + 10 for k in range(400)],
        "past": ["|".join(shops[(k + j) % 80] for j in range(k % 4)) for k in range(400)],
        "click": [k // 3 % 2 for k in range(400)],
    }

    schema = infer_schema(path := _csv(tmp_path, **columns), ["click"]).schema
    dataset = ingest(path, tmp_path / "d", schema=schema)

    by_name = {field.name: field for field in schema.fields}
    assert by_name["shop"].kind == "categorical"
    assert by_name["shop"].reason == "digits with zeros in front, 80 values"
    assert by_name["price"].kind == "numeric"
    assert by_name["past"].shares == "shop"
    assert dataset.manifest["report"]["fields"]["past"]["unknown"] == 0
