"""Search against slow loops over a dictionary tree, and what its trace counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tamis.errors import ArtifactError, DataError
from tamis.retrieval import search
from tamis.retrieval.search import BeamSearcher, Retriever, best_places
from tamis.retrieval.searcher import Request
from tamis.retrieval.snapshot import IndexSnapshot

pytestmark = pytest.mark.slow

_EVERYTHING = (10**6, 10**6)


class _Slow:
    """Algorithm 2 for one user, an item and a node at a time, from the codes alone."""

    def __init__(
        self,
        world: Any,
        snapshot: IndexSnapshot,
        request: Request,
        *,
        allowed: set[int] | None = None,
        bids: dict[int, float] | None = None,
    ) -> None:
        self.model, self.request, self.bids = world.model, request, bids
        members = snapshot.members
        self.vector = dict(zip(members.ids.tolist(), members.vectors, strict=True))
        codes = members.codes.tolist()
        self.path = {i: tuple(c) for i, c in zip(members.ids.tolist(), codes, strict=True)}
        self.centres = snapshot.codebooks
        self.users = self.model.encode_user(request.user)
        self.open = [item for item in self.path if allowed is None or item in allowed]

    def score(self, item: int, depth: int) -> float:
        """Score of an item, or of its node at a depth above the items."""
        last = self.model.num_levels - 1
        outputs = []
        for level in range(depth + 1):
            node = self.path[item][: level + 1]
            own = sum(self.centres[n][k] for n, k in enumerate(node))
            vector = self.vector[item] if level == last else own
            pairs = self.request.pairs(torch.tensor([item])) if level == last else None
            outputs.append(self.model.pair_logits(level, self.users[level], vector[None], pairs))
        z = self.model.ensemble(depth, torch.stack(outputs, dim=1))
        return float(torch.sigmoid(z).sum()) * self.bid(item, depth)

    def bid(self, item: int, depth: int) -> float:
        """The item's bid, or the mean one of its node; 1 where there are none."""
        if self.bids is None:
            return 1.0
        prefix = self.path[item][: depth + 1]
        mates = [i for i, path in self.path.items() if path[: depth + 1] == prefix]
        mates = [item] if depth == self.model.num_levels - 1 else mates
        return sum(self.bids[i] for i in mates) / len(mates)

    def search(self, k: int, beams: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """The best items, and how many pairs each level scored."""
        under, counts = self.open, []
        for depth, beam in enumerate(beams):
            nodes = {self.path[i][: depth + 1]: i for i in under}
            counts.append(len(nodes))
            scores = {node: self.score(item, depth) for node, item in nodes.items()}
            kept = sorted(scores, key=scores.__getitem__, reverse=True)[:beam]
            under = [i for i in under if self.path[i][: depth + 1] in kept]
        counts.append(len(under))
        ranked = sorted(under, key=lambda i: self.score(i, len(beams)), reverse=True)
        return ranked[:k], counts


@pytest.fixture
def retriever(world: Any, snapshot: IndexSnapshot) -> Retriever:
    return Retriever(world.model, snapshot)


@pytest.mark.parametrize("beams", [(1, 1), (2, 3), (3, 100), (100, 2), (100, 100)])
@torch.inference_mode()
def test_search_equals_a_slow_walk_down_the_tree(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever, beams: tuple[int, int]
) -> None:
    request = world.request(1 + sum(beams) % 7)
    ids, counts = _Slow(world, snapshot, request).search(15, beams)
    found = retriever.search(request, 15, beams)

    assert found.ids.tolist() == ids
    assert [level.pairs for level in found.trace.levels] == counts


def test_pairs_a_few_at_a_time_score_as_all_at_once(
    world: Any, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = world.request(4)
    whole = retriever.exact(request, 20)
    monkeypatch.setattr(search, "_PAIRS_AT_ONCE_ON_CPU", 7)
    parts = retriever.exact(request, 20)

    assert parts.ids.tolist() == whole.ids.tolist()
    assert parts.trace == whole.trace
    torch.testing.assert_close(parts.scores, whole.scores)


@pytest.mark.parametrize("beams", [(1, 1), (2, 3), (100, 2), (100, 100)])
@torch.inference_mode()
def test_search_among_some_items_equals_a_slow_walk_of_their_nodes(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever, beams: tuple[int, int]
) -> None:
    request = world.request(3)
    ids = snapshot.members.ids
    # Those of half of the codes of the first level, and of them every third.
    allowed = (ids % 3 == 0) & (snapshot.members.codes[:, 0] % 2 == 0)
    slow = _Slow(world, snapshot, request, allowed=set(ids[allowed].tolist()))
    expected, counts = slow.search(15, beams)

    found = retriever.search(request, 15, beams, allowed=allowed)

    assert found.ids.tolist() == expected
    assert [level.pairs for level in found.trace.levels] == counts
    every = retriever.search(request, 15, beams).trace.levels
    assert counts[0] < every[0].pairs
    assert bool(torch.isin(found.ids, ids[allowed]).all())


@pytest.mark.parametrize("at_once", [7, 4096])
@pytest.mark.parametrize("beams", [(1, 1), (2, 3), (100, 100)])
def test_several_requests_find_what_each_finds_alone(
    world: Any,
    snapshot: IndexSnapshot,
    retriever: Retriever,
    monkeypatch: pytest.MonkeyPatch,
    beams: tuple[int, int],
    at_once: int,
) -> None:
    monkeypatch.setattr(search, "_PAIRS_AT_ONCE_ON_CPU", at_once)
    requests = [world.request(user) for user in (3, 1, 4, 1)]
    ids = snapshot.members.ids
    nobody = torch.zeros(len(ids), dtype=torch.bool)
    allowed = [None, ids % 3 == 0, nobody, snapshot.members.codes[:, 0] % 2 == 0]

    found = retriever.search_all(requests, 15, beams, allowed=allowed)

    for one, request, some in zip(found, requests, allowed, strict=True):
        alone = retriever.search(request, 15, beams, allowed=some)
        assert one.ids.tolist() == alone.ids.tolist()
        assert one.trace == alone.trace
        torch.testing.assert_close(one.scores, alone.scores)
    assert len(found[2].ids) == 0
    assert found[0].ids.tolist() != found[1].ids.tolist()


def test_several_requests_without_any_item_find_nothing(world: Any, retriever: Retriever) -> None:
    nobody = torch.zeros(300, dtype=torch.bool)

    found = retriever.search_all(
        [world.request(0), world.request(1)], 5, (2, 3), allowed=[nobody, nobody]
    )

    assert [len(one.ids) for one in found] == [0, 0]


@pytest.mark.parametrize(("requests", "allowed"), [(0, 0), (2, 1), (1, 2)])
def test_requests_and_what_they_may_find_must_be_as_many(
    world: Any, retriever: Retriever, requests: int, allowed: int
) -> None:
    with pytest.raises(ValueError, match=f"got {requests} requests and {allowed} of allowed"):
        retriever.search_all([world.request(0)] * requests, 5, (2, 3), allowed=[None] * allowed)


def test_several_requests_may_have_all_items(world: Any, retriever: Retriever) -> None:
    requests = [world.request(user) for user in range(3)]

    found = retriever.search_all(requests, 9, (2, 3))

    alone = [retriever.search(request, 9, (2, 3)) for request in requests]
    assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in alone]


def test_all_items_allowed_is_as_if_nothing_was_said(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever
) -> None:
    request, every = world.request(2), torch.ones(300, dtype=torch.bool)

    said = retriever.search(request, 20, (2, 3), allowed=every)
    plain = retriever.search(request, 20, (2, 3))

    assert torch.equal(said.ids, plain.ids)
    assert torch.equal(said.scores, plain.scores)
    assert said.trace == plain.trace


def test_beam_searcher_finds_what_it_is_told_is_allowed(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever
) -> None:
    request, allowed = world.request(2), snapshot.members.ids % 3 == 0
    searcher = BeamSearcher(retriever=retriever, beams=(2, 3), allowed=allowed)

    assert searcher.num_items == 100
    wanted = retriever.search(request, 20, (2, 3), allowed=allowed)
    assert torch.equal(searcher.search(request, 20).ids, wanted.ids)


def test_nothing_allowed_finds_nothing(world: Any, retriever: Retriever) -> None:
    found = retriever.search(world.request(2), 20, (2, 3), allowed=torch.zeros(300).bool())

    assert found.ids.tolist() == found.scores.tolist() == []
    assert [level.pairs for level in found.trace.levels] == [0, 0, 0]


@pytest.mark.parametrize("beams", [(1, 2), (2, 3), (100, 100)])
@torch.inference_mode()
def test_scores_of_the_caller_decide_on_every_level(
    world: Any, snapshot: IndexSnapshot, beams: tuple[int, int]
) -> None:
    request, members, tree = world.request(4), snapshot.members, snapshot.tree
    bid = 1 + (members.ids * 37 % 11).double()
    bids = dict(zip(members.ids.tolist(), bid.tolist(), strict=True))
    means = [
        torch.stack([part.mean() for part in bid.split(tree.bounds(level).diff().tolist())])
        for level in range(2)
    ]

    def score(level: int, places: Tensor, probabilities: Tensor) -> Tensor:
        return probabilities.double().sum(1) * [*means, bid][level][places]

    ids, counts = _Slow(world, snapshot, request, bids=bids).search(15, beams)
    found = Retriever(world.model, snapshot, score=score).search(request, 15, beams)

    assert found.ids.tolist() == ids
    assert [level.pairs for level in found.trace.levels] == counts
    assert ids != Retriever(world.model, snapshot).search(request, 15, beams).ids.tolist()


@torch.inference_mode()
def test_full_beams_equal_scoring_every_item_by_the_same_ensemble(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever
) -> None:
    request = world.request(2)
    slow = _Slow(world, snapshot, request)
    scores = {item: slow.score(item, 2) for item in slow.path}
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)

    for found in (retriever.exact(request, 300), retriever.search(request, 300, _EVERYTHING)):
        assert found.ids.tolist() == ranked
        assert found.scores.tolist() == pytest.approx([scores[i] for i in ranked], abs=1e-5)
        assert found.trace.levels[-1].pairs == 300


