"""From a row of a retrieval table to searchers over a corpus, one for each width."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.data.batch import Batch, concatenate
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.loader import Loader
from tamis.data.public_sets.retrieval import same_category
from tamis.data.retrieval_task import StoredTask
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.hsnn import HSNN
from tamis.models.two_tower import TwoTower
from tamis.reproduce.retrieval.beams import measured_shares
from tamis.reproduce.retrieval.lightgcn import vectors_of
from tamis.retrieval.encoded import encoded_rows, pairs_by_features
from tamis.retrieval.exact import ExactSearcher, Queries
from tamis.retrieval.faiss_index import HNSW, FaissSearcher, IVFFlat
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.kmeans_tree import KMeansTree, NodeVectors
from tamis.retrieval.rerank import Reranker
from tamis.retrieval.search import BeamSearcher, Retriever
from tamis.retrieval.searcher import Request, Searcher
from tamis.retrieval.snapshot import IndexSnapshot
from tamis.training.predict import load_trained

RERANKED_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Candidates that are re-ranked, as shares of the corpus: up to as many as the widest beams score,
or the index would be compared with rivals that are given less."""
MAIN_RERANKED = 0.05
_READ_FOR_EACH = 4
_SHIFTED_AT_ONCE, _SHIFTED_BATCHES = 8192, 50
"""Twice 200,000 rows, whose 30,000 clicks in the market are known to half a percent in sum."""
PROBES = (1, 4, 16, 64, 256)
"""Lists of an inverted file that are read."""
MAIN_PROBES = 16
NODE_VECTORS: tuple[NodeVectors, ...] = ("mean", "member")
"""By what nodes of a tree of k-means may be scored; validation users choose."""
WIDTHS = (1, 2, 4)
"""Candidates that a walk through a graph of neighbours keeps, as multiples of the longest list that
is asked for, which it keeps in any case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A way to search at one width."""

    setting: str
    """Its width, in words."""
    searcher: Searcher
    """Ready to answer."""
    is_main: bool = False
    """Whether it stands for the row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The corpus and those who ask, as models read them."""

    spec: InputSpec
    """Inputs of all models."""
    corpus: list[tuple[Tensor, Batch]]
    """All items, some at a time, by their numbers."""
    requests: list[Request]
    """One for each user."""

    @classmethod
    def of(cls, task: StoredTask, encoders: Encoders, spec: InputSpec) -> "Prepared":
        """Encode a task."""
        return cls(
            spec=spec,
            corpus=list(encoded_rows(task.corpus, encoders, spec)),
            requests=encoded_requests(task, encoders, spec),
        )


def encoded_requests(task: StoredTask, encoders: Encoders, spec: InputSpec) -> list[Request]:
    """The users of a task, as models read them."""
    rows = [row for _, row in encoded_rows(task.requests, encoders, spec, batch_size=1)]
    if not task.has_pairs:
        return [Request(user=row) for row in rows]
    pairs = [_matches(spec, history, task.matched) for history in task.histories]
    return [Request(user=row, pairs=of_pair) for row, of_pair in zip(rows, pairs, strict=True)]


def popular_points(task: StoredTask) -> Iterator[Point]:
    """The items with most positives, for everybody."""
    counts = torch.from_numpy(task.positives).float().unsqueeze(1)
    everybody = Queries(encode=lambda users: torch.ones(users.num_rows, 1), flops=0)
    items = ItemVectors.of(torch.arange(task.num_items), counts)
    yield Point(setting="all", searcher=ExactSearcher(items, everybody), is_main=True)


def exact_points(run: Path, prepared: Prepared) -> Iterator[Point]:
    """Two towers, every item multiplied."""
    yield Point(setting="all", searcher=reference_searcher(run, prepared), is_main=True)


def reference_searcher(run: Path, prepared: Prepared) -> ExactSearcher:
    """What every other way is timed beside."""
    model, items = _two_tower(run, prepared)
    return ExactSearcher(items, model.queries())


