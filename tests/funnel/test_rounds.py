"""Rounds of retraining: what is known at the end of each, how it is measured, the feedback loop."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tamis.data.market import (
    Exploring,
    LiveMarket,
    LiveRequests,
    MarketRules,
    Policy,
    RandomPolicy,
    ServedHour,
    Slates,
)
from tamis.data.market.tables import LOG_COLUMNS
from tamis.errors import ConfigError, DataError
from tamis.evaluation.ratio import ratio_of_sums
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.live import FunnelPolicy, ServedFunnel, ad_table
from tamis.funnel.rounds import KnownLog, Round, run_rounds
from tamis.funnel.stages import Popularity
from tamis.funnel.value import ValueFunction, ValueWeights

pytestmark = pytest.mark.slow

VALUE = ValueFunction(ValueWeights(penalties={"hide": 0.1}))
# Ads differ much and live shortly: half of those alive in a round were not there two rounds before.
RULES = MarketRules(days=12, ad_sd=1.0, click_rate=0.1, mean_lifetime_days=3.0)
DAY = 24 * 3_600_000_000
START = 1_704_067_200_000_000


def _market(seed: int = 0, rows: int = 24_000) -> LiveMarket:
    return LiveMarket(rows, seed=seed, rules=RULES, judge_every=10)


class Counting:
    """The same ads for everybody: those of the highest counted clicks per impression times bid."""

    def __init__(self, log: pa.Table, bid: np.ndarray) -> None:
        ad, clicks = log["ad_id"].to_numpy(), log["click"].to_numpy()
        shown = np.bincount(ad, minlength=len(bid))
        # An ad that was never shown has no clicks: it counts as worthless, and stays unknown.
        self.score = (
            bid * np.bincount(ad, weights=clicks, minlength=len(bid)) / np.maximum(shown, 1)
        )

    def __call__(self, requests: LiveRequests) -> Slates:
        best = requests.ad[np.argsort(-self.score[requests.ad], kind="stable")[: requests.slots]]
        return Slates(ads=np.tile(best, (len(requests), 1)))


def _rounds_of_counting(explored: float, seed: int) -> tuple[list[Round], list[Counting]]:
    market = _market(seed)
    ads = ad_table(market.ads())
    learnt = []

    def retrain(known: KnownLog) -> Policy:
        learnt.append(Counting(known.log, ads.bid))
        return Exploring(learnt[-1], share=explored, seed=1) if explored else learnt[-1]

    rounds = run_rounds(
        market, RandomPolicy(seed=0), retrain, rounds=6, days=2, ads=ads, value=VALUE
    )
    return rounds, learnt


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ads_that_are_never_shown_are_never_learnt_and_exploration_mends_it(seed: int) -> None:
    greedy, learnt = _rounds_of_counting(0.0, seed)
    exploring, _ = _rounds_of_counting(0.2, seed)

    # The first round is the same, and shows every ad.
    assert greedy[0].to_json() == exploring[0].to_json()
    assert greedy[0].never_shown < 0.01
    # Then the counting policy shows a few ads to all, so that hardly an ad that is born is seen:
    # ads live three days, and after ten nearly none is left that chance once showed.
    never = [found.never_shown for found in greedy]
    assert never == sorted(never)
    assert never[-1] > 0.85
    assert all(found.top_tenth_share > 0.999 for found in greedy[1:])
    # What it learns of ads stays what it learnt of the first round's log.
    assert (learnt[-1].score > 0).sum() < (learnt[0].score > 0).sum() + 30
    # A fifth of the requests at random shows nearly all of them.
    assert max(found.never_shown for found in exploring) < 0.1
    assert all(found.top_tenth_share < 0.95 for found in exploring)
    # At first exploring costs; in the end the greedy policy is far behind.
    assert greedy[1].regret < exploring[1].regret
    assert greedy[-1].value.upper < exploring[-1].value.lower


def _slow_round(hours: list[ServedHour], before: set[int]) -> dict[str, Any]:
    rows = pa.concat_tables([hour.log for hour in hours]).to_pylist()
    living = sorted({ad for hour in hours for ad in hour.living.tolist()})
    asked = [user for hour in hours for user in hour.user.tolist()]
    count = {ad: sum(row["ad_id"] == ad for row in rows) for ad in living}
    most = sorted(count.values(), reverse=True)[: int(np.ceil(len(living) / 10))]
    worth = [row["click"] * row["bid_micros"] / 1e6 - 0.1 * row["hide"] for row in rows]
    users = [row["user_id"] for row in rows]
    clicks = [row["click"] for row in rows]
    return {
        "requests": len(asked),
        "impressions": len(rows),
        "value": ratio_of_sums(
            [*worth, *[0.0] * len(asked)],
            [*[0] * len(rows), *[1] * len(asked)],
            groups=users + asked,
        ).to_json(),
        "click_rate": ratio_of_sums(clicks, [1] * len(rows), groups=users).to_json(),
        "conversion_rate": ratio_of_sums(
            [row["conversion"] or 0 for row in rows], clicks, groups=users
        ).to_json(),
        "hide_rate": ratio_of_sums(
            [row["hide"] for row in rows], [1] * len(rows), groups=users
        ).to_json(),
        "never_shown": np.mean([count[ad] == 0 and ad not in before for ad in living]),
        "not_shown": np.mean([number == 0 for number in count.values()]),
        "top_tenth_share": sum(most) / len(rows),
    }


def test_measures_of_a_round_equal_a_slow_reading_of_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hours: list[ServedHour] = []
    serve_hour = LiveMarket.serve_hour

    def record(self: LiveMarket, policy: Policy) -> ServedHour | None:
        served = serve_hour(self, policy)
        hours.extend([] if served is None else [served])
        return served

    monkeypatch.setattr(LiveMarket, "serve_hour", record)

    def from_place(first: int) -> Policy:
        def some(requests: LiveRequests) -> Slates:
            # Few ads of those that are alive, and none for a third of the requests.
            ads = np.tile(requests.ad[first : first + 4], (len(requests), 1))
            ads[requests.request_id % 3 == 0] = -1
            return Slates(ads=ads)

        return some

    market = _market()
    rounds = run_rounds(
        market,
        from_place(5),
        lambda _: from_place(50),
        rounds=2,
        days=1,
        ads=ad_table(market.ads()),
        value=VALUE,
    )

    before: set[int] = set()
    for found, part in zip(rounds, (hours[:24], hours[24:]), strict=True):
        expected = _slow_round(part, before)
        before |= {ad for hour in part for ad in hour.log["ad_id"].to_pylist()}
        fields = found.to_json()
        for name, value in expected.items():
            own = fields[name] if isinstance(value, dict) else {"value": fields[name]}
            wanted = value if isinstance(value, dict) else {"value": value}
            for part_name, number in wanted.items():
                exact = isinstance(number, str)
                assert own[part_name] == (number if exact else pytest.approx(number)), name
        assert found.impressions < 3 * found.requests
        # One stage: regret is its loss.
        assert fields["lost"] == {"answer": pytest.approx(found.regret)}
    assert rounds[1].never_shown < rounds[1].not_shown


def test_retraining_is_told_the_past_alone() -> None:
    market = _market()
    told: list[KnownLog] = []
    finished: list[int] = []

    def retrain(known: KnownLog) -> Policy:
        told.append(known)
        # Earlier rounds are reported before the next policy is made of them.
        assert len(finished) == len(told)
        return RandomPolicy(seed=len(told))

    rounds = run_rounds(
        market,
        RandomPolicy(seed=0),
        retrain,
        rounds=3,
        days=2,
        ads=ad_table(market.ads()),
        value=VALUE,
        progress=lambda found: finished.append(found.number),
    )

    assert [found.number for found in rounds] == finished == [0, 1, 2]
    assert len(told) == 2
    assert market.hour == 6 * 24
    for end, known in zip((2, 4), told, strict=True):
        now = START + end * DAY
        assert known.log.column_names == list(LOG_COLUMNS)
        assert known.log.num_rows == sum(found.impressions for found in rounds[: end // 2])
        assert known.slates["impression_id"].equals(known.log["impression_id"])
        for name in ("event_time", "conversion_time"):
            times = known.log[name].drop_null().cast(pa.int64()).to_numpy()
            assert START <= times.min() <= times.max() < now
        columns = {*known.slates.column_names, *known.candidates.column_names}
        # Nothing that only the truth knows.
        assert columns == {
            *("impression_id", "cost_per_click", "propensity"),
            *("request_id", "ad_id", "survived", "stages", "score_answer"),
        }
    # A conversion that was under way at the end of the first round shows after the second.
    first, second = (known.log.slice(0, told[0].log.num_rows)["conversion"] for known in told)
    assert 0 < pc.sum(first).as_py() < pc.sum(second).as_py()


def test_funnel_is_retrained_on_log_and_candidates_of_earlier_funnels() -> None:
    market = _market()
    ads = ad_table(market.ads())
    everything = np.arange(len(ads))
    stages = []

    def retrain(known: KnownLog) -> Policy:
        stages.append(set(known.candidates["stages"].to_pylist()))
        clicked = known.log.filter(pc.equal(known.log["click"], 1))["ad_id"].to_numpy()
        steps = [Step(name="clicks", stage=Popularity.of_events(clicked, num_ads=len(ads)), keep=9)]
        served = ServedFunnel(funnel=Funnel(steps, ads, VALUE), ad=everything)
        return FunnelPolicy(lambda _: served, judge_every=10)

    rounds = run_rounds(
        market, RandomPolicy(seed=0), retrain, rounds=3, days=1, ads=ads, value=VALUE
    )

    assert stages == [{"answer"}, {"answer", "known,clicks,auction"}]
    for found in rounds[1:]:
        lost = found.to_json()["lost"]
        assert list(lost) == ["known", "clicks", "auction"]
        assert lost["known"] == 0.0
        assert lost["clicks"] > 0.0
        assert sum(lost.values()) == pytest.approx(found.regret)
    json.dumps([found.to_json() for found in rounds], allow_nan=False)


def test_rounds_that_cannot_be_are_refused() -> None:
    market = _market()
    settings: dict[str, Any] = {"ads": ad_table(market.ads()), "value": VALUE}
    policy = RandomPolicy(seed=0)

    with pytest.raises(ConfigError, match="rounds: must be at least 1, got 0"):
        run_rounds(market, policy, lambda _: policy, rounds=0, days=1, **settings)
    with pytest.raises(DataError, match="days must be from 1 to the 12 that are left, got 14"):
        run_rounds(market, policy, lambda _: policy, rounds=7, days=2, **settings)
    assert market.hour == 0

    def nothing(requests: LiveRequests) -> Slates:
        return Slates(ads=np.full((len(requests), requests.slots), -1, np.int32))

    with pytest.raises(DataError, match="round 1: must show ads, got none in 1 days"):
        run_rounds(market, policy, lambda _: nothing, rounds=3, days=1, **settings)


def test_round_without_clicks_has_no_conversion_rate() -> None:
    rules = MarketRules(days=1, click_rate=5e-4)
    market = LiveMarket(400, rules=rules)

    (found,) = run_rounds(
        market,
        RandomPolicy(seed=0),
        lambda _: RandomPolicy(seed=0),
        rounds=1,
        days=1,
        ads=ad_table(market.ads()),
        value=VALUE,
    )

    assert found.click_rate.value == 0
    assert found.conversion_rate is None
    assert found.to_json()["conversion_rate"] is None
