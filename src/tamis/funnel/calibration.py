"""What a stage's predictions pass through before they enter the total value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import ArtifactError
from tamis.evaluation.calibrators import GroupedCalibrator, grouped_calibrator_from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A map for each task and each way of billing.

    A factor that is right on average, but too high for ads that pay by the click, moves those past
    the others in every request.
    """

    by_task: Mapping[str, GroupedCalibrator] = field(default_factory=dict)
    """By task, in groups of ``AdTable.billing``. A task without one stays as it is predicted."""

    def apply(
        self, predictions: Mapping[str, NDArray[np.float64]], billing: NDArray[Any]
    ) -> dict[str, NDArray[np.float64]]:
        """Calibrated predictions.

        Args:
            predictions: (n,) by task.
            billing: (n,) what the ads pay for.
        """
        return {
            task: self.by_task[task].apply(values, billing) if task in self.by_task else values
            for task, values in predictions.items()
        }

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return {task: calibrator.to_json() for task, calibrator in self.by_task.items()}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "Calibration":
        """Reads what :meth:`to_json` wrote; every number is the same.

        Raises:
            ArtifactError: The record is damaged.
        """
        if not isinstance(record, Mapping):
            raise ArtifactError(
                f"calibration: must be a table by task, got {record!r}. It was altered; publish "
                f"anew."
            )
        return Calibration(
            by_task={task: grouped_calibrator_from_json(item) for task, item in record.items()}
        )


UNCALIBRATED = Calibration()
"""Leaves every prediction as it is."""
