"""Users split once and for all; no difference where there is none; the truth wins over chance."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.market import (
    LiveMarket,
    LiveRequests,
    LoggingPolicy,
    MarketRules,
    RandomPolicy,
    Slates,
    TruthPolicy,
)
from tamis.errors import ConfigError, DataError
from tamis.evaluation.experiment import UserTotals, compare_arms, user_totals
from tamis.evaluation.sequential import always_valid_looks
from tamis.funnel.ab_test import (
    AbTest,
    SplitByUser,
    SplitPolicy,
    guard,
    run_ab_test,
    smallest_differences,
    totals_by_user,
)
from tamis.funnel.live import ad_table
from tamis.funnel.outcomes import Outcomes, outcomes
from tamis.funnel.value import ValueFunction, ValueWeights

RULES = MarketRules(days=4, click_rate=0.1, hide_rate=0.02, conversion_rate=0.3)
VALUE = ValueFunction(ValueWeights(penalties={"hide": 0.1}))
SMALLEST: dict[Any, float] = {
    "click_rate": 0.02,
    "conversion_rate": 0.05,
    "hide_rate": 0.005,
    "value_per_user": 0.4,
}
DAY = 24 * 3_600_000_000
START = 1_704_067_200_000_000


def _market() -> LiveMarket:
    return LiveMarket(40_000, seed=7, rules=RULES, judge_every=20)


def _by_request(requests: LiveRequests) -> Slates:
    """Random slates that depend on the request alone, so that a split changes none of them."""
    ads = np.stack(
        [
            np.random.default_rng(number).choice(requests.ad, requests.slots, replace=False)
            for number in requests.request_id
        ]
    )
    return Slates(ads=ads)


def test_split_is_a_fixed_share_of_users_and_salts_are_independent() -> None:
    users = np.arange(100_000)

    first, second = (SplitByUser(salt=s, treated_share=0.3).is_treated(users) for s in (1, 2))

    # Deviations of shares: sqrt(0.21 / 1e5) = 0.0014.
    assert first.mean() == pytest.approx(0.3, abs=0.006)
    assert (first & second).mean() == pytest.approx(0.09, abs=0.004)
    again = SplitByUser(salt=1, treated_share=0.3).is_treated(users[::-1])
    assert np.array_equal(again[::-1], first)


@pytest.mark.parametrize("changes", [{"salt": -1}, {"treated_share": 0.0}, {"treated_share": 1.0}])
def test_split_without_meaning_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="salt must be at least 0 and treated_share in"):
        SplitByUser(**({"salt": 0} | changes))


def test_each_policy_answers_its_own_users_alone() -> None:
    split = SplitByUser(salt=3)
    asked: dict[str, list[int]] = {"first": [], "last": []}

    def first(requests: LiveRequests) -> Slates:
        asked["first"] += requests.user.tolist()
        return Slates(ads=np.tile(requests.ad[:4], (len(requests), 1)))

    def last(requests: LiveRequests) -> Slates:
        asked["last"] += requests.user.tolist()
        return Slates(ads=np.tile(requests.ad[-4:], (len(requests), 1)))

    market = _market()
    for hour in market.serve(SplitPolicy(first, last, split), days=1):
        is_treated = split.is_treated(hour.log["user_id"].to_numpy())
        slates = hour.log["ad_id"].to_numpy()
        place = hour.log["position"].to_numpy() - 1
        expected = np.where(is_treated, hour.living[-4:][place], hour.living[:4][place])
        assert np.array_equal(slates, expected)
    assert set(asked["first"]).isdisjoint(asked["last"])
    assert min(len(asked["first"]), len(asked["last"])) > 500


@pytest.fixture(scope="module")
def same() -> tuple[LiveMarket, AbTest]:
    market = _market()
    test = run_ab_test(
        market,
        _by_request,
        _by_request,
        days=4,
        split=SplitByUser(salt=0),
        value=VALUE,
        ads=ad_table(market.ads()),
        smallest=SMALLEST,
    )
    return market, test


@pytest.fixture(scope="module")
def found() -> list[Outcomes]:
    """The impressions of the same policy alone, which no split changes."""
    market = _market()
    return [outcomes(list(market.serve(_by_request, days=1))) for _ in range(4)]


def test_test_of_a_policy_against_itself_shows_no_difference(
    same: tuple[LiveMarket, AbTest],
) -> None:
    _, test = same

    assert len(test.result.differences) == 4
    ratio = test.result.sample_ratio
    assert not ratio.is_mismatch
    # Of the users that came, not of all of the market.
    hours = list(_market().serve(_by_request, days=4))
    came = np.unique(np.concatenate([hour.user for hour in hours]))
    assert ratio.treated_users == SplitByUser(salt=0).is_treated(came).sum()
    assert ratio.control_users + ratio.treated_users == len(came)
    for difference in test.result.differences:
        assert not difference.is_significant
        assert difference.lower < 0 < difference.upper
    assert set(test.guarded) == set(SMALLEST)
    for guarded in test.guarded.values():
        assert guarded is not None
        assert guarded.stopped_on is None
        assert guarded.days[-1] == 4
        assert (guarded.looks.lower < 0).all()
        assert (guarded.looks.upper > 0).all()
    # Every click settles after two days.
    conversions = test.guarded["conversion_rate"]
    assert conversions is not None
    assert conversions.days[0] >= 3


def test_false_alarms_are_as_rare_as_promised(found: list[Outcomes]) -> None:
    market = _market()
    ads, users = ad_table(market.ads()), np.arange(market.num_users)
    alarms = np.zeros(4)
    stops = 0
    for salt in range(100):
        is_treated = SplitByUser(salt=salt).is_treated(users)
        totals = [
            totals_by_user(
                found[:day],
                is_treated,
                ads=ads,
                value=VALUE,
                attribution_hours=48,
                now_micros=START + day * DAY,
            )
            for day in (1, 2, 3, 4)
        ]
        result = compare_arms(totals[-1])
        alarms += [difference.is_significant for difference in result.differences]
        clicks = guard(totals, "click_rate", smallest=0.02)
        assert clicks is not None
        stops += clicks.stopped_on is not None

    # 5 % each of 100, deviation 2.2; of the guarded looks at most 5 % in all.
    assert (alarms <= 5 + 4 * 2.2).all()
    assert alarms.sum() > 4
    assert stops <= 5 + 4 * 2.2


def test_totals_equal_those_of_the_log_row_by_row(found: list[Outcomes]) -> None:
    market = _market()
    ads = ad_table(market.ads())
    is_treated = SplitByUser(salt=5).is_treated(np.arange(market.num_users))

    totals = totals_by_user(found, is_treated, ads=ads, value=VALUE, attribution_hours=48)

    log = pa.concat_tables([hour.log for hour in _market().serve(_by_request, days=4)])
    delay = (log["conversion_time"].cast(pa.int64()).to_numpy(zero_copy_only=False)) - log[
        "event_time"
    ].cast(pa.int64()).to_numpy()
    click, user = log["click"].to_numpy() * 1.0, log["user_id"].to_numpy()
    conversion = np.where(click == 1, 1.0 * (delay < 2 * DAY), np.nan)
    hide = log["hide"].to_numpy() * 1.0
    expected = user_totals(
        user,
        is_treated[user],
        click=click,
        conversion=conversion,
        hide=hide,
        value=click * log["bid_micros"].to_numpy() / 1e6 - 0.1 * hide,
    )
    came = np.unique(user)
    assert len(came) < market.num_users
    for name in ("impressions", "clicks", "settled_clicks", "conversions", "hides", "value"):
        column = getattr(totals, name)
        np.testing.assert_allclose(column[came], getattr(expected, name), rtol=1e-12, atol=1e-12)
        assert column.sum() == pytest.approx(column[came].sum())
    # Some conversions come after the window.
    assert 0 < totals.conversions.sum() < (log["conversion"].drop_null().to_numpy() == 1).sum()


def test_looks_count_what_was_known_then() -> None:
    hour = 3_600_000_000
    part = Outcomes(
        user=np.array([0, 1, 2, 3], np.int32),
        ad=np.zeros(4, np.int32),
        time_micros=np.array([0, 1, 2, 3]) * hour,
        click=np.array([True, True, True, False]),
        # Within the window of 10 hours; after it; never; no click.
        conversion_micros=np.array([9 * hour, 11 * hour, 2**63 - 1, 2**63 - 1]),
        hide=np.zeros(4, np.bool_),
        cost_per_click=np.full(4, np.nan),
    )
    ads = ad_table(pa.table({"bid_micros": [1_000_000], "advertiser_id": [0]}))
    settled, converted = [], []
    for now in (9.5, 10, 11.5, 30):
        totals = totals_by_user(
            [part],
            np.array([True, False, True, False]),
            ads=ads,
            value=VALUE,
            attribution_hours=10,
            now_micros=round(now * hour),
        )
        settled.append(totals.settled_clicks.tolist())
        converted.append(totals.conversions.tolist())

    assert settled == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    # The second comes 10 hours after its click to the microsecond, which is too late.
    assert converted == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


@pytest.fixture
def few_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets looks begin with two users, so that they can be computed by hand."""
    monkeypatch.setattr("tamis.evaluation.sequential.LEAST_USERS", 1)


