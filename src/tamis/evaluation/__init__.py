"""Evaluation: numpy in, numbers out. Knows no model and no file."""

from tamis.evaluation.bootstrap import BootstrapMetric, paired_bootstrap
from tamis.evaluation.calibration import (
    ReliabilityBin,
    calibration_ratio,
    expected_calibration_error,
    reliability_curve,
)
from tamis.evaluation.calibrators import (
    Calibrator,
    GroupedCalibrator,
    IsotonicCalibrator,
    PlattCalibrator,
    fit_by_group,
    fit_isotonic,
    fit_platt,
)
from tamis.evaluation.candidates import RankedCandidates, rank_candidates, request_offsets
from tamis.evaluation.cascade import (
    RecallPoint,
    RequestMean,
    hard_recall,
    ndcg,
    recall_curve,
    request_mean,
    soft_recall,
    top_regret,
    value_divergence,
    value_kept,
    value_lost,
)
from tamis.evaluation.cross_fitting import cross_fit
from tamis.evaluation.delong import delong_test
from tamis.evaluation.experiment import (
    ArmDifference,
    ExperimentMetric,
    ExperimentResult,
    SampleRatio,
    UserTotals,
    arm_difference,
    compare_arms,
    sample_ratio,
    user_totals,
)
from tamis.evaluation.imitation import ImitationMetrics, evaluate_imitation
from tamis.evaluation.logged_actions import LoggedActions, logged_actions
from tamis.evaluation.loss import (
    LogLossAccumulator,
    NormalisedEntropy,
    log_loss,
    log_loss_from_logits,
    normalised_entropy,
)
from tamis.evaluation.metrics import TaskMetrics, evaluate_task
from tamis.evaluation.off_policy import OffPolicyEstimator, PolicyValue, evaluate_policy
from tamis.evaluation.oracle import OracleComparison, compare_to_oracle, ne_gap, oracle_metrics
from tamis.evaluation.rank_agreement import kendall_tau, value_weighted_inversions
from tamis.evaluation.ranking import GroupedAuc, auc, grouped_auc
from tamis.evaluation.ratio import Estimate, ratio_of_sums
from tamis.evaluation.retrieval import (
    ItemLists,
    RetrievalScores,
    full_corpus_scores,
    true_value_recall,
)
from tamis.evaluation.seeds import SeedSummary, paired_t_test, summarise_seeds
from tamis.evaluation.sequential import SequentialLooks, always_valid_looks
from tamis.evaluation.significance import PairedDifference
from tamis.evaluation.slices import SliceRow, slice_table
from tamis.evaluation.stability import StabilityIndex, stability_index
from tamis.evaluation.stages import StageLosses, StageSummary, stage_losses
from tamis.evaluation.streaming_auc import AucEstimate, StreamingAuc
from tamis.evaluation.teacher import TeacherCheck, check_teacher

__all__ = [
    "ArmDifference",
    "AucEstimate",
    "BootstrapMetric",
    "Calibrator",
    "Estimate",
    "ExperimentMetric",
    "ExperimentResult",
    "GroupedAuc",
    "GroupedCalibrator",
    "ImitationMetrics",
    "IsotonicCalibrator",
    "ItemLists",
    "LogLossAccumulator",
    "LoggedActions",
    "NormalisedEntropy",
    "OffPolicyEstimator",
    "OracleComparison",
    "PairedDifference",
    "PlattCalibrator",
    "PolicyValue",
    "RankedCandidates",
    "RecallPoint",
    "ReliabilityBin",
    "RequestMean",
    "RetrievalScores",
    "SampleRatio",
    "SeedSummary",
    "SequentialLooks",
    "SliceRow",
    "StabilityIndex",
    "StageLosses",
    "StageSummary",
    "StreamingAuc",
    "TaskMetrics",
    "TeacherCheck",
    "UserTotals",
    "always_valid_looks",
    "arm_difference",
    "auc",
    "calibration_ratio",
    "check_teacher",
    "compare_arms",
    "compare_to_oracle",
    "cross_fit",
    "delong_test",
    "evaluate_imitation",
    "evaluate_policy",
    "evaluate_task",
    "expected_calibration_error",
    "fit_by_group",
    "fit_isotonic",
    "fit_platt",
    "full_corpus_scores",
    "grouped_auc",
    "hard_recall",
    "kendall_tau",
    "log_loss",
    "log_loss_from_logits",
    "logged_actions",
    "ndcg",
    "ne_gap",
    "normalised_entropy",
    "oracle_metrics",
    "paired_bootstrap",
    "paired_t_test",
    "rank_candidates",
    "ratio_of_sums",
    "recall_curve",
    "reliability_curve",
    "request_mean",
    "request_offsets",
    "sample_ratio",
    "slice_table",
    "soft_recall",
    "stability_index",
    "stage_losses",
    "summarise_seeds",
    "top_regret",
    "true_value_recall",
    "user_totals",
    "value_divergence",
    "value_kept",
    "value_lost",
    "value_weighted_inversions",
]
