"""Columns as JSON: they mean to the encoders what a log's do, and what means nothing is refused."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.data.columns import Origin, as_categories
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders, EncodersFit
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import DataError
from tamis.serving.columns import Columns
from tamis.serving.refused import RefusedError

SCHEMA = Schema(
    fields=(
        Field(name="device", kind="categorical"),
        Field(name="age", kind="numeric", side="user"),
        Field(name="past", kind="sequence", side="user", shares="device"),
        Field(name="tags", kind="sequence", side="user", separator="|"),
        Field(name="title", kind="text", side="item"),
        Field(name="zip", kind="numeric", column="code"),
        Field(name="area", kind="categorical", column="code"),
    ),
    tasks=(Task(name="click"),),
)


def test_rows_are_typed_and_what_they_lack_is_missing() -> None:
    columns = Columns(SCHEMA)
    rows = [
        columns.check({"device": 7, "age": 3, "past": ["a", 2, None, True], "code": 9}, where="x"),
        columns.check(
            {"device": True, "tags": "a|b", "title": "Two words", "past": None}, where="x"
        ),
        columns.check({"device": 7.0, "age": None}, where="x"),
    ]

    table = columns.table(rows)

    assert table.to_pylist() == [
        {"device": "7", "age": 3.0, "past": ["a", "2", "", "1"], "tags": None, "title": None,
         "code": "9"},
        {"device": "1", "age": None, "past": None, "tags": ["a", "b"], "title": "Two words",
         "code": None},
        {"device": "7", "age": None, "past": None, "tags": None, "title": None, "code": None},
    ]  # fmt: skip
    assert columns.table([]).schema == table.schema


def test_columns_are_those_of_the_sides() -> None:
    assert Columns(SCHEMA, ("item",)).names == ("title",)
    assert Columns(SCHEMA, ("user",)).names == ("age", "past", "tags")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("age", "3", r"x.age: must be a number or null"),
        ("age", True, r"x.age: must be a number or null"),
        ("age", math.inf, r"x.age: must be a finite number"),
        ("age", math.nan, r"x.age: must be a finite number"),
        ("age", 10**400, r"x.age: must be a finite number"),
        ("device", 2**63, r"x.device: must be a whole number of 64 bits"),
        ("device", math.nan, r"x.device: must be a finite number"),
        ("device", ["a"], r"x.device: must be a text of at most 256 characters"),
        ("device", "a" * 257, r"x.device: must be a text of at most 256 characters"),
        ("device", "\ud800", r"x.device: must be a text of at most 256"),
        ("past", "a", r"x.past: must be a list of at most 1000 values"),
        ("past", ["a"] * 1001, r"x.past: must be a list of at most 1000 values"),
        ("past", [["a"]], r"x.past: must be a text of at most 256 characters"),
        ("tags", 7, r"x.tags: must be a list of at most 1000 values, a text with '\|' between"),
        ("tags", "a" * 10_001, r"x.tags: must be a text of at most 10,000 characters"),
        ("tags", "a|" * 4999 + "b", r"x.tags: must be a list of at most 1000 values, a text with"),
        ("tags", "a" * 9999, r"x.tags: must be a text of at most 256 characters"),
        ("title", "a" * 10_001, r"x.title: must be a text of at most 10,000 characters"),
        ("secret", "a", r"^x: must hold no columns but device, age, past, tags, title, code"),
    ],
)
def test_value_that_means_nothing_is_refused_and_not_repeated(
    column: str, value: Any, message: str
) -> None:
    with pytest.raises(RefusedError, match=message) as got:
        Columns(SCHEMA).check({column: value}, where="x")

    assert got.value.status == 422
    assert "secret" not in got.value.message
    assert "aaaa" not in got.value.message


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
    )
)
def test_category_is_the_one_that_a_log_file_would_hold(value: Any) -> None:
    row = Columns(SCHEMA).check({"device": value}, where="x")

    found = as_categories(Columns(SCHEMA).table([row])["device"].combine_chunks())
    expected = as_categories(pa.array([value]))
    assert found.codes.tolist() == expected.codes.tolist()
    assert found.values.to_pylist() == expected.values.to_pylist()


def test_rows_of_a_log_and_the_same_rows_as_json_are_encoded_alike(market_world: Path) -> None:
    data = Dataset.open(market_world / "data")
    encoders = Encoders.load(data.encoders_path, data.schema)
    columns = Columns(data.schema)
    log = pq.read_table(sorted((market_world / "market" / "logs").iterdir())[0]).slice(0, 300)
    as_json = [{name: row[name] for name in columns.names} for row in log.to_pylist()]
    origin = Origin(file="log")

    expected = encoders.encode(log, first_row=0, origin=origin, inputs_only=True)
    tables = (
        columns.table([columns.check(row, where="x") for row in as_json]),
        columns.of_log(log, where="log"),
    )

    assert tables[0].equals(tables[1])
    for table in tables:
        found = encoders.encode(table, first_row=0, origin=origin, inputs_only=True)
        for name, ids in expected.ids.items():
            assert found.ids[name].tolist() == ids.tolist()
        for name, numbers in expected.numeric.items():
            assert found.numeric[name].tolist() == numbers.tolist()
        for name, (values, lengths) in expected.sequences.items():
            assert found.sequences[name][0].tolist() == values.tolist()
            assert found.sequences[name][1].tolist() == lengths.tolist()


def test_empty_lists_and_nulls_of_a_log_are_empty_lists(tmp_path: Path) -> None:
    log = pa.table({
        "device": [1, 2, 3], "age": [1, 2, 3], "past": pa.array([[1], None, [2, 3]]),
        "tags": ["a", None, ""], "title": ["x", None, "y"], "code": [None, 1.5, 2.0],
    })  # fmt: skip

    found = Columns(SCHEMA).of_log(log.slice(1), where="log")

    assert found["past"].to_pylist() == [[], ["2", "3"]]
    assert found["code"].to_pylist() == ["1.5", "2"]


def test_infinite_number_of_a_log_can_be_written_as_json_and_is_encoded_as_before() -> None:
    schema = Schema(fields=(Field(name="age", kind="numeric"),), tasks=(Task(name="click"),))
    log = pa.table({"age": [math.inf, 2.0, -math.inf, None, 5.0]})
    fit = EncodersFit(schema)
    fit.add(log, origin=Origin(file="log"))
    encoders = fit.finish()

    found = Columns(schema).of_log(log, where="log")

    as_json = json.loads(json.dumps(found.to_pylist(), allow_nan=False))
    numbers = [
        encoders.encode(table, first_row=0, origin=Origin(file="x"), inputs_only=True).numeric
        for table in (log, found, Columns(schema).table(as_json))
    ]
    assert numbers[0]["age"].tolist() == numbers[1]["age"].tolist() == numbers[2]["age"].tolist()
    # What is missing is the mean, and infinities are not missing.
    assert len(set(numbers[0]["age"].tolist())) == 3
    assert found["age"][3].as_py() is None


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a|b", "c"], ["d"], None]),
        pa.array(["[a| 'b' |c]", "d", None]),
        pa.array(["[a| 'b' |c]", "d", ""]).dictionary_encode(),
        pa.array([None, None, None]),
    ],
    ids=["lists", "texts", "dictionary", "nulls"],
)
def test_histories_in_texts_are_served_as_lists_that_are_encoded_as_the_log(
    column: pa.Array,
) -> None:
    schema = Schema(
        fields=(Field(name="past", kind="sequence", separator="|"),), tasks=(Task(name="click"),)
    )
    log = pa.table({"past": column})
    fit = EncodersFit(schema)
    fit.add(log, origin=Origin(file="log"))
    encoders, columns = fit.finish(), Columns(schema)

    found = columns.of_log(log, where="log")
    said = columns.table([columns.check(row, where="x") for row in log.to_pylist()])

    assert found.schema == said.schema == pa.schema({"past": pa.list_(pa.string())})
    expected, *others = (
        encoders.encode(table, first_row=0, origin=Origin(file="x"), inputs_only=True)
        for table in (log, found, said)
    )
    for other in others:
        for ours, theirs in zip(other.sequences["past"], expected.sequences["past"], strict=True):
            assert ours.tolist() == theirs.tolist()


def test_lists_without_a_value_are_empty() -> None:
    log = pa.table({"past": pa.array([None, None])})
    schema = Schema(fields=(Field(name="past", kind="sequence"),), tasks=(Task(name="click"),))

    assert Columns(schema).of_log(log, where="log")["past"].to_pylist() == [[], []]


def test_lists_for_one_category_are_refused_where_all_are_missing_too() -> None:
    log = pa.table({"device": pa.array([None, None], pa.list_(pa.string()))})
    schema = Schema(fields=(Field(name="device", kind="categorical"),), tasks=(Task(name="click"),))

    with pytest.raises(DataError, match=r"column 'device': must be one category, got type list"):
        Columns(schema).of_log(log, where="log")


def test_lists_of_words_are_served_as_texts_of_the_same_words() -> None:
    schema = Schema(fields=(Field(name="title", kind="text"),), tasks=(Task(name="click"),))
    columns = Columns(schema)

    found = columns.of_log(pa.table({"title": [["big", "7"], [], None]}), where="log")

    assert found["title"].to_pylist() == ["big 7", "", ""]
    assert found.schema == columns.table([]).schema
    for words in (["big red"], ["Big"], [""], ["a", None]):
        with pytest.raises(DataError, match=r"log, column 'title', row 2: .* single words"):
            columns.of_log(pa.table({"title": [["a"], words]}), where="log")


def test_column_that_is_split_in_different_ways_stays_a_text() -> None:
    def kind_of(*fields: dict[str, Any]) -> str:
        schema = Schema(
            fields=tuple(Field(name=f"f{k}", column="x", **f) for k, f in enumerate(fields)),
            tasks=(Task(name="click"),),
        )
        return Columns(schema).kinds["x"]

    bars: dict[str, Any] = {"kind": "sequence", "separator": "|"}
    assert kind_of(bars, bars) == "categories"
    assert kind_of(bars, {"kind": "sequence"}) == kind_of({"kind": "sequence"}) == "categories"
    assert kind_of(bars, {**bars, "separator": ","}) == kind_of(bars, {"kind": "text"}) == "text"
    assert kind_of(bars, {"kind": "categorical"}) == "category"


def _columns_of(field: dict[str, Any]) -> Columns:
    schema = Schema(
        fields=(
            Field(name="ad", kind="categorical", side="item"),
            Field(name="x", **field),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(item="ad", request="request"),
    )
    return Columns(schema)


@pytest.mark.parametrize(
    ("field", "cells", "expected"),
    [
        ({"kind": "numeric"}, [2.0, "3.5", " 4 ", "", "inf", True],
         [2.0, 3.5, 4.0, None, sys.float_info.max, 1.0]),
        ({"kind": "categorical"}, ["a", 7.0, 7, 0.5, True], ["a", "7", "7", "0.5", "1"]),
        ({"kind": "sequence"}, [["a"], None], [["a"], None]),
        ({"kind": "sequence", "separator": "|"}, [["a|b"], "a|b", 7.0, "", "[a]"],
         [["a|b"], ["a", "b"], ["7"], [], ["a"]]),
        ({"kind": "text"}, ["Two words", 7.0, ["two", "words"]], ["Two words", "7", "two words"]),
    ],
)  # fmt: skip
def test_cell_that_was_kept_as_another_kind_is_read_as_the_one_that_is_now(
    field: dict[str, Any], cells: list[Any], expected: list[Any]
) -> None:
    columns = _columns_of(field)

    found = columns.table([{"x": cell} for cell in cells])

    assert found["x"].to_pylist() == expected
    assert found.schema == columns.table([]).schema
    assert [columns.converted({"x": cell, "y": 1.0}) for cell in cells] == [
        {"x": cell} for cell in expected
    ]


@pytest.mark.parametrize(
    ("field", "cell", "message"),
    [
        ({"kind": "numeric"}, "warm", "must be a number, got 'warm'"),
        ({"kind": "numeric"}, ["1"], r"must be a number, got \['1'\]"),
        ({"kind": "categorical"}, ["a"], r"must be one category, got \['a'\]"),
        ({"kind": "categorical"}, [], r"must be one category, got \[\]"),
        ({"kind": "sequence"}, "abc", "must be a list of categories, got 'abc'"),
        ({"kind": "sequence"}, 7.0, "must be a list of categories, got 7.0"),
        ({"kind": "text"}, ["Two words"], r"must be a text, got \['Two words'\]"),
    ],
)
def test_cell_that_says_nothing_of_the_kind_that_is_now_is_named(
    field: dict[str, Any], cell: Any, message: str
) -> None:
    rows: list[dict[str, Any]] = [{}, {"x": cell, "request": "r7", "ad": "a3", "": 5}]

    with pytest.raises(DataError, match=f"^column 'x' of request 'r7' of ad 'a3': {message}"):
        _columns_of(field).table(rows)
