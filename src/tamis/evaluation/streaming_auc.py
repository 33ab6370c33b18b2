"""AUC from a histogram of probabilities: fixed memory, mergeable, with a bound on its error."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.rows import observed_rows

_BITS_OF_ONE = 0x3F800000
"""Bit pattern of 1.0 in float32; patterns of non-negative floats are ordered as the floats are."""

_MANTISSA_BITS = 23
"""Bits of the fraction of a float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AucEstimate:
    """An AUC and how far from the exact one it can be."""

    value: float
    """The estimate; pairs that share a bin count one half."""
    error_bound: float
    """The exact AUC of the same rows lies within this distance, always."""
    rows: int
    """Observed rows."""


class StreamingAuc:
    """Counts positives and negatives per bin of probability, batch by batch.

    Bins follow the leading bits of the float32 pattern, so each power of two of probability is cut
    into ``2**mantissa_bits`` bins: fine near zero, where the probabilities of ads are, at no more
    cost than a shift. Only pairs within one bin can be wrong, each by one half at most, which gives
    the bound of :meth:`estimate`. Shards add up by :meth:`merge` or by adding :meth:`counts`.
    """

    __slots__ = ("_counts", "_shift", "_totals")

    def __init__(self, mantissa_bits: int = 11) -> None:
        """Starts without rows.

        Args:
            mantissa_bits: Bins per power of two, as a power of two, in [1, 16]. 11 takes 4 MB.

        Raises:
            DataError: ``mantissa_bits`` is out of range.
        """
        if not 1 <= mantissa_bits <= 16:
            raise DataError(
                f"StreamingAuc: mantissa_bits must be in [1, 16], got {mantissa_bits!r}. "
                "Use 11 unless memory is short."
            )
        self._shift = _MANTISSA_BITS - mantissa_bits
        # Weights of negatives in row 0, of positives in row 1.
        self._counts = np.zeros((2, (_BITS_OF_ONE >> self._shift) + 1), dtype=np.float64)
        # Observed rows and rows left out.
        self._totals = np.zeros(2, dtype=np.int64)

    def update(
        self, labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
    ) -> None:
        """Adds a batch.

        Args:
            labels: (B,) of 0, 1 or NaN (not observed, counted).
            probabilities: (B,) in [0, 1].
            weights: (B,) finite and not negative; None for 1 everywhere.

        Raises:
            DataError: A value has no meaning; nothing of the batch is added.
        """
        rows = observed_rows(labels, probabilities, weights=weights)
        # Adding zero turns -0.0, whose pattern would be out of range, into 0.0.
        pattern = (rows.predicted.astype(np.float32) + np.float32(0.0)).view(np.uint32)
        num_bins = self._counts.shape[1]
        place = (pattern >> np.uint32(self._shift)).astype(np.int64)
        place += num_bins * rows.positive
        added = np.bincount(place, weights=rows.weights, minlength=2 * num_bins)
        self._counts += added.reshape(2, num_bins)
        self._totals += (rows.rows, rows.unobserved)

    def merge(self, other: Self) -> Self:
        """Adds up two histograms.

        Args:
            other: Counts of other rows, with equal bins.

        Returns:
            A new histogram; neither of the two changes.

        Raises:
            DataError: The bins differ.
        """
        if self._shift != other._shift:
            raise DataError(
                f"StreamingAuc: merged histograms must have equal mantissa_bits, got "
                f"{_MANTISSA_BITS - self._shift} and {_MANTISSA_BITS - other._shift}. "
                "Build both with one setting."
            )
        merged = type(self)(_MANTISSA_BITS - self._shift)
        merged._counts = self._counts + other._counts
        merged._totals = self._totals + other._totals
        return merged

    def counts(self) -> NDArray[np.float64]:
        """Returns a copy of the (2, bins) weights of negatives and of positives per bin."""
        return self._counts.copy()

    @property
    def rows(self) -> int:
        """Observed rows so far."""
        return int(self._totals[0])

    @property
    def unobserved(self) -> int:
        """Rows left out so far because their label is NaN."""
        return int(self._totals[1])

    def estimate(self) -> AucEstimate:
        """AUC of all rows so far.

        Returns:
            The area under the histogram's ROC curve with the bound: half the share of (positive,
            negative) pairs that fell into one bin.

        Raises:
            DataError: One of the classes is missing.
        """
        negative, positive = self._counts
        pairs = float(negative.sum() * positive.sum())
        if pairs <= 0.0:
            raise DataError(
                f"StreamingAuc: labels must hold both classes, got weight {positive.sum().item()} "
                f"of positives and {negative.sum().item()} of negatives. Add more rows."
            )
        below = np.cumsum(negative) - negative
        tied = float(positive @ negative)
        return AucEstimate(
            value=(float(positive @ below) + 0.5 * tied) / pairs,
            error_bound=0.5 * tied / pairs,
            rows=self.rows,
        )
