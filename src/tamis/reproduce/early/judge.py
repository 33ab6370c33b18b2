"""What an early stage's total values keep of the final stage's, in the figures of the tables."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.data.cascade_log import REJECTED
from tamis.evaluation import (
    RankedCandidates,
    hard_recall,
    kendall_tau,
    ndcg,
    rank_candidates,
    recall_curve,
    request_mean,
    soft_recall,
    top_regret,
    value_divergence,
    value_weighted_inversions,
)
from tamis.reproduce.early.study import Judged, Study

_SEED = 0
"""Of the bootstrap over requests."""


def judge(
    study: Study, judged: Judged, score: NDArray[np.float64], *, is_value: bool = True
) -> dict[str, Any]:
    """Figures of an order of all candidates.

    Values may be negative, as hides cost money, so soft recall and NDCG are measured from the least
    valuable candidate of a request. A replay counts such values as 0: its soft recall is another.

    Args:
        study: The cascade.
        judged: Its candidates.
        score: (N,) what orders them.
        is_value: Whether it is money, so that its distance from the final stage's values counts.
    """
    values = study.values(judged.final, judged)
    ranked = rank_candidates(judged.offsets, values, score)
    keep, slots = study.sizes.keep, study.sizes.slots
    soft = request_mean(
        soft_recall(ranked, keep, shift=True), ranked.request_value, seed=_SEED, replicates=200
    )
    metrics: dict[str, Any] = {
        "soft_recall": soft.plain.value,
        "soft_recall_interval": [soft.plain.lower, soft.plain.upper],
        "soft_recall_by_value": soft.by_value.value,
        "hard_recall": _mean(hard_recall(ranked, keep, golden=slots)),
        "golden_rejected": _golden_rejected(ranked, judged, keep, slots),
        "ndcg": _mean(ndcg(ranked, slots, shift=True)),
        "kendall_tau": _mean(kendall_tau(ranked)),
        "inversions": _mean(value_weighted_inversions(ranked)),
        "top_regret": _mean(top_regret(ranked)),
        "true_value": _true_value(study, judged, ranked, keep, slots),
        "curve": [
            {
                "share": point.share,
                "hard": point.hard.plain.value,
                "soft": point.soft.plain.value,
            }
            for point in recall_curve(ranked, seed=_SEED, shift=True, replicates=100)
        ],
    }
    if is_value:
        size, signed = value_divergence(ranked)
        metrics["value_divergence"] = _mean(size)
        metrics["value_divergence_signed"] = _mean(signed)
    return metrics


def soft_recall_of(study: Study, judged: Judged, score: NDArray[np.float64]) -> float:
    """The soft recall of :func:`judge` alone."""
    ranked = rank_candidates(judged.offsets, study.values(judged.final, judged), score)
    return _mean(soft_recall(ranked, study.sizes.keep, shift=True))


def _golden_rejected(ranked: RankedCandidates, judged: Judged, keep: int, slots: int) -> float:
    """Share kept of the golden candidates that the log's early stage turned away; 1 without any."""
    is_golden = np.zeros(ranked.value.size)
    is_golden[ranked.by_value[ranked.place < slots]] = 1.0
    is_golden *= judged.pool == REJECTED
    if not is_golden.any():
        return 1.0
    hits = ranked.expected_by_place(is_golden) * (ranked.place < keep)
    return float(hits.sum() / is_golden.sum())


def _true_value(
    study: Study, judged: Judged, ranked: RankedCandidates, keep: int, slots: int
) -> float:
    """What is truly worth of the candidates that both stages show, over that of the final alone.

    Candidates with one score are kept in the order of the list.
    """
    truth = study.values(judged.truth, judged)
    survives = np.zeros(truth.size, np.bool_)
    survives[ranked.by_score[ranked.place < keep]] = True
    by_final = survives[ranked.by_value]
    first = ranked.offsets[:-1]
    upto = np.cumsum(by_final)
    place = upto - 1 - (upto - by_final)[first][ranked.request]
    shown = ranked.by_value[by_final & (place < slots)]
    best = ranked.by_value[ranked.place < slots]
    return float(truth[shown].sum() / truth[best].sum())


def _mean(metric: NDArray[np.float64]) -> float:
    """Over the requests (R,) that have it."""
    return float(np.nanmean(metric))
