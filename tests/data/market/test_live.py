"""A market served from outside: the same market, the same luck, nothing of the future."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.market import (
    CandidateScores,
    LiveMarket,
    LiveRequests,
    LoggingPolicy,
    MarketRules,
    RandomPolicy,
    ServedHour,
    Slates,
    known_at,
)
from tamis.data.market.running import RunningMarket
from tamis.data.market.tables import LOG_COLUMNS
from tamis.errors import DataError

# Few days and popular ads of nearly equal weight, so that no slate repeats an ad.
RULES = MarketRules(days=3, popularity_exponent=5.0, click_rate=0.2, candidates=40)
ROWS = 9000


class Watched:
    """Remembers what a policy was told."""

    def __init__(self, policy: Callable[[LiveRequests], Slates]) -> None:
        self.policy, self.seen = policy, list[LiveRequests]()

    def __call__(self, requests: LiveRequests) -> Slates:
        self.seen.append(requests)
        return self.policy(requests)


def _logs(served: list[ServedHour]) -> pa.Table:
    return pa.concat_tables([hour.log for hour in served])


def _run(policy: Callable[[LiveRequests], Slates], **options: Any) -> list[ServedHour]:
    return list(LiveMarket(ROWS, seed=4, rules=RULES, **options).serve(policy, days=3))


@pytest.fixture(scope="module")
def served() -> tuple[Watched, list[ServedHour]]:
    policy = Watched(RandomPolicy(seed=0))
    return policy, _run(policy, judge_every=10)


def test_slates_and_luck_of_the_ordinary_log_give_the_ordinary_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    luck, slates = [], []
    draw, settle = RunningMarket.draw_luck, RunningMarket.settle

    def record_luck(self: RunningMarket, *args: Any) -> Any:
        luck.append(draw(self, *args))
        return luck[-1]

    def record_slates(self: RunningMarket, asked: Any, ads: Any, chance: Any) -> Any:
        slates.append(ads)
        return settle(self, asked, ads, chance)

    with monkeypatch.context() as patch:
        patch.setattr(RunningMarket, "draw_luck", record_luck)
        patch.setattr(RunningMarket, "settle", record_slates)
        ordinary = list(RunningMarket(ROWS, RULES, 4).hours())
    replayed, lucky = iter(slates), iter(luck)
    monkeypatch.setattr(RunningMarket, "draw_luck", lambda self, *args: next(lucky))

    served = _run(lambda requests: Slates(ads=next(replayed)))

    # Given what was shown and what chance had in store, every byte of the log follows.
    assert len(served) == len(ordinary) == 72
    for hour, (log, truth) in zip(served, ordinary, strict=True):
        assert hour.log.equals(log)
        assert hour.truth.equals(truth)


def test_same_seed_gives_the_same_market_and_another_gives_another() -> None:
    first, again = (_logs(_run(RandomPolicy(seed=0))) for _ in range(2))

    other = _logs(list(LiveMarket(ROWS, seed=5, rules=RULES).serve(RandomPolicy(seed=0), days=3)))

    assert first.equals(again)
    assert not first.equals(other)


def test_two_policies_meet_the_same_requests_and_the_same_luck() -> None:
    one, two = (_run(RandomPolicy(seed=seed)) for seed in (0, 1))
    # The cost of propensities grows as candidates to the power of places.
    market = LiveMarket(ROWS, seed=4, rules=dataclasses.replace(RULES, candidates=8))
    three = list(market.serve(LoggingPolicy(market, seed=0), days=3))

    for name in ("request_id", "event_time", "user_id", "device", "placement"):
        assert _logs(one)[name].equals(_logs(two)[name])
        assert _logs(one)[name].equals(_logs(three)[name])
    # Where both show an ad in the first hour at the same place, the same comes of it.
    first, second = one[0].log, two[0].log
    same = np.flatnonzero(first["ad_id"].to_numpy() == second["ad_id"].to_numpy())
    assert first.take(pa.array(same)).equals(second.take(pa.array(same)))


def test_policy_is_told_what_the_log_will_show(served: tuple[Watched, list[ServedHour]]) -> None:
    policy, hours = served
    assert len(policy.seen) == len(hours)
    for told, hour in zip(policy.seen, hours, strict=True):
        request = np.searchsorted(told.request_id, hour.log["request_id"].to_numpy())
        ad = np.searchsorted(told.ad, hour.log["ad_id"].to_numpy())
        first = hour.log["position"].to_numpy() == 1
        for table, rows in ((told.features, request), (told.ad_features, ad)):
            shown = table.take(pa.array(rows[first]))
            for name in table.column_names:
                logged = hour.log[name].filter(pa.array(first))
                assert shown[name].to_pylist() == logged.to_pylist(), name
        assert np.array_equal(told.user, told.features["user_id"].to_numpy())
        times = told.features["event_time"].cast(pa.int64()).to_numpy()
        assert np.array_equal(told.time_micros, times)
        assert (times // 3_600_000_000 - 1_704_067_200_000_000 // 3_600_000_000 == told.hour).all()
        assert hour.log.column_names == list(LOG_COLUMNS)


def test_policy_is_told_nothing_that_the_log_does_not_hold(
    served: tuple[Watched, list[ServedHour]],
) -> None:
    told = served[0].seen[30]
    names = {field.name for field in dataclasses.fields(told)}

    assert names == {
        *("hour", "slots", "request_id", "user", "time_micros", "features", "ad", "ad_features"),
    }
    outcomes = {"impression_id", "click", "conversion", "conversion_time", "hide"}
    columns = [*told.features.column_names, *told.ad_features.column_names]
    assert sorted(columns) == sorted(set(LOG_COLUMNS) - outcomes)


def test_what_a_policy_is_told_does_not_depend_on_the_future() -> None:
    # Two policies that differ from hour 30 on; what they are told is the same up to hour 30, the
    # hour itself included, and differs later: clicks of the hour show in the next.
    class Turning:
        def __init__(self, after: int) -> None:
            self.after, self.seen = after, list[LiveRequests]()

        def __call__(self, requests: LiveRequests) -> Slates:
            self.seen.append(requests)
            return RandomPolicy(seed=1 if requests.hour >= self.after else 0)(requests)

    early, late = Turning(30), Turning(10**9)
    for policy in (early, late):
        _run(policy)
    same = [
        one.features.equals(two.features) and one.ad_features.equals(two.ad_features)
        for one, two in zip(early.seen, late.seen, strict=True)
    ]

    assert same[:31] == [True] * 31
    assert not any(same[31:])


def test_ads_are_offered_while_they_live(served: tuple[Watched, list[ServedHour]]) -> None:
    market = LiveMarket(ROWS, seed=4, rules=RULES)
    born, dies = (
        (market.ads()[name].cast(pa.int64()).to_numpy() - 1_704_067_200_000_000) / 3.6e9
        for name in ("start_time", "end_time")
    )
    for told in served[0].seen[::11]:
        alive = (born <= told.hour) & (told.hour < dies)
        # Births are rounded to microseconds here and to single precision there.
        sure = np.minimum(abs(born - told.hour), abs(dies - told.hour)) > 1e-3
        is_told = np.isin(np.arange(len(born)), told.ad)
        assert np.array_equal(alive[sure], is_told[sure])
    first, last = (set(told.ad.tolist()) for told in (served[0].seen[0], served[0].seen[-1]))
    assert first - last
    assert last - first


def test_dead_ad_is_refused_and_the_hour_can_be_served_again() -> None:
    market = LiveMarket(ROWS, seed=4, rules=RULES)
    good = RandomPolicy(seed=0)
    first = market.serve_hour(good)

    def shows_the_unborn(requests: LiveRequests) -> Slates:
        unborn = np.setdiff1d(np.arange(requests.ad[-1]), requests.ad)[:4].astype(np.int32)
        return Slates(ads=np.tile(unborn, (len(requests), 1)))

    with pytest.raises(DataError, match="slate of hour 1: ads must be alive, got ad"):
        market.serve_hour(shows_the_unborn)
    again = market.serve_hour(good)

    assert first is not None
    assert again is not None
    plain = _run(good)
    assert first.log.equals(plain[0].log)
    assert again.log.equals(plain[1].log)


def test_chances_handed_out_are_those_of_the_truth_of_what_is_shown() -> None:
    market = LiveMarket(ROWS, seed=4, rules=RULES)
    inner, told = RandomPolicy(seed=0), []

    def asks(requests: LiveRequests) -> Slates:
        slates = inner(requests)
        request, place = np.nonzero(slates.ads >= 0)
        position = (place + 1).astype(np.int32)
        told.append(
            market.chances(requests.request_id[request], slates.ads[request, place], position)
        )
        return slates

    for hour in market.serve(asks, days=2):
        for task in ("click", "conversion", "hide"):
            assert np.array_equal(getattr(told[-1], task), hour.truth[task].to_numpy())


def test_events_are_as_frequent_as_their_chances(
    served: tuple[Watched, list[ServedHour]],
) -> None:
    log = _logs(served[1])
    truth = pa.concat_tables([hour.truth for hour in served[1]])
    for task in ("click", "hide"):
        chance, happened = truth[task].to_numpy(), log[task].to_numpy()
        for part in np.array_split(np.argsort(chance), 5):
            # Four standard deviations of the number of events.
            error = 4 * np.sqrt((chance[part] * (1 - chance[part])).sum())
            assert abs(happened[part].sum() - chance[part].sum()) < error
    clicked = log["click"].to_numpy() == 1
    chance = truth["conversion"].to_numpy()[clicked]
    converted = log["conversion"].drop_null().to_numpy().sum()
    assert clicked.sum() > 500
    assert abs(converted - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())


def test_candidates_of_a_policy_that_tells_none_are_all_living_ads(
    served: tuple[Watched, list[ServedHour]],
) -> None:
    for told, hour in zip(*(served[0].seen, served[1]), strict=True):
        judged = told.request_id[told.request_id % 10 == 0]
        if not len(judged):
            assert hour.candidates == ()
            continue
        (found,) = hour.candidates
        assert found.request_id.tolist() == np.repeat(judged, len(told.ad)).tolist()
        assert found.scores.ad.tolist() == np.tile(told.ad, len(judged)).tolist()
        is_kept = found.scores.survived == 1
        kept = set(zip(found.request_id[is_kept], found.scores.ad[is_kept], strict=True))
        log = hour.log.filter(pa.array(hour.log["request_id"].to_numpy() % 10 == 0))
        shown = set(zip(log["request_id"].to_pylist(), log["ad_id"].to_pylist(), strict=True))
        assert kept == shown
        # The truth of a candidate is that of the first position: compare where it was shown there.
        chance = dict(
            zip(zip(found.request_id, found.scores.ad, strict=True), found.truth.click, strict=True)
        )
        truth = dict(
            zip(
                hour.truth["impression_id"].to_pylist(),
                hour.truth["click"].to_pylist(),
                strict=True,
            )
        )
        for row in log.select(["request_id", "ad_id", "position", "impression_id"]).to_pylist():
            if row["position"] == 1:
                assert chance[row["request_id"], row["ad_id"]] == truth[row["impression_id"]]


def test_candidates_of_stages_become_tables_with_their_truth() -> None:
    market = LiveMarket(ROWS, seed=4, rules=RULES)

    def two_stages(requests: LiveRequests) -> Slates:
        # Of the first request, the last two of three ads first: the market sorts them.
        ads = requests.ad[[2, 0, 1]]
        part = CandidateScores(
            stages=("early", "final"),
            request=np.zeros(3, np.int64),
            ad=ads,
            survived=np.array([2, 0, 1], np.int8),
            scores=np.array([[3, 30], [1, np.nan], [2, 20]], np.float32),
            predictions={"click": np.array([0.3, np.nan, 0.2], np.float32)},
        )
        slates = np.full((len(requests), 4), -1, np.int32)
        slates[:, 0] = ads[0]
        return Slates(ads=slates, prices=np.full(slates.shape, 0.5), candidates=(part,))

    hour = market.serve_hour(two_stages)

    assert hour is not None
    assert hour.log["position"].to_pylist() == [1] * hour.requests
    assert hour.log["impression_id"].to_pylist() == [4 * at for at in range(hour.requests)]
    assert hour.slates["cost_per_click"].to_pylist() == [0.5] * hour.requests
    assert hour.slates["propensity"].null_count == hour.requests
    candidates, truth = hour.candidates[0].tables()
    ad = hour.living[:3].tolist()
    assert candidates.drop_columns(["stages"]).to_pydict() == {
        "request_id": [0, 0, 0],
        "ad_id": ad,
        "survived": [0, 1, 2],
        "score_early": [1.0, 2.0, 3.0],
        "score_final": [None, 20.0, 30.0],
        "predicted_click": [None, pytest.approx(0.2), pytest.approx(0.3)],
    }
    assert candidates["stages"].to_pylist() == ["early,final"] * 3
    assert truth["ad_id"].to_pylist() == ad
    assert truth["click"][2].as_py() == hour.truth["click"][0].as_py()


def test_log_known_at_a_time_holds_no_later_impression_or_conversion(
    served: tuple[Watched, list[ServedHour]],
) -> None:
    log = _logs(served[1])
    now = 1_704_067_200_000_000 + 30 * 3_600_000_000

    known = known_at(log, now)

    times = log["event_time"].cast(pa.int64()).to_numpy()
    assert known.num_rows == (times < now).sum() > 0
    assert known.schema.equals(log.schema)
    before, after = (
        [value if value is not None and value.timestamp() * 1e6 < now else None for value in column]
        for column in (
            log["conversion_time"].to_pylist()[: known.num_rows],
            known["conversion_time"].to_pylist(),
        )
    )
    assert after == known["conversion_time"].to_pylist() == before
    assert known["conversion"].to_pylist() == [
        None if not click else int(time is not None)
        for click, time in zip(known["click"].to_pylist(), after, strict=True)
    ]
    # Some conversions had not come yet.
    waiting = log["conversion_time"].slice(0, known.num_rows).null_count
    assert known["conversion_time"].null_count > waiting
    others = [name for name in LOG_COLUMNS if not name.startswith("conversion")]
    assert known.select(others).equals(log.slice(0, known.num_rows).select(others))


def test_market_ends_with_its_days() -> None:
    market = LiveMarket(ROWS, seed=4, rules=RULES)
    with pytest.raises(DataError, match="days must be from 1 to the 3 that are left, got 4"):
        list(market.serve(RandomPolicy(seed=0), days=4))
    list(market.serve(RandomPolicy(seed=0), days=3))

    assert market.is_over
    assert market.hour == 72
    with pytest.raises(DataError, match="must have hours left, got none after 72"):
        market.serve_hour(RandomPolicy(seed=0))


def test_truth_is_not_told_between_hours() -> None:
    market = LiveMarket(ROWS, seed=4, rules=RULES)
    market.serve_hour(RandomPolicy(seed=0))

    with pytest.raises(DataError, match="an hour must be being served, got none"):
        market.chances(np.zeros(1, np.int64), np.zeros(1, np.int32))
    with pytest.raises(DataError, match="an hour must be being served, got none"):
        market.logging_candidates(np.zeros(1, np.int64), np.random.default_rng(0))


def test_policy_cannot_change_who_asked_or_what_there_is() -> None:
    def changes(requests: LiveRequests) -> Slates:
        for values in (requests.user, requests.request_id, requests.time_micros, requests.ad):
            with pytest.raises(ValueError, match="read-only"):
                values[0] = 1
        return RandomPolicy(seed=0)(requests)

    hour = LiveMarket(ROWS, seed=4, rules=RULES).serve_hour(changes)

    assert hour is not None
    assert hour.log.equals(_run(RandomPolicy(seed=0))[0].log)


def test_truth_is_told_of_requests_of_the_hour_alone() -> None:
    market = LiveMarket(ROWS, seed=4, rules=RULES)
    market.serve_hour(RandomPolicy(seed=0))

    def asks_for_the_past(requests: LiveRequests) -> Slates:
        market.chances(requests.request_id - 1, requests.ad[:1].repeat(len(requests)))
        return Slates(ads=np.full((len(requests), 4), -1, np.int32))

    with pytest.raises(DataError, match="requests must be of hour 1, got"):
        market.serve_hour(asks_for_the_past)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 3}, "rows: must be at least 4, got 3"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"judge_every": 0}, "judge_every: must be at least 1, got 0"),
    ],
)
def test_market_without_meaning_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=f"LiveMarket.{message}"):
        LiveMarket(**({"rows": 1000} | changes))
