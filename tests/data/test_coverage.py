"""What is said of a dataset whose splits lack what training knows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.ingest import ingest
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.data.splits import SplitConfig

PARTS = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2


def _warnings(
    tmp_path: Path, fields: list[Field], roles: Roles, *, times: int = 30, **columns: list
) -> list[str]:
    once = {"click": [0, 1] * 4, "part": PARTS, **columns}
    table = {name: values * times for name, values in once.items()}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    schema = Schema(fields=tuple(fields), tasks=(Task(name="click"),), roles=roles)
    split = SplitConfig(by="column", column="part")
    dataset = ingest(tmp_path / "log.parquet", tmp_path / "d", schema=schema, split=split)
    found: list[str] = dataset.manifest["report"]["warnings"]
    return found


@pytest.mark.parametrize(
    ("visits", "splits"),
    [
        (["a", "a", "b", "b", "c", "c", "d", "d"], "valid and test"),
        (["a", "a", "b", "b", None, None, "b", "d"], "valid"),
        (["a", "a", "b", "b", "b", "c", None, "a"], ""),
    ],
)
def test_category_that_is_new_in_all_rows_of_a_split_is_said(
    tmp_path: Path, visits: list[str | None], splits: str
) -> None:
    fields = [
        Field(name="seen", kind="categorical", column="visit"),
        Field(name="hashed", kind="categorical", column="visit", encoding="hashing", num_buckets=9),
    ]

    said = (
        f"seen: no row of {splits} has a value that training rows have, so that nothing learned of "
        f"it serves there; take the field out of the schema, and set roles.request = 'visit' if it "
        f"names the request"
    )
    assert _warnings(tmp_path, fields, Roles(), visit=visits) == [said] * bool(splits)


def test_few_rows_may_lack_the_values_of_a_field(tmp_path: Path) -> None:
    visits = ["a", "a", "b", "b", "c", "c", "d", "d"]

    assert not _warnings(
        tmp_path, [Field(name="visit", kind="categorical")], Roles(), times=20, visit=visits
    )


def test_no_request_is_asked_for_where_there_is_one(tmp_path: Path) -> None:
    fields = [Field(name="day", kind="categorical")]
    days = [1, 1, 1, 1, 2, 2, 3, 3]

    (said,) = _warnings(tmp_path, fields, Roles(request="r"), day=days, r=list(range(8)))

    assert said.endswith("nothing learned of it serves there; take the field out of the schema")


def test_label_that_no_row_of_a_split_has_is_said(tmp_path: Path) -> None:
    table = {
        "user": [1, 2, 1, 2] * 2,
        "click": [0, 1] * 4,
        # Of the clicks in validation none tells whether something was bought.
        "buy": [None, 0, None, 1, 1, None, None, 1],
        "dwell": [None] * 6 + [2.5, None],
        "part": PARTS,
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    tasks = (
        Task(name="click"),
        Task(name="buy", observed_when="click", may_be_missing=True),
        Task(name="dwell", kind="regression", may_be_missing=True),
    )
    schema = Schema(fields=(Field(name="user", kind="categorical"),), tasks=tasks)

    split = SplitConfig(by="column", column="part")
    dataset = ingest(tmp_path / "log.parquet", tmp_path / "d", schema=schema, split=split)

    assert dataset.manifest["report"]["warnings"] == [
        "label buy: no row of valid has it, so that early stopping and calibration cannot use it",
        "label buy: it is 1 in all rows of test, so that NE and AUC are undefined there; split in "
        "another way, or add rows",
        "label dwell: no row of train has it, so that nothing can be learned of it",
        "label dwell: no row of valid has it, so that early stopping and calibration cannot use it",
    ]


def test_label_of_one_class_in_a_split_is_said(tmp_path: Path) -> None:
    clicks = [0, 1, 0, 1, 0, 0, 0, 1]
    fields = [Field(name="day", kind="categorical")]

    said = _warnings(tmp_path, fields, Roles(), day=[1] * 8, click=clicks)

    assert said[0] == (
        "label click: it is 0 in all rows of valid, so that NE and AUC are undefined there; split "
        "in another way, or add rows"
    )


def test_users_of_a_split_by_user_are_new_by_design(tmp_path: Path) -> None:
    table = pa.table({"user": [k // 4 for k in range(400)], "click": [0, 1] * 200})
    pq.write_table(table, tmp_path / "log.parquet")
    schema = Schema(
        fields=(Field(name="user", kind="categorical"),),
        tasks=(Task(name="click"),),
        roles=Roles(user="user"),
    )

    by_user = SplitConfig(by="user")
    dataset = ingest(tmp_path / "log.parquet", tmp_path / "d", schema=schema, split=by_user)

    assert dataset.manifest["report"]["warnings"] == []
