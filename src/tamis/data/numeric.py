"""Numeric transforms: standardise, log, quantile, bucket; fitted in one streaming pass."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tamis.data.schema import Field

_SAMPLE = 1 << 18
_QUANTILE_KNOTS = 257
_LARGEST = float(np.finfo(np.float32).max)
"""From it on a number counts as infinite; as a mark of "no limit" it is meant so."""


class Counts(Protocol):
    """What an encoder counts; ``vocabulary.FieldCounts`` is one."""

    rows: int
    missing: int
    clipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NumericEncoder:
    """A fitted transform of one numeric field."""

    transform: Literal["none", "standardise", "log", "quantile", "bucket"]
    """Which one."""
    mean: float
    """Training mean, after the logarithm where there is one."""
    std: float
    """Training standard deviation, likewise; 1 for a constant field."""
    minimum: float
    """Smallest finite training value; minus infinity, or less than float32 holds, becomes it."""
    maximum: float
    """Largest finite training value; infinity, or more than float32 holds, becomes it."""
    knots: tuple[float, ...] = ()
    """Bucket bounds, or training values at equal steps of probability, each once."""
    ranks: tuple[float, ...] = ()
    """What a training value at such a step becomes, from -1 to 1; the middle of the steps that it
    takes, so that values beside it become nearly the same. Empty: equally spaced."""

    @property
    def num_buckets(self) -> int:
        """Buckets, the one for missing values (row 0) not counted; 0 for other transforms."""
        return len(self.knots) + 1 if self.transform == "bucket" else 0

    def encode(self, values: NDArray[np.float64], counts: Counts) -> NDArray[np.float32]:
        """Transform values; a missing one becomes neutral: the mean or the middle rank."""
        values, missing = self._repair(values, counts)
        if self.transform == "quantile":
            # Datasets of earlier versions name no ranks.
            ranks = self.ranks or np.linspace(-1, 1, len(self.knots))
            result = np.interp(values, self.knots, ranks)
            result[missing] = 0.0
        elif self.transform == "none":
            result = np.where(missing, self.mean, values)
        else:
            if self.transform == "log":
                values = _log(values)
            result = np.where(missing, 0.0, (values - self.mean) / self.std)
        # Still a number where a field that hardly varied in training meets a huge value.
        return np.clip(result, -_LARGEST, _LARGEST).astype(np.float32)

    def bucket(self, values: NDArray[np.float64], counts: Counts) -> NDArray[np.int32]:
        """Bucket of each value, from 1; 0 where missing."""
        values, missing = self._repair(values, counts)
        buckets = np.searchsorted(np.asarray(self.knots), values, side="right") + 1
        return np.where(missing, 0, buckets).astype(np.int32)

    def to_table(self) -> dict[str, Any]:
        """JSON values; ``ranks`` only where there are any."""
        table = dataclasses.asdict(self)
        if not self.ranks:
            del table["ranks"]
        return table

    @staticmethod
    def from_table(table: dict[str, Any]) -> "NumericEncoder":
        """Read what :meth:`to_table` gave."""
        lists = {name: tuple(table.get(name, ())) for name in ("knots", "ranks")}
        return NumericEncoder(**{**table, **lists})

    def _repair(
        self, values: NDArray[np.float64], counts: Counts
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        missing, infinite = np.isnan(values), np.abs(values) >= _LARGEST
        counts.rows += len(values)
        counts.missing += int(missing.sum())
        counts.clipped += int(infinite.sum())
        if infinite.any():
            values = np.where(infinite, np.clip(values, self.minimum, self.maximum), values)
        return np.where(missing, self.mean, values), missing


class Moments:
    """Mean and standard deviation of a stream of values, as exact as in two passes."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.count, self.mean, self._square = 0, 0.0, 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in values, at least one of them, all finite."""
        # Chan's update.
        count, mean = len(values), float(values.mean())
        square = float(((values - mean) ** 2).sum())
        total = self.count + count
        shift = mean - self.mean
        self._square += square + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation; 1 where all values are the same, or there are none."""
        std = (self._square / self.count) ** 0.5 if self.count else 0.0
        return std if std > 1e-12 * max(1.0, abs(self.mean)) else 1.0


class NumericFit:
    """Fits one field; keeps sums and a bounded, evenly spaced sample."""

    def __init__(self, field: Field) -> None:
        """Start with nothing seen."""
        self._field = field
        self._moments = Moments()
        self._minimum, self._maximum = np.inf, -np.inf
        self._sample: list[NDArray[np.float64]] = []
        self._sampled, self._stride, self._seen = 0, 1, 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in training values; missing and infinite ones are left out."""
        finite = values[np.abs(values) < _LARGEST]
        if not len(finite):
            return
        self._minimum = min(self._minimum, float(finite.min()))
        self._maximum = max(self._maximum, float(finite.max()))
        if self._field.transform in ("quantile", "bucket"):
            self._take_sample(finite)
        self._moments.add(_log(finite) if self._field.transform == "log" else finite)

    def finish(self) -> NumericEncoder:
        """The encoder of all values taken in; without any, everything becomes 0."""
        known = self._moments.count > 0
        knots, ranks = self._knots()
        return NumericEncoder(
            transform=self._field.transform,
            mean=self._moments.mean,
            std=self._moments.std,
            minimum=self._minimum if known else 0.0,
            maximum=self._maximum if known else 0.0,
            knots=knots,
            ranks=ranks,
        )

    def _take_sample(self, values: NDArray[np.float64]) -> None:
        start = -self._seen % self._stride
        picked = values[start :: self._stride]
        self._seen += len(values)
        self._sample.append(picked)
        self._sampled += len(picked)
        while self._sampled > 2 * _SAMPLE:
            joined = np.concatenate(self._sample)[::2]
            self._sample, self._sampled = [joined], len(joined)
            self._stride *= 2

    def _knots(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Knots, and what they become where they are of ``quantile``."""
        if self._field.transform not in ("quantile", "bucket"):
            return (), ()
        if not self._sample:
            return (0.0,), (0.0,)
        values = np.concatenate(self._sample)
        if self._field.transform == "quantile":
            knots = np.quantile(values, np.linspace(0, 1, _QUANTILE_KNOTS))
            distinct, first, repeats = np.unique(knots, return_index=True, return_counts=True)
            middle = first + (repeats - 1) / 2
            return _floats(distinct), _floats(2 * middle / (_QUANTILE_KNOTS - 1) - 1)
        # Bounds lie between training values: a value is its own bucket's in float32 and in JSON.
        steps = np.linspace(0, 1, self._field.num_buckets + 1)[1:-1]
        distinct = np.unique(values)
        above = np.unique(np.searchsorted(distinct, np.quantile(values, steps)))
        above = above[above > 0]
        return _floats((distinct[above - 1] + distinct[above]) / 2), ()


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``sign(x) log(1 + |x|)``, defined for every number."""
    logs: NDArray[np.float64] = np.sign(values) * np.log1p(np.abs(values))
    return logs
