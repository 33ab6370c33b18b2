"""The engine: many at once, changes of ads and bundle while requests run, too many, and faults."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tamis.errors import ConfigError, DataError, StoreError
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.funnel.cache import UserCache
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.request import Request
from tamis.funnel.retrieval_plans import TwoTowerPlan, TwoTowerSettings
from tamis.funnel.stage import Scored
from tamis.serving import engine as engine_module
from tamis.serving.answers import Answer, Query
from tamis.serving.arrivals import Arrivals
from tamis.serving.drift import DriftWatch
from tamis.serving.engine import Engine, EngineSettings
from tamis.serving.live import Live, ServedBundle
from tamis.serving.pace import Pace
from tamis.serving.records import Event, StoredAd
from tamis.serving.refused import RefusedError
from tamis.serving.shadow import Shadow
from tamis.serving.store import Store
from tamis.training.predict import load_trained


def _rank(engine: Engine, query: Query) -> Answer:
    return engine.rank(query, engine.live).result(60)


def _with_stage(engine: Engine, stage: Callable[..., Scored], budget_ms: float | None) -> None:
    """Put a stage of a test in the place of the last one."""
    funnel = engine.live.funnel
    assert funnel is not None
    last = Step(name="final", stage=stage, keep=8, budget_ms=budget_ms)
    steps = [*funnel.steps[:-1], last]
    other = Funnel(steps, funnel.ads, funnel.value, callers=funnel.callers)
    engine._live = replace(engine.live, funnel=other)


def test_answers_are_recorded_before_the_events_that_name_them(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_event: Callable[..., Event],
    watched: Any,
) -> None:
    engine = make_engine()
    answer = _rank(engine, make_query("r"))
    event = make_event("e", ad=answer.ads[0].ad, user="3", request_id="r")

    assert engine.write([event, event]).result(60) == [True, False]

    (joined,) = engine._store.joined()
    assert joined.request == answer.served
    assert joined.events == (event,)
    assert watched.answers == [answer]


def test_click_is_in_the_next_answers_features(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_event: Callable[..., Event],
) -> None:
    engine = make_engine()
    first = _rank(engine, make_query("a"))
    shown = first.served.shown[0]
    click = make_event("e", ad=shown.ad, user="3", ad_columns=shown.columns)
    engine.write([click]).result(60)

    second = _rank(engine, make_query("b"))

    assert first.served.columns["history_ads"] == []
    assert second.served.columns["history_ads"] == [shown.ad]
    assert second.served.columns["history_categories"] == [shown.columns["category"]]
    assert (first.served.columns["user_requests"], second.served.columns["user_requests"]) == (0, 1)


def test_many_at_once_are_answered_as_each_by_itself(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine = make_engine(max_batch=7)
    # Counters of a request that says them itself are the same the second time.
    said = {"device": "phone", "user_requests": 3.0}
    queries = [
        make_query(str(k), user=str(k % 9), slots=1 + k % 4, columns=said) for k in range(40)
    ]
    alone = [_rank(engine, query).ads for query in queries]

    together = [engine.rank(query, engine.live) for query in queries]

    for future, ads in zip(together, alone, strict=True):
        found = future.result(60).ads
        assert [item.ad for item in found] == [item.ad for item in ads]
        assert [item.value for item in found] == pytest.approx([item.value for item in ads])


def test_put_and_deleted_ads_are_live_at_once_and_after_a_restart(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_ad: Callable[..., StoredAd],
) -> None:
    engine = make_engine()
    before = {item.ad for item in _rank(engine, make_query()).ads}
    engine.put_ad(make_ad("mine", bid=1e6, popularity=1e6))
    assert _rank(engine, make_query()).ads[0].ad == "mine"
    for name in before:
        engine.delete_ad(name)
    assert not before & {item.ad for item in _rank(engine, make_query()).ads}

    again = make_engine()

    assert [item.ad for item in _rank(again, make_query()).ads] == [
        item.ad for item in _rank(engine, make_query()).ads
    ]
    again.delete_ad("mine")
    assert _rank(again, make_query()).ads[0].ad != "mine"


def test_kept_answers_end_with_every_change_of_ads_and_bundle(
    bundles: Path,
    market_world: Path,
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_ad: Callable[..., StoredAd],
) -> None:
    plain = read_bundle(bundles / "first")
    stages, cache = plain.blueprint.stages, UserCache(time_to_live_ms=1e9)
    towers = TwoTowerPlan(
        model=load_trained(market_world / "towers"), settings=TwoTowerSettings(cache=cache)
    )
    stages = (replace(stages[0], plan=towers), *stages[1:])
    kept = Bundle(release="kept", blueprint=replace(plain.blueprint, stages=stages))
    engine = make_engine()

    def ranked() -> tuple[set[str], list[int]]:
        answers = [_rank(engine, make_query()) for _ in range(2)]
        assert [one.ads for one in answers] == [answers[0].ads] * 2
        hits = [one.trace.stages[0].cache_hits for one in answers if one.trace is not None]
        return {item.ad for item in answers[1].ads}, hits

    engine.swap(kept, replaces=plain.release)
    before, hits = ranked()
    assert hits == [0, 1]
    for name in before:
        engine.delete_ad(name)
    left, hits = ranked()
    assert (hits, left & before) == ([0, 1], set())
    engine.put_ad(make_ad("mine", bid=1e6))
    grown, hits = ranked()
    assert hits == [0, 1]
    assert "mine" in grown
    engine.roll_back(replaces="kept")
    engine.swap(kept, replaces=plain.release)
    assert ranked()[1] == [0, 1]


def test_ads_that_are_put_together_share_a_change_and_are_all_live(
    make_engine: Callable[..., Engine], make_ad: Callable[..., StoredAd]
) -> None:
    engine = make_engine()
    threads = [
        threading.Thread(target=engine.put_ad, args=(make_ad(f"ad {k}"),)) for k in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert {f"ad {k}" for k in range(20)} <= set(engine.live.ads.ids)


def test_changes_of_one_ad_that_come_together_all_count(
    make_engine: Callable[..., Engine], make_ad: Callable[..., StoredAd]
) -> None:
    engine = make_engine()
    ad, fresh = engine.live.ads.ids[0], make_ad("fresh", bid=1.0)

    def raise_bid(now: StoredAd) -> StoredAd:
        time.sleep(0.01)  # whoever looked at it meanwhile would write what is no more
        return replace(now, bid=now.bid + 1)

    calls: list[Any] = [partial(engine.change_ad, ad, raise_bid) for _ in range(8)]
    before = float(engine.live.ads.inventory.attributes.bid[0])
    calls[3:3] = [partial(engine.put_ad, fresh), partial(engine.delete_ad, engine.live.ads.ids[1])]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    bids = engine.live.ads.inventory.attributes.bid
    assert bids[engine.live.ads.row_by_id[ad]] == pytest.approx(before + 8)
    assert bids[engine.live.ads.row_by_id["fresh"]] == 1.0


def test_ad_without_a_place_in_the_funnel_changes_nothing(
    make_engine: Callable[..., Engine], make_ad: Callable[..., StoredAd]
) -> None:
    engine = make_engine()
    before = engine.live

    with pytest.raises(DataError, match=r"billing must be one of"):
        engine.put_ad(make_ad("odd", billing="visit"))

    assert engine.live is before
    assert engine._store.ads() == {}


def test_swap_and_roll_back_while_requests_run_fail_none(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query], bundles: Path
) -> None:
    engine = make_engine()
    first, second = (read_bundle(bundles / name) for name in ("first", "second"))
    done = threading.Event()
    answers: list[Answer] = []
    errors: list[Exception] = []

    def ask(name: int) -> None:
        count = 0
        while not done.is_set():
            count += 1
            try:
                answers.append(_rank(engine, make_query(f"{name}-{count}")))
            except Exception as error:  # noqa: BLE001  (none may fail)
                errors.append(error)

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for asker in askers:
        asker.start()
    for _ in range(3):
        engine.swap(second, replaces=first.release)
        assert _rank(engine, make_query("between")).release == second.release
        engine.roll_back(replaces=second.release)
        assert _rank(engine, make_query("after")).release == first.release
    done.set()
    for asker in askers:
        asker.join(60)

    assert not errors
    assert {answer.release for answer in answers} == {first.release, second.release}
    assert all(answer.ads for answer in answers)
    assert engine._store.newest_schema() == first.blueprint.encoders.schema.to_toml()


def test_swap_that_follows_another_release_is_refused(
    make_engine: Callable[..., Engine], bundles: Path
) -> None:
    engine = make_engine()
    second = read_bundle(bundles / "second")

    with pytest.raises(RefusedError, match=r"body.replaces: must be the release that serves"):
        engine.swap(second, replaces=second.release)
    with pytest.raises(RefusedError, match=r"body.roll_back: must follow a change of the bundle"):
        engine.roll_back(replaces=engine.live.served.release)


def test_bundle_that_cannot_serve_leaves_the_one_before(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query], bundles: Path
) -> None:
    engine = make_engine()
    second = read_bundle(bundles / "second")
    inventory = replace(second.blueprint.inventory, raw=None)
    broken = Bundle(release="b", blueprint=replace(second.blueprint, inventory=inventory))

    with pytest.raises(ValueError, match=r"must hold the ids and columns of its ads"):
        engine.swap(broken, replaces=engine.live.served.release)

    assert _rank(engine, make_query()).release == read_bundle(bundles / "first").release


def test_bundle_that_fails_at_its_first_answer_is_not_remembered(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_hashed: Callable[[str], Bundle],
    tmp_path: Path,
    watched: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, odd = make_engine(), make_hashed("price")
    before = engine.store.newest_schema()
    answer_all = engine_module.answer_all

    def fail(live: Live, *arguments: Any) -> list[Answer]:
        if live.served.release == odd.release:
            raise ZeroDivisionError
        return answer_all(live, *arguments)

    monkeypatch.setattr(engine_module, "answer_all", fail)
    kept: list[Any] = []
    monkeypatch.setattr(engine_module.Users, "keep", lambda _, lengths: kept.append(lengths))
    with pytest.raises(ZeroDivisionError):
        engine.swap(odd, replaces=engine.live.served.release)
    with pytest.raises(ZeroDivisionError):
        engine.put_beside(odd, control=engine.live.served.release)

    assert kept == []
    assert engine.beside is None
    assert _rank(engine, make_query()).release != odd.release
    assert engine.store.newest_schema() == before != odd.blueprint.encoders.schema.to_toml()
    store = Store(f"sqlite:///{tmp_path / 'new.db'}")
    with pytest.raises(ZeroDivisionError):
        Engine(odd, store, watched, EngineSettings())
    assert store.newest_schema() is None
    store.close()


def test_bundle_is_remembered_before_it_answers(
    make_engine: Callable[..., Engine],
    make_hashed: Callable[[str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, other = make_engine(), make_hashed("price")
    before = engine.live

    def away(release: str, schema: str) -> None:
        assert engine.live is before
        raise StoreError(f"{release} cannot be written")

    monkeypatch.setattr(engine.store, "put_release", away)
    with pytest.raises(StoreError, match="hashed cannot be written"):
        engine.swap(other, replaces=before.served.release)

    assert engine.live is before


@pytest.mark.parametrize("is_beside", [False, True])
@pytest.mark.parametrize("fits", [False, True])
def test_ad_that_comes_while_a_bundle_warms_up_has_a_place_in_it_or_keeps_it_away(
    make_engine: Callable[..., Engine],
    make_ad: Callable[..., StoredAd],
    bundles: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: bool,
    is_beside: bool,
) -> None:
    engine, second = make_engine(), read_bundle(bundles / "second")
    before, warmed_up, live_of = engine.live, engine_module._warmed_up, ServedBundle.live
    puts = threading.Thread(target=engine.put_ad, args=(make_ad("late"),))

    def warm_up(live: Live, max_batch: int) -> Any:
        puts.start()
        while "late" not in engine.store.ads():
            puts.join(0.01)
        return warmed_up(live, max_batch)

    def live(served: ServedBundle, stored: Any) -> Live:
        if served.release == second.release and "late" in stored and not fits:
            raise DataError("no stage predicts what it is billed by")
        return live_of(served, stored)

    monkeypatch.setattr(engine_module, "_warmed_up", warm_up)
    monkeypatch.setattr(ServedBundle, "live", live)
    change = partial(engine.put_beside, control=before.served.release)
    if not is_beside:
        change = partial(engine.swap, replaces=before.served.release)
    with nullcontext() if fits else pytest.raises(DataError, match="no stage predicts"):
        change(second)
    puts.join(60)

    # What does not fit is live all the same, where it fits.
    states = [engine.live, *([engine.beside] if is_beside and fits else [])]
    assert all("late" in found.ads.row_by_id for found in states if found is not None)
    assert (engine.beside is not None) == (is_beside and fits)
    is_swapped = fits and not is_beside
    assert (engine.live.served.release == second.release) == is_swapped
    engine.put_ad(make_ad("later"))


def test_ad_with_an_infinite_number_costs_nobody_a_request_or_an_event(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_event: Callable[..., Event],
    bundles: Path,
) -> None:
    engine = make_engine()
    second = read_bundle(bundles / "second")
    raw = second.blueprint.inventory.raw
    assert raw is not None
    prices = pa.array([math.inf, *raw["price"].to_pylist()[1:]])
    raw = raw.set_column(raw.column_names.index("price"), "price", prices)
    inventory = replace(second.blueprint.inventory, raw=raw)
    odd = Bundle(release="odd", blueprint=replace(second.blueprint, inventory=inventory))
    engine.swap(odd, replaces=engine.live.served.release)
    ad = engine.live.ads.ids[0]

    for name, candidates in (("a", None), ("b", (ad,)), ("c", None)):
        engine.rank(make_query(name, candidates=candidates), engine.live).result(60)
    (columns,) = engine.live.ads.columns(np.array([0]))
    events = [make_event("e", ad=ad, ad_columns=columns), make_event("f", ad="7")]

    assert engine.write(events).result(60) == [True, True]
    assert [item.request.request_id for item in engine.store.joined()] == ["a", "b", "c"]
    assert engine.recorder.num_lost == 0


def test_bundle_that_has_a_column_as_another_kind_takes_the_stores_ads(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_ad: Callable[..., StoredAd],
    make_hashed: Callable[[str], Bundle],
) -> None:
    engine = make_engine()
    engine.put_ad(make_ad("mine", columns={"price": 3.0}, popularity=1e6))

    engine.swap(make_hashed("price"), replaces=engine.live.served.release)

    assert _rank(engine, make_query()).served.shown[0].columns["price"] == "3"


def test_shadow_that_has_a_column_as_another_kind_scores(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_hashed: Callable[[str], Bundle],
) -> None:
    engine = make_engine()
    query = make_query()
    answer = _rank(engine, query)
    assert answer.served.columns["user_requests"] == 0.0
    engine.put_beside(make_hashed("user_requests"), control=engine.live.served.release)
    shadow = Shadow(engine, DriftWatch())
    shadow.offer(query, answer)
    until = time.monotonic() + 60
    while not (shadow.report().scored or shadow.report().failed) and time.monotonic() < until:
        time.sleep(0.01)
    shadow.close()

    assert (shadow.report().scored, shadow.report().failed) == (1, 0)


def test_request_that_was_checked_before_a_swap_is_answered_by_what_it_was_checked_against(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query], bundles: Path
) -> None:
    engine = make_engine()
    live = engine.live
    engine.swap(read_bundle(bundles / "second"), replaces=live.served.release)

    futures = [engine.rank(make_query(str(k)), which)
               for k in range(6) for which in (live, engine.live)]  # fmt: skip

    releases = [future.result(60).release for future in futures]
    assert releases == [live.served.release, engine.live.served.release] * 6


@dataclass(frozen=True, slots=True)
class _Took:
    name: str
    elapsed_ms: float
    fallback: str = ""


def _pace_of(ms: float, *, max_batch: int = 1) -> Pace:
    """As if every request had taken so long."""
    pace = Pace({}, max_batch)
    pace.observe(1, ms, ())
    return pace


class Nobody(Arrivals):
    """As if requests came one by one, however they do."""

    def counted(self, now: float, memory_s: float) -> float:
        del now, memory_s
        return 0.0


class Slow:
    """A stage that waits until it may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.entered = threading.Event()

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        self.entered.set()
        assert self.may_go_on.wait(60)
        return Scored(candidates=candidates)