def test_guard_waits_for_a_hundred_users_of_each_arm() -> None:
    def totals(users: int) -> UserTotals:
        generator, arms = np.random.default_rng(users), np.arange(users) % 2 == 1
        clicks = generator.integers(0, 3, users).astype(float)
        none = np.zeros(users)
        return UserTotals(
            is_treated=arms,
            impressions=np.full(users, 5.0),
            clicks=clicks,
            settled_clicks=none,
            conversions=none,
            hides=none,
            value=clicks,
        )

    looks = [totals(40), totals(199), totals(200), totals(400)]

    found = guard(looks, "click_rate", smallest=0.1)

    assert found is not None
    assert found.days.tolist() == [3, 4]
    assert guard(looks[:2], "click_rate", smallest=0.1) is None


@pytest.mark.usefixtures("few_users")
def test_guard_takes_value_by_the_day_and_waits_for_events_of_both_arms() -> None:
    is_treated = np.array([True, True, False, False])

    def totals(value: list[float], hides: list[float]) -> UserTotals:
        some = np.array([4.0, 2.0, 3.0, 5.0])
        return UserTotals(
            is_treated=is_treated,
            impressions=some,
            clicks=some / 2,
            settled_clicks=np.zeros(4),
            conversions=np.zeros(4),
            hides=np.array(hides),
            value=np.array(value),
        )

    looks = [
        totals([3, 1, 1, 2], [0, 1, 0, 0]),
        totals([6, 2, 2, 4], [1, 1, 0, 1]),
        totals([9, 6, 4, 6], [1, 1, 2, 1]),
    ]

    value = guard(looks, "value_per_user", smallest=0.5)
    hides = guard(looks, "hide_rate", smallest=0.1)
    assert value is not None
    assert hides is not None

    # Means 2 and 1.5 a day, then the same, then (15 - 10) / 6 a day. Two users of values x and y
    # have a mean with error |x - y| / 2.
    expected = always_valid_looks(
        [0.5, 0.5, 5 / 6],
        [np.hypot(1, 0.5), np.hypot(1, 0.5), np.hypot(1.5, 1) / 3],
        mixture_sd=0.5,
    )
    np.testing.assert_allclose(value.looks.lower, expected.lower, rtol=1e-12)
    np.testing.assert_allclose(value.looks.upper, expected.upper, rtol=1e-12)
    assert value.days.tolist() == [1, 2, 3]
    # The control has no hide on the first day, and nobody has a settled click.
    assert hides.days.tolist() == [2, 3]
    assert guard(looks, "conversion_rate", smallest=0.1) is None


