"""Do two orders of a request's candidates agree, pair by pair?

There are N (N - 1) / 2 pairs in a list of N candidates. They are counted level by level of the
binary digits of the score ranks, in O(N log N) for all requests at once.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tamis.evaluation.candidates import RankedCandidates

_Number = TypeVar("_Number", np.int64, np.float64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairCounts:
    """Pairs of candidates of each request (R,), as :func:`count_pairs` finds them."""

    pairs: NDArray[np.float64]
    """All pairs."""
    value_ties: NDArray[np.float64]
    """Pairs of equal value."""
    score_ties: NDArray[np.float64]
    """Pairs of equal score."""
    both_ties: NDArray[np.float64]
    """Pairs of equal value and equal score."""
    inverted: NDArray[np.float64]
    """Pairs of which the less valuable one has the higher score."""
    value_gap: NDArray[np.float64]
    """Sum over all pairs of the difference of their values, as a share of the largest one."""
    tied_gap: NDArray[np.float64]
    """The same over pairs of equal score."""
    inverted_gap: NDArray[np.float64]
    """The same over inverted pairs."""


def kendall_tau(ranked: RankedCandidates) -> NDArray[np.float64]:
    """Kendall's tau-b between value and score within each request.

    Args:
        ranked: The candidates of every request.

    Returns:
        (R,) numbers in [-1, 1]; 0 where all scores are equal, as they then order nothing, and nan
        where all values are, as there is then nothing to order.

    Source:
        Kendall, The treatment of ties in ranking problems, Biometrika 1945.

    Differs from the source:
        The value 0 for equal scores, which the formula leaves open: a stage that does not tell
        candidates apart must not drop out of the mean.
    """
    counts = count_pairs(ranked)
    by_value = counts.pairs - counts.value_ties
    by_score = counts.pairs - counts.score_ties
    right: NDArray[np.float64] = by_value - counts.score_ties + counts.both_ties - counts.inverted
    tau: NDArray[np.float64] = np.where(by_value > 0.0, 0.0, np.nan)
    scale = np.sqrt(by_value) * np.sqrt(by_score)
    np.divide(right - counts.inverted, scale, out=tau, where=scale > 0.0)
    # Rounding of the root may push a perfect order a hair above 1.
    bounded: NDArray[np.float64] = np.clip(tau, -1.0, 1.0)
    return bounded


def value_weighted_inversions(ranked: RankedCandidates) -> NDArray[np.float64]:
    """Share of the differences in value that the scores order wrongly.

    Every pair counts by the difference of its values, so that swapping two ads of like value
    costs next to nothing; a pair of equal scores counts half.

    Args:
        ranked: The candidates of every request.

    Returns:
        (R,) numbers in [0, 1]: 0 for the order by value, 1/2 for equal scores, 1 for the reversed
        order; nan where all values are equal.
    """
    counts = count_pairs(ranked)
    share = np.full(ranked.requests, np.nan)
    wrong = counts.inverted_gap + 0.5 * counts.tied_gap
    np.divide(wrong, counts.value_gap, out=share, where=counts.value_gap > 0.0)
    bounded: NDArray[np.float64] = np.clip(share, 0.0, 1.0)
    return bounded


def count_pairs(ranked: RankedCandidates) -> PairCounts:
    """Counts the pairs of every request by how value and score order them.

    Args:
        ranked: The candidates of every request.

    Returns:
        Counts and sums of value differences.
    """
    scaled = _scaled_values(ranked)
    first_tie = ranked.tie[ranked.offsets[:-1]][ranked.request]
    rank_of = np.empty(ranked.value.size, np.int64)
    rank_of[ranked.by_score] = ranked.tie - first_tie

    # The most valuable first, and of equal value the highest score first.
    order = _stable_by_value(ranked)
    value, rank = scaled[order], rank_of[order]
    is_new_value = _is_new(ranked, ranked.value[order])
    inverted, inverted_gap = _inversions(ranked, value, rank)

    # The same candidates by score, and of equal score the most valuable first.
    packed = ((first_tie + rank) << 32) | np.arange(value.size)
    packed.sort()
    by_score = value[packed & 0xFFFFFFFF]
    is_new_score = np.diff(ranked.tie, prepend=-1) > 0
    return PairCounts(
        pairs=ranked.sizes * (ranked.sizes - 1) / 2.0,
        value_ties=_pairs_in_runs(ranked, is_new_value),
        score_ties=_pairs_in_runs(ranked, is_new_score),
        both_ties=_pairs_in_runs(ranked, is_new_value | _is_new(ranked, rank)),
        inverted=inverted,
        value_gap=_gaps_in_runs(ranked, value, ranked.place == 0),
        tied_gap=_gaps_in_runs(ranked, by_score, is_new_score),
        inverted_gap=inverted_gap,
    )


def _scaled_values(ranked: RankedCandidates) -> NDArray[np.float64]:
    """Values (N,) brought to [0, 1] in each request, so that sums over all keep their digits."""
    ordered = ranked.value[ranked.by_value]
    best, least = ordered[ranked.offsets[:-1]], ordered[ranked.offsets[1:] - 1]
    unit = np.where(best > least, best - least, 1.0)
    scaled: NDArray[np.float64] = (ranked.value - least[ranked.request]) / unit[ranked.request]
    return scaled


def _stable_by_value(ranked: RankedCandidates) -> NDArray[np.int64]:
    """Candidates by request, value and score, all but the request descending."""
    if _is_new(ranked, ranked.value[ranked.by_value]).all():
        return ranked.by_value
    by_value = ranked.by_score[np.argsort(-ranked.value[ranked.by_score], kind="stable")]
    packed = (ranked.request[by_value] << 32) | np.arange(by_value.size)
    packed.sort()
    order: NDArray[np.int64] = by_value[packed & 0xFFFFFFFF]
    return order


def _is_new(
    ranked: RankedCandidates, values: NDArray[np.float64] | NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether a slot (N,) begins a run of equal numbers within its request."""
    is_new: NDArray[np.bool_] = ranked.place == 0
    is_new[1:] |= values[1:] != values[:-1]
    return is_new


