"""What an ad is worth to the platform: one function of predictions and bid for every stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import ConfigError, DataError

BILLING = ("click", "conversion")
"""What an advertiser pays for: each click, or each conversion."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueWeights:
    """Constants of the platform; they are set, never learned."""

    click: str = "click"
    """Prediction of a click."""
    conversion: str = "conversion"
    """Prediction of a conversion, given a click."""
    quality: str = ""
    """Prediction of what makes an ad good for the user, a score of any sign. Empty: none."""
    quality_weight: float = 0.0
    """Money for one unit of it."""
    penalties: dict[str, float] = field(default_factory=dict)
    """By the prediction of an event that users do not want, such as a hide: money that one costs,
    at least 0."""

    def __post_init__(self) -> None:
        if bool(self.quality) != bool(self.quality_weight):
            raise ConfigError(
                f"value.quality_weight: must be set together with value.quality, got "
                f"{self.quality_weight} for {self.quality!r}. Set both, or neither."
            )
        for event, cost in self.penalties.items():
            if not cost >= 0:
                raise ConfigError(
                    f"value.penalties.{event}: must be at least 0, got {cost}. An event that is "
                    f"worth money belongs in value.quality."
                )

    def read_of(self, billing: ArrayLike) -> dict[str, str]:
        """Predictions that the values of ads read, by the setting that names each.

        Args:
            billing: Of ``BILLING``, for each ad.
        """
        found = {"value.click": self.click}
        if (np.asarray(billing) == "conversion").any():
            found["value.conversion"] = self.conversion
        if self.quality:
            found["value.quality"] = self.quality
        return found | {f"value.penalties.{event}": event for event in self.penalties}

    @property
    def predictions(self) -> tuple[str, ...]:
        """Names of all predictions that a value needs."""
        return tuple(self.read_of(BILLING).values())


class ValueFunction:
    """``bid p(click) p(conversion | click) + w s - sum_e w_e p_e``, in the money of the bid.

    An ad that pays by the click has no factor for the conversion. Early and final stage rank by
    this one function, with the same bids and weights, each by its own predictions, and are
    compared through it alone.

    Source:
        Wang et al., arXiv:2307.11096: the total value combines action, bid and quality.

    Differs from the source:
        The paper's formula was not read; this form is the one that its notes describe.
    """

    def __init__(self, weights: ValueWeights) -> None:
        """Fix the weights."""
        self.weights = weights

    def score(
        self, predictions: Mapping[str, ArrayLike], bid: ArrayLike, billing: ArrayLike
    ) -> Floats:
        """Values of candidates; shapes broadcast, so a constant may stand for a prediction.

        Args:
            predictions: By name: probabilities, and the quality score where weights name one. The
                conversion's is not looked at where all candidates pay by the click.
            bid: Money for the event that is billed, at least 0.
            billing: Of ``BILLING``, for each candidate or for all.

        Returns:
            Values, of any sign.

        Raises:
            DataError: A prediction is missing or no probability, a bid is negative or not finite,
                or a billing type is unknown.
        """
        weights = self.weights
        money, paid_by = np.asarray(bid, np.float64), np.asarray(billing)
        _check("bid", "a finite number of at least 0", money, (money >= 0) & (money < np.inf))
        by_click = paid_by == "click"
        _check("billing", f"one of {BILLING}", paid_by, by_click | (paid_by == "conversion"))
        value = money * self._probability(predictions, weights.click)
        if not by_click.all():
            conversion = self._probability(predictions, weights.conversion)
            value = value * np.where(by_click, 1.0, conversion)
        if weights.quality:
            score = self._prediction(predictions, weights.quality)
            _check(weights.quality, "a finite number", score, np.isfinite(score))
            value = value + weights.quality_weight * score
        for event, cost in weights.penalties.items():
            value = value - cost * self._probability(predictions, event)
        return np.asarray(value, np.float64)

    def _probability(self, predictions: Mapping[str, ArrayLike], name: str) -> Floats:
        values = self._prediction(predictions, name)
        _check(name, "in [0, 1]", values, (values >= 0) & (values <= 1))
        return values

    @staticmethod
    def _prediction(predictions: Mapping[str, ArrayLike], name: str) -> Floats:
        if name not in predictions:
            raise DataError(
                f"value: predictions must hold {name!r}, got {', '.join(predictions)}. Predict it, "
                f"or give a constant."
            )
        return np.asarray(predictions[name], np.float64)


def _check(name: str, rule: str, values: NDArray[np.generic], right: NDArray[np.bool_]) -> None:
    if not right.all():
        wrong = values[~right].flat[0] if values.ndim else values[()]
        raise DataError(
            f"value: {name} must be {rule}, got {wrong.item()!r} ({np.count_nonzero(~right)} such "
            f"values). Check where it was made."
        )
