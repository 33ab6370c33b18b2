"""Log loss and normalised entropy: of whole columns, and summed up batch by batch.

Probabilities are clipped to [1e-12, 1 - 1e-12] before the logarithm, and the rows where that
happened are counted: a single confident mistake then costs 27.6 nats instead of infinity. Logits
need no clipping and have functions of their own.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.rows import EvaluatedRows, observed_rows

PROBABILITY_FLOOR = 1e-12
"""Distance from 0 and 1 to which probabilities are clipped before the logarithm."""

Normaliser = Literal["evaluated rows", "given base rate"]
"""Whose entropy divides the log loss: that of the same rows, or that of a rate from elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalisedEntropy:
    """A log loss divided by the entropy of a base rate, and which base rate that was."""

    value: float
    """1 for a predictor that always answers the base rate; smaller is better."""
    log_loss: float
    """Mean log loss of the rows, nats."""
    base_rate: float
    """The rate whose entropy divides."""
    normaliser: Normaliser
    """Where the base rate comes from; NEs with different normalisers cannot be compared."""
    rows: int
    """Observed rows."""


def entropy(base_rate: float) -> float:
    """Entropy of a yes/no event.

    Args:
        base_rate: Probability of yes, strictly between 0 and 1.

    Returns:
        Nats, in (0, log 2].

    Raises:
        DataError: The rate is 0, 1 or outside, where the entropy is 0 and cannot normalise.
    """
    if not 0.0 < base_rate < 1.0:
        raise DataError(
            f"normalised entropy: the base rate must lie strictly between 0 and 1, got "
            f"{base_rate!r}. Evaluate on rows of both classes, or give a base rate."
        )
    return -(base_rate * math.log(base_rate) + (1.0 - base_rate) * math.log1p(-base_rate))


