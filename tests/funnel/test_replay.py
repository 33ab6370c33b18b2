"""Replay: sums that can be redone by hand, losses on the log's own rows, bounded memory."""

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch, concatenate
from tamis.data.hashing import hash_integers
from tamis.data.schema import Task
from tamis.errors import ConfigError, DataError
from tamis.evaluation import evaluate_task
from tamis.funnel.ads import AdTable
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.replay import Reference, replay
from tamis.funnel.request import Impressions, Request
from tamis.funnel.stage import Scored
from tamis.funnel.trace import Trace

_NUM_ADS = 60


class _PerRequest:
    """Scores and click probabilities that depend on request and ad alike."""

    def __init__(self, seed: int, clock: Any = None, ms: float = 0.0) -> None:
        self.seed, self.clock, self.ms = seed, clock, ms

    def clicks(self, request: Request, ads: NDArray[np.int64]) -> NDArray[np.float64]:
        noise = hash_integers(ads, seed=1000 * self.seed + request.request_id)
        result: NDArray[np.float64] = (noise >> np.uint64(40)).astype(np.float64) / 2**24
        return result

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        if self.clock is not None:
            self.clock.advance(self.ms)
        clicks = self.clicks(request, candidates.ads)
        found = Candidates(ads=candidates.ads, scores=clicks, predictions={"click": clicks})
        return Scored(candidates=found, scored_pairs=len(candidates), flops=2.0 * len(candidates))


@pytest.fixture
def make_funnel(
    make_ads: Callable[..., AdTable], click_value: Any, clock: Any
) -> Callable[..., Funnel]:
    """Of 60 ads 20, 8 and 4 are kept, in 1, 2 and 4 milliseconds."""

    def make(first: Any = None, second: Any = None, last: Any = None) -> Funnel:
        steps = [
            Step(name="retrieval", stage=first or _PerRequest(1, clock, 1), keep=20),
            Step(name="early", stage=second or _PerRequest(2, clock, 2), keep=8),
            Step(name="final", stage=last or _PerRequest(3, clock, 4), keep=4),
        ]
        return Funnel(steps, make_ads(_NUM_ADS), click_value, clock=clock)

    return make


def _requests(count: int, **settings: Any) -> Iterator[Request]:
    for number in range(count):
        yield Request(request_id=number, user=0, time_micros=0, slots=2, **settings)


def test_counts_and_times_add_up(make_funnel: Callable[..., Funnel], clock: Any) -> None:
    done: list[int] = []
    traces: list[Trace] = []

    report = replay(
        make_funnel(), _requests(5), observe=traces.append, progress=done.append, clock=clock
    )

    assert (report.requests, report.compared, done) == (5, 0, [1, 2, 3, 4, 5])
    assert [trace.request_id for trace in traces] == [0, 1, 2, 3, 4]
    assert report.scope is None
    assert [stage.name for stage in report.stages] == ["retrieval", "early", "final", "auction"]
    assert [stage.candidates_in for stage in report.stages] == [60, 20, 8, 4]
    assert [stage.candidates_out for stage in report.stages] == [20, 8, 4, 2]
    assert [stage.scored_pairs for stage in report.stages] == [60, 20, 8, 0]
    assert [stage.flops for stage in report.stages] == [120, 40, 16, 0]
    assert [stage.latency_ms.mean for stage in report.stages] == [1, 2, 4, 0]
    assert report.latency_ms.mean == 7
    assert report.seconds == pytest.approx(5 * 0.007)
    assert report.requests_per_second == pytest.approx(1000 / 7)


def test_slates_money_is_the_mean_over_requests(make_funnel: Callable[..., Funnel]) -> None:
    funnel = make_funnel()
    traces = [funnel.answer(request) for request in _requests(6)]

    report = replay(funnel, _requests(6))

    values = [trace.slate.values.sum() for trace in traces]
    revenues = [float(trace.slate.prices @ trace.slate.rates) for trace in traces]
    assert report.slate_value == pytest.approx(np.mean(values))
    assert report.slate_revenue == pytest.approx(np.mean(revenues))


