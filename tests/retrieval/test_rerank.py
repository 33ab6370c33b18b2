"""Re-ranking against scores by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tamis.errors import DataError
from tamis.retrieval.exact import ExactSearcher, Queries
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.rerank import Reranker
from tamis.retrieval.search import Retriever
from tamis.retrieval.searcher import Searcher

_IDS = torch.arange(1, 81)


@pytest.fixture
def leaf(make_world: Callable[..., Any]) -> Any:
    """A world whose model has no level but that of items."""
    return make_world(())


def _first(leaf: Any) -> ExactSearcher:
    """Some other order of the items: by the sine of their number and the user's."""
    vectors = torch.stack([torch.sin(_IDS * 0.9), torch.cos(_IDS * 0.4)], dim=1)

    def encode(users: Any) -> Tensor:
        user = users.ids[:, :1].float()
        return torch.cat([torch.cos(user), torch.sin(user)], dim=1)

    return ExactSearcher(ItemVectors.of(_IDS, vectors), Queries(encode=encode, flops=5))


def _reranker(leaf: Any, count: int, **options: Any) -> Reranker:
    items = ItemVectors.encode(leaf.model, [(_IDS, leaf.features(_IDS))])
    return Reranker(_first(leaf), leaf.model, items, num_candidates=count, **options)


@pytest.mark.parametrize("weights", [(), (0.2, 3.0)])
@torch.inference_mode()
def test_candidates_are_ordered_by_the_model_as_by_hand(
    leaf: Any, weights: tuple[float, ...]
) -> None:
    for user in (1, 4):
        asked: list[Tensor] = []
        request = leaf.request(user, asked)
        candidates = _first(leaf).search(request, 30).ids
        (vector,) = leaf.model.encode_user(request.user)
        scores = {}
        for item in candidates.tolist():
            one = torch.tensor([item])
            items = leaf.model.encode_items(leaf.features(one))
            own = leaf.model.pair_logits(0, vector, items, leaf.request(user).pairs(one))
            z = leaf.model.ensemble(0, own.unsqueeze(1))[0]
            scores[item] = float((torch.sigmoid(z) * torch.tensor(weights or (1.0, 1.0))).sum())
        expected = sorted(scores, key=scores.__getitem__, reverse=True)
        found = _reranker(leaf, 30, task_weights=weights).search(request, 12)

        assert found.ids.tolist() == expected[:12]
        assert found.ids.tolist() != candidates[:12].tolist()
        assert found.scores.tolist() == pytest.approx([scores[i] for i in expected[:12]], abs=1e-5)
        assert torch.cat(asked).tolist() == candidates.tolist(), "and no pair besides is looked at"


def test_all_items_re_ranked_are_the_exhaustive_search_of_the_model(leaf: Any) -> None:
    exhaustive = Retriever(leaf.model, leaf.publish(_IDS))
    request = leaf.request(2)
    found, expected = _reranker(leaf, 80).search(request, 80), exhaustive.search(request, 80, ())
    # Both may put items first whose scores differ in the last digit alone.
    torch.testing.assert_close(found.scores, expected.scores)
    by_item = dict(zip(expected.ids.tolist(), expected.scores.tolist(), strict=True))
    again = [by_item[item] for item in found.ids.tolist()]
    assert again == pytest.approx(found.scores.tolist(), abs=1e-5)


def test_trace_adds_both_steps(leaf: Any) -> None:
    user_flops, (pair_flops,) = leaf.model.count_flops()
    searcher = _reranker(leaf, 30)
    trace = searcher.search(leaf.request(1), 12).trace

    assert [(level.nodes, level.pairs, level.kept) for level in trace.levels] == [
        (80, 80, 30),
        (80, 30, 12),
    ]
    assert trace.user_flops == user_flops + 5
    assert trace.flops == trace.user_flops + 80 * 2 * 2 + 30 * pair_flops
    assert trace.bytes == 80 * 2 * 4 + 30 * 8 * 4
    assert searcher.index_bytes == 80 * (2 * 4 + 8) + 80 * (8 * 4 + 8)
    assert isinstance(searcher, Searcher)
    assert searcher.num_items == 80


def test_more_items_than_candidates_are_not_found(leaf: Any) -> None:
    assert len(_reranker(leaf, 30).search(leaf.request(1), 50).ids) == 30


def test_what_does_not_fit_together_is_refused(leaf: Any, world: Any) -> None:
    items = ItemVectors.encode(leaf.model, [(_IDS, leaf.features(_IDS))])
    with pytest.raises(DataError, match="must have no level but that of items, got 3"):
        Reranker(_first(leaf), world.model, items, num_candidates=5)
    with pytest.raises(ValueError, match="num_candidates must be at least 1, got 0"):
        _reranker(leaf, 0)
    fewer = ItemVectors.encode(leaf.model, [(_IDS[:9], leaf.features(_IDS[:9]))])
    with pytest.raises(DataError, match="must know the same items, got 80 and 9"):
        Reranker(_first(leaf), leaf.model, fewer, num_candidates=5)
    leaf.model.train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        Reranker(_first(leaf), leaf.model, items, num_candidates=5)
