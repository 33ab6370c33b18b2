"""What is measured of a searcher: its time is that of the very searches that found its lists."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tamis.data.batch import blank_batch
from tamis.data.retrieval_task import StoredTask
from tamis.data.schema import Field, InputSpec, Roles, Schema, Task
from tamis.evaluation.retrieval import CUTOFFS, ItemLists
from tamis.reproduce.retrieval import scores
from tamis.reproduce.retrieval.scores import Measurer, of_users, spread
from tamis.reproduce.retrieval.searchers import Point
from tamis.retrieval.searcher import Found, LevelTrace, Request, Trace

_NUM_ITEMS = 700
_MASKED = ([], [3, 4], [1])


@dataclass
class _Noted:
    """Finds items in the order of their numbers, and notes how many it was asked for."""

    asked: list[int] = field(default_factory=list)
    num_items: int = _NUM_ITEMS
    index_bytes: int = 0

    def search(self, request: Request, k: int) -> Found:
        self.asked.append(k)
        ids = torch.arange(min(k, self.num_items))
        level = LevelTrace(nodes=self.num_items, pairs=len(ids), kept=len(ids), flops=1, bytes=1)
        return Found(ids=ids, scores=-ids.float(), trace=Trace(levels=(level,), user_flops=0))


@pytest.fixture
def task() -> StoredTask:
    schema = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="item", kind="categorical", side="item"),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(user="user", item="item"),
    )
    return StoredTask(
        folder=Path(),
        schema=schema,
        relevant=ItemLists.of([[0], [5], [2, 9]]),
        masked=ItemLists.of(_MASKED),
        histories=[],
        matched=np.zeros(_NUM_ITEMS, np.int64),
        positives=np.ones(_NUM_ITEMS, np.int64),
        impressions=np.ones(_NUM_ITEMS, np.int64),
        values=None,
    )


def test_what_is_timed_is_what_found_the_lists(task: StoredTask) -> None:
    spec = InputSpec(numeric=(), categorical=(), sequences=(), tables=(), tasks=task.schema.tasks)
    nobody = Request(user=blank_batch(spec, 1, torch.device("cpu")))
    own, reference = _Noted(), _Noted()

    found = Measurer(task, [nobody] * 3, reference).measure(Point(setting="all", searcher=own))

    wanted = [max(CUTOFFS) + len(hidden) for hidden in _MASKED]
    # Once for its lists; and in turns with the reference, twice each.
    assert own.asked == [*wanted, *np.repeat(wanted, 2)]
    assert reference.asked == np.repeat(wanted, 2).tolist()
    assert found["timed"] == 3
    assert found["recall@100"] == 1.0


@dataclass
class _From(_Noted):
    """Finds items in the order of their numbers, from one on."""

    first: int = 0

    def search(self, request: Request, k: int) -> Found:
        found = super().search(request, k)
        return replace(found, ids=found.ids + self.first)


def test_what_beams_lose_is_of_the_users_whom_everything_was_scored_for(
    task: StoredTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "BeamSearcher", lambda **_: _From())
    spec = InputSpec(numeric=(), categorical=(), sequences=(), tables=(), tasks=task.schema.tasks)
    nobody = Request(user=blank_batch(spec, 1, torch.device("cpu")))
    three = replace(task, relevant=ItemLists.of([[0], [9], [5]]))
    measurer = Measurer(three, [nobody] * 3, _Noted())
    everything = SimpleNamespace(snapshot=SimpleNamespace(tree=SimpleNamespace(num_nodes=())))

    exhaustive = measurer.exhaustive(everything, users=2)  # type: ignore[arg-type]
    assert exhaustive["recall@100"] == 1.0
    found = measurer.measure(Point(setting="", searcher=_From(first=3)))

    # Item 0 of the first user is missed, 9 and 5 of the others are found.
    assert found["recall@100"] == pytest.approx(2 / 3)
    assert found["index_loss"] == pytest.approx(1 / 2)
    # Of the first hundred from 0 on; the second user's hold neither 3 nor 4.
    assert found["kept"] == pytest.approx(0.97)


def test_some_users_are_spread_over_all_with_what_belongs_to_them(task: StoredTask) -> None:
    spec = InputSpec(numeric=(), categorical=(), sequences=(), tables=(), tasks=task.schema.tasks)
    requests = [Request(user=blank_batch(spec, rows, torch.device("cpu"))) for rows in (1, 2, 3)]
    values = np.arange(3 * _NUM_ITEMS, dtype=np.float32).reshape(3, -1)
    histories = [np.array([place]) for place in range(3)]
    whole = replace(task, histories=histories, values=values)

    some, asked = of_users(whole, requests, np.array([0, 2]))

    assert spread(3, 2).tolist() == [0, 1]
    assert spread(400, 100).tolist() == list(range(0, 400, 4))
    assert [ids.tolist() for ids in some.relevant.lists()] == [[0], [2, 9]]
    assert [ids.tolist() for ids in some.masked.lists()] == [[], [1]]
    assert [history.tolist() for history in some.histories] == [[0], [2]]
    assert some.values is not None
    assert some.values[:, 0].tolist() == [0, 2 * _NUM_ITEMS]
    assert [request.user.num_rows for request in asked] == [1, 3]


@dataclass(frozen=True)
class _InOrder:
    """Finds the first two that are allowed of 12 items, which the tree holds from last to first."""

    retriever: Any
    allowed: torch.Tensor | None = None
    num_items: int = 12
    index_bytes: int = 0

    def search(self, request: Request, k: int) -> Found:
        assert self.allowed is not None
        ids = self.retriever.snapshot.members.ids[self.allowed].sort().values[:2]
        level = LevelTrace(nodes=12, pairs=len(ids), kept=len(ids), flops=1, bytes=1)
        return Found(ids=ids, scores=-ids.float(), trace=Trace(levels=(level,), user_flops=0))


def _searched(
    task: StoredTask,
    *,
    impressions: Sequence[int] = (0, 9, 0, 9, 0, 9, 9, 9, 9, 9, 9, 9),
    relevant: Sequence[Sequence[int]] = ((0, 4), (2,)),
    masked: Sequence[Sequence[int]] = ((), ()),
    values: np.ndarray | None = None,
) -> dict[str, float] | None:
    """Items 0, 2 and 4 were never shown; others of their category are 3, 5 and 10."""
    spec = InputSpec(numeric=(), categorical=(), sequences=(), tables=(), tasks=task.schema.tasks)
    nobody = Request(user=blank_batch(spec, 1, torch.device("cpu")))
    # Two leaves: items 11 to 4 lie under the first one, 3 to 0 under the second.
    codes = torch.tensor([[0]] * 8 + [[1]] * 4)
    members = SimpleNamespace(ids=torch.arange(11, -1, -1), codes=codes)
    searcher: Any = _InOrder(SimpleNamespace(snapshot=SimpleNamespace(members=members)))
    small = replace(
        task,
        relevant=ItemLists.of([list(items) for items in relevant]),
        masked=ItemLists.of([list(items) for items in masked]),
        matched=np.array([0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1]),
        positives=np.ones(12, np.int64),
        impressions=np.array(impressions),
        values=values,
    )
    return Measurer(small, [nobody] * 2, _Noted()).among_unseen(searcher)


def test_unseen_items_are_searched_among_themselves_and_others_of_their_categories(
    task: StoredTask,
) -> None:
    values = np.ones((2, 12), np.float32)
    values[:, 4], values[:, 1] = 2.0, 100.0
    # Two found of each kind's three: 0 and 2 of worth 1 + 1 + 2, and 3 and 5 of 1 + 1 + 1.
    assert _searched(task, values=values) == {
        "cold": pytest.approx(2 / 4),
        "cold_leaves": 2.0,
        "warm": pytest.approx(2 / 3),
        "warm_leaves": 2.0,
    }


def test_where_no_value_is_known_unseen_items_are_those_that_users_went_for(
    task: StoredTask,
) -> None:
    # Of what they went for 0 and 2 are found among 0, 2 and 4; 5 is among 3, 5 and 10.
    assert _searched(task, relevant=((0, 4, 10), (2, 5))) == {
        "cold": pytest.approx(2 / 3),
        "cold_leaves": 2.0,
        "warm": pytest.approx(1 / 2),
        "warm_leaves": 2.0,
    }


def test_what_is_masked_is_dropped_from_the_kind_that_it_is_of(task: StoredTask) -> None:
    found = _searched(task, relevant=((2, 10), (2, 5)), masked=((0, 11), ()))
    assert found is not None
    # Without 0, user 0 is left with 2 of the two that a search finds.
    assert found["cold"] == pytest.approx(2 / 2)
    assert found["warm"] == pytest.approx(1 / 2)


def test_fewer_items_of_a_category_are_compared_where_there_are_fewer(task: StoredTask) -> None:
    # Five of category 0 were never shown, and 10 alone was.
    shown = [0, 9, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9]
    found = _searched(task, impressions=shown, values=np.ones((2, 12), np.float32))
    assert found == {"cold": 2 / 5, "cold_leaves": 2.0, "warm": 1.0, "warm_leaves": 1.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"impressions": [1] * 12},
        {"relevant": ((0, 4), (2,))},
        {"relevant": ((3,), (5,))},
        {"values": np.zeros((2, 12), np.float32)},
    ],
)
def test_nothing_is_compared_where_one_kind_is_missing(
    task: StoredTask, changes: dict[str, Any]
) -> None:
    assert _searched(task, **changes) is None