@pytest.mark.usefixtures("few_users")
def test_guard_leaves_out_looks_at_which_an_arm_shows_no_error() -> None:
    def totals(settled: list[float], conversions: list[float]) -> UserTotals:
        clicks = np.array(settled)
        return UserTotals(
            is_treated=np.array([True, True, False, False]),
            impressions=np.full(4, 5.0),
            clicks=clicks,
            settled_clicks=clicks,
            conversions=np.array(conversions),
            hides=np.zeros(4),
            value=np.zeros(4),
        )

    # One click in either arm, which converts; then one arm with two clicks; then both.
    looks = [
        totals([1, 0, 1, 0], [1, 0, 1, 0]),
        totals([1, 1, 1, 0], [1, 0, 1, 0]),
        totals([1, 1, 1, 1], [1, 0, 1, 0]),
    ]

    found = guard(looks, "conversion_rate", smallest=0.01)

    assert found is not None
    assert found.days.tolist() == [3]
    assert guard(looks[:2], "conversion_rate", smallest=0.01) is None


@pytest.mark.usefixtures("few_users")
def test_guard_takes_rounding_for_no_error() -> None:
    def totals(clicks: list[float]) -> UserTotals:
        shown, none = np.full(6, 49.0), np.zeros(6)
        return UserTotals(
            is_treated=np.array([True, True, True, False, False, False]),
            impressions=shown,
            clicks=np.array(clicks),
            settled_clicks=none,
            conversions=none,
            hides=none,
            value=none,
        )

    # On the first day every user has one ratio, of which float64 keeps 17 digits.
    found = guard([totals([1] * 6), totals([9, 8, 7, 1, 2, 3])], "click_rate", smallest=0.1)

    assert found is not None
    assert found.days.tolist() == [2]
    assert found.looks.lower[0] < found.looks.upper[0]


