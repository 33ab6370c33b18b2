"""The tree of k-means: what its nodes hold, and search through it by a model's own levels."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tamis.errors import ArtifactError, ConfigError, DataError
from tamis.models.hsnn import HSNN
from tamis.nn.kmeans import kmeans, squared_distances
from tamis.retrieval.kmeans_tree import KMeansTree, NodeVectors
from tamis.retrieval.search import BeamSearcher, Retriever

_IDS = torch.arange(1, 301)


def _build(world: Any, branching: tuple[int, ...] = (6, 4), ids: torch.Tensor = _IDS) -> KMeansTree:
    return KMeansTree.build(world.model, [(ids, world.features(ids))], branching, seed=0)


def test_nodes_are_the_k_means_of_their_members(world: Any) -> None:
    tree = _build(world)
    members = tree.members
    by_id = members.vectors[members.ids.argsort()]
    coarse = squared_distances(by_id, kmeans(by_id, 6, seed=0)).argmin(1)
    assert torch.equal(members.codes[members.ids.argsort(), 0], coarse)
    for node in range(6):
        own = by_id[coarse == node]
        apart = squared_distances(own, kmeans(own, min(4, len(own)), seed=1))
        got = members.codes[members.ids.argsort(), 1][coarse == node]

        assert torch.equal(got, apart.argmin(1))
        distances = members.distances[members.ids.argsort(), 1][coarse == node]
        torch.testing.assert_close(distances, apart.min(1).values)


def test_every_item_is_under_one_leaf_and_a_representative_is_the_nearest_member(
    world: Any,
) -> None:
    tree = _build(world)

    assert sorted(tree.members.ids.tolist()) == _IDS.tolist()
    for level in range(2):
        bounds = tree.tree.bounds(level).tolist()
        assert (bounds[0], bounds[-1]) == (0, 300)
        for node, place in enumerate(tree.tree.representatives[level].tolist()):
            own = slice(bounds[node], bounds[node + 1])
            assert len(tree.members.codes[own, : level + 1].unique(dim=0)) == 1
            assert tree.members.distances[place, level] == tree.members.distances[own, level].min()


def test_node_is_scored_by_the_mean_of_its_members_or_by_the_one_nearest_to_its_centre(
    world: Any,
) -> None:
    tree = _build(world)
    vectors = tree.members.vectors
    for level, (means, members) in enumerate(
        zip(tree.node_vectors(), replace(tree, nodes="member").node_vectors(), strict=True)
    ):
        bounds = tree.tree.bounds(level).tolist()
        assert len(means) == len(members) == tree.tree.num_nodes[level]
        for node, (start, end) in enumerate(itertools.pairwise(bounds)):
            torch.testing.assert_close(means[node], vectors[start:end].mean(0))
            nearest = start + int(tree.members.distances[start:end, level].argmin())
            assert torch.equal(members[node], vectors[nearest])


@torch.inference_mode()
@pytest.mark.parametrize("nodes", ["mean", "member"])
def test_full_beams_equal_scoring_every_item(world: Any, nodes: NodeVectors) -> None:
    tree, index = replace(_build(world), nodes=nodes), world.publish(_IDS)
    retriever = Retriever(world.model, tree)
    request = world.request(2)
    everything = tree.tree.num_nodes
    found = BeamSearcher(retriever=retriever, beams=everything).search(request, 300)

    # A slow walk: the logits of the own nodes join those of the item.
    users = world.model.encode_user(request.user)
    scores = {}
    for place, item in enumerate(tree.members.ids.tolist()):
        outputs = []
        for level in range(2):
            node = int(torch.searchsorted(tree.tree.bounds(level), place, right=True)) - 1
            who = tree.members.vectors[tree.tree.representatives[level][node]]
            if nodes == "mean":
                who = tree.members.vectors[slice(*tree.tree.bounds(level)[node : node + 2])].mean(0)
            outputs.append(world.model.pair_logits(level, users[level], who[None], None))
        one = torch.tensor([item])
        own = tree.members.vectors[place][None]
        outputs.append(world.model.pair_logits(2, users[2], own, request.pairs(one)))
        z = world.model.ensemble(2, torch.stack(outputs, dim=1))
        scores[item] = float(torch.sigmoid(z).sum())
    assert found.ids.tolist() == sorted(scores, key=scores.__getitem__, reverse=True)
    assert found.trace.levels[-1].pairs == 300
    # Its nodes are others than those of the residual index.
    assert tree.tree.num_nodes != index.tree.num_nodes or not torch.equal(
        tree.members.codes, index.members.codes
    )


def test_narrow_beams_score_fewer_items(world: Any) -> None:
    retriever = Retriever(world.model, _build(world))
    # The same coarse nodes, so that what a narrower beam keeps is part of what a wider one does.
    pairs = [
        retriever.search(world.request(1), 5, (3, beam)).trace.levels[-1].pairs
        for beam in (1, 2, 6)
    ]

    assert pairs == sorted(set(pairs))
    assert pairs[0] < 100


def test_tree_does_not_depend_on_the_order_of_the_corpus(world: Any) -> None:
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    first, second = _build(world), _build(world, ids=_IDS[order])

    assert torch.equal(first.members.codes, second.members.codes)
    assert torch.equal(first.members.ids, second.members.ids)


def test_more_children_than_items_give_a_leaf_to_each(world: Any) -> None:
    ids = _IDS[:5]
    tree = _build(world, (2, 50), ids)

    assert tree.tree.num_nodes[1] == 5


def test_what_does_not_fit_is_refused(world: Any, make_world: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"numbers of at least 1, got \(6, 0\)"):
        _build(world, (6, 0))
    with pytest.raises(DataError, match="as many levels as the model has for nodes, 2, got 1"):
        Retriever(world.model, _build(world, (6,)))
    tree = _build(world)
    with torch.no_grad():
        world.model.levels[0].shift += 1e-3
    with pytest.raises(ArtifactError, match="weights must be those it was published from"):
        Retriever(world.model, tree)


def test_levels_that_have_learnt_nothing_walk_no_tree(world: Any) -> None:
    model = HSNN(replace(world.model.config, start_steps=9), world.model.spec).eval()
    tree = KMeansTree.build(model, [(_IDS, world.features(_IDS))], (6, 4), seed=0)

    with pytest.raises(ConfigError, match="begins in step 9, got those of step 0"):
        Retriever(model, tree)
