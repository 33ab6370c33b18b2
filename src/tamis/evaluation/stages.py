"""Where did the best ad die? The value that each stage of a funnel loses, request by request."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.candidates import RankedCandidates
from tamis.evaluation.ratio import Estimate, ratio_of_sums


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """One stage, averaged over requests."""

    stage: str
    """Name of the stage."""
    died: Estimate
    """Share of the requests whose most valuable candidate this stage dropped."""
    lost: Estimate
    """Value of the best candidate before the stage minus that after it, per request."""
    kept: Estimate
    """Value of all survivors over that of as many of the most valuable candidates."""

    def to_json(self) -> dict[str, Any]:
        """Writes the stage for strict JSON.

        Returns:
            Its name and its estimates.
        """
        return {
            "stage": self.stage,
            "died": self.died.to_json(),
            "lost": self.lost.to_json(),
            "kept": self.kept.to_json(),
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StageLosses:
    """What S stages did to the candidates of R requests."""

    stages: tuple[str, ...]
    """Names of the stages, first to last."""
    died: NDArray[np.int64]
    """(R,) stage that dropped the most valuable candidate, from 0; S where it survived them all.
    Of several that are most valuable, the last to be dropped counts."""
    lost: NDArray[np.float64]
    """(S, R) value of the best candidate before each stage minus that after it."""
    kept_value: NDArray[np.float64]
    """(S, R) sum of the values of each stage's survivors."""
    best_value: NDArray[np.float64]
    """(S, R) sum of the values of as many of the most valuable candidates of the request."""

    @property
    def regret(self) -> NDArray[np.float64]:
        """Value (R,) of the best candidate minus that of the best survivor: the sum of losses."""
        total: NDArray[np.float64] = self.lost.sum(axis=0)
        return total

    def summary(
        self, *, seed: int, confidence: float = 0.95, replicates: int = 1000
    ) -> tuple[StageSummary, ...]:
        """Averages over requests, with bootstrap intervals.

        Args:
            seed: Seed of the bootstrap over requests, at least 0.
            confidence: Coverage of the intervals, in (0, 1).
            replicates: Bootstrap replicates, at least 100.

        Returns:
            One row per stage, first to last.

        Raises:
            DataError: There are fewer than two requests, or the candidates are worth nothing.
        """
        settings = {"seed": seed, "replicates": replicates}
        ones = np.ones(self.died.size)
        return tuple(
            StageSummary(
                stage=name,
                died=ratio_of_sums(self.died == index, ones, confidence=confidence, **settings),
                lost=ratio_of_sums(self.lost[index], ones, confidence=confidence, **settings),
                kept=ratio_of_sums(
                    self.kept_value[index],
                    self.best_value[index],
                    confidence=confidence,
                    **settings,
                ),
            )
            for index, name in enumerate(self.stages)
        )


def stage_losses(
    ranked: RankedCandidates, survived: ArrayLike, stages: tuple[str, ...]
) -> StageLosses:
    """Divides the regret of a funnel among its stages.

    With b_0 the value of the best candidate of a request and b_s that of the best one that
    survives stage s, stage s loses b_(s-1) - b_s. The losses add up to b_0 - b_S, what the request
    lost in all. Where no candidate survives, nothing is shown, which is worth 0.

    Args:
        ranked: All candidates of every request, with their true values; scores play no part.
        survived: (N,) how many stages each candidate survived, from 0 to S.
        stages: Names of the S stages, first to last.

    Returns:
        The losses by stage and request.

    Raises:
        DataError: There is no stage, or a number is outside its range.
    """
    passed = np.asarray(survived)
    if not stages or len(set(stages)) < len(stages):
        raise DataError(
            f"stage_losses: stages must be different names, at least one, got {stages!r}. "
            "Name each stage once."
        )
    if passed.dtype.kind not in "iu" or passed.shape != ranked.value.shape:
        raise DataError(
            f"stage_losses: survived must be whole numbers of shape {ranked.value.shape}, got "
            f"dtype {passed.dtype} and shape {passed.shape}. Pass one number per candidate."
        )
    if passed.min() < 0 or passed.max() > len(stages):
        raise DataError(
            f"stage_losses: survived must lie in 0 to {len(stages)}, the number of stages, got "
            f"{int(passed.min())} to {int(passed.max())}. Count the stages a candidate survived."
        )
    first = ranked.offsets[:-1]
    ordered, passed = ranked.value[ranked.by_value], passed[ranked.by_value]
    best = [ordered[first]]
    # Of equally valuable candidates, the one that lives longest is the one that the funnel has.
    longest = np.maximum.reduceat(np.where(ordered == best[0][ranked.request], passed, 0), first)
    kept_value, best_value = [], []
    for stage in range(1, len(stages) + 1):
        alive = passed >= stage
        survivors = ranked.sums(alive.astype(np.float64))
        left = np.maximum.reduceat(np.where(alive, ordered, -np.inf), first)
        best.append(np.where(survivors > 0.0, left, 0.0))
        kept_value.append(ranked.sums(ordered * alive))
        best_value.append(ranked.sums(ordered * (ranked.place < survivors[ranked.request])))
    return StageLosses(
        stages=stages,
        died=longest.astype(np.int64),
        lost=-np.diff(np.stack(best), axis=0),
        kept_value=np.stack(kept_value),
        best_value=np.stack(best_value),
    )
