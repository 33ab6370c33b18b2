"""Calibration of heads: fitted on validation rows, measured on what is judged, and claimed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.data.cascade_log import REJECTED
from tamis.errors import DataError
from tamis.evaluation import GroupedCalibrator, fit_by_group
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.variants import CalibrationClaim, Pools

BOUNDS = (0.97, 1.03)
"""Between which what a calibrated head predicts lies, as a share of its targets."""
_DECILES = 10
_EACH = {"all": "", "billing": " for each way to pay", "bid decile": " in each bid decile"}


class ValidationRows:
    """Rows that trained nothing, on which heads are calibrated: those that the final stage scored.

    A log keeps all impressions and some of the other scored candidates, so that each row counts for
    as many as it stands for. Alike, they would calibrate a head to the impressions, which are what
    the final stage values most.
    """

    def __init__(self, study: Study, pools: Pools) -> None:
        """Read the rows of some pools."""
        log, (_, billing) = study.log(pools, "valid"), study.ads()
        self._is_scored = log.pool < REJECTED
        self._billing = billing[log.candidate[self._is_scored]]
        # Without the cap of training weights, which spares batches and costs bias.
        self._weights = 1 / log.sampling_rate[self._is_scored]

    def fit(
        self, target: NDArray[np.float32], predicted: NDArray[np.float64]
    ) -> GroupedCalibrator | None:
        """Platt's map for each way to pay, or None where a head learned too little to have one.

        Args:
            target: (n,) of all validation rows: labels, or what the final stage predicts; NaN where
                there is none.
            predicted: (n,) by the head, of the same rows.
        """
        scored = self._is_scored
        try:
            return fit_by_group(
                "platt", target[scored], predicted[scored], self._billing, weights=self._weights
            )
        except DataError:
            return None


def calibration_ratios(
    target: NDArray[np.floating[Any]],
    predicted: NDArray[np.float64],
    *,
    billing: NDArray[np.str_],
    bid: NDArray[np.float64],
) -> dict[str, dict[str, dict[str, float | None]]]:
    """What is predicted over what was to be predicted, of rows that have a target.

    Args:
        target: (n,) NaN where there is none.
        predicted: (n,) calibrated.
        billing: (n,) the billed event.
        bid: (n,) money for it.

    Returns:
        ``ratio``, None where targets are all 0, and ``targets``, their sum, by part of the rows and
        by what parts them: ``all``, ``billing`` and ``bid decile``. Equal bids stay together.
    """
    known = ~np.isnan(target)
    target, predicted, billing, bid = (x[known] for x in (target, predicted, billing, bid))
    place = np.searchsorted(np.sort(bid), bid)
    parts: dict[str, NDArray[Any]] = {
        "all": np.full(bid.size, "all"),
        "billing": billing,
        "bid decile": 1 + place * _DECILES // max(bid.size, 1),
    }
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for by, names in parts.items():
        found[by] = {}
        for name in np.unique(names):
            own = names == name
            mass = float(target[own].sum(dtype=np.float64))
            ratio = float(predicted[own].sum()) / mass if mass else None
            found[by][str(name)] = {"ratio": ratio, "targets": mass}
    return found


def calibration_claims(
    claim: CalibrationClaim, tasks: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The claim for each task of which some part of the rows has targets.

    The estimate is the ratio that lies farthest from 1, the interval the lowest and the highest,
    over all parts and seeds.
    """
    low, high = BOUNDS
    made = []
    for task in tasks:
        parts = [
            part
            for row in rows
            if row["model"] == claim.model
            for part in row["heads"][task]["calibration"][claim.head][claim.by].values()
            if part["ratio"] is not None
        ]
        if not parts:
            continue
        ratios = [part["ratio"] for part in parts]
        least = min(part["targets"] for part in parts)
        made.append(
            {
                "claim": f"{claim.model}: what its {claim.head} head predicts of {task} is {low:g} "
                f"to {high:g} of its targets{_EACH[claim.by]}",
                "estimate": max(ratios, key=lambda ratio: abs(ratio - 1)),
                "interval": [min(ratios), max(ratios)],
                "holds": low <= min(ratios) and max(ratios) <= high,
                "how": f"lowest and highest of {len(ratios)} ratios over seeds, of targets that "
                f"add up to {least:.1f} at least",
                # Labels are few: their sums may be this far off by chance.
                "is_check": claim.head == "served",
            }
        )
    return made
