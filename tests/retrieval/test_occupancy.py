"""Occupancy of an index against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch

from tamis.retrieval.occupancy import occupancy
from tamis.retrieval.prefix_tree import build_tree, sorted_places
from tamis.retrieval.snapshot import IndexSnapshot, Members


def _snapshot(codes: list[list[int]], sizes: tuple[int, ...]) -> IndexSnapshot:
    paths = torch.tensor(codes)
    ids = torch.arange(len(codes))
    order = sorted_places(ids, paths)
    distances = torch.zeros(paths.shape)
    return IndexSnapshot(
        weights_version="",
        codebooks=tuple(torch.zeros(size, 2) for size in sizes),
        members=Members(
            ids=ids[order],
            vectors=torch.zeros(len(codes), 2),
            codes=paths[order],
            distances=distances,
        ),
        tree=build_tree(ids[order], paths[order], distances),
        version="",
    )


def test_occupancy_known_answer() -> None:
    # Level 1: codes 0, 0, 0, 2 of four. Level 2: paths (0,0), (0,0), (0,1), (2,1) of two codes.
    first, second = occupancy(_snapshot([[0, 0], [2, 1], [0, 0], [0, 1]], (4, 2)))

    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert first.perplexity == pytest.approx(math.exp(entropy))
    assert (first.codes, first.dead_share, first.nodes) == (4, 0.5, 2)
    # Nodes of 3 and 1 items: mean 2; sizes 1, 3 give (-1 * 1 + 1 * 3) / (2 * 4).
    assert first.largest_to_mean == pytest.approx(1.5)
    assert first.gini == pytest.approx(0.25)
    # Codes 0, 0, 1, 1: both alike. Nodes of 2, 1 and 1 items.
    assert second.perplexity == pytest.approx(2.0)
    assert (second.dead_share, second.nodes) == (0.0, 3)
    assert second.largest_to_mean == pytest.approx(1.5)
    assert second.gini == pytest.approx((-2 * 1 + 0 * 1 + 2 * 2) / (3 * 4))


def test_rows_spread_over_the_nodes_of_the_items_that_are_there() -> None:
    # Nodes of level 1: codes 0 and 2; of level 2: (0,0), (0,1), (2,1). Four rows under the item
    # (2,1), one under (0,1).
    snapshot = _snapshot([[0, 0], [2, 1], [0, 0], [0, 1]], (4, 2))
    rows = (torch.tensor([1, 1, 0, 1, 1]), torch.tensor([2, 2, 1, 2, 2]))
    first, second = occupancy(snapshot, rows)

    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert first.perplexity == pytest.approx(math.exp(entropy))
    assert (first.codes, first.dead_share, first.nodes) == (4, 0.5, 2)
    assert first.largest_to_mean == pytest.approx(4 / 2.5)
    assert first.gini == pytest.approx((-1 * 1 + 1 * 4) / (2 * 5))
    # All rows are of code 1; the node without any counts.
    assert second.perplexity == pytest.approx(1.0)
    assert (second.dead_share, second.nodes) == (0.5, 3)
    assert second.largest_to_mean == pytest.approx(4 / (5 / 3))
    assert second.gini == pytest.approx((-2 * 0 + 0 * 1 + 2 * 4) / (3 * 5))


def test_occupancy_is_of_the_corpus_that_was_published(world: Any, snapshot: Any) -> None:
    levels = occupancy(snapshot)

    assert tuple(level.nodes for level in levels) == snapshot.tree.num_nodes
    counts = torch.bincount(snapshot.members.codes[:, 0])
    assert levels[0].largest_to_mean == pytest.approx(float(counts.max() / counts.double().mean()))