def test_items_are_scored_under_kept_nodes_only_and_each_once(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever
) -> None:
    scored: list[Tensor] = []
    found = retriever.search(world.request(1, scored), 10, (2, 3))
    asked = torch.cat(scored)
    nodes = {
        tuple(c) for c in snapshot.members.codes[torch.isin(snapshot.members.ids, asked)].tolist()
    }
    under = [tuple(c) in nodes for c in snapshot.members.codes.tolist()]

    assert asked.unique().numel() == len(asked) == sum(under) == found.trace.levels[-1].pairs
    assert len(nodes) == found.trace.levels[1].kept == 3
    assert len({node[0] for node in nodes}) <= found.trace.levels[0].kept == 2


def test_pairs_fall_with_the_beams_and_recall_never_falls_as_they_grow(
    world: Any, retriever: Retriever
) -> None:
    pairs, recalls = [], []
    for beam in (1, 2, 4, 6):
        hits = total = 0
        for user in range(1, 9):
            request = world.request(user)
            best = retriever.exact(request, 20).ids
            found = retriever.search(request, 20, (beam, 10**6))
            hits += int(torch.isin(found.ids, best).sum())
            total += found.trace.levels[-1].pairs
        pairs.append(total)
        recalls.append(hits / 160)

    assert pairs == sorted(set(pairs))
    assert recalls == sorted(recalls)
    assert recalls[0] < 1.0 == recalls[-1]


