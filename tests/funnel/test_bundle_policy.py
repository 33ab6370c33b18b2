"""A published funnel serves simulated users: living ads, new ones too, and no other market's."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.columns import as_codes
from tamis.data.market import LiveMarket, MarketRules, ServedHour
from tamis.errors import ConfigError, DataError, SchemaError
from tamis.funnel.ab_test import SplitByUser, run_ab_test
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.bundle_policy import bundle_policy
from tamis.funnel.live import ad_table, true_losses
from tamis.funnel.value import ValueFunction

pytestmark = pytest.mark.slow

_ROWS, _SEED = 6000, 2  # the market of ``market_data``


def _market() -> LiveMarket:
    return LiveMarket(_ROWS, seed=_SEED)


def _codes(ads: np.ndarray) -> np.ndarray:
    return as_codes(pa.array(ads))


def _with_bids(blueprint: Blueprint, bid: np.ndarray) -> Blueprint:
    attributes = replace(blueprint.inventory.attributes, bid=bid)
    return replace(blueprint, inventory=replace(blueprint.inventory, attributes=attributes))


def _with_market_bids(blueprint: Blueprint) -> Blueprint:
    ads = _market().ads()
    codes = _codes(ads["ad_id"].to_numpy())
    order = np.argsort(codes)
    rows = order[np.searchsorted(codes, blueprint.inventory.codes, sorter=order)]
    return _with_bids(blueprint, ad_table(ads).bid[rows])


@pytest.fixture(scope="module")
def popular(blueprint: Blueprint) -> Blueprint:
    """Popular ads first, with the bids of the market."""
    return _with_market_bids(blueprint)


@pytest.fixture(scope="module")
def searched(searched: Blueprint) -> Blueprint:
    """An index first, with the bids of the market."""
    return _with_market_bids(searched)


@pytest.fixture(scope="module")
def served(searched: Blueprint) -> tuple[LiveMarket, list[ServedHour]]:
    market = _market()
    return market, list(market.serve(bundle_policy(searched, market, judge_every=5), days=1))


def test_every_living_ad_can_be_shown_and_no_other(
    searched: Blueprint, served: tuple[LiveMarket, list[ServedHour]]
) -> None:
    _, hours = served
    published = searched.inventory.codes
    new = shown_new = 0
    for hour in hours:
        shown = hour.log["ad_id"].to_numpy()
        assert np.isin(shown, hour.living).all()
        assert hour.log.num_rows > 2 * hour.requests
        new += int((~np.isin(_codes(hour.living), published)).sum())
        shown_new += int((~np.isin(_codes(shown), published)).sum())
        for part in hour.candidates:
            assert part.scores.stages == ("known", "index", "early", "final", "auction")
            assert (part.scores.survived >= 1).all()
    # Ads that the bundle was not published with are found by their content.
    assert new > 100
    assert shown_new > 0


def test_candidates_of_the_index_are_those_that_its_beams_reach(
    served: tuple[LiveMarket, list[ServedHour]],
) -> None:
    _, hours = served
    for hour in hours:
        for part in hour.candidates:
            requests = len(np.unique(part.request_id))
            score = part.scores.scores[:, 1].reshape(requests, -1)
            kept = (part.scores.survived >= 2).reshape(requests, -1)
            assert (kept.sum(axis=1) <= 60).all()
            assert (~np.isnan(score[kept])).all()
            assert np.isnan(score).any()
            assert not np.isnan(part.scores.predictions["click"]).all()


def test_budgets_of_time_are_lifted(searched: Blueprint) -> None:
    hurried = replace(
        searched,
        stages=tuple(
            replace(stage, budget=replace(stage.budget, budget_ms=1e-6))
            for stage in searched.stages
        ),
    )
    market = _market()
    policy = bundle_policy(hurried, market)

    list(market.serve(policy, days=1))

    assert not policy.fallbacks


def test_truth_says_where_the_value_was_lost(
    searched: Blueprint, served: tuple[LiveMarket, list[ServedHour]]
) -> None:
    market, hours = served
    judged = [part for hour in hours for part in hour.candidates]

    losses = true_losses(judged, ad_table(market.ads()), ValueFunction(searched.weights))

    assert losses.stages == ("known", "index", "early", "final", "auction")
    assert (losses.lost[0] == 0).all()
    assert losses.lost[1].mean() > 0


def test_two_funnels_meet_in_an_ab_test(popular: Blueprint, searched: Blueprint) -> None:
    market = _market()
    value = ValueFunction(searched.weights)

    test = run_ab_test(
        market,
        bundle_policy(popular, market, judge_every=5),
        bundle_policy(searched, market, judge_every=5),
        days=1,
        split=SplitByUser(salt=1),
        value=value,
        ads=ad_table(market.ads()),
        smallest={},
    )

    assert test.control_losses is not None
    assert test.treatment_losses is not None
    assert test.control_losses.stages[1] == "popular"
    assert test.treatment_losses.stages[1] == "index"


@pytest.mark.parametrize(
    ("seed", "rules"),
    [
        (3, MarketRules()),
        # Other ads under the numbers of the same ones, and fewer of them.
        (_SEED, MarketRules(min_ads=401)),
        (_SEED, MarketRules(min_ads=100)),
    ],
)
def test_bundle_of_another_market_is_refused(
    searched: Blueprint, seed: int, rules: MarketRules
) -> None:
    message = rf"must be those of the market of 6,000 rows and seed {seed}, got another \w+ for"
    with pytest.raises(DataError, match=message):
        bundle_policy(searched, LiveMarket(_ROWS, seed=seed, rules=rules))


def test_bundle_whose_money_is_of_another_unit_is_refused(searched: Blueprint) -> None:
    bid = searched.inventory.attributes.bid

    with pytest.raises(DataError, match=r"must be those of the market, .* 1e-6 as ads.bid_unit"):
        bundle_policy(_with_bids(searched, bid * 1e6), _market())
    # In currency units, with other last bits; and as they are without a table of ads.
    bundle_policy(_with_bids(searched, bid * 1e6 * 1e-6), _market())
    bundle_policy(_with_bids(searched, np.ones(len(bid))), _market())


def test_bundle_of_another_log_is_refused(searched: Blueprint) -> None:
    schema = searched.encoders.schema
    fields = tuple(
        replace(field, column="browser") if field.name == "device" else field
        for field in schema.fields
    )
    other = replace(
        searched, encoders=replace(searched.encoders, schema=replace(schema, fields=fields))
    )

    with pytest.raises(SchemaError, match=r"must be columns of a simulated market, got 'browser'"):
        bundle_policy(other, LiveMarket(_ROWS, seed=_SEED))


def test_judging_must_have_a_rhythm(searched: Blueprint) -> None:
    with pytest.raises(ConfigError, match=r"judge_every: must be at least 1, got 0"):
        bundle_policy(searched, LiveMarket(_ROWS, seed=_SEED), judge_every=0)