def ann_points(run: Path, prepared: Prepared, *, longest: int) -> Iterator[Point]:
    """Two towers through Faiss: an inverted file and a graph, each from narrow to wide.

    Args:
        run: Run of two towers.
        prepared: Corpus and requests.
        longest: Items that are asked for at most.
    """
    model, items = _two_tower(run, prepared)
    queries, lists = model.queries(), num_lists(len(items.ids))
    for probes in PROBES:
        read = min(lists, probes)
        yield Point(
            setting=f"ivf, {read} of {lists} lists",
            searcher=FaissSearcher(items, queries, IVFFlat(lists=lists, probes=read)),
            is_main=probes == MAIN_PROBES,
        )
    for width in (longest * factor for factor in WIDTHS):
        searcher = FaissSearcher(items, queries, HNSW(search_width=width))
        yield Point(setting=f"hnsw, width {width}", searcher=searcher)


def lightgcn_points(run: Path, task: StoredTask, prepared: Prepared) -> Iterator[Point]:
    """LightGCN, every item multiplied."""
    of_users, items = vectors_of(run, task)
    # A row need not hold the user's number: in Sports users are known by their histories alone. So
    # it is the very row that asks which tells who asks.
    places = {id(request.user): place for place, request in enumerate(prepared.requests)}

    def encode(users: Batch) -> Tensor:
        return of_users[places[id(users)]].unsqueeze(0)

    searcher = ExactSearcher(items, Queries(encode=encode, flops=0))
    yield Point(setting="all", searcher=searcher, is_main=True)


def num_lists(num_items: int) -> int:
    """Lists of an inverted file over so many items, by Faiss' rule of thumb of 4 sqrt(V).

    Example:
        >>> num_lists(40_000)
        800
    """
    return max(1, min(num_items, round(4 * math.sqrt(num_items))))


def rerank_points(
    run: Path, reference: Path, prepared: Prepared, *, longest: int
) -> Iterator[Point]:
    """A network's order of what the two towers' inverted file finds.

    Args:
        run: Of a model without an index.
        reference: Run of two towers.
        prepared: Corpus and requests.
        longest: Items that are asked for at most, and so candidates at least.
    """
    model, vectors = _two_tower(reference, prepared)
    count = len(vectors.ids)
    lists = num_lists(count)
    queries = model.queries()
    network = _network(run)
    snapshot = IndexSnapshot.publish(network, prepared.corpus)
    own = ItemVectors.of(snapshot.members.ids, snapshot.members.vectors)
    widths = {share: min(count, max(longest, round(share * count))) for share in RERANKED_SHARES}
    for candidates in dict.fromkeys(widths.values()):
        # Lists that hold a few times as many items, or there were too few to choose from.
        probes = min(
            lists, max(MAIN_PROBES, math.ceil(_READ_FOR_EACH * lists * candidates / count))
        )
        first = FaissSearcher(vectors, queries, IVFFlat(lists=lists, probes=probes))
        yield Point(
            setting=f"ivf, {candidates} re-ranked",
            searcher=Reranker(first, network, own, num_candidates=candidates),
            is_main=candidates == widths[MAIN_RERANKED],
        )


def all_items_points(retriever: Retriever) -> Iterator[Point]:
    """Every item scored by a network without an index."""
    yield Point(setting="all", searcher=BeamSearcher(retriever=retriever, beams=()), is_main=True)


def beam_points(retriever: Retriever, *, chosen: float, whole_curve: bool) -> Iterator[Point]:
    """Beams of several widths through an index.

    Args:
        retriever: Model and index.
        chosen: The share of nodes that stands for the row; the others are its curve.
        whole_curve: Whether shares are measured that are wider than comparisons need.
    """
    for share in measured_shares(chosen, whole_curve=whole_curve):
        searcher = beam_searcher(retriever, share)
        yield Point(
            setting=f"beams {'-'.join(str(beam) for beam in searcher.beams)}",
            searcher=searcher,
            is_main=share == chosen,
        )


def beam_searcher(retriever: Retriever, share: float) -> BeamSearcher:
    """Search with beams that keep a share of the nodes."""
    beams = beams_of(retriever.snapshot.tree.num_nodes, share)
    return BeamSearcher(retriever=retriever, beams=beams)