def test_measures_equal_a_slow_loop(make_funnel: Callable[..., Funnel]) -> None:
    funnel, truth = make_funnel(), _PerRequest(9)

    report = replay(funnel, _requests(20), reference=Reference(stage=truth, scope="all"))

    names = ("recall", "soft_recall", "value_kept", "regret")
    expected: dict[str, list[list[float]]] = {name: [] for name in names}
    for request in _requests(20):
        values = truth.clicks(request, np.arange(_NUM_ADS))
        trace = funnel.answer(request)
        kept = [stage.ads.tolist() for stage in trace.stages] + [trace.slate.ads.tolist()]
        rows: dict[str, list[float]] = {name: [] for name in expected}
        for ads, size in zip(kept, (4, 4, 4, 2), strict=True):
            golden = sorted(range(_NUM_ADS), key=lambda ad: -values[ad])[:size]
            best = sorted(ads, key=lambda ad: -values[ad])[:size]
            rows["recall"].append(len(set(golden) & set(ads)) / size)
            top = sorted(values, reverse=True)[: len(ads)]
            rows["soft_recall"].append(sum(values[ads]) / sum(top))
            rows["value_kept"].append(sum(values[best]) / sum(values[golden]))
            # A stage's own regret: what is left of the best ad, less what the stage before left.
            left = values[best[0]] / values[golden[0]]
            rows["regret"].append(1 - left - sum(rows["regret"]))
        for name, found in rows.items():
            expected[name].append(found)
    for name, by_request in expected.items():
        found = [stage.measures[name] for stage in report.stages]
        assert found == pytest.approx(np.mean(by_request, axis=0).tolist())
    assert report.compared == 20
    weights = [truth.clicks(request, np.arange(_NUM_ADS)).sum() for request in _requests(20)]
    for name, by_request in expected.items():
        found = [stage.measures_by_value[name] for stage in report.stages]
        assert found == pytest.approx(np.average(by_request, axis=0, weights=weights).tolist())
    # Retrieval at random keeps a third of the golden ads, 20 of 60; the others lose more.
    assert 0 < report.stages[2].measures["recall"] < report.stages[0].measures["recall"] < 1


def test_reference_as_every_stage_loses_nothing(make_funnel: Callable[..., Funnel]) -> None:
    best = _PerRequest(9)

    report = replay(
        make_funnel(best, best, best),
        _requests(10),
        reference=Reference(stage=best, scope="all"),
    )

    for stage in report.stages:
        assert stage.measures == {
            "recall": 1.0, "soft_recall": 1.0, "value_kept": 1.0, "regret": 0.0
        }  # fmt: skip


def test_scope_first_leaves_the_first_stages_losses_out(
    make_funnel: Callable[..., Funnel],
) -> None:
    best = _PerRequest(9)
    funnel = make_funnel(None, best, best)

    first = replay(funnel, _requests(10), reference=Reference(stage=best, scope="first"))
    whole = replay(funnel, _requests(10), reference=Reference(stage=best, scope="all"))

    assert (first.scope, whole.scope) == ("first", "all")
    assert [stage.measures["recall"] for stage in first.stages] == [1, 1, 1, 1]
    assert whole.stages[0].measures["recall"] < 1


def test_request_without_candidates_is_compared_with_nothing(
    make_funnel: Callable[..., Funnel],
) -> None:
    def fail(request: Request, candidates: Candidates, keep: int) -> Scored:
        raise AssertionError("a reference was asked about nothing")

    requests = _requests(2, candidates=np.empty(0, np.int64))
    report = replay(make_funnel(), requests, reference=Reference(stage=fail, scope="all"))

    assert report.stages[0].measures["recall"] is None
    assert report.slate_value == 0


def test_one_request_in_so_many_is_compared(make_funnel: Callable[..., Funnel]) -> None:
    reference = Reference(stage=_PerRequest(9), scope="all", every=3)

    assert replay(make_funnel(), _requests(7), reference=reference).compared == 3


def test_fallbacks_are_counted_by_reason_and_reasons_are_bounded(
    make_funnel: Callable[..., Funnel],
) -> None:
    def fail(request: Request, candidates: Candidates, keep: int) -> Scored:
        raise RuntimeError(f"of request {max(0, request.request_id - 9)}")

    report = replay(make_funnel(None, fail), _requests(40))

    fallbacks = report.stages[1].fallbacks
    assert fallbacks["RuntimeError: of request 0"] == 10
    assert len(fallbacks) == 21
    assert fallbacks["other reasons"] == 40 - 10 - 19
    assert report.stages[0].fallbacks == report.stages[2].fallbacks == {}


