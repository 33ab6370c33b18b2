"""What a searcher finds for many users, as arrays that metrics read, with its mean cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.errors import DataError
from tamis.evaluation.retrieval import ItemLists
from tamis.retrieval.searcher import Request, Searcher

NOTHING = -1
"""Stands in lists that hold fewer items than were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Lists of U users, and what they cost."""

    ids: NDArray[np.int64]
    """(U, k), the best item first; ``NOTHING`` after the last one of a shorter list."""
    candidates: NDArray[np.int64]
    """(U,) items that could have been found: those of the corpus that are not masked."""
    mean_pairs: float
    """Scores of nodes and items, per request."""
    mean_flops: float
    """Floating-point operations, per request; modelled."""
    mean_bytes: float
    """Bytes of vectors and codes that were read, per request; modelled."""


def collect(
    searcher: Searcher,
    requests: Sequence[Request],
    k: int,
    *,
    masked: ItemLists,
) -> Collected:
    """Search for every user, leaving out what must not be found again.

    No index knows of users' histories, so as many more items are asked for as are masked, and the
    masked ones are dropped from the list.

    Args:
        searcher: Model and corpus.
        requests: One for each user.
        k: Items of a list.
        masked: Items of the corpus that each user must not get.

    Raises:
        DataError: There is no user, or requests and masks are not as many.
    """
    if not len(requests) == len(masked.lengths) >= 1:
        raise DataError(
            f"collect: there must be a user, and masked items for each, got {len(requests)} "
            f"requests and {len(masked.lengths)} masks."
        )
    lists, traces = [], []
    for request, hidden in zip(requests, masked.lists(), strict=True):
        found = searcher.search(request, k + len(hidden))
        ids = found.ids.cpu().numpy()
        kept = ids[~np.isin(ids, hidden)][:k]
        lists.append(np.pad(kept, (0, k - len(kept)), constant_values=NOTHING))
        traces.append((found.trace.pairs, found.trace.flops, found.trace.bytes))
    pairs, flops, read = np.mean(np.array(traces, np.float64), axis=0).tolist()
    return Collected(
        ids=np.array(lists, np.int64),
        candidates=searcher.num_items - masked.lengths,
        mean_pairs=pairs,
        mean_flops=flops,
        mean_bytes=read,
    )
