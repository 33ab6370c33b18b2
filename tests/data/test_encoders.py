"""Encoders on disk: a file that is missing or altered is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis import config
from tamis.data.encoders import Encoders
from tamis.data.ingest import encode_log, ingest
from tamis.data.schema import Field, InputSpec, Roles, Schema, Task
from tamis.data.splits import SplitConfig
from tamis.errors import ArtifactError, DataError, SchemaError

SCHEMA = Schema(
    fields=(
        Field(name="user", kind="categorical"),
        Field(name="price", kind="numeric"),
        Field(name="past", kind="sequence", group="events"),
        Field(name="past_shop", kind="sequence", group="events"),
    ),
    tasks=(Task(name="click"),),
)


def _table(count: int = 60) -> pa.Table:
    return pa.table(
        {
            "user": [f"user {k % 7}" for k in range(count)],
            "price": [k / 3 for k in range(count)],
            "past": [[k, k + 1][: k % 3] for k in range(count)],
            "past_shop": [[k % 5] * (k % 3) for k in range(count)],
            "click": [k // 2 % 2 for k in range(count)],
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(_table(), tmp_path / "log.parquet")
    split = SplitConfig(by="ratio")
    return ingest(
        tmp_path / "log.parquet", tmp_path / "d", schema=SCHEMA, split=split
    ).encoders_path


def test_encoders_are_written_as_they_were_read(folder: Path, tmp_path: Path) -> None:
    hashed = Field(name="past", kind="sequence", encoding="hashing", num_buckets=9, group="events")
    schema = replace(SCHEMA, fields=(*SCHEMA.fields[:2], hashed, SCHEMA.fields[3]))
    split = SplitConfig(by="ratio")
    first = ingest(tmp_path / "log.parquet", tmp_path / "d2", schema=schema, split=split)

    Encoders.load(first.encoders_path, schema).save(tmp_path / "again")

    files = sorted(file.name for file in first.encoders_path.iterdir())
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in files:
        written = (tmp_path / "again" / name).read_bytes()
        assert written == (first.encoders_path / name).read_bytes(), name


def test_vocabulary_that_is_gone_is_named_by_its_field(folder: Path) -> None:
    (folder / "vocabulary-0000.arrow").unlink()

    with pytest.raises(ArtifactError, match=r"must hold the vocabulary of field 'user', got past"):
        Encoders.load(folder, SCHEMA)


def test_transform_that_is_gone_is_named_by_its_field(folder: Path) -> None:
    table = json.loads((folder / "encoders.json").read_text())
    del table["numeric"]["price"]
    (folder / "encoders.json").write_text(json.dumps(table))

    with pytest.raises(ArtifactError, match=r"must hold the transform of field 'price', got none"):
        Encoders.load(folder, SCHEMA)


@pytest.mark.parametrize("text", ["[]", "{}", '{"hashed": {}, "numeric": {"price": {"x": 1}}}'])
def test_encoders_of_another_form_are_refused(folder: Path, text: str) -> None:
    (folder / "encoders.json").write_text(text)

    with pytest.raises(ArtifactError, match=r"encoders.json: must hold the encoders of a dataset"):
        Encoders.load(folder, SCHEMA)


def _cut_short(data: bytes) -> bytes:
    return data[:-40]


def _offset_out_of_bounds(data: bytes) -> bytes:
    # Offsets of 'user 0', 'user 1', ...: 0, 6, 12; the third becomes larger than the texts.
    good = b"".join(k.to_bytes(4, "little") for k in (0, 6, 12))
    assert data.count(good) == 1
    return data.replace(good, good[:8] + (10**6).to_bytes(4, "little"))


def _no_text(data: bytes) -> bytes:
    return data.replace(b"user 3", b"\xff\xffer 3")


@pytest.mark.parametrize("damage", [_cut_short, _offset_out_of_bounds, _no_text])
def test_damaged_vocabulary_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "vocabulary-0000.arrow"
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ArtifactError, match=r"vocabulary-0000.arrow: must be a whole vocabulary"):
        Encoders.load(folder, SCHEMA)


def test_vocabulary_of_numbers_is_refused(folder: Path) -> None:
    path = folder / "vocabulary-0000.arrow"
    table = pa.table({"value": [1, 2]}, metadata={"field": "user"})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)

    with pytest.raises(
        ArtifactError, match=r"must hold texts and no nulls, got 0 nulls of type in"
    ):
        Encoders.load(folder, SCHEMA)


def test_sequences_of_one_group_with_other_lengths_are_named_with_their_row(
    folder: Path, tmp_path: Path
) -> None:
    table = _table()
    shops = table["past_shop"].to_pylist()
    shops[40] = [1, 2, 3]
    table = table.set_column(3, "past_shop", pa.array(shops))
    pq.write_table(table, tmp_path / "new.parquet")

    with pytest.raises(
        DataError, match=r"new.parquet, column 'past_shop', row 41: .* got 3 beside"
    ):
        list(encode_log(tmp_path / "new.parquet", Encoders.load(folder, SCHEMA)))


def test_sequences_of_one_group_are_compared_by_all_of_their_events(
    folder: Path, tmp_path: Path
) -> None:
    table = _table()
    past, shops = (table[name].to_pylist() for name in ("past", "past_shop"))
    # Of both the last 50 are kept.
    past[40], shops[40] = [1] * 60, [2] * 61
    table = table.set_column(2, "past", pa.array(past)).set_column(3, "past_shop", pa.array(shops))
    pq.write_table(table, tmp_path / "new.parquet")

    with pytest.raises(DataError, match=r"column 'past_shop', row 41: .* got 61 beside 60 in"):
        list(encode_log(tmp_path / "new.parquet", Encoders.load(folder, SCHEMA)))


def test_spec_says_whom_each_input_describes_and_which_field_names_the_item(
    tmp_path: Path,
) -> None:
    schema = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="shop", kind="categorical", side="item"),
            Field(name="ad", kind="categorical", column="ad_id", side="item"),
            Field(name="age", kind="numeric", side="user"),
            Field(name="hour", kind="numeric"),
            Field(name="past", kind="sequence", group="events", side="user"),
            Field(name="past_shop", kind="sequence", group="events", side="user"),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(item="ad_id"),
    )
    table = _table().rename_columns(["user", "age", "past", "past_shop", "click"])
    for name in ("shop", "ad_id", "hour"):
        table = table.append_column(name, table["age"])
    pq.write_table(table, tmp_path / "log.parquet")
    made = ingest(
        tmp_path / "log.parquet", tmp_path / "d", schema=schema, split=SplitConfig(by="ratio")
    )

    assert made.spec.numeric_sides == ("user", "context")
    assert [group.side for group in made.spec.sequences] == ["user"]
    assert made.spec.categorical_of("item") == (1, 2)
    assert made.spec.numeric_of("user") == (0,)
    assert made.spec.item == "ad"


def test_encoders_without_some_fields_encode_the_others_as_before(tmp_path: Path) -> None:
    pq.write_table(_table(), tmp_path / "log.parquet")
    made = ingest(
        tmp_path / "log.parquet", tmp_path / "d", schema=SCHEMA, split=SplitConfig(by="ratio")
    )
    whole = Encoders.load(made.encoders_path, made.schema)

    part = whole.without(["past", "price"])

    assert [field.name for field in part.schema.fields] == ["user", "past_shop"]
    assert (part.spec.numeric, [table.name for table in part.spec.tables]) == (
        (), ["user", "past_shop"]
    )  # fmt: skip
    assert part.vocabularies["user"] is whole.vocabularies["user"]
    (tmp_path / "part").mkdir()
    part.save(tmp_path / "part")
    assert Encoders.load(tmp_path / "part", part.schema).spec == part.spec
    with pytest.raises(SchemaError, match=r"must be fields of the dataset, got 'prices'. Its"):
        whole.without(["prices"])
    with pytest.raises(SchemaError, match=r"must leave one to read, got all\. Leave fewer out"):
        whole.without(["user", "price", "past", "past_shop"])


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("ad", r"must include 'past', which is made of 'ad', got ad\. Leave both out, or neither"),
        ("past", r"must include 'met', which is made of 'past', got past\."),
    ],
)
def test_field_that_another_needs_is_left_out_with_it(
    tmp_path: Path, left_out: str, message: str
) -> None:
    rows = {"ad": ["a", "b"] * 10, "past": [["a"], []] * 10, "met": [1, 0] * 10}
    pq.write_table(pa.table({**rows, "click": [0, 1, 1, 0] * 5}), tmp_path / "log.parquet")
    fields = (
        Field(name="ad", kind="categorical", side="item"),
        Field(name="past", kind="sequence", shares="ad", side="user"),
        Field(name="met", kind="numeric", transform="none", counts="past"),
    )
    made = ingest(
        tmp_path / "log.parquet",
        tmp_path / "d",
        schema=Schema(fields=fields, tasks=(Task(name="click"),)),
        split=SplitConfig(by="ratio"),
    )
    whole = Encoders.load(made.encoders_path, made.schema)

    with pytest.raises(SchemaError, match=message):
        whole.without([left_out])
    assert [item.name for item in whole.without(["past", "met"]).schema.fields] == ["ad"]


def test_spec_of_earlier_datasets_has_no_sides() -> None:
    table = {"numeric": ["price"], "categorical": [], "sequences": [], "tables": []}
    spec = config.from_table(InputSpec, table | {"tasks": [{"name": "click"}]})

    assert spec.numeric_of("context") == (0,)
    assert spec.item == ""


def test_sides_of_some_numbers_only_are_refused() -> None:
    with pytest.raises(SchemaError, match="say one for each of 2 numeric features, got 1"):
        InputSpec(
            numeric=("a", "b"),
            categorical=(),
            sequences=(),
            tables=(),
            tasks=(),
            numeric_sides=("user",),
        )