def _row(user: int, weight: float = 1.0) -> Batch:
    return Batch(
        numeric=torch.zeros(1, 0),
        ids=torch.tensor([[user]], dtype=torch.int32),
        labels=torch.zeros(1, 1),
        weights=torch.full((1,), weight),
    )


class _Head:
    """Predicts from user and ad, and notes how many pairs it is given at a time."""

    tasks = (Task(name="click"), Task(name="hide"), Task(name="spend", kind="regression"))

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> Mapping[str, NDArray[np.float64]]:
        self.sizes.append(len(ads))
        users = features.ids[:, 0].numpy()[rows]
        return {
            "click": (1 + (users + ads) % 9) / 10,
            "hide": np.full(len(ads), 0.25),
            "spend": np.full(len(ads), 17.0),
        }


def _impressions(count: int) -> Iterator[Request]:
    generator = np.random.default_rng(2)
    for number in range(count):
        ads = generator.integers(0, _NUM_ADS, 3)
        labels = (generator.random(3) < 0.3).astype(np.float32)
        labels[generator.random(3) < 0.2] = np.nan
        yield Request(
            request_id=number,
            user=number,
            time_micros=0,
            slots=2,
            features=_row(number),
            # One candidate: what was shown does not pass the funnel, and counts all the same.
            candidates=np.array([5]),
            shown=Impressions(ads=ads, labels={"click": labels}),
        )


def test_losses_are_on_every_impression_of_the_log(make_funnel: Callable[..., Funnel]) -> None:
    head = _Head()

    report = replay(make_funnel(), _impressions(1500), heads={"final": head})

    labels = np.concatenate([r.shown.labels["click"] for r in _impressions(1500) if r.shown])
    predicted = np.concatenate(
        [(1 + (r.user + r.shown.ads) % 9) / 10 for r in _impressions(1500) if r.shown]
    )
    expected = evaluate_task(labels, predicted)
    found = report.heads["final"]["click"]
    assert found.rows == expected.rows
    assert found.ne == pytest.approx(expected.ne)
    assert found.log_loss == pytest.approx(expected.log_loss)
    assert found.base_rate == pytest.approx(expected.base_rate)
    # 4,500 impressions in two chunks; a request is never parted.
    assert head.sizes == [4098, 402]
    # Money has no entropy.
    assert set(report.heads["final"]) == {"click", "hide"}
    # A task that the log has no labels of is there, without numbers.
    assert report.heads["final"]["hide"].to_json() == {
        "rows": 0, "base_rate": None, "log_loss": None, "ne": None
    }  # fmt: skip


def test_impressions_with_rows_of_their_own_are_predicted_from_them(
    make_funnel: Callable[..., Funnel],
) -> None:
    own = concatenate([_row(3), _row(7)])
    labels = {"click": np.array([1, 0], np.float32)}
    shown = Impressions(ads=np.array([1, 2]), labels=labels, features=own)
    shared = Impressions(ads=np.array([4, 5]), labels=labels)
    requests = [
        Request(request_id=at, user=0, time_micros=0, slots=1, features=_row(6), shown=part)
        for at, part in enumerate((shared, shown, shared))
    ]

    found = replay(make_funnel(), requests, heads={"final": _Head()}).heads["final"]["click"]

    # (1 + (user + ad) % 9) / 10: 0.2 and 0.3 of user 6, twice; 0.5 of user 3 and 0.1 of user 7.
    losses = 2 * (np.log(0.2) + np.log(0.7)) + np.log(0.5) + np.log(0.9)
    assert found.log_loss == pytest.approx(-losses / 6)


def test_losses_are_by_the_weights_of_the_rows(make_funnel: Callable[..., Funnel]) -> None:
    own = concatenate([_row(3, weight=3), _row(7, weight=0.5)])
    labels = {"click": np.array([1, 0], np.float32), "hide": np.array([1, 0], np.float32)}
    shown = Impressions(ads=np.array([1, 2]), labels=labels, features=own)
    shared = Impressions(ads=np.array([4, 5]), labels={"click": labels["click"]})
    requests = [
        Request(request_id=at, user=0, time_micros=0, slots=1, features=row, shown=part)
        for at, (row, part) in enumerate([(_row(6), shown), (_row(6, weight=2), shared)])
    ]

    found = replay(make_funnel(), requests, heads={"final": _Head()}).heads["final"]

    # 0.5 of user 3, 0.1 of user 7, 0.2 and 0.3 of user 6.
    loss = -(3 * np.log(0.5) + 0.5 * np.log(0.9) + 2 * np.log(0.2) + 2 * np.log(0.7)) / 7.5
    assert found["click"].log_loss == pytest.approx(loss)
    assert found["click"].base_rate == pytest.approx(5 / 7.5)
    assert found["click"].rows == 4
    assert found["hide"].base_rate == pytest.approx(3 / 3.5)


