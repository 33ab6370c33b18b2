"""Exact search by inner products: what every approximate index is measured against."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.search import best_places
from tamis.retrieval.searcher import (
    Found,
    LevelTrace,
    Request,
    Trace,
    check_one_user,
    tensor_bytes,
)

# Scores of a block of users: 64 MiB in float32.
_SCORES_AT_ONCE = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """From users to the vectors whose inner products with those of items are scores."""

    encode: Callable[[Batch], Tensor]
    """Vectors (B, W) of the users of a batch."""
    flops: int
    """Floating-point operations of one of them."""

    @classmethod
    def of_rows(cls, vectors: Float[Tensor, "U W"], *, column: int) -> "Queries":
        """Vectors that stand ready, one for each user.

        Args:
            vectors: Of the users, in the order of their numbers.
            column: Column of ``Batch.ids`` that holds a user's number.
        """
        return cls(encode=lambda users: vectors[users.ids[:, column].long()], flops=0)


class ExactSearcher:
    """Every item is scored; of equal scores the item with the least id wins.

    See :class:`tamis.retrieval.searcher.Searcher`.
    """

    def __init__(self, items: ItemVectors, queries: Queries) -> None:
        """Put vectors of items and of users together."""
        self.items, self.queries = items, queries

    @property
    def num_items(self) -> int:
        """Items of the corpus."""
        return len(self.items.ids)

    @property
    def index_bytes(self) -> int:
        """Vectors and ids."""
        return tensor_bytes((self.items.ids, self.items.vectors))

    def search(self, request: Request, k: int) -> Found:
        """The best k items."""
        check_one_user(request, k)
        ids, vectors = self.items.ids, self.items.vectors
        with torch.inference_mode():
            query = self.queries.encode(request.user)[0].float()
            scores = vectors @ query
            kept = best_places(scores, k)
            order = kept[torch.argsort(-scores.index_select(0, kept), stable=True)]
        level = LevelTrace(
            nodes=len(ids),
            pairs=len(ids),
            kept=len(order),
            flops=2 * vectors.numel(),
            bytes=tensor_bytes([vectors]),
        )
        return Found(
            ids=ids[order],
            scores=scores[order],
            trace=Trace(levels=(level,), user_flops=self.queries.flops),
        )


def exact_top_k(
    queries: Float[Tensor, "B W"],
    items: Float[Tensor, "V W"],
    k: int,
    *,
    masked: tuple[Int[Tensor, " M"], Int[Tensor, " M"]] | None = None,
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """The best k items of many users at once, by blocks of one matrix product each.

    Args:
        queries: A vector for each user.
        items: A vector for each item.
        k: Items to find, at most V.
        masked: Rows of ``queries``, ascending, and places of items that they must not get.

    Returns:
        Scores in descending order, and places of items. Of equal scores any may come first. Where
        a user has fewer than k items left, the score is minus infinity.

    Example:
        >>> scores, places = exact_top_k(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 0.5]]), 1)
        >>> places.flatten().tolist()
        [1, 0]
    """
    block = max(1, _SCORES_AT_ONCE // max(1, len(items)))
    scores, places = [], []
    for start in range(0, len(queries), block):
        part = queries[start : start + block] @ items.T
        if masked is not None:
            rows, columns = masked
            bounds = torch.tensor([start, start + len(part)], device=rows.device)
            first, last = torch.searchsorted(rows.contiguous(), bounds).tolist()
            part[rows[first:last] - start, columns[first:last]] = -torch.inf
        best = torch.topk(part, min(k, len(items)), dim=1)
        scores.append(best.values)
        places.append(best.indices)
    if not scores:
        width = min(k, len(items))
        empty = torch.zeros(0, width, dtype=torch.int64, device=queries.device)
        return queries.new_zeros(0, width), empty
    return torch.cat(scores), torch.cat(places)
