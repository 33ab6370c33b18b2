"""Drift watch: sums against slow ones, what is a row and what is none, and bounded memory."""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tamis.data.schema import Task
from tamis.errors import ConfigError
from tamis.evaluation import evaluate_task, ratio_of_sums
from tamis.serving.answers import Answer, RankedAd
from tamis.serving.drift import DriftWatch, ReleaseDrift
from tamis.serving.records import Event, ServedRequest

SCHEMA = SimpleNamespace(
    tasks=(
        Task(name="click"),
        Task(name="conversion", observed_when="click"),
        Task(name="watched_for", kind="regression"),
        Task(name="liked"),
        Task(name="hide", observed_when="liked"),
    )
)


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> DriftWatch:
    return DriftWatch(settle_s=60.0, now=clock)


def _answer(
    request_id: str,
    predictions: Mapping[str, Mapping[str, float]],
    release: str = "a",
    user: str | None = None,
) -> Answer:
    live: Any = SimpleNamespace(served=SimpleNamespace(release=release, schema=SCHEMA))
    return Answer(
        live=live,
        ads=tuple(
            RankedAd(
                ad=ad, price=0.0, value=0.0, bid=1.0, billing="click", quality=0.0,
                predictions=dict(found),
            )
            for ad, found in predictions.items()
        ),
        unknown_candidates=0,
        trace=None,
        served=ServedRequest(
            request_id=request_id, user=user, time_micros=0, release=release, columns={}, shown=()
        ),
    )  # fmt: skip


def _event(request_id: str | None, ad: str, kind: Any) -> Event:
    return Event(
        event_id=f"{request_id} {ad} {kind}", kind=kind, ad=ad, user=None, request_id=request_id,
        time_micros=0,
    )  # fmt: skip


def _only(watch: DriftWatch) -> ReleaseDrift:
    (found,) = watch.report()
    return found


def test_fit_is_that_of_seen_ads_alone(watch: DriftWatch, clock: Clock) -> None:
    watch.answered(
        _answer(
            "r",
            {
                ad: {"click": 0.25, "conversion": 0.1, "hide": 0.1}
                for ad in ("1", "2", "3", "4", "5")
            },
        )
    )
    watch.happened([_event("r", ad, "impression") for ad in ("1", "2", "3")])
    # A click tells that the fourth was seen; the fifth was not, and no ad 6 was in the answer.
    watch.happened([_event("r", "4", "click"), _event("r", "6", "click")])
    watch.happened([_event(None, "1", "click")])
    clock.now += 60.0

    found = _only(watch).tasks

    # Of four rows one is positive, and 1/4 was predicted: exactly the entropy of the base rate.
    click = found["click"].all
    assert (click.rows, click.positives) == (4, 1)
    assert click.ne == pytest.approx(1.0)
    assert click.calibration == pytest.approx(1.0)
    # One click without a conversion, where 1/10 was predicted.
    conversion = found["conversion"].all
    assert (conversion.rows, conversion.positives) == (1, 0)
    assert (conversion.ne, conversion.calibration) == (None, None)
    # No event tells of the others, nor of what hangs on them.
    assert found.keys() == {"click", "conversion"}


def test_sums_are_those_of_all_rows_at_once(watch: DriftWatch, clock: Clock) -> None:
    generator = np.random.default_rng(0)
    labels: dict[str, list[float]] = {"click": [], "conversion": []}
    probabilities: dict[str, list[float]] = {"click": [], "conversion": []}
    for number in range(300):
        ads = {
            str(ad): {"click": float(c), "conversion": float(v)}
            for ad, (c, v) in enumerate(generator.uniform(0.05, 0.95, (4, 2)))
        }
        watch.answered(_answer(f"r{number}", ads))
        for ad, predictions in ads.items():
            if generator.random() < 0.3:
                continue
            clicked, converted = (generator.random(2) < 0.4).tolist()
            kinds = ["impression", *["click"] * clicked, *["conversion"] * converted]
            watch.happened([_event(f"r{number}", ad, kind) for kind in kinds])
            labels["click"].append(float(clicked))
            probabilities["click"].append(predictions["click"])
            if clicked:
                labels["conversion"].append(float(converted))
                probabilities["conversion"].append(predictions["conversion"])
        clock.now += generator.exponential(20.0)
    clock.now += 60.0

    found = _only(watch).tasks

    for task, expected in labels.items():
        truth, drift = evaluate_task(expected, probabilities[task]), found[task]
        assert (drift.all.rows, drift.all.positives) == (truth.rows, truth.positives)
        assert drift.all.ne == pytest.approx(truth.ne, rel=1e-12)
        assert drift.all.calibration == pytest.approx(truth.calibration, rel=1e-12)
        # The parts are those of the whole, however often they were joined.
        assert sum(part.rows for part in drift.parts) == truth.rows
        assert len(drift.parts) <= 60
        starts = [part.start_s for part in drift.parts]
        assert starts == sorted(set(starts))