def test_rows_without_weight_have_no_loss(make_funnel: Callable[..., Funnel]) -> None:
    shown = Impressions(ads=np.array([1, 2]), labels={"click": np.array([1, 0], np.float32)})
    requests = _requests(3, features=_row(0, weight=0), shown=shown)

    found = replay(make_funnel(), requests, heads={"final": _Head()}).heads["final"]["click"]

    assert (found.rows, found.log_loss, found.ne) == (6, None, None)


def test_labels_of_one_class_have_a_loss_and_no_ne(make_funnel: Callable[..., Funnel]) -> None:
    shown = Impressions(ads=np.array([1, 2]), labels={"hide": np.zeros(2, np.float32)})
    requests = _requests(3, features=_row(0), shown=shown)

    found = replay(make_funnel(), requests, heads={"final": _Head()}).heads["final"]["hide"]

    assert found.rows == 6
    assert found.log_loss == pytest.approx(-np.log(0.75))
    assert found.ne is None


def test_memory_does_not_grow_with_the_requests(make_funnel: Callable[..., Funnel]) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def stream() -> Iterator[Request]:
        nonlocal most
        for number in range(300):
            candidates = np.arange(_NUM_ADS)
            alive.append(weakref.ref(candidates))
            yield Request(request_id=number, user=0, time_micros=0, slots=2, candidates=candidates)
            most = max(most, sum(ref() is not None for ref in alive))

    replay(make_funnel(), stream(), reference=Reference(stage=_PerRequest(9), scope="all"))

    # The current request's, and that of the one before while its names still stand.
    assert most <= 2


def test_report_is_strict_json(make_funnel: Callable[..., Funnel]) -> None:
    report = replay(
        make_funnel(),
        _impressions(4),
        reference=Reference(stage=_PerRequest(9), scope="all"),
        heads={"final": _Head()},
    )

    record = json.loads(json.dumps(report.to_json(), allow_nan=False))

    assert record["requests"] == 4
    assert record["stages"][0]["measures"]["recall"] == report.stages[0].measures["recall"]
    assert record["stages"][3]["name"] == "auction"
    assert record["heads"]["final"]["click"]["rows"] == report.heads["final"]["click"].rows


def test_reference_that_leaves_candidates_out_is_refused(
    make_funnel: Callable[..., Funnel],
) -> None:
    def half(request: Request, candidates: Candidates, keep: int) -> Scored:
        return Scored(candidates=candidates.take(np.arange(30)))

    with pytest.raises(DataError, match=r"must score all of 60 candidates, got 30 scores and"):
        replay(make_funnel(), _requests(1), reference=Reference(stage=half, scope="all"))


def test_reference_that_falls_back_is_refused(make_funnel: Callable[..., Funnel]) -> None:
    def late(request: Request, candidates: Candidates, keep: int) -> Scored:
        return Scored(candidates=candidates, fallback="took longer than 1 ms")

    with pytest.raises(DataError, match=r"and the fallback 'took longer than 1 ms'"):
        replay(make_funnel(), _requests(1), reference=Reference(stage=late, scope="all"))


def test_empty_log_is_refused(make_funnel: Callable[..., Funnel]) -> None:
    with pytest.raises(DataError, match=r"replay: must have at least one request, got none"):
        replay(make_funnel(), [])


def test_impressions_without_features_are_refused(make_funnel: Callable[..., Funnel]) -> None:
    shown = Impressions(ads=np.array([1]), labels={})

    with pytest.raises(DataError, match=r"request 0: must have features where impressions are"):
        replay(make_funnel(), _requests(1, shown=shown), heads={"final": _Head()})


def test_reference_of_no_request_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"every: must be at least 1, got 0"):
        Reference(stage=_PerRequest(9), scope="all", every=0)
    with pytest.raises(ConfigError, match=r"scope: must be one of all, first, got 'some'"):
        Reference(stage=_PerRequest(9), scope="some")  # type: ignore[arg-type]
