"""RecBole's atomic files, as its documentation describes them."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tamis.data.ingest import ingest
from tamis.data.schema import Field
from tamis.errors import DataError
from tamis.importers import recbole

_INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
196\t242\t3\t881250949
186\t302\t4\t891717742
22\t377\t1\t878887116
22\t999\t5\t878887117
"""
_USER = """user_id:token\tage:float\tgender:token
196\t49\tM
22\t25\t
"""
_ITEM = """item_id:token\tmovie_title:token_seq\tclass:token_seq\tvector:float_seq
242\tKolya "x"\tComedy\t0.5 0.25
302\tL.A. Confidential\tCrime Mystery Thriller\t1 2
377\t\tHorror\t
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "ml-100k"
    path.mkdir()
    for suffix, text in (("inter", _INTER), ("user", _USER), ("item", _ITEM)):
        (path / f"ml-100k.{suffix}").write_text(text)
    return path


def test_atomic_files_become_one_log(folder: Path, tmp_path: Path) -> None:
    imported = recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "out")
    rows = pq.read_table(imported.files).to_pylist()

    assert [row["rating"] for row in rows] == [0, 1, 0, 1]
    assert [row["age"] for row in rows] == [49.0, None, 25.0, 25.0]
    assert rows[0]["movie_title"] == 'Kolya "x"'
    assert [row["class"] for row in rows] == ["Comedy", "Crime Mystery Thriller", "Horror", None]
    schema = imported.schema
    assert {field.name: (field.kind, field.side) for field in schema.fields} == {
        "user_id": ("categorical", "user"),
        "item_id": ("categorical", "item"),
        "age": ("numeric", "user"),
        "gender": ("categorical", "user"),
        "movie_title": ("sequence", "item"),
        "class": ("sequence", "item"),
    }
    assert schema.fields[-1] == Field(name="class", kind="sequence", side="item", separator=" ")
    assert (schema.roles.user, schema.roles.item, schema.roles.time) == (
        *("user_id", "item_id", "timestamp"),
    )
    assert imported.notes == ("vector: lists of numbers are not carried over.",)


def test_texts_of_items_may_be_more_than_one_array_holds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "whole")
    # In place of 2 GiB; the longest title has 17.
    monkeypatch.setattr(recbole, "_MOST_TEXT", 17)
    parts = recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "parts")

    assert pq.read_table(parts.files).equals(pq.read_table(whole.files))


def test_other_columns_of_the_interactions_are_pointed_out(folder: Path, tmp_path: Path) -> None:
    path = folder / "ml-100k.inter"
    ends = ["\tdwell:float", "\t1", "\t2", "\t3", "\t4"]
    rows = [line + end for line, end in zip(_INTER.splitlines(), ends, strict=True)]
    path.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    imported = recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "out")

    assert imported.notes[0].startswith("dwell: a column of the interactions is an input")
    assert imported.schema.roles.user == "user_id"  # behind a byte order mark


_SESSIONS = """session_id:token\titem_id_list:token_seq\tclass_list:token_seq\ttag_list:token_seq\t\
item_id:token\tclass:token\tlabel:float
1\t242 302\tC D\tx\t377\tH\t1
2\t377\tH\ty z\t242\tC\t0
3\t\t\t\t302\tD\t1
"""


def test_lists_of_a_known_column_are_one_history_in_its_table(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        (folder / f"sessions.{part}.inter").write_text(_SESSIONS)
    imported = recbole.read(folder, label="label", threshold=None, out=tmp_path / "out")
    by_name = {field.name: field for field in imported.schema.fields}

    assert by_name["item_id_list"] == Field(
        name="item_id_list",
        kind="sequence",
        side="user",
        separator=" ",
        shares="item_id",
        group="history",
    )
    assert (by_name["class_list"].shares, by_name["class_list"].group) == ("class", "history")
    assert by_name["tag_list"] == Field(
        name="tag_list", kind="sequence", side="context", separator=" "
    )
    assert (
        "tag_list: there is no column tag of tokens whose table it could share; it has its own."
        in imported.notes
    )
    # A history is what was known before: no warning for it.
    assert not any(note.startswith(("item_id_list", "class_list")) for note in imported.notes)

    dataset = ingest(imported.files, tmp_path / "dataset", schema=imported.schema)
    groups = {group.name: (group.tables, group.side) for group in dataset.spec.sequences}
    assert groups == {
        "history": (("item_id", "class"), "user"),
        "tag_list": (("tag_list",), "context"),
    }


def test_list_of_an_item_shares_a_table_but_is_no_history(folder: Path, tmp_path: Path) -> None:
    (folder / "ml-100k.item").write_text("item_id:token\titem_id_list:token_seq\n242\t302 377\n")
    imported = recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "out")

    assert imported.schema.fields[-1] == Field(
        name="item_id_list", kind="sequence", side="item", separator=" ", shares="item_id"
    )


def test_list_of_labels_does_not_share_the_label(folder: Path, tmp_path: Path) -> None:
    inter = "user_id:token\titem_id:token\tclick:token\tclick_list:token_seq\n1\t2\t1\t0 1\n"
    (folder / "ml-100k.inter").write_text(inter)
    imported = recbole.read(folder, label="click", threshold=None, out=tmp_path / "out")

    (listed,) = (field for field in imported.schema.fields if field.name == "click_list")
    assert (listed.shares, listed.group, listed.side) == ("", "", "context")


def test_benchmark_files_keep_their_split(folder: Path, tmp_path: Path) -> None:
    (folder / "ml-100k.inter").unlink()
    for part in ("train", "valid", "test"):
        (folder / f"ml-100k.{part}.inter").write_text(_INTER.replace("rating", "label"))
    with pytest.raises(DataError, match=r"label must be a column of numbers .* got 'rating'"):
        recbole.read(folder, label="rating", threshold=None, out=tmp_path / "out")
    imported = recbole.read(folder, label="label", threshold=3.0, out=tmp_path / "out")

    assert list(imported.files) == ["train", "valid", "test"]


@pytest.mark.parametrize(
    ("header", "column", "before", "after"),
    [
        ("rating:float\t", "label", "float", "absent"),
        ("label:token\t", "label", "float", "token"),
        ("label:float\tage:float\t", "age", "absent", "float"),
    ],
)
def test_splits_must_have_the_same_columns(
    folder: Path, tmp_path: Path, header: str, column: str, before: str, after: str
) -> None:
    (folder / "ml-100k.inter").unlink()
    for part in ("train", "test"):
        (folder / f"ml-100k.{part}.inter").write_text("user_id:token\tlabel:float\n1\t1\n")
    (folder / "ml-100k.valid.inter").write_text(f"{header}user_id:token\n1\t1\n")

    message = (
        rf"valid\.inter, column '{column}': must be as in .*train\.inter, {before}, got {after}\. "
        "Give all splits"
    )
    with pytest.raises(DataError, match=message):
        recbole.read(folder, label="label", threshold=None, out=tmp_path / "out")


def test_splits_may_have_their_columns_in_any_order(folder: Path, tmp_path: Path) -> None:
    (folder / "ml-100k.inter").unlink()
    for part in ("train", "test"):
        (folder / f"ml-100k.{part}.inter").write_text("user_id:token\tlabel:float\n7\t1\n")
    (folder / "ml-100k.valid.inter").write_text("label:float\tuser_id:token\n1\t7\n")
    (folder / "ml-100k.item").unlink()
    imported = recbole.read(folder, label="label", threshold=None, out=tmp_path / "out")

    (row,) = pq.read_table(imported.files["valid"]).to_pylist()
    assert (row["user_id"], row["label"]) == ("7", 1)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id\titem_id", r"header must hold name:type, .* got 'user_id'"),
        ("user_id:token\titem_id:word", r"got 'item_id:word'"),
        (
            "user_id:token",
            r"must be tab-separated as its header says, got .*Row #2: Expected 1 .*Mend the row\.",
        ),
    ],
)
def test_files_that_are_not_atomic_are_refused(
    folder: Path, tmp_path: Path, header: str, message: str
) -> None:
    (folder / "ml-100k.inter").write_text(f"{header}\n1\t2\n")

    with pytest.raises(DataError, match=message):
        recbole.read(folder, label="rating", threshold=None, out=tmp_path / "out")


def test_file_in_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    file = next(folder.glob("*.inter"))

    with pytest.raises(DataError, match=r"inter: must be the folder .* got a file\. Name "):
        recbole.read(file, label="rating", threshold=4, out=tmp_path / "log")


def test_folder_without_interactions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()

    with pytest.raises(DataError, match=r"set\.inter: must exist"):
        recbole.read(tmp_path / "set", label="x", threshold=None, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("user", "id:token\tage:float\n1\t2\n", "must have the column 'user_id'"),
        ("user", "user_id:float\tage:float\n1\t2\n", "user_id must be a token in all files"),
        (
            "user",
            "user_id:token\tage:float\n0\t1\n1\t2\n1\t3\n",
            "each user_id must be there once, got '1' more than once. Leave one row of it",
        ),
        (
            "user",
            "user_id:token\tage:float\n1\t2\n2\t1,5\n",
            r"ml-100k.user, column 'age', row 2: a numeric field must hold numbers, got '1,5'",
        ),
        ("user", "user_id:token\tage:float\n1\t2\n\t3\n", "row 2: user_id must not be empty"),
        ("item", "item_id:token\trating:float\n1\t2\n", "got 'rating' twice"),
        ("train.inter", _INTER, r"must hold ml-100k\.train\.inter, .* got train alone"),
    ],
)
def test_files_that_cannot_be_joined_are_refused(
    folder: Path, tmp_path: Path, suffix: str, text: str, message: str
) -> None:
    (folder / f"ml-100k.{suffix}").write_text(text)

    with pytest.raises(DataError, match=message):
        recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("label", "threshold", "message"),
    [
        ("rating", None, "the label must be 0 or 1, got 3. Give a threshold"),
        ("rating", float("nan"), "threshold: must be a finite number, got nan"),
        ("user_id", None, "the label must be 0 or 1, got 196"),
    ],
)
def test_labels_without_a_meaning_are_refused(
    folder: Path, tmp_path: Path, label: str, threshold: float | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        recbole.read(folder, label=label, threshold=threshold, out=tmp_path / "out")


def test_rating_that_is_not_a_number_is_named_with_its_row(folder: Path, tmp_path: Path) -> None:
    path = folder / "ml-100k.inter"
    path.write_text(_INTER.replace("\t4\t", "\tnan\t"))

    with pytest.raises(DataError, match=r"ml-100k.inter, row 2: the label must be a number .* NaN"):
        recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "out")


def test_rating_that_is_a_text_is_named_with_its_row(folder: Path, tmp_path: Path) -> None:
    path = folder / "ml-100k.inter"
    path.write_text(_INTER.replace("rating:float", "rating:token").replace("\t4\t", "\tgood\t"))

    message = r"ml-100k.inter, row 2: the label must be a number, got 'good'\. Mend the row\."
    with pytest.raises(DataError, match=message):
        recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "out")


def test_lists_of_numbers_of_the_interactions_have_one_note(folder: Path, tmp_path: Path) -> None:
    ends = ["\tvector:float_seq", "\t1 2", "\t2", "\t3", "\t4"]
    rows = [line + end for line, end in zip(_INTER.splitlines(), ends, strict=True)]
    (folder / "ml-100k.inter").write_text("\n".join(rows) + "\n")
    (folder / "ml-100k.item").unlink()
    imported = recbole.read(folder, label="rating", threshold=4.0, out=tmp_path / "out")

    assert imported.notes == ("vector: lists of numbers are not carried over.",)
