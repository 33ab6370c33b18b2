"""Calibration of heads: to all that was scored, of parts of what is judged, and as claimed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tamis.data.cascade_log import CascadeLog
from tamis.reproduce.early.calibration import (
    ValidationRows,
    calibration_claims,
    calibration_ratios,
)
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.variants import CalibrationClaim

REQUESTS, CANDIDATES, SHOWN, SAMPLED = 400, 30, 5, 5


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_a_sample_of_the_scored_calibrates_to_all_of_them() -> None:
    generator = np.random.default_rng(0)
    logit = np.sort(generator.normal(-1, 1, (REQUESTS, CANDIDATES)))[:, ::-1]
    final = _sigmoid(logit)
    # An imitation that errs makes the best look worse and the others better.
    predicted = _sigmoid(logit + generator.normal(0, 1.5, logit.shape))
    billing = np.array(["click", "conversion"])
    kept = np.concatenate(
        [np.tile(np.arange(SHOWN), (REQUESTS, 1)),
         np.array([generator.choice(np.arange(SHOWN, CANDIDATES), SAMPLED, replace=False)
                   for _ in range(REQUESTS)])],
        axis=1,
    )  # fmt: skip
    rate = np.tile([*[1.0] * SHOWN, *[SAMPLED / (CANDIDATES - SHOWN)] * SAMPLED], REQUESTS)
    sample, predicted_sample = (np.take_along_axis(x, kept, 1).ravel() for x in (final, predicted))
    log = CascadeLog(
        request=np.arange(REQUESTS).repeat(SHOWN + SAMPLED),
        candidate=kept.ravel(),
        pool=np.where(kept.ravel() < SHOWN, 0, 1).astype(np.int8),
        sampling_rate=rate,
        labels={},
        final={"click": sample.astype(np.float32)},
    )
    study: Any = SimpleNamespace(
        log=lambda pools, split: log,
        ads=lambda: (np.ones(CANDIDATES), billing[np.arange(CANDIDATES) % 2]),
    )

    calibrator = ValidationRows(study, "scored").fit(log.final["click"], predicted_sample)

    assert calibrator is not None
    assert set(calibrator.by_group) == set(billing)
    for way, kind in enumerate(billing):
        own = slice(way, None, 2)
        found = calibrator.apply(
            predicted[:, own].ravel(), np.full(REQUESTS * CANDIDATES // 2, kind)
        )
        # With all rows alike it would be 1.27.
        assert found.sum() / final[:, own].sum() == pytest.approx(1.0, abs=0.03), kind


def test_rows_that_the_final_stage_did_not_score_calibrate_nothing(study: Study) -> None:
    log = study.log("rejected", "valid")
    target = log.final["click"].astype(np.float64)
    predicted = np.clip(0.5 * target + 0.1, 0.01, 0.99)
    calibrator = ValidationRows(study, "rejected").fit(log.final["click"], predicted)
    is_rejected = log.pool == 2
    other = np.where(is_rejected, 0.9, predicted)
    again = ValidationRows(study, "rejected").fit(log.final["click"], other)

    assert is_rejected.any()
    assert calibrator is not None
    assert again == calibrator


def test_a_head_that_learned_nothing_has_no_calibration(study: Study) -> None:
    final = study.log("rejected", "valid").final["click"]
    alike = np.full(len(final), 0.3)
    assert ValidationRows(study, "rejected").fit(final, alike) is None


def test_ratios_are_of_rows_with_a_target_by_way_to_pay_and_tenth_of_bids() -> None:
    bid = np.arange(20.0)
    target = np.full(20, 0.5)
    target[19] = np.nan
    predicted = np.where(bid < 10, 0.25, 0.75)
    billing = np.where(bid % 2 == 0, "click", "conversion")

    found = calibration_ratios(target, predicted, billing=billing, bid=bid)

    # Ten rows of 0.25 and nine of 0.75, over nineteen of 0.5.
    assert found["all"] == {"all": {"ratio": pytest.approx(9.25 / 9.5), "targets": 9.5}}
    assert found["billing"]["click"] == {"ratio": pytest.approx(1.0), "targets": 5.0}
    assert found["billing"]["conversion"]["ratio"] == pytest.approx(4.25 / 4.5)
    deciles = found["bid decile"]
    assert list(deciles) == [str(number) for number in range(1, 11)]
    assert deciles["1"] == {"ratio": pytest.approx(0.5), "targets": 1.0}
    assert deciles["10"] == {"ratio": pytest.approx(1.5), "targets": 0.5}


def test_equal_bids_are_in_one_tenth_and_without_targets_there_is_no_ratio() -> None:
    target = np.zeros(10)
    bid = np.array([1.0] * 5 + [2.0] * 5)
    billing = np.full(10, "click")
    found = calibration_ratios(target, target + 0.1, billing=billing, bid=bid)
    assert found["bid decile"] == {key: {"ratio": None, "targets": 0.0} for key in "16"}
    nothing = calibration_ratios(np.full(10, np.nan), target, billing=billing, bid=bid)
    assert nothing == {"all": {}, "billing": {}, "bid decile": {}}


@pytest.mark.parametrize(("worst", "holds"), [(0.98, True), (0.96, False), (1.04, False)])
def test_a_claim_holds_where_every_part_of_every_seed_adds_up(worst: float, holds: bool) -> None:
    def row(model: str, ratios: list[float | None]) -> dict[str, Any]:
        parts = {str(at): {"ratio": ratio, "targets": 7.0} for at, ratio in enumerate(ratios)}
        head = {"calibration": {"label": {"billing": parts}}}
        return {"model": model, "heads": {"click": head, "hide": {"calibration": {"label": {
            "billing": {"click": {"ratio": None, "targets": 0.0}}}}}}}  # fmt: skip

    rows = [row("full", [1.01, worst]), row("full", [1.0, None]), row("other", [9.0])]
    claim = CalibrationClaim(model="full", head="label", by="billing")

    # Of hides there were none, so that nothing can be said of them.
    (found,) = calibration_claims(claim, ["click", "hide"], rows)

    assert found["claim"] == (
        "full: what its label head predicts of click is 0.97 to 1.03 of its targets for each way "
        "to pay"
    )
    assert found["estimate"] == worst
    assert found["interval"] == [min(worst, 1.0), max(worst, 1.01)]
    assert found["holds"] == holds
    assert not found["is_check"]
    assert "3 ratios over seeds, of targets that add up to 7.0 at least" in found["how"]
