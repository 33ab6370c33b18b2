"""Trained stages in bfloat16: what they lose on logged rows, within stated tolerances."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tamis.data.batch import Batch, concatenate
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.evaluation.metrics import TaskMetrics, evaluate_task
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.funnel.plan import Surroundings
from tamis.funnel.plans import EarlyStagePlan, Precision, RankerPlan
from tamis.funnel.value import ValueFunction

AUC, LOG_LOSS, CALIBRATION = 2e-3, 1e-3, 5e-3
"""Most that bfloat16 may change: AUC, log loss in nats, and the sum of probabilities by a share."""


def _predicted(
    bundle: Bundle, name: str, precision: Precision, rows: Batch, ads: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    blueprint = bundle.blueprint
    (plan,) = (stage.plan for stage in blueprint.stages if stage.budget.name == name)
    assert isinstance(plan, EarlyStagePlan | RankerPlan)
    plan = replace(plan, settings=replace(plan.settings, precision=precision))
    stage = plan.build(
        Surroundings(
            encoders=blueprint.encoders,
            requests=blueprint.encoders,
            inventory=blueprint.inventory,
            value=ValueFunction(blueprint.weights),
        )
    )
    found: dict[str, NDArray[np.float64]] = stage.predict(rows, np.arange(len(ads)), ads)
    return found


@pytest.mark.parametrize("stage", ["early", "final"])
def test_bfloat16_of_a_trained_stage_stays_within_its_tolerances(
    market_world: Path, bundles: Path, stage: str
) -> None:
    data, bundle = Dataset.open(market_world / "data"), read_bundle(bundles / "first")
    # Not how good the model is, but what rounding changes: the more rows the better.
    split = data.split("train")
    loader = Loader(split, data.spec, batch_size=4096, shuffle=False, prefetch=0)
    rows, shown = concatenate(list(loader.epoch(0))), split.role("item")
    assert shown is not None
    codes = bundle.blueprint.inventory.codes
    order = np.argsort(codes)
    ads = order[np.minimum(np.searchsorted(codes, shown, sorter=order), len(codes) - 1)]
    known = np.flatnonzero(codes[ads] == shown)
    assert len(known) > 3000
    labels = split.labels()[known, 0]

    exact, rounded = (
        _predicted(bundle, stage, precision, rows, ads)["click"][known]
        for precision in ("float32", "bfloat16")
    )

    assert not np.array_equal(exact, rounded)
    before, after = (evaluate_task(labels, clicks) for clicks in (exact, rounded))
    assert abs(after.auc - before.auc) <= AUC, _said(before, after)
    assert abs(after.log_loss - before.log_loss) <= LOG_LOSS, _said(before, after)
    assert abs(rounded.sum() / exact.sum() - 1) <= CALIBRATION, _said(before, after)


def _said(before: TaskMetrics, after: TaskMetrics) -> str:
    return f"float32 {before.to_json()}, bfloat16 {after.to_json()}"
