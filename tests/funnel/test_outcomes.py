"""What happened, read from the log, and its worth by hand."""

import numpy as np
import pyarrow as pa

from tamis.data.market import LiveMarket, MarketRules, RandomPolicy
from tamis.funnel.ads import AdTable
from tamis.funnel.outcomes import Outcomes, outcomes
from tamis.funnel.value import ValueFunction, ValueWeights

_NEVER = np.iinfo(np.int64).max
_VALUE = ValueFunction(ValueWeights(penalties={"hide": 0.25}))


def _found() -> Outcomes:
    return Outcomes(
        user=np.array([0, 1, 0, 2], np.int32),
        ad=np.array([1, 0, 0, 1], np.int32),
        time_micros=np.array([10, 20, 30, 40]),
        click=np.array([True, True, False, True]),
        conversion_micros=np.array([50, _NEVER, _NEVER, 45]),
        hide=np.array([False, True, True, False]),
        cost_per_click=np.full(4, np.nan),
    )


def test_value_is_the_bid_of_a_click_less_the_penalty_of_a_hide() -> None:
    ads = AdTable(
        bid=np.array([2.0, 3.0]),
        billing=np.array(["click", "click"]),
        advertiser=np.arange(2),
        quality=np.array([0.0, 0.5]),
    )

    worth = _found().total_value(ads, _VALUE)

    # A bid of 3 and quality 0.5; a bid of 2 less a hide; a hide; 3 and 0.5 again.
    assert worth.tolist() == [3.5, 1.75, -0.25, 3.5]


def test_conversions_pay_once_they_have_come() -> None:
    ads = AdTable(
        bid=np.array([2.0, 3.0]),
        billing=np.array(["click", "conversion"]),
        advertiser=np.arange(2),
        quality=np.zeros(2),
    )
    found = _found()

    for now, converted in ((45, []), (46, [3]), (50, [3]), (51, [0, 3]), (None, [0, 3])):
        assert np.flatnonzero(found.converted(now_micros=now)).tolist() == converted
        worth = found.total_value(ads, _VALUE, now_micros=now)
        assert worth.tolist() == [3.0 * (0 in converted), 1.75, -0.25, 3.0 * (3 in converted)]


def test_outcomes_are_the_rows_of_the_log() -> None:
    market = LiveMarket(20_000, seed=0, rules=MarketRules(days=2, click_rate=0.3))
    hours = list(market.serve(RandomPolicy(seed=0), days=1))

    found = outcomes(hours)

    log = pa.concat_tables([hour.log for hour in hours])
    assert len(found) == log.num_rows
    assert found.user.tolist() == log["user_id"].to_pylist()
    assert found.ad.tolist() == log["ad_id"].to_pylist()
    assert found.click.tolist() == [label == 1 for label in log["click"].to_pylist()]
    assert found.hide.tolist() == [label == 1 for label in log["hide"].to_pylist()]
    assert found.converted().tolist() == [label == 1 for label in log["conversion"].to_pylist()]
    assert found.converted().sum() > 20
    times = log["conversion_time"].cast(pa.int64()).to_pylist()
    assert [t if t != _NEVER else None for t in found.conversion_micros.tolist()] == times
    assert found.time_micros.tolist() == log["event_time"].cast(pa.int64()).to_pylist()
    assert np.isnan(found.cost_per_click).all()
