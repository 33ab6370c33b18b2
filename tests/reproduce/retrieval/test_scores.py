"""What is measured of a searcher: its time is that of the very searches that found its lists."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from tamis.data.batch import blank_batch
from tamis.data.retrieval_task import StoredTask
from tamis.data.schema import Field, InputSpec, Roles, Schema, Task
from tamis.evaluation.retrieval import CUTOFFS, ItemLists
from tamis.reproduce.retrieval.scores import Measurer
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
