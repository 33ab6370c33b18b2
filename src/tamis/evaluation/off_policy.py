"""What would another policy earn? Estimates from the log of the policy that was in charge."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.logged_actions import LoggedActions, action_probabilities
from tamis.evaluation.ratio import Estimate, ratio_of_sums

OffPolicyEstimator = Literal["ips", "snips", "dm", "dr"]
"""Inverse propensities, the same self-normalised, the direct method, doubly robust."""

_FEW_ROWS = 50
"""Effective rows below which an interval covers less than it says, and a mean of weights is too
skewed to accuse anybody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyValue:
    """Mean reward per row that a policy would earn, and how far to trust it."""

    estimator: OffPolicyEstimator
    """How it was estimated."""
    estimate: Estimate
    """Mean reward per row. Error and interval are nan where rows in use do not differ."""
    effective_rows: float
    """Effective sample size, (sum w)^2 / sum w^2 of the weights in use; 0 without any weight."""
    largest_weight: float
    """Largest weight before clipping."""
    mean_weight: Estimate
    """Mean weight before clipping; if the propensities are right, 1 less the true mass of actions
    that the logging policy does not take."""
    clip: float | None
    """Largest weight allowed; None for any."""
    clipped_rows: int
    """Rows whose weight was clipped."""
    clipped_share: float
    """Share of the total weight that clipping took away, in [0, 1)."""
    unsupported_rows: int
    """Rows at which the policy may take an action that the logging policy does not take."""
    unsupported_mass: float
    """Mean probability of such actions under the policy, in [0, 1]. Where the log does not say what
    was possible, an action that it never shows at a position counts as one: impossible, or not
    drawn by chance."""
    is_support_known: bool
    """Whether the log says which actions were possible."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the estimate, as sentences; empty when there are none."""
        found = []
        uses_weights = self.estimator != "dm"
        if uses_weights and self.clipped_rows:
            found.append(
                f"Weights above {self.clip!r} were clipped in {self.clipped_rows} rows, "
                f"{self.clipped_share:.2%} of the total weight: the estimate is biased, and its "
                "interval does not cover the bias."
            )
        if uses_weights and self.unsupported_rows:
            why = "cannot show" if self.is_support_known else "never shows, by chance or not"
            found.append(
                f"At {self.unsupported_rows} rows the policy takes actions that the log {why}, "
                f"with mean probability {self.unsupported_mass:.2%}: their rewards are unknown, "
                "and no interval covers that."
            )
        if uses_weights and self.effective_rows < _FEW_ROWS:
            found.append(
                f"The weights are worth {self.effective_rows:.1f} rows: the interval covers the "
                f"truth less often than it says, if there is one. Use {_FEW_ROWS} or more."
            )
        if self.estimator == "dm":
            found.append(
                "The direct method is as wrong as its reward model; its interval covers the luck "
                "of the contexts only."
            )
        if uses_weights and self._surprise > 4.0 * self.mean_weight.standard_error + 1e-5:
            most = "" if self.is_support_known else " at most"
            mass = self.unsupported_mass if self.is_support_known else 0.0
            found.append(
                f"The weights have mean {self.mean_weight.value:.4f} where {1.0 - mass:.4f} is "
                f"expected{most}: the propensities are not those of the policy that made the log, "
                "or a few rare rows carry most of the weight."
            )
        return tuple(found)

    @property
    def _surprise(self) -> float:
        """How far the mean weight is from what right propensities give.

        Of many rows it is beyond four standard errors in one of 16,000 logs. Where nobody knows
        what was possible, it is known alone that the mean must not be above 1.
        """
        if self.effective_rows < _FEW_ROWS:
            return 0.0
        if not self.is_support_known:
            return self.mean_weight.value - 1.0
        return abs(self.mean_weight.value - (1.0 - self.unsupported_mass))

    def to_json(self) -> dict[str, Any]:
        """Writes the value for strict JSON.

        Returns:
            All fields and the warnings.
        """
        return {
            "estimator": self.estimator,
            "estimate": self.estimate.to_json(),
            "effective_rows": self.effective_rows,
            "largest_weight": self.largest_weight,
            "mean_weight": self.mean_weight.to_json(),
            "clip": self.clip,
            "clipped_rows": self.clipped_rows,
            "clipped_share": self.clipped_share,
            "unsupported_rows": self.unsupported_rows,
            "unsupported_mass": self.unsupported_mass,
            "is_support_known": self.is_support_known,
            "warnings": list(self.warnings),
        }