def test_final_stage_that_hangs_falls_back_within_its_budget(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine, stage = make_engine(), Slow()
    early = [item["ads"] for item in _rank(engine, make_query()).stages()]
    _with_stage(engine, stage, budget_ms=50.0)
    started = time.perf_counter()

    answers = [_rank(engine, make_query()) for _ in range(3)]

    for answer in answers:
        assert answer.stages()[2]["fallback"] == "took longer than 50 ms"
        # The early stage's order, and its predictions in the auction.
        assert answer.stages()[2]["ads"] == early[1][:8]
        assert len(answer.ads) == 3
        assert all(item.value is not None for item in answer.ads)
    # Three budgets, and time for a busy machine.
    assert time.perf_counter() - started < 3 * 0.05 + 5
    stage.may_go_on.set()


def test_who_would_wait_too_long_is_turned_away_at_once(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query], watched: Any
) -> None:
    engine, stage = make_engine(max_wait_ms=30_000.0, max_batch=1), Slow()
    _with_stage(engine, stage, budget_ms=None)
    engine._pace, engine._arrivals = _pace_of(10_000.0), Nobody()

    futures: list[Future[Answer]] = [engine.rank(make_query("0"), engine.live)]
    assert stage.entered.wait(60)
    # What runs takes ten seconds more, and so does each of those before: 10, 20 and 30 at most.
    futures += [engine.rank(make_query(str(k)), engine.live) for k in range(1, 4)]
    with pytest.raises(RefusedError, match=r"must have time for the request") as got:
        engine.rank(make_query("4"), engine.live)

    assert (got.value.status, got.value.retry_after_s) == (503, 1)
    assert (watched.num_turned_away, engine.num_waiting) == (1, 3)
    stage.may_go_on.set()
    assert [len(future.result(60).ads) for future in futures] == [3] * 4