def test_value_per_request_is_that_of_the_log(same: tuple[LiveMarket, AbTest]) -> None:
    _, test = same
    hours = list(_market().serve(_by_request, days=4))
    split = SplitByUser(salt=0)
    # Every place was filled, so that impressions of a request are as many as slots.
    log = pa.concat_tables([hour.log for hour in hours])
    asked = split.is_treated(np.concatenate([hour.user for hour in hours]))
    treated = split.is_treated(log["user_id"].to_numpy())
    worth = log["click"].to_numpy() * log["bid_micros"].to_numpy() / 1e6
    worth = worth - 0.1 * log["hide"].to_numpy()

    found = test.value_per_request

    assert log.num_rows == 4 * len(asked)
    assert found.treatment.value == pytest.approx(worth[treated].sum() / asked.sum())
    assert found.control.value == pytest.approx(worth[~treated].sum() / (~asked).sum())
    # The number of requests of a user no longer counts as noise.
    per_user = {item.metric: item for item in test.result.differences}["value_per_user"]
    noise = per_user.control.standard_error / per_user.control.value
    assert found.control.standard_error / found.control.value < 0.8 * noise


def test_the_truth_wins_over_chance_and_is_known_to_have_won() -> None:
    market = _market()
    ads = ad_table(market.ads())

    def worth(chances: Any, ad: np.ndarray) -> np.ndarray:
        predictions = {name: getattr(chances, name) for name in ("click", "conversion", "hide")}
        return ads.total_value(VALUE, predictions, ad)

    test = run_ab_test(
        market,
        RandomPolicy(seed=0),
        TruthPolicy(market, worth),
        days=4,
        split=SplitByUser(salt=0, treated_share=0.5),
        value=VALUE,
        ads=ads,
        smallest=SMALLEST,
    )

    by_metric = {difference.metric: difference for difference in test.result.differences}
    assert by_metric["click_rate"].lower > 0
    assert by_metric["value_per_user"].lower > 0
    assert by_metric["value_per_user"].lift > 0.5
    # So large a difference shows on the first days.
    for metric in ("click_rate", "value_per_user"):
        guarded = test.guarded[metric]
        assert guarded is not None
        assert guarded.stopped_on == 1
    assert test.control_losses is not None
    assert test.treatment_losses is not None
    assert test.treatment_losses.regret.max() == 0.0
    assert test.control_losses.regret.mean() > 0.1

    record = json.loads(json.dumps(test.to_json(), allow_nan=False))
    assert set(record["differences"]) == {*SMALLEST, "value_per_request"}
    assert record["differences"]["value_per_request"]["lower"] > 0
    assert record["guarded"]["click_rate"]["stopped_on"] == 1
    assert record["guarded"]["click_rate"]["days"] == [1, 2, 3, 4]
    assert len(record["guarded"]["click_rate"]["p_value"]) == 4
    assert not record["sample_ratio"]["is_mismatch"]
    assert record["sample_ratio"]["treated_users"] == test.result.sample_ratio.treated_users
    lost = record["losses"]["control"]
    assert lost["requests"] == test.control_losses.died.size
    assert lost["regret"]["value"] == pytest.approx(test.control_losses.regret.mean())
    (stage,) = lost["stages"]
    assert stage["stage"] == "answer"
    assert stage["lost"]["value"] == lost["regret"]["value"]
    assert 0 < stage["kept"]["value"] < 1
    assert record["losses"]["treatment"]["regret"]["value"] == 0.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attribution_hours": 0.0}, ConfigError, "attribution_hours: must be above 0, got 0.0"),
        ({"smallest": {"clicks": 0.1}}, ConfigError, "smallest: must give .* for 'clicks'"),
        (
            {"smallest": {"hide_rate": 0.0}},
            ConfigError,
            "number above 0 .* got 0.0 for 'hide_rate'",
        ),
        ({"days": 5}, DataError, "days must be from 1 to the 4 that are left, got 5"),
        ({"days": 0}, DataError, "days must be from 1 to the 4 that are left, got 0"),
    ],
)
def test_mistaken_test_is_refused_before_it_begins(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    market = _market()
    settings: dict[str, Any] = {
        "days": 1,
        "split": SplitByUser(salt=0),
        "value": VALUE,
        "ads": ad_table(market.ads()),
        "smallest": SMALLEST,
    }

    with pytest.raises(error, match=message):
        run_ab_test(market, _by_request, _by_request, **(settings | changes))
    assert market.hour == 0


def test_smallest_differences_are_shares_of_the_days_before() -> None:
    market = _market()
    hours = list(market.serve(LoggingPolicy(market, seed=7), days=2))
    log = pa.concat_tables([hour.log for hour in hours])
    click, hide = log["click"].to_numpy(), log["hide"].to_numpy()

    found = smallest_differences(hours, market, ad_table(market.ads()), VALUE, days=2, share=0.1)

    assert found["click_rate"] == pytest.approx(0.1 * click.mean())
    assert found["hide_rate"] == pytest.approx(0.1 * hide.mean())
    worth = click * log["bid_micros"].to_numpy() / 1e6 - 0.1 * hide
    assert found["value_per_user"] == pytest.approx(0.1 * worth.sum() / market.num_users / 2)
    # Conversions that come later than the last day are not known yet.
    times = log["conversion_time"].cast(pa.int64()).drop_null().to_numpy()
    assert 0 < (times < market.now_micros).sum() < len(times)
    known = (times < market.now_micros).sum()
    assert found["conversion_rate"] == pytest.approx(0.1 * known / click.sum())


def test_metric_without_events_before_the_test_is_not_guarded() -> None:
    market = LiveMarket(4000, seed=7, rules=MarketRules(days=4, hide_rate=1e-9))
    hours = list(market.serve(LoggingPolicy(market, seed=7), days=1))

    found = smallest_differences(hours, market, ad_table(market.ads()), VALUE, days=1, share=0.1)

    assert "hide_rate" not in found
    assert found["click_rate"] > 0
