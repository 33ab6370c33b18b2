"""The auction: known answers, a slow reference, bounds of prices, and honest bids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from tamis.errors import DataError
from tamis.funnel.auction import Bids, Slate, fill_without_predictions, run_auction


def _bids(
    bid: ArrayLike, rate: ArrayLike, offset: ArrayLike, advertiser: ArrayLike | None = None
) -> Bids:
    money = np.asarray(bid, np.float64)
    ads = np.arange(len(money))
    return Bids(
        ads=ads,
        advertiser=ads if advertiser is None else np.asarray(advertiser),
        bid=money,
        rate=np.asarray(rate, np.float64),
        offset=np.asarray(offset, np.float64),
    )


def _run(bids: Bids, *, slots: int, reserve: float = 0.0) -> Slate:
    return run_auction(bids, slots=slots, reserve=reserve, seed=0)


def test_known_prices_of_three_bidders() -> None:
    # Values: 4 * 0.5 + 1 = 3; 8 * 0.25 + 0.5 = 2.5; 2 * 0.5 + 0.25 = 1.25.
    slate = _run(_bids([2, 4, 8], [0.5, 0.5, 0.25], [0.25, 1, 0.5]), slots=2)

    assert slate.ads.tolist() == [1, 2]
    assert slate.values.tolist() == [3.0, 2.5]
    # (2.5 - 1) / 0.5 = 3; (1.25 - 0.5) / 0.25 = 3.
    assert slate.prices.tolist() == [3.0, 3.0]
    assert slate.expected_revenue == 3 * 0.5 + 3 * 0.25


def test_equal_rates_and_no_quality_give_the_plain_second_price() -> None:
    slate = _run(_bids([7, 5, 2], [0.1, 0.1, 0.1], [0, 0, 0]), slots=1)

    assert slate.ads.tolist() == [0]
    assert slate.prices[0] == pytest.approx(5)


def test_bidder_without_a_rival_pays_the_reserve_price() -> None:
    slate = _run(_bids([7], [0.1], [0]), slots=3, reserve=1.5)

    assert slate.prices.tolist() == [1.5]


def test_penalty_must_be_bid_for_even_without_a_rival() -> None:
    # Worth 7 * 0.5 - 1 = 2.5; at a bid of 2 it would be worth nothing, below that it is not shown.
    slate = _run(_bids([7], [0.5], [-1]), slots=1)

    assert slate.prices.tolist() == [2.0]


def test_ad_worth_less_than_an_empty_slot_is_not_shown() -> None:
    slate = _run(_bids([7, 1], [0.1, 0.5], [-1, 0]), slots=2)

    assert slate.ads.tolist() == [1]
    # Nor does it set a price.
    assert slate.prices.tolist() == [0.0]


def test_advertiser_is_shown_once_and_does_not_raise_its_own_price() -> None:
    # Values 6, 5, 4, 1; the second and the first are of one advertiser.
    slate = _run(_bids([6, 5, 4, 1], [1, 1, 1, 1], [0, 0, 0, 0], [3, 3, 8, 9]), slots=2)

    assert slate.ads.tolist() == [0, 2]
    assert slate.prices.tolist() == [4.0, 1.0]


def test_ad_that_bids_below_the_reserve_price_takes_no_part() -> None:
    # By value it would be first, and it would set the price of the other.
    slate = _run(_bids([2, 3], [1, 0.5], [9, 0]), slots=2, reserve=2.5)

    assert slate.ads.tolist() == [1]
    assert slate.prices.tolist() == [2.5]


def test_ad_that_is_never_billed_is_shown_for_its_quality() -> None:
    slate = _run(_bids([2, 3], [0, 0.5], [9, 0]), slots=2, reserve=0.5)

    assert slate.ads.tolist() == [0, 1]
    assert slate.prices[0] == 0.5


def test_nobody_takes_part() -> None:
    slate = _run(_bids([1], [1], [0]), slots=2, reserve=2)

    assert len(slate.ads) == len(slate.prices) == 0
    assert slate.expected_revenue == 0


_MONEY = st.floats(0, 10, allow_subnormal=False)
_RATE = st.floats(0.001, 1)
_OFFSET = st.floats(-1, 1)
_BIDDER = st.tuples(_MONEY, _RATE, _OFFSET, st.integers(0, 4))
_BIDDERS = st.lists(_BIDDER, min_size=1, max_size=12)


def _auction_slowly(bids: Bids, slots: int, reserve: float) -> list[tuple[int, float]]:
    """Ads and prices from the definition, one ad after another."""
    best: dict[int, tuple[float, int]] = {}
    for at in range(len(bids.ads)):
        value = bids.rate[at] * bids.bid[at] + bids.offset[at]
        owner = int(bids.advertiser[at])
        if bids.bid[at] < reserve or value < 0:
            continue
        if owner not in best or value > best[owner][0]:
            best[owner] = (float(value), at)
    ranked = sorted(best.values(), reverse=True)
    result = []
    for place, (_, at) in enumerate(ranked[:slots]):
        rival = ranked[place + 1][0] if place + 1 < len(ranked) else 0.0
        least = (rival - bids.offset[at]) / bids.rate[at]
        result.append((at, float(min(max(least, reserve), bids.bid[at]))))
    return result


def _of(bidders: list[tuple[float, float, float, int]]) -> Bids:
    bid, rate, offset, advertiser = zip(*bidders, strict=True)
    return _bids(bid, rate, offset, advertiser)


@given(_BIDDERS, st.integers(1, 5), _MONEY)
@settings(deadline=None)
def test_auction_equals_its_definition(
    bidders: list[tuple[float, float, float, int]], slots: int, reserve: float
) -> None:
    bids = _of(bidders)
    expected = _auction_slowly(bids, slots, reserve)
    values = bids.rate * bids.bid + bids.offset
    if len(np.unique(values)) < len(values):
        return  # ties are decided by a hash here, and by the ad row there

    slate = _run(bids, slots=slots, reserve=reserve)

    assert slate.ads.tolist() == [ad for ad, _ in expected]
    np.testing.assert_allclose(slate.prices, [price for _, price in expected], rtol=1e-12)


@given(_BIDDERS, st.integers(1, 5), _MONEY)
@settings(deadline=None)
def test_prices_lie_between_reserve_and_bid_and_advertisers_differ(
    bidders: list[tuple[float, float, float, int]], slots: int, reserve: float
) -> None:
    bids = _of(bidders)

    slate = _run(bids, slots=slots, reserve=reserve)

    assert len(slate.ads) <= slots
    assert (slate.prices >= reserve).all()
    assert (slate.prices <= bids.bid[slate.ads]).all()
    assert (np.diff(slate.values) <= 0).all()
    assert len(set(bids.advertiser[slate.ads].tolist())) == len(slate.ads)


@given(_BIDDERS, st.integers(2, 4))
@settings(deadline=None)
def test_price_is_the_least_bid_that_keeps_the_place(
    bidders: list[tuple[float, float, float, int]], slots: int
) -> None:
    bids = _of([(bid, rate, offset, at) for at, (bid, rate, offset, _) in enumerate(bidders)])
    slate = _run(bids, slots=slots)

    for place, (ad, price) in enumerate(zip(slate.ads.tolist(), slate.prices, strict=True)):
        for change, keeps in ((1e-6, True), (-1e-6, False)):
            changed = bids.bid.copy()
            changed[ad] = price + change
            if changed[ad] < 0:
                continue
            again = _run(_bids(changed, bids.rate, bids.offset), slots=slots).ads.tolist()
            # More than the least bid may even gain a place, where two are tied.
            assert (ad in again[: place + 1]) is keeps


def _utility(slate: Slate, bids: Bids, worth: np.ndarray, owner: int) -> float:
    """What the slate is worth to an advertiser whose events are worth ``worth`` to it."""
    mine = bids.advertiser[slate.ads] == owner
    return float((slate.rates * (worth[slate.ads] - slate.prices))[mine].sum())


@given(_BIDDERS, _MONEY, st.data())
@settings(deadline=None)
def test_in_a_single_slot_no_bidder_gains_by_misreporting(
    bidders: list[tuple[float, float, float, int]], reserve: float, data: st.DataObject
) -> None:
    bids = _of([(bid, rate, offset, at) for at, (bid, rate, offset, _) in enumerate(bidders)])
    liar = data.draw(st.integers(0, len(bidders) - 1))
    told = bids.bid.copy()
    told[liar] = data.draw(_MONEY)
    honest = _run(bids, slots=1, reserve=reserve)

    lied = _run(_bids(told, bids.rate, bids.offset), slots=1, reserve=reserve)

    gain = _utility(lied, bids, bids.bid, liar) - _utility(honest, bids, bids.bid, liar)
    assert gain <= 1e-9


@given(_BIDDERS, st.data())
@settings(deadline=None)
def test_in_a_single_slot_no_advertiser_of_several_ads_gains_by_misreporting(
    bidders: list[tuple[float, float, float, int]], data: st.DataObject
) -> None:
    # Without quality, for which the platform may prefer another ad than the advertiser does.
    bids = _of([(bid, rate, 0.0, owner) for bid, rate, _, owner in bidders])
    liar = bidders[0][3]
    told = bids.bid.copy()
    for ad in np.flatnonzero(bids.advertiser == liar):
        told[ad] = data.draw(_MONEY)
    lying = _bids(told, bids.rate, bids.offset, bids.advertiser)

    honest, lied = _run(bids, slots=1), _run(lying, slots=1)

    gain = _utility(lied, bids, bids.bid, liar) - _utility(honest, bids, bids.bid, liar)
    assert gain <= 1e-9


def test_with_several_slots_a_lower_bid_can_gain() -> None:
    # Why the docstring promises honesty for one slot only. The second slot is as good as the
    # first here and cheaper: worth 10 to the bidder, it pays 8 in the first and 1 in the second.
    truth = _bids([10, 8, 1], [1, 1, 1], [0, 0, 0])
    lie = _bids([7, 8, 1], [1, 1, 1], [0, 0, 0])

    gains = [_utility(_run(bids, slots=2), truth, truth.bid, 0) for bids in (truth, lie)]

    assert gains == [2.0, 9.0]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rate", np.nan, r"auction: rate must be finite and not negative, got nan for ad 1"),
        ("bid", -1.0, r"auction: bid must be finite and not negative, got -1.0 for ad 1"),
        ("offset", np.inf, r"auction: offset must be finite, got inf for ad 1"),
    ],
)
def test_numbers_without_meaning_are_refused(column: str, value: float, message: str) -> None:
    columns = {"bid": [1.0, 1.0], "rate": [0.5, 0.5], "offset": [0.0, 0.0]}
    columns[column][1] = value

    with pytest.raises(DataError, match=message):
        _bids(**columns)


def test_without_predictions_slots_are_filled_in_order_at_the_reserve_price() -> None:
    slate = fill_without_predictions(
        np.array([4, 7, 2, 9]),
        np.array([1.0, 3.0, 2.0, 9.0]),
        np.array([0, 1, 1, 2]),
        np.array([5.0, 5.0, 5.0, 0.5]),
        slots=3,
        reserve=1.0,
        seed=0,
    )

    # 9 bids less than the reserve price, 2 is of the advertiser of 7.
    assert slate.ads.tolist() == [7, 4]
    assert slate.prices.tolist() == [1.0, 1.0]
    assert slate.to_json()["values"] == [None, None]