def test_who_comes_in_a_rush_waits_less(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine, stage = make_engine(max_wait_ms=100_000.0, max_batch=1), Slow()
    _with_stage(engine, stage, budget_ms=None)
    engine._pace = _pace_of(10_000.0)

    futures = [engine.rank(make_query("0"), engine.live)]
    assert stage.entered.wait(60)
    # The third is the third in ten seconds, which suffice for one: it may wait 100 / 9 seconds, but
    # would wait for 20. The second may wait for 25 and does for 10.
    futures.append(engine.rank(make_query("1"), engine.live))
    for number in range(2, 5):
        with pytest.raises(RefusedError, match=r"must have time for the request"):
            engine.rank(make_query(str(number)), engine.live)
    # Whoever is turned away counts, and long after them nobody does.
    assert engine._arrivals.counted(time.perf_counter(), 10.0) == pytest.approx(5.0, rel=0.1)
    engine._arrivals = Nobody()
    futures.append(engine.rank(make_query("5"), engine.live))
    stage.may_go_on.set()

    assert [len(future.result(60).ads) for future in futures] == [3] * 3


def test_who_comes_shares_the_batch_of_those_who_wait(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine, stage = make_engine(max_wait_ms=15_000.0, max_batch=4), Slow()
    _with_stage(engine, stage, budget_ms=None)
    engine._pace, engine._arrivals = _pace_of(10_000.0, max_batch=4), Nobody()
    engine._pace.observe(4, 10_000.0, ())

    first = engine.rank(make_query("0"), engine.live)
    assert stage.entered.wait(60)
    # Four of them share the batch after the one that runs; a fifth would wait for both.
    four = [engine.rank(make_query(str(k)), engine.live) for k in range(1, 5)]
    assert engine.is_full
    with pytest.raises(RefusedError, match=r"must have time for the request"):
        engine.rank(make_query("5"), engine.live)
    stage.may_go_on.set()

    assert [len(future.result(60).ads) for future in (first, *four)] == [3] * 5


def test_batches_are_as_large_as_the_stages_budgets_allow(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, gate = make_engine(max_batch=8), Slow()
    sizes: list[int] = []

    class Counting:
        def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
            assert gate.may_go_on.wait(60)
            gate.entered.set()
            sizes.append(1)
            return Scored(candidates=candidates)

        def score_all(self, requests: Any, candidates: Any, keep: int) -> list[Scored]:
            sizes.append(len(requests))
            return [Scored(candidates=its) for its in candidates]

    _with_stage(engine, Counting(), budget_ms=60_000.0)
    engine._pace = Pace({"final": 60_000.0}, 8)
    # Ten seconds each: three together stay within half of a minute, four do not.
    engine._pace.observe(1, 1.0, (_Took("final", 10_000.0),))
    monkeypatch.setattr(engine._pace, "observe", lambda *_: None)
    first = engine.rank(make_query("0"), engine.live)
    while engine.num_waiting:
        time.sleep(0.001)
    waiting = [engine.rank(make_query(str(k)), engine.live) for k in range(1, 5)]
    gate.may_go_on.set()

    for future in (first, *waiting):
        future.result(60)
    assert sizes[:2] == [1, 3]


def test_who_has_waited_too_long_is_turned_away_unanswered(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query], watched: Any
) -> None:
    engine, stage = make_engine(max_wait_ms=100.0, max_batch=1), Slow()
    _with_stage(engine, stage, budget_ms=None)
    engine._pace = _pace_of(0.0)
    first = engine.rank(make_query("0"), engine.live)
    assert stage.entered.wait(60)
    second = engine.rank(make_query("1"), engine.live)
    time.sleep(0.15)
    stage.may_go_on.set()

    assert len(first.result(60).ads) == 3
    with pytest.raises(RefusedError, match="must have time"):
        second.result(60)
    assert watched.num_turned_away == 1


def test_store_that_is_away_costs_the_past_and_not_the_answer(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    watched: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    asked: list[str] = []

    def away(user: str) -> dict[str, int]:
        asked.append(user)
        raise StoreError("away")

    monkeypatch.setattr(engine._store, "counts", away)
    answers = [_rank(engine, make_query(str(k), user=str(k))) for k in range(5)]

    assert all(len(answer.ads) == 3 for answer in answers)
    assert watched.num_past_missing == 5
    # It is left alone for a while, since each question may take long to fail.
    assert len(asked) < 5
    monkeypatch.undo()
    engine._ask_store_from = 0.0
    assert _rank(engine, make_query("again")).ads
    assert watched.num_past_missing == 5


def test_unforeseen_failure_is_told_and_the_next_request_answered(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = make_engine()
    broken = make_query(columns={"user_requests": object()})

    with pytest.raises(Exception, match="object"):
        _rank(engine, broken)

    assert "a request could not be answered" in caplog.text
    assert "object" not in caplog.text
    assert _rank(engine, make_query()).ads


def test_failure_of_one_costs_none_of_those_who_share_its_batch(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine, stage = make_engine(max_batch=8), Slow()
    whole = engine.live
    _with_stage(engine, stage, budget_ms=None)
    first = engine.rank(make_query("first"), engine.live)
    assert stage.entered.wait(60)
    broken = make_query("broken", columns={"user_requests": object()})
    queries = [make_query("a"), broken, make_query("b")]
    futures = [engine.rank(query, whole) for query in queries]
    stage.may_go_on.set()

    assert first.result(60).ads
    assert futures[0].result(60).ads
    assert futures[2].result(60).ads
    with pytest.raises(Exception, match="object"):
        futures[1].result(60)


def test_closing_answers_what_waits_and_then_nobody(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine = make_engine()
    futures = [engine.rank(make_query(str(k)), engine.live) for k in range(10)]
    engine.close()

    assert all(future.result(0).ads for future in futures)
    assert len(list(engine._store.joined())) == 10
    assert not engine.is_alive
    with pytest.raises(RefusedError, match="must have time"):
        engine.rank(make_query(), engine.live)


def test_those_who_answer_and_their_stages_compute_alone(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    seen: list[int] = []

    def look(request: Request, candidates: Candidates, keep: int) -> Scored:
        seen.append(torch.get_num_threads())
        return Scored(candidates=candidates)

    for threads, budget_ms in ((2, None), (2, 60_000.0), (1, None), (1, 60_000.0)):
        engine = make_engine(threads=threads)
        _with_stage(engine, look, budget_ms)
        _rank(engine, make_query())

    assert seen == [1, 1, 1, 1]


@pytest.mark.parametrize("budget_ms", [None, 60_000.0])
def test_threads_answer_at_the_same_time(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query], budget_ms: float | None
) -> None:
    engine, together = make_engine(threads=2, max_batch=1), threading.Barrier(2, timeout=60)

    def meet(request: Request, candidates: Candidates, keep: int) -> Scored:
        del request, keep
        together.wait()
        return Scored(candidates=candidates)

    _with_stage(engine, meet, budget_ms)

    futures = [engine.rank(make_query(str(k)), engine.live) for k in range(4)]

    for future in futures:
        assert [stage["fallback"] for stage in future.result(60).stages()] == [""] * 3


def _hold_two(engine: Engine) -> list[Slow]:
    """Let the first two batches wait, each in a stage of its own, and the others pass."""
    stages = [Slow(), Slow()]
    places = iter(stages)

    def wait(request: Request, candidates: Candidates, keep: int) -> Scored:
        stage = next(places, None)
        return Scored(candidates=candidates) if stage is None else stage(request, candidates, keep)

    _with_stage(engine, wait, budget_ms=None)
    return stages


def test_two_threads_halve_the_wait(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine = make_engine(threads=2, max_wait_ms=25_000.0, max_batch=1)
    stages = _hold_two(engine)
    engine._pace, engine._arrivals = _pace_of(10_000.0), Nobody()
    futures = [engine.rank(make_query(str(k)), engine.live) for k in range(2)]
    assert all(stage.entered.wait(60) for stage in stages)

    # Both are at work for ten seconds, then two at a time: waits of 10, 10, 20, 20 and 30.
    futures += [engine.rank(make_query(str(k)), engine.live) for k in range(2, 6)]
    with pytest.raises(RefusedError, match="must have time"):
        engine.rank(make_query("6"), engine.live)

    for stage in stages:
        stage.may_go_on.set()
    assert [len(future.result(60).ads) for future in futures] == [3] * 6


def test_wait_is_that_of_whole_batches_on_the_threads_that_are_free_first(
    make_engine: Callable[..., Engine], make_query: Callable[..., Query]
) -> None:
    engine = make_engine(threads=2, max_wait_ms=25_000.0, max_batch=3)
    stages = _hold_two(engine)
    engine._pace, engine._arrivals = _pace_of(10_000.0, max_batch=3), Nobody()
    engine._pace.observe(3, 10_000.0, ())
    futures = []
    for number, stage in enumerate(stages):
        futures.append(engine.rank(make_query(str(number)), engine.live))
        assert stage.entered.wait(60)
    first, second = sorted(range(2), key=lambda number: engine._busy_until[number])
    engine._busy_until[second] = engine._busy_until[first] + 14.0

    # Three wait 10 seconds for the first thread, three 20 for it, three 24 for the second; a tenth
    # would wait 30 for the first again.
    futures += [engine.rank(make_query(str(k)), engine.live) for k in range(2, 11)]
    with pytest.raises(RefusedError, match="must have time"):
        engine.rank(make_query("11"), engine.live)

    for stage in stages:
        stage.may_go_on.set()
    assert [len(future.result(60).ads) for future in futures] == [3] * 11


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"threads and max_batch must be at least 1"):
        EngineSettings(max_wait_ms=0.0)
