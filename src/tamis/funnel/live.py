"""A funnel as the policy of a live market, and what its stages truly lose there."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.data.columns import Origin
from tamis.data.dataset import EncodedRows
from tamis.data.encoders import Encoders
from tamis.data.loader import batches_of_rows
from tamis.data.market import CandidateScores, JudgedCandidates, LiveRequests, Slates
from tamis.errors import ConfigError, DataError
from tamis.evaluation.candidates import rank_candidates, request_offsets
from tamis.evaluation.stages import StageLosses, stage_losses
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel
from tamis.funnel.request import Request
from tamis.funnel.trace import AUCTION, KNOWN, Trace

_ROWS_AT_A_TIME = 16_384


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServedFunnel:
    """A funnel with the ads that it knows."""

    funnel: Funnel
    """Answers requests by ad row."""
    ad: NDArray[np.int64]
    """(N,) ``ad_id`` of each of its ad rows, no two alike."""

    def __post_init__(self) -> None:
        different = len(np.unique(self.ad))
        if self.ad.shape != (len(self.funnel.ads),) or different < len(self.ad):
            raise DataError(
                f"ServedFunnel.ad: must hold a different ad_id for each of "
                f"{len(self.funnel.ads)} ad rows, got shape {self.ad.shape} with {different} "
                f"different ones. Number the rows of the funnel's table."
            )


class FunnelPolicy:
    """Answers the requests of a live market by a funnel.

    Each request starts from the living ads that the funnel knows; a few that follow each other are
    answered together, as a server under load does. Whether the funnel is one and the
    same or another every hour is up to ``serve``: features of ads, such as a click rate, are as old
    as the table that a funnel was made with, and ads that were born later are not in it.
    """

    def __init__(
        self,
        serve: Callable[[LiveRequests], ServedFunnel],
        *,
        encoders: Encoders | None = None,
        judge_every: int = 100,
    ) -> None:
        """Take what makes the funnel.

        Args:
            serve: Called once for each hour, for the funnel that answers it. It usually makes the
                tables of the living ads anew, by :func:`ad_rows` and :func:`ad_table`, around the
                same models; or returns one funnel always.
            encoders: Of the models, for the features of a request; None where no stage reads any.
            judge_every: One request in so many tells all its candidates. At least 1.

        Raises:
            ConfigError: ``judge_every`` is below 1.
        """
        if judge_every < 1:
            raise ConfigError(f"FunnelPolicy.judge_every: must be at least 1, got {judge_every}.")
        self._serve, self._encoders, self._judge_every = serve, encoders, judge_every
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        """Requests so far that a stage did not order itself, by its name and the reason."""

    def __call__(self, requests: LiveRequests) -> Slates:
        """Slates with the auction's prices; candidates of some requests."""
        served = self._serve(requests)
        rows = np.flatnonzero(np.isin(served.ad, requests.ad))
        ads = np.full((len(requests), requests.slots), -1, np.int32)
        prices = np.full(ads.shape, np.nan)
        recorder = _Recorder(served, requests, rows)
        answers = served.funnel.answer_each(self._requests(requests, rows))
        for at, (trace, seen) in enumerate(answers):
            if trace.request_id % self._judge_every == 0:
                recorder.keep(at, trace, seen)
            self.fallbacks.update(
                (stage.name, stage.fallback) for stage in trace.stages if stage.fallback
            )
            slate = trace.slate
            ads[at, : len(slate.ads)] = served.ad[slate.ads]
            prices[at, : len(slate.ads)] = slate.prices
        return Slates(ads=ads, prices=prices, candidates=recorder.candidates())

    def _requests(self, requests: LiveRequests, rows: NDArray[np.int64]) -> Iterator[Request]:
        for at, features in enumerate(self._features(requests)):
            yield Request(
                request_id=int(requests.request_id[at]),
                user=int(requests.user[at]),
                time_micros=int(requests.time_micros[at]),
                slots=requests.slots,
                features=features,
                candidates=rows,
            )

    def _features(self, requests: LiveRequests) -> Iterator[Batch | None]:
        """The encoded user and context of each request, one row each."""
        if self._encoders is None:
            yield from (None for _ in range(len(requests)))
            return
        # Encoders read whole rows, so the first ad stands in for the item that nobody reads.
        item = requests.ad_features.slice(0, 1)
        for first in range(0, len(requests), _ROWS_AT_A_TIME):
            table = _beside(requests.features.slice(first, _ROWS_AT_A_TIME), item)
            rows = _encode(self._encoders, table, f"requests of hour {requests.hour}")
            yield from batches_of_rows(rows, self._encoders.spec, batch_size=1)


def ad_rows(requests: LiveRequests, encoders: Encoders) -> EncodedRows:
    """The living ads of an hour, encoded: row i is ``requests.ad[i]``.

    ``AdFeatures.of_rows`` takes them; fields of user and context hold the first request's and are
    not read.

    Raises:
        DataError: The schema has a column that the market does not show.
    """
    table = _beside(requests.ad_features, requests.features.slice(0, 1))
    return _encode(encoders, table, f"ads of hour {requests.hour}")


