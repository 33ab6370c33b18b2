"""Lists of many users: what is masked is not found again, and costs are means."""

from typing import Any

import numpy as np
import pytest
import torch

from tamis.errors import DataError
from tamis.evaluation.retrieval import ItemLists, full_corpus_scores
from tamis.retrieval.collect import NOTHING, collect
from tamis.retrieval.search import BeamSearcher, Retriever
from tamis.retrieval.searcher import Searcher
from tamis.retrieval.snapshot import IndexSnapshot

_USERS = (1, 2, 3)


@pytest.fixture
def retriever(world: Any, snapshot: IndexSnapshot) -> Retriever:
    return Retriever(world.model, snapshot)


def _masks(retriever: Retriever, world: Any) -> ItemLists:
    """Each user's own best items, but for the last user's, who has none."""
    return ItemLists.of(
        [retriever.exact(world.request(user), 5).ids.numpy() for user in _USERS[:2]] + [[]]
    )


def test_masked_items_are_left_out_and_the_list_is_as_long_as_asked(
    world: Any, retriever: Retriever
) -> None:
    masked = _masks(retriever, world)
    searcher = BeamSearcher(retriever=retriever, beams=(6, 24))
    got = collect(searcher, [world.request(user) for user in _USERS], 20, masked=masked)

    for row, user, hidden in zip(got.ids, _USERS, masked.lists(), strict=True):
        best = retriever.exact(world.request(user), 300).ids.tolist()
        assert row.tolist() == [item for item in best if item not in hidden][:20]
    assert got.candidates.tolist() == [295, 295, 300]
    scores = full_corpus_scores(
        got.ids,
        ItemLists.of([row[:2] for row in got.ids]),
        masked,
        num_items=300,
        candidates=got.candidates,
        cutoffs=(2, 10),
    )
    assert scores.means() == pytest.approx({"recall@2": 1.0, "recall@10": 1.0, "ndcg@20": 1.0})


def test_lists_that_beams_leave_short_end_with_nothing(world: Any, retriever: Retriever) -> None:
    searcher = BeamSearcher(retriever=retriever, beams=(1, 1))
    got = collect(searcher, [world.request(1)], 300, masked=ItemLists.of([[]]))
    found = searcher.search(world.request(1), 300)

    assert len(found.ids) < 300
    assert got.ids[0, : len(found.ids)].tolist() == found.ids.tolist()
    assert (got.ids[0, len(found.ids) :] == NOTHING).all()


def test_costs_are_means_over_requests(world: Any, retriever: Retriever) -> None:
    searcher = BeamSearcher(retriever=retriever, beams=(2, 3))
    requests = [world.request(user) for user in _USERS]
    got = collect(searcher, requests, 10, masked=ItemLists.of([[]] * 3))
    traces = [searcher.search(request, 10).trace for request in requests]

    assert got.mean_pairs == pytest.approx(np.mean([trace.pairs for trace in traces]))
    assert got.mean_flops == pytest.approx(np.mean([trace.flops for trace in traces]))
    assert got.mean_bytes == pytest.approx(got.mean_pairs * 8 * 4)  # vectors are 8 wide


def test_beam_searcher_is_the_retriever_at_its_beams(
    world: Any, retriever: Retriever, snapshot: IndexSnapshot
) -> None:
    searcher = BeamSearcher(retriever=retriever, beams=(2, 3))
    found, expected = (
        searcher.search(world.request(1), 9),
        retriever.search(world.request(1), 9, (2, 3)),
    )

    assert torch.equal(found.ids, expected.ids)
    assert found.trace == expected.trace
    assert isinstance(searcher, Searcher)
    assert searcher.num_items == 300
    nodes = sum(snapshot.tree.num_nodes)
    # A vector of 8 floats and an id per item; a vector and an offset per node, one more per level.
    assert searcher.index_bytes == 300 * (8 * 4 + 8) + nodes * (8 * 4 + 8) + 8 * 2


def test_requests_without_masks_are_refused(world: Any, retriever: Retriever) -> None:
    searcher = BeamSearcher(retriever=retriever, beams=(2, 3))

    with pytest.raises(DataError, match="got 1 requests and 2 masks"):
        collect(searcher, [world.request(1)], 5, masked=ItemLists.of([[], []]))
    with pytest.raises(DataError, match="got 0 requests and 0 masks"):
        collect(searcher, [], 5, masked=ItemLists.of([]))
