"""What a stage of the funnel keeps of the value that the final stage sees, request by request.

Every metric gives one number per request; :func:`request_mean` averages them. ``stages.py`` asks
which stage lost the best candidate, ``rank_agreement.py`` compares whole orders.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.candidates import RankedCandidates
from tamis.evaluation.ratio import Estimate, ratio_of_sums

QUOTAS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the candidates at which a recall curve is reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestMean:
    """Mean of a metric over requests."""

    plain: Estimate
    """Every request counts the same."""
    by_value: Estimate
    """A request counts by its weight, such as what it is worth."""
    undefined: int
    """Requests left out because the metric has no value there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallPoint:
    """Recall at one quota."""

    share: float
    """Share of the candidates that is kept, in (0, 1]."""
    hard: RequestMean
    """Hard recall against as many golden candidates as are kept."""
    soft: RequestMean
    """Soft recall."""


def hard_recall(
    ranked: RankedCandidates, keep: ArrayLike, *, golden: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Share of the most valuable candidates that are among those kept.

    Args:
        ranked: The candidates of every request.
        keep: K, how many are kept by score: one number, or (R,) numbers. A shorter list is kept
            whole.
        golden: K_f, how many of the most valuable should survive; None for as many as are kept.

    Returns:
        (R,) shares; nan where the values say of no candidate that it is golden.

    Raises:
        DataError: A number is below 1.

    Source:
        Wang et al., Towards the Better Ranking Consistency, AdKDD 2023 (ads recall).

    Differs from the source:
        The formula is ours: abs(S & G) / abs(G), averaged over all orders of equal scores. Where
        candidates of equal value stand on both sides of the cut at K_f, none of them is golden:
        to count some would give recall by luck. No seed is needed.
    """
    chosen = _counts(ranked, keep)
    wanted = chosen if golden is None else _counts(ranked, golden)
    ordered = ranked.value[ranked.by_value]
    # The best candidate that is not golden; a list that is golden as a whole has none.
    next_slot = np.minimum(ranked.offsets[:-1] + wanted, ranked.value.size - 1)
    cut = np.where(wanted < ranked.sizes, ordered[next_slot], -np.inf)
    is_golden = (ranked.value > cut[ranked.request]).astype(np.float64)
    hits = ranked.sums(ranked.expected_by_place(is_golden) * _is_kept(ranked, chosen))
    # Rounding of shared places may push a share a hair above 1.
    return np.minimum(_ratio(hits, ranked.sums(is_golden)), 1.0)


def soft_recall(
    ranked: RankedCandidates, keep: ArrayLike, *, shift: bool = False
) -> NDArray[np.float64]:
    """Value of the candidates kept over that of as many of the most valuable.

    Args:
        ranked: The candidates of every request.
        keep: K, how many are kept by score: one number, or (R,) numbers.
        shift: Whether to measure value from the least valuable candidate of each request, which
            values below 0 need; :func:`value_lost` has no such need.

    Returns:
        (R,) numbers in [0, 1], 1 for the order by value itself; nan where the most valuable are
        worth nothing, so that nothing can be kept.

    Raises:
        DataError: A number is below 1, or a value is below 0 without ``shift``.

    Source:
        Wang et al., Towards the Better Ranking Consistency, AdKDD 2023, section 3.3 (soft recall).

    Differs from the source:
        One value both ranks the golden set and is summed, which keeps the ratio below 1. It is
        averaged over all orders of equal scores, where a finite number of seeds would leave noise.
    """
    worth = _worth(ranked, "soft_recall", shift)
    kept = _is_kept(ranked, _counts(ranked, keep))
    best = worth[ranked.by_value] * kept
    # The loss is summed from differences by place: exactly 0 where both orders agree.
    lost = ranked.sums(best - ranked.expected_by_place(worth) * kept)
    return np.clip(1.0 - _ratio(lost, ranked.sums(best)), 0.0, 1.0)


def value_kept(
    ranked: RankedCandidates, survives: ArrayLike, golden: ArrayLike
) -> NDArray[np.float64]:
    """Value that the best survivors of a stage reach, over that of the most valuable candidates.

    Unlike :func:`soft_recall` it minds only what later stages can still choose: a stage that keeps
    all the most valuable candidates loses nothing, whatever else it keeps.

    Args:
        ranked: The candidates of every request; scores play no part.
        survives: (N,) whether the stage keeps each candidate.
        golden: K_f, how many are shown in the end: one number, or (R,) numbers. Where fewer
            survive, the other places are worth nothing.

    Returns:
        (R,) numbers in [0, 1], exactly 1 where the most valuable survive; nan where these are
        worth nothing.

    Raises:
        DataError: A number is below 1, a value is below 0, or ``survives`` is not one per
            candidate.
    """
    alive = np.asarray(survives)
    if alive.dtype != np.bool_ or alive.shape != ranked.value.shape:
        raise DataError(
            f"value_kept: survives must be true or false for each of {ranked.value.size} "
            f"candidates, got dtype {alive.dtype} and shape {alive.shape}. Pass a mask."
        )
    counts = _counts(ranked, golden)
    ordered = _worth(ranked, "value_kept", shift=False)[ranked.by_value]
    alive = alive[ranked.by_value]
    first = ranked.offsets[:-1]
    # Place of each survivor among those of its request, the most valuable first.
    upto = np.cumsum(alive)
    place = upto - 1 - (upto - alive)[first][ranked.request]
    chosen = alive & (place < counts[ranked.request])
    reached = np.zeros_like(ordered)
    reached[(first[ranked.request] + place)[chosen]] = ordered[chosen]
    best = ordered * _is_kept(ranked, counts)
    # From differences by place, as in soft_recall.
    return np.clip(1.0 - _ratio(ranked.sums(best - reached), ranked.sums(best)), 0.0, 1.0)


def value_lost(ranked: RankedCandidates, keep: ArrayLike) -> NDArray[np.float64]:
    """Value that the most valuable candidates have above those kept.

    Args:
        ranked: The candidates of every request.
        keep: K, how many are kept by score: one number, or (R,) numbers.

    Returns:
        (R,) values, 0 for the order by value itself; never below 0, whatever the values' signs.

    Raises:
        DataError: A number is below 1.
    """
    kept = _is_kept(ranked, _counts(ranked, keep))
    by_place = ranked.value[ranked.by_value] - ranked.expected_by_place(ranked.value)
    return np.maximum(ranked.sums(by_place * kept), 0.0)


def value_divergence(
    ranked: RankedCandidates,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far the judged stage's total values are from those of the final stage.

    Args:
        ranked: Candidates whose score is a total value, in the same unit as the value.

    Returns:
        Per request (R,) the sum of abs(score - value) over the sum of the values, and the same
        with the sign, above 0 where the stage values too highly; nan where the sum of the values
        is not above 0.

    Source:
        Wang et al., Towards the Better Ranking Consistency, AdKDD 2023, section 4 (total value
        divergence).

    Differs from the source:
        The formula is ours; the name and the idea are theirs.
    """
    error = ranked.score - ranked.value
    total = ranked.sums(ranked.value)
    return _ratio(ranked.sums(np.abs(error)), total), _ratio(ranked.sums(error), total)


def ndcg(ranked: RankedCandidates, keep: ArrayLike, *, shift: bool = False) -> NDArray[np.float64]:
    """Discounted value of the first K places over that of the best order.

    Args:
        ranked: The candidates of every request.
        keep: K, how many places count: one number, or (R,) numbers.
        shift: As in :func:`soft_recall`.

    Returns:
        (R,) numbers in [0, 1], 1 for the order by value itself; nan where the most valuable are
        worth nothing.

    Raises:
        DataError: A number is below 1, or a value is below 0 without ``shift``.

    Source:
        Jarvelin and Kekalainen, Cumulated gain-based evaluation of IR techniques, TOIS 2002.

    Differs from the source:
        The gain is the total value, the discount 1 / log2(1 + place) with places from 1, so that
        the second place is discounted too, and equal scores share their places.
    """
    worth = _worth(ranked, "ndcg", shift)
    discount = _is_kept(ranked, _counts(ranked, keep)) / np.log2(ranked.place + 2.0)
    found = ranked.sums(ranked.expected_by_place(worth) * discount)
    best = ranked.sums(worth[ranked.by_value] * discount)
    # Rounding of two sums may push their ratio a hair above 1.
    return np.minimum(_ratio(found, best), 1.0)


def top_regret(ranked: RankedCandidates) -> NDArray[np.float64]:
    """One minus the value of the candidate ranked first over that of the most valuable one.

    Args:
        ranked: The candidates of every request.

    Returns:
        (R,) numbers from 0; above 1 where the first costs value. nan where no candidate is worth
        more than 0.
    """
    first = ranked.offsets[:-1]
    best = ranked.value[ranked.by_value][first]
    return _ratio(best - ranked.expected_by_place(ranked.value)[first], best)


def recall_curve(
    ranked: RankedCandidates,
    *,
    seed: int,
    shares: tuple[float, ...] = QUOTAS,
    shift: bool = False,
    confidence: float = 0.95,
    replicates: int = 1000,
) -> tuple[RecallPoint, ...]:
    """Recall at several quotas: one generous quota hides what a tight one loses.

    Args:
        ranked: The candidates of every request.
        seed: Seed of the bootstrap over requests, at least 0.
        shares: Shares of each request's candidates that are kept, in (0, 1]; rounded up.
        shift: As in :func:`soft_recall`.
        confidence: Coverage of the intervals, in (0, 1).
        replicates: Bootstrap replicates, at least 100.

    Returns:
        One point per share, in the order of ``shares``.

    Raises:
        DataError: A share is out of range, or a metric cannot be averaged.
    """
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise DataError(
            f"recall_curve: shares must lie in (0, 1], got {shares!r}. Use 0.1 for 10 %."
        )
    points = []
    for share in shares:
        # The hair keeps 7 % of 100 from being 7.000000000000001 and so 8.
        keep = np.ceil(ranked.sizes * share - 1e-9).astype(np.int64)
        hard, soft = (
            request_mean(
                metric,
                ranked.request_value,
                seed=seed,
                confidence=confidence,
                replicates=replicates,
            )
            for metric in (hard_recall(ranked, keep), soft_recall(ranked, keep, shift=shift))
        )
        points.append(RecallPoint(share=share, hard=hard, soft=soft))
    return tuple(points)


def request_mean(
    metric: ArrayLike,
    weights: ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = 1000,
) -> RequestMean:
    """Mean of a metric over requests, plain and weighted, with bootstrap intervals.

    Args:
        metric: (R,) one number per request; nan where it is not defined.
        weights: (R,) not negative, such as ``ranked.request_value``.
        seed: Seed of the bootstrap over requests, at least 0.
        confidence: Coverage of the intervals, in (0, 1).
        replicates: Bootstrap replicates, at least 100.

    Returns:
        Both means and the number of requests that were left out.

    Raises:
        DataError: The weights are no weights, or the requests that have the metric are so few
            (below five) that over 1 % of the replicates would be empty.
    """
    values, mass = np.asarray(metric, np.float64), np.asarray(weights, np.float64)
    if values.ndim != 1 or mass.shape != values.shape or not (mass >= 0.0).all():
        raise DataError(
            "request_mean: metric and weights must be one-dimensional and equally long, and "
            f"weights not negative, got shapes {values.shape} and {mass.shape}. Pass one of each "
            "per request."
        )
    defined = ~np.isnan(values)
    values, mass = values[defined], mass[defined]
    plain, by_value = (
        ratio_of_sums(
            values * weight, weight, seed=seed, confidence=confidence, replicates=replicates
        )
        for weight in (np.ones(values.size), mass)
    )
    return RequestMean(plain=plain, by_value=by_value, undefined=int(np.count_nonzero(~defined)))


def _counts(ranked: RankedCandidates, keep: ArrayLike) -> NDArray[np.int64]:
    """K of each request (R,), at most its number of candidates."""
    numbers = np.asarray(keep)
    fits = numbers.dtype.kind in "iu" and numbers.shape in ((), (ranked.requests,))
    if not fits or (numbers < 1).any():
        raise DataError(
            f"cascade: K must be a whole number of at least 1, or ({ranked.requests},) of them, "
            f"got {keep!r}. Keep at least one candidate."
        )
    return np.minimum(numbers.astype(np.int64), ranked.sizes)


def _is_kept(ranked: RankedCandidates, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each slot (N,) is among the first K of its request."""
    kept: NDArray[np.bool_] = ranked.place < counts[ranked.request]
    return kept


def _worth(ranked: RankedCandidates, where: str, shift: bool) -> NDArray[np.float64]:
    """Values (N,) of the candidates that are not negative."""
    if shift:
        least = ranked.value[ranked.by_value][ranked.offsets[1:] - 1]
        return ranked.value - least[ranked.request]
    if (ranked.value < 0.0).any():
        position = int(np.argmax(ranked.value < 0.0))
        raise DataError(
            f"{where}: values must not be negative, got {ranked.value[position].item()!r} at "
            f"position {position}. Pass shift=True, or use value_lost."
        )
    return ranked.value


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients; nan where the denominator is not above 0."""
    quotient = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom > 0.0)
    return quotient
