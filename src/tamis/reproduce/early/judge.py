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
"""Of the bootstrap over requests, and of the order of ties."""
_TIE_ORDERS = 20


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

    Where candidates have one score, a mean over random orders of them.
    """
    truth = study.values(judged.truth, judged)
    best = ranked.by_value[ranked.place < slots]
    generator = np.random.default_rng(_SEED)
    has_ties = bool((np.diff(ranked.tie) == 0).any())
    shown = 0.0
    orders = _TIE_ORDERS if has_ties else 1
    for _ in range(orders):
        # Runs of equal scores stay where they are, each in another order.
        by_score = ranked.by_score[np.lexsort((generator.random(truth.size), ranked.tie))]
        shown += truth[_shown(ranked, by_score[ranked.place < keep], slots)].sum()
    return float(shown / orders / truth[best].sum())


def _shown(ranked: RankedCandidates, kept: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """The candidates that the final stage values most of those kept, so many for each request."""
    survives = np.zeros(ranked.value.size, np.bool_)
    survives[kept] = True
    by_final = survives[ranked.by_value]
    upto = np.cumsum(by_final)
    place = upto - 1 - (upto - by_final)[ranked.offsets[:-1]][ranked.request]
    return ranked.by_value[by_final & (place < slots)]


def _mean(metric: NDArray[np.float64]) -> float:
    """Over the requests (R,) that have it."""
    return float(np.nanmean(metric))