def log_loss(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """Mean log loss in nats.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) in [0, 1].
        weights: (B,) finite and not negative; None for 1 everywhere.

    Returns:
        Nats per row, weighted.

    Raises:
        DataError: A value has no meaning, or no label was observed.

    Example:
        >>> round(log_loss([1, 0], [0.5, 0.75]), 4)  # (log 2 + log 4) / 2
        1.0397
    """
    return _summed(labels, probabilities, weights).log_loss()


def log_loss_from_logits(
    labels: ArrayLike, logits: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """Mean log loss in nats from logits, exact where a probability would round to 0 or 1.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        logits: (B,) log odds.
        weights: (B,) finite and not negative; None for 1 everywhere.

    Returns:
        Nats per row, weighted.

    Raises:
        DataError: A value has no meaning, or no label was observed.
    """
    sums = LogLossAccumulator()
    sums.update_logits(labels, logits, weights=weights)
    return sums.log_loss()


def normalised_entropy(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    base_rate: float | None = None,
) -> NormalisedEntropy:
    """Log loss divided by the loss of always answering the base rate.

    Both sums run over the same observed rows with the same weights. Without ``base_rate`` the rate
    is that of these rows, so the best constant has NE 1 and no constant goes below.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        probabilities: (B,) in [0, 1].
        weights: (B,) finite and not negative; None for 1 everywhere. Rows that were sampled need
            the inverse of their sampling rate here.
        base_rate: Another rate to divide by, such as the rate of the training rows; the result
            then says so.

    Returns:
        The value with what it was divided by.

    Raises:
        DataError: A value has no meaning, or the base rate is 0 or 1.

    Source:
        He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014,
        equation 3.

    Differs from the source:
        The background rate is that of the evaluated rows unless another is given.

    Example:
        >>> round(normalised_entropy([1, 0, 0, 0], [0.7, 0.1, 0.1, 0.1]).value, 5)
        0.29909
    """
    return _summed(labels, probabilities, weights).normalised_entropy(base_rate)


class LogLossAccumulator:
    """Sums of log loss, weights and labels over any number of batches, in float64.

    Ratios are formed once, from the sums: a mean of per-batch NEs is not the NE. Accumulators of
    several shards add up, either by :meth:`merge` or, over processes, by adding :meth:`sums`.
    """

    __slots__ = ("_sums",)

    NUM_SUMS = 7
    """Length of :meth:`sums`."""

    def __init__(self) -> None:
        # Loss, weight, positive weight, rows, positives, unobserved, clipped. Counts are exact in
        # float64 up to 2**53.
        self._sums = np.zeros(self.NUM_SUMS, dtype=np.float64)

    def update(
        self, labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
    ) -> None:
        """Adds a batch given as probabilities.

        Args:
            labels: (B,) of 0, 1 or NaN (not observed, counted).
            probabilities: (B,) in [0, 1].
            weights: (B,) finite and not negative; None for 1 everywhere.

        Raises:
            DataError: A value has no meaning; nothing of the batch is added.
        """
        rows = observed_rows(labels, probabilities, weights=weights)
        losses, clipped = row_log_losses(rows.positive, rows.predicted)
        self._add(rows, losses, clipped)

    def update_logits(
        self, labels: ArrayLike, logits: ArrayLike, *, weights: ArrayLike | None = None
    ) -> None:
        """Adds a batch given as logits; nothing is clipped.

        Args:
            labels: (B,) of 0, 1 or NaN (not observed, counted).
            logits: (B,) finite log odds.
            weights: (B,) finite and not negative; None for 1 everywhere.

        Raises:
            DataError: A value has no meaning; nothing of the batch is added.
        """
        rows = observed_rows(labels, logits, weights=weights, probabilities=False)
        infinite = np.isinf(rows.predicted)
        if infinite.any():
            position = int(np.argmax(infinite))
            raise DataError(
                f"logits: must be finite, got {rows.predicted[position].item()!r} at observed row "
                f"{position}. Check the model for overflow."
            )
        signed = np.where(rows.positive, -rows.predicted, rows.predicted)
        self._add(rows, np.logaddexp(0.0, signed), 0)

    def merge(self, other: Self) -> Self:
        """Adds up two accumulators.

        Args:
            other: Sums of other rows.

        Returns:
            A new accumulator; neither of the two changes.
        """
        return self.from_sums(self._sums + other._sums)

    def sums(self) -> NDArray[np.float64]:
        """Returns the state as ``NUM_SUMS`` numbers; those of several processes may be added."""
        return self._sums.copy()

    @classmethod
    def from_sums(cls, sums: ArrayLike) -> Self:
        """Makes an accumulator from numbers that :meth:`sums` gave.

        Args:
            sums: ``NUM_SUMS`` finite numbers, none negative.

        Returns:
            An accumulator that goes on from there.

        Raises:
            DataError: The numbers cannot be such sums.
        """
        values = np.array(sums, dtype=np.float64)
        if values.shape != (cls.NUM_SUMS,) or not np.all((values >= 0) & (values < np.inf)):
            raise DataError(
                f"log loss sums: must be {cls.NUM_SUMS} finite numbers >= 0, got {values!r}. "
                "Pass what sums() returned."
            )
        accumulator = cls()
        accumulator._sums = values
        return accumulator

    @property
    def rows(self) -> int:
        """Observed rows so far."""
        return int(self._sums[3])

    @property
    def weight(self) -> float:
        """Sum of the observed rows' weights so far."""
        return float(self._sums[1])

    @property
    def positives(self) -> int:
        """Observed rows with label 1 so far, not weighted."""
        return int(self._sums[4])

    @property
    def unobserved(self) -> int:
        """Rows left out so far because their label is NaN."""
        return int(self._sums[5])

    @property
    def clipped(self) -> int:
        """Observed rows whose probability was within 1e-12 of 0 or 1 and was clipped."""
        return int(self._sums[6])

    def base_rate(self) -> float:
        """Weighted share of positives.

        Returns:
            A number in [0, 1].

        Raises:
            DataError: No row with weight was observed.
        """
        return min(float(self._sums[2] / self._weight()), 1.0)

    def log_loss(self) -> float:
        """Weighted mean log loss, nats.

        Returns:
            Nats per row.

        Raises:
            DataError: No row with weight was observed.
        """
        return float(self._sums[0] / self._weight())

    def normalised_entropy(self, base_rate: float | None = None) -> NormalisedEntropy:
        """Summed log loss over summed entropy.

        Args:
            base_rate: Rate to divide by; None for that of the rows themselves.

        Returns:
            The value with what it was divided by.

        Raises:
            DataError: No row was observed, or the base rate is 0 or 1.
        """
        rate = self.base_rate() if base_rate is None else base_rate
        mean_loss = self.log_loss()
        return NormalisedEntropy(
            value=mean_loss / entropy(rate),
            log_loss=mean_loss,
            base_rate=rate,
            normaliser="evaluated rows" if base_rate is None else "given base rate",
            rows=self.rows,
        )

    def _weight(self) -> float:
        if self.weight <= 0.0:
            raise DataError(
                f"log loss: a row with weight must be observed, got weight 0 over {self.rows} "
                f"observed and {self.unobserved} unobserved rows. Evaluate on rows whose label is "
                "known."
            )
        return self.weight

    def _add(self, rows: EvaluatedRows, losses: NDArray[np.float64], clipped: int) -> None:
        self._sums += (
            rows.weighted_sum(losses),
            rows.total_weight,
            rows.positive_weight,
            rows.rows,
            rows.positives,
            rows.unobserved,
            clipped,
        )


def row_log_losses(
    positive: NDArray[np.bool_], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """Log loss of each row, after clipping.

    Args:
        positive: (B,) True where the label is 1.
        probabilities: (B,) in [0, 1].

    Returns:
        (B,) nats, and the number of rows that were clipped.
    """
    clipped = np.clip(probabilities, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    num_clipped = int(np.count_nonzero(clipped != probabilities))
    # log1p keeps the loss of a negative exact where 1 - p would round to 1.
    return -np.where(positive, np.log(clipped), np.log1p(-clipped)), num_clipped


def _summed(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> LogLossAccumulator:
    sums = LogLossAccumulator()
    sums.update(labels, probabilities, weights=weights)
    return sums
