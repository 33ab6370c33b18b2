"""Exact search that reads every vector once, at a quarter of its width."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int8
from numpy.typing import NDArray
from torch import Tensor

_LARGEST = 127
"""Largest whole number that a coordinate is rounded to."""
_ROUNDOFF = 2.0**-24
"""Unit roundoff of float32: half the gap between 1 and the next number."""
_ROUNDED_AT_ONCE = 1 << 16
"""Vectors that are rounded at a time, which takes twice the room of what they were."""
_SAMPLED = 16
"""One score in so many is looked at first."""


class RoundedScan:
    """Items that may be among the best of their dot products with a query, from rounded vectors.

    Reading all vectors is most of the cost of an exact search, and 8 bits for each coordinate
    quarter it: whole multiples of a step, which is 1/127 of the vector's largest coordinate.
    Products of whole numbers have no error where :func:`tamis.nn.precision.has_fast_int8`; what
    rounding lost moves no product by more than a bound. Whoever is further below the best can be
    left out, and the few that remain are to be compared in float32. So the answer is that of
    float32. One vector much longer than the others widens the bound of all.
    """

    def __init__(self, items: Float[Tensor, "N D"]) -> None:
        """Round the vectors of all items, which are float32; memory grows by a quarter of theirs.

        A vector that is not finite makes every error infinite or NaN. Vectors of one coordinate
        have no order worth a scan, and PyTorch 2.13 multiplies their whole numbers wrongly.
        """
        assert len(items) > 0
        assert items.shape[1] > 1
        self._steps = items.new_empty(len(items))
        self._codes = torch.empty(items.shape, dtype=torch.int8, device=items.device)
        longest, lost = [], []
        for first in range(0, len(items), _ROUNDED_AT_ONCE):
            rows = slice(first, first + _ROUNDED_AT_ONCE)
            part = items[rows]
            codes, steps = _rounded(part)
            self._codes[rows], self._steps[rows] = codes, steps
            longest.append(_lengths(part).max())
            lost.append(_lengths(part - codes * steps.unsqueeze(1)).max())
        self._longest = float(torch.stack(longest).max())
        self._lost = float(torch.stack(lost).max())

    def products(self, queries: Float[Tensor, "R D"]) -> NDArray[np.float32]:
        """Products (R, N), each off by :meth:`error` at most."""
        codes, steps = _rounded(queries)
        # Items first: the product of few queries and the transposed items takes twice as long.
        whole = torch._int_mm(self._codes, codes.T)
        # The scores of a query side by side: whoever looks through them reads nothing else.
        products = torch.empty(whole.T.shape, device=whole.device).copy_(whole.T)
        # One after the other: the product of two tiny steps would lose its digits.
        products.mul_(self._steps).mul_(steps.unsqueeze(1))
        found: NDArray[np.float32] = products.cpu().numpy()
        return found

    def error(self, query: Float[Tensor, " D"]) -> float:
        """How far a product may be from that of the vectors as they are.

        An item x is rounded to x + e and a query q to q + f, so their product moves by
        ``<e, q> + <x + e, f>``, which Cauchy and Schwarz bound by the lengths. The rest is what
        float32 rounds here and in the product that this one is compared with.
        """
        codes, steps = _rounded(query.unsqueeze(0))
        length = float(_lengths(query))
        lost = float(_lengths(query - codes[0] * steps))
        by_rounding = self._lost * length + (self._longest + self._lost) * lost
        in_float32 = 2.0 * (len(query) + 8) * _ROUNDOFF * self._longest * length
        return by_rounding + in_float32


def _rounded(vectors: Float[Tensor, "R D"]) -> tuple[Int8[Tensor, "R D"], Float[Tensor, " R"]]:
    """Whole numbers, and the step of each vector that they count."""
    smallest = torch.finfo(vectors.dtype).tiny  # a vector of zeros has steps of any size
    steps = (vectors.abs().amax(1) / _LARGEST).clamp_min(smallest)
    return (vectors / steps.unsqueeze(1)).round_().to(torch.int8), steps


def _lengths(vectors: Float[Tensor, "*R D"]) -> Float64[Tensor, "*R"]:
    # Squares of small numbers would vanish in float32, and with them the bound.
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)


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
    least -= 4.0 * _ROUNDOFF * (abs(last) + 2.0 * error)
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
