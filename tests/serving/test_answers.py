"""Answers: the same scores as offline, whichever way the features came, and every defined case."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from tamis import api
from tamis.data.columns import Origin, as_codes
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.ingest import encode_log
from tamis.data.loader import batches_of_rows
from tamis.data.schema import load_schema
from tamis.funnel.bundle import Bundle, load_bundle, read_bundle
from tamis.funnel.funnel import Funnel
from tamis.funnel.log import logged_requests
from tamis.funnel.request import Request
from tamis.models.output import probabilities_of
from tamis.serving.answers import Answer, Query, answer_all
from tamis.serving.live import Live, ServedBundle
from tamis.serving.live_ads import codes_of
from tamis.serving.records import Event, StoredAd
from tamis.serving.users import Past
from tamis.training.predict import load_trained


@pytest.fixture(scope="module")
def bundle(bundles: Path) -> Bundle:
    return read_bundle(bundles / "first")


@pytest.fixture(scope="module")
def live(bundle: Bundle) -> Live:
    return ServedBundle(bundle).live({})


def _nobody(user: str | None) -> Past:
    return Past()


def _queries(world: Path, live: Live) -> dict[int, tuple[Query, dict[str, Any]]]:
    """A query of every request of the log, and the columns of its first row, by request."""
    found = {}
    columns = (*live.served.user_columns.names, *live.served.context_columns.names)
    for path in sorted((world / "market" / "logs").iterdir()):
        for row in pq.read_table(path).to_pylist():
            if row["request_id"] in found:
                found[row["request_id"]][1]["slots"] += 1
                continue
            found[row["request_id"]] = ({name: row[name] for name in columns}, {**row, "slots": 1})
    queries = {}
    for number, (said, row) in found.items():
        served = live.served
        user = {n: v for n, v in said.items() if n in served.user_columns.names}
        context = {n: v for n, v in said.items() if n in served.context_columns.names}
        checked = {
            **served.user_columns.check(user, where="user"),
            **served.context_columns.check(context, where="context"),
        }
        queries[number] = (
            Query(
                request_id=str(number),
                user=str(row["user_id"]),
                columns=checked,
                slots=row["slots"],
                candidates=None,
                time_micros=int(row["event_time"].timestamp() * 1e6),
            ),
            row,
        )
    return queries


def _offline(bundles: Path, data: Dataset, split: str) -> Iterator[tuple[Request, Any]]:
    funnel = load_bundle(bundles / "first")
    codes = read_bundle(bundles / "first").blueprint.inventory.codes
    for request in logged_requests(data.split(split), data.spec, codes, may_be_unknown=True):
        yield request, funnel.answer(request)


@pytest.mark.parametrize("at_a_time", [1, 16])
def test_logged_requests_get_the_scores_of_a_replay(
    market_world: Path, bundles: Path, bundle: Bundle, at_a_time: int
) -> None:
    live = ServedBundle(bundle).live({})
    data = Dataset.open(market_world / "data")
    queries = _queries(market_world, live)
    by_code = dict(zip(codes_of([str(n) for n in queries]).tolist(), queries.values(), strict=True))
    offline = list(_offline(bundles, data, "test"))
    asked = [by_code[request.request_id][0] for request, _ in offline]
    assert len(asked) >= 150

    answers: list[Answer] = []
    for start in range(0, len(asked), at_a_time):
        answers += answer_all(live, asked[start : start + at_a_time], _nobody)

    for answer, (request, expected) in zip(answers, offline, strict=True):
        trace = answer.trace
        assert trace is not None
        assert trace.request_id == request.request_id
        for ours, theirs in zip(trace.stages, expected.stages, strict=True):
            assert ours.fallback == ""
            assert ours.ads.tolist() == theirs.ads.tolist()
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)
        assert [live.ads.ids[ad] for ad in expected.slate.ads] == [item.ad for item in answer.ads]
        np.testing.assert_allclose([item.value for item in answer.ads], expected.slate.values,
                                   rtol=0, atol=1e-5)  # fmt: skip
        assert [item.price for item in answer.ads] == pytest.approx(expected.slate.prices.tolist())
    assert len({tuple(item.ad for item in answer.ads) for answer in answers}) > 10


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(1800)
def test_ten_thousand_logged_requests_get_their_offline_scores(
    bundles: Path, bundle: Bundle, tmp_path: Path
) -> None:
    # Another log of the market: users and ads that the bundle does not know are among them.
    api.simulate(40_000, tmp_path / "market", seed=9)
    live = ServedBundle(bundle).live({})
    funnel, encoders = load_bundle(bundles / "first"), bundle.blueprint.encoders
    queries = list(_queries(tmp_path, live).values())
    assert len(queries) == 10_000

    for start in range(0, len(queries), 16):
        part = queries[start : start + 16]
        table = pa.Table.from_pylist([row for _, row in part])
        rows = encoders.encode(table, first_row=0, origin=Origin(file="log"), inputs_only=True)
        answers = answer_all(live, [query for query, _ in part], _nobody)
        features = batches_of_rows(rows, encoders.spec, batch_size=1)
        requests = [
            Request(
                request_id=int(as_codes(pa.array([row["request_id"]]))[0]),
                user=int(as_codes(pa.array([row["user_id"]]))[0]),
                time_micros=query.time_micros,
                slots=query.slots,
                features=batch,
            )
            for (query, row), batch in zip(part, features, strict=True)
        ]
        for answer, expected in zip(answers, funnel.answer_all(requests), strict=True):
            assert answer.trace is not None
            for ours, theirs in zip(answer.trace.stages, expected.stages, strict=True):
                assert ours.ads.tolist() == theirs.ads.tolist()
                np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)


def _predicted(run: Path, answer: Answer, folder: Path) -> dict[str, NDArray[np.float32]]:
    """What the run's model says offline, in float32, of the rows that the answer was made from."""
    encoders = Encoders.load(run / "inputs" / "encoders", load_schema(run / "inputs/schema.toml"))
    rows = [{**answer.served.columns, **shown.columns} for shown in answer.served.shown]
    table = pa.table({
        item.source: pa.array([row.get(item.source) for row in rows],
                              pa.list_(pa.string()) if item.kind == "sequence" else None)
        for item in encoders.schema.fields
    })  # fmt: skip
    pq.write_table(table, folder / "rows.parquet")
    (encoded,) = encode_log(folder / "rows.parquet", encoders)
    (batch,) = batches_of_rows(encoded, encoders.spec, batch_size=len(rows))
    tasks = encoders.schema.tasks
    with torch.inference_mode():
        found = probabilities_of(load_trained(run).module.eval()(batch).logits, tasks).numpy()
    return {task.name: found[:, at] for at, task in enumerate(tasks)}


