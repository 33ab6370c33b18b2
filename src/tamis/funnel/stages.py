"""Stages without a model of the catalog: popularity, any scoring function, exact dot products."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tamis.errors import DataError
from tamis.funnel.candidates import Candidates, order_of_best
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored
from tamis.nn.precision import has_fast_int8
from tamis.retrieval.rounded_scan import RoundedScan, contenders

ScoringFunction = Callable[[Request, NDArray[np.int64]], NDArray[np.float64]]
"""Scores (n,) of n ads for a request."""


class Popularity:
    """Every ad by how often it was counted, the same for all requests."""

    def __init__(self, counts: NDArray[np.float64]) -> None:
        """Take the counts (N,) of all ads, such as clicks in the training rows."""
        self._counts = counts

    @classmethod
    def of_events(cls, ads: NDArray[np.int64], *, num_ads: int) -> "Popularity":
        """Count events: ``ads`` (n,) is the ad row of each."""
        return cls(np.bincount(ads, minlength=num_ads).astype(np.float64))

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """The count of each candidate. Nothing is computed, so no pair is counted as scored."""
        del request, keep
        scores = self._counts[candidates.ads]
        return Scored(candidates=Candidates(ads=candidates.ads, scores=scores))


class ScoredBy:
    """Candidates by the scores of a function, such as a booster or a model exported elsewhere."""

    def __init__(self, function: ScoringFunction, *, flops_per_pair: float | None = None) -> None:
        """Take the function, and the operations of one score where they are known."""
        self._function = function
        self._flops_per_pair = flops_per_pair

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """The function's score of each candidate."""
        del keep
        scores = np.asarray(self._function(request, candidates.ads), np.float64)
        return Scored(
            candidates=Candidates(ads=candidates.ads, scores=scores),
            scored_pairs=len(candidates),
            flops=flops_of(self._flops_per_pair, len(candidates)),
        )


_LEAST_CUT = 16
"""A search that keeps more than one in so many compares nearly all in float32 anyway."""


