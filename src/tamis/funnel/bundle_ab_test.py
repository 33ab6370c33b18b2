"""An A/B test of two published funnels in the market that both were trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamis.data.market import LiveMarket, LiveRequests, LoggingPolicy, Policy, Slates
from tamis.errors import ConfigError
from tamis.funnel.ab_test import SplitByUser, run_ab_test, smallest_differences
from tamis.funnel.bundle import read_bundle
from tamis.funnel.bundle_policy import bundle_policy, end_of_days
from tamis.funnel.live import ad_table
from tamis.funnel.value import ValueFunction


def ab_test_bundles(
    control: Path,
    treatment: Path,
    *,
    rows: int,
    first_day: int,
    seed: int = 0,
    days: int | None = None,
    split: SplitByUser | None = None,
    matters: float = 0.05,
    judge_every: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Let two funnels serve the users of one simulated market, each its own, and compare them.

    Until the test begins the market's own policy serves, as it did when the log was written that
    the funnels learnt from. Total value is counted from what users did, by the weights that both
    funnels have.

    Args:
        control: Bundle that was trained on the market of the same rows and seed.
        treatment: Another one, as well.
        rows: Impressions of the whole market, all its days, if every place is filled.
        first_day: Day, from 0, on which the test begins, after those that the funnels learnt from.
            At least 1.
        seed: Seed of the market.
        days: Length of the test; None for all days that are left.
        split: Which users see the treatment; None for half of them.
        matters: Share of each metric, as it was on the days before, that a difference must have to
            matter. The daily looks are most likely to see one of about that size. Above 0.
        judge_every: One request in so many is asked what each stage truly lost. At least 1.
        progress: Told how many hours of how many are over.

    Returns:
        The test as JSON values: see :meth:`tamis.funnel.ab_test.AbTest.to_json`; beside it names
        and releases of both arms, and the arguments.

    Raises:
        ArtifactError: A folder is no bundle, or it is damaged.
        ConfigError: A number is out of its range, or the funnels weigh total value differently.
        DataError: A bundle's ads are of another market, the market has not so many days, or an arm
            has no event.
        SchemaError: A bundle reads fields that the market does not show.
    """
    for name, number in (("first_day", first_day), ("judge_every", judge_every)):
        if number < 1:
            raise ConfigError(f"{name}: must be at least 1, got {number}.")
    if not matters > 0:
        raise ConfigError(f"matters: must be above 0, got {matters}.")
    split = split or SplitByUser(salt=seed)
    bundles = {"control": read_bundle(control), "treatment": read_bundle(treatment)}
    weights = [bundle.blueprint.weights for bundle in bundles.values()]
    if weights[0] != weights[1]:
        raise ConfigError(
            f"ab-test: both bundles must weigh total value alike, got {weights[0]} and "
            f"{weights[1]}. Publish one of them again with the other's weights."
        )
    market = LiveMarket(rows, seed=seed)
    last_day = end_of_days(market, first_day, days)

    def telling(policy: Policy) -> Policy:
        def told(requests: LiveRequests) -> Slates:
            if progress is not None:
                progress(requests.hour, 24 * last_day)
            return policy(requests)

        return told

    # First, as it refuses bundles of another market.
    arms = [
        telling(bundle_policy(bundle.blueprint, market, judge_every=judge_every))
        for bundle in bundles.values()
    ]
    before = list(market.serve(telling(LoggingPolicy(market, seed=seed)), days=first_day))
    ads, value = ad_table(market.ads()), ValueFunction(weights[0])
    test = run_ab_test(
        market,
        *arms,
        days=last_day - first_day,
        split=split,
        value=value,
        ads=ads,
        smallest=smallest_differences(before, market, ads, value, days=first_day, share=matters),
    )
    return {
        "arms": {
            arm: {"name": path.resolve().name, "release": bundles[arm].release}
            for arm, path in (("control", control), ("treatment", treatment))
        },
        "rows": rows,
        "seed": seed,
        "first_day": first_day,
        "days": last_day - first_day,
        "salt": split.salt,
        "matters": matters,
        "judge_every": judge_every,
        **test.to_json(seed=seed),
    }
