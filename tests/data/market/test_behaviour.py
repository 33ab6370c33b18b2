"""True logits on a market of two users and three ads, reckoned by hand."""

import dataclasses

import numpy as np
import pytest

from tamis.data.market import MarketRules, behaviour
from tamis.data.market import rules as names
from tamis.data.market.behaviour import Impressions, Intercepts
from tamis.data.market.population import Ads, Interactions, Population, Users, populate

RULES = MarketRules(
    taste_dim=2,
    match_sd=2.0,
    price_sd=0.5,
    position_loss=0.25,
    interest=0.5,
    saturation=1.5,
    conversion_price=0.3,
    conversion_match_sd=0.5,
    hide_match=0.4,
    history=6,
)


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def _table(shape: tuple[int, ...], entries: dict[tuple[int, ...], float]) -> np.ndarray:
    table = np.zeros(shape, np.float32)
    for place, value in entries.items():
        table[place] = value
    return table


@pytest.fixture
def population() -> Population:
    users = Users(
        age=_ints(1, 4),
        gender=_ints(0, 1),
        country=_ints(2, 5),
        device=_ints(0, 1),
        activity=np.array([0.5, 0.5]),
        readiness=_floats(0.1, -0.2),
        taste=_floats(1, 2, 3, -1).reshape(2, 2),
        turned=_floats(2, 0, 0, 1).reshape(2, 2),
        angle=_floats(0, np.pi / 2),
        need=_floats(1, -1, 2, 0).reshape(2, 2),
        price_sensitivity=_floats(1.0, -2.0),
    )
    ads = Ads(
        advertiser=_ints(0, 0, 1),
        campaign=_ints(0, 0, 1),
        category=_ints(7, 7, 9),
        format=_ints(0, 3, 2),
        bid_micros=np.array([1, 1, 2]),
        price=_floats(20, 30, 40),
        log_price=_floats(0.5, -1.0, 2.0),
        popularity=np.ones(3),
        born=_floats(0, 0, 0),
        dies=_floats(9, 9, 9),
        quality=_floats(0.3, -0.4, 0.7),
        appeal=_floats(1, 0, 0, 1, 1, 1).reshape(3, 2),
        conversion_quality=_floats(0.2, 0.6, -0.1),
        offer=_floats(3, 1, 0, 2, 1, 1).reshape(3, 2),
        annoyance=_floats(0.9, -0.3, 0.05),
        daily_budget=_floats(9, 9, 9),
    )
    cube = (len(names.AGES), names.CATEGORIES, names.DAYPARTS)
    tables = Interactions(
        country_category=_table((len(names.COUNTRIES), names.CATEGORIES), {(2, 9): 0.01}),
        device_format=_table((len(names.DEVICES), len(names.FORMATS)), {(3, 2): 0.02}),
        placement_format=_table((len(names.PLACEMENTS), len(names.FORMATS)), {(1, 2): 0.04}),
        age_category_daypart=_table(cube, {(1, 9, 2): 0.08}),
        complement=_table((names.CATEGORIES, names.CATEGORIES), {(7, 9): 0.16, (9, 7): 0.32}),
    )
    return Population(users=users, ads=ads, interactions=tables)


def _impression(
    *,
    user: int = 0,
    ad: int = 2,
    device: int = 0,
    placement: int = 0,
    position: int = 1,
    daypart: int = 0,
    time: float = 0.0,
    history: tuple[int, ...] = (),
) -> Impressions:
    return Impressions(
        user=_ints(user),
        ad=_ints(ad),
        device=_ints(device),
        placement=_ints(placement),
        position=_ints(position),
        daypart=daypart,
        time=time,
        history=_ints(*history, *[-1] * (RULES.history - len(history)))[None],
    )


def _click(population: Population, impression: Impressions) -> float:
    matched = behaviour.match(population, impression, RULES)
    return float(behaviour.click_logit(population, impression, matched, RULES)[0])


