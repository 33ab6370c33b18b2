"""DeepCTR's feature columns; the stand-ins below have the attributes of DeepCTR-Torch 0.2.9.

DeepCTR's own have more, see _KerasFeat.
"""

import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from tamis import api
from tamis.data.schema import Field, Schema
from tamis.errors import ConfigError
from tamis.importers import deepctr

SparseFeat = namedtuple(
    "SparseFeat",
    "name vocabulary_size embedding_dim use_hash dtype embedding_name group_name",
    defaults=(4, False, "int32", None, "default_group"),
)
DenseFeat = namedtuple("DenseFeat", "name dimension dtype", defaults=(1, "float32"))
VarLenSparseFeat = namedtuple(
    "VarLenSparseFeat", "sparsefeat maxlen combiner length_name", defaults=("mean", None)
)
_KerasFeat = namedtuple("SparseFeat", (*SparseFeat._fields, "embeddings_initializer", "trainable"))
_LOG = Path("log.parquet")


def _sparse(name: str, size: int, **options: object) -> SparseFeat:
    return SparseFeat(name, size, **{"embedding_name": name, **options})


def _read(columns: list[object]) -> tuple[Schema, tuple[str, ...]]:
    imported = deepctr.read(columns, labels=["y"], files=_LOG)
    return imported.schema, imported.notes


def test_columns_become_fields() -> None:
    columns = [
        _sparse("user", 3),
        _sparse("item", 100, use_hash=True),
        _sparse("user", 3),  # the linear and the deep list, joined
        DenseFeat("price"),
        VarLenSparseFeat(_sparse("hist_item", 100, embedding_name="item"), maxlen=4),
    ]
    imported = deepctr.read(columns, labels=["click", "buy"], files=_LOG)
    schema, notes = imported.schema, imported.notes

    assert schema.fields == (
        Field(name="user", kind="categorical"),
        Field(name="item", kind="categorical", encoding="hashing", num_buckets=100),
        Field(name="price", kind="numeric", transform="none"),
        Field(name="hist_item", kind="sequence", shares="item", max_length=4),
    )
    assert [task.name for task in schema.tasks] == ["click", "buy"]
    assert notes[0].startswith("user: embedding_dim = 4 is a setting of the model")
    assert len(notes) == 3


def test_columns_may_share_a_table_that_is_no_columns_own() -> None:
    past = VarLenSparseFeat(_sparse("past", 3, embedding_name="t"), maxlen=4)
    columns = [past, _sparse("a", 3, embedding_name="t"), _sparse("b", 3, embedding_name="t")]
    schema = _read(columns)[0]

    # A history owns no table that others use.
    shares = {field.name: field.shares for field in schema.fields}
    assert shares == {"past": "a", "a": "", "b": "a"}


def test_a_hashed_table_is_hashed_by_its_owner() -> None:
    columns = [
        _sparse("a", 50, use_hash=True, embedding_name="t"),
        _sparse("b", 80, use_hash=True, embedding_name="t"),
    ]
    schema, notes = _read(columns)

    assert schema.fields == (
        Field(name="a", kind="categorical", encoding="hashing", num_buckets=80),
        Field(name="b", kind="categorical", shares="a"),
    )
    assert not any("hashed" in note for note in notes)


def test_a_table_hashed_for_one_of_its_columns_is_hashed_for_all() -> None:
    past = VarLenSparseFeat(_sparse("past", 9, use_hash=True, embedding_name="item"), maxlen=4)
    schema, notes = _read([_sparse("item", 9), past])

    assert schema.fields == (
        Field(name="item", kind="categorical", encoding="hashing", num_buckets=9),
        Field(name="past", kind="sequence", shares="item", max_length=4),
    )
    assert "item: hashed, as past of the same table is." in notes