class DotProduct:
    """Exact retrieval: ``<query(request), item>``, plus an offset, of every candidate.

    Where products of 8 bits are fast, few are kept and most ads are candidates, a scan of rounded
    vectors leaves out whoever cannot be among the best, and float32 decides between the others: the
    best are those of float32 at a quarter of the reading.
    """

    def __init__(
        self,
        items: Float[Tensor, "N D"],
        query: Callable[[Request], Float[Tensor, " D"]],
        *,
        queries: Callable[[Sequence[Request]], Float[Tensor, "R D"]] | None = None,
        offsets: NDArray[np.float64] | None = None,
        query_flops: float = 0.0,
    ) -> None:
        """Take the vectors of all ads, and what makes the vector of a request.

        Args:
            items: A vector for each ad.
            query: Makes the vector of a request.
            queries: Makes those of several at once; None: one after another.
            offsets: (N,) added to the product of each ad, such as the logarithm of its bid; None
                adds nothing.
            query_flops: Operations of one query, for the trace.

        Raises:
            DataError: The vectors are no matrix, or there is not one offset for each.
        """
        if items.ndim != 2:
            raise DataError(
                f"DotProduct: items must be one vector for each ad, got shape {tuple(items.shape)}."
            )
        if offsets is not None and offsets.shape != (len(items),):
            raise DataError(
                f"DotProduct: offsets must be one for each of {len(items)} ads, got shape "
                f"{offsets.shape}."
            )
        self._items = items.detach()
        self._query = query
        self._queries = queries
        self._offsets = None if offsets is None else offsets.astype(np.float32)
        self._query_flops = query_flops
        self._all_ads = np.arange(len(items))
        self._scan: RoundedScan | None = None
        is_many = len(items) > 0 and items.shape[1] > 1 and items.dtype == torch.float32
        if is_many and has_fast_int8(items.device):
            self._scan = RoundedScan(self._items)

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """The best candidates by their dot product with the request's vector."""
        # Reading all vectors in order is cheaper than gathering most of them.
        if 2 * len(candidates) >= len(self._items):
            (scored,) = self.score_all([request], [candidates], keep)
            return scored
        # In one order, whatever theirs: a matrix product rounds a row by its place.
        ads = np.sort(candidates.ads)
        with torch.inference_mode():
            scores = self._scores(self._query(request).to(self._items), ads)
        return self._cut(request, ads, scores, keep, pairs=len(ads))

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """The best candidates of each: all ads' vectors are read once for all requests."""
        if any(2 * len(its) < len(self._items) for its in candidates):
            return [self(one, its, keep) for one, its in zip(requests, candidates, strict=True)]
        with torch.inference_mode():
            if self._queries is None:
                vectors = torch.stack([self._query(request) for request in requests])
            else:
                vectors = self._queries(requests)
            vectors = vectors.to(self._items)
            if self._scan is None or _LEAST_CUT * keep > len(self._items):
                scores = self._moved((vectors @ self._items.T).float().cpu().numpy())
                return [
                    self._best(one, its, row, keep)
                    for one, its, row in zip(requests, candidates, scores, strict=True)
                ]
            scores = self._moved(self._scan.products(vectors))
            return [
                self._best_of_scan(one, its, query, row, keep)
                for one, its, query, row in zip(requests, candidates, vectors, scores, strict=True)
            ]

    def _best_of_scan(
        self,
        request: Request,
        candidates: Candidates,
        query: Tensor,
        scores: NDArray[np.float32],
        keep: int,
    ) -> Scored:
        """The best candidates, given the scores (N,) of all ads that the scan saw."""
        assert self._scan is not None
        ads, seen = self._of(candidates, scores)
        places = contenders(seen, keep, error=self._scan.error(query))
        # Of scores that are all alike a scan leaves out too few for gathering the rest to pay.
        if places is None or 4 * len(places) > len(ads):
            exact = self._moved((self._items @ query).cpu().numpy())
            return self._best(request, candidates, exact, keep)
        chosen = ads[places]
        return self._cut(request, chosen, self._scores(query, chosen), keep, pairs=len(ads))

    def _best(
        self, request: Request, candidates: Candidates, scores: NDArray[Any], keep: int
    ) -> Scored:
        """The best candidates, given the scores (N,) of all ads."""
        ads, scores = self._of(candidates, scores)
        return self._cut(request, ads, scores, keep, pairs=len(ads))

    def _of(
        self, candidates: Candidates, scores: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Ads and scores of the candidates, in the order of the ads."""
        # Different ads, as many as there are, are all of them, in whatever order they stand.
        if len(candidates) == len(self._all_ads):
            return self._all_ads, scores
        ads = np.sort(candidates.ads)
        return ads, scores[ads]

    def _scores(self, query: Tensor, ads: NDArray[np.int64]) -> NDArray[Any]:
        """Scores of some ads, whose vectors are gathered."""
        rows = torch.from_numpy(ads).to(self._items.device)
        products = self._items.index_select(0, rows) @ query
        return self._moved(products.float().cpu().numpy(), ads)

    def _moved(
        self, products: NDArray[Any], ads: NDArray[np.int64] | slice = slice(None)
    ) -> NDArray[Any]:
        """Products of some ads or all, which nobody else holds, with their offsets added."""
        if self._offsets is not None:
            products += self._offsets[ads]
        return products

    def _cut(
        self,
        request: Request,
        ads: NDArray[np.int64],
        scores: NDArray[Any],
        keep: int,
        *,
        pairs: int,
    ) -> Scored:
        # Cut here, so that only what is kept is widened to float64.
        best = order_of_best(ads, scores, keep, seed=request.request_id)
        return Scored(
            candidates=Candidates(ads=ads[best], scores=scores[best].astype(np.float64)),
            scored_pairs=pairs,
            flops=self._query_flops + 2.0 * self._items.shape[1] * pairs,
        )


def flops_of(per_pair: float | None, pairs: int) -> float | None:
    """Operations of some pairs; None where those of one are not known."""
    return None if per_pair is None else per_pair * pairs
