"""Evaluation: numpy in, numbers out. Knows no model and no file."""

from tamis.evaluation.bootstrap import BootstrapMetric, paired_bootstrap
from tamis.evaluation.calibration import (
    ReliabilityBin,
    calibration_ratio,
    expected_calibration_error,
    reliability_curve,
)
from tamis.evaluation.delong import delong_test
from tamis.evaluation.loss import (
    LogLossAccumulator,
    NormalisedEntropy,
    log_loss,
    log_loss_from_logits,
    normalised_entropy,
)
from tamis.evaluation.metrics import TaskMetrics, evaluate_task
from tamis.evaluation.oracle import OracleComparison, compare_to_oracle, ne_gap, oracle_metrics
from tamis.evaluation.ranking import GroupedAuc, auc, grouped_auc
from tamis.evaluation.seeds import SeedSummary, paired_t_test, summarise_seeds
from tamis.evaluation.significance import PairedDifference
from tamis.evaluation.slices import SliceRow, slice_table
from tamis.evaluation.streaming_auc import AucEstimate, StreamingAuc

__all__ = [
    "AucEstimate",
    "BootstrapMetric",
    "GroupedAuc",
    "LogLossAccumulator",
    "NormalisedEntropy",
    "OracleComparison",
    "PairedDifference",
    "ReliabilityBin",
    "SeedSummary",
    "SliceRow",
    "StreamingAuc",
    "TaskMetrics",
    "auc",
    "calibration_ratio",
    "compare_to_oracle",
    "delong_test",
    "evaluate_task",
    "expected_calibration_error",
    "grouped_auc",
    "log_loss",
    "log_loss_from_logits",
    "ne_gap",
    "normalised_entropy",
    "oracle_metrics",
    "paired_bootstrap",
    "paired_t_test",
    "reliability_curve",
    "slice_table",
    "summarise_seeds",
]
