"""Exact search that reads every vector once, at half its width."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

# Unit roundoffs: half the gap between 1 and the next number of the type.
_ROUNDOFF_16, _ROUNDOFF_32 = 2.0**-8, 2.0**-24
_FEW = 4
"""Fewer queries than these are as slow."""
_SAMPLED = 16
"""One score in so many is looked at first."""


class RoundedScan:
    """Items that may be among the best of their dot products with a query, from rounded vectors.

    Reading all vectors is most of the cost of an exact search, and bfloat16 halves it. Rounding
    moves no product by more than a bound; whoever is further below the best can be left out, and
    the few that remain are to be compared in float32. So the answer is that of float32.
    """

    def __init__(self, items: Float[Tensor, "N D"]) -> None:
        """Round the vectors of all items, which are float32; memory grows by half of theirs."""
        self._rounded = items.to(torch.bfloat16)
        self._longest = float(torch.linalg.vector_norm(items, dim=1).max())

    def products(self, queries: Float[Tensor, "R D"]) -> NDArray[np.float32]:
        """Products (R, N), each off by :meth:`error` at most."""
        # Items first: the product of few queries and the transposed items takes twice as long. And
        # not one query alone, whose product takes longer than that of a few.
        padded = F.pad(queries.to(torch.bfloat16), (0, 0, 0, max(0, _FEW - len(queries))))
        by_query = F.linear(self._rounded, padded).T[: len(queries)]
        products = torch.empty(by_query.shape, device=by_query.device).copy_(by_query)
        found: NDArray[np.float32] = products.cpu().numpy()
        return found

    def error(self, query: Float[Tensor, " D"]) -> float:
        """How far a product may be from that of the vectors as they are.

        Both factors and the product are rounded to 8 bits, sums are rounded to 24; by
        Cauchy-Schwarz no sum of absolute products is larger than the product of the lengths.
        """
        relative = (
            3.0 * _ROUNDOFF_16 + 3.0 * _ROUNDOFF_16**2 + 2.0 * (len(query) + 2) * _ROUNDOFF_32
        )
        return relative * self._longest * float(torch.linalg.vector_norm(query))


def contenders(scores: NDArray[np.float32], keep: int, *, error: float) -> NDArray[np.int64] | None:
    """Places of all that can be among the best, though each score may be off.

    Args:
        scores: (N,) each within ``error`` of the true one.
        keep: How many are the best, less than N and at least 1.
        error: Not negative.

    Returns:
        Places in rising order, at least ``keep``; None where the scores say nothing, as one that
        matters is not finite.
    """
    # As many as `keep` score at least this, so that the last of the best scores no less than this
    # less `error`; and whoever truly scores that is seen at another `error` below at the lowest.
    guess, likely = _likely_best(scores, keep)
    of_likely = scores[likely]
    last = float(np.partition(of_likely, len(likely) - keep)[len(likely) - keep])
    least = last - 2.0 * error
    if not np.isfinite(least):
        return None
    # Offsets were added in float32, and this is compared in it.
    least -= 4.0 * _ROUNDOFF_32 * (abs(last) + 2.0 * error)
    if least >= guess:
        return likely[of_likely >= np.float32(least)]
    return np.flatnonzero(scores >= np.float32(least))


def _likely_best(scores: NDArray[np.float32], keep: int) -> tuple[float, NDArray[np.int64]]:
    """A score, and places of all that reach it: at least ``keep``, and seldom thrice as many.

    NaN, which may be anything, reaches it. A sample tells the score, so that few are left to sort.
    """
    sample = scores[::_SAMPLED]
    rank = 2 * keep // _SAMPLED + _SAMPLED
    if 2 * rank < len(sample):
        guess = np.partition(sample, len(sample) - rank)[len(sample) - rank]
        likely = np.flatnonzero(~(scores < guess))
        if len(likely) >= keep:
            return float(guess), likely
    return -np.inf, np.arange(len(scores))
