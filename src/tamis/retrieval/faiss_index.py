"""Faiss indexes over item vectors, behind the same call as every other searcher.

Faiss is an optional extra and is imported where an index is built. It computes with the threads
that whoever starts the process has set (``faiss.omp_set_num_threads``).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tamis.errors import ConfigError
from tamis.retrieval.exact import Queries
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.searcher import Found, LevelTrace, Request, Trace, check_one_user

_FLOAT_BYTES = 4
_CODEWORDS = 256  # one byte for each part of a vector


@dataclass(frozen=True, kw_only=True, slots=True)
class IVFFlat:
    """Items in the lists of k-means centres; the nearest lists are read whole."""

    lists: int
    """Centres."""
    probes: int
    """Lists that a search reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IVFPQ:
    """As :class:`IVFFlat`, with a byte for each part of what a vector is away from its centre."""

    lists: int
    """Centres."""
    probes: int
    """Lists that a search reads."""
    parts: int
    """Parts of a vector, whose width they divide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HNSW:
    """A graph of neighbours, walked from coarse layers to fine ones."""

    links: int = 32
    """Neighbours of an item; twice as many in the finest layer."""
    build_width: int = 100
    """Candidates that are looked at to place an item."""
    search_width: int = 64
    """Candidates that a search keeps; at least as many as items are asked for are kept anyway."""


class FaissSearcher:
    """Items with the largest inner products, by an index of Faiss.

    Scores of ``IVFPQ`` are those of the compressed vectors. See
    :class:`tamis.retrieval.searcher.Searcher`.

    Source:
        Douze et al., The Faiss library, arXiv:2401.08281; Jégou et al., Product Quantization for
        Nearest Neighbor Search, TPAMI 2011; Malkov and Yashunin, HNSW, TPAMI 2020.

    Differs from the source:
        Nothing known: the indexes are Faiss' own. Distances of ``HNSW`` are those that Faiss counts
        for the whole process, so that searches of two threads at once mix their traces.
    """

    def __init__(
        self, items: ItemVectors, queries: Queries, settings: IVFFlat | IVFPQ | HNSW
    ) -> None:
        """Build the index.

        Args:
            items: Vectors of the corpus.
            queries: Vectors of users.
            settings: Kind and sizes of the index.

        Raises:
            ConfigError: Faiss is not installed, or a size does not fit the corpus.
        """
        self._faiss = _imported_faiss()
        self.items, self.queries, self.settings = items, queries, settings
        _check_sizes(settings, *items.vectors.shape)
        self._index = _built(self._faiss, items.vectors, settings)
        self._index_bytes = int(self._faiss.serialize_index(self._index).nbytes)

    @property
    def num_items(self) -> int:
        """Items of the corpus."""
        return len(self.items.ids)

    @property
    def index_bytes(self) -> int:
        """The index as Faiss writes it, and our ids."""
        return self._index_bytes + self.items.ids.numel() * self.items.ids.element_size()

    def search(self, request: Request, k: int) -> Found:
        """The best k items that the index reaches."""
        check_one_user(request, k)
        with torch.inference_mode():
            vector = self.queries.encode(request.user).float().cpu().contiguous()
        count = min(k, self.num_items)
        if isinstance(self.settings, HNSW):
            scores, places, levels = self._walk(vector, count)
            tables = 0
        else:
            scores, places, levels = self._probe(vector, count)
            # A product with every codeword of every part, once per request.
            tables = 2 * _CODEWORDS * vector.shape[1] if isinstance(self.settings, IVFPQ) else 0
        reached = places >= 0
        ids = self.items.ids[places[reached].to(self.items.ids.device)]
        levels[-1] = replace(levels[-1], kept=len(ids))
        trace = Trace(levels=tuple(levels), user_flops=self.queries.flops + tables)
        return Found(ids=ids, scores=scores[reached], trace=trace)

    def _probe(self, vector: Tensor, k: int) -> tuple[Tensor, Tensor, list[LevelTrace]]:
        """Search the nearest lists, which are found here so that their items can be counted."""
        assert not isinstance(self.settings, HNSW)
        index, width = self._index, vector.shape[1]
        query = vector.numpy()
        nearness, lists = index.quantizer.search(query, self.settings.probes)
        scores, places = index.search_preassigned(query, k, lists, nearness)
        read = sum(index.invlists.list_size(int(at)) for at in lists[0])
        # A flat list multiplies whole vectors; compressed ones add a table's entry for each part.
        is_flat = isinstance(self.settings, IVFFlat)
        flops, size = (2 * width, width * _FLOAT_BYTES) if is_flat else (index.pq.M, index.pq.M)
        levels = [
            LevelTrace(
                nodes=self.settings.lists,
                pairs=self.settings.lists,
                kept=self.settings.probes,
                flops=self.settings.lists * 2 * width,
                bytes=self.settings.lists * width * _FLOAT_BYTES,
            ),
            LevelTrace(
                nodes=self.num_items, pairs=read, kept=k, flops=read * flops, bytes=read * size
            ),
        ]
        return torch.from_numpy(scores[0]), torch.from_numpy(places[0]), levels

    def _walk(self, vector: Tensor, k: int) -> tuple[Tensor, Tensor, list[LevelTrace]]:
        statistics, width = self._faiss.cvar.hnsw_stats, vector.shape[1]
        statistics.reset()
        scores, places = self._index.search(vector.numpy(), k)
        read = int(statistics.ndis)
        level = LevelTrace(
            nodes=self.num_items,
            pairs=read,
            kept=k,
            flops=read * 2 * width,
            bytes=read * width * _FLOAT_BYTES,
        )
        return torch.from_numpy(scores[0]), torch.from_numpy(places[0]), [level]


def _imported_faiss() -> Any:  # noqa: ANN401  (a module without types)
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "faiss: must be installed for this index, got no such package. Run "
            "pip install '.[index]' in the checkout of tamis."
        ) from error
    return faiss


def _check_sizes(settings: IVFFlat | IVFPQ | HNSW, num_items: int, width: int) -> None:
    if isinstance(settings, HNSW):
        # A graph of one link per item falls apart.
        if settings.links < 2 or min(settings.build_width, settings.search_width) < 1:
            raise ConfigError(f"faiss: links must be at least 2 and widths 1, got {settings}.")
        return
    if not 1 <= settings.probes <= settings.lists <= num_items:
        raise ConfigError(
            f"faiss: probes must be at least 1, lists as many or more, and items again, got "
            f"probes={settings.probes}, lists={settings.lists} and {num_items} items."
        )
    if isinstance(settings, IVFPQ):
        if settings.parts < 1 or width % settings.parts:
            raise ConfigError(
                f"faiss: parts must divide the width of a vector, {width}, got {settings.parts}."
            )
        if num_items < _CODEWORDS:
            raise ConfigError(
                f"faiss: a compressed index needs {_CODEWORDS} items to learn its codes from, got "
                f"{num_items}. Use IVFFlat."
            )


def _built(faiss: Any, vectors: Tensor, settings: IVFFlat | IVFPQ | HNSW) -> Any:  # noqa: ANN401
    array, width = vectors.cpu().contiguous().numpy(), vectors.shape[1]
    metric = faiss.METRIC_INNER_PRODUCT
    if isinstance(settings, HNSW):
        graph = faiss.IndexHNSWFlat(width, settings.links, metric)
        graph.hnsw.efConstruction = settings.build_width
        graph.hnsw.efSearch = settings.search_width
        graph.add(array)
        return graph
    quantizer = faiss.IndexFlatIP(width)
    if isinstance(settings, IVFFlat):
        index = faiss.IndexIVFFlat(quantizer, width, settings.lists, metric)
    else:
        index = faiss.IndexIVFPQ(quantizer, width, settings.lists, settings.parts, 8, metric)
        index.pq.cp.min_points_per_centroid = 1
    index.cp.min_points_per_centroid = 1  # few items for each centre are the caller's choice
    index.nprobe = settings.probes
    index.train(array)
    index.add(array)
    return index
