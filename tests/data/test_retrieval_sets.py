"""Retrieval tasks of public sets: splits, what is masked, and that nothing comes from later."""

import os
from math import log
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.public_sets import retrieval
from tamis.data.public_sets.prepare import prepare
from tamis.errors import DataError
from tamis.evaluation.retrieval import full_corpus_scores

_SEQUENCES = [[3, 1, 2, 5], [2, 4, 1], [5, 5, 3, 6, 5]]
_ATTRIBUTES = {1: [9, 20], 2: [9, 8, 21], 3: [20], 4: [7, 21], 5: [20], 6: [22]}


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get("TAMIS_DATA")
    if not root:
        pytest.skip("TAMIS_DATA is not set: the public sets are not at hand")
    return Path(root)


def _write_amazon(folder: Path, sequences: list[list[int]] = _SEQUENCES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lists = pa.list_(pa.int32())
    users = pa.array(range(1, len(sequences) + 1), pa.int32())
    pq.write_table(
        pa.table({"user_id": users, "items": pa.array(sequences, lists)}),
        folder / "sequences.parquet",
    )
    ids = pa.array(_ATTRIBUTES, pa.int32())
    pq.write_table(
        pa.table({"item_id": ids, "attributes": pa.array(list(_ATTRIBUTES.values()), lists)}),
        folder / "item_attributes.parquet",
    )
    return folder


def _write_gowalla(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(0, 0, "train"), (0, 3, "train"), (0, 1, "valid"), (0, 4, "test")]
    rows += [(1, 2, "train"), (1, 0, "test"), (1, 5, "test"), (2, 5, "train")]
    users, items, splits = zip(*rows, strict=True)
    table = {
        "user_id": pa.array(users, pa.int32()),
        "item_id": pa.array(items, pa.int32()),
        "split": pa.array(splits, pa.large_string()),
    }
    pq.write_table(pa.table(table), folder / "interactions.parquet")
    return folder


def _lists(lists: object) -> list[list[int]]:
    return [sorted(ids.tolist()) for ids in lists.lists()]


def test_amazon_splits_by_the_order_of_each_users_steps(tmp_path: Path) -> None:
    task = retrieval.amazon(_write_amazon(tmp_path / "set"))
    positives = {
        split: [
            (row["user"], row["item"], row["history_item"])
            for row in table.to_pylist()
            if row["click"]
        ]
        for split, table in task.tables.items()
    }

    assert positives["test"] == [(0, 5, [3, 1, 2]), (1, 1, [2, 4]), (2, 5, [5, 5, 3, 6])]
    assert positives["valid"] == [(0, 2, [3, 1]), (1, 4, [2]), (2, 6, [5, 5, 3])]
    # A first step has no history and no row.
    assert positives["train"] == [(0, 1, [3]), (2, 5, [5]), (2, 3, [5, 5])]


def test_amazon_goals_are_numbers_of_the_corpus_and_mask_what_came_before(tmp_path: Path) -> None:
    task = retrieval.amazon(_write_amazon(tmp_path / "set"))

    assert task.corpus["item"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert task.num_items == 6
    # Item i is row i - 1. The last user comes back to item 5, which is masked.
    assert _lists(task.goals["test"].relevant) == [[4], [0], []]
    assert _lists(task.goals["test"].masked) == [[0, 1, 2], [1, 3], [2, 4, 5]]
    assert _lists(task.goals["valid"].relevant) == [[1], [3], [5]]
    assert _lists(task.goals["valid"].masked) == [[0, 2], [1], [2, 4]]
    requests = task.goals["test"].requests
    assert requests["history_item"].to_pylist() == [[3, 1, 2], [2, 4], [5, 5, 3, 6]]
    assert requests["item"].null_count == requests["category"].null_count == 3


def test_amazon_features_are_categories_attributes_and_matches(tmp_path: Path) -> None:
    task = retrieval.amazon(_write_amazon(tmp_path / "set"))
    finest = {item: attributes[-1] for item, attributes in _ATTRIBUTES.items()}
    rows = [row for table in task.tables.values() for row in table.to_pylist()]

    assert len(rows) == 2 * 9
    for row in rows:
        assert row["attribute"] == _ATTRIBUTES[row["item"]]
        assert row["category"] == finest[row["item"]]
        assert row["history_category"] == [finest[item] for item in row["history_item"]]
        same = row["history_category"].count(row["category"])
        assert row["same_category"] == pytest.approx(log(1 + same))
    assert max(row["same_category"] for row in rows) > log(2.5)
    assert task.corpus["attribute"].to_pylist() == list(_ATTRIBUTES.values())
    history = np.array([20, 21, 20, 22])
    features = retrieval.same_category(history, task.matched)
    assert features.tolist() == pytest.approx(
        [log(1 + history.tolist().count(finest[item])) for item in range(1, 7)]
    )


def test_poisoned_later_steps_change_nothing_before_them(tmp_path: Path) -> None:
    clean = retrieval.amazon(_write_amazon(tmp_path / "clean"))
    poisoned = [[*steps[:-1], 4] for steps in _SEQUENCES]
    other = retrieval.amazon(_write_amazon(tmp_path / "poisoned", poisoned))

    for split in ("train", "valid"):
        assert clean.tables[split].equals(other.tables[split])
    assert clean.goals["valid"].requests.equals(other.goals["valid"].requests)
    assert not clean.tables["test"].equals(other.tables["test"])


def test_negatives_are_what_the_user_has_not_touched_so_far(tmp_path: Path) -> None:
    task = retrieval.amazon(_write_amazon(tmp_path / "set"))
    unseen = {"train": 2, "valid": 1, "test": 0}
    for split, table in task.tables.items():
        for row in table.to_pylist():
            touched = _SEQUENCES[row["user"]]
            touched = touched[: len(touched) - unseen[split]]
            assert row["click"] == (row["item"] in touched)


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    folder = _write_amazon(tmp_path / "set", [[1, 2, 3], [4, 5]])
    with pytest.raises(DataError, match="must have at least 3 steps, got 2"):
        retrieval.amazon(folder)


def test_gowalla_keeps_the_published_split(tmp_path: Path) -> None:
    task = retrieval.gowalla(_write_gowalla(tmp_path / "set"))

    assert task.num_items == 6
    assert _lists(task.goals["valid"].relevant) == [[1], [], []]
    assert _lists(task.goals["valid"].masked) == [[0, 3], [2], [5]]
    assert _lists(task.goals["test"].relevant) == [[4], [0, 5], []]
    # The test masks the validation's places too, as LightGCN trains on them.
    assert _lists(task.goals["test"].masked) == [[0, 1, 3], [2], [5]]
    train = task.tables["train"].to_pylist()
    assert [(row["user"], row["item"]) for row in train if row["click"]] == [
        (0, 0),
        (0, 3),
        (1, 2),
        (2, 5),
    ]
    touched = {0: {0, 3}, 1: {2}, 2: {5}}
    assert all(row["item"] not in touched[row["user"]] for row in train if not row["click"])


def test_items_count_the_positives_that_train(tmp_path: Path) -> None:
    amazon = retrieval.amazon(_write_amazon(tmp_path / "amazon"))
    gowalla = retrieval.gowalla(_write_gowalla(tmp_path / "gowalla"))

    # Amazon's positives that train are items 1, 5 and 3 of 1 to 6, once each.
    assert amazon.positives.tolist() == [1, 0, 1, 0, 1, 0]
    assert gowalla.positives.tolist() == [1, 0, 1, 1, 0, 1]
    for task in (amazon, gowalla):
        assert task.impressions.tolist() == task.positives.tolist()
        assert all(goal.values is None for goal in task.goals.values())


def test_gowalla_of_an_unknown_split_is_refused(tmp_path: Path) -> None:
    path = _write_gowalla(tmp_path / "set") / "interactions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "split", pa.array(["dev"] * table.num_rows)), path)

    with pytest.raises(DataError, match=r"splits must be of .*, got 'dev'"):
        retrieval.gowalla(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "folder", "write"),
    [
        ("gowalla", "gowalla", _write_gowalla),
        ("amazon_sports_retrieval", "seq_amazon_sports_and_outdoors", _write_amazon),
    ],
)
def test_prepare_writes_the_rows_and_the_same_bytes_twice(
    tmp_path: Path, name: str, folder: str, write: object
) -> None:
    write(tmp_path / "root" / folder)
    first, second = (prepare(name, tmp_path / "root", tmp_path / out) for out in "ab")

    for split, file in first.files.items():
        assert file.read_bytes() == second.files[split].read_bytes()
    assert first.schema.roles.item == "item"


# The published files.


@pytest.mark.slow
def test_published_gowalla_has_its_published_counts(data_root: Path) -> None:
    task = retrieval.gowalla(data_root / "gowalla")
    test, valid = task.goals["test"], task.goals["valid"]

    assert (task.num_items, test.requests.num_rows) == (40_981, 29_858)
    assert (len(test.relevant.ids), len(test.masked.ids)) == (217_242, 810_128)
    assert len(valid.relevant.ids) + len(valid.masked.ids) == 810_128


@pytest.mark.parity
@pytest.mark.slow
def test_most_popular_places_of_gowalla_reach_their_known_recall(data_root: Path) -> None:
    goal = retrieval.gowalla(data_root / "gowalla").goals["test"]
    popular = np.argsort(-np.bincount(goal.masked.ids, minlength=40_981), kind="stable")
    longest = int(goal.masked.lengths.max()) + 20
    found = np.stack(
        [
            popular[:longest][~np.isin(popular[:longest], hidden)][:20]
            for hidden in goal.masked.lists()
        ]
    )
    scores = full_corpus_scores(
        found,
        goal.relevant,
        goal.masked,
        num_items=40_981,
        candidates=40_981 - goal.masked.lengths,
        cutoffs=(20,),
    )

    # Counted beforehand on the same files by other code.
    assert scores.means()["recall@20"] == pytest.approx(0.0416, abs=1e-4)


def test_published_sports_have_their_published_counts(data_root: Path) -> None:
    task = retrieval.amazon(data_root / "seq_amazon_sports_and_outdoors")
    test = task.goals["test"]

    assert (task.num_items, test.requests.num_rows) == (18_357, 35_598)
    # 296,337 actions: one of each user is tested, one validates, the first has no history.
    assert task.tables["train"].num_rows == 2 * (296_337 - 3 * 35_598)
    assert len(test.relevant.ids) == 35_598
    assert len(test.masked.ids) == 296_337 - 35_598
