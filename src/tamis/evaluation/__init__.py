"""Evaluation: numpy in, numbers out. Knows no model and no file."""

from tamis.evaluation.calibration import (
    ReliabilityBin,
    calibration_ratio,
    expected_calibration_error,
    reliability_curve,
)
from tamis.evaluation.loss import (
    LogLossAccumulator,
    NormalisedEntropy,
    log_loss,
    log_loss_from_logits,
    normalised_entropy,
)
from tamis.evaluation.metrics import TaskMetrics, evaluate_task
from tamis.evaluation.ranking import GroupedAuc, auc, grouped_auc

__all__ = [
    "GroupedAuc",
    "LogLossAccumulator",
    "NormalisedEntropy",
    "ReliabilityBin",
    "TaskMetrics",
    "auc",
    "calibration_ratio",
    "evaluate_task",
    "expected_calibration_error",
    "grouped_auc",
    "log_loss",
    "log_loss_from_logits",
    "normalised_entropy",
    "reliability_curve",
]
