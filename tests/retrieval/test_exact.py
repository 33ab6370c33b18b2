"""Exact search against a stable sort of all scores."""

import pytest
import torch

from tamis.data.batch import Batch
from tamis.errors import DataError
from tamis.retrieval import exact
from tamis.retrieval.exact import ExactSearcher, Queries, exact_top_k
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.searcher import Request, Searcher


def _user(*numbers: float) -> Request:
    row = Batch(
        numeric=torch.tensor([numbers]),
        ids=torch.zeros(1, 0, dtype=torch.int32),
        labels=torch.zeros(1, 1),
        weights=torch.ones(1),
    )
    return Request(user=row)


def _searcher(items: ItemVectors) -> ExactSearcher:
    return ExactSearcher(items, Queries(encode=lambda users: users.numeric, flops=7))


def test_search_orders_items_by_inner_product_and_counts_its_cost() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 5.0]])
    searcher = _searcher(ItemVectors.of(torch.tensor([40, 30, 20, 10]), vectors))

    found = searcher.search(_user(1.0, 0.5), 3)
    # Scores 1, 0.5, 2.5 and 1.5.
    assert found.ids.tolist() == [20, 10, 40]
    assert found.scores.tolist() == [2.5, 1.5, 1.0]
    assert (found.trace.pairs, found.trace.flops) == (4, 4 * 2 * 2 + 7)
    assert found.trace.bytes == 4 * 2 * 4
    assert searcher.index_bytes == 4 * 2 * 4 + 4 * 8
    assert isinstance(searcher, Searcher)


def test_equal_scores_are_in_the_order_of_ids_whatever_the_order_of_the_corpus() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    searcher = _searcher(ItemVectors.of(order, (order % 3).float().unsqueeze(1)))

    found = searcher.search(_user(1.0), 40)
    expected = sorted(range(50), key=lambda item: (-(item % 3), item))[:40]
    assert found.ids.tolist() == expected


def test_many_users_by_blocks_equal_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    items, queries = (torch.randn(n, 5, generator=generator) for n in (30, 17))
    scores = queries @ items.T
    rows = torch.arange(17).repeat_interleave(2)
    columns = torch.randint(0, 30, (34,), generator=generator)
    hidden = scores.clone()
    hidden[rows, columns] = -torch.inf
    # Blocks of four users.
    monkeypatch.setattr(exact, "_SCORES_AT_ONCE", 4 * 30)

    for masked, expected in ((None, scores), ((rows, columns), hidden)):
        got, places = exact_top_k(queries, items, 12, masked=masked)
        best = expected.sort(dim=1, descending=True)
        torch.testing.assert_close(got, best.values[:, :12])
        assert torch.equal(places, best.indices[:, :12])


def test_no_users_and_more_items_than_there_are() -> None:
    items = torch.eye(3)

    assert exact_top_k(torch.zeros(0, 3), items, 2)[1].shape == (0, 2)
    assert exact_top_k(torch.ones(1, 3), items, 9)[1].shape == (1, 3)


def test_no_item_is_asked_for_or_two_users_ask() -> None:
    searcher = _searcher(ItemVectors.of(torch.tensor([1]), torch.ones(1, 1)))

    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        searcher.search(_user(1.0), 0)
    two = _user(1.0).user
    two = Batch(
        numeric=two.numeric.repeat(2, 1),
        ids=two.ids.repeat(2, 1),
        labels=two.labels.repeat(2, 1),
        weights=two.weights.repeat(2),
    )
    with pytest.raises(DataError, match="the user must be one row, got 2"):
        searcher.search(Request(user=two), 1)
