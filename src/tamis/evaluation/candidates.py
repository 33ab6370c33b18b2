"""Candidates of many requests, ordered by what they are worth and by how a stage scores them.

Requests have different numbers of candidates; their lists lie one after the other, with offsets.
The metrics next door (``cascade.py``, ``rank_agreement.py``) read from these orders.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.rows import number_column, refuse


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankedCandidates:
    """R requests with N candidates in all, made by :func:`rank_candidates`.

    A *slot* is one of the N places that the lists have together; slot ``offsets[i] + j`` is place
    j of request i, from 0 for the best.
    """

    offsets: NDArray[np.int64]
    """(R + 1,) first slot of each request, and N."""
    value: NDArray[np.float64]
    """(N,) total value of each candidate by the final stage."""
    score: NDArray[np.float64]
    """(N,) what the judged stage orders by, such as its own estimate of the total value."""
    request: NDArray[np.int64]
    """(N,) number of the request of each slot, and of each candidate."""
    place: NDArray[np.int64]
    """(N,) place of each slot in its list, from 0."""
    by_value: NDArray[np.int64]
    """(N,) candidate at each slot when the most valuable come first."""
    by_score: NDArray[np.int64]
    """(N,) candidate at each slot when the highest scores come first; ties in no order."""
    tie: NDArray[np.int64]
    """(N,) number of the run of equal scores, over all requests, that each slot of ``by_score``
    belongs to."""

    @property
    def requests(self) -> int:
        """Number of requests."""
        return int(self.offsets.size - 1)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Candidates (R,) of each request."""
        return np.diff(self.offsets)

    @property
    def request_value(self) -> NDArray[np.float64]:
        """What each request (R,) is worth: the sum of its candidates' values above 0.

        The usual weight for a second figure beside the plain mean over requests.
        """
        return self.sums(np.maximum(self.value, 0.0))

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums by request.

        Args:
            values: (N,) one number per slot or candidate.

        Returns:
            (R,) sums.
        """
        total: NDArray[np.float64] = np.add.reduceat(values, self.offsets[:-1])
        return total

    def expected_by_place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What stands at each place of the score order, on average over all orders of ties.

        Candidates of equal score may come in any order, each equally likely, so that each of
        their places holds the mean of them.

        Args:
            values: (N,) one number per candidate.

        Returns:
            (N,) expected number per slot.
        """
        placed = values[self.by_score]
        starts = np.flatnonzero(np.diff(self.tie, prepend=-1))
        if starts.size == placed.size:
            return placed
        count = np.diff(starts, append=placed.size)
        # Held between the extremes, so that the mean of equal numbers is that number to the bit.
        mean = np.clip(
            np.add.reduceat(placed, starts) / count,
            np.minimum.reduceat(placed, starts),
            np.maximum.reduceat(placed, starts),
        )
        expected: NDArray[np.float64] = mean[self.tie]
        return expected


def rank_candidates(
    offsets: ArrayLike, value: ArrayLike, score: ArrayLike, *, request: ArrayLike | None = None
) -> RankedCandidates:
    """Orders the candidates of every request by value and by score.

    Pass all candidates that retrieval gave, not those that a stage let through: a set chosen by
    the judged stage cannot show what that stage lost.

    Args:
        offsets: (R + 1,) first candidate of each request, from 0, and at the end N. Every request
            has a candidate.
        value: (N,) total value by the final stage, finite.
        score: (N,) score by the judged stage, finite.
        request: (N,) id of each candidate's request. When given, each list must hold one id that
            no other list has: a batch of rows of several requests is not a list.

    Returns:
        The ordered candidates.

    Raises:
        DataError: The lists do not fit together, or a number is not finite.
    """
    bounds = _bounds(offsets)
    size = int(bounds[-1])
    worth = number_column("values", value, size=size, like="candidates of the offsets")
    scored = number_column("scores", score, size=size, like="candidates of the offsets")
    refuse("values", "finite", worth, ~np.isfinite(worth))
    refuse("scores", "finite", scored, ~np.isfinite(scored))
    if request is not None:
        _require_single_requests(bounds, np.asarray(request))
    sizes = np.diff(bounds)
    code = np.repeat(np.arange(sizes.size), sizes)
    by_score = _descending(code, scored)
    ordered = scored[by_score]
    is_new = np.ones(size, dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]) | (code[1:] != code[:-1])
    return RankedCandidates(
        offsets=bounds,
        value=worth,
        score=scored,
        request=code,
        place=np.arange(size) - bounds[:-1][code],
        by_value=_descending(code, worth),
        by_score=by_score,
        tie=np.cumsum(is_new) - 1,
    )


def request_offsets(request: ArrayLike) -> NDArray[np.int64]:
    """Offsets of lists whose candidates lie together, from the request id of each candidate.

    Args:
        request: (N,) ids, integers or strings.

    Returns:
        (R + 1,) offsets for :func:`rank_candidates`.

    Raises:
        DataError: There is no candidate, or a request's candidates do not lie together.

    Example:
        >>> request_offsets(["a", "a", "b"]).tolist()
        [0, 2, 3]
    """
    ids = np.asarray(request)
    if ids.ndim != 1 or ids.size == 0:
        raise DataError(
            f"request_offsets: there must be one id per candidate, got shape {ids.shape}. "
            "Pass the column of request ids."
        )
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    bounds = np.append(starts, ids.size)
    _require_single_requests(bounds, ids)
    return bounds


def _bounds(offsets: ArrayLike) -> NDArray[np.int64]:
    bounds = np.asarray(offsets)
    fits = bounds.dtype.kind in "iu" and bounds.ndim == 1 and bounds.size >= 2
    if not fits or bounds[0] != 0 or (np.diff(bounds.astype(np.int64)) < 1).any():
        raise DataError(
            "rank_candidates: offsets must be whole numbers that rise from 0, one for each "
            f"request and the total, got dtype {bounds.dtype}, shape {bounds.shape} and first "
            f"values {bounds.reshape(-1)[:5].tolist()!r}. Leave requests without candidates out."
        )
    return bounds.astype(np.int64)


def _require_single_requests(bounds: NDArray[np.int64], ids: NDArray[np.generic]) -> None:
    if ids.shape != (int(bounds[-1]),):
        raise DataError(
            f"candidates: request must be of shape ({int(bounds[-1])},) as the offsets say, got "
            f"{ids.shape}. Pass one id per candidate."
        )
    first = ids[bounds[:-1]]
    mixed = ids != np.repeat(first, np.diff(bounds))
    if mixed.any():
        position = int(np.argmax(mixed))
        raise DataError(
            "candidates: a list must hold the candidates of one request, got another request, "
            f"{ids.tolist()[position]!r}, at position {position}. Group the rows by request."
        )
    known, lists = np.unique(first, return_counts=True)
    if (lists > 1).any():
        raise DataError(
            "candidates: the candidates of a request must lie together, got request "
            f"{known[lists > 1].tolist()[0]!r} in {int(lists[lists > 1][0])} lists. Sort the rows "
            "by request."
        )


def _descending(code: NDArray[np.int64], key: NDArray[np.float64]) -> NDArray[np.int64]:
    """Candidates request by request, the highest keys first."""
    by_key = np.argsort(-key)
    # Request and place in key order fit one integer, whose plain sort is several times as fast as
    # a sort by two keys.
    packed = (code[by_key] << 32) | np.arange(key.size)
    packed.sort()
    order: NDArray[np.int64] = by_key[packed & 0xFFFFFFFF]
    return order
