"""Maps from predicted to calibrated probabilities: Platt's two numbers, or a monotone step curve.

Fit on rows that trained nothing. Targets may be labels or, for a head that imitates another model,
that model's probabilities.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import ArtifactError, DataError

Floats = NDArray[np.float64]
CalibrationMethod = Literal["platt", "isotonic"]

_STEPS = 100
_LEAST_SLOPE = 1e-6
"""Below it the whole range of logits moves by less than rounding tells apart in a report."""
_LOGIT_LIMIT = 36.0
"""Probabilities nearer to 0 or 1 than e^-36 have no exact complement in float64."""


class Calibrator(Protocol):
    """A fitted map of probabilities."""

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities, in the shape and order of what is given."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What :func:`calibrator_from_json` reads."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PlattCalibrator:
    """``p' = sigmoid(slope * logit(p) + intercept)``: strictly increasing, so no two ads tie."""

    slope: float
    """Above 0."""
    intercept: float
    """Nats."""

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities."""
        logit = _logit(_checked("probabilities", probabilities))
        return _sigmoid(self.slope * logit + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """What :func:`calibrator_from_json` reads."""
        return {"method": "platt", "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True, kw_only=True, slots=True)
class IsotonicCalibrator:
    """Linear between knots and constant outside: what lies between two knots of one value ties."""

    predicted: tuple[float, ...]
    """Knots, increasing."""
    calibrated: tuple[float, ...]
    """Values at the knots, not decreasing."""

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities."""
        values = _checked("probabilities", probabilities)
        found: Floats = np.interp(values, self.predicted, self.calibrated)
        return found

    def to_json(self) -> dict[str, Any]:
        """What :func:`calibrator_from_json` reads."""
        return {
            "method": "isotonic",
            "predicted": list(self.predicted),
            "calibrated": list(self.calibrated),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedCalibrator:
    """A calibrator for each group, such as a billing type, and one for all other rows."""

    by_group: Mapping[str, Calibrator]
    """By group, as text."""
    other: Calibrator
    """Fitted on all rows; for groups with too few, or never seen."""

    def apply(self, probabilities: ArrayLike, groups: ArrayLike) -> Floats:
        """Calibrated probabilities.

        Raises:
            DataError: There are not as many groups as probabilities, or one is no probability.
        """
        values, names = np.asarray(probabilities, np.float64), np.asarray(groups)
        if values.shape != names.shape:
            raise DataError(
                f"calibration: groups must have the shape of the probabilities {values.shape}, got "
                f"{names.shape}. Pass one group per row."
            )
        found = self.other.apply(values)
        for name, calibrator in self.by_group.items():
            own = names.astype(str) == name
            found[own] = calibrator.apply(values[own])
        return found

    def to_json(self) -> dict[str, Any]:
        """What :func:`grouped_calibrator_from_json` reads."""
        return {
            "by_group": {name: item.to_json() for name, item in self.by_group.items()},
            "other": self.other.to_json(),
        }


def fit_platt(
    targets: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> PlattCalibrator:
    """Fits slope and intercept by maximum likelihood.

    At the fit predictions add up to targets, weighted: the calibration ratio of the fitted rows
    is 1.

    Args:
        targets: (B,) labels or probabilities in [0, 1]; NaN is left out.
        probabilities: (B,) what the head predicts.
        weights: (B,) finite and not negative; None for 1 everywhere.

    Returns:
        The map.

    Raises:
        DataError: A value is out of range, targets are all 0 or all 1, predictions are all alike
            or part the labels perfectly, or higher predictions go with lower targets.

    Source:
        Platt, Probabilistic outputs for support vector machines, 1999, equation (3).

    Differs from the source:
        The score is the logit of a probability, so that a calibrated head keeps slope 1 and
        intercept 0. Targets are not smoothed; labels that are parted perfectly are refused.
    """
    target, predicted, weight = _observed(targets, probabilities, weights)
    mean = float(weight @ target) / float(weight.sum())
    if not 0 < mean < 1:
        raise DataError(
            f"platt: targets must not be all alike at 0 or 1, got a mean of {mean:g} over "
            f"{target.size} rows. Fit on more rows."
        )
    logit = _logit(predicted)
    if logit.min() == logit.max():
        raise DataError(
            f"platt: predictions must differ to have a slope, got only {predicted[0]:g} in "
            f"{predicted.size} rows. Fit a head that has learned something."
        )
    lowest, highest = logit[target > 0].min(), logit[target < 1].max()
    if lowest >= highest:
        raise DataError(
            f"platt: predictions must not part the labels perfectly, got none of a positive below "
            f"{_sigmoid(highest):g}, the highest of a negative. Fit on more rows."
        )
    slope, intercept = _newton(logit, target, weight)
    if not slope > _LEAST_SLOPE:
        raise DataError(
            f"platt: targets must rise with the predictions, got a slope of {slope:.3g}. A head "
            f"that predicts the reverse needs training, not calibration."
        )
    return PlattCalibrator(slope=slope, intercept=intercept)


def fit_isotonic(
    targets: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> IsotonicCalibrator:
    """Fits the non-decreasing curve of least squared error, by pooling adjacent violators.

    At the knots predictions add up to targets. For values whose order matters take Platt's map:
    within a pooled block all candidates tie.

    Args:
        targets: (B,) labels or probabilities in [0, 1]; NaN is left out.
        probabilities: (B,) what the head predicts.
        weights: (B,) finite and not negative; None for 1 everywhere.

    Returns:
        The map.

    Raises:
        DataError: A value is out of range, or no row counts.

    Source:
        Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability
        estimates, KDD 2002; linear between blocks as scikit-learn does.

    Differs from the source:
        Nothing known; parity with a public implementation is tested.
    """
    target, predicted, weight = _observed(targets, probabilities, weights)
    knots, place = np.unique(predicted, return_inverse=True)
    mass, total = np.bincount(place, weight), np.bincount(place, weight * target)
    starts = np.arange(knots.size)
    while True:
        mean = total / mass
        # Every block that is not above the one before joins it, a whole falling run at a time.
        begins = np.concatenate([[True], mean[1:] > mean[:-1]])
        if begins.all():
            break
        first = np.flatnonzero(begins)
        mass, total = np.add.reduceat(mass, first), np.add.reduceat(total, first)
        starts = starts[first]
    ends = np.concatenate([starts[1:], [knots.size]]) - 1
    places = np.unique(np.concatenate([starts, ends]))
    values = mean[np.searchsorted(starts, places, side="right") - 1]
    return IsotonicCalibrator(
        predicted=tuple(knots[places].tolist()),
        calibrated=tuple(np.clip(values, 0.0, 1.0).tolist()),
    )


def fit_calibrator(
    method: CalibrationMethod,
    targets: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
) -> Calibrator:
    """Fits by :func:`fit_platt` or :func:`fit_isotonic`."""
    if method == "platt":
        return fit_platt(targets, probabilities, weights=weights)
    return fit_isotonic(targets, probabilities, weights=weights)


def fit_by_group(
    method: CalibrationMethod,
    targets: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    min_targets: float = 100.0,
) -> GroupedCalibrator:
    """Fits a map for each group that is large enough, and one for all rows.

    A head that is right overall may be too high for one billing type and too low for another, and
    then moves ads of the two past each other.

    Args:
        method: How to fit.
        targets: (B,) labels or probabilities in [0, 1]; NaN is left out.
        probabilities: (B,) what the head predicts.
        groups: (B,) such as billing types; compared as text.
        weights: (B,) finite and not negative; None for 1 everywhere.
        min_targets: Smallest sum of a group's targets, as of what they lack to 1, for a map of
            its own: the number of positives and of negatives where targets are labels. Rows
            without weight are left out.

    Returns:
        The maps.

    Raises:
        DataError: As the fits do, naming the group, or there are not as many groups as targets.
    """
    target, names = np.asarray(targets, np.float64), np.asarray(groups).astype(str)
    if target.shape != names.shape:
        raise DataError(
            f"calibration: groups must have the shape of the targets {target.shape}, got "
            f"{names.shape}. Pass one group per row."
        )
    predicted = np.asarray(probabilities, np.float64)
    weight = None if weights is None else np.asarray(weights, np.float64)
    other = fit_calibrator(method, target, predicted, weights=weight)
    by_group = {}
    for name in np.unique(names):
        own = names == name
        counted = target[own if weight is None else own & (weight > 0)]
        if min(np.nansum(counted), np.nansum(1 - counted)) >= min_targets:
            own_weight = None if weight is None else weight[own]
            try:
                by_group[str(name)] = fit_calibrator(
                    method, target[own], predicted[own], weights=own_weight
                )
            except DataError as error:
                raise DataError(f"group {str(name)!r}: {error}") from error
    return GroupedCalibrator(by_group=by_group, other=other)


def calibrator_from_json(record: Mapping[str, Any]) -> Calibrator:
    """Reads what a calibrator's ``to_json`` wrote.

    Raises:
        ArtifactError: The record is of no known method, or damaged.
    """
    try:
        if record["method"] == "platt":
            return PlattCalibrator(
                slope=float(record["slope"]), intercept=float(record["intercept"])
            )
        if record["method"] == "isotonic":
            return IsotonicCalibrator(
                predicted=tuple(map(float, record["predicted"])),
                calibrated=tuple(map(float, record["calibrated"])),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"calibrator: must be whole, got {error!r}. It was altered; fit it anew."
        ) from error
    raise ArtifactError(
        f"calibrator: method must be platt or isotonic, got {record['method']!r}. Fit it anew."
    )


def grouped_calibrator_from_json(record: Mapping[str, Any]) -> GroupedCalibrator:
    """Reads what :meth:`GroupedCalibrator.to_json` wrote.

    Raises:
        ArtifactError: The record is damaged.
    """
    if not {"by_group", "other"} <= record.keys():
        raise ArtifactError(
            f"calibrator: must hold by_group and other, got {', '.join(record)}. Fit it anew."
        )
    return GroupedCalibrator(
        by_group={name: calibrator_from_json(item) for name, item in record["by_group"].items()},
        other=calibrator_from_json(record["other"]),
    )


def _newton(logit: Floats, target: Floats, weight: Floats) -> tuple[float, float]:
    """Slope and intercept of least cross entropy: Newton's steps, halved where they overshoot."""
    # A constant, whose curvature is sound; at slope 1 certain predictions would have none at all.
    mean = float(weight @ target / weight.sum())
    parameters = np.array([0.0, math.log(mean / (1 - mean))])
    inputs = np.stack([logit, np.ones_like(logit)])

    def loss(point: Floats) -> float:
        z = point @ inputs
        return float(weight @ (np.logaddexp(0.0, z) - target * z))

    now = loss(parameters)
    for _ in range(_STEPS):
        p = _sigmoid(parameters @ inputs)
        gradient = inputs @ (weight * (p - target))
        curvature = (inputs * (weight * p * (1 - p))) @ inputs.T
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        # Near the end losses differ by rounding alone, and the full step is the right one.
        while (after := loss(parameters - step)) > now * (1 + 1e-12):
            step /= 2
        parameters, now = parameters - step, after
        if np.abs(step).max() < 1e-12:
            break
    return float(parameters[0]), float(parameters[1])


def _observed(
    targets: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    target = np.asarray(targets, np.float64)
    predicted = _checked("probabilities", probabilities)
    weight = np.ones_like(target) if weights is None else np.asarray(weights, np.float64)
    if target.ndim != 1 or not target.shape == predicted.shape == weight.shape:
        raise DataError(
            f"calibration: targets, probabilities and weights must be columns of one length, got "
            f"shapes {target.shape}, {predicted.shape} and {weight.shape}. Pass one value per row."
        )
    known = ~np.isnan(target)
    _checked("targets", target[known])
    if not ((weight >= 0) & (weight < math.inf)).all():
        raise DataError("calibration: weights must be finite and not negative. Mend the column.")
    if not weight[known].any():
        raise DataError(
            f"calibration: some row must have a target and a weight, got none of {target.size}. "
            f"Fit on other rows."
        )
    counts = known & (weight > 0)
    return target[counts], predicted[counts], weight[counts]


def _checked(name: str, values: ArrayLike) -> Floats:
    column = np.asarray(values, np.float64)
    right = (column >= 0) & (column <= 1)
    if not right.all():
        wrong = column[~right].flat[0].item()
        raise DataError(
            f"calibration: {name} must be in [0, 1], got {wrong!r}. Check where they were made."
        )
    return column


def _logit(probabilities: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        logit: Floats = np.log(probabilities) - np.log1p(-probabilities)
    return logit.clip(-_LOGIT_LIMIT, _LOGIT_LIMIT)


def _sigmoid(z: Floats) -> Floats:
    probabilities: Floats = np.exp(-np.logaddexp(0.0, -z))
    return probabilities
