"""Ids: what is said where they may not be told apart."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.id_columns import id_doubts, request_of
from tamis.data.inference import infer_schema

LARGE = 2.0**53
SAID = (
    "it: holds whole numbers of 2^53 and more as floats, in which ids that differ may be one; "
    "write them as integers or texts"
)


@pytest.mark.parametrize(
    ("name", "column", "is_said"),
    [
        ("item_id", pa.array([3.0, LARGE, None]), True),
        ("past", pa.array([[], [3.0, -LARGE]]), True),
        ("item_id", pa.array([3.0, LARGE - 1]), False),
        ("item_id", pa.array([3.5, LARGE]), False),
        ("price", pa.array([3.0, LARGE]), False),
        ("item_id", pa.array([3, 2**62]), False),
    ],
    ids=["ids", "history", "small", "fractions", "numbers", "integers"],
)
def test_large_ids_in_floats_are_doubted(name: str, column: pa.Array, is_said: bool) -> None:
    said = SAID.replace("it:", f"{name}:")

    assert [*id_doubts(name, column, is_of_text=False)] == [said] * is_said


@pytest.mark.parametrize("every", [1, 10], ids=["all", "some"])
def test_ids_that_a_text_file_holds_as_floats_are_doubted(tmp_path: Path, every: int) -> None:
    rows = [
        f"{70_000_000_216 + k % 30}{'.0' if k % every == 0 else ''},{k % 7}.0,{k // 2 % 2}"
        for k in range(100)
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,score,click", *rows]))

    assert infer_schema(tmp_path / "log.csv").warnings == (
        "user_id: holds ids with a decimal point or an exponent, and 12.0 is another category "
        "than 12; write all ids in digits, in requests as well",
    )


@pytest.mark.parametrize(
    ("names", "values", "found"),
    [
        (["visit"], [f"v{k // 4}" for k in range(100)], "visit"),
        (["impression_id"], [k // 4 for k in range(100)], "impression_id"),
        (["pageView"], [k // 4 for k in range(100)], "pageView"),
        (["visit", "request_id"], [k // 4 for k in range(100)], "request_id"),
        (["impression_id"], list(range(100)), ""),
        (["visit"], [k % 25 for k in range(100)], ""),
        (["session"], [k // 50 for k in range(300)], "session"),
        (["session"], ["am"] * 150 + ["pm"] * 150, ""),
        (["impression"], [0] * 50 + [1] * 50, ""),
        (["visit"], [k / 4 for k in range(100)], ""),
        (["query"], [f"q{k // 4}" for k in range(100)], ""),
        (["session_id"], [[k // 4] for k in range(100)], ""),
    ],
)
def test_request_is_known_by_name_and_by_rows_that_stand_together(
    names: list[str], values: list[object], found: str
) -> None:
    assert request_of({name: pa.array(values) for name in names}) == found


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}], ids=["list", "record"])
def test_lists_and_records_named_like_ids_have_no_role(tmp_path: Path, value: object) -> None:
    names = ("user_id", "item_id", "session_id")
    table = {name: [value, None] * 50 for name in names} | {"userId": ["u", "v"] * 50}
    pq.write_table(pa.table({**table, "click": [0, 0, 1, 1] * 25}), tmp_path / "log.parquet")

    roles = infer_schema(tmp_path / "log.parquet").schema.roles

    assert (roles.user, roles.item, roles.request) == ("userId", "", "")