def evaluate_policy(
    log: LoggedActions,
    policy: ArrayLike,
    *,
    estimator: OffPolicyEstimator = "snips",
    predicted: ArrayLike | None = None,
    clip: float | None = None,
    confidence: float = 0.95,
    seed: int | None = None,
    replicates: int = 1000,
) -> PolicyValue:
    """Estimates the mean reward per row that a policy would have earned in place of the logged one.

    With weights w = pi(a|x) / propensity, predicted rewards q and m(x) = sum_a pi(a|x) q(x, a):

    - "ips": mean(w r). Unbiased where every action that pi takes has a propensity above 0.
    - "snips": sum(w r) / sum(w). Slightly biased in small logs, mostly of smaller variance, and
      unchanged in its error if all rewards are raised by a constant.
    - "dm": mean(m(x)). No weights, no variance from them, all of the model's bias.
    - "dr": mean(m(x) + w (r - q(x, a))). Right in large logs if either the propensities or the
      predictions are.

    A row of a slate is judged by itself: its weight has the probability of its action at its
    position (the independent-position model), so the value is per impression.

    Args:
        log: The log, from :func:`tamis.evaluation.logged_actions.logged_actions`.
        policy: (n, A) probability of each action at each row, or (n, P, A) for each position.
        estimator: Which of the four.
        predicted: (n, A) predicted reward of every action at each row's context and position;
            needed by "dm" and "dr", from models that did not see the row
            (:func:`tamis.evaluation.cross_fitting.cross_fit`).
        clip: Largest weight allowed, above 0. Clipping trades variance for bias: with rewards of
            at least 0, IPS then falls short of the truth. None clips nothing.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of a bootstrap interval, at least 0; None for the t interval.
        replicates: Bootstrap replicates, at least 100.

    Returns:
        The value with its interval and the health of its weights. Where the log has groups, they
        are the independent units.

    Raises:
        DataError: Something has no meaning or does not fit the log, ``predicted`` is missing, or
            all weights are 0.

    Source:
        Horvitz and Thompson, JASA 1952 (IPS); Swaminathan and Joachims, NIPS 2015 (SNIPS);
        Dudik, Langford and Li, ICML 2011 (direct method, doubly robust); Li, Abbasi-Yadkori,
        Kveton, Muthukrishnan, Vinay and Wen, KDD 2018 (independent positions); effective sample
        size: Kish, Survey Sampling, 1965.

    Differs from the source:
        The reward model of the direct method is any table of predictions. Clipping of weights is
        an option of all estimators that use weights. The mean is per row, not per slate.

    Example:
        >>> from tamis.evaluation.logged_actions import logged_actions
        >>> log = logged_actions([0, 1, 1], [1, 0, 1], [0.5, 0.25, 0.25])
        >>> always_one = [[0, 1], [0, 1], [0, 1]]
        >>> evaluate_policy(log, always_one, estimator="snips").estimate.value
        0.5
    """
    if estimator not in get_args(OffPolicyEstimator):
        raise DataError(
            f"evaluate_policy: estimator must be one of {get_args(OffPolicyEstimator)}, got "
            f"{estimator!r}. Correct the name."
        )
    if clip is not None and not clip > 0.0:
        raise DataError(
            f"evaluate_policy: clip must be above 0, got {clip!r}. Use None to clip nothing."
        )
    chances = action_probabilities(log, policy)
    raw = chances[np.arange(log.rows), log.action] / log.propensity
    weight = raw if clip is None else np.minimum(raw, clip)
    if estimator != "dm" and not weight.any():
        raise DataError(
            f"evaluate_policy: the policy must take some logged action, got weight 0 in all "
            f"{log.rows} rows. Log a policy that explores what this one does."
        )
    top, bottom = _terms(log, chances, weight, estimator, predicted)
    estimate = ratio_of_sums(
        top, bottom, groups=log.groups, confidence=confidence, seed=seed, replicates=replicates
    )
    unsupported = _unsupported_mass(log, chances)
    total, squared = float(weight.sum()), float(weight @ weight)
    return PolicyValue(
        estimator=estimator,
        estimate=_known(estimate),
        effective_rows=total * total / squared if squared > 0.0 else 0.0,
        largest_weight=float(raw.max()),
        mean_weight=ratio_of_sums(raw, np.ones(log.rows), groups=log.groups, confidence=confidence),
        clip=clip,
        clipped_rows=int(np.count_nonzero(weight < raw)),
        clipped_share=float((raw - weight).sum() / raw.sum()) if raw.any() else 0.0,
        unsupported_rows=int(np.count_nonzero(unsupported)),
        unsupported_mass=float(unsupported.mean()),
        is_support_known=log.is_possible is not None,
    )


def _known(estimate: Estimate) -> Estimate:
    """The estimate without an error where no row in use differs from another, which tells none."""
    if estimate.has_spread:
        return estimate
    nan = float("nan")
    return replace(estimate, standard_error=nan, lower=nan, upper=nan)


def _terms(
    log: LoggedActions,
    chances: NDArray[np.float64],
    weight: NDArray[np.float64],
    estimator: OffPolicyEstimator,
    predicted: ArrayLike | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numerator and denominator of each row; the estimate is the ratio of their sums."""
    ones = np.ones(log.rows)
    if estimator == "ips":
        return weight * log.reward, ones
    if estimator == "snips":
        return weight * log.reward, weight
    guess = _predictions(predicted, chances.shape, estimator)
    expected = np.einsum("na,na->n", chances, guess)
    if estimator == "dm":
        return expected, ones
    own = guess[np.arange(log.rows), log.action]
    return expected + weight * (log.reward - own), ones


def _predictions(
    predicted: ArrayLike | None, shape: tuple[int, ...], estimator: OffPolicyEstimator
) -> NDArray[np.float64]:
    if predicted is None:
        raise DataError(
            f"evaluate_policy: estimator {estimator!r} needs predicted, got None. Make it with "
            "cross_fit."
        )
    guess = np.asarray(predicted, dtype=np.float64)
    if guess.shape != shape or not np.isfinite(guess).all():
        raise DataError(
            f"evaluate_policy: predicted must be finite and of shape {shape}, got shape "
            f"{guess.shape} with {np.count_nonzero(~np.isfinite(guess))} values that are not "
            "finite. Predict the reward of every action at every row."
        )
    return guess


def _unsupported_mass(log: LoggedActions, chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability (n,) that the policy takes an action which the logging policy does not take.

    Where the log does not say what was possible, an action that it never shows at a position
    stands for an impossible one: too many where rows are few, and too few where some contexts
    allow what others do not.
    """
    is_possible = log.is_possible
    if is_possible is None:
        position = np.zeros(log.rows, np.int64) if log.position is None else log.position
        shown = np.zeros((int(position.max()) + 1, chances.shape[1]), dtype=bool)
        shown[position, log.action] = True
        is_possible = shown[position]
    mass: NDArray[np.float64] = np.where(is_possible, 0.0, chances).sum(axis=1)
    return mass
