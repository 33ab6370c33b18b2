"""The cascade of a live market: its own log trains both stages, which then serve and write one."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.market import (
    CandidateScores,
    LiveMarket,
    LiveRequests,
    LoggingPolicy,
    MarketRules,
    Slates,
    market_schema,
)
from tamis.data.public_sets.files import SPLITS
from tamis.data.schema import Schema
from tamis.funnel.ads import AdTable
from tamis.funnel.value import ValueFunction
from tamis.reproduce.early.cascade import (
    FinalStage,
    Outcome,
    Rows,
    all_rows,
    log_of,
    pairs_table,
    pass_cascade,
    sampled_rows,
)
from tamis.reproduce.early.pairs import PairPredictor, Predictions
from tamis.reproduce.early.stages import (
    Earlier,
    Stages,
    draw_ads,
    early_schema,
    train_stages,
    value_weights,
)
from tamis.reproduce.early.study import (
    SIMULATED,
    VALID_SHARE,
    Part,
    first_valid_request,
    since,
    write_study,
)
from tamis.reproduce.early.variants import CascadeSizes, Judges, MarketCascade

TASKS = ("click", "conversion", "hide")
STAGES = ("early", "final")
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Told:
    """Some requests of an hour, whose outcome is not known yet."""

    rows: Rows
    """Their candidates, all or those that a log keeps."""
    request: NDArray[np.int64]
    """(n,) request of each row."""
    ad: NDArray[np.int64]
    """(n,) ad of each row."""
    inputs: pa.Table
    """Columns of the early stage's fields, of the user and of the time."""
    incumbent: NDArray[np.float64]
    """(n,) value by the early stage that served; empty unless all candidates are told."""
    truth: Predictions
    """(n,) by task, chances; empty unless all candidates are told."""


def early_market_schema() -> Schema:
    """What the early stage sees of the market: no histories, no position and no weekday.

    Candidates have no position when it ranks. Given the logged ones, golden candidates would be
    judged at the places that they were shown in, and all others at the first. It learns from two or
    three days and is judged on others: their weekday is one that no row has taught it, and an
    untaught one moved its predictions by 8 % (click) to 18 % (hide).
    """
    fewer = early_schema(market_schema())
    kept = (field for field in fewer.fields if field.name not in ("position", "weekday"))
    return replace(fewer, fields=tuple(kept))


