"""What the stages of a funnel keep of the value that a reference sees, over many requests.

The metrics themselves are those of ``tamis.evaluation``; here requests are put together for them, a
chunk at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.evaluation import (
    RankedCandidates,
    hard_recall,
    rank_candidates,
    soft_recall,
    stage_losses,
    value_kept,
)

MEASURES = ("recall", "soft_recall", "value_kept", "regret")
"""Of each stage: hard and soft ads recall, value kept, and the share of the best ad's total value
that is lost in this stage, so that the shares of all stages add up to that of the funnel."""

_CANDIDATES_AT_A_TIME = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What one stage kept, averaged over requests; by measure, None where no request could tell."""

    plain: dict[str, float | None]
    """Every request counts the same."""
    by_value: dict[str, float | None]
    """A request counts by the sum of its candidates' total values."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Compared:
    """One request: its candidates' worth, how many stages each survived, and the golden counts."""

    worth: NDArray[np.float64]
    survived: NDArray[np.int64]
    golden: tuple[int, ...]


class Comparison:
    """Sums of the measures over requests; memory holds one chunk of candidates."""

    def __init__(self, num_stages: int) -> None:
        """Start with none, for so many stages one after another."""
        self._stages = tuple(map(str, range(num_stages)))
        self._waiting: list[_Compared] = []
        self._candidates = 0
        # Of each stage and measure: weighted sum and weight, plain and by value.
        self._sums = np.zeros((num_stages, len(MEASURES), 2, 2))

    def add(
        self, values: NDArray[np.float64], survived: NDArray[np.int64], golden: Sequence[int]
    ) -> None:
        """Add one request.

        A total value below 0 counts as 0, since the auction would leave the slot empty. Tables of
        early stages count from the least valuable candidate instead: another soft recall.

        Args:
            values: (n,) total value of each candidate by the reference; at least one.
            survived: (n,) how many stages each candidate survived.
            golden: Golden ads of each stage: as many as it should have kept at least.
        """
        worth = np.maximum(values, 0.0)
        self._waiting.append(_Compared(worth=worth, survived=survived, golden=tuple(golden)))
        self._candidates += len(values)
        if self._candidates >= _CANDIDATES_AT_A_TIME:
            self._flush()

    def summary(self) -> tuple[Kept, ...]:
        """Means over the requests, one for each stage."""
        self._flush()
        plain, by_value = (
            [dict(zip(MEASURES, map(_mean, stage[:, how]), strict=True)) for stage in self._sums]
            for how in (0, 1)
        )
        return tuple(
            Kept(plain=equal, by_value=weighted)
            for equal, weighted in zip(plain, by_value, strict=True)
        )

    def _flush(self) -> None:
        if not self._waiting:
            return
        sizes = [len(request.worth) for request in self._waiting]
        worth = np.concatenate([request.worth for request in self._waiting])
        survived = np.concatenate([request.survived for request in self._waiting])
        # A later stage keeps some of what an earlier one kept, so one order holds for all: the
        # first k of it are what a stage kept that kept k. By worth among these, since ties would
        # be averaged, and rounded.
        order = np.empty(len(worth))
        order[np.lexsort((worth, survived))] = np.arange(len(worth))
        ranked = rank_candidates(np.concatenate([[0], np.cumsum(sizes)]), worth, order)
        golden = np.array([request.golden for request in self._waiting])
        best = ranked.value[ranked.by_value][ranked.offsets[:-1]]
        lost = stage_losses(ranked, survived, self._stages).lost
        weight = np.stack([np.ones(len(sizes)), ranked.request_value])
        for place, _ in enumerate(self._stages):
            measures = (
                *_recalls(ranked, survived > place, golden[:, place]),
                value_kept(ranked, survived > place, golden[:, place]),
                np.divide(lost[place], best, out=np.full(len(best), np.nan), where=best > 0),
            )
            for measure, found in enumerate(measures):
                known = ~np.isnan(found)
                self._sums[place, measure, :, 0] += weight[:, known] @ found[known]
                self._sums[place, measure, :, 1] += weight[:, known].sum(axis=1)
        self._waiting, self._candidates = [], 0


def _recalls(
    ranked: RankedCandidates, is_kept: NDArray[np.bool_], golden: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hard and soft recall (R,); of a stage that keeps nothing 0 and none."""
    kept = ranked.sums(is_kept.astype(np.float64)).astype(np.int64)
    some = np.maximum(kept, 1)
    # No ad is golden that is worth nothing.
    worthy = ranked.sums((ranked.value > 0).astype(np.float64)).astype(np.int64)
    hard = hard_recall(ranked, some, golden=np.clip(worthy, 1, golden))
    hard[(kept == 0) & ~np.isnan(hard)] = 0.0
    soft = soft_recall(ranked, some)
    return np.where(worthy > 0, hard, np.nan), np.where(kept > 0, soft, np.nan)


def _mean(sums: NDArray[np.float64]) -> float | None:
    return float(sums[0] / sums[1]) if sums[1] > 0 else None
