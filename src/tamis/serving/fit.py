"""How well the probabilities of one task fit what happened, over time and beside the first ones."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.evaluation.loss import LogLossAccumulator
from tamis.evaluation.stability import StabilityIndex, stability_index

_SHIFT_ROWS = 2_000
"""Rows of the reference, and of the newest rows that are compared with it."""
_SHIFT_BINS = 10
_MAX_PARTS, _FIRST_PART_S = 60, 10.0
_ROWS_AT_A_TIME = 512
"""Rows are added up many at a time, since every addition has a cost of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How well the probabilities of some rows fit what happened; None: the rows cannot tell."""

    rows: int
    """Ads that were seen and whose label is known."""
    positives: int
    """Those whose label is 1."""
    log_loss: float | None
    """Mean log loss, nats."""
    ne: float | None
    """Normalised entropy against the base rate of the same rows; smaller is better."""
    predicted: float
    """Sum of probabilities."""
    calibration: float | None
    """Sum of probabilities over number of positives; 1 is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOfPart(Fit):
    """The same of a part of the time."""

    start_s: float
    """When the part began, in seconds since the release went live."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDrift:
    """One task of one release, since the release went live."""

    all: Fit
    """All rows."""
    shift: StabilityIndex | None
    """The newest rows' probabilities against those of the first rows. None: too few rows yet."""
    parts: tuple[FitOfPart, ...]
    """Parts of the time, oldest first; they grow longer, so that their number is bounded."""


class TaskSums:
    """Sums of one task of one release, in a memory that does not grow."""

    def __init__(self) -> None:
        """Start without rows."""
        self._parts: list[_Part] = []
        self._part_s = _FIRST_PART_S
        self._shift = _Shift()
        # Rows of the newest part that are not in its sums yet.
        self._rows: list[tuple[float, bool]] = []

    def add(self, probability: float, label: bool, *, at_s: float) -> None:
        """Add a row.

        Args:
            probability: In [0, 1].
            label: What happened.
            at_s: When it was settled, in seconds since the release went live; never falls.
        """
        number = int(at_s / self._part_s)
        if not self._parts or self._parts[-1].number != number:
            self._add_up()
            self._begin(number)
        self._rows.append((probability, label))
        if len(self._rows) >= _ROWS_AT_A_TIME:
            self._add_up()

    def drift(self) -> TaskDrift:
        """All that is known."""
        self._add_up()
        whole = _Part(number=0)
        for part in self._parts:
            whole = whole.plus(part)
        return TaskDrift(
            all=Fit(**whole.fit()),
            shift=self._shift.index(),
            parts=tuple(
                FitOfPart(start_s=part.number * self._part_s, **part.fit()) for part in self._parts
            ),
        )

    def _begin(self, number: int) -> None:
        """Begin a part of the time, and join older ones where there are too many."""
        while number >= _MAX_PARTS:
            self._part_s *= 2.0
            number //= 2
            self._parts = _in_twos(self._parts)
        if not self._parts or self._parts[-1].number != number:
            self._parts.append(_Part(number=number))

    def _add_up(self) -> None:
        if self._rows:
            probabilities, labels = np.array(self._rows, np.float64).T
            self._rows = []
            part = self._parts[-1]
            part.losses.update(labels, probabilities)
            part.predicted += float(probabilities.sum())
            self._shift.add(probabilities)


@dataclass(kw_only=True, slots=True)
class _Part:
    """Sums of a part of the time: the ``number``-th of its length."""

    number: int
    losses: LogLossAccumulator = field(default_factory=LogLossAccumulator)
    predicted: float = 0.0

    def plus(self, other: "_Part") -> "_Part":
        return _Part(
            number=self.number,
            losses=self.losses.merge(other.losses),
            predicted=self.predicted + other.predicted,
        )

    def fit(self) -> dict[str, Any]:
        rows, positives = self.losses.rows, self.losses.positives
        return {
            "rows": rows,
            "positives": positives,
            "log_loss": self.losses.log_loss() if rows else None,
            "ne": self.losses.normalised_entropy().value if 0 < positives < rows else None,
            "predicted": self.predicted,
            "calibration": self.predicted / positives if positives else None,
        }


def _in_twos(parts: Sequence[_Part]) -> list[_Part]:
    """Parts of twice the length."""
    found: list[_Part] = []
    for part in parts:
        wider = _Part(number=part.number // 2).plus(part)
        if found and found[-1].number == wider.number:
            found[-1] = found[-1].plus(wider)
        else:
            found.append(wider)
    return found


class _Shift:
    """The first rows' probabilities, and the newest ones' in the bins of the first."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._edges: NDArray[np.float64] | None = None
        self._reference = self._newest_counts = np.zeros(_SHIFT_BINS)
        self._newest: deque[int] = deque()

    def add(self, probabilities: NDArray[np.float64]) -> None:
        if self._edges is None:
            room = _SHIFT_ROWS - len(self._first)
            self._first += probabilities[:room].tolist()
            probabilities = probabilities[room:]
            if len(self._first) < _SHIFT_ROWS:
                return
            # Probabilities that stand for many rows would make edges that are alike.
            steps = np.arange(1, _SHIFT_BINS) / _SHIFT_BINS
            self._edges = np.unique(np.quantile(self._first, steps))
            self._reference = self._counts(self._bins(np.array(self._first)))
            self._newest_counts = np.zeros_like(self._reference)
            self._first = []
        bins = self._bins(probabilities)
        self._newest.extend(bins.tolist())
        self._newest_counts = self._newest_counts + self._counts(bins)
        while len(self._newest) > _SHIFT_ROWS:
            self._newest_counts[self._newest.popleft()] -= 1

    def index(self) -> StabilityIndex | None:
        # Fewer rows would say more of chance than of a shift.
        if self._edges is None or len(self._newest) < _SHIFT_ROWS // 10:
            return None
        return stability_index(self._reference, self._newest_counts)

    def _bins(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        assert self._edges is not None
        return np.searchsorted(self._edges, probabilities, side="left").astype(np.int64)

    def _counts(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self._edges is not None
        return np.bincount(bins, minlength=self._edges.size + 1).astype(np.float64)