def test_match_is_the_product_of_drifted_taste_and_appeal(population: Population) -> None:
    start = behaviour.match(population, _impression(user=1, ad=2), RULES)
    end = behaviour.match(population, _impression(user=1, ad=2, time=1.0), RULES)

    # Taste (3, -1) has turned to (0, 1) at the end; appeal (1, 1).
    assert start[0] == pytest.approx(2 / np.sqrt(2), rel=1e-5)
    assert end[0] == pytest.approx(1 / np.sqrt(2), rel=1e-5)


def test_click_logit_adds_user_ad_match_and_price(population: Population) -> None:
    # Readiness 0.1, quality 0.7, match 2 * (1 + 2) / sqrt(2), price -0.5 * 1 * 2, country 2 with
    # category 9 gives 0.01; the other tables are zero here.
    expected = 0.1 + 0.7 + 6 / np.sqrt(2) - 1.0 + 0.01

    assert _click(population, _impression()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"device": 3}, 0.02),
        ({"placement": 1}, 0.04),
        ({"daypart": 2}, 0.08),
        ({"device": 2}, 0.0),
        ({"placement": 2}, 0.0),
        ({"daypart": 3}, 0.0),
        # A quarter is lost at every doubling.
        ({"position": 2}, -0.25),
        ({"position": 4}, -0.5),
        # The last click was on category 7: 0.16 before 9. One of the last five is not of 9.
        ({"history": (0,)}, 0.16),
        # The newest click counts, not the oldest: ad 2 is of 9, and 9 before 9 is zero. One of
        # the last five was on 9: 0.5 * log2(2). And ad 2 itself was clicked: -1.5.
        ({"history": (2, 0)}, 0.5 - 1.5),
        # Newest ad 0 of category 7 again; two on 9: 0.5 * log2(3).
        ({"history": (0, 2, 2)}, 0.16 + 0.5 * np.log2(3) - 1.5),
        # The sixth click back is out of the five, but saturates still.
        ({"history": (0, 1, 0, 1, 0, 2)}, 0.16 - 1.5),
    ],
)
def test_click_logit_changes_by_the_rule_of(
    population: Population, changes: dict[str, object], difference: float
) -> None:
    plain = _click(population, _impression())

    changed = _click(population, _impression(**changes))

    assert changed - plain == pytest.approx(difference, abs=1e-5)


def test_empty_places_of_a_history_are_no_clicks(population: Population) -> None:
    # Empty places are -1, which indexes the last ad, 2, of the shown category: it must not count.
    with_one = _click(population, _impression(history=(0,)))

    assert with_one - _click(population, _impression()) == pytest.approx(0.16, abs=1e-5)


def test_conversion_logit_is_quality_price_and_need(population: Population) -> None:
    logit = behaviour.conversion_logit(population, _impression(user=1, ad=0), RULES)

    # Quality 0.2, price -0.3 * 0.5, need and offer 0.5 / sqrt(2) * (2 * 3 + 0 * 1).
    assert logit[0] == pytest.approx(0.05 + 3 / np.sqrt(2), abs=1e-5)


def test_hide_logit_falls_with_the_match(population: Population) -> None:
    impression = _impression(user=0, ad=0)
    matched = behaviour.match(population, impression, RULES)

    logit = behaviour.hide_logit(population, impression, matched, RULES)

    # Annoyance 0.9, match -0.4 * (1 * 1 + 2 * 0) / sqrt(2).
    assert logit[0] == pytest.approx(0.9 - 0.4 / np.sqrt(2), abs=1e-5)


def test_true_probabilities_add_each_intercept_to_its_logit(population: Population) -> None:
    impression = _impression(history=(0,), position=2)
    matched = behaviour.match(population, impression, RULES)

    chances = behaviour.true_probabilities(
        population, impression, Intercepts(click=-3.0, conversion=-2.0, hide=-5.0), RULES
    )

    logits = {
        "click": behaviour.click_logit(population, impression, matched, RULES) - 3,
        "conversion": behaviour.conversion_logit(population, impression, RULES) - 2,
        "hide": behaviour.hide_logit(population, impression, matched, RULES) - 5,
    }
    for name, logit in logits.items():
        assert getattr(chances, name)[0] == pytest.approx(1 / (1 + np.exp(-logit[0])), rel=1e-6)


