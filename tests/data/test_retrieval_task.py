"""A retrieval task on disk: the same users every time, and nothing lost on the way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.public_sets.retrieval import Goal, RetrievalSet
from tamis.data.retrieval_task import is_task, read_task, write_task
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import ArtifactError
from tamis.evaluation.retrieval import ItemLists

_SCHEMA = Schema(
    fields=(
        Field(name="user", kind="categorical", side="user"),
        Field(name="item", kind="categorical", side="item"),
    ),
    tasks=(Task(name="click"),),
    roles=Roles(user="user", item="item"),
)


def _task(*, has_pairs: bool = True, has_values: bool = True) -> RetrievalSet:
    """Five users, of whom the third has nothing to find, and four items."""
    relevant = [[0], [1, 2], [], [3], [2]]
    masked = [[1], [], [0], [0, 2], []]
    requests = pa.table(
        {
            "user": [10, 11, 12, 13, 14],
            "item": pa.nulls(5, pa.int64()),
            "history_category": pa.array([[5], [], [6, 6], [5, 6], [7]], pa.list_(pa.int64())),
        }
    )
    values = np.arange(20, dtype=np.float32).reshape(5, 4) / 20
    goal = Goal(
        requests=requests,
        relevant=ItemLists.of(relevant),
        masked=ItemLists.of(masked),
        values=values if has_values else None,
    )
    return RetrievalSet(
        tables={},
        schema=_SCHEMA,
        corpus=pa.table({"user": pa.nulls(4, pa.int64()), "item": [0, 1, 2, 3]}),
        goals={"test": goal},
        matched=np.array([5, 6, 7, 5] if has_pairs else [], np.int64),
        positives=np.array([3, 0, 1, 2]),
        impressions=np.array([9, 0, 4, 2]),
    )


def test_task_is_read_as_it_was_written_without_users_who_have_nothing_to_find(
    tmp_path: Path,
) -> None:
    write_task(_task(), tmp_path / "task", split="test", requests=10)
    task = read_task(tmp_path / "task")

    assert is_task(tmp_path / "task")
    assert task.schema == _SCHEMA
    assert task.num_items == 4
    assert pq.read_table(task.requests)["user"].to_pylist() == [10, 11, 13, 14]
    assert [ids.tolist() for ids in task.relevant.lists()] == [[0], [1, 2], [3], [2]]
    assert [ids.tolist() for ids in task.masked.lists()] == [[1], [], [0, 2], []]
    assert [ids.tolist() for ids in task.histories] == [[5], [], [5, 6], [7]]
    assert task.matched.tolist() == [5, 6, 7, 5]
    assert (task.positives.tolist(), task.impressions.tolist()) == ([3, 0, 1, 2], [9, 0, 4, 2])
    assert task.values is not None
    np.testing.assert_array_equal(task.values[2], np.array([12, 13, 14, 15], np.float32) / 20)


def test_fewer_users_are_a_sample_that_is_always_the_same(tmp_path: Path) -> None:
    picked = []
    for name in "ab":
        write_task(_task(), tmp_path / name, split="test", requests=2)
        task = read_task(tmp_path / name)
        picked.append(pq.read_table(task.requests)["user"].to_pylist())
        assert task.values is not None
        assert task.values[:, 0].tolist() == pytest.approx([(u - 10) / 5 for u in picked[-1]])

    assert picked[0] == picked[1]
    assert len(picked[0]) == 2
    assert 12 not in picked[0]


def test_sets_without_features_of_pairs_or_truth_have_none(tmp_path: Path) -> None:
    plain = _task(has_pairs=False, has_values=False)
    goal = plain.goals["test"]
    plain = replace(
        plain,
        goals={"test": replace(goal, requests=goal.requests.drop_columns(["history_category"]))},
    )
    write_task(plain, tmp_path / "task", split="test", requests=10)
    task = read_task(tmp_path / "task")

    assert not task.has_pairs
    assert task.values is None
    assert len(task.matched) == 4


def test_altered_task_is_refused_and_an_unfinished_one_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    write_task(_task(), folder, split="test", requests=10)
    pq.write_table(pa.table({"item": [1]}), folder / "corpus.parquet")

    with pytest.raises(ArtifactError, match=r"corpus\.parquet"):
        read_task(folder)
    (folder / "manifest.json").unlink()
    assert not is_task(folder)
