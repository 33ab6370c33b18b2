"""Readers: rows of a file count from 1 in every message, whatever the format and its size."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data import json_lines, readers
from tamis.data.ingest import ingest
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.data.splits import SplitConfig
from tamis.errors import DataError

BIG = 300_000  # Rows of more than one chunk.


def _ingest(path: Path, *fields: Field, **roles: str) -> None:
    chosen = fields or (Field(name="user", kind="categorical"),)
    schema = Schema(fields=chosen, tasks=(Task(name="click"),), roles=Roles(**roles))
    ingest(path, path.parent / "d", schema=schema, split=SplitConfig(by="ratio"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("click", "2", r"column 'click', row 290001: a binary label must be 0 or 1, got 2"),
        ("click", "", r"column 'click', row 290001: a label must not be missing"),
        ("w", "-3", r"column 'w', row 290001: a weight must .* got -3"),
        ("ts", "-1", r"column 'ts', row 290001: a time must lie .* got -1"),
        ("ts", "", r"column 'ts', row 290001: every row must have a time"),
        ("price", "cheap", r"column 'price', row 290001: .* must hold numbers, got 'cheap'"),
    ],
)
def test_row_of_a_large_file_is_counted_from_its_start(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    good = {"user": "u", "click": "0", "w": "1", "ts": "1700000000", "price": "1.5"}
    line, other, bad = (
        ",".join((good | change).values()) + "\n"
        for change in ({}, {"click": "1"}, {column: value})
    )
    header = ",".join(good) + "\n"
    # The second file of two: rows count in each file on its own.
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.csv").write_text(header + (line + other) * 10)
    (folder / "b.csv").write_text(header + (line + other) * 145_000 + bad + line * 10_000)

    with pytest.raises(DataError, match=rf"b.csv, {message}"):
        _ingest(
            folder,
            Field(name="user", kind="categorical"),
            Field(name="price", kind="numeric"),
            time="ts",
            weight="w",
        )


def test_row_of_a_large_parquet_file_is_counted_from_its_start(tmp_path: Path) -> None:
    table = pa.table({"user": ["u"] * BIG, "click": [0] * 280_000 + [2] + [0] * (BIG - 280_001)})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=100_000)

    with pytest.raises(DataError, match=r"log.parquet, column 'click', row 280001: .* got 2"):
        _ingest(tmp_path / "log.parquet")


def test_lines_that_end_in_a_carriage_return_alone_are_lines(tmp_path: Path) -> None:
    rows = [f"u{k % 3},{k // 2 % 2}" for k in range(100)]
    (tmp_path / "log.csv").write_bytes("\r".join(["user,click", *rows, ""]).encode())

    _ingest(tmp_path / "log.csv")


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".bz2", ".lz4"])
@pytest.mark.parametrize(
    ("header", "names", "delimiter"),
    [
        ('"a,b,c";click', ["a,b,c", "click"], ";"),
        ('user,"a\nb",click', ["user", "a\nb", "click"], ","),
        ('user\t"a\r\n,b,c"\tclick', ["user", "a\r\n,b,c", "click"], "\t"),
        ('\ufeff"a;b;c""d",click', ['a;b;c"d', "click"], ","),
        ('5" screen|6" screen', ['5" screen', '6" screen'], "|"),
        ("user,click", ["user", "click"], ","),
        (",".join(f"x{k:05}" for k in range(20_000)), [f"x{k:05}" for k in range(20_000)], ","),
    ],
    ids=["delimiters", "line end", "two line ends", "mark of UTF-8", "inches", "plain", "long"],
)
def test_header_is_read_as_rows_are(
    tmp_path: Path, header: str, names: list[str], delimiter: str, ending: str
) -> None:
    path = tmp_path / f"log.csv{ending}"
    for rows in ("", "\n", "\n" + '1,"2' * 100_000):
        with pa.output_stream(str(path), compression="detect") as stream:
            stream.write((header + rows).encode())

        assert readers.read_header(path) == (names, delimiter)


def test_column_whose_name_has_two_lines_is_read(tmp_path: Path) -> None:
    rows = [f"u{k % 3},{k % 5},{k // 2 % 2}" for k in range(100)]
    (tmp_path / "log.csv").write_text("\n".join(['user,"rank\nby price",click', *rows, ""]))

    _ingest(tmp_path / "log.csv", Field(name="rank\nby price", kind="numeric"))


@pytest.mark.parametrize("rows", [2, 100_000])
def test_quote_of_a_header_that_does_not_end_is_named(tmp_path: Path, rows: int) -> None:
    (tmp_path / "log.csv").write_text('user,"click\n' + "u,0\n" * rows)

    with pytest.raises(DataError, match=r"a quote in the first line must end, got 'user,\"click'"):
        _ingest(tmp_path / "log.csv")


def test_quote_that_does_not_end_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('user,click\nu,0\n"u,1\nu,0\n')

    with pytest.raises(DataError, match=r"log.csv, row 2: .* got 1. .* or a quote not end"):
        _ingest(tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user": "a", "click": "x"}, r"column 'click', row 3: .*, got a text \('x'\) after a num"),
        (
            {"user": [1], "click": 1},
            r"column 'user', row 3: .* got a list after a text in rows bef",
        ),
        ([1, 2], r"row 3: must be a JSON object, got a list. Write one object per line"),
        (5, r"row 3: must be a JSON object, got a number"),
    ],
)
def test_wrong_row_of_json_lines_is_named_and_explained(
    tmp_path: Path, row: object, message: str
) -> None:
    rows = [{"user": "a", "click": 1}, {"user": "b", "click": 0}, row, {"user": "a", "click": 1}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")

    with pytest.raises(DataError, match=rf"log.jsonl, {message}") as caught:
        _ingest(tmp_path / "log.jsonl")

    assert "cut short" not in str(caught.value)


def test_member_of_json_lines_that_is_there_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": "a", "click": 1}\n{"user": "a", "user": "b"}\n')

    with pytest.raises(DataError, match=r"column 'user', row 2: a row must name each column once"):
        _ingest(tmp_path / "log.jsonl")


def test_array_of_json_objects_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('[\n {"user": "a", "click": 1},\n {"user": "b"}\n]\n')

    with pytest.raises(DataError, match=r"row 1: must be a JSON object, got a list. Write one"):
        _ingest(tmp_path / "log.json")


def test_row_of_large_json_lines_is_counted_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 1000)
    rows = [{"user": "a", "click": k % 2} for k in range(500)] + [{"user": 3, "click": 1}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")

    with pytest.raises(DataError, match=r"column 'user', row 501: .* a number \(3\) after a text"):
        _ingest(tmp_path / "log.jsonl")


def test_later_rows_of_json_lines_may_hold_fractions_dates_and_further_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 1000)
    early = {"user": "2024-01-31 10:00", "price": 1, "late": None}
    late = {"user": "somebody", "price": 1.5, "late": "x", "more": 7}
    rows = [{**early, "click": k // 2 % 2} for k in range(200)]
    rows += [{**late, "click": k // 2 % 2} for k in range(200)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")

    _ingest(
        tmp_path / "log.jsonl",
        Field(name="user", kind="categorical"),
        Field(name="price", kind="numeric"),
        Field(name="late", kind="categorical"),
    )


def test_message_of_damaged_parquet_ends_in_one_full_stop(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    path.write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")

    with pytest.raises(
        DataError, match=r"must be whole Parquet, got .*[^.]\. Write the file anew\."
    ):
        _ingest(path)


@pytest.mark.parametrize(("form", "ending"), [("csv", "gz"), ("csv", "zst"), ("jsonl", "gz")])
def test_compressed_file_that_was_cut_short_is_named(
    tmp_path: Path, form: str, ending: str
) -> None:
    users = np.random.default_rng(0).integers(0, 10**9, 100_000).tolist()
    if form == "csv":
        text = "user,click\n" + "".join(f"{user},{user % 2}\n" for user in users)
    else:
        text = "".join(json.dumps({"user": user, "click": user % 2}) + "\n" for user in users)
    whole = tmp_path / f"whole.{form}.{ending}"
    with pa.output_stream(str(whole), compression="detect") as stream:
        stream.write(text.encode())
    log = tmp_path / f"log.{form}.{ending}"
    log.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    with pytest.raises(DataError, match=rf"log.{form}.{ending}: must be .* cut short or damaged"):
        _ingest(log)


def test_file_that_is_named_again_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text("user,click\na,1\n")
    (tmp_path / "more.csv").write_text("user,click\nb,0\n")

    assert len(readers.discover([file, tmp_path / "more.csv"])) == 2
    for again in (file, tmp_path, tmp_path / ".." / tmp_path.name / "clicks.csv"):
        with pytest.raises(DataError, match=r"clicks\.csv: must be named once, got it again"):
            readers.discover([file, again])
