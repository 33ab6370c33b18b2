"""Candidates of served requests beside the truth about them, in memory and as tables."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market.behaviour import TrueProbabilities
from tamis.data.market.serving import CandidateScores


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JudgedCandidates:
    """Candidates of whole requests, request by request, with the truth about each."""

    scores: CandidateScores
    """What the stages made of them, sorted by request and ad."""
    request_id: NDArray[np.int64]
    """(m,) number of each one's request."""
    user: NDArray[np.int32]
    """(m,) who asked."""
    truth: TrueProbabilities
    """(m,) chances at the first position."""

    def take(self, rows: NDArray[np.bool_]) -> "JudgedCandidates":
        """Candidates by a mask (m,) that parts no request."""
        return JudgedCandidates(
            scores=self.scores.take(rows),
            request_id=self.request_id[rows],
            user=self.user[rows],
            truth=TrueProbabilities(
                click=self.truth.click[rows],
                conversion=self.truth.conversion[rows],
                hide=self.truth.hide[rows],
            ),
        )

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Candidates and truth as Arrow tables of the same rows; scores in columns by stage."""
        scores = self.scores
        by_stage = {
            f"score_{name}": null_for_nan(scores.scores[:, at])
            for at, name in enumerate(scores.stages)
        }
        predicted = {f"predicted_{task}": null_for_nan(p) for task, p in scores.predictions.items()}
        keys = {"request_id": self.request_id, "ad_id": scores.ad}
        stages = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(scores.ad), np.int32)), pa.array([",".join(scores.stages)])
        )
        candidates = pa.table(
            {**keys, "survived": scores.survived, "stages": stages, **by_stage, **predicted}
        )
        truth = {task: getattr(self.truth, task) for task in ("click", "conversion", "hide")}
        return candidates, pa.table({**keys, **truth})


def null_for_nan(values: NDArray[np.floating]) -> pa.Array:
    """Numbers, null in place of NaN."""
    return pa.array(values, mask=np.isnan(values))
