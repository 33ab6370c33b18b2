"""An A/B test of two published funnels in the market that both were trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamis.data.market import LiveMarket, LoggingPolicy
from tamis.data.market.tables import HOUR_MICROS, START_MICROS
from tamis.errors import ConfigError
from tamis.funnel.ab_test import SplitByUser, run_ab_test, smallest_differences
from tamis.funnel.bundle import read_bundle
from tamis.funnel.bundle_policy import bundle_policy, end_of_days, telling
from tamis.funnel.live import FunnelPolicy, ad_table
from tamis.funnel.value import ValueFunction, ValueWeights

_MATTERS = 0.05
"""Share of a metric, as it was on the days before, that a difference must have to matter."""
_EVENTS = frozenset(("click", "conversion", "hide"))


def ab_test_bundles(
    control: Path,
    treatment: Path,
    *,
    rows: int,
    first_day: int,
    seed: int = 0,
    days: int | None = None,
    judge_every: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Let two funnels serve the users of one simulated market, each its own half, and compare them.

    Until the test begins the market's own policy serves. Users, ads and traffic are those of the
    log that the funnels learnt from; slates are drawn anew, so what came of them is not the log's.
    Total value is counted from what users did, by the weights that both funnels have. The daily
    looks are most likely to see a difference of a twentieth of what each metric was before.

    Args:
        control: Bundle that was trained on the market of the same rows and seed.
        treatment: Another one, as well.
        rows: Impressions of the whole market, all its days, if every place is filled.
        first_day: Day, from 0, on which the test begins, after those that the funnels learnt from.
            At least 1.
        seed: Seed of the market; also says which half of the users see the treatment.
        days: Length of the test; None for all days that are left.
        judge_every: One request in so many is asked what each stage truly lost. At least 1.
        progress: Told how many hours of how many are over.

    Returns:
        The test as JSON values, see :meth:`tamis.funnel.ab_test.AbTest.to_json`; beside it names
        and releases of both arms, the arguments, and by arm the answers that a stage did not
        order itself, with the reason.

    Raises:
        ArtifactError: A folder is no bundle, or it is damaged.
        ConfigError: A number is out of its range, a funnel learnt from a day of the test or later,
            validation included, the funnels weigh total value differently, or they weigh what no
            simulated user does. Bundles of earlier versions do not say until when they learnt.
        DataError: A bundle's ads are of another market, the market has not so many days, or an arm
            has no impression.
        SchemaError: A bundle reads fields that the market does not show.
    """
    for name, number in (("first_day", first_day), ("judge_every", judge_every)):
        if number < 1:
            raise ConfigError(f"{name}: must be at least 1, got {number}. Give a larger number.")
    bundles = {"control": read_bundle(control), "treatment": read_bundle(treatment)}
    weights = _shared_weights(*(bundle.blueprint.weights for bundle in bundles.values()))
    # Both arms tell their candidates; all those of the days before would be judged for nobody.
    market = LiveMarket(rows, seed=seed, judge_every=rows)
    last_day = end_of_days(market, first_day, days)
    # Made before anything is served, as bundles of another market are refused here.
    arms = {
        arm: bundle_policy(bundle.blueprint, market, judge_every=judge_every)
        for arm, bundle in bundles.items()
    }
    for path, bundle in zip((control, treatment), bundles.values(), strict=True):
        _check_learnt_before(path, bundle.blueprint.trained_until, first_day)

    warm_up, of_control, of_treatment = (
        telling(policy, progress, hours=24 * last_day)
        for policy in (LoggingPolicy(market, seed=seed), arms["control"], arms["treatment"])
    )
    before = list(market.serve(warm_up, days=first_day))
    ads, value = ad_table(market.ads()), ValueFunction(weights)
    smallest = smallest_differences(before, market, ads, value, days=first_day, share=_MATTERS)
    del before  # days of logs, beside those of the test
    test = run_ab_test(
        market,
        of_control,
        of_treatment,
        days=last_day - first_day,
        split=SplitByUser(salt=seed),
        value=value,
        ads=ads,
        smallest=smallest,
    )
    return {
        "arms": {
            arm: {
                "name": path.resolve().name,
                "release": bundles[arm].release,
                "fallbacks": _fallbacks(arms[arm]),
            }
            for arm, path in (("control", control), ("treatment", treatment))
        },
        "rows": rows,
        "seed": seed,
        "first_day": first_day,
        "days": last_day - first_day,
        "judge_every": judge_every,
        "smallest": smallest,
        **test.to_json(seed=seed),
    }


def _check_learnt_before(path: Path, trained_until: int | None, first_day: int) -> None:
    """Refuse a funnel that has learnt from days that it would be judged on."""
    if trained_until is None:
        return
    last = (trained_until - START_MICROS) // (24 * HOUR_MICROS)
    if last >= first_day:
        raise ConfigError(
            f"first_day: must come after the days that {path} learnt from or was validated on, the "
            f"last of which is day {last}, got {first_day}. Begin on day {last + 1} or later."
        )


def _shared_weights(control: ValueWeights, treatment: ValueWeights) -> ValueWeights:
    if control != treatment:
        raise ConfigError(
            f"ab-test: both bundles must weigh total value alike, got {control} and {treatment}. "
            f"Publish one of them again with the other's weights."
        )
    # Every ad of the market pays by the click, so that no conversion is asked for.
    strange = sorted(set(control.predictions) - _EVENTS - {control.conversion})
    if strange:
        raise ConfigError(
            f"ab-test: total value must weigh what simulated users do, {sorted(_EVENTS)}, got "
            f"{strange[0]!r}. Publish both bundles without it."
        )
    return control


def _fallbacks(policy: FunnelPolicy) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "reason": reason, "requests": count}
        for (stage, reason), count in sorted(policy.fallbacks.items())
    ]
