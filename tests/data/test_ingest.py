"""Ingest: what good logs become, and how bad ones are answered."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.encoders import Encoders
from tamis.data.ingest import encode_log, ingest
from tamis.data.schema import Field, Roles, Schema, Task, load_schema
from tamis.data.splits import SplitConfig
from tamis.errors import DataError, SchemaError

HALF = SplitConfig(by="column", column="part")


def _schema(*fields: Field, **roles: str) -> Schema:
    chosen = fields or (Field(name="user", kind="categorical"),)
    return Schema(fields=chosen, tasks=(Task(name="click"),), roles=Roles(**roles))


def _csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def _log(tmp_path: Path, columns: dict[str, list], name: str = "log.parquet") -> Path:
    path = tmp_path / name
    pq.write_table(pa.table(columns), path)
    return path


def _parts(train: int, valid: int = 1, test: int = 1) -> list[str]:
    return ["train"] * train + ["valid"] * valid + ["test"] * test


def test_vocabulary_counts_training_rows_only(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {
            "user": ["a", "a", "a", "b", "b", "c", "d", "b"],
            "click": [0, 1, 0, 1, 0, 1, 0, 1],
            "part": _parts(6),
        },
    )
    schema = _schema(Field(name="user", kind="categorical", min_count=2))

    dataset = ingest(log, tmp_path / "d", schema=schema, split=HALF)

    # a: 3 rows -> 1, b: 2 -> 2; c is seen once and d only in validation: row 0.
    assert dataset.split("train").ids("user").tolist() == [1, 1, 1, 2, 2, 0]
    assert dataset.split("valid").ids("user").tolist() == [0]
    assert dataset.split("test").ids("user").tolist() == [2]
    assert dataset.spec.num_rows_by_table == {"user": 3}
    counts = dataset.manifest["report"]["fields"]["user"]
    assert counts == {"rows": 8, "missing": 0, "unknown": 2, "clipped": 0, "shortened": 0}


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda p, t: pq.write_table(t, p), "log.parquet"),
        (lambda p, t: p.write_text(_as_text(t, ",")), "log.csv"),
        (lambda p, t: p.write_text(_as_text(t, "\t")), "log.tsv"),
        (lambda p, t: p.write_text(_as_text(t, "|")), "log.txt"),
        (lambda p, t: p.write_bytes(gzip.compress(_as_text(t, ",").encode())), "log.csv.gz"),
        (lambda p, t: p.write_text(_as_json(t)), "log.jsonl"),
        (lambda p, t: p.write_bytes(b"\xef\xbb\xbf" + _as_text(t, ";").encode()), "bom.csv"),
    ],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, write: Callable[[Path, pa.Table], None], name: str
) -> None:
    table = pa.table(
        {
            "user": [7, 7, 2**62, 3, 7, 3, 7, 3],
            "price": [1.5, 2.5, 3.5, 4.5, 1.0, 2.0, 3.0, 4.0],
            "click": [0, 1, 0, 1, 0, 1, 0, 1],
            "part": _parts(6),
        }
    )
    write(tmp_path / name, table)
    schema = _schema(
        Field(name="user", kind="categorical"),
        Field(name="price", kind="numeric", transform="none"),
    )

    dataset = ingest(tmp_path / name, tmp_path / "d", schema=schema, split=HALF)

    # 7: 3 training rows; then 3 with two, then 2**62 with one.
    assert dataset.split("train").ids("user").tolist() == [1, 1, 3, 2, 1, 2]
    assert dataset.split("train").numeric("price").tolist() == [1.5, 2.5, 3.5, 4.5, 1.0, 2.0]


def _as_text(table: pa.Table, mark: str) -> str:
    rows = [mark.join(str(value) for value in row.values()) for row in table.to_pylist()]
    return "\n".join([mark.join(table.column_names), *rows]) + "\n"


def _as_json(table: pa.Table) -> str:
    return "\n".join(json.dumps(row) for row in table.to_pylist()) + "\n"


def test_two_ingests_of_one_log_give_the_same_bytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    log = _log(
        tmp_path,
        {
            "user": generator.integers(0, 50, 500),
            "past": [list(range(k % 5)) for k in range(500)],
            "click": generator.integers(0, 2, 500),
        },
    )
    schema = _schema(
        Field(name="user", kind="categorical"), Field(name="past", kind="sequence", shares="user")
    )

    first = ingest(log, tmp_path / "a", schema=schema)
    second = ingest(log, tmp_path / "b", schema=schema)

    files = sorted(p.relative_to(first.path) for p in first.path.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(second.path) for p in second.path.rglob("*") if p.is_file()
    )
    for file in files:
        assert (first.path / file).read_bytes() == (second.path / file).read_bytes()


def test_sequences_share_the_table_of_their_field_and_keep_the_newest_events(
    tmp_path: Path,
) -> None:
    log = _log(
        tmp_path,
        {
            "item": ["x", "y", "x", "z", "x", "y"],
            "past": ["x|y", None, "y|q|x", "", "z", "x|x|y"],
            "click": [0, 1, 0, 1, 0, 1],
            "part": _parts(4),
        },
    )
    schema = _schema(
        Field(name="item", kind="categorical"),
        Field(name="past", kind="sequence", shares="item", separator="|", max_length=2),
    )

    dataset = ingest(log, tmp_path / "d", schema=schema, split=HALF)

    # Events count as occurrences of the shared table: after cutting to two events, training holds
    # x: 2 + 2, y: 1 + 1, z: 1, q: 1. Ties go by text: q before z.
    assert dataset.spec.num_rows_by_table == {"item": 5}
    values, lengths = dataset.split("train").columns.read_jagged("past", 0, 4)
    assert lengths.tolist() == [2, 0, 2, 0]
    assert values.tolist() == [1, 2, 3, 1]
    assert dataset.split("train").ids("item").tolist() == [1, 2, 1, 4]


def test_numeric_transforms_use_training_rows_and_repair_what_is_missing(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {
            "a": [0.0, 2.0, 4.0, None, float("inf"), 100.0],
            "click": [0, 1, 0, 1, 0, 1],
            "part": _parts(4),
        },
    )

    dataset = ingest(
        log, tmp_path / "d", schema=_schema(Field(name="a", kind="numeric")), split=HALF
    )

    # Training values 0, 2, 4: mean 2, standard deviation sqrt(8 / 3) = 1.632993.
    train = dataset.split("train").numeric("a")
    assert train == pytest.approx([-1.224745, 0.0, 1.224745, 0.0], abs=1e-5)
    # Infinity becomes the largest training value, 4.
    assert dataset.split("valid").numeric("a")[0] == pytest.approx(1.224745, abs=1e-5)
    counts = dataset.manifest["report"]["fields"]["a"]
    assert counts == {"rows": 6, "missing": 1, "unknown": 0, "clipped": 1, "shortened": 0}


def test_log_quantile_and_bucket_transforms(tmp_path: Path) -> None:
    values = [float(v) for v in range(1, 102)]
    log = _log(
        tmp_path,
        {
            "l": [*values, 1.0, 1.0],
            "q": [*values, 51.0, -9.0],
            "b": [*values, 1.0, None],
            "click": [0, 1] * 51 + [1],
            "part": _parts(101),
        },
    )
    schema = _schema(
        Field(name="l", kind="numeric", transform="log"),
        Field(name="q", kind="numeric", transform="quantile"),
        Field(name="b", kind="numeric", transform="bucket", num_buckets=4),
    )

    dataset = ingest(log, tmp_path / "d", schema=schema, split=HALF)

    logs = np.log1p(values)
    assert dataset.split("train").numeric("l") == pytest.approx(
        (logs - logs.mean()) / logs.std(), abs=1e-5
    )
    # 51 is the median: 0 between -1 and 1; what lies below every training value is -1.
    assert dataset.split("valid").numeric("q")[0] == pytest.approx(0.0, abs=1e-6)
    assert dataset.split("test").numeric("q")[0] == -1.0
    # Quartile bounds 26, 51, 76: buckets 1 to 4; missing is row 0 of a table of 5 rows.
    buckets = dataset.split("train").ids("b")
    assert [int(buckets[k - 1]) for k in (1, 25, 26, 51, 76, 101)] == [1, 1, 2, 3, 4, 4]
    assert dataset.split("test").ids("b").tolist() == [0]
    assert dataset.spec.num_rows_by_table == {"b": 5}


def test_hashing_needs_no_vocabulary_and_never_gives_row_0(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {
            "user": [f"u{k}" for k in range(300)] + [None, "new"],
            "click": [0, 1] * 151,
            "part": _parts(300),
        },
    )
    field = Field(name="user", kind="categorical", encoding="hashing", num_buckets=64)

    dataset = ingest(log, tmp_path / "d", schema=_schema(field), split=HALF)

    ids = dataset.split("train").ids("user")
    assert ids.min() >= 1
    assert ids.max() <= 63
    assert len(set(ids.tolist())) > 55
    assert dataset.split("valid").ids("user").tolist() == [0]
    assert dataset.split("test").ids("user")[0] >= 1


def test_conversion_exists_only_after_a_click(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {
            "user": list("abababab"),
            "click": [1, 0, 1, 0, 1, 0, 1, 0],
            "buy": [1, None, 0, 1, 1, None, 0, None],
            "part": _parts(6),
        },
    )
    schema = Schema(
        fields=(Field(name="user", kind="categorical"),),
        tasks=(Task(name="click"), Task(name="buy", observed_when="click")),
    )

    labels = ingest(log, tmp_path / "d", schema=schema, split=HALF).split("train").labels()

    # Row 3 has buy = 1 without a click: not observed, whatever it says.
    assert np.isnan(labels[:, 1]).tolist() == [False, True, False, True, False, True]


def test_conversion_of_a_click_is_missing_only_where_it_may_be(tmp_path: Path) -> None:
    columns = {
        "user": list("abababab"),
        "click": [1, 0, 1, 0, 1, 0, 1, 1],
        "buy": [1, None, None, None, 0, None, 0, 1],
        "part": _parts(6),
    }
    log = _log(tmp_path, columns)

    def schema(*, may_be_missing: bool) -> Schema:
        buy = Task(name="buy", observed_when="click", may_be_missing=may_be_missing)
        return replace(_schema(), tasks=(Task(name="click"), buy))

    said = (
        r"'buy', row 3: .* missing where 'click' is 1, got none. Write 0 if nothing happened, "
        r"remove the row, or set may_be_missing"
    )
    with pytest.raises(DataError, match=said):
        ingest(log, tmp_path / "d", schema=schema(may_be_missing=False), split=HALF)
    dataset = ingest(log, tmp_path / "d", schema=schema(may_be_missing=True), split=HALF)

    observed = ~np.isnan(dataset.split("train").labels()[:, 1])
    assert observed.tolist() == [True, False, False, False, True, False]


def test_split_by_time_puts_later_rows_later(tmp_path: Path) -> None:
    times = np.arange(100)[::-1] + 1_700_000_000
    log = _log(
        tmp_path,
        {"user": list(range(100)), "click": [0, 1] * 50, "ts": times},
    )

    dataset = ingest(log, tmp_path / "d", schema=_schema(time="ts"))

    found = {name: dataset.split(name).role("time") for name in dataset.split_names}
    assert {name: len(values) for name, values in found.items()} == {
        "train": 80,
        "valid": 10,
        "test": 10,
    }
    assert found["train"].max() < found["valid"].min() < found["test"].min()
    assert found["train"].min() == 1_700_000_000 * 1_000_000
    assert dataset.manifest["report"]["times_out_of_order"] == 99


def test_split_by_user_keeps_a_user_together(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {"user": [k % 97 for k in range(2000)], "click": [k % 2 for k in range(2000)]},
    )

    dataset = ingest(log, tmp_path / "d", schema=_schema(user="user"), split=SplitConfig(by="user"))

    users = [set(dataset.split(name).role("user").tolist()) for name in dataset.split_names]
    assert not users[0] & users[1]
    assert not users[0] & users[2]
    assert sum(map(len, users)) == 97


def test_split_by_user_draws_rows_without_a_user_one_by_one(tmp_path: Path) -> None:
    users = ["a", "b", None, None] * 500
    log = _log(tmp_path, {"user": users, "click": [0, 1, 1, 0] * 500})

    dataset = ingest(log, tmp_path / "d", schema=_schema(user="user"), split=SplitConfig(by="user"))

    alone = {name: int((dataset.split(name).role("user") < 0).sum()) for name in ("valid", "test")}
    assert 60 < alone["valid"] < 140
    assert 60 < alone["test"] < 140


def test_split_by_ratio_is_drawn_row_by_row(tmp_path: Path) -> None:
    count = 20_000
    log = _log(tmp_path, {"user": [1, 2] * (count // 2), "click": [0, 1, 1, 0] * (count // 4)})

    dataset = ingest(log, tmp_path / "d", schema=_schema())

    # Standard deviation of a tenth of 20,000 rows is 42.
    assert abs(dataset.split("valid").num_rows - 2000) < 200
    assert abs(dataset.split("test").num_rows - 2000) < 200


def test_new_rows_are_encoded_with_the_fitted_encoders(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {"user": list("aabbccaa"), "click": [0, 1] * 4, "part": _parts(6)},
    )
    dataset = ingest(log, tmp_path / "d", schema=_schema(), split=HALF)
    new = _log(tmp_path, {"user": ["c", "zzz", None]}, "new.parquet")

    encoders = Encoders.load(dataset.encoders_path, dataset.schema)
    rows = next(iter(encode_log(new, encoders)))

    assert rows.ids["user"].tolist() == [3, 0, 0]
    assert np.isnan(rows.labels["click"]).all()
    assert encoders.counts["user"].unknown == 1
    assert encoders.counts["user"].missing == 1


@pytest.mark.parametrize("name", ["new.csv", "new.jsonl"])
def test_new_rows_need_no_labels_times_or_weights_and_may_have_bad_ones(
    tmp_path: Path, name: str
) -> None:
    count = 20
    columns = {
        "user": ["a", "b"] * 10,
        "click": [0, 0, 1, 1] * 5,
        "ts": [1_700_000_000 + k for k in range(count)],
        "w": [1.0] * count,
    }
    dataset = ingest(
        _log(tmp_path, columns), tmp_path / "d", schema=_schema(time="ts", weight="w", user="user")
    )
    table = pa.table({"user": ["b", "a"], "click": ["2", "?"], "ts": ["x", ""], "w": ["-1", "z"]})
    (tmp_path / name).write_text(_as_json(table) if "json" in name else _as_text(table, ","))
    bare = _log(tmp_path, {"user": ["b", "a"]}, "bare.parquet")

    encoders = Encoders.load(dataset.encoders_path, dataset.schema)

    for log in (tmp_path / name, bare):
        rows = next(iter(encode_log(log, encoders)))
        assert rows.ids["user"].tolist() == [2, 1]
        assert np.isnan(rows.labels["click"]).all()
        assert not rows.roles
        assert rows.weights is None


def test_column_without_any_value_is_missing_in_new_rows(tmp_path: Path) -> None:
    log = _log(tmp_path, {"user": list("aabbccaa"), "click": [0, 1] * 4, "part": _parts(6)})
    dataset = ingest(log, tmp_path / "d", schema=_schema(), split=HALF)
    (tmp_path / "new.jsonl").write_text('{"user": null}\n')

    encoders = Encoders.load(dataset.encoders_path, dataset.schema)
    rows = next(iter(encode_log(tmp_path / "new.jsonl", encoders)))

    assert rows.ids["user"].tolist() == [0]
    assert encoders.counts["user"].missing == 1


def test_folder_of_files_is_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for index in (1, 0):
        _log(
            folder,
            {
                "user": [f"u{index}"] * 4,
                "click": [0, 1, 0, 1],
                "part": ["train", "train", "valid", "test"],
            },
            f"part-{index}.parquet",
        )

    dataset = ingest(folder, tmp_path / "d", schema=_schema(), split=HALF)

    assert dataset.split("train").rows().tolist() == [0, 1, 4, 5]


def test_schema_survives_being_written_and_read(tmp_path: Path) -> None:
    schema = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user", min_count=3, reason="an id"),
            Field(name="price", kind="numeric", transform="log"),
        ),
        tasks=(Task(name="click"), Task(name="buy", observed_when="click")),
        roles=Roles(time="ts"),
    )
    (tmp_path / "schema.toml").write_text(schema.to_toml())

    assert load_schema(tmp_path / "schema.toml") == schema


def test_dataset_does_not_depend_on_threads_or_row_groups(tmp_path: Path) -> None:
    count = 3000
    generator = np.random.default_rng(0)
    table = pa.table(
        {
            "user": [f"u{k}" if k % 7 else None for k in generator.integers(0, 400, count)],
            "click": generator.integers(0, 2, count),
        }
    )
    fingerprints = set()
    threads = pa.cpu_count()
    try:
        for number, (workers, rows) in enumerate([(1, count), (2, count), (2, 70)]):
            pa.set_cpu_count(workers)
            pq.write_table(table, tmp_path / "log.parquet", row_group_size=rows)
            out = tmp_path / f"d{number}"
            fingerprints.add(
                ingest(tmp_path / "log.parquet", out, schema=_schema(user="user")).fingerprint
            )
    finally:
        pa.set_cpu_count(threads)

    assert len(fingerprints) == 1


# Bad input.


def _ingest_csv(tmp_path: Path, header: str, *rows: str, schema: Schema | None = None) -> None:
    log = _csv(tmp_path / "log.csv", header, *rows)
    ingest(log, tmp_path / "d", schema=schema or _schema())
    assert not (tmp_path / "d").exists()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.csv: must exist, got no such file"):
        ingest(tmp_path / "nothing.csv", tmp_path / "d", schema=_schema())


def test_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").touch()

    with pytest.raises(DataError, match=r"log.csv: must hold rows, got an empty file"):
        ingest(tmp_path / "log.csv", tmp_path / "d", schema=_schema())


def test_folder_without_logs_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "readme.md").write_text("nothing here")

    with pytest.raises(DataError, match=r"logs: must hold log files"):
        ingest(tmp_path / "logs", tmp_path / "d", schema=_schema())


def test_header_without_rows_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold rows, got a header only"):
        _ingest_csv(tmp_path, "user,click")


def test_ragged_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log.csv, row 2: every row must have .*, 2, got 3"):
        _ingest_csv(tmp_path, "user,click", "a,1", "b,0,7")


def test_wrong_delimiter_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must name at least two columns .* got 'user:click'"):
        _ingest_csv(tmp_path, "user:click", "a:1")


def test_file_without_header_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must name the columns, got numbers \('1,0'\)"):
        _ingest_csv(tmp_path, "1,0", "2,1")


def test_text_in_a_numeric_column_is_named_with_its_row(tmp_path: Path) -> None:
    schema = _schema(Field(name="price", kind="numeric"))

    with pytest.raises(DataError, match=r"'price', row 3: .* must hold numbers, got 'cheap'"):
        _ingest_csv(tmp_path, "price,click", "1,0", "2.5,1", "cheap,0", schema=schema)


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"user,click\na,1\n\xff\xfe,0\n")

    with pytest.raises(DataError, match=r"line 3 must be UTF-8, got byte 0xff"):
        ingest(tmp_path / "log.csv", tmp_path / "d", schema=_schema())


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column names must differ, got 'user' twice"):
        _ingest_csv(tmp_path, "user,user,click", "a,b,1")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "2", "1"], r"row 2: a binary label must be 0 or 1, got 2"),
        (["0", "-1", "1"], r"row 2: a binary label must be 0 or 1, got -1"),
        (["0", "", "1"], r"row 2: a label must not be missing"),
        (["yes", "no", "yes"], r"row 1: a binary label must be 0 or 1, got 'yes'. Map"),
    ],
)
def test_wrong_label_is_named_with_its_row(tmp_path: Path, labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _ingest_csv(tmp_path, "user,click", *(f"u,{label}" for label in labels))


def test_labels_of_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be of both classes, got only 0 in \d+ rows"):
        _ingest_csv(tmp_path, "user,click", *(f"u{k},0" for k in range(50)))


def test_key_that_one_file_of_json_lines_leaves_out_is_missing_there(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for part in range(3):
        more = {} if part == 1 else {"price": 1.5}
        rows = [{"user": k % 5, **more, "click": k % 2} for k in range(20)]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = (Field(name="user", kind="categorical"), Field(name="price", kind="numeric"))
    schema = Schema(fields=fields, tasks=(Task(name="click"),))

    dataset = ingest(
        folder, tmp_path / "d", schema=schema, split=SplitConfig(by="ratio", valid=0.2)
    )

    assert dataset.manifest["report"]["fields"]["price"]["missing"] == 20
    encoders = Encoders.load(tmp_path / "d" / "encoders", schema)
    assert sum(len(rows.labels["click"]) for rows in encode_log(folder, encoders)) == 60
    # A file by itself may have a key that is written wrong.
    for source in (folder / "1.jsonl", [folder / "1.jsonl"]):
        with pytest.raises(DataError, match=r"1\.jsonl: must hold column 'price'"):
            list(encode_log(source, encoders))


def test_column_of_the_schema_that_is_absent_names_the_nearest(tmp_path: Path) -> None:
    schema = _schema(Field(name="usr", kind="categorical"))

    with pytest.raises(SchemaError, match=r"must hold column 'usr', .*Did you mean 'user'\?"):
        _ingest_csv(tmp_path, "user,click", "a,1", schema=schema)


def test_unknown_key_of_a_schema_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(
        'tasks = [{name = "click"}]\n[[fields]]\nname = "u"\nkind = "categorical"\nmin_cont = 2\n'
    )

    with pytest.raises(SchemaError, match=r"fields\[0\].min_cont: .*Did you mean 'min_count'\?"):
        load_schema(path)


def test_time_in_two_units_is_refused(tmp_path: Path) -> None:
    rows = [f"u,{k % 2},{1_700_000_000 + k}" for k in range(20)] + ["u,1,1700000000000"]

    with pytest.raises(DataError, match=r"'ts', row 21: .* in 's', as .* got 1700000000000"):
        _ingest_csv(tmp_path, "user,click,ts", *rows, schema=_schema(time="ts"))


def test_time_of_no_known_unit_is_refused(tmp_path: Path) -> None:
    rows = [f"u,{k % 2},{k}" for k in range(20)]

    with pytest.raises(DataError, match=r"a time must be seconds, ms, us or ns since 1970"):
        _ingest_csv(tmp_path, "user,click,ts", *rows, schema=_schema(time="ts"))


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    log = _log(tmp_path, {"user": ["a"], "click": [1]})
    log.write_bytes(log.read_bytes()[:-20])

    with pytest.raises(DataError, match=r"log.parquet: must be whole Parquet"):
        ingest(log, tmp_path / "d", schema=_schema())


def test_broken_json_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": "a", "click": 1}\n{"user": \n')

    with pytest.raises(DataError, match=r"log.jsonl, row 2: must be a JSON object .* cut short"):
        ingest(tmp_path / "log.jsonl", tmp_path / "d", schema=_schema())


@pytest.mark.parametrize("value", ["", "NaN", "null"])
def test_missing_category_takes_row_0(tmp_path: Path, value: str) -> None:
    log = _csv(
        tmp_path / "log.csv",
        "user,click,part",
        *("a,0,train", "a,1,train", f"{value},0,train", "a,1,valid", "a,0,test"),
    )

    dataset = ingest(log, tmp_path / "d", schema=_schema(), split=HALF)

    assert dataset.split("train").ids("user").tolist() == [1, 1, 0]


def test_ids_near_2_to_63_stay_apart(tmp_path: Path) -> None:
    ids = pa.array([2**63 - 1, 2**63 - 2, 2**63, 2**64 - 1], pa.uint64())
    log = _log(
        tmp_path, {"user": ids, "click": [0, 1, 0, 1], "part": ["train", "train", "valid", "test"]}
    )

    dataset = ingest(log, tmp_path / "d", schema=_schema(), split=HALF)

    assert sorted(dataset.split("train").ids("user").tolist()) == [1, 2]
    assert dataset.split("valid").ids("user").tolist() == [0]


@pytest.mark.parametrize(("value", "got"), [("later", "'later'"), ("", "none")])
def test_row_that_names_no_split_is_named(tmp_path: Path, value: str, got: str) -> None:
    log = _csv(tmp_path / "log.csv", "user,click,part", "a,0,train", f"a,1,{value}", "a,1,test")

    with pytest.raises(DataError, match=rf"'part', row 2: must name a split .*, got {got}\. Mend"):
        ingest(log, tmp_path / "d", schema=_schema(), split=HALF)


def test_labels_of_a_cascade_may_be_missing_and_soft(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {
            "user": ["a"] * 6,
            "click": [1, 0, None, None, 1, 0],
            "final_click": [0.25, 0.5, 0.75, None, 1.0, 0.0],
            "part": _parts(4),
        },
    )
    schema = Schema(
        fields=(Field(name="user", kind="categorical"),),
        tasks=(
            Task(name="click", may_be_missing=True),
            Task(name="final_click", kind="probability", distils="click", may_be_missing=True),
        ),
    )

    dataset = ingest(log, tmp_path / "d", schema=schema, split=HALF)

    nan = np.nan
    np.testing.assert_array_equal(
        dataset.split("train").labels(), [[1, 0.25], [0, 0.5], [nan, 0.75], [nan, nan]]
    )
    assert dataset.spec.tasks == schema.tasks


def test_probabilities_that_no_training_row_has_are_refused(tmp_path: Path) -> None:
    final = [None, None, 0.5, 0.5]
    columns = {"user": ["a"] * 4, "click": [1, 0, 1, 0], "final": final, "part": _parts(2)}
    task = Task(name="final", kind="probability", may_be_missing=True)
    schema = Schema(fields=(Field(name="user", kind="categorical"),), tasks=(task,))

    with pytest.raises(
        DataError, match=r"'final': training rows must hold a probability .* 2 rows"
    ):
        ingest(_log(tmp_path, columns), tmp_path / "d", schema=schema, split=HALF)


def test_inputs_know_whom_they_describe(tmp_path: Path) -> None:
    log = _log(
        tmp_path,
        {
            "age": [1.0, 2.0, 3.0, 4.0],
            "price": [1.0, 2.0, 3.0, 4.0],
            "past": [["a"], ["b"], [], ["a"]],
            "click": [0, 1, 0, 1],
            "part": _parts(2),
        },
    )
    schema = _schema(
        Field(name="age", kind="numeric", side="user"),
        Field(name="price", kind="numeric", side="item"),
        Field(name="past", kind="sequence", side="user"),
    )

    spec = ingest(log, tmp_path / "d", schema=schema, split=HALF).spec

    assert spec.numeric_sides == ("user", "item")
    assert spec.sequences[0].side == "user"


def test_encoders_that_were_fitted_before_number_categories_as_they_did(tmp_path: Path) -> None:
    schema = _schema(Field(name="user", kind="categorical"), Field(name="price", kind="numeric"))
    first = _log(
        tmp_path,
        {
            "user": ["b", "b", "a", "a", "a"],
            "price": [1.0, 2.0, 3.0, 0.0, 0.0],
            "click": [0, 1, 0, 1, 0],
            "part": _parts(3),
        },
    )
    old = ingest(first, tmp_path / "old", schema=schema, split=HALF)
    encoders = Encoders.load(old.encoders_path, old.schema)
    columns = {"user": ["c", "a", "b", "a"], "price": [9.0, 8.0, 1.0, 3.0], "click": [1, 0, 1, 1]}
    logs = {
        "train": _log(tmp_path, columns, "train.parquet"),
        "valid": _log(tmp_path, columns, "valid.parquet"),
    }

    new = ingest(logs, tmp_path / "new", schema=schema, encoders=encoders)

    # b is the more frequent one of the old rows, and c was never seen.
    assert new.split("train").ids("user").tolist() == [0, 2, 1, 2]
    assert new.spec == old.spec
    files = [
        {n: f["sha256"] for n, f in d.manifest["files"].items() if n.startswith("encoders/")}
        for d in (old, new)
    ]
    assert files[0] == files[1]
    old_price, new_price = (d.split("train").numeric("price") for d in (old, new))
    assert new_price[2] == old_price[0]
    assert new_price[3] == old_price[2]
    assert new.manifest["report"]["fields"]["user"]["unknown"] == 2


def test_words_of_a_text_stand_between_marks(tmp_path: Path) -> None:
    texts = ["Hello, world!", "(hello)", None, "", " - ", "world hello world."]
    log = _log(tmp_path, {"title": texts, "click": [0, 1] * 3, "part": _parts(4)})
    field = Field(name="title", kind="text", max_length=2)

    dataset = ingest(log, tmp_path / "d", schema=_schema(field), split=HALF)

    words = {"hello": 1, "world": 2}
    values, lengths = dataset.split("train").columns.read_jagged("title", 0, 4)
    assert lengths.tolist() == [2, 1, 0, 0]
    assert values.tolist() == [words["hello"], words["world"], words["hello"]]
    assert dataset.split("valid").columns.read_jagged("title", 0, 1)[1].tolist() == [0]
    values, _ = dataset.split("test").columns.read_jagged("title", 0, 1)
    assert values.tolist() == [words["hello"], words["world"]]
    counts = dataset.manifest["report"]["fields"]["title"]
    assert counts == {"rows": 5, "missing": 0, "unknown": 0, "clipped": 0, "shortened": 1}


_TIMED = Schema(
    fields=(Field(name="user", kind="categorical"),),
    tasks=(
        Task(name="click"),
        Task(name="seconds", kind="regression", observed_when="click"),
    ),
)
_TIMES = {
    "user": ["a", "b", "a", "b", "a", "b"],
    "click": [1, 0, 1, 1, 1, 1],
    "seconds": [10.0, 999.0, 20.0, 30.0, 500.0, 700.0],
    "part": _parts(4),
}


def test_scale_of_a_regression_is_that_of_its_training_labels(tmp_path: Path) -> None:
    log = _log(tmp_path, _TIMES)

    dataset = ingest(log, tmp_path / "d", schema=_TIMED, split=HALF)

    # 10, 20 and 30; 999 came without a click, the rest is not of training.
    (click, seconds) = dataset.spec.tasks
    assert (click.mean, click.std) == (None, None)
    assert (seconds.mean, seconds.std) == (20.0, pytest.approx((200 / 3) ** 0.5))
    assert dataset.split("test").labels()[:, 1].tolist() == [700.0]
    assert load_schema(tmp_path / "d" / "schema.toml").tasks == dataset.spec.tasks


def test_scale_that_a_schema_or_earlier_encoders_say_is_kept(tmp_path: Path) -> None:
    log = _log(tmp_path, _TIMES)
    click, seconds = _TIMED.tasks
    as_it_is = replace(_TIMED, tasks=(click, replace(seconds, mean=0.0, std=1.0)))

    said = ingest(log, tmp_path / "said", schema=as_it_is, split=HALF)
    encoders = Encoders.load(said.encoders_path, said.schema)
    again = ingest(
        {"train": _log(tmp_path, _TIMES, "again.parquet")},
        tmp_path / "again",
        schema=_TIMED,
        encoders=encoders,
    )

    assert said.spec.tasks == again.spec.tasks == as_it_is.tasks


def test_regression_of_one_value_is_relative_to_that(tmp_path: Path) -> None:
    log = _log(tmp_path, _TIMES | {"seconds": [5.0] * 6})

    seconds = ingest(log, tmp_path / "d", schema=_TIMED, split=HALF).spec.tasks[1]

    assert (seconds.mean, seconds.std) == (5.0, 1.0)


def test_market_alone_in_a_list_is_its_logs(tmp_path: Path) -> None:
    folder = tmp_path / "market"
    for name in ("logs", "truth"):
        (folder / name).mkdir(parents=True)
    (folder / "market.json").write_text("{}")
    pq.write_table(pa.table({"ad_id": [1]}), folder / "ads.parquet")
    columns = {"user": ["a", "b"] * 3, "click": [0, 1] * 3, "part": _parts(4)}
    _log(folder / "logs", columns)
    _log(folder / "truth", {"click": [0.5] * 6})

    dataset = ingest([folder], tmp_path / "d", schema=_schema(), split=HALF)
    rows = encode_log([folder], Encoders.load(dataset.encoders_path, dataset.schema))

    assert [len(part.row) for part in rows] == [6]