def test_results_do_not_depend_on_the_order_of_the_corpus(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever
) -> None:
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)) + 1
    other = Retriever(world.model, world.publish(order))
    for beams in ((2, 3), _EVERYTHING):
        first = retriever.search(world.request(3), 25, beams)
        second = other.search(world.request(3), 25, beams)

        assert torch.equal(first.ids, second.ids)
        assert first.trace == second.trace


def test_features_of_pairs_decide_among_items(world: Any, retriever: Retriever) -> None:
    request = world.request(1)
    other = Request(user=request.user, pairs=world.request(5).pairs)

    assert not torch.equal(retriever.exact(request, 20).ids, retriever.exact(other, 20).ids)
    # Nodes have none, so the same ones are kept.
    traces = [retriever.search(r, 20, (2, 3)).trace for r in (request, other)]
    assert traces[0] == traces[1]


def test_trace_counts_operations_as_they_are_spent(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever
) -> None:
    user_flops, pair_flops = world.model.count_flops()
    found = retriever.search(world.request(1), 5, (3, 4))

    for level, of_pair in zip(found.trace.levels, pair_flops, strict=True):
        assert level.flops == level.pairs * of_pair
    assert found.trace.flops == user_flops + sum(level.flops for level in found.trace.levels)
    assert found.trace.pairs == sum(level.pairs for level in found.trace.levels)
    assert pair_flops[0] > pair_flops[1]  # the coarsest level has the largest network
    with FlopCounterMode(display=False) as counter:
        retriever.search(world.request(1), 5, (3, 4))
    # All that is left is what does not grow with pairs, and the ensembles: less than a tenth.
    assert found.trace.flops == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_nodes_of_a_trace_are_the_occupied_ones(
    snapshot: IndexSnapshot, retriever: Retriever, world: Any
) -> None:
    levels = retriever.search(world.request(1), 7, (2, 3)).trace.levels

    assert [level.nodes for level in levels] == [*snapshot.tree.num_nodes, 300]
    assert [level.kept for level in levels] == [2, 3, 7]