def test_histories_alone_keep_a_table_each() -> None:
    columns = [
        VarLenSparseFeat(_sparse(name, 9, use_hash=True, embedding_name="old"), maxlen=4)
        for name in ("old", "new")
    ]
    schema, notes = _read(columns)

    assert schema.fields == tuple(
        Field(name=name, kind="sequence", max_length=4, encoding="hashing", num_buckets=9)
        for name in ("old", "new")
    )
    assert "old, new: histories alone share table 'old'; each has its own." in notes


def test_columns_of_one_length_are_one_history() -> None:
    columns = [
        VarLenSparseFeat(_sparse("items", 9), maxlen=4, length_name="n"),
        VarLenSparseFeat(_sparse("classes", 9), maxlen=6, length_name="n"),
        VarLenSparseFeat(_sparse("words", 9), maxlen=3, length_name="m"),
    ]
    schema, notes = _read(columns)

    assert [(field.group, field.max_length) for field in schema.fields] == [
        *(("n", 6), ("n", 6), ("", 3)),
    ]
    assert notes[-1] == "items: maxlen became 6, the longest of the history of items, classes."
    equal = [columns[0], columns[1]._replace(maxlen=4)]
    assert not any("maxlen" in note for note in _read(equal)[1])


def test_sizes_may_be_numpys() -> None:
    columns = [
        _sparse("item", np.int64(9), use_hash=True),
        VarLenSparseFeat(_sparse("past", 9, embedding_name="item"), maxlen=np.int64(4)),
    ]

    assert "max_length = 4" in _read(columns)[0].to_toml()


def test_histories_of_a_text_file_are_cut_at_the_separator(tmp_path: Path) -> None:
    rows = [f"i{n % 4},{'|'.join(f'i{k}' for k in range(n % 3))},{n % 2}" for n in range(40)]
    (tmp_path / "log.csv").write_text("\n".join(["item,past,click", *rows]) + "\n")
    imported = api.import_deepctr(
        [_sparse("item", 9), VarLenSparseFeat(_sparse("past", 9, embedding_name="item"), maxlen=4)],
        labels=["click"],
        files=tmp_path / "log.csv",
        separator="|",
    )
    dataset = api.ingest(imported.files, tmp_path / "dataset", schema=imported.schema)

    assert dataset.spec.num_rows_by_table == {"item": 5}
    _, offsets = dataset.split("train").columns.read_jagged("past", 0, 6)
    assert np.diff(offsets).max() == 2


def test_other_poolings_are_said() -> None:
    column = VarLenSparseFeat(_sparse("past", 9), maxlen=4, combiner="sum")
    _, notes = _read([column])

    assert "past: combiner 'sum' became the mean." in notes


def test_pretrained_tables_are_said() -> None:
    def keras_notes(initializer: str, *, trainable: bool) -> list[str]:
        made = type(initializer, (), {})()
        _, notes = _read([_KerasFeat(*_sparse("item", 9), made, trainable)])
        return [note for note in notes if "embedding_dim" not in note]

    assert keras_notes("RandomNormal", trainable=True) == []
    assert keras_notes("Constant", trainable=False) == [
        "item: embeddings_initializer Constant is not carried over.",
        "item: trainable = False is not carried over; its table is trained.",
    ]


def test_a_log_is_ingested_by_feature_columns(tmp_path: Path) -> None:
    names = [f"i{n}" for n in range(4)]
    log = pa.table(
        {
            "user": [f"u{n % 3}" for n in range(40)],
            "item": [names[n % 4] for n in range(40)],
            "past": [names[: n % 5] for n in range(40)],
            "price": [n / 10 for n in range(40)],
            "click": [n % 2 for n in range(40)],
        }
    )
    parts = {"train": log, "valid": log.slice(0, 10), "test": log.slice(10, 10)}
    for split, part in parts.items():
        pq.write_table(part, tmp_path / f"{split}.parquet")
    columns = [
        _sparse("user", 3),
        _sparse("item", 100, use_hash=True, embedding_name="things"),
        DenseFeat("price"),
        VarLenSparseFeat(_sparse("past", 100, use_hash=True, embedding_name="things"), maxlen=3),
    ]
    imported = api.import_deepctr(
        columns,
        labels=["click"],
        files={split: str(tmp_path / f"{split}.parquet") for split in parts},
    )
    dataset = api.ingest(imported.files, tmp_path / "dataset", schema=imported.schema)
    train = dataset.split("train")

    assert dataset.spec.num_rows_by_table == {"user": 4, "item": 100}
    (history,) = dataset.spec.sequences
    assert (history.tables, history.max_length) == (("item",), 3)
    # Row 3 has past i0, i1, i2; rows 0 to 2 have these as their items.
    events, _ = train.columns.read_jagged("past", 3, 4)
    assert events.tolist() == train.ids("item")[:3].tolist()
    assert dataset.split("test").num_rows == 10


