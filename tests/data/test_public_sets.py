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


def _small_amazon(folder: Path) -> None:
    """Two users of three and four steps among nine items, whose category is the id modulo 3."""
    folder.mkdir()
    items = pa.array([[1, 2, 3], [4, 2, 5, 6]], pa.list_(pa.int32()))
    pq.write_table(pa.table({"user_id": [1, 2], "items": items}), folder / "sequences.parquet")
    ids = [3, 1, 2, 9, 8, 7, 6, 5, 4]
    attributes = pa.array([[77, number % 3] for number in ids], pa.list_(pa.int32()))
    pq.write_table(
        pa.table({"item_id": pa.array(ids, pa.int32()), "attributes": attributes}),
        folder / "item_attributes.parquet",
    )


def test_steps_are_positives_with_all_before_them_as_history(tmp_path: Path) -> None:
    _small_amazon(tmp_path / "seq_amazon_beauty")
    prepared = prepare("amazon_beauty", tmp_path, tmp_path / "out")
    rows = {split: pq.read_table(file).to_pylist() for split, file in prepared.files.items()}

    positives = {
        split: [(row["item"], row["history_item"]) for row in found if row["click"] == 1]
        for split, found in rows.items()
    }
    assert positives == {
        "train": [(2, [4])],
        "valid": [(2, [1]), (5, [4, 2])],
        "test": [(3, [1, 2]), (6, [4, 2, 5])],
    }
    touched = {0: {1, 2, 3}, 1: {4, 2, 5, 6}}
    for found in rows.values():
        for positive, drawn in zip(found[::2], found[1::2], strict=True):
            assert (positive["click"], drawn["click"]) == (1, 0)
            assert drawn["item"] not in touched[drawn["user"]]
            assert drawn["history_item"] == positive["history_item"]
            assert drawn["category"] == drawn["item"] % 3
            assert drawn["history_category"] == [item % 3 for item in drawn["history_item"]]
    assert {field.name for field in prepared.schema.fields} == {
        *("item", "category", "history_item", "history_category"),
    }


def test_histories_keep_the_most_recent_steps(tmp_path: Path) -> None:
    folder = tmp_path / "seq_amazon_beauty"
    folder.mkdir()
    items = pa.array([list(range(1, 61))], pa.list_(pa.int32()))
    pq.write_table(pa.table({"user_id": [1], "items": items}), folder / "sequences.parquet")
    attributes = pa.array([[1]] * 70, pa.list_(pa.int32()))
    table = pa.table({"item_id": pa.array(range(1, 71), pa.int32()), "attributes": attributes})
    pq.write_table(table, folder / "item_attributes.parquet")
    prepared = prepare("amazon_beauty", tmp_path, tmp_path / "out")

    history = pq.read_table(prepared.files["test"])["history_item"].to_pylist()
    assert history == [list(range(10, 60))] * 2


def test_grocery_is_ordered_by_day_and_then_as_published(tmp_path: Path) -> None:
    folder = tmp_path / "seq_amazon_grocery"
    folder.mkdir()
    log = {"user_id": [2, 1, 2, 2, 1], "item_id": [5, 1, 6, 7, 2], "time": [30, 9, 10, 10, 8]}
    pq.write_table(pa.table(log), folder / "interactions.parquet")
    items = {"item_id": list(range(1, 9)), "i_category": [number % 2 for number in range(1, 9)]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    prepared = prepare("amazon_grocery", tmp_path, tmp_path / "out")

    test = pq.read_table(prepared.files["test"]).to_pylist()
    assert [(row["item"], row["history_item"]) for row in test if row["click"]] == [
        (1, [2]),
        (5, [6, 7]),
    ]


def test_sessions_follow_on_earlier_ones(tmp_path: Path) -> None:
    folder = tmp_path / "ecom_sessions_rees46"
    folder.mkdir()
    sessions = {
        "valid": ([[], [1]] * 20, [[1, 2], [3, 4]] * 20),
        "test": ([[2]], [[5, 6]]),
    }
    # Everybody has two sessions; person 7's are in the other part too, and must not train.
    people = {"valid": [n // 2 for n in range(40)], "test": [7]}
    for name, lists in sessions.items():
        columns = {"user_idx": pa.array(people[name], pa.int32())}
        for prefix, products in zip(("bef_sess", "sess"), lists, strict=True):
            for column, shift in (("pid", 0), ("csid", 10), ("bid", 20)):
                values = [[product + shift for product in row] for row in products]
                columns[f"{prefix}_{column}_seq"] = pa.array(values, pa.list_(pa.int32()))
        pq.write_table(pa.table(columns), folder / f"day1_{name}.parquet")
    prepared = prepare("rees46", tmp_path, tmp_path / "out")
    rows = {split: pq.read_table(file).to_pylist() for split, file in prepared.files.items()}

    test = [
        (row["item"], row["history_item"], row["brand"]) for row in rows["test"] if row["click"]
    ]
    assert test == [(5, [2], 25), (6, [2, 5], 26)]
    # A session without earlier ones starts at its second event: 1 and 2 positives of 19 people.
    assert len(rows["train"]) + len(rows["valid"]) == 2 * 19 * 3
    assert rows["valid"]
    seen = {split: {row["user"] for row in found} for split, found in rows.items()}
    assert not seen["train"] & seen["valid"]
    assert 7 not in seen["train"] | seen["valid"]
    drawn = {row["item"] for row in rows["train"] if not row["click"]}
    assert drawn <= {2, 5, 6} - {2} | {5, 6}  # each person touched 1 to 4
    positives = {(row["item"], *row["history_item"]) for row in rows["train"] if row["click"]}
    assert positives == {(2, 1), (3, 1), (4, 1, 3)}


def test_collm_histories_lose_their_leading_zero(tmp_path: Path) -> None:
    folder = tmp_path / "collm_ml1m"
    folder.mkdir()
    columns = {
        "user_id": [1, 2, 3],
        "item_id": [7, 8, 9],
        "label": [0, 1, 1],
        "history": pa.array([[0], [0, 4, 5], [6]], pa.list_(pa.int32())),
    }
    for split in SPLITS:
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    prepared = prepare("collm_ml1m", tmp_path, tmp_path / "out")

    table = pq.read_table(prepared.files["test"])
    assert table["history_item"].to_pylist() == [[], [4, 5], [6]]
    assert table["click"].to_pylist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        # Twice the actions of all users but their first one, 198,502 - 22,363 of them and so on.
        ("amazon_beauty", 2 * (198_502 - 22_363)),
        ("amazon_sports", 2 * (296_337 - 35_598)),
        ("amazon_grocery", 2 * (121_892 - 14_681)),
        ("collm_ml1m", 33_891 + 10_401 + 7_331),
    ],
)
def test_sequence_sets_have_all_published_actions(
    data_root: Path, tmp_path: Path, name: str, rows: int
) -> None:
    prepared = prepare(name, data_root, tmp_path)

    assert sum(pq.read_metadata(file).num_rows for file in prepared.files.values()) == rows