def ad_table(ads: pa.Table) -> AdTable:
    """What the auction knows of the market's ads: they pay by the click, in currency units.

    Args:
        ads: Rows with ``bid_micros`` and ``advertiser_id``: ``LiveRequests.ad_features`` for the
            living ads, or ``LiveMarket.ads()`` for all.
    """
    count = ads.num_rows
    return AdTable(
        bid=ads["bid_micros"].to_numpy() / 1e6,
        billing=np.full(count, "click"),
        advertiser=ads["advertiser_id"].to_numpy().astype(np.int64),
        quality=np.zeros(count),
    )


def true_losses(judged: Sequence[JudgedCandidates], ads: AdTable, value: Valuation) -> StageLosses:
    """What each stage truly lost, by the chances with which users act.

    An impression is worth what ``value`` says of the true probabilities at the first position. The
    losses are exact for the requests that were judged.

    Args:
        judged: Candidates with the truth, all of funnels with the same stages.
        ads: Attributes of all ads of the market, by ``ad_id``.
        value: Combines the true probabilities of ``click``, ``conversion`` and ``hide`` with bids.

    Raises:
        DataError: There is no candidate, or stages differ.
    """
    stages = {part.scores.stages for part in judged}
    if len(stages) != 1:
        found = " and ".join(sorted(", ".join(names) for names in stages)) or "no candidates"
        raise DataError(
            f"true_losses: candidates must be of funnels with the same stages, got {found}. Judge "
            f"each funnel by itself."
        )
    ad = np.concatenate([part.scores.ad for part in judged])
    chances = {
        task: np.concatenate([getattr(part.truth, task) for part in judged])
        for task in ("click", "conversion", "hide")
    }
    request = np.concatenate([part.request_id for part in judged])
    worth = ads.total_value(value, chances, ad.astype(np.int64))
    ranked = rank_candidates(request_offsets(request), worth, np.zeros(len(worth)), request=request)
    survived = np.concatenate([part.scores.survived for part in judged])
    return stage_losses(ranked, survived.astype(np.int64), stages.pop())


class _Recorder:
    """Keeps what became of every living ad in the requests that are judged."""

    def __init__(
        self, served: ServedFunnel, requests: LiveRequests, rows: NDArray[np.int64]
    ) -> None:
        self._requests = requests
        steps = [step.name for step in served.funnel.steps]
        self._stages = (KNOWN, *steps, AUCTION)
        # Living ad of each ad row; -1 for those that are dead.
        self._living = np.full(len(served.ad), -1, np.int64)
        self._living[rows] = np.searchsorted(requests.ad, served.ad[rows])
        self._rows = rows
        self._parts: list[CandidateScores] = []

    def keep(self, at: int, trace: Trace, seen: Sequence[Candidates]) -> None:
        """Keep how the funnel answered the request at a place of the hour.

        Args:
            at: The place.
            trace: The answer.
            seen: What each step went on with, before its cut.
        """
        num_ads = len(self._requests.ad)
        survived = np.zeros(num_ads, np.int8)
        survived[self._living[self._rows]] = 1
        scores = np.full((num_ads, len(self._stages)), np.nan, np.float32)
        for stage, (found, kept) in enumerate(zip(seen, trace.stages, strict=True), start=1):
            scores[self._living[found.ads], stage] = found.scores
            survived[self._living[kept.ads]] += 1
        predictions: dict[str, NDArray[np.float32]] = {}
        for task, values in seen[-1].predictions.items():
            predictions[task] = np.full(num_ads, np.nan, np.float32)
            predictions[task][self._living[seen[-1].ads]] = values
        shown = self._living[trace.slate.ads]
        survived[shown] += 1
        scores[shown, -1] = trace.slate.values
        self._parts.append(
            CandidateScores(
                stages=self._stages,
                request=np.full(num_ads, at),
                ad=self._requests.ad,
                survived=survived,
                scores=scores,
                predictions=predictions,
            )
        )

    def candidates(self) -> tuple[CandidateScores, ...]:
        """All that was kept, as one part; it has no rows where no request was judged."""
        num_stages = len(self._stages)
        nobody = CandidateScores(
            stages=self._stages,
            request=np.zeros(0, np.int64),
            ad=np.zeros(0, np.int32),
            survived=np.zeros(0, np.int8),
            scores=np.zeros((0, num_stages), np.float32),
        )
        parts = self._parts or [nobody]
        # A step that fell back predicts nothing, so that parts may name different tasks.
        tasks = dict.fromkeys(task for part in parts for task in part.predictions)
        unknown = np.full(len(self._requests.ad), np.nan, np.float32)
        predictions = {
            task: np.concatenate([part.predictions.get(task, unknown) for part in parts])
            for task in tasks
        }
        return (
            CandidateScores(
                stages=self._stages,
                request=np.concatenate([part.request for part in parts]),
                ad=np.concatenate([part.ad for part in parts]),
                survived=np.concatenate([part.survived for part in parts]),
                scores=np.concatenate([part.scores for part in parts]),
                predictions=predictions,
            ),
        )


def _beside(table: pa.Table, row: pa.Table) -> pa.Table:
    """A table with the columns of a single row repeated beside its own."""
    repeated = row.take(pa.array(np.zeros(table.num_rows, np.int64)))
    for name in repeated.column_names:
        table = table.append_column(name, repeated[name])
    return table


def _encode(encoders: Encoders, table: pa.Table, what: str) -> EncodedRows:
    return encoders.encode(table, first_row=0, origin=Origin(file=what), inputs_only=True)
