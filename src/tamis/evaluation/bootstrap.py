"""Paired bootstrap by user: the uncertainty of a difference in NE, log loss, AUC or grouped AUC.

Whole users are drawn, because rows of one user depend on each other; both models are judged on the
same draws, so what they share cancels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.loss import entropy, row_log_losses
from tamis.evaluation.ranking import areas_by_group, auc_of_rows, group_codes
from tamis.evaluation.rows import EvaluatedRows, observed_rows, require_both_classes
from tamis.evaluation.significance import PairedDifference, require_confidence

BootstrapMetric = Literal["ne", "log_loss", "auc", "gauc"]
"""Metrics whose difference can be bootstrapped."""

_CHUNK_VALUES = 4_000_000
"""Draws held at once (32 MB in float64); replicates are made in chunks of this size."""

_DRAW_VALUES = 65_536
"""Values of the 16-bit numbers that are turned into Poisson draws."""


def paired_bootstrap(
    labels: ArrayLike,
    baseline: ArrayLike,
    candidate: ArrayLike,
    groups: ArrayLike | None,
    *,
    seed: int,
    metrics: tuple[BootstrapMetric, ...] = ("ne", "log_loss"),
    weights: ArrayLike | None = None,
    replicates: int = 1000,
    confidence: float = 0.95,
) -> tuple[PairedDifference, ...]:
    """Bootstraps the difference between two models on the same rows, drawing whole users.

    Each replicate gives every user an independent Poisson(1) number of copies, which for many
    users equals drawing them with replacement, and forms the metrics anew from the sums. NE, log
    loss and grouped AUC need only per-user sums, one matrix product for all replicates; AUC
    needs a pass over the rows for each replicate and model. The result depends on ``seed`` alone.

    Args:
        labels: (B,) of 0, 1 or NaN (not observed, left out).
        baseline: (B,) probabilities of the baseline.
        candidate: (B,) probabilities of the candidate.
        groups: (B,) user of each row; None draws single rows.
        seed: Seed of the draws, at least 0.
        metrics: What to compare, each of "ne", "log_loss", "auc" and "gauc".
        weights: (B,) finite and not negative; None for 1 everywhere.
        replicates: Number of replicates, at least 100. The smallest p-value is 2 / (this + 1).
        confidence: Coverage of the percentile interval, in (0, 1).

    Returns:
        One difference per metric, in the order of ``metrics``.

    Raises:
        DataError: A value has no meaning, a class is missing, or the users with positives (or, for
            the grouped AUC, with both classes) are so few that over 1 % of the replicates have
            none; rarer ones are left out and show as fewer ``replicates``.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13; Poisson
        copies: Chamandy et al., Estimating uncertainty for massive data streams, Google 2012.

    Differs from the source:
        Poisson draws come from 16-bit numbers: mean and variance are 1 to within 3e-4.
    """
    _require_settings(metrics, groups, seed, replicates, confidence)
    before = observed_rows(labels, baseline, weights=weights, groups=groups)
    after = observed_rows(labels, candidate, weights=weights)
    require_both_classes(before, "paired_bootstrap")
    unit = unit_codes(before.groups, before.rows)
    needs_gauc = "gauc" in metrics
    sums = _sums_by_unit(before, after, unit, needs_gauc)
    curves = tuple(_RocOrder.of(rows, unit) for rows in (before, after)) if "auc" in metrics else ()
    replicated = _replicate(sums, curves, replicates, np.random.default_rng(seed))
    whole = _metrics_of_sums(sums.sum(axis=0, keepdims=True))
    if curves:
        area = auc_of_rows(before)
        whole["auc"] = np.array([[area, auc_of_rows(after) - area]])
    return tuple(
        _difference(name, whole[name][0], replicated[name], confidence, sums.shape[0])
        for name in metrics
    )


def unit_codes(groups: NDArray[np.generic] | None, rows: int) -> NDArray[np.int64]:
    """Numbers the independent units of some rows from 0 without gaps.

    Args:
        groups: (B,) unit of each row, such as its user; None makes every row a unit.
        rows: Number of rows, B.

    Returns:
        (B,) the number of each row's unit.
    """
    if groups is None:
        return np.arange(rows, dtype=np.int64)
    code = group_codes(groups)
    is_used = np.bincount(code) > 0
    return (np.cumsum(is_used) - 1)[code]


def poisson_copies(
    units: int, replicates: int, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Draws how often each unit counts in each replicate, in chunks that bound the memory.

    Args:
        units: Number of independent units, at least 1.
        replicates: Number of replicates.
        rng: Source of the draws.

    Yields:
        The first replicate of a chunk, and the copies (size of the chunk, units) of each unit.
    """
    copies_of_draw = _poisson_table()
    # Four 16-bit draws per word; whole words per replicate make results independent of chunks.
    words = -(-units // 4)
    chunk = max(1, _CHUNK_VALUES // units)
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        raw = rng.integers(0, 2**64, size=(size, words), dtype=np.uint64)
        yield start, copies_of_draw[raw.view(np.uint16)[:, :units]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _RocOrder:
    """Rows of one model in score order, so that an AUC under new weights needs no sort."""

    low_unit: NDArray[np.int64]
    low_weight: NDArray[np.float64] | None
    high_unit: NDArray[np.int64]
    high_weight: NDArray[np.float64] | None
    below: NDArray[np.int64]
    not_above: NDArray[np.int64] | None
    """None where no positive ties with a negative: then it equals ``below``."""

    @classmethod
    def of(cls, rows: EvaluatedRows, unit: NDArray[np.int64]) -> "_RocOrder":
        high, low = rows.predicted[rows.positive], rows.predicted[~rows.positive]
        high_order, low_order = np.argsort(high), np.argsort(low)
        high, low = high[high_order], low[low_order]
        below = np.searchsorted(low, high, side="left")
        not_above = np.searchsorted(low, high, side="right")
        weights = rows.weights
        return cls(
            low_unit=unit[~rows.positive][low_order],
            low_weight=None if weights is None else weights[~rows.positive][low_order],
            high_unit=unit[rows.positive][high_order],
            high_weight=None if weights is None else weights[rows.positive][high_order],
            below=below,
            not_above=None if np.array_equal(below, not_above) else not_above,
        )

    def auc(self, copies: NDArray[np.uint8]) -> float:
        """AUC when unit u counts ``copies[u]`` times; nan without both classes."""
        # One byte per unit keeps the table in cache, where most of the time is spent looking it up.
        low_copies = np.take(copies, self.low_unit, mode="clip")
        high_copies = np.take(copies, self.high_unit, mode="clip")
        low = low_copies if self.low_weight is None else low_copies * self.low_weight
        high = high_copies if self.high_weight is None else high_copies * self.high_weight
        # Copies add up as integers, exactly and several times as fast as in float64. A unit has 8
        # at most, so that 2**28 rows fit 32 bits.
        whole = np.int32 if low.size < 2**28 else np.int64
        mass = np.zeros(low.size + 1, dtype=whole if self.low_weight is None else np.float64)
        np.cumsum(low, dtype=mass.dtype, out=mass[1:])
        pairs = float(high.sum()) * float(mass[-1])
        if pairs <= 0.0:
            return float("nan")
        won = np.take(mass, self.below, mode="clip").astype(np.float64)
        if self.not_above is not None:
            won = 0.5 * (won + np.take(mass, self.not_above, mode="clip"))
        return float(high.astype(np.float64, copy=False) @ won) / pairs


def _require_settings(
    metrics: tuple[BootstrapMetric, ...],
    groups: ArrayLike | None,
    seed: int,
    replicates: int,
    confidence: float,
) -> None:
    require_confidence("paired_bootstrap", confidence)
    known = ("ne", "log_loss", "auc", "gauc")
    if not metrics or any(name not in known for name in metrics):
        raise DataError(
            f"paired_bootstrap: metrics must be some of {known}, got {metrics!r}. "
            "Correct the names."
        )
    if "gauc" in metrics and groups is None:
        raise DataError(
            "paired_bootstrap: the metric 'gauc' needs groups, got None. Pass the user of each row."
        )
    if replicates < 100 or seed < 0:
        raise DataError(
            "paired_bootstrap: replicates must be at least 100 and seed at least 0, got "
            f"{replicates!r} and {seed!r}. Use 1000 replicates for a 95 % interval."
        )


def _sums_by_unit(
    before: EvaluatedRows, after: EvaluatedRows, unit: NDArray[np.int64], needs_gauc: bool
) -> NDArray[np.float64]:
    """Per unit: loss and its change, weight, positive weight; for GAUC area, its change, mass.

    Changes are summed as such, so that equal models differ by exactly 0 in every replicate.
    """
    weight = np.ones(before.rows) if before.weights is None else before.weights
    loss, _ = row_log_losses(before.positive, before.predicted)
    change = row_log_losses(after.positive, after.predicted)[0] - loss
    columns = [np.bincount(unit, weights=weight * column) for column in (loss, change)]
    columns += [np.bincount(unit, weights=weight)]
    columns += [np.bincount(unit, weights=weight * before.positive)]
    if needs_gauc:
        area_before, mass = areas_by_group(before, unit)
        area_after, _ = areas_by_group(after, unit)
        counted = np.where(np.isfinite(area_before), mass, 0.0)
        if not counted.any():
            raise DataError(
                f"paired_bootstrap: for 'gauc' a group must hold both classes, got none in "
                f"{counted.size} groups. Leave 'gauc' out."
            )
        columns += [counted * np.nan_to_num(area_before)]
        columns += [counted * np.nan_to_num(area_after - area_before), counted]
    if columns[0].size < 2:
        raise DataError(
            f"paired_bootstrap: there must be at least two users, got {columns[0].size}. "
            "Check the column of groups."
        )
    return np.stack(columns, axis=1)


def _replicate(
    sums: NDArray[np.float64],
    curves: tuple[_RocOrder, ...],
    replicates: int,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.float64]]:
    """Baseline and difference (replicates, 2) of each metric, by name."""
    drawn = np.empty((replicates, sums.shape[1]))
    areas = np.empty((replicates, 2))
    for start, copies in poisson_copies(sums.shape[0], replicates, rng):
        drawn[start : start + len(copies)] = copies @ sums
        for row in range(len(copies) if curves else 0):
            whole = copies[row].astype(np.uint8)
            area = curves[0].auc(whole)
            areas[start + row] = (area, curves[1].auc(whole) - area)
    values = _metrics_of_sums(drawn)
    if curves:
        values["auc"] = areas
    return values


def _poisson_table() -> NDArray[np.float64]:
    """Copies for each 16-bit draw, so that uniform draws give Poisson(1) copies."""
    # Rounded shares of 65536: they happen to add up exactly, which a test holds on to.
    shares = [round(_DRAW_VALUES * math.exp(-1.0) / math.factorial(k)) for k in range(9)]
    return np.repeat(np.arange(9, dtype=np.float64), shares)


def _metrics_of_sums(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Baseline and difference (rows of ``sums``, 2) from sums of :func:`_sums_by_unit`."""
    weight, positive = sums[:, 2], sums[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_loss = sums[:, :2] / weight[:, None]
        rate = positive / weight
    is_defined = (rate > 0.0) & (rate < 1.0)
    normaliser = np.array(
        [entropy(value) if good else np.nan for value, good in zip(rate, is_defined, strict=True)]
    )
    values = {"ne": mean_loss / normaliser[:, None], "log_loss": mean_loss}
    if sums.shape[1] > 4:
        with np.errstate(divide="ignore", invalid="ignore"):
            values["gauc"] = sums[:, 4:6] / sums[:, 6:7]
    return values


def _difference(
    metric: BootstrapMetric,
    whole: NDArray[np.float64],
    replicated: NDArray[np.float64],
    confidence: float,
    units: int,
) -> PairedDifference:
    differences = replicated[:, 1]
    defined = differences[np.isfinite(differences)]
    if defined.size < 0.99 * differences.size:
        raise DataError(
            f"paired_bootstrap: at most 1 % of the replicates may lack a class, got "
            f"{differences.size - defined.size} of {differences.size} for {metric!r}. "
            "Evaluate on more users with positives."
        )
    tail = (1.0 - confidence) / 2.0
    lower, upper = np.quantile(defined, [tail, 1.0 - tail])
    least = min(np.count_nonzero(defined <= 0.0), np.count_nonzero(defined >= 0.0))
    return PairedDifference(
        metric=metric,
        baseline=float(whole[0]),
        candidate=float(whole[0] + whole[1]),
        difference=float(whole[1]),
        standard_error=float(defined.std(ddof=1)),
        lower=float(lower),
        upper=float(upper),
        # Counting the observed sample as one more replicate keeps the p-value above zero.
        p_value=min(1.0, 2.0 * (1 + int(least)) / (defined.size + 1)),
        confidence=confidence,
        method="paired Poisson bootstrap",
        units=units,
        replicates=defined.size,
    )
