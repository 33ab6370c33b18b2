"""LightGCN against a dense matrix in float64, and its search."""

import pytest
import torch
from torch import Tensor

from tamis.data.batch import Batch
from tamis.errors import ConfigError, DataError
from tamis.models.lightgcn import LightGCN, LightGCNConfig
from tamis.retrieval.exact import ExactSearcher, Queries
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.searcher import Request

_USERS, _ITEMS = 6, 9
# User 5 and item 8 have no edge; the first edge stands twice.
_PAIRS = torch.tensor(
    [[0, 0], [0, 0], [0, 3], [1, 3], [1, 4], [2, 0], [2, 1], [2, 7], [3, 5], [4, 6], [4, 2]]
)


def _build(num_layers: int = 3) -> LightGCN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LightGCN(
            LightGCNConfig(embedding_dim=4, num_layers=num_layers),
            _PAIRS[:, 0],
            _PAIRS[:, 1],
            num_users=_USERS,
            num_items=_ITEMS,
        )


def _dense(weight: Tensor, num_layers: int) -> Tensor:
    """The same by a whole matrix, an entry at a time."""
    size = _USERS + _ITEMS
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    for user, item in _PAIRS.tolist():
        adjacency[user, _USERS + item] = adjacency[_USERS + item, user] = 1.0
    degrees = adjacency.sum(1)
    for row in range(size):
        for column in range(size):
            if adjacency[row, column]:
                adjacency[row, column] = (degrees[row] * degrees[column]) ** -0.5
    layers = [weight]
    for _ in range(num_layers):
        layers.append(adjacency @ layers[-1])
    return torch.stack(layers).mean(0)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_vectors_and_gradients_equal_a_dense_matrix(num_layers: int) -> None:
    model = _build(num_layers)
    weight = model.weight.detach().double().requires_grad_()
    expected = _dense(weight, num_layers)
    found = torch.cat(model())
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    (expected * slope).sum().backward()
    (found * slope).sum().backward()
    torch.testing.assert_close(model.weight.grad.double(), weight.grad, atol=1e-6, rtol=1e-5)
    # The graph is not the identity.
    assert (expected - weight / (num_layers + 1)).abs().max().item() > 0.05


def test_who_has_no_edge_keeps_a_share_of_the_start() -> None:
    model = _build(3)
    users, items = model()

    torch.testing.assert_close(users[5], model.weight[5] / 4)
    torch.testing.assert_close(items[8], model.weight[-1] / 4)


def test_graph_follows_from_the_data_and_is_not_stored() -> None:
    assert list(_build().state_dict()) == ["weight"]


def test_exact_search_finds_the_items_of_the_largest_dot_products() -> None:
    model = _build()
    with torch.no_grad():
        users, items = model()
    corpus = ItemVectors.of(torch.arange(_ITEMS), items)
    searcher = ExactSearcher(corpus, Queries.of_rows(users, column=1))
    row = Batch(
        numeric=torch.zeros(1, 0),
        ids=torch.tensor([[99, 2]], dtype=torch.int32),
        labels=torch.zeros(1, 1),
        weights=torch.ones(1),
    )
    found = searcher.search(Request(user=row), 4)

    assert found.ids.tolist() == torch.topk(items @ users[2], 4).indices.tolist()
    assert found.trace.flops == 2 * _ITEMS * 4


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 6], [0, 1], "users must be numbers from 0 to 5, got 0 to 6"),
        ([0, 1], [-1, 1], "items must be numbers from 0 to 8, got -1 to 1"),
        ([], [], "users must be numbers from 0 to 5, got none"),
    ],
)
def test_numbers_out_of_range_are_refused(users: list[int], items: list[int], message: str) -> None:
    pair = (torch.tensor(numbers, dtype=torch.int64) for numbers in (users, items))
    with pytest.raises(DataError, match=message):
        LightGCN(LightGCNConfig(), *pair, num_users=_USERS, num_items=_ITEMS)


def test_no_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.num_layers: must be at least 1, got 0"):
        LightGCNConfig(num_layers=0)
