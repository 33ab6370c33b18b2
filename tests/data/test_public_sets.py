"""Readers of public sets: splits, labels and determinism."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tamis.data.public_sets import census
from tamis.data.public_sets.files import SPLITS
from tamis.data.public_sets.prepare import prepare
from tamis.errors import DataError


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get("TAMIS_DATA")
    if not root:
        pytest.skip("TAMIS_DATA is not set: the public sets are not at hand")
    return Path(root)


def test_frappe_keeps_the_published_split(data_root: Path, tmp_path: Path) -> None:
    prepared = prepare("frappe", data_root, tmp_path)

    tables = {split: pq.read_table(file) for split, file in prepared.files.items()}

    # 7:2:1 of 288,609 rows with the positives that BARS logs for each part.
    assert {split: table.num_rows for split, table in tables.items()} == {
        "train": 202_027,
        "valid": 57_722,
        "test": 28_860,
    }
    assert [pc.sum(tables[split]["label"]).as_py() for split in SPLITS] == [
        67_604,
        19_063,
        9_536,
    ]


def test_movielens_labels_ratings_of_four_and_more_in_every_split(
    data_root: Path, tmp_path: Path
) -> None:
    prepared = prepare("movielens_1m", data_root, tmp_path)

    tables = [pq.read_table(file) for file in prepared.files.values()]

    assert sum(table.num_rows for table in tables) == 1_000_209
    # 348,971 ratings of 4 and 226,310 of 5.
    assert sum(pc.sum(table["click"]).as_py() for table in tables) == 348_971 + 226_310
    assert all(table["year"].null_count == 0 for table in tables)


def test_prepare_writes_the_same_bytes_twice(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "criteo_attribution_5cat"
    folder.mkdir(parents=True)
    columns = {name: [1, 2, 3, 4] * 5 for name in ("cat1", "cat4", "cat6", "cat8", "cat9")}
    table = pa.table({"src_row": list(range(20)), **columns, "click": [0, 1] * 10})
    pq.write_table(table, folder / "train.parquet")
    pq.write_table(table, folder / "valid.parquet")

    first = prepare("criteo_attribution_5cat", tmp_path / "root", tmp_path / "a")
    second = prepare("criteo_attribution_5cat", tmp_path / "root", tmp_path / "b")

    for split in SPLITS:
        assert first.files[split].read_bytes() == second.files[split].read_bytes()
    assert pq.read_table(first.files["train"]).num_rows == 18
    assert pq.read_table(first.files["test"]).column_names[0] == "click"


def test_prepare_names_the_known_sets_when_the_name_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be one of .*frappe, .*got 'frape'"):
        prepare("frape", tmp_path, tmp_path)


def test_prepare_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"libfm_train_reconstructed.parquet: must exist"):
        prepare("frappe", tmp_path, tmp_path)


def _small_census(folder: Path) -> None:
    """Two parts whose only category, beside the labels, lacks a value in the test part."""
    numbers = {name: [0, 10, 5, 10, 0, 5] for name in census.NUMBERS}
    codes = {name: [0, 1, 2, 0, 1, 2] for name in ("own_or_self", "vet_benefits")}
    labels = {
        "education": ["Bachelors degree(BA AB BS)", "Children"] * 2
        + ["Prof school degree (MD DDS DVM LLB JD)", "Doctorate degree(PhD EdD)"],
        "income_50k": ["- 50000.", "50000+."] * 3,
        "marital_stat": ["Never married", "Widowed", "Divorced"] * 2,
    }
    folder.mkdir()
    for part, kin in (("train", "abcabc"), ("test", "acacac")):
        table = pa.table({**numbers, **codes, **labels, "kin": list(kin), "sex": list("mfmfmf")})
        if part == "test":
            table = table.set_column(0, census.NUMBERS[0], pa.array([0, 20, 5, 10, 0, 5]))
        pq.write_table(table, folder / f"{part}.parquet")


def test_census_scales_by_the_training_part_and_keeps_categories(tmp_path: Path) -> None:
    _small_census(tmp_path / "census_income_kdd")
    prepared = prepare("census", tmp_path, tmp_path / "out")
    tables = {split: pq.read_table(file) for split, file in prepared.files.items()}

    assert tables["train"]["education"].to_pylist() == [1, 0, 1, 0, 1, 1]
    assert tables["train"]["income"].to_pylist() == [0, 1] * 3
    assert tables["train"]["marital"].to_pylist() == [1, 0, 0] * 2
    assert tables["train"]["kin"].to_pylist() == list("abcabc")
    assert tables["valid"].num_rows == tables["test"].num_rows == 3
    scaled = tables["valid"]["age"].to_pylist() + tables["test"]["age"].to_pylist()
    assert sorted(scaled) == [0, 0, 0.5, 0.5, 1, 2]
    assert {field.name for field in prepared.schema.fields} == set(
        tables["train"].column_names
    ) - set(census.TASKS)


def test_census_harness_repeats_the_slips_of_the_harness(tmp_path: Path) -> None:
    _small_census(tmp_path / "census_income_kdd")
    prepared = prepare("census_harness", tmp_path, tmp_path / "out")
    tables = {split: pq.read_table(file) for split, file in prepared.files.items()}
    train, other = tables["train"], pa.concat_tables([tables["valid"], tables["test"]])

    assert train["education"].to_pylist() == [1, 0, 1, 0, 0, 1]
    assert train.column_names[-5:] == ["kin=a", "kin=b", "kin=c", "sex=f", "sex=m"]
    assert train["kin=b"].to_pylist() == [0, 1, 0, 0, 1, 0]
    # Without the value b the test part's columns are a, c, f, m, and the missing one is last.
    assert sum(other["kin=a"].to_pylist()) == sum(other["kin=b"].to_pylist()) == 3
    assert sum(other["kin=c"].to_pylist()) == sum(other["sex=f"].to_pylist()) == 3
    assert sum(other["sex=m"].to_pylist()) == 0
    assert max(other["age"].to_pylist()) == 1


@pytest.mark.parametrize("name", ["census", "census_harness"])
def test_census_has_the_published_rows_and_labels(
    data_root: Path, tmp_path: Path, name: str
) -> None:
    prepared = prepare(name, data_root, tmp_path)
    tables = {split: pq.read_table(file) for split, file in prepared.files.items()}
    both = pa.concat_tables([tables["valid"], tables["test"]])

    assert [table.num_rows for table in tables.values()] == [199_523, 49_881, 49_881]
    # High incomes as published; 86,485 never married; bachelors, masters and doctorates, and
    # 1,793 professional degrees that the harness leaves out.
    assert pc.sum(tables["train"]["income"]).as_py() == 12_382
    assert pc.sum(both["income"]).as_py() == 6_186
    assert pc.sum(tables["train"]["marital"]).as_py() == 86_485
    degrees = 19_865 + 6_541 + 1_263 + (1_793 if name == "census" else 0)
    assert pc.sum(tables["train"]["education"]).as_py() == degrees
    assert len(prepared.schema.fields) == (39 if name == "census" else 482)
