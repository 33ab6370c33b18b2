"""Columns: any layout of the same values gives the same values; a wrong one is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.columns import Origin, as_categories, as_labels, plain, split_items
from tamis.data.ingest import ingest
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.data.splits import SplitConfig
from tamis.errors import DataError, SchemaError

ORIGIN = Origin(file="log.csv", first_row=10, column="click")
TEXTS = ["a", "b", "a", None, "b", "c"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).cast(pa.binary()),
        pa.array(TEXTS).dictionary_encode(),
        pa.DictionaryArray.from_arrays(
            pa.array([0, 1, 0, None, 1, 2], pa.uint8()), pa.array(["a", "b", "c"])
        ),
        pa.DictionaryArray.from_arrays(
            pa.array([0, 1, 0, None, 1, 2], pa.int8()), pa.array(["a", "b", "c"], pa.string_view())
        ),
    ],
    ids=lambda column: str(column.type),
)
def test_every_layout_of_texts_gives_the_same_categories(column: pa.Array) -> None:
    categories = as_categories(plain(column))

    assert categories.codes.tolist() == [0, 1, 0, -1, 1, 2]
    assert categories.values.to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("values", [[np.nan], [np.inf, np.nan, -np.inf], [np.nan, None], [np.inf]])
def test_floats_of_which_none_is_a_number_are_missing(values: list[float | None]) -> None:
    categories = as_categories(pa.array(values, pa.float64(), from_pandas=False))

    assert categories.codes.tolist() == [-1] * len(values)
    assert categories.values.to_pylist() == []


def _ingest(tmp_path: Path, column: pa.Array, kind: str, **roles: str) -> dict[str, int]:
    count = len(column)
    table = pa.table(
        {
            "x": column,
            "device": ["a", "b"] * (count // 2),
            "click": [0, 0, 1, 1] * (count // 4),
            "part": ["train"] * (count - 4) + ["valid", "valid", "test", "test"],
        }
    )
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, row_group_size=7)
    chosen = Field(name="x", kind=kind)
    schema = Schema(
        fields=(chosen, Field(name="device", kind="categorical")),
        tasks=(Task(name="click"),),
        roles=Roles(**roles),
    )
    dataset = ingest(
        path, tmp_path / "d", schema=schema, split=SplitConfig(by="column", column="part")
    )
    return dataset.manifest["report"]["fields"]["x"] | dataset.spec.num_rows_by_table


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", None, "c"] * 10).dictionary_encode(),
        pa.array([1, 2, None, 3] * 10).dictionary_encode(),
        pa.array(["a", "b", None, "c"] * 10, pa.string_view()),
        pa.DictionaryArray.from_arrays(
            pa.array([0, 1, None, 3] * 10, pa.int32()), pa.array(["a", "b", "a", "c"])
        ),
    ],
    ids=["dictionary of texts", "dictionary of integers", "string view", "dictionary with twins"],
)
def test_dictionaries_and_views_of_parquet_are_categories(tmp_path: Path, column: pa.Array) -> None:
    report = _ingest(tmp_path, column, "categorical")

    assert (report["rows"], report["missing"], report["unknown"]) == (40, 10, 0)
    assert report["x"] == 4


def test_lists_of_a_fixed_size_are_sequences(tmp_path: Path) -> None:
    column = pa.array([[1, 2], [2, 3], None, [3, 1]] * 10, pa.list_(pa.int64(), 2))

    report = _ingest(tmp_path, column, "sequence")

    assert (report["rows"], report["missing"], report["x"]) == (60, 0, 4)


@pytest.mark.parametrize(
    ("value", "kind", "why"),
    [
        ({"a": 1}, None, r"got type struct<a: int64>: each of its values is a record"),
        # Of thousands of fields a message has the first ones.
        (
            dict.fromkeys("abcdefghijkl", 1),
            None,
            r"got type struct<a: int64, .*j: \.\.\.: each of its",
        ),
        ([("a", 1)], pa.map_(pa.string(), pa.int64()), r"got type map<.*: each of its values"),
        ([[1]], None, r"got type list<.*: each of its events is a list or record"),
        ([{"a": 1}], None, r"got type list<.*: each of its events is a list or record"),
        (1, pa.duration("s"), r"got type duration\[.*\]: a duration or a time without its day"),
        (1, pa.time32("s"), r"got type time32\[.*\]: a duration or a time without its day"),
        (b"\xff\xfe", None, r"got type binary: its values are bytes that are no text"),
    ],
)
def test_type_that_can_be_nothing_is_named_with_file_and_column(
    tmp_path: Path, value: object, kind: pa.DataType | None, why: str
) -> None:
    message = rf"log.parquet, column 'x': must hold .*, {why}.* take it out of the schema"

    with pytest.raises(DataError, match=message):
        _ingest(tmp_path, pa.array([value] * 40, kind), "categorical")


def test_column_of_nulls_in_every_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"log.parquet, column 'x': must hold values, got type n"):
        _ingest(tmp_path, pa.nulls(40), "categorical")


def test_list_where_one_value_is_due_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'x': must hold one value in each row, .* a sequence"):
        _ingest(tmp_path, pa.array([[1], [2]] * 20), "categorical")
    with pytest.raises(DataError, match=r"'x': must hold one value .* take it or the role out of"):
        _ingest(tmp_path, pa.array([[1], [2]] * 20), "sequence", user="x")


def test_dates_in_a_numeric_field_are_refused_with_their_type(tmp_path: Path) -> None:
    column = pa.array([1] * 40, pa.timestamp("s"))

    with pytest.raises(DataError, match=r"'x': a numeric field must hold numbers, got type timest"):
        _ingest(tmp_path, column, "numeric")


def test_weight_is_named_with_its_row(tmp_path: Path) -> None:
    weights = pa.array([1.0] * 30 + [-2.0] + [1.0] * 9)

    with pytest.raises(DataError, match=r"log.parquet, column 'x', row 31: a weight .* got -2"):
        _ingest(tmp_path, weights, "numeric", weight="x")


def test_true_and_false_as_texts_are_labels() -> None:
    column = pa.array(["True", "false", "TRUE", None, " 1 ", "0"])

    labels = as_labels(column, origin=ORIGIN, kind="binary")

    assert labels[[0, 1, 2, 4, 5]].tolist() == [1, 0, 1, 1, 0]
    assert np.isnan(labels[3])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("yes", "binary", r"log.csv, column 'click', row 13: .* 0 or 1, got 'yes'. Map the labels"),
        ("2", "binary", r"row 13: a binary label must be 0 or 1, got 2. .* kind = 'regression'"),
        ("inf", "binary", r"row 13: a binary label must be 0 or 1, got inf"),
        ("inf", "regression", r"row 13: a label must be a finite number, got inf"),
        ("1e39", "regression", r"row 13: a label must be a finite number, got 1e\+39"),
        ("high", "regression", r"row 13: a label must be a finite number, got 'high'"),
        ("1.01", "probability", r"row 13: a probability must be in \[0, 1\], got 1.01. Mend it"),
        ("-0.2", "probability", r"row 13: a probability must be in \[0, 1\], got -0.2"),
        ("high", "probability", r"row 13: a probability must be in \[0, 1\], got 'high'"),
    ],
)
def test_wrong_label_says_what_to_do_with_a_label(value: str, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_labels(pa.array(["0", "1", value, value]), origin=ORIGIN, kind=kind)


def test_items_come_without_brackets_blanks_and_quotes() -> None:
    texts = pa.array(["[1, 2]", "3,1", " [ ] ", "", None, "['a', \"b c\"]", "7"])

    items = split_items(texts, ",").to_pylist()

    assert items == [["1", "2"], ["3", "1"], [], [], [], ["a", "b c"], ["7"]]