class CascadePolicy:
    """Serves a live market by an early and a final stage, an hour of requests at a time.

    An auction's rule of one ad for each advertiser is left out, so that the golden candidates are
    those that the final stage values most.
    """

    def __init__(
        self,
        market: LiveMarket,
        early: PairPredictor,
        earlier: Earlier,
        ads: AdTable,
        value: ValueFunction,
        sizes: CascadeSizes,
        *,
        known: tuple[str, ...],
        learn_every: int | None,
        judge_every: int | None,
    ) -> None:
        """Take both stages.

        Args:
            market: That is served; asked for the truth of the candidates that judge.
            early: The early stage.
            earlier: The final stage, and constants for what the early one does not predict.
            ads: By ``ad_id``.
            value: Orders both stages.
            sizes: Of the cascade.
            known: Tasks whose predictions by the early stage count.
            learn_every: One request in so many is told with the rows of a log; None for none.
            judge_every: One in so many is told with all its candidates; None for none.
        """
        self._market, self._early, self._earlier = market, early, earlier
        self._ads, self._value, self._sizes, self._known = ads, value, sizes, known
        self._learn_every, self._judge_every = learn_every, judge_every
        self._fields = _columns(early_market_schema())
        self._learned: list[Told] = []
        self._judged: list[Told] = []

    def __call__(self, requests: LiveRequests) -> Slates:
        """Slates, and which candidates of the judged requests each stage kept."""
        count, ad = len(requests), requests.ad.astype(np.int64)
        stages = Stages(
            final=self._earlier.final.bind(requests.features, requests.ad_features),
            early=self._early.bind(requests.features, requests.ad_features),
            ads=self._ads,
            value=self._value,
            constants=self._earlier.rates,
        )
        place = np.tile(np.arange(len(ad)), (count, 1))
        early_value = stages.early_values(place, ad[place], self._known)
        final = stages.final.predict
        outcome = pass_cascade(
            early_value,
            final,
            lambda predictions, _, places: stages.worth(predictions, ad[places]),
            self._sizes,
            np.random.default_rng([_SEED, requests.hour]),
        )
        learned = _one_in(requests.request_id, self._learn_every)
        judged = _one_in(requests.request_id, self._judge_every)
        for told, parts, all_told in (
            (learned, self._learned, False),
            (judged, self._judged, True),
        ):
            if len(told):
                parts.append(self._tell(requests, told, outcome, early_value, final, all_told))
        return Slates(
            ads=requests.ad[outcome.shown],
            candidates=(_survivors(requests, judged, outcome),),
        )

    def learned(self, log: pa.Table) -> list[Part]:
        """Rows to learn from of all hours so far, with the labels that a log of them has."""
        return [_labelled(told, log) for told in self._learned]

    def judged(self, log: pa.Table) -> list[Part]:
        """All candidates of the judged requests of all hours so far, with labels and the truth."""
        return [_labelled(told, log) for told in self._judged]

    @property
    def told_to_judge(self) -> tuple[Told, ...]:
        """The same candidates before anything came of them."""
        return tuple(self._judged)

    def _tell(
        self,
        requests: LiveRequests,
        told: NDArray[np.int64],
        outcome: Outcome,
        early_value: NDArray[np.float64],
        final: FinalStage,
        all_told: bool,
    ) -> Told:
        some = Outcome(
            early_rank=outcome.early_rank[told],
            pool=outcome.pool[told],
            shown=outcome.shown[told],
        )

        def final_of_told(rows: NDArray[np.int64], places: NDArray[np.int64]) -> Predictions:
            return dict(final(told[rows], places))

        if all_told:
            rows = all_rows(some, final_of_told)
        else:
            rows = sampled_rows(some, final_of_told, self._sizes, seed=requests.hour)
        request, ad = requests.request_id[told[rows.row]], requests.ad[rows.place]
        inputs = pairs_table(
            requests.features, requests.ad_features, told[rows.row], rows.place, self._fields
        )
        truth: Predictions = {}
        incumbent = np.zeros(0)
        if all_told:
            chances = self._market.chances(request, ad)
            truth = {task: getattr(chances, task) for task in TASKS}
            incumbent = early_value[told[rows.row], rows.place]
        return Told(
            rows=rows,
            request=request,
            ad=ad.astype(np.int64),
            inputs=inputs,
            incumbent=incumbent,
            truth=truth,
        )


def make_market_study(
    cascade: MarketCascade, recipes: Path, work: Path, out: Path, *, judges: Judges = "test"
) -> None:
    """Train both stages on the market's own log, let them serve, and write what they saw.

    Args:
        cascade: How large.
        recipes: Folder with ``teacher.toml`` and ``incumbent.toml``.
        work: For the stages' datasets and runs.
        out: Folder of the study.
        judges: Requests of the later days, or of the hours whose rows validate.
    """
    market, log = serve_first_days(cascade)
    earlier = train_on(log, recipes, work)
    ads, value = market_ads(market, earlier)

    def serve(
        days: int, *, learn_every: int | None = None, judge_every: int | None = None
    ) -> tuple[list[Part], list[Part]]:
        policy = CascadePolicy(
            market,
            earlier.early,
            earlier,
            ads,
            value,
            cascade.sizes,
            known=TASKS[:1],
            learn_every=learn_every,
            judge_every=judge_every,
        )
        served = pa.concat_tables([hour.log for hour in market.serve(policy, days=days)])
        return policy.learned(served), policy.judged(served)

    def every(days: float, wanted: int) -> int:
        return told_every(market, cascade, days=days, wanted=wanted)

    (_, logged, later), sizes = cascade.days, cascade.sizes
    learn_every = every(logged, sizes.train_requests)
    if judges == "test":
        learned, _ = serve(logged, learn_every=learn_every)
        _, judged = serve(later, judge_every=every(later, sizes.test_requests))
    else:
        judge_every = every(VALID_SHARE * logged, sizes.test_requests)
        learned, judged = serve(logged, learn_every=learn_every, judge_every=judge_every)
        judged = since(judged, first_valid_request(learned))
    write_study(
        out,
        train=learned,
        test=judged,
        schema=early_market_schema(),
        ads=ads,
        value=value.weights,
        constants=earlier.rates,
        sizes=cascade.sizes,
        notes={**earlier.notes, SIMULATED: 1.0},
    )