def test_events_count_until_their_request_is_settled(watch: DriftWatch, clock: Clock) -> None:
    watch.answered(_answer("r", {"1": {"click": 0.5}, "2": {"click": 0.5}}))
    watch.happened([_event("r", "1", "impression"), _event("r", "2", "impression")])
    clock.now += 59.0
    assert _only(watch).tasks["click"].all.rows == 0
    watch.happened([_event("r", "1", "click")])
    clock.now += 1.0
    assert _only(watch).tasks["click"].all.positives == 1

    watch.happened([_event("r", "2", "click")])

    assert (watch.num_late, _only(watch).tasks["click"].all.positives) == (1, 1)


def test_what_is_told_twice_counts_once(watch: DriftWatch, clock: Clock) -> None:
    for _ in range(2):
        watch.answered(_answer("r", {"1": {"click": 0.5}}))
        watch.happened([_event("r", "1", "impression"), _event("r", "1", "click")])
    clock.now += 60.0

    assert _only(watch).tasks["click"].all.rows == 1


def test_shadow_is_compared_on_the_rows_that_both_have_scored(
    watch: DriftWatch, clock: Clock
) -> None:
    generator = np.random.default_rng(0)
    rows: list[tuple[str, float]] = []
    schema: Any = SCHEMA
    for number in range(200):
        user = f"u{number % 23}"
        ads = {str(ad): {"click": float(p)} for ad, p in enumerate(generator.uniform(0.1, 0.9, 4))}
        shadow = {ad: {"click": float(generator.uniform(0.1, 0.9))} for ad in "012"}
        watch.answered(_answer(f"r{number}", ads, user=user))
        if number % 5:
            watch.shadowed(f"r{number}", "b", schema, shadow)
        for ad in "123":
            clicked = bool(generator.random() < 0.5)
            watch.happened([_event(f"r{number}", ad, "click" if clicked else "impression")])
            if number % 5 and ad in shadow:
                losses = [
                    -math.log(p if clicked else 1 - p)
                    for p in (shadow[ad]["click"], ads[ad]["click"])
                ]
                rows.append((user, losses[0] - losses[1]))
    # Nobody waits for it any more, and nobody ever did.
    clock.now += 60.0
    watch.report()
    watch.shadowed("r1", "b", schema, {"1": {"click": 0.5}})
    watch.shadowed("other", "b", schema, {"1": {"click": 0.5}})

    found = watch.differences("b", "a")

    users, differences = zip(*rows, strict=True)
    truth = ratio_of_sums(differences, np.ones(len(rows)), groups=users)
    assert found.keys() == {"click"}
    assert found["click"].value == pytest.approx(truth.value, rel=1e-12)
    # No two of these users share a unit.
    assert found["click"].units == truth.units == 23
    assert found["click"].standard_error == pytest.approx(truth.standard_error, rel=1e-12)
    assert watch.differences("a", "b") == {}
    by_release = {item.release: item.tasks["click"].all.rows for item in watch.report()}
    assert by_release == {"a": 600, "b": len(rows)}
    # A shadow answers nobody, and so it is never the one that answered last.
    assert watch.report()[-1].release == "a"


def test_answer_without_predictions_is_not_watched(watch: DriftWatch) -> None:
    watch.answered(_answer("r", {"1": {}}))
    watch.answered(_answer("s", {}))

    assert watch.report() == []


def test_memory_is_bounded(clock: Clock) -> None:
    watch = DriftWatch(settle_s=60.0, max_waiting=50, now=clock)
    for number in range(70):
        watch.answered(_answer(f"r{number}", {"1": {"click": 0.5}}))
        watch.happened([_event(f"r{number}", "1", "impression")])
    assert (len(watch._held), watch.num_passed_over, watch.num_late) == (50, 20, 20)

    # A release that lives for a year has as many parts as one that lives for an hour.
    for number in range(500):
        clock.now += 24 * 3600.0
        watch.answered(_answer(f"s{number}", {"1": {"click": 0.5}}))
        watch.happened([_event(f"s{number}", "1", "impression")])
    clock.now += 60.0
    drift = _only(watch).tasks["click"]
    assert len(drift.parts) <= 60
    assert drift.all.rows == sum(part.rows for part in drift.parts) == 550
    assert drift.parts[-1].start_s <= clock.now - 1000.0

    for release in "bcdef":
        watch.answered(_answer(release, {"1": {"click": 0.5}}, release))
    assert [item.release for item in watch.report()] == list("cdef")