@pytest.mark.parity
def test_deepctr_torchs_own_example_is_ingested_as_it_encodes_it(tmp_path: Path) -> None:
    """DeepCTR-Torch's example of several tasks, whose log of 200 rows is among the public sets."""
    root = os.environ.get("TAMIS_DATA")
    if not root:
        pytest.skip("TAMIS_DATA is not set: the public sets are not at hand")
    sparse = ["uid", "user_city", "item_id", "author_id", "item_city", "channel"]
    more = ["music_id", "device"]
    names = [*sparse, "finish", "like", *more, "time", "duration_time"]
    log = pc.read_csv(
        Path(root) / "format_samples" / "byterec_200.tsv",
        read_options=pc.ReadOptions(column_names=names),
        parse_options=pc.ParseOptions(delimiter="\t"),
    )
    # The example makes its tables of the values of all rows, and tests on the last fifth.
    columns = [_sparse(name, len(log[name].unique())) for name in (*sparse, *more)]
    parts = {"train": log, "valid": log.slice(160), "test": log.slice(160)}
    for split, part in parts.items():
        pq.write_table(part, tmp_path / f"{split}.parquet")
    imported = api.import_deepctr(
        [*columns, DenseFeat("duration_time", 1)],
        labels=["finish", "like"],
        files={split: str(tmp_path / f"{split}.parquet") for split in parts},
    )
    dataset = api.ingest(imported.files, tmp_path / "dataset", schema=imported.schema)
    train = dataset.split("train")

    # One more, for values that training has not seen; -1 is a value here as it is there.
    sizes = {column.name: column.vocabulary_size + 1 for column in columns}
    assert dataset.spec.num_rows_by_table == sizes
    assert sizes["channel"] == 5
    for name in (*sparse, *more):
        _, wanted = np.unique(log[name].to_numpy(), return_inverse=True)
        pairs = set(zip(wanted.tolist(), train.ids(name).tolist(), strict=True))
        assert len(pairs) == sizes[name] - 1, name  # one id for each value, and no two alike
    assert train.labels().sum(0).tolist() == [76, 7]
    # As they stand: the example scales them to 0 to 1 itself.
    assert train.numeric("duration_time").sum() == 2262
    assert dataset.split("test").num_rows == 40


def test_one_log_for_all_splits_may_be_named(tmp_path: Path) -> None:
    imported = api.import_deepctr([DenseFeat("a")], labels=["y"], files=str(tmp_path / "log.csv"))

    assert imported.files == tmp_path / "log.csv"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (DenseFeat("image", 512), "image: must be one number, got a vector of 512"),
        ("user", "must be a SparseFeat, DenseFeat or VarLenSparseFeat, got str"),
    ],
)
def test_columns_that_cannot_be_imported_are_refused(column: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _read([column])


def test_names_and_labels_must_be_clear() -> None:
    with pytest.raises(ConfigError, match="a: must be one column, got two of that name"):
        _read([_sparse("a", 3), DenseFeat("a")])
    with pytest.raises(ConfigError, match="labels: must be a list of columns, got the text 'y'"):
        deepctr.read([_sparse("a", 3)], labels="y", files=_LOG)