def beams_of(num_nodes: tuple[int, ...], share: float) -> tuple[int, ...]:
    """A share of each level's nodes, so that of all levels together that share is left.

    Level n keeps ``share ** (n / L)`` of its nodes, as only children of what is kept are looked at.

    Example:
        >>> beams_of((100,), 0.25), beams_of((100, 1000), 0.25)
        ((25,), (50, 250))
    """
    levels = len(num_nodes)
    return tuple(
        max(1, round(share ** ((place + 1) / levels) * count))
        for place, count in enumerate(num_nodes)
    )


def published(run: Path, prepared: Prepared, dataset: Dataset) -> tuple[HSNN, IndexSnapshot]:
    """A trained network, shifted to rows that trained it, and the index of a corpus."""
    network = _shifted(run, dataset)
    return network, IndexSnapshot.publish(network, prepared.corpus)


def placed_by_content(
    retriever: Retriever, corpus: Sequence[tuple[Tensor, Batch]], chosen: NDArray[np.bool_]
) -> Retriever:
    """The index in which some items are as if they had been added today.

    An item that was never shown may have a row in the table of ids all the same, of rows that were
    drawn and that nobody labelled.

    Args:
        retriever: Model and index.
        corpus: All items, some at a time, by their numbers.
        chosen: (V,) which items are taken out and added again: at least one, and not all.
    """
    index = retriever.snapshot
    assert isinstance(index, IndexSnapshot)
    places = [torch.from_numpy(np.flatnonzero(chosen[ids.numpy()])) for ids, _ in corpus]
    ids = torch.cat([some[own] for (some, _), own in zip(corpus, places, strict=True)])
    items = concatenate(
        [some.take(own) for (_, some), own in zip(corpus, places, strict=True) if len(own)]
    )
    added = index.remove(ids).add(retriever.scorer, ids, items)
    return Retriever(retriever.scorer, added)


def over_kmeans(
    run: Path, prepared: Prepared, dataset: Dataset, *, seed: int
) -> dict[NodeVectors, Retriever]:
    """The same network over k-means of its item vectors, level by level as its own index.

    A node of each level is split into as many as the codebook of the next one has centres. By what
    its nodes are scored is left to the caller.
    """
    network = _shifted(run, dataset)
    branching = [len(centres) for centres in network.codebooks]
    tree = KMeansTree.build(network, prepared.corpus, branching, seed=seed)
    return {nodes: Retriever(network, replace(tree, nodes=nodes)) for nodes in NODE_VECTORS}


def shifting_rows(dataset: Dataset) -> tuple[list[Batch], list[Batch]]:
    """Shuffled rows that train: those that levels are shifted to, and others that tell how well."""
    trained = dataset.split("train")
    loader = Loader(trained, dataset.spec, batch_size=_SHIFTED_AT_ONCE, seed=0, prefetch=1)
    shifted, others = [], []
    for rows in itertools.islice(loader.epoch(0), _SHIFTED_BATCHES):
        places, middle = torch.arange(rows.num_rows), (rows.num_rows + 1) // 2
        shifted.append(rows.take(places[:middle]))
        others.append(rows.take(places[middle:]))
    return shifted, others


def use_one_thread() -> None:
    """Faiss has threads of its own, where it is installed."""
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(1)


def _two_tower(run: Path, prepared: Prepared) -> tuple[TwoTower, ItemVectors]:
    model = load_trained(run).module.eval()
    if not isinstance(model, TwoTower):
        raise ConfigError(f"{run}: must be a run of two_tower, got {type(model).__name__}.")
    return model, ItemVectors.encode(model, prepared.corpus)


def _shifted(run: Path, dataset: Dataset) -> HSNN:
    network = _network(run)
    network.shift_to(shifting_rows(dataset)[0])
    return network


def _network(run: Path) -> HSNN:
    model = load_trained(run).module.eval()
    if not isinstance(model, HSNN):
        raise ConfigError(f"{run}: must be a run of hsnn, got {type(model).__name__}.")
    return model


def _matches(
    spec: InputSpec, history: np.ndarray, matched: np.ndarray
) -> Callable[[Tensor], Batch]:
    """The one feature of pairs: how many of a user's last steps were in an item's category."""

    def features(items: Tensor) -> Tensor:
        return torch.from_numpy(same_category(history, matched[items.numpy()])).unsqueeze(1)

    return pairs_by_features(spec, features)
