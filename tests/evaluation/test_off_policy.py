"""Off-policy values: by hand, by loops, on a bandit and a market whose truth is known, on a log."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.data.market import MarketRules
from tamis.data.market.behaviour import Impressions, true_probabilities
from tamis.data.market.policy import (
    choose_slates,
    draw_candidates,
    policy_scores,
    slate_propensities,
)
from tamis.data.market.running import RunningMarket
from tamis.data.public_sets.open_bandit import ITEMS, POSITIONS, open_bandit_men
from tamis.errors import DataError
from tamis.evaluation.cross_fitting import cross_fit
from tamis.evaluation.logged_actions import logged_actions
from tamis.evaluation.off_policy import evaluate_policy

ESTIMATORS = ("ips", "snips", "dm", "dr")

# A bandit of five contexts, all equally likely, and four actions: chances of a reward.
BANDIT_RNG = np.random.default_rng(42)
TRUE_REWARD = BANDIT_RNG.uniform(0.05, 0.6, (5, 4))
LOGGING = BANDIT_RNG.dirichlet(np.full(4, 2.0), 5) * 0.8 + 0.05
CHANGED = BANDIT_RNG.dirichlet(np.full(4, 2.0), 5)
TRUTH = float((CHANGED * TRUE_REWARD).sum(axis=1).mean())


def bandit_log(rng, rows, *, logging=LOGGING, propensities=None):
    """Contexts and a log of the bandit; the propensities written down may be other ones."""
    context = rng.integers(0, 5, rows)
    action = (rng.random(rows)[:, None] > logging[context].cumsum(axis=1)).sum(axis=1)
    reward = (rng.random(rows) < TRUE_REWARD[context, action]).astype(float)
    written = logging if propensities is None else propensities
    return context, logged_actions(action, reward, written[context, action])


def means_by_context(context, log):
    """A reward model: smoothed mean reward of each context and action."""
    rewards, rows = np.full((5, 4), 0.3), np.ones((5, 4))
    np.add.at(rewards, (context, log.action), log.reward)
    np.add.at(rows, (context, log.action), 1)
    return lambda seen, position: (rewards / rows)[seen]


def hand_log():
    return logged_actions([0, 1, 1, 2], [1, 3, 2, 4], [0.5, 0.25, 0.5, 0.8])


HAND_POLICY = np.full((4, 3), [0.25, 0.5, 0.25])
HAND_PREDICTED = np.full((4, 3), [1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("estimator", "clip", "wanted"),
    [
        # Weights 1/2, 2, 1, 5/16; weighted rewards 1/2 + 6 + 2 + 5/4 = 39/4.
        ("ips", None, 39 / 16),
        ("snips", None, (39 / 4) / (61 / 16)),
        # 1/4 * 1 + 1/2 * 2 + 1/4 * 4, and on top the one row that was not foreseen: 2 * (3 - 2).
        ("dm", None, 9 / 4),
        ("dr", None, 9 / 4 + 2 / 4),
        # The weight 2 becomes 1: three less of weighted reward, one less of weight and of surprise.
        ("ips", 1.0, 27 / 16),
        ("snips", 1.0, (27 / 4) / (45 / 16)),
        ("dr", 1.0, 9 / 4 + 1 / 4),
    ],
)
def test_value_of_four_rows_by_hand(estimator: str, clip: float | None, wanted: float) -> None:
    value = evaluate_policy(
        hand_log(), HAND_POLICY, estimator=estimator, predicted=HAND_PREDICTED, clip=clip
    )
    assert value.estimate.value == pytest.approx(wanted, rel=1e-12)


def test_health_of_the_weights_of_four_rows_by_hand() -> None:
    plain = evaluate_policy(hand_log(), HAND_POLICY, estimator="ips")
    squares = 1 / 4 + 4 + 1 + 25 / 256
    assert plain.effective_rows == pytest.approx((61 / 16) ** 2 / squares, rel=1e-12)
    assert plain.largest_weight == 2.0
    assert plain.mean_weight.value == pytest.approx(61 / 64, rel=1e-12)
    assert (plain.clipped_rows, plain.clipped_share) == (0, 0.0)
    terms = np.array([0.5, 6.0, 2.0, 1.25])
    assert plain.estimate.standard_error == pytest.approx(terms.std(ddof=1) / 2, rel=1e-12)
    (warning,) = plain.warnings
    assert warning.startswith("The weights are worth 2.7 rows: the interval covers the truth less")

    clipped = evaluate_policy(hand_log(), HAND_POLICY, estimator="ips", clip=1.0)
    squares = 1 / 4 + 1 + 1 + 25 / 256
    assert clipped.effective_rows == pytest.approx((45 / 16) ** 2 / squares, rel=1e-12)
    assert clipped.largest_weight == 2.0
    assert clipped.clipped_rows == 1
    assert clipped.clipped_share == pytest.approx(16 / 61, rel=1e-12)
    warning, _ = clipped.warnings
    assert warning.startswith("Weights above 1.0 were clipped in 1 rows, 26.23% of the total")


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_estimator_equals_a_loop_over_rows(seed: int, placed: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, places, actions = 12, 3, 4
    shape = (rows, places, actions) if placed else (rows, actions)
    policy = rng.dirichlet(np.ones(actions), shape[:-1])
    predicted = rng.normal(size=(rows, actions))
    action, position = rng.integers(0, actions, rows), rng.integers(0, places, rows)
    reward, propensity = rng.normal(size=rows), rng.uniform(0.1, 1.0, rows)
    log = logged_actions(action, reward, propensity, position=position if placed else None)

    ips = weights = direct = robust = 0.0
    for i in range(rows):
        chances = policy[i, position[i]] if placed else policy[i]
        weight = min(chances[action[i]] / propensity[i], 3.0)
        model = sum(chances[a] * predicted[i, a] for a in range(actions))
        weights += weight
        ips += weight * reward[i]
        direct += model
        robust += model + weight * (reward[i] - predicted[i, action[i]])

    wanted = {"ips": ips / rows, "snips": ips / weights, "dm": direct / rows, "dr": robust / rows}
    for estimator, value in wanted.items():
        found = evaluate_policy(log, policy, estimator=estimator, predicted=predicted, clip=3.0)
        assert found.estimate.value == pytest.approx(value, rel=1e-10, abs=1e-12)


def test_own_value_of_the_logging_policy_is_the_mean_reward() -> None:
    context, log = bandit_log(np.random.default_rng(1), 500)
    for estimator in ("ips", "snips"):
        value = evaluate_policy(log, LOGGING[context], estimator=estimator)
        assert value.estimate.value == pytest.approx(log.reward.mean(), rel=1e-12)
        assert value.effective_rows == pytest.approx(500, rel=1e-12)


def test_error_of_the_self_normalised_value_ignores_a_constant_in_the_rewards() -> None:
    context, log = bandit_log(np.random.default_rng(2), 400)
    raised = logged_actions(log.action, log.reward + 100.0, log.propensity)
    plain, high = (evaluate_policy(one, CHANGED[context]).estimate for one in (log, raised))
    assert high.value == pytest.approx(plain.value + 100.0, rel=1e-12)
    assert high.standard_error == pytest.approx(plain.standard_error, rel=1e-9)


def test_estimates_are_unbiased_and_their_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    repeats, covered = 400, dict.fromkeys(("ips", "snips", "dr"), 0)
    values = {name: [] for name in covered}
    for repeat in range(repeats):
        context, log = bandit_log(rng, 800)
        predicted = cross_fit(means_by_context, context, log, seed=repeat)
        for name in covered:
            found = evaluate_policy(log, CHANGED[context], estimator=name, predicted=predicted)
            values[name].append(found.estimate.value)
            covered[name] += found.estimate.lower <= TRUTH <= found.estimate.upper
    for name in covered:
        sd = np.std(values[name])
        # Four standard errors of the mean over repeats; the bias of SNIPS is of order 1 / rows,
        # a twentieth of that.
        assert np.mean(values[name]) == pytest.approx(TRUTH, abs=4 * sd / math.sqrt(repeats)), name
        # sqrt(.95 * .05 / 400) = 1.1 %; four of these.
        assert covered[name] / repeats == pytest.approx(0.95, abs=0.044), name
    # What the reward model explains no longer varies.
    assert np.std(values["dr"]) < np.std(values["ips"])


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for repeat in range(200):
        context, log = bandit_log(rng, 600)
        found = evaluate_policy(log, CHANGED[context], seed=repeat, replicates=200)
        covered += found.estimate.lower <= TRUTH <= found.estimate.upper
    # sqrt(.95 * .05 / 200) = 1.5 %; four of these.
    assert covered / 200 == pytest.approx(0.95, abs=0.062)
    assert (found.estimate.method, found.estimate.replicates) == ("Poisson bootstrap", 200)


def test_clipping_is_biased_by_what_it_takes_away() -> None:
    context, log = bandit_log(np.random.default_rng(5), 200_000)
    found = evaluate_policy(log, CHANGED[context], estimator="ips", clip=1.0)
    kept = np.minimum(CHANGED / LOGGING, 1.0)
    wanted = float((LOGGING * kept * TRUE_REWARD).sum(axis=1).mean())
    assert found.estimate.value == pytest.approx(wanted, abs=4 * found.estimate.standard_error)
    assert found.estimate.upper < TRUTH
    assert "the estimate is biased" in found.warnings[0]


def test_doubly_robust_is_right_if_either_model_is() -> None:
    rng = np.random.default_rng(6)
    wrong_rewards = TRUE_REWARD[:, ::-1]

    # Right predictions, propensities that are not those of the log.
    context, log = bandit_log(rng, 100_000, propensities=LOGGING[:, ::-1])
    arguments = {"policy": CHANGED[context], "predicted": TRUE_REWARD[context]}
    biased = evaluate_policy(log, **arguments, estimator="ips")
    robust = evaluate_policy(log, **arguments, estimator="dr")
    assert abs(biased.estimate.value - TRUTH) > 6 * biased.estimate.standard_error
    assert abs(robust.estimate.value - TRUTH) < 4 * robust.estimate.standard_error
    assert "the propensities are not those of the policy" in robust.warnings[0]

    # Right propensities, predictions of other actions.
    context, log = bandit_log(rng, 100_000)
    arguments = {"policy": CHANGED[context], "predicted": wrong_rewards[context]}
    biased = evaluate_policy(log, **arguments, estimator="dm")
    robust = evaluate_policy(log, **arguments, estimator="dr")
    assert abs(biased.estimate.value - TRUTH) > 6 * biased.estimate.standard_error
    assert abs(robust.estimate.value - TRUTH) < 4 * robust.estimate.standard_error
    assert "as wrong as its reward model" in biased.warnings[0]
    assert robust.warnings == ()


def test_actions_that_the_log_cannot_show_are_counted_and_reported() -> None:
    # Context 0 never gets action 2, context 1 never action 0; the policy is uniform.
    logging = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    context = np.array([0, 0, 0, 1])
    policy = np.full((4, 3), [0.2, 0.2, 0.6])
    columns = ([0, 1, 1, 2], [1, 0, 1, 1], [0.5] * 4)
    told = logged_actions(*columns, logging_policy=logging[context])
    found = evaluate_policy(told, policy, estimator="ips")
    assert found.unsupported_rows == 4
    assert found.unsupported_mass == pytest.approx((3 * 0.6 + 0.2) / 4)
    assert found.warnings[0].startswith("At 4 rows the policy takes actions that the log cannot")
    # Without the policy, only what the log never shows anywhere is known to be missing: nothing.
    untold = evaluate_policy(logged_actions(*columns), policy, estimator="ips")
    assert (untold.unsupported_rows, untold.unsupported_mass) == (0, 0.0)
    # By position: place 1 shows only action 2, and the first three rows stand at place 0.
    placed = logged_actions(*columns, position=[0, 0, 0, 1])
    found = evaluate_policy(placed, policy, estimator="ips")
    assert found.unsupported_rows == 4
    assert found.unsupported_mass == pytest.approx((3 * 0.6 + 0.4) / 4)


def test_action_that_chance_never_showed_accuses_no_propensity() -> None:
    rng = np.random.default_rng(5)
    logging = np.full((200, 1000), 1 / 1000)
    columns = (rng.integers(0, 1000, 200), rng.random(200), np.full(200, 1 / 1000))

    untold = evaluate_policy(logged_actions(*columns), logging, estimator="ips")
    told = evaluate_policy(
        logged_actions(*columns, logging_policy=logging), logging, estimator="ips"
    )

    assert 0.8 < untold.unsupported_mass < 0.85
    (warning,) = untold.warnings
    assert "actions that the log never shows, by chance or not" in warning
    assert (told.unsupported_mass, told.warnings) == (0.0, ())
    assert told.to_json()["is_support_known"]
    assert not untold.to_json()["is_support_known"]


@pytest.mark.parametrize("estimator", ["ips", "snips"])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_rows_in_use_that_are_all_alike_tell_no_error(estimator: str, reward: float) -> None:
    if (estimator, reward) == ("ips", 1.0):
        return  # its rows differ: most are worth nothing
    action = np.arange(1000) % 200
    rewards = np.where(action == 7, reward, 0.5)
    log = logged_actions(action, rewards, np.full(1000, 1 / 200))
    always = np.zeros((1000, 200))
    always[:, 7] = 1.0

    found = evaluate_policy(log, always, estimator=estimator)

    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["estimate"]["value"] == reward
    assert [values["estimate"][name] for name in ("standard_error", "lower", "upper")] == [None] * 3
    assert any("worth 5.0 rows" in warning for warning in found.warnings)


def test_wrong_propensities_are_found_by_the_errors_of_the_units() -> None:
    rng = np.random.default_rng(6)
    user = np.repeat(np.arange(400), 25)
    # Whole users see one action: 10,000 rows know no more of the weights than 400.
    action = np.repeat(rng.integers(0, 2, 400), 25)
    policy = np.full((10_000, 2), [0.9, 0.1])
    right = {"groups": user, "logging_policy": np.full((10_000, 2), 0.5)}
    rewards = rng.random(10_000)

    honest = evaluate_policy(logged_actions(action, rewards, np.full(10_000, 0.5), **right), policy)
    wrong = evaluate_policy(
        logged_actions(action, rewards, np.full(10_000, 0.42), groups=user), policy
    )

    assert honest.mean_weight.units == 400
    assert honest.warnings == ()
    distance = abs(wrong.mean_weight.value - 1.0) / wrong.mean_weight.standard_error
    assert 4 < distance < 10
    assert "the propensities are not those of the policy" in wrong.warnings[0]


def test_groups_are_the_units_of_the_error() -> None:
    context, log = bandit_log(np.random.default_rng(7), 300)
    twice = logged_actions(
        np.repeat(log.action, 2),
        np.repeat(log.reward, 2),
        np.repeat(log.propensity, 2),
        groups=np.repeat(np.arange(300), 2),
    )
    plain = evaluate_policy(log, CHANGED[context])
    grouped = evaluate_policy(twice, np.repeat(CHANGED[context], 2, axis=0))
    # Every row said twice says nothing new.
    assert grouped.estimate.value == pytest.approx(plain.estimate.value, rel=1e-12)
    assert grouped.estimate.standard_error == pytest.approx(plain.estimate.standard_error, rel=1e-9)
    assert grouped.estimate.units == 300


def test_json_of_a_value_is_strict() -> None:
    found = evaluate_policy(hand_log(), HAND_POLICY, clip=1.0)
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["estimate"]["value"] == found.estimate.value
    assert values["warnings"] == list(found.warnings)
    assert (values["estimator"], values["clip"], values["clipped_rows"]) == ("snips", 1.0, 1)


def test_settings_without_meaning_are_refused() -> None:
    log = hand_log()
    with pytest.raises(DataError, match=r"estimator must be one of .* got 'ipw'"):
        evaluate_policy(log, HAND_POLICY, estimator="ipw")
    with pytest.raises(DataError, match=r"clip must be above 0, got 0\.0"):
        evaluate_policy(log, HAND_POLICY, clip=0.0)
    with pytest.raises(DataError, match="estimator 'dr' needs predicted, got None"):
        evaluate_policy(log, HAND_POLICY, estimator="dr")
    with pytest.raises(DataError, match=r"of shape \(4, 3\), got shape \(4, 2\) with 0 values"):
        evaluate_policy(log, HAND_POLICY, estimator="dm", predicted=np.zeros((4, 2)))
    with pytest.raises(DataError, match="with 12 values that are not finite"):
        evaluate_policy(log, HAND_POLICY, estimator="dm", predicted=np.full((4, 3), math.nan))
    other = logged_actions([0, 1], [1, 0], [0.5, 0.5])
    with pytest.raises(DataError, match="take some logged action, got weight 0 in all 2 rows"):
        evaluate_policy(other, [[0, 0, 1]] * 2)


def test_open_bandit_gives_the_own_value_and_covers_that_of_the_other_policy() -> None:
    root = os.environ.get("TAMIS_DATA")
    if not root:
        pytest.skip("TAMIS_DATA is not set: the public sets are not at hand")
    random, bts = (open_bandit_men(Path(root) / "open_bandit_men", p) for p in ("random", "bts"))
    rows = random.item.size
    log = logged_actions(random.item, random.click, random.propensity, position=random.position)

    own = evaluate_policy(log, np.full((rows, ITEMS), 1 / ITEMS), estimator="ips")
    assert own.estimate.value == random.click.mean()

    # Thompson sampling draws its probabilities anew from posteriors that drift over the week, and
    # the log holds the propensity of the shown item alone. It sees no context, so that its shares
    # by item and place are its mean probabilities, to within the noise of some 100 rows each.
    shares = np.zeros((POSITIONS, ITEMS))
    np.add.at(shares, (bts.position, bts.item), 1.0)
    shares /= shares.sum(axis=1, keepdims=True)
    policy = np.broadcast_to(shares, (rows, POSITIONS, ITEMS))
    on_policy = bts.click.mean()
    predicted = cross_fit(clicks_by_item, random.affinity, log, seed=0)
    for estimator in ("ips", "snips", "dr"):
        found = evaluate_policy(log, policy, estimator=estimator, predicted=predicted)
        assert found.estimate.lower <= on_policy <= found.estimate.upper, estimator
        assert found.warnings == ()
        drawn = evaluate_policy(log, policy, estimator=estimator, predicted=predicted, seed=1)
        assert drawn.estimate.lower <= on_policy <= drawn.estimate.upper, estimator
    # Thompson sampling is far from uniform: the log is worth less than half of its rows.
    assert found.effective_rows < 0.5 * rows


def clicks_by_item(context, log):
    """A reward model for few clicks: rates by item, pulled to the mean by 300 rows of it."""
    rate = log.reward.mean()
    clicks = np.bincount(log.action, weights=log.reward, minlength=ITEMS) + 300 * rate
    rates = clicks / (np.bincount(log.action, minlength=ITEMS) + 300)
    return lambda seen, position: np.tile(rates, (len(seen), 1))


def test_market_log_covers_the_true_click_rate_of_a_changed_policy() -> None:
    # 5,000 requests of the first noon, 20,000 impressions; every chance of a click is known.
    rules = MarketRules()
    market = RunningMarket(20_000, rules, seed=11)
    ads = market.population.ads
    generator = np.random.default_rng(12)
    requests, hour = 5_000, 12
    day = hour / 24
    user = generator.integers(0, len(market.population.users.age), requests).astype(np.int32)
    candidates = draw_candidates(ads, requests, day=day, rules=rules, generator=generator)

    # The log: bids count. The changed policy: taste counts four times as much, bids do not.
    prior = np.full(len(ads.category), 0.03)
    moment = {"time": day / rules.days, "rules": rules}
    scores = policy_scores(market.population, user, candidates, prior, **moment)
    unpaid = policy_scores(
        market.population, user, candidates, 1e6 * prior / ads.bid_micros, **moment
    )
    slates = choose_slates(candidates, scores, rules=rules, generator=generator)
    logging = slate_propensities(candidates, scores, rules=rules)
    changed = slate_propensities(candidates, 4 * unpaid, rules=rules)

    # Every candidate at every place, seen by the same user in the same moment.
    places, width = rules.slate, rules.candidates
    size = requests * places * width
    wide = Impressions(
        user=np.repeat(user, places * width),
        ad=np.repeat(candidates[:, None], places, axis=1).reshape(-1),
        device=np.repeat(market.population.users.device[user], places * width),
        placement=np.zeros(size, np.int32),
        position=np.tile(np.repeat(np.arange(1, places + 1), width), requests).astype(np.int32),
        daypart=3,
        time=day / rules.days,
        history=np.full((size, rules.history), -1, np.int32),
    )
    truth = true_probabilities(market.population, wide, market.intercepts, rules)
    chance = truth.click.reshape(requests, places, width)
    true_value = (changed * chance).sum(axis=2).mean()
    logged_value = (logging * chance).sum(axis=2).mean()

    column = (candidates[:, None] == slates[:, :, None]).argmax(axis=2)
    at = (np.arange(requests)[:, None], np.arange(places), column)
    click = generator.random((requests, places)) < chance[at]
    log = logged_actions(
        column.reshape(-1),
        click.reshape(-1),
        logging[at].reshape(-1),
        position=np.tile(np.arange(places), requests),
        groups=np.repeat(np.arange(requests), places),
        logging_policy=logging.reshape(-1, width),
    )
    # The truth itself predicts best; half of it is a model that is wrong by a factor.
    predicted = 0.5 * chance.reshape(-1, width)
    for estimator in ("ips", "snips", "dr"):
        found = evaluate_policy(
            log, np.repeat(changed, places, axis=0), estimator=estimator, predicted=predicted
        )
        assert found.estimate.lower <= true_value <= found.estimate.upper, estimator
        # The answer is not that of the policy in charge: the change is seen.
        assert found.estimate.lower > logged_value, estimator
        assert found.warnings == ()
        assert found.unsupported_mass == 0.0
