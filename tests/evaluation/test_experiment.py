"""A/B tests: totals and differences by hand, coverage with users as units, broken splits."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from tamis.errors import DataError
from tamis.evaluation.experiment import (
    UserTotals,
    arm_difference,
    compare_arms,
    sample_ratio,
    user_totals,
)

NAN = math.nan


def hand_totals():
    """Six impressions of four users, two in each arm."""
    return user_totals(
        ["a", "b", "a", "c", "d", "d"],
        [0, 0, 0, 1, 1, 1],
        click=[1, 0, 1, 1, 1, 0],
        # The click of c may still convert; a row without a click says nothing.
        conversion=[1, NAN, 0, NAN, 1, 0],
        hide=[0, 1, 0, 0, 0, 1],
        value=[2.0, -1.0, 0.5, 0.0, 3.0, 1.0],
    )


def simulate(rng, users: int, *, lift: float):
    """Clicks and impressions of users whose readiness drives both visits and clicks."""
    treated = rng.random(users) < 0.5
    ready = rng.gamma(2.0, 0.5, users)
    shown = 1 + rng.poisson(6 * ready)
    rate = np.minimum(0.1 * ready * np.where(treated, 1 + lift, 1.0), 1.0)
    return treated, rng.binomial(shown, rate), shown


def true_rate(lift: float) -> float:
    """Clicks per impression of :func:`simulate`: E[rate * shown] / E[shown].

    With g = Gamma(2, 1/2), E[g] = 1 and E[g^2] = 3/2: 0.1 (1 + lift) (E[g] + 6 E[g^2]) / 7. The
    rate exceeds 1 in one user of a million only.
    """
    return 0.1 * (1 + lift) * (1 + 6 * 1.5) / 7


def test_totals_of_four_users_by_hand() -> None:
    totals = hand_totals()
    assert totals.is_treated.tolist() == [False, False, True, True]
    assert totals.impressions.tolist() == [2, 1, 1, 2]
    assert totals.clicks.tolist() == [2, 0, 1, 1]
    assert totals.settled_clicks.tolist() == [2, 0, 0, 1]
    assert totals.conversions.tolist() == [1, 0, 0, 1]
    assert totals.hides.tolist() == [0, 1, 0, 1]
    assert totals.value.tolist() == [2.5, -1.0, 0.0, 4.0]


def test_metrics_of_four_users_by_hand() -> None:
    result = compare_arms(hand_totals())
    assert (result.sample_ratio.control_users, result.sample_ratio.treated_users) == (2, 2)
    click, conversion, hide, value = result.differences
    assert (click.metric, click.control.value, click.treatment.value) == (
        "click_rate",
        2 / 3,
        2 / 3,
    )
    assert (conversion.metric, conversion.control.value) == ("conversion_rate", 0.5)
    assert conversion.treatment.value == 1.0
    assert (hide.metric, hide.control.value, hide.treatment.value) == ("hide_rate", 1 / 3, 1 / 3)
    assert (value.metric, value.control.value, value.treatment.value) == (
        "value_per_user",
        0.75,
        2.0,
    )
    # Values 2.5 and -1, 0 and 4: variances 6.125 and 8, halved by the number of users.
    assert value.difference == 1.25
    assert value.standard_error == pytest.approx(math.sqrt(6.125 / 2 + 8 / 2))
    assert value.lift == pytest.approx(1.25 / 0.75)
    half = 1.959963984540054 * math.sqrt(4 + (2 / 0.75) ** 2 * 3.0625) / 0.75
    assert (value.lift_lower, value.lift_upper) == pytest.approx(
        (value.lift - half, value.lift + half)
    )
    z = 1.25 / math.sqrt(7.0625)
    assert value.p_value == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)
    assert not value.is_significant
    # 2 clicks of 3 impressions: residuals 2 - 4/3 and -2/3, then sqrt(2/1 * 8/9) / 3.
    assert click.control.standard_error == pytest.approx(math.sqrt(2 * 8 / 9) / 3)


def test_conversions_are_left_out_where_an_arm_has_no_settled_click() -> None:
    totals = UserTotals(
        is_treated=np.array([False, False, True, True]),
        impressions=np.array([2.0, 1.0, 2.0, 1.0]),
        clicks=np.array([1.0, 0.0, 1.0, 1.0]),
        settled_clicks=np.array([1.0, 0.0, 0.0, 0.0]),
        conversions=np.zeros(4),
        hides=np.zeros(4),
        value=np.ones(4),
    )

    metrics = [found.metric for found in compare_arms(totals).differences]

    assert metrics == ["click_rate", "hide_rate", "value_per_user"]


def test_difference_of_ones_equals_welch_without_its_small_sample_correction() -> None:
    rng = np.random.default_rng(1)
    treated = np.arange(900) % 3 == 0
    value = rng.exponential(size=900) * np.where(treated, 1.2, 1.0)
    found = arm_difference("value", treated, value, np.ones(900))
    wanted = stats.ttest_ind(value[treated], value[~treated], equal_var=False)
    assert found.difference / found.standard_error == pytest.approx(wanted.statistic, rel=1e-9)


@pytest.mark.parametrize("lift", [0.0, 0.2])
def test_intervals_cover_the_truth_with_users_as_units_and_not_with_rows(lift: float) -> None:
    rng = np.random.default_rng(2)
    repeats, users = 500, 800
    covered = dict.fromkeys(("difference", "lift", "rows"), 0)
    alarms = 0
    truth = true_rate(lift) - true_rate(0.0)
    for _ in range(repeats):
        treated, clicks, shown = simulate(rng, users, lift=lift)
        found = arm_difference("click_rate", treated, clicks, shown)
        covered["difference"] += found.lower <= truth <= found.upper
        covered["lift"] += found.lift_lower <= lift <= found.lift_upper
        alarms += found.is_significant
        # As if every impression were a unit of its own.
        shares = [clicks[arm].sum() / shown[arm].sum() for arm in (treated, ~treated)]
        error = math.sqrt(
            sum(
                p * (1 - p) / shown[a].sum()
                for p, a in zip(shares, (treated, ~treated), strict=True)
            )
        )
        covered["rows"] += abs(shares[0] - shares[1] - truth) <= 1.96 * error
    # sqrt(.95 * .05 / 500) = 1 %; four of these.
    assert covered["difference"] / repeats == pytest.approx(0.95, abs=0.04)
    assert covered["lift"] / repeats == pytest.approx(0.95, abs=0.04)
    assert covered["rows"] / repeats < 0.91
    # Without an effect one in twenty is an alarm; this one is found in most experiments.
    assert alarms / repeats == pytest.approx(0.05, abs=0.04) if lift == 0.0 else alarms > 250


def test_arms_swapped_swap_the_sign_and_nothing_else() -> None:
    treated, clicks, shown = simulate(np.random.default_rng(3), 300, lift=0.3)
    one = arm_difference("click_rate", treated, clicks, shown)
    other = arm_difference("click_rate", ~treated, clicks, shown)
    assert other.difference == -one.difference
    assert (other.lower, other.upper) == pytest.approx((-one.upper, -one.lower))
    assert other.p_value == one.p_value
    assert (1 + one.lift) * (1 + other.lift) == pytest.approx(1.0)


def test_totals_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(4)
    user = rng.integers(0, 40, 400)
    columns = {
        "click": rng.integers(0, 2, 400),
        "conversion": np.full(400, NAN),
        "hide": rng.integers(0, 2, 400),
        "value": rng.normal(size=400),
    }
    columns["conversion"][columns["click"] == 1] = rng.integers(0, 2, columns["click"].sum())
    order = rng.permutation(400)
    plain = compare_arms(user_totals(user, user % 2, **columns))
    moved = {name: column[order] for name, column in columns.items()}
    other = compare_arms(user_totals(user[order], user[order] % 2, **moved))
    for one, two in zip(plain.differences, other.differences, strict=True):
        assert two.difference == pytest.approx(one.difference, abs=1e-12)
        assert two.standard_error == pytest.approx(one.standard_error, rel=1e-9)


@pytest.mark.parity
def test_sample_ratio_equals_scipy_and_knows_the_plan() -> None:
    found = sample_ratio(5_200, 4_800)
    wanted = stats.chisquare([5_200, 4_800], [5_000, 5_000]).pvalue
    assert found.p_value == pytest.approx(wanted, rel=1e-9)
    # 2 * P(Z > 4): one in 16,000.
    assert found.is_mismatch
    # The same users are what a plan of 48 % treated expects.
    assert sample_ratio(5_200, 4_800, treated_share=0.48).p_value == pytest.approx(1.0)
    uneven = sample_ratio(8_100, 1_900, treated_share=0.2)
    assert uneven.p_value == pytest.approx(stats.chisquare([8_100, 1_900], [8_000, 2_000]).pvalue)
    # Three standard deviations are unusual, but not enough to call it broken.
    assert not sample_ratio(5_150, 4_850).is_mismatch


def test_mismatch_of_the_split_is_reported_with_the_result() -> None:
    treated = np.arange(3_000) % 3 == 0
    ones = np.ones(3_000)
    totals = user_totals(
        np.arange(3_000),
        treated,
        click=ones,
        conversion=np.zeros(3_000),
        hide=np.zeros(3_000),
        value=ones,
    )
    assert compare_arms(totals).sample_ratio.is_mismatch
    assert not compare_arms(totals, treated_share=1 / 3).sample_ratio.is_mismatch
    # No conversion in either arm: no difference, and no lift to speak of.
    conversion = compare_arms(totals).differences[1]
    assert (conversion.difference, conversion.p_value) == (0.0, 1.0)
    assert math.isnan(conversion.lift)


@pytest.mark.parametrize(
    ("numerator", "denominator"),
    [
        # One click in either arm, one of which converted.
        ([1, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0]),
        # One click of the treatment, several of the control.
        ([1, 0, 2, 0, 0, 0], [2, 2, 2, 1, 0, 0]),
        # Nothing of the treatment.
        ([1, 0, 2, 0, 0, 0], [2, 2, 2, 2, 2, 1]),
        # No event of one arm, and events of the other that cancel out.
        ([1, 0, -1, 0, 0, 0], [1, 1, 1, 1, 1, 1]),
        # One ratio of all users, whose mean is rounded.
        ([0.1, 0.1, 0.1, 1, 2, 3], [1, 1, 1, 1, 1, 1]),
    ],
)
def test_difference_from_an_arm_without_spread_is_not_certain(
    numerator: list[float], denominator: list[float]
) -> None:
    treated = np.array([False, False, False, True, True, True])

    for arm in (treated, ~treated):
        found = arm_difference("rate", arm, numerator, denominator)

        assert not found.is_significant
        values = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert values["difference"] == found.difference
        assert not values["is_significant"]
        unknown = ("standard_error", "lower", "upper", "p_value", "lift", "lift_lower")
        assert [values[name] for name in unknown] == [None] * len(unknown)


def test_arms_of_one_ratio_are_alike_however_their_sums_are_rounded() -> None:
    treated, numerator = np.arange(10) >= 3, np.full(10, 0.1)
    # Else equality would need no tolerance.
    assert numerator[:3].sum() / 3 != numerator[3:].sum() / 7

    found = arm_difference("value", treated, numerator, np.ones(10))

    assert (found.difference, found.lift, found.p_value) == (0.0, 0.0, 1.0)
    unknown = (found.standard_error, found.lower, found.upper, found.lift_lower, found.lift_upper)
    assert all(map(math.isnan, unknown))


def test_arms_have_intervals_of_the_asked_confidence() -> None:
    wide, narrow = (
        arm_difference("value", [0, 0, 0, 1, 1, 1], [0, 1, 5, 2, 3, 9], np.ones(6), confidence=one)
        for one in (0.95, 0.8)
    )
    for arm in ("control", "treatment"):
        assert getattr(narrow, arm).confidence == 0.8
        assert getattr(narrow, arm).upper < getattr(wide, arm).upper


def test_split_that_is_looked_at_all_the_time_gives_few_false_alarms() -> None:
    rng = np.random.default_rng(3)
    treated = rng.integers(0, 2, (300, 3000)).cumsum(axis=1)
    looks = range(20, 3001, 20)
    alarms = dict.fromkeys((False, True), 0)
    for one in treated:
        for many in alarms:
            found = (
                sample_ratio(look - int(one[look - 1]), int(one[look - 1]), many_looks=many)
                for look in looks
            )
            alarms[many] += any(ratio.is_mismatch for ratio in found)
    assert alarms[False] >= 5
    assert alarms[True] <= 1


def test_broken_split_is_found_at_many_looks_too() -> None:
    assert sample_ratio(10_000, 9_000, many_looks=True).is_mismatch
    assert sample_ratio(10_000, 10_000, many_looks=True).p_value == 1.0


def test_json_of_a_difference_is_strict() -> None:
    value = compare_arms(hand_totals()).differences[3]
    values = json.loads(json.dumps(value.to_json(), allow_nan=False))
    assert (values["metric"], values["difference"]) == ("value_per_user", 1.25)
    assert values["treatment"]["value"] == 2.0
    nothing = arm_difference("value", [0, 0, 1, 1], [0, 0, 1, 2], [1, 1, 1, 1]).to_json()
    assert json.loads(json.dumps(nothing, allow_nan=False))["lift"] is None


def test_rows_and_arms_without_meaning_are_refused() -> None:
    good = {"click": [1, 0], "conversion": [0, NAN], "hide": [0, 0], "value": [1.0, 0.0]}
    with pytest.raises(DataError, match=r"user must see one arm, got user 7 in both \(1 such"):
        user_totals([7, 7], [0, 1], **good)
    with pytest.raises(DataError, match=r"user must see one arm, got user 'u' in both"):
        user_totals(np.array(["u", "u"], dtype=object), [0, 1], **good)
    with pytest.raises(DataError, match=r"needs a click, got one without at position 1 \(1 such"):
        user_totals([1, 2], [0, 1], **{**good, "conversion": [0, 1]})
    with pytest.raises(DataError, match=r"click: must be 0 or 1, got 2\.0 at position 0"):
        user_totals([1, 2], [0, 1], **{**good, "click": [2, 0]})
    with pytest.raises(DataError, match=r"conversion: must be 0 or 1, got 0\.5 at position 0"):
        user_totals([1, 2], [0, 1], **{**good, "conversion": [0.5, NAN]})
    with pytest.raises(DataError, match="value: must be finite, got nan at position 1"):
        user_totals([1, 2], [0, 1], **{**good, "value": [1.0, NAN]})
    with pytest.raises(DataError, match=r"hide: must be of shape \(2,\) as the users are"):
        user_totals([1, 2], [0, 1], **{**good, "hide": [0]})
    with pytest.raises(DataError, match=r"one user per impression, got shape \(0,\)"):
        user_totals([], [], **good)
    with pytest.raises(DataError, match=r"got shapes \(2,\), \(2,\) and \(3,\)"):
        arm_difference("x", [0, 1], [1, 2], [1, 1, 1])
    with pytest.raises(DataError, match=r"treatment must have at least two users .* got 1 users"):
        arm_difference("x", [0, 0, 1], [1, 2, 3], [1, 1, 1])
    with pytest.raises(DataError, match=r"control .* positive denominator of x, .* sum 0\.0"):
        arm_difference("x", [0, 0, 1, 1], [1, 2, 3, 4], [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"there must be users, .* got 0 and 0 users and 0\.5"):
        sample_ratio(0, 0)
    with pytest.raises(DataError, match=r"got 5 and 5 users and 1\.0"):
        sample_ratio(5, 5, treated_share=1.0)
    with pytest.raises(DataError, match="got -1 and 5 users"):
        sample_ratio(-1, 5)
