"""A sample of the candidates that the early stage turned away, for the final stage to score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RejectedSample:
    """Rows that were drawn, and how likely each was."""

    rows: NDArray[np.int64]
    """(m,) numbers of the rows, increasing."""
    sampling_rate: NDArray[np.float64]
    """(m,) in (0, 1]. In every request the sum of 1 / rate is the number of rejected."""


def sample_rejected(
    request: NDArray[np.int64],
    early_rank: NDArray[np.int64],
    *,
    num_kept: int,
    per_request: int,
    seed: int,
) -> RejectedSample:
    """Draw rejected candidates of each request, half of them just below the cut.

    The first half of two or more, rounded up, is those that come next after what was kept: where
    the early stage's mistakes cost most, and the only ones that a small change of it would let
    through. The rest is drawn uniformly from all further down, or a single one from all of them.

    Args:
        request: (n,) request of each candidate.
        early_rank: (n,) place in the early stage's order of its request, from 0.
        num_kept: Candidates K that the early stage keeps of each request.
        per_request: Candidates to draw from each request; all where there are no more.
        seed: Decides the draw.

    Returns:
        The sample.

    Raises:
        DataError: A number is out of range, or two candidates of a request have one rank.

    Source:
        Early-stage multi-task ranking, arXiv:2307.11096, states that most candidates have no
        impression; stratified draws are those of Horvitz and Thompson, JASA 1952.

    Differs from the source:
        The paper does not say which of the candidates without impression it trains on.
    """
    if num_kept < 1 or per_request < 1:
        raise DataError(
            f"sample of rejected: num_kept and per_request must be at least 1, got {num_kept} and "
            f"{per_request}."
        )
    if request.shape != early_rank.shape:
        raise DataError(
            f"sample of rejected: request and early_rank must be columns of one length, got shapes "
            f"{request.shape} and {early_rank.shape}."
        )
    _check_ranks(request, early_rank)
    # A single draw just below the cut would leave the others without a chance.
    num_near = (per_request + 1) // 2 if per_request > 1 else 0
    num_far = per_request - num_near
    near = np.flatnonzero((early_rank >= num_kept) & (early_rank < num_kept + num_near))
    far = np.flatnonzero(early_rank >= num_kept + num_near)
    # A random order within each request, of which the first few are the draw.
    keys = np.random.default_rng(seed).random(far.size)
    far = far[np.lexsort((keys, request[far]))]
    _, starts, sizes = np.unique(request[far], return_index=True, return_counts=True)
    place = np.arange(far.size) - np.repeat(starts, sizes)
    drawn = place < num_far
    rate = np.minimum(1.0, num_far / np.repeat(sizes, sizes))
    rows = np.concatenate([near, far[drawn]])
    rates = np.concatenate([np.ones(near.size), rate[drawn]])
    order = np.argsort(rows)
    return RejectedSample(rows=rows[order], sampling_rate=rates[order])


def _check_ranks(request: NDArray[np.int64], early_rank: NDArray[np.int64]) -> None:
    order = np.lexsort((early_rank, request))
    request, rank = request[order], early_rank[order]
    twice = (request[1:] == request[:-1]) & (rank[1:] == rank[:-1])
    wrong = np.flatnonzero(rank < 0) if (rank < 0).any() else np.flatnonzero(twice)
    if wrong.size:
        place = int(wrong[0])
        raise DataError(
            f"sample of rejected: ranks of a request must differ and count from 0, got "
            f"{rank[place]} in request {request[place]}. Rank with ties broken at random."
        )