def _pairs_in_runs(ranked: RankedCandidates, is_new: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pairs (R,) within the runs that begin where told."""
    starts = np.flatnonzero(is_new)
    count = np.diff(starts, append=is_new.size)
    pairs = np.zeros(is_new.size)
    pairs[starts] = count * (count - 1) / 2.0
    return ranked.sums(pairs)


def _gaps_in_runs(
    ranked: RankedCandidates, values: NDArray[np.float64], is_new: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Sum (R,) of the differences of all pairs in runs whose values descend."""
    starts = np.flatnonzero(is_new)
    count = np.diff(starts, append=is_new.size)
    run = np.cumsum(is_new) - 1
    # The value at place j of n is the larger one of n - 1 - j pairs and the smaller one of j.
    place = np.arange(values.size) - starts[run]
    return ranked.sums((count[run] - 1 - 2 * place) * values)


def _inversions(
    ranked: RankedCandidates, value: NDArray[np.float64], rank: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs (R,) whose earlier one has the higher rank number, and the gaps of their values.

    Two ranks differ first at some binary digit. So at each digit, from the highest, the pairs
    with a one before a zero are counted among candidates that agree in all higher digits; then
    the zeros of each such block move before its ones, which keeps the order within both.
    """
    size = rank.size
    count, gap = np.zeros(ranked.requests), np.zeros(ranked.requests)
    starts = ranked.offsets[:-1]
    for digit in reversed(range(int(rank.max()).bit_length())):
        one = (rank >> digit) & 1
        lengths = np.diff(starts, append=size)
        block = np.repeat(starts, lengths)
        ones_before = _before(one, block)
        zero = 1 - one
        count += ranked.sums((zero * ones_before).astype(np.float64))
        gap += ranked.sums(zero * (_before(one * value, block) - ones_before * value))
        zeros_inside = np.add.reduceat(zero, starts)
        zeros_before = np.arange(size) - block - ones_before
        target = block + np.where(
            one == 1, np.repeat(zeros_inside, lengths) + ones_before, zeros_before
        )
        moved_rank, moved_value = np.empty_like(rank), np.empty_like(value)
        moved_rank[target], moved_value[target] = rank, value
        rank, value = moved_rank, moved_value
        is_start = np.zeros(size + 1, dtype=bool)
        is_start[starts] = is_start[starts + zeros_inside] = True
        starts = np.flatnonzero(is_start[:size])
    return count, gap


def _before(values: NDArray[_Number], block: NDArray[np.int64]) -> NDArray[_Number]:
    """Sum of the values before each slot (N,) within its block, given the block's first slot."""
    total = np.cumsum(values) - values
    inside: NDArray[_Number] = total - total[block]
    return inside