def test_task_weights_decide_what_is_best(world: Any, snapshot: IndexSnapshot) -> None:
    request = world.request(1)
    click, buy, both = (
        Retriever(world.model, snapshot, task_weights=w).exact(request, 300)
        for w in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    )

    assert click.ids.tolist() != buy.ids.tolist()
    total = dict(zip(click.ids.tolist(), click.scores.tolist(), strict=True))
    for item, score in zip(buy.ids.tolist(), buy.scores.tolist(), strict=True):
        total[item] += score
    expected = [total[item] for item in both.ids.tolist()]
    assert both.scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_model_without_index_scores_every_item(make_world: Callable[..., Any]) -> None:
    world = make_world(())
    retriever = Retriever(world.model, world.publish(torch.arange(1, 61)))
    found = retriever.search(world.request(1), 60, ())

    assert sorted(found.ids.tolist()) == list(range(1, 61))
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert [level.pairs for level in found.trace.levels] == [60]


def test_removed_items_are_found_no_more_and_added_ones_are(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever
) -> None:
    request = world.request(2)
    best = retriever.exact(request, 5).ids
    left = Retriever(world.model, snapshot.remove(best)).exact(request, 300)
    assert not torch.isin(left.ids, best).any()

    # A cold copy of the best item, but for the id that it lacks.
    new = torch.tensor([1000])
    grown = snapshot.add(world.model, new, world.features(best[:1]))
    assert 1000 in Retriever(world.model, grown).exact(request, 301).ids.tolist()


def test_equal_scores_are_in_the_order_of_the_tree(
    world: Any, snapshot: IndexSnapshot, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.model, "pair_logits", lambda *pair: torch.zeros(len(pair[2]), 2))

    found = retriever.search(world.request(1), 9, (2, 2))
    assert found.ids.tolist() == snapshot.members.ids[:9].tolist()


def test_best_places_equal_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores = torch.randint(0, 6, (20,), generator=generator).float()
        for count in (1, 3, 19, 20, 30):
            expected = torch.argsort(-scores, stable=True)[:count].sort().values
            assert torch.equal(best_places(scores, count), expected)


# What is refused.


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_scores_that_are_no_numbers_are_not_chosen_among(count: int) -> None:
    with pytest.raises(DataError, match=r"search: scores must be numbers, got nan in place 2 of 4"):
        best_places(torch.tensor([3.0, 1.0, torch.nan, 2.0]), count)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_search_names_the_level_whose_score_is_no_number(
    world: Any, snapshot: IndexSnapshot, bad: int
) -> None:
    def score(level: int, places: Tensor, probabilities: Tensor) -> Tensor:
        return torch.where((places == 3) & (level == bad), torch.nan, probabilities.sum(1))

    retriever = Retriever(world.model, snapshot, score=score)
    count = (*snapshot.tree.num_nodes, 300)[bad]

    with pytest.raises(DataError, match=f"search, level {bad + 1}: .* nan in place 3 of {count}"):
        retriever.exact(world.request(1), 5)


def test_snapshot_of_other_weights_is_refused(world: Any, snapshot: IndexSnapshot) -> None:
    with torch.no_grad():
        world.model.levels[0].shift += 1e-3

    with pytest.raises(ArtifactError, match="weights must be those it was published from"):
        Retriever(world.model, snapshot)


def test_model_in_training_mode_is_refused(world: Any, snapshot: IndexSnapshot) -> None:
    world.model.train()

    with pytest.raises(ValueError, match="must be in evaluation mode, got training mode"):
        Retriever(world.model, snapshot)


@pytest.mark.parametrize(("k", "beams"), [(0, (1, 1)), (5, (1,)), (5, (0, 1))])
def test_impossible_searches_are_refused(
    world: Any, retriever: Retriever, k: int, beams: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1, got k={k} and beams="):
        retriever.search(world.request(1), k, beams)


def test_weights_must_be_one_for_each_task(world: Any, snapshot: IndexSnapshot) -> None:
    retriever = Retriever(world.model, snapshot, task_weights=(1.0,))

    with pytest.raises(ValueError, match="must be one for each of 2 tasks, got 1"):
        retriever.exact(world.request(1), 5)


def test_two_users_in_one_request_are_refused(world: Any, retriever: Retriever) -> None:
    request = Request(user=world.features(torch.tensor([1, 2])))

    with pytest.raises(DataError, match="the user must be one row, got 2"):
        retriever.search(request, 5, (1, 1))
