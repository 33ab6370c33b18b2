"""A funnel on the live market: rows as the log has them, ads as they live, losses as they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from tamis.data.columns import Origin
from tamis.data.encoders import Encoders, EncodersFit
from tamis.data.loader import batches_of_rows
from tamis.data.market import (
    JudgedCandidates,
    LiveMarket,
    LiveRequests,
    MarketRules,
    RandomPolicy,
    ServedHour,
    Slates,
    market_schema,
)
from tamis.errors import ConfigError, DataError
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.live import FunnelPolicy, ServedFunnel, ad_rows, ad_table, true_losses
from tamis.funnel.ranker import AdFeatures, RankerStage
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored
from tamis.funnel.stages import Popularity, ScoredBy
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.models.din import DIN, DINConfig
from tamis.models.output import probabilities_of

pytestmark = pytest.mark.slow

RULES = MarketRules(days=2, click_rate=0.2)
VALUE = ValueFunction(ValueWeights(penalties={"hide": 0.1}))


def _market(**options: Any) -> LiveMarket:
    return LiveMarket(4000, seed=2, rules=RULES, **options)


def _candidates(hours: list[ServedHour]) -> list[JudgedCandidates]:
    return [part for hour in hours for part in hour.candidates]


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    hours = list(_market().serve(RandomPolicy(seed=0), days=1))
    fit = EncodersFit(market_schema())
    for hour in hours:
        fit.add(hour.log, origin=Origin(file="log"))
    return fit.finish()


@pytest.fixture(scope="module")
def ranker(encoders: Encoders) -> torch.nn.Module:
    torch.manual_seed(0)
    config = DINConfig(
        embedding_dim=4, hidden_units=(8,), attention_units=(6,), init_std=0.5, dropout=0.5
    )
    return DIN(config, encoders.spec).eval()


@pytest.fixture(scope="module")
def ranked(encoders: Encoders, ranker: torch.nn.Module) -> list[ServedHour]:
    """Two days served by popularity and a ranker, whose tables are made anew every hour."""

    def serve(requests: LiveRequests) -> ServedFunnel:
        rows = ad_rows(requests, encoders)
        ads = ad_table(requests.ad_features)
        features = AdFeatures.of_rows(rows, encoders.schema, encoders.spec)
        rate = requests.ad_features["ad_click_rate"].to_numpy().astype(np.float64)
        steps = [
            Step(name="early", stage=Popularity(rate), keep=100),
            Step(
                name="final",
                stage=RankerStage(ranker, encoders.schema.tasks, features, ads, VALUE),
                keep=20,
            ),
        ]
        return ServedFunnel(funnel=Funnel(steps, ads, VALUE), ad=requests.ad.astype(np.int64))

    policy = FunnelPolicy(serve, encoders=encoders, judge_every=3)
    return list(_market().serve(policy, days=2))


def test_funnel_predicts_as_on_the_rows_that_are_logged(
    ranked: list[ServedHour], encoders: Encoders, ranker: torch.nn.Module
) -> None:
    compared = 0
    for hour in ranked:
        # The funnel is asked for the first position: only there are the log's rows the same.
        first = hour.log.filter(pa.array(hour.log["position"].to_numpy() == 1))
        rows = encoders.encode(first, first_row=0, origin=Origin(file="log"), inputs_only=True)
        (batch,) = batches_of_rows(rows, encoders.spec, batch_size=10**6)
        with torch.no_grad():
            expected = probabilities_of(ranker(batch).logits, encoders.schema.tasks)[:, 0].numpy()
        by_pair = dict(
            zip(
                zip(first["request_id"].to_pylist(), first["ad_id"].to_pylist(), strict=True),
                expected.tolist(),
                strict=True,
            )
        )
        for part in hour.candidates:
            predicted = part.scores.predictions["click"].tolist()
            for pair, value in zip(
                zip(part.request_id.tolist(), part.scores.ad.tolist(), strict=True),
                predicted,
                strict=True,
            ):
                if pair in by_pair:
                    assert value == pytest.approx(by_pair[pair], rel=1e-4)
                    compared += 1
    assert compared > 200


def test_candidates_tell_how_far_every_living_ad_came(ranked: list[ServedHour]) -> None:
    for hour in ranked:
        for part in hour.candidates:
            scores = part.scores
            assert scores.stages == ("known", "early", "final", "auction")
            requests, counts = np.unique(part.request_id, return_counts=True)
            assert (requests % 3 == 0).all()
            assert (counts == len(hour.living)).all()
            kept = [(scores.survived >= stage).reshape(len(requests), -1) for stage in range(5)]
            assert [found.sum(axis=1).tolist() for found in kept[:4]] == [
                [len(hour.living)] * len(requests),
                [len(hour.living)] * len(requests),
                [100] * len(requests),
                [20] * len(requests),
            ]
            # What passes a stage has its highest scores; nothing is scored that was dropped before.
            early, final, auction = scores.scores.reshape(len(requests), -1, 4)[:, :, 1:].T
            for at in range(len(requests)):
                was = [found[at] for found in kept]
                assert early[was[2], at].min() >= early[~was[2], at].max()
                assert final[was[3], at].min() >= final[was[2] & ~was[3], at].max()
                assert np.array_equal(np.isnan(final[:, at]), ~was[2])
                assert np.array_equal(np.isnan(auction[:, at]), ~was[4])
                shown = hour.log.filter(pa.array(hour.log["request_id"].to_numpy() == requests[at]))
                assert sorted(shown["ad_id"].to_pylist()) == hour.living[was[4]].tolist()


def test_prices_are_those_of_the_auction(ranked: list[ServedHour]) -> None:
    for hour in ranked:
        price = hour.slates["cost_per_click"].to_numpy()
        bid = hour.log["bid_micros"].to_numpy() / 1e6
        assert hour.slates["impression_id"].equals(hour.log["impression_id"])
        assert (price <= bid).all()
        assert (price >= 0).all()
        assert (price < bid).mean() > 0.5


def test_fixed_funnel_shows_what_it_knows_and_what_lives() -> None:
    market = _market(judge_every=1)
    everything = market.ads()
    # Ad rows stand in another order than ads; every third ad is not known.
    known = np.flatnonzero(np.arange(everything.num_rows) % 3 > 0)[::-1].copy()
    step = Step(name="bids", stage=ScoredBy(lambda _, ads: known[ads] * 1.0), keep=4)
    ads = ad_table(everything.take(pa.array(known)))
    served = ServedFunnel(funnel=Funnel([step], ads, VALUE), ad=known)
    living = []

    def watch(requests: LiveRequests) -> Slates:
        living.append(requests.ad)
        return FunnelPolicy(lambda _: served, judge_every=1)(requests)

    hours = list(market.serve(watch, days=2))

    assert len(set(map(len, living))) > 3
    for hour, alive in zip(hours, living, strict=True):
        # The youngest known ads of different advertisers, last numbers first: rows of four ads.
        best = alive[alive % 3 > 0][::-1][:4]
        advertiser = everything["advertiser_id"].to_numpy()[best]
        wanted = best[np.sort(np.unique(advertiser, return_index=True)[1])]
        slates = hour.log["ad_id"].to_numpy().reshape(hour.requests, -1)
        assert (slates == wanted).all()
        (part,) = hour.candidates
        survived = part.scores.survived.reshape(hour.requests, -1)
        assert ((survived > 0) == (alive % 3 > 0)).all()
        assert (np.isin(alive, wanted) == (survived[0] == 3)).all()


class _Truth:
    """Scores by the true probabilities; ad rows are places among the living ads."""

    def __init__(self, market: LiveMarket, requests: LiveRequests) -> None:
        self.market, self.requests = market, requests
        self.ads = ad_table(requests.ad_features)

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        ads = candidates.ads
        number = np.full(len(ads), request.request_id)
        chances = self.market.chances(number, self.requests.ad[ads])
        predictions = {name: getattr(chances, name) for name in ("click", "conversion", "hide")}
        scores = self.ads.total_value(VALUE, predictions, ads)
        return Scored(candidates=Candidates(ads=ads, scores=scores, predictions=predictions))


def _served_by_truth(early_keep: int) -> tuple[LiveMarket, list[ServedHour]]:
    market = _market()

    def chance(request: Request, ads: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.random.default_rng([request.request_id]).random(len(ads))

    def serve(requests: LiveRequests) -> ServedFunnel:
        truth = _Truth(market, requests)
        steps = [
            Step(name="early", stage=ScoredBy(chance), keep=early_keep),
            Step(name="final", stage=truth, keep=10),
        ]
        return ServedFunnel(funnel=Funnel(steps, truth.ads, VALUE), ad=requests.ad.astype(int))

    return market, list(market.serve(FunnelPolicy(serve, judge_every=4), days=1))


def test_funnel_that_knows_the_truth_loses_nothing() -> None:
    market, hours = _served_by_truth(10**6)

    losses = true_losses(_candidates(hours), ad_table(market.ads()), VALUE)

    assert losses.stages == ("known", "early", "final", "auction")
    assert losses.regret.size > 100
    assert losses.regret.tolist() == [0.0] * losses.regret.size
    assert (losses.died == 4).all()


def test_regret_lies_with_the_stage_that_guesses() -> None:
    market, hours = _served_by_truth(30)
    judged = _candidates(hours)
    ads = ad_table(market.ads())

    losses = true_losses(judged, ads, VALUE)

    # By hand: the value of the best living ad less that of the best shown one, request by request.
    regret = []
    for part in judged:
        worth = ads.bid[part.scores.ad] * part.truth.click - 0.1 * part.truth.hide
        for request in np.unique(part.request_id):
            own = part.request_id == request
            shown = own & (part.scores.survived == 4)
            regret.append(worth[own].max() - worth[shown].max())
    np.testing.assert_allclose(losses.regret, regret, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(losses.lost[[0, 2, 3]], 0.0)
    assert losses.lost[1].mean() > 0.05


def test_stages_of_two_funnels_are_not_mixed(ranked: list[ServedHour]) -> None:
    market, hours = _served_by_truth(30)
    plain = list(_market(judge_every=4).serve(RandomPolicy(seed=0), days=1))
    ads = ad_table(market.ads())

    with pytest.raises(DataError, match=r"got answer and known, early, final, auction\. Judge"):
        true_losses([*_candidates(hours), *_candidates(plain)], ads, VALUE)
    with pytest.raises(DataError, match="got no candidates"):
        true_losses([], ads, VALUE)


def test_step_that_falls_back_hides_nothing_of_the_others(
    make_stage: Callable[..., Any],
) -> None:
    def broken(request: Request, ads: NDArray[np.int64]) -> NDArray[np.float64]:
        if request.request_id % 2:
            raise RuntimeError("broken")
        return -1.0 * ads

    def serve(requests: LiveRequests) -> ServedFunnel:
        predicts = {"click": lambda ads: 0.5 + 0 * ads, "hide": lambda ads: 0.0 * ads}
        first = make_stage(lambda ads: ads, predicts=predicts)
        steps = [
            Step(name="first", stage=first, keep=50),
            Step(name="second", stage=ScoredBy(broken), keep=10),
        ]
        ads = ad_table(requests.ad_features)
        return ServedFunnel(funnel=Funnel(steps, ads, VALUE), ad=requests.ad.astype(int))

    policy = FunnelPolicy(serve, judge_every=1)
    hours = list(_market().serve(policy, days=1))

    odd_requests = sum((np.unique(hour.candidates[0].request_id) % 2).sum() for hour in hours)
    assert policy.fallbacks == {("second", "RuntimeError: broken"): odd_requests}
    for hour in hours:
        (part,) = hour.candidates
        second = part.scores.scores[:, 2].reshape(hour.requests, -1)[:, -50:]
        place = np.arange(len(hour.living) - 50, len(hour.living))
        odd = np.unique(part.request_id) % 2 == 1
        # Where the second step failed, the scores of the first stand in its place.
        assert (second[odd] == place).all()
        assert (second[~odd] == -place).all()
        # The first step alone predicts; what it said is known of all that came to the last.
        clicks = part.scores.predictions["click"].reshape(hour.requests, -1)
        assert (clicks[:, -50:] == 0.5).all()
        assert np.isnan(clicks[:, :-50]).all()


def test_hour_without_a_judged_request_tells_of_none() -> None:
    everything = _market().ads()
    step = Step(name="bids", stage=ScoredBy(lambda _, ads: ads * 1.0), keep=4)
    funnel = Funnel([step], ad_table(everything), VALUE)
    served = ServedFunnel(funnel=funnel, ad=np.arange(everything.num_rows))

    policy = FunnelPolicy(lambda _: served, judge_every=10**6)
    hours = list(_market(judge_every=1).serve(policy, days=1))

    # Request 0 alone; the market adds no judgement of its own, whose stages would be others.
    stages = [[part.scores.stages for part in hour.candidates] for hour in hours]
    assert stages == [[("known", "bids", "auction")], *[[]] * 23]


def test_numbers_of_the_ads_must_be_those_of_the_funnel() -> None:
    ads = ad_table(_market().ads().slice(0, 3))
    funnel = Funnel([Step(name="one", stage=Popularity(np.ones(3)), keep=3)], ads, VALUE)

    for wrong in (np.array([1, 2]), np.array([1, 2, 2])):
        with pytest.raises(DataError, match="must hold a different ad_id for each of 3 ad rows"):
            ServedFunnel(funnel=funnel, ad=wrong)
    with pytest.raises(ConfigError, match="judge_every: must be at least 1, got 0"):
        FunnelPolicy(lambda _: ServedFunnel(funnel=funnel, ad=np.arange(3)), judge_every=0)
