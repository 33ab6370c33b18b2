"""Vectors that are given for categories: files of them, and datasets that they are part of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.ingest import ingest
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.data.splits import SplitConfig
from tamis.data.vectors import read_vectors
from tamis.data.vocabulary import Vocabulary
from tamis.errors import ArtifactError, ConfigError, DataError, SchemaError

_KEYS, _VALUES = ["a", "b", "unseen"], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def _parquet(path: Path, keys: Any, values: Any) -> None:
    pq.write_table(pa.table({"key": keys, "value": values}), path)


def _npz(path: Path, keys: Any, values: Any) -> None:
    np.savez(path, key=np.array(keys), value=np.array(values))


def _h5(path: Path, keys: Any, values: Any) -> None:
    with h5py.File(path, "w") as file:
        file["key"] = keys
        file["value"] = values


def _fixed(path: Path, keys: Any, values: Any) -> None:
    """As polars and pandas may write vectors: lists of one size."""
    lists = pa.array(values, pa.list_(pa.float32(), len(values[0])))
    pq.write_table(pa.table({"key": keys, "more": keys, "value": lists}), path)


_WRITERS = {"v.parquet": _parquet, "f.PARQUET": _fixed, "v.npz": _npz, "v.h5": _h5}


@pytest.mark.parametrize(("name", "write"), _WRITERS.items())
@pytest.mark.parametrize(("keys", "texts"), [(_KEYS, _KEYS), ([7, 8, 10], ["7", "8", "10"])])
def test_every_kind_of_file_holds_the_same(
    tmp_path: Path, name: str, write: Callable[..., None], keys: list[Any], texts: list[str]
) -> None:
    write(tmp_path / name, keys, _VALUES)
    found = read_vectors(tmp_path / name, width=2)

    assert found.categories.to_pylist() == texts
    assert found.rows.tolist() == [[0.0, 0.0], *_VALUES]
    assert found.rows.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "keys", "values", "message"),
    [
        ("v.parquet", ["a", "a"], [[1.0], [2.0]], "key a: must be there once, got it again"),
        (
            "v.parquet",
            ["a", None],
            [[1.0], [2.0]],
            "must be categories, got a missing one in row 2",
        ),
        ("v.parquet", ["a", "b"], [[1.0], None], "a list of numbers for each key, got 1 nulls"),
        ("v.parquet", ["a", "b"], [[1.0], [2.0, 3.0]], "row 2: lists must be equally long, got 2"),
        ("v.parquet", ["a", "b"], [["x"], ["y"]], "must hold lists of numbers, got list<"),
        ("v.parquet", ["a", "b"], [1.0, 2.0], "a list of numbers for each key, got double"),
        ("v.parquet", [["a"], ["b"]], [[1.0], [2.0]], "keys must be categories, got lists"),
        ("v.parquet", [{"a": 1}, {"a": 2}], [[1.0], [2.0]], "keys must be categories, got struct"),
        ("v.parquet", [b"\xff", b"b"], [[1.0], [2.0]], "keys must be categories, got binary"),
        ("v.npz", ["a", "b"], [["x"], ["y"]], "value must hold numbers, got <U1"),
        ("v.npz", ["a", "b"], [[1j], [2j]], "value must hold numbers, got complex128"),
        ("v.npz", ["a", "b"], [[1.0], [1e300]], "key b: numbers must be finite in float32"),
        ("v.npz", [b"a", b"\xff"], [[1.0], [2.0]], "keys must be UTF-8"),
        ("v.npz", [["a"], ["b"]], [[1.0], [2.0]], r"whole number for each vector, got .* \(2, 1\)"),
        ("v.h5", ["a", "b"], [["x"], ["y"]], "value must hold numbers, got object"),
        ("v.h5", [["a"], ["b"]], [[1.0], [2.0]], r"whole number for each vector, got .* \(2, 1\)"),
        ("v.npz", ["a", "b"], [[1.0], [np.nan]], "key b: numbers must be finite in float32"),
        ("v.npz", ["a", "b"], [[1.0, 2.0]] * 2, r"hold 1 numbers for each of 2 keys, got .*2, 2"),
        ("v.npz", ["a"], [[1.0]] * 2, r"hold 1 numbers for each of 1 keys, got shape \(2, 1\)"),
        ("v.npz", [0.5, 1.5], [[1.0]] * 2, "one text or whole number for each vector, got float64"),
        ("v.npz", [None, "a"], [[1.0]] * 2, "Arrays of objects are not read"),
    ],
)
def test_files_that_mean_nothing_are_refused(
    tmp_path: Path, name: str, keys: Any, values: Any, message: str
) -> None:
    _WRITERS[name](tmp_path / name, keys, values)

    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / name, width=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.csv", b"key,value", r"ends in \.parquet, \.npz, \.h5, \.hdf5, got '\.csv'"),
        ("v.parquet", None, "got no file there"),
        ("v.parquet", b"nothing", "must be a Parquet file"),
        ("v.npz", b"nothing", "must be a NumPy archive"),
        ("v.npz", b"", "must be a NumPy archive"),
        ("v.npz", b"PK\x03\x04 but no more of it", "must be a NumPy archive"),
        ("v.h5", b"nothing", "must be an HDF5 file"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / name, width=1)


@pytest.mark.parametrize("name", ["v.parquet", "v.npz", "v.h5"])
def test_parts_of_other_names_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "v.parquet":
        pq.write_table(pa.table({"item": ["a"], "value": [[1.0]]}), path)
    elif name == "v.npz":
        np.savez(path, item=np.array(["a"]), value=np.ones((1, 1)))
    else:
        with h5py.File(path, "w") as file:
            file["item"], file["value"] = ["a"], [[1.0]]

    with pytest.raises(DataError, match=r"must hold key and value, .* got item, value"):
        read_vectors(path, width=1)


def test_one_array_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "v.npz").open("wb") as file:
        np.save(file, np.ones((2, 1)))

    with pytest.raises(DataError, match="must hold key and value, got one array"):
        read_vectors(tmp_path / "v.npz", width=1)


def test_of_no_categories_there_is_row_0_alone(tmp_path: Path) -> None:
    empty = pa.table({"key": pa.array([], pa.string()), "value": pa.array([], pa.list_(pa.int8()))})
    pq.write_table(empty, tmp_path / "v.parquet")

    with pytest.raises(DataError, match=r"hold 3 numbers for each of 0 keys, got shape \(0, 0\)"):
        read_vectors(tmp_path / "v.parquet", width=3)


_SCHEMA = Schema(
    fields=(
        Field(name="item", kind="categorical", side="item"),
        Field(name="look", kind="categorical", column="item", side="item", vectors=2),
        Field(name="past", kind="sequence", side="user", shares="look", separator=" "),
    ),
    tasks=(Task(name="click"),),
    roles=Roles(item="item"),
)
_BY_COLUMN = SplitConfig(by="column", column="part")


def _log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    rows = ["a,b b,0,train", "b,a unseen,1,train", "unseen,,1,test", "no vector,b x,0,test"]
    path.write_text("\n".join(["item,past,click,part", *rows]) + "\n")
    return path


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.parquet"
    _parquet(path, _KEYS, _VALUES)
    return path


@pytest.fixture
def dataset(tmp_path: Path, vectors: Path) -> Dataset:
    return ingest(
        _log(tmp_path),
        tmp_path / "dataset",
        schema=_SCHEMA,
        split=_BY_COLUMN,
        vectors={"look": vectors},
    )


def test_keys_are_the_vocabulary_whether_training_has_seen_them_or_not(dataset: Dataset) -> None:
    test = dataset.split("test")

    assert [(table.num_rows, table.vectors) for table in dataset.spec.tables] == [(3, 0), (4, 2)]
    assert test.ids("item").tolist() == [0, 0]
    assert test.ids("look").tolist() == [3, 0]
    assert dataset.split("train").ids("look").tolist() == [1, 2]
    # The id is the field that is learned: its vectors say what an item without one is like.
    assert dataset.spec.item == "item"
    assert dataset.given_rows()["look"].tolist() == [[0.0, 0.0], *_VALUES]
    assert dataset.manifest["vectors"][0]["name"] == "vectors.parquet"
    encoders = Encoders.load(dataset.encoders_path, dataset.schema)
    assert encoders.category_names("past") == ["(other)", *_KEYS]


def test_an_id_that_shares_given_vectors_is_not_the_items_own() -> None:
    fields = (
        Field(name="last", kind="categorical", vectors=2),
        Field(name="look", kind="categorical", column="item", shares="last"),
        Field(name="item", kind="categorical"),
    )
    schema = replace(_SCHEMA, fields=fields)
    words = dict.fromkeys(("last", "item"), Vocabulary(values=pa.array(["a"]), num_rows=2))

    assert Encoders(schema=schema, vocabularies=words, numeric={}).spec.item == "item"


def test_keys_that_are_not_those_of_the_column_are_warned_of(
    tmp_path: Path, dataset: Dataset
) -> None:
    # Of four rows one has no vector, and of four events none.
    assert dataset.manifest["report"]["warnings"] == []
    _parquet(tmp_path / "other.parquet", ["item_a", "item_b"], [[1.0, 2.0]] * 2)
    other = ingest(
        _log(tmp_path),
        tmp_path / "other",
        schema=_SCHEMA,
        split=_BY_COLUMN,
        vectors={"look": tmp_path / "other.parquet"},
    )

    assert other.manifest["report"]["warnings"] == [
        f"{name}: 100% of its values have no vector, which is zeros then; are the keys of the file "
        f"what column {column!r} holds?"
        for name, column in (("look", "item"), ("past", "past"))
    ]


def test_a_change_of_a_vector_changes_the_fingerprint(tmp_path: Path, dataset: Dataset) -> None:
    other = tmp_path / "other.parquet"
    _parquet(other, _KEYS, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]])
    again = ingest(
        _log(tmp_path),
        tmp_path / "again",
        schema=_SCHEMA,
        split=_BY_COLUMN,
        vectors={"look": other},
    )

    assert again.fingerprint != dataset.fingerprint


def test_damaged_vectors_are_found(dataset: Dataset) -> None:
    (dataset.folder / "vectors.safetensors").write_bytes(b"x")

    with pytest.raises(ArtifactError, match=r"vectors\.safetensors: must hold the vectors of look"):
        dataset.given_rows()


def test_of_the_encoders_of_a_model_vectors_are_in_the_model(
    tmp_path: Path, dataset: Dataset
) -> None:
    encoders = Encoders.load(dataset.encoders_path, dataset.schema)
    again = ingest(
        _log(tmp_path), tmp_path / "again", schema=_SCHEMA, split=_BY_COLUMN, encoders=encoders
    )

    assert again.spec == dataset.spec
    with pytest.raises(ArtifactError, match="encoders of a trained model, which has them"):
        again.given_rows()
    with pytest.raises(ConfigError, match=r"must not be given with encoders, .* got look"):
        ingest(
            _log(tmp_path),
            tmp_path / "third",
            schema=_SCHEMA,
            split=_BY_COLUMN,
            encoders=encoders,
            vectors={"look": tmp_path / "vectors.parquet"},
        )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"must name the file of field 'look', .* got none\. Name it: --vectors look=FILE"),
        (("look", "item"), "must be for fields whose vectors are given, got 'item'"),
    ],
)
def test_files_must_be_those_of_the_schema(
    tmp_path: Path, vectors: Path, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ingest(
            _log(tmp_path),
            tmp_path / "dataset",
            schema=_SCHEMA,
            split=_BY_COLUMN,
            vectors=dict.fromkeys(files, vectors),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "numeric"}, "for categories with a table of their own, got kind 'numeric'"),
        ({"kind": "text"}, "for categories with a table of their own, got kind 'text'"),
        ({"kind": "sequence", "shares": "b"}, "got kind 'sequence' that shares 'b'"),
        ({"kind": "categorical", "min_count": 2}, "their keys are the vocabulary, got encoding"),
        (
            {"kind": "categorical", "encoding": "hashing", "num_buckets": 9},
            "their keys are the vocabulary, got encoding 'hashing'",
        ),
        ({"kind": "categorical", "vectors": -1}, "vectors must be at least 0, got -1"),
    ],
)
def test_fields_without_a_vocabulary_have_no_vectors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Field(name="a", **({"vectors": 4} | options))