def test_click_logit_has_an_effect_of_three_fields_that_no_pairs_explain() -> None:
    drawn = populate(200_000, MarketRules(), seed=0)
    # One user of each age and one ad of each category that there is.
    users = np.unique(drawn.users.age, return_index=True)[1]
    categories, ads = np.unique(drawn.ads.category, return_index=True)
    user = np.repeat(users, len(ads)).astype(np.int32)
    ad = np.tile(ads, len(users)).astype(np.int32)
    nothing = np.zeros(len(user), np.int32)
    rules = MarketRules()
    cube = []
    for daypart in range(names.DAYPARTS):
        shown = Impressions(
            user=user,
            ad=ad,
            device=nothing,
            placement=nothing,
            position=nothing + 1,
            daypart=daypart,
            time=0.5,
            history=np.full((len(user), rules.history), -1, np.int32),
        )
        matched = behaviour.match(drawn, shown, rules)
        logit = behaviour.click_logit(drawn, shown, matched, rules).astype(np.float64)
        cube.append(logit.reshape(len(users), len(ads)))
    residual = _without_pairs(np.stack(cube, axis=2))

    # User, ad, match and every pair of fields are gone; what is left is age x category x daypart.
    table = drawn.interactions.age_category_daypart[:, categories].astype(np.float64)
    np.testing.assert_allclose(residual, _without_pairs(table), atol=1e-5)
    # 0.45 in every cell, of which sqrt(5 / 6 * 39 / 40 * 5 / 6) = 0.82 is left: 0.37.
    assert residual.std() == pytest.approx(0.37, abs=0.03)


def test_click_logit_has_effects_of_pairs_that_single_fields_do_not_explain() -> None:
    tables = populate(1000, MarketRules(), seed=0).interactions

    for table in (tables.country_category, tables.device_format, tables.placement_format):
        wide = table.astype(np.float64)
        rest = wide - wide.mean(0) - wide.mean(1, keepdims=True) + wide.mean()
        assert rest.std() > 0.1


def _without_pairs(cube: np.ndarray) -> np.ndarray:
    """What remains of a cube once the mean over each axis is taken away: the third order."""
    for axis in range(3):
        cube = cube - cube.mean(axis=axis, keepdims=True)
    return cube


def test_intercept_reaches_the_rate() -> None:
    logits = np.random.default_rng(0).normal(0, 1.5, 10_000).astype(np.float32)

    intercept = behaviour.intercept_for(logits, 0.03)

    assert behaviour.sigmoid(logits + intercept).mean() == pytest.approx(0.03, abs=1e-6)


def test_intercept_of_equal_logits_is_the_logit_of_the_rate() -> None:
    # logit(0.2) = log(0.2 / 0.8) = -log 4; from logits of 1 the way is one further.
    assert behaviour.intercept_for(np.ones(5, np.float32), 0.2) == pytest.approx(-np.log(4) - 1)


def test_sigmoid_keeps_what_single_precision_loses() -> None:
    # In float32, 1 / (1 + exp(20)) and its neighbours lose digits near one: 1 - 2e-9 would be 1.
    assert behaviour.sigmoid(_floats(0, 20, -20)).tolist() == pytest.approx(
        [0.5, 1 - 2.061e-9, 2.061e-9], rel=1e-3, abs=1e-12
    )
    assert behaviour.sigmoid(_floats(20))[0] < 1


def test_taste_drift_changes_the_click_logit(population: Population) -> None:
    early, late = (_click(population, _impression(user=1, time=time)) for time in (0.0, 1.0))

    # The match falls from 2 / sqrt(2) to 1 / sqrt(2), times match_sd of 2.
    assert late - early == pytest.approx(-np.sqrt(2), abs=1e-5)
    still = dataclasses.replace(
        population, users=dataclasses.replace(population.users, angle=_floats(0, 0))
    )
    assert _click(still, _impression(user=1, time=1.0)) == pytest.approx(early, abs=1e-6)
