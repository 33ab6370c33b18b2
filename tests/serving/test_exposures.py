"""Experiments in the store: totals against a slow count, on both databases."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tamis.errors import StoreError
from tamis.serving.records import Arm, Event, Experiment, Exposure, ServedRequest, ShownAd, Worth
from tamis.serving.store import Store

HOUR = 3_600_000_000
BEGAN = 1_704_067_200_000_000
PLAN = Experiment(
    experiment="new-model", kind="split", control="a" * 64, treatment="b" * 64, treated_share=0.5,
    attribution_micros=HOUR, smallest={"click_rate": 0.01}, began_micros=BEGAN,
)  # fmt: skip


@pytest.fixture
def make_exposed(
    make_served: Callable[..., ServedRequest],
) -> Callable[..., ServedRequest]:
    def make(
        request_id: str, user: str, *, treated: bool, ads: tuple[str, ...] = ("1", "2"),
        at: int = BEGAN, experiment: str = "new-model",
    ) -> ServedRequest:  # fmt: skip
        worths = tuple(
            Worth(impression=0.5, click=float(ad), conversion=100.0 * float(ad), hide=-3.0)
            for ad in ads
        )
        return make_served(
            request_id, user=user, time_micros=at,
            shown=tuple(ShownAd(ad=ad, columns={}) for ad in ads),
            exposure=Exposure(arm=Arm(experiment=experiment, is_treated=treated), worths=worths),
        )  # fmt: skip

    return make


def test_totals_are_those_of_a_slow_count(
    store: Store, make_exposed: Callable[..., ServedRequest], make_event: Callable[..., Event]
) -> None:
    generator = np.random.default_rng(0)
    now = BEGAN + 3 * HOUR
    expected: dict[str, np.ndarray] = {}
    for number in range(120):
        user = f"u{number % 17}"
        treated = number % 17 % 2 == 0
        at = BEGAN + int(generator.integers(0, 3 * HOUR))
        store.append([make_exposed(f"r{number}", user, treated=treated, at=at)], [])
        sums = expected.setdefault(user, np.zeros(7))
        sums[0] = treated
        for ad in ("1", "2"):
            kinds = [k for k in ("impression", "click", "conversion", "hide")
                     if generator.random() < 0.5]  # fmt: skip
            delay = int(generator.integers(0, 2 * HOUR))
            events = [
                # Every event twice, under two ids.
                make_event(
                    f"{number} {ad} {kind} {copy}", kind=kind, ad=ad, user=user,
                    request_id=f"r{number}", time_micros=at + delay,
                )
                for kind in kinds
                for copy in (1, 2)
            ]  # fmt: skip
            # Of an ad that was not in the answer, and of no request: they belong to nobody.
            events.append(make_event(f"{number} {ad} x", kind="click", ad="9", user=user,
                                     request_id=f"r{number}"))  # fmt: skip
            events.append(make_event(f"{number} {ad} y", ad=ad, user=user, request_id=None))
            store.append([], events)
            if kinds:
                clicked = "click" in kinds
                converted = clicked and "conversion" in kinds and delay < HOUR
                is_settled = at + HOUR <= now
                worth = 0.5 + clicked * float(ad) + converted * 100.0 * float(ad)
                worth += -3.0 * ("hide" in kinds)
                sums[1:] += [1, clicked, clicked and is_settled, converted and is_settled,
                             "hide" in kinds, worth]  # fmt: skip
    # Another experiment's requests, and those of none, are not counted.
    store.append([make_exposed("other", "u1", treated=True, experiment="another")], [])
    # Whoever saw nothing was exposed all the same.
    store.append([make_exposed("blind", "u99", treated=True, ads=())], [])
    expected["u99"] = np.array([1.0, 0, 0, 0, 0, 0, 0])

    totals = store.totals(PLAN, now_micros=now)

    found = np.stack(
        [totals.is_treated, totals.impressions, totals.clicks, totals.settled_clicks,
         totals.conversions, totals.hides, totals.value], axis=1
    )  # fmt: skip
    in_order = sorted(map(tuple, np.stack(list(expected.values()))))
    np.testing.assert_allclose(sorted(map(tuple, found)), in_order, rtol=1e-12)


def test_request_that_is_told_again_is_exposed_once(
    store: Store, make_exposed: Callable[..., ServedRequest], make_event: Callable[..., Event]
) -> None:
    first = make_exposed("r", "u", treated=True)
    again = replace(
        first, exposure=replace(first.exposure, arm=Arm(experiment="new-model", is_treated=False))
    )
    store.append([first, again], [])
    store.append([again], [make_event("e", kind="click", ad="2", request_id="r")])

    totals = store.totals(PLAN, now_micros=BEGAN)

    assert totals.is_treated.tolist() == [True]
    assert totals.value.tolist() == [2.5]
    assert (totals.clicks.tolist(), totals.settled_clicks.tolist()) == ([1.0], [0.0])


def test_nobody_exposed_is_no_user(store: Store) -> None:
    assert store.totals(PLAN, now_micros=BEGAN).is_treated.size == 0


def test_experiments_are_remembered(store: Store) -> None:
    other = replace(PLAN, experiment="shadow", kind="shadow", smallest={})
    assert [store.put_experiment(item) for item in (PLAN, other, PLAN)] == [True, True, False]

    store.end_experiment("new-model", now_micros=BEGAN + 5)
    store.end_experiment("new-model", now_micros=BEGAN + 7)

    assert store.experiments() == [replace(PLAN, ended_micros=BEGAN + 5), other]


def test_exposure_is_written_with_its_request_or_not_at_all(
    store: Store, make_exposed: Callable[..., ServedRequest]
) -> None:
    twice = make_exposed("r", "u", treated=True, ads=("1", "1"))
    with pytest.raises(StoreError):
        store.append([twice], [])

    assert list(store.joined()) == []
    assert store.totals(PLAN, now_micros=BEGAN).is_treated.size == 0