def test_features_of_events_get_the_scores_that_the_log_of_them_gets_offline(
    market_world: Path, tmp_path: Path, live: Live, make_event: Callable[..., Event]
) -> None:
    generator = np.random.default_rng(0)
    clicks: list[tuple[str, dict[str, Any]]] = []
    answers = []
    for number in range(25):
        # The past as a slow loop over the user's clicks makes it: the last 20, oldest first.
        events = [make_event(str(k), ad=ad, ad_columns=row) for k, (ad, row) in enumerate(clicks)]
        past = Past(
            counts={"request": number, "click": len(clicks)}, events={"click": tuple(events)}
        )
        query = Query(
            request_id=str(number), user="3", columns={"device": "phone", "hour": "9"}, slots=3,
            candidates=None, time_micros=number * 120_000_000,
        )  # fmt: skip
        (answer,) = answer_all(live, [query], lambda user, past=past: past)
        answers.append(answer)
        assert answer.served.columns["history_ads"] == [ad for ad, _ in clicks[-20:]]
        assert answer.served.columns["history_categories"] == [
            str(row["category"]) for _, row in clicks[-20:]
        ]
        assert answer.served.columns["user_requests"] == number
        shown = answer.served.shown[int(generator.integers(len(answer.served.shown)))]
        clicks.append((shown.ad, dict(shown.columns)))

    for answer in answers:
        predicted = _predicted(market_world / "final", answer, tmp_path)
        for task in ("click", "conversion", "hide"):
            served = [item.predictions[task] for item in answer.ads]
            np.testing.assert_allclose(served, predicted[task], rtol=0, atol=1e-5)
    # The clicks of a moment ago change what is predicted.
    first = {item.ad: item.predictions["click"] for item in answers[0].ads}
    last = {item.ad: item.predictions["click"] for item in answers[-1].ads}
    assert any(abs(first[ad] - last[ad]) > 1e-4 for ad in first.keys() & last.keys()) or (
        first.keys() != last.keys()
    )