def serve_first_days(cascade: MarketCascade) -> tuple[LiveMarket, pa.Table]:
    """The market after the days that its own policy served, and the log of them."""
    rules = MarketRules(
        days=sum(cascade.days),
        rows_per_ad=cascade.rows_per_ad,
        conversion_rate=cascade.conversion_rate,
    )
    market = LiveMarket(cascade.rows, seed=_SEED, rules=rules)
    hours = market.serve(LoggingPolicy(market, seed=_SEED), days=cascade.days[0])
    return market, pa.concat_tables([hour.log for hour in hours])


def train_on(log: pa.Table, recipes: Path, work: Path) -> Earlier:
    """Both stages, trained on the first eight tenths of a log; the rest selects and tests them."""
    bounds = [round(share * log.num_rows) for share in (0.0, 0.8, 0.9, 1.0)]
    files = {split: work / f"log-{split}.parquet" for split in SPLITS}
    for split, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True):
        with artifacts.atomic_path(files[split]) as temporary:
            pq.write_table(log.slice(start, stop - start), temporary)
    return train_stages(files, market_schema(), early_market_schema(), recipes, work)


def market_ads(market: LiveMarket, earlier: Earlier) -> tuple[AdTable, ValueFunction]:
    """What ads bid and how they pay, and the value function of the cascade."""
    known = market.ads()
    bid = known["bid_micros"].to_numpy() / 1e6
    weights = value_weights(TASKS, bid, earlier.rates, is_bad=True)
    advertiser = known["advertiser_id"].to_numpy().astype(np.int64)
    return draw_ads(bid, advertiser, earlier.rates["conversion"]), ValueFunction(weights)


def told_every(market: LiveMarket, cascade: MarketCascade, *, days: float, wanted: int) -> int:
    """One request in how many makes about the wanted number in some days."""
    rules = market.rules
    return max(1, int(cascade.rows // rules.slate * days / rules.days) // wanted)


def _survivors(
    requests: LiveRequests, told: NDArray[np.int64], outcome: Outcome
) -> CandidateScores:
    """Stages that each candidate of the told requests survived; explored ones survived both."""
    pool = outcome.pool[told]
    num_ads = len(requests.ad)
    return CandidateScores(
        stages=STAGES,
        request=np.repeat(told, num_ads),
        ad=np.tile(requests.ad, len(told)),
        # Impressed, scored and rejected ones survived two stages, one and none.
        survived=(2 - pool).astype(np.int8).ravel(),
        scores=np.full((pool.size, len(STAGES)), np.nan, np.float32),
    )


def _one_in(request: NDArray[np.int64], every: int | None) -> NDArray[np.int64]:
    """Places of one request in so many."""
    return np.flatnonzero(request % every == 0) if every else np.zeros(0, np.int64)


def _labelled(told: Told, log: pa.Table) -> Part:
    labels = _labels(log, told)
    return Part(
        log=log_of(told.rows, request=told.request, candidate=told.ad, labels=labels),
        inputs=told.inputs,
        truth=told.truth,
        incumbent=told.incumbent,
    )


def _columns(schema: Schema) -> list[str]:
    sources = [field.source for field in schema.fields]
    return list(dict.fromkeys([*sources, schema.roles.user, schema.roles.time]))


def _labels(log: pa.Table, told: Told) -> dict[str, NDArray[np.float32]]:
    """Labels of the rows; NaN where there is no impression, or none that has the label."""
    num_ads = 1 + max(int(told.ad.max()), int(log["ad_id"].to_numpy().max()))
    shown = log["request_id"].to_numpy() * num_ads + log["ad_id"].to_numpy()
    order = np.argsort(shown)
    wanted = told.request * num_ads + told.ad
    at = order[np.minimum(np.searchsorted(shown, wanted, sorter=order), len(order) - 1)]
    is_shown = shown[at] == wanted
    labels = {}
    for task in TASKS:
        values = log[task].cast(pa.float32()).to_numpy(zero_copy_only=False)
        labels[task] = np.where(is_shown, values[at], np.nan).astype(np.float32)
    return labels
