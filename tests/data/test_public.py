"""Readers of public sets: splits, labels and determinism."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tamis.data import public
from tamis.errors import DataError


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get("TAMIS_DATA")
    if not root:
        pytest.skip("TAMIS_DATA is not set: the public sets are not at hand")
    return Path(root)


def test_frappe_keeps_the_published_split(data_root: Path, tmp_path: Path) -> None:
    prepared = public.prepare("frappe", data_root, tmp_path)

    tables = {split: pq.read_table(file) for split, file in prepared.files.items()}

    # 7:2:1 of 288,609 rows with the positives that BARS logs for each part.
    assert {split: table.num_rows for split, table in tables.items()} == {
        "train": 202_027,
        "valid": 57_722,
        "test": 28_860,
    }
    assert [pc.sum(tables[split]["label"]).as_py() for split in public.SPLITS] == [
        67_604,
        19_063,
        9_536,
    ]


def test_movielens_labels_ratings_of_four_and_more_in_every_split(
    data_root: Path, tmp_path: Path
) -> None:
    prepared = public.prepare("movielens_1m", data_root, tmp_path)

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

    first = public.prepare("criteo_attribution_5cat", tmp_path / "root", tmp_path / "a")
    second = public.prepare("criteo_attribution_5cat", tmp_path / "root", tmp_path / "b")

    for split in public.SPLITS:
        assert first.files[split].read_bytes() == second.files[split].read_bytes()
    assert pq.read_table(first.files["train"]).num_rows == 18
    assert pq.read_table(first.files["test"]).column_names[0] == "click"


def test_prepare_names_the_known_sets_when_the_name_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be one of frappe, .*got 'frape'"):
        public.prepare("frape", tmp_path, tmp_path)


def test_prepare_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"libfm_train_reconstructed.parquet: must exist"):
        public.prepare("frappe", tmp_path, tmp_path)
