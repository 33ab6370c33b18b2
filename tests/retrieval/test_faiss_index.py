"""Faiss behind the searchers' protocol: exact where it reads everything, and an honest trace."""

import sys

import pytest
import torch
from torch import Tensor

from tamis.data.batch import Batch
from tamis.errors import ConfigError
from tamis.retrieval.exact import ExactSearcher, Queries
from tamis.retrieval.faiss_index import HNSW, IVFPQ, FaissSearcher, IVFFlat
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.searcher import Request, Searcher

_ITEMS, _WIDTH = 600, 16
_QUERIES = Queries(encode=lambda users: users.numeric, flops=3)
_ALL = (
    IVFFlat(lists=20, probes=5),
    IVFPQ(lists=20, probes=5, parts=8),
    HNSW(links=8, build_width=40, search_width=30),
)


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed: pip install '.[index]'")


@pytest.fixture(scope="module")
def items() -> ItemVectors:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(_ITEMS, _WIDTH, generator=generator)
    return ItemVectors.of(torch.randperm(_ITEMS, generator=generator) * 3 + 5, vectors)


def _request(user: int) -> Request:
    vector = torch.randn(1, _WIDTH, generator=torch.Generator().manual_seed(100 + user))
    row = Batch(
        numeric=vector,
        ids=torch.zeros(1, 0, dtype=torch.int32),
        labels=torch.zeros(1, 1),
        weights=torch.ones(1),
    )
    return Request(user=row)


def _recall(searcher: FaissSearcher, items: ItemVectors) -> float:
    exact = ExactSearcher(items, _QUERIES)
    hits = 0
    for user in range(20):
        best = exact.search(_request(user), 10).ids
        hits += int(torch.isin(searcher.search(_request(user), 10).ids, best).sum())
    return hits / 200


@pytest.mark.parametrize(
    "settings",
    [IVFFlat(lists=20, probes=20), HNSW(links=16, build_width=200, search_width=_ITEMS)],
    ids=["ivf", "hnsw"],
)
def test_index_that_reads_everything_is_exact(items: ItemVectors, settings: object) -> None:
    searcher, exact = FaissSearcher(items, _QUERIES, settings), ExactSearcher(items, _QUERIES)
    for user in range(10):
        found, best = (one.search(_request(user), 25) for one in (searcher, exact))

        assert found.ids.tolist() == best.ids.tolist()
        torch.testing.assert_close(found.scores, best.scores)
        assert found.trace.levels[-1].pairs >= (_ITEMS if isinstance(settings, IVFFlat) else 25)


def test_recall_grows_with_what_is_read(items: ItemVectors) -> None:
    recalls = [
        _recall(FaissSearcher(items, _QUERIES, IVFFlat(lists=20, probes=probes)), items)
        for probes in (1, 4, 20)
    ]
    assert recalls == sorted(set(recalls))
    assert recalls[-1] == 1.0
    walks = [
        _recall(FaissSearcher(items, _QUERIES, HNSW(links=4, search_width=width)), items)
        for width in (10, 200)
    ]
    assert walks[0] < walks[1]


def test_compressed_index_finds_most_of_what_it_reads(items: ItemVectors) -> None:
    coarse, fine = (
        _recall(FaissSearcher(items, _QUERIES, IVFPQ(lists=4, probes=4, parts=parts)), items)
        for parts in (2, 16)
    )

    # A byte for each of 16 numbers loses little of a vector of 16 numbers; two bytes do.
    assert fine > 0.9
    assert coarse < fine


def _list_sizes(searcher: FaissSearcher, vector: Tensor, items: ItemVectors) -> tuple[int, int]:
    """Items in the lists whose centres are nearest, list by list, from the index's own content."""
    import faiss

    index = searcher._index
    centres = torch.from_numpy(index.quantizer.reconstruct_n(0, index.nlist))
    nearest = torch.topk(centres @ vector, searcher.settings.probes).indices.tolist()
    held = [
        faiss.rev_swig_ptr(index.invlists.get_ids(at), index.invlists.list_size(at)).tolist()
        for at in nearest
    ]
    return len({place for ids in held for place in ids}), len(items.ids)


def test_trace_counts_centres_and_the_items_of_the_lists_that_are_read(items: ItemVectors) -> None:
    flat = FaissSearcher(items, _QUERIES, _ALL[0])
    request = _request(0)
    trace = flat.search(request, 7).trace
    read, total = _list_sizes(flat, request.user.numeric[0], items)

    assert 0 < read < total
    assert [(level.nodes, level.pairs, level.kept) for level in trace.levels] == [
        (20, 20, 5),
        (_ITEMS, read, 7),
    ]
    assert trace.flops == 3 + 2 * _WIDTH * (20 + read)
    assert trace.bytes == 4 * _WIDTH * (20 + read)
    compressed = FaissSearcher(items, _QUERIES, _ALL[1]).search(request, 7).trace
    read = compressed.levels[1].pairs
    # A table of 256 codewords for each part, then an addition and a byte for each part.
    assert compressed.flops == 3 + 2 * 256 * _WIDTH + 2 * _WIDTH * 20 + 8 * read
    assert compressed.levels[1].bytes == 8 * read


def test_trace_of_a_graph_grows_with_its_width(items: ItemVectors) -> None:
    pairs = [
        FaissSearcher(items, _QUERIES, HNSW(links=8, search_width=width))
        .search(_request(0), 5)
        .trace.pairs
        for width in (5, 50, 400)
    ]

    assert pairs == sorted(set(pairs))
    assert pairs[0] >= 5
    # A vertex may be compared once in each layer: hardly more often than there are items.
    assert pairs[-1] < 1.3 * _ITEMS


@pytest.mark.parametrize("settings", _ALL, ids=["ivf", "pq", "hnsw"])
def test_each_is_a_searcher_whose_index_takes_memory(items: ItemVectors, settings: object) -> None:
    searcher = FaissSearcher(items, _QUERIES, settings)
    found = searcher.search(_request(1), 5000)

    assert isinstance(searcher, Searcher)
    assert searcher.num_items == _ITEMS
    assert 0 < len(found.ids) <= _ITEMS
    assert torch.isin(found.ids, items.ids).all()
    assert len(found.ids.unique()) == len(found.ids) == found.trace.levels[-1].kept
    flat = _ITEMS * _WIDTH * 4
    assert (searcher.index_bytes < flat) == isinstance(settings, IVFPQ)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        searcher.search(_request(1), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (IVFFlat(lists=10, probes=11), "got probes=11, lists=10 and 600 items"),
        (IVFFlat(lists=601, probes=1), "got probes=1, lists=601 and 600 items"),
        (IVFPQ(lists=4, probes=1, parts=5), "must divide the width of a vector, 16, got 5"),
        (HNSW(links=1), "links must be at least 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    items: ItemVectors, settings: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        FaissSearcher(items, _QUERIES, settings)


def test_too_few_items_for_codes_are_refused() -> None:
    items = ItemVectors.of(torch.arange(100), torch.randn(100, 4))
    with pytest.raises(ConfigError, match="needs 256 items to learn its codes from, got 100"):
        FaissSearcher(items, _QUERIES, IVFPQ(lists=2, probes=1, parts=2))


def test_missing_package_is_named_with_the_install_line(
    items: ItemVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)

    with pytest.raises(ConfigError, match=r"pip install '\.\[index\]'"):
        FaissSearcher(items, _QUERIES, IVFFlat(lists=2, probes=1))
