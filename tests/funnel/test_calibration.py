"""Calibrated predictions: by task and by way of billing, and the same after a round trip."""

import json

import numpy as np
import pytest

from tamis.errors import ArtifactError
from tamis.evaluation.calibrators import (
    GroupedCalibrator,
    IsotonicCalibrator,
    PlattCalibrator,
)
from tamis.funnel.calibration import UNCALIBRATED, Calibration

_CALIBRATION = Calibration(
    by_task={
        "click": GroupedCalibrator(
            # Odds of all others are halved, those of ads that pay by the click are squared.
            by_group={"click": PlattCalibrator(slope=2.0, intercept=0.0)},
            other=PlattCalibrator(slope=1.0, intercept=float(np.log(0.5))),
        ),
        "hide": GroupedCalibrator(
            by_group={},
            other=IsotonicCalibrator(predicted=(0.0, 0.1, 1.0), calibrated=(0.0, 1 / 3, 1.0)),
        ),
    }
)
_BILLING = np.array(["click", "conversion", "click"])


def test_each_task_and_billing_has_its_own_map() -> None:
    predictions = {
        "click": np.array([0.75, 0.75, 0.5]),
        "hide": np.array([0.05, 0.1, 0.0]),
        "spend": np.array([7.0, -1.0, 2.0]),
    }

    found = _CALIBRATION.apply(predictions, _BILLING)

    # Odds of 3 become 9 and 1.5; odds of 1 stay 1.
    assert found["click"] == pytest.approx([9 / 10, 1.5 / 2.5, 0.5])
    assert found["hide"] == pytest.approx([1 / 6, 1 / 3, 0.0])
    assert found["spend"].tolist() == [7, -1, 2]
    assert predictions["click"].tolist() == [0.75, 0.75, 0.5]


def test_nothing_is_changed_without_a_map() -> None:
    predictions = {"click": np.array([0.1, 0.7])}

    assert UNCALIBRATED.apply(predictions, _BILLING[:2])["click"].tolist() == [0.1, 0.7]


def test_every_number_survives_json() -> None:
    record = json.loads(json.dumps(_CALIBRATION.to_json()))

    assert Calibration.from_json(record) == _CALIBRATION


@pytest.mark.parametrize("record", [[], {"click": {"other": {"method": "platt"}}}])
def test_damaged_record_is_refused(record: object) -> None:
    with pytest.raises(ArtifactError, match=r"calibrat(ion|or): must"):
        Calibration.from_json(record)  # type: ignore[arg-type]