def test_what_a_request_says_goes_before_what_is_known(
    live: Live, make_query: Callable[..., Query], make_event: Callable[..., Event]
) -> None:
    past = Past(counts={"request": 9}, events={"click": (make_event("e", ad="5"),)})
    said = make_query(columns={"history_ads": ["1", "2"], "history_categories": ["3", "4"]})

    (answer,) = answer_all(live, [said], lambda user: past)

    assert answer.served.columns["history_ads"] == ["1", "2"]
    assert answer.served.columns["user_requests"] == 9.0
    assert answer.served.columns["user_id"] == "3"


def test_unknown_user_and_unknown_values_are_answered_as_training_had_them(
    live: Live, make_query: Callable[..., Query]
) -> None:
    queries = [
        make_query("a", user=None, columns={}),
        make_query("b", user="nobody knows them", columns={"device": "fridge", "age": "older"}),
    ]

    answers = answer_all(live, queries, _nobody)

    for answer in answers:
        assert len(answer.ads) == 3
        assert not any(stage["fallback"] for stage in answer.stages())
    # Both are row 0 of every table, and without a past.
    unknown, missing = ({item.ad: item.predictions for item in answer.ads} for answer in answers)
    both = unknown.keys() & missing.keys()
    assert both
    for ad in both:
        assert unknown[ad] == pytest.approx(missing[ad], abs=1e-6)


def test_more_slots_than_ads_gives_every_ad_of_another_advertiser(
    live: Live, make_query: Callable[..., Query]
) -> None:
    (answer,) = answer_all(live, [make_query(slots=100)], _nobody)

    owners = [shown.columns["advertiser_id"] for shown in answer.served.shown]
    assert len(owners) == len(set(owners)) == len(answer.ads)
    # The last stage keeps eight.
    assert 1 < len(answer.ads) <= 8


def test_candidates_are_the_only_ads_that_may_be_shown(
    live: Live, make_query: Callable[..., Query]
) -> None:
    some = (live.ads.ids[5], live.ads.ids[9], live.ads.ids[5], "not there", "nor this")
    queries = [make_query(candidates=some), make_query(candidates=("not there",)),
               make_query(candidates=())]  # fmt: skip

    chosen, none, nothing = answer_all(live, queries, _nobody)

    assert {item.ad for item in chosen.ads} <= set(some[:2])
    assert chosen.ads
    assert chosen.unknown_candidates == 2
    assert (none.ads, none.unknown_candidates) == ((), 1)
    assert (nothing.ads, nothing.unknown_candidates) == ((), 0)


def test_no_ad_at_all_is_an_empty_answer(bundle: Bundle, make_query: Callable[..., Query]) -> None:
    served = ServedBundle(bundle)
    empty = served.live(dict.fromkeys(served.catalogue.live({}).ids))

    (answer,) = answer_all(empty, [make_query(candidates=("7",))], _nobody)

    assert (answer.ads, answer.trace, answer.stages()) == ((), None, [])
    assert answer.unknown_candidates == 1
    assert answer.served.shown == ()


def test_ads_say_why_they_are_there(
    bundle: Bundle, make_query: Callable[..., Query], make_ad: Callable[..., StoredAd]
) -> None:
    served = ServedBundle(bundle)
    put = make_ad("mine", bid=1e3, quality=0.25, billing="conversion", popularity=1e6)
    live = served.live({"mine": put})

    (answer,) = answer_all(live, [make_query()], _nobody)

    first = answer.ads[0]
    assert (first.ad, first.bid, first.billing, first.quality) == ("mine", 1e3, "conversion", 0.25)
    p = first.predictions
    # bid p(click) p(conversion | click) + quality; the recipe sets no penalty.
    assert first.value == pytest.approx(1e3 * p["click"] * p["conversion"] + 0.25)
    assert 0 <= first.price <= first.bid
    assert answer.stages()[0]["ads"][0] == "mine"
    assert [stage["name"] for stage in answer.stages()] == ["popular", "early", "final"]


def test_request_of_nobody_is_never_taken_for_that_of_a_user(
    live: Live, make_query: Callable[..., Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    users: list[int] = []
    answer = Funnel.answer_all

    def watched(funnel: Funnel, requests: Sequence[Request], **options: Any) -> Any:
        users.extend(request.user for request in requests)
        return answer(funnel, requests, **options)

    monkeypatch.setattr(Funnel, "answer_all", watched)
    # A caller chooses the ids of its requests, and may choose that of a user.
    queries = [make_query("q", user="3"), make_query("3", user=None), make_query("4", user=None)]
    answer_all(live, queries, _nobody)

    assert users == [codes_of(["3"])[0], *~codes_of(["3", "4"])]