def test_parts_tell_when_a_model_went_wrong(watch: DriftWatch, clock: Clock) -> None:
    for number in range(1200):
        # After half an hour nobody clicks twice as often any more, and the model goes on.
        clicked = number % (2 if number < 600 else 4) == 0
        watch.answered(_answer(f"r{number}", {"1": {"click": 0.5}}))
        watch.happened([_event(f"r{number}", "1", "click" if clicked else "impression")])
        clock.now += 3.0
    clock.now += 60.0

    parts = _only(watch).tasks["click"].parts

    early = [part.calibration for part in parts if part.start_s < 1700]
    late = [part.calibration for part in parts if part.start_s > 2000]
    assert early[1:-1] == pytest.approx([1.0] * len(early[1:-1]), rel=0.1)
    assert late[:-1] == pytest.approx([2.0] * len(late[:-1]), rel=0.1)


@pytest.fixture
def see(watch: DriftWatch, clock: Clock) -> Callable[[np.ndarray], None]:
    def see_all(probabilities: np.ndarray) -> None:
        for start in range(0, len(probabilities), 10):
            ads = {str(at): {"click": float(p)} for at, p in enumerate(probabilities[start:][:10])}
            watch.answered(_answer(f"{clock.now}", ads))
            watch.happened([_event(f"{clock.now}", ad, "impression") for ad in ads])
            clock.now += 1.0
        clock.now += 60.0

    return see_all


def test_shift_is_that_of_the_newest_rows_from_the_first(
    watch: DriftWatch, see: Callable[[np.ndarray], None]
) -> None:
    generator = np.random.default_rng(0)
    see(generator.beta(2, 20, 2100))
    # A hundred rows beside the reference would tell of chance alone.
    assert _only(watch).tasks["click"].shift is None

    see(generator.beta(2, 20, 4000))
    same = _only(watch).tasks["click"].shift
    see(generator.beta(2, 15, 2000))
    other = _only(watch).tasks["click"].shift

    assert same is not None
    assert other is not None
    assert (same.reference_rows, same.rows) == (other.reference_rows, other.rows) == (2000, 2000)
    # Nine degrees of freedom: the mean, and about six standard deviations above it.
    assert same.expected == pytest.approx(9 * 2 / 2000)
    assert same.value < same.expected * (1 + 6 * math.sqrt(2 / 9))
    assert other.value > 5 * same.expected


def test_probabilities_of_one_value_have_no_shift_until_they_are_two(
    watch: DriftWatch, see: Callable[[np.ndarray], None]
) -> None:
    see(np.full(3000, 0.25))
    shift = _only(watch).tasks["click"].shift
    assert shift is not None
    assert shift.value < shift.expected

    see(np.full(1000, 0.5))
    shift = _only(watch).tasks["click"].shift
    assert shift is not None
    assert shift.value > 1.0


@pytest.mark.parametrize("settle_s", [0.0, -1.0, math.nan, math.inf])
def test_wait_must_be_a_time(settle_s: float) -> None:
    with pytest.raises(ConfigError, match=f"settle_s: must be positive seconds, got {settle_s}"):
        DriftWatch(settle_s=settle_s)


def test_answer_settles_a_few_of_a_crowd_and_a_look_all(watch: DriftWatch, clock: Clock) -> None:
    for number in range(1000):
        watch.answered(_answer(f"r{number}", {"1": {"click": 0.5}}))
        watch.happened([_event(f"r{number}", "1", "impression")])
    clock.now += 60.0

    # Whoever is answered does not wait for a thousand others to be added up.
    watch.answered(_answer("next", {"1": {"click": 0.5}}))
    assert len(watch._held) == 997
    # The time of the others is over all the same.
    watch.happened([_event("r999", "1", "click")])
    assert watch.num_late == 1

    found = _only(watch).tasks["click"].all
    assert (found.rows, found.positives, len(watch._held)) == (1000, 0, 1)
