"""Ads with their scores, and the one way in which the best of them are chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.data.hashing import hash_integers
from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """Different ads that may still be chosen, in no particular order."""

    ads: NDArray[np.int64]
    """(n,) ad rows."""
    scores: NDArray[np.float64]
    """(n,) of the stage that scored last; higher is better."""
    predictions: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """(n,) by task, of the stage that predicted last. Empty: none has."""

    def __post_init__(self) -> None:
        columns = {"scores": self.scores, **self.predictions}
        for name, values in columns.items():
            if values.shape != self.ads.shape:
                raise DataError(
                    f"candidates: {name} must be one for each of {len(self.ads)} ads, got shape "
                    f"{values.shape}. Check the stage that made them."
                )

    def __len__(self) -> int:
        return len(self.ads)

    @property
    def is_finite(self) -> bool:
        """Whether all scores and predictions are finite; only then has their order a meaning."""
        columns = (self.scores, *self.predictions.values())
        return all(bool(np.isfinite(column).all()) for column in columns)

    def take(self, positions: NDArray[np.int64]) -> "Candidates":
        """The candidates at some positions, in that order."""
        return Candidates(
            ads=self.ads[positions],
            scores=self.scores[positions],
            predictions={name: values[positions] for name, values in self.predictions.items()},
        )

    def split(self, counts: Sequence[int]) -> "list[Candidates]":
        """Runs of so many candidates each, in their order; together they are all."""
        bounds = np.cumsum(counts)[:-1]
        columns = {name: np.split(values, bounds) for name, values in self.predictions.items()}
        parts = zip(np.split(self.ads, bounds), np.split(self.scores, bounds), strict=True)
        return [
            Candidates(
                ads=ads,
                scores=scores,
                predictions={name: values[at] for name, values in columns.items()},
            )
            for at, (ads, scores) in enumerate(parts)
        ]

    def best(self, keep: int, *, seed: int) -> "Candidates":
        """The highest scores, best first; the same for any order of the candidates.

        Args:
            keep: The most to keep.
            seed: Decides ties, as :func:`order_of_best` says.
        """
        return self.take(order_of_best(self.ads, self.scores, keep, seed=seed))


def order_of_best(
    ads: NDArray[np.int64], scores: NDArray[np.floating[Any]], keep: int, *, seed: int
) -> NDArray[np.int64]:
    """Positions of the highest scores, best first.

    Ties are decided by a hash of ad and seed: not by the order of the candidates, which carries no
    meaning, and not by the ad row, which would favour old ads in every request.

    Args:
        ads: (n,) different ad rows.
        scores: (n,) without NaN.
        keep: The most to keep.
        seed: Another seed breaks ties in another order.

    Returns:
        (min(n, keep),) positions.
    """
    chosen = np.arange(len(ads))
    if keep < len(ads):
        # Everything above the last score that is kept, then of that score as many as are missing.
        last = np.partition(scores, len(ads) - keep)[len(ads) - keep] if keep else np.inf
        above = np.flatnonzero(scores > last)
        equal = np.flatnonzero(scores == last)
        missing = keep - len(above)
        if missing < len(equal):
            equal = equal[np.argsort(hash_integers(ads[equal], seed=seed))[:missing]]
        chosen = np.concatenate([above, equal])
    falling = -scores[chosen]
    order = np.argsort(falling)
    ranked = falling[order]
    if (ranked[1:] == ranked[:-1]).any():  # seldom, and hashes take longer than all the rest
        order = np.lexsort((hash_integers(ads[chosen], seed=seed), falling))
    return chosen[order]
