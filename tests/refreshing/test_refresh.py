"""Turns of the loop: what is learnt, from which requests, once each, wherever it was killed."""

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tamis import artifacts
from tamis.data.ingest import encode_log
from tamis.data.loader import batches_of_rows
from tamis.errors import (
    ConfigError,
    DataError,
    RefreshRefusedError,
    RunInUseError,
    ServerError,
    StorageError,
)
from tamis.funnel.bundle import read_bundle, write_bundle
from tamis.models.weights import weights_fingerprint
from tamis.refreshing import refresh as module
from tamis.refreshing.ledger import Ledger, Losses, Round
from tamis.refreshing.refresh import Refreshed, RefreshSettings, refresh
from tamis.serving.records import Event
from tamis.serving.store import Store

pytestmark = pytest.mark.slow

# A hundred rows tell little: only what they are to refuse is refused.
LOOSE = RefreshSettings(
    tolerance=0.5, least_requests=20, settle_minutes=0, settings=("training.batch_size=128",)
)
FAST = replace(
    LOOSE,
    settings=(
        "training.batch_size=128",
        "training.max_epochs=4",
        "optimizer.embedding_lr=0.1",
        "optimizer.dense_lr=0.01",
    ),
)


class FakeServer:
    """Serves a release, and remembers every change."""

    def __init__(self, release: str) -> None:
        self.serves, self.changes = release, []
        self.dies_after_change = False

    def release(self) -> str:
        return self.serves

    def change(self, *, replaces: str, release: str) -> None:
        if replaces != self.serves:
            raise ServerError("another serves")
        self.changes.append((self.serves, release))
        self.serves = release
        if self.dies_after_change:
            raise Killed


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def turn(world: Any, say: Callable[[str], None]) -> Callable[..., Refreshed]:
    def run(settings: RefreshSettings = LOOSE, *, of: Any = world, **options: Any) -> Refreshed:
        return refresh(of.bundle, of.store, of.work, settings, say=say, **options)

    return run


def test_both_learning_stages_are_trained_further_and_all_else_stays(
    world: Any, turn: Callable[..., Refreshed], said: list[str]
) -> None:
    found = turn(FAST)

    assert found.outcome == "published"
    assert found.turn is not None
    before, after = (read_bundle(path) for path in (world.bundle, Path(found.turn.bundle)))
    assert Path(found.turn.bundle) == world.bundle.with_name("first-0001").resolve()
    assert after.release == found.turn.release != before.release == found.turn.base
    old, new = before.blueprint, after.blueprint
    assert [stage.budget for stage in old.stages] == [stage.budget for stage in new.stages]
    for place in (1, 2):
        was, now = old.stages[place].plan, new.stages[place].plan
        assert weights_fingerprint(was.model.module) != weights_fingerprint(now.model.module)
        assert (was.model.spec, was.model.config) == (now.model.spec, now.model.config)
        # The recipe is carried on as it was, not with the steps of this turn.
        assert was.model.training == now.model.training != {}
        assert was.settings == now.settings
    # Calibrated before, so calibrated anew; and the early stage was not and is not.
    assert new.stages[2].plan.calibration.by_task.keys() == {"click", "conversion", "hide"}
    assert new.stages[2].plan.calibration != old.stages[2].plan.calibration
    assert not new.stages[1].plan.calibration.by_task
    assert np.array_equal(old.inventory.codes, new.inventory.codes)
    assert (old.weights, old.reserve, old.online) == (new.weights, new.reserve, new.online)
    by_name = {(loss.stage, loss.task): loss for loss in found.turn.losses}
    assert {stage for stage, _ in by_name} == {"early", "final"}
    # Users click even ids, which the first bundle knows nothing of.
    click = by_name["final", "click"]
    assert click.refreshed < 0.8 * click.serving
    assert any("final stage learns" in line for line in said)
    # Who converts is drawn by lot, which no map can be fitted to.
    kept = [line for line in said if "'conversion': keeps the calibration that serves" in line]
    maps = [blueprint.stages[2].plan.calibration.by_task for blueprint in (old, new)]
    assert (maps[0]["conversion"] == maps[1]["conversion"]) == (len(kept) == 1)
    assert maps[0]["click"] != maps[1]["click"]


def test_losses_are_those_of_the_served_predictions_on_the_newest_rows(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    found = turn(FAST)

    assert found.turn is not None
    log = pq.read_table(world.work / "round-0001" / "logs" / "test.parquet").to_pylist()
    clicks = np.array([row["click"] for row in log], float)
    ads = [row["ad_id"] for row in log]
    for which, path in (("serving", world.bundle), ("refreshed", Path(found.turn.bundle))):
        blueprint = read_bundle(path).blueprint
        plan, inventory = blueprint.stages[2].plan, blueprint.inventory
        (rows,) = encode_log(
            world.work / "round-0001" / "logs" / "test.parquet", blueprint.encoders
        )
        (batch,) = batches_of_rows(rows, blueprint.encoders.spec, batch_size=10_000)
        logits = plan.model.module(batch).logits[:, 0].detach().double().numpy()
        raw_ids = inventory.raw["ad_id"].to_pylist()
        billing = [str(inventory.attributes.billing[[str(i) for i in raw_ids].index(ad)])
                   for ad in ads]  # fmt: skip
        probabilities = plan.calibration.apply(
            {"click": 1 / (1 + np.exp(-logits))}, np.array(billing)
        )["click"]
        expected = -np.mean(
            clicks * np.log(probabilities) + (1 - clicks) * np.log(1 - probabilities)
        )
        (loss,) = (x for x in found.turn.losses if (x.stage, x.task) == ("final", "click"))
        assert loss.rows == len(log)
        assert getattr(loss, which) == pytest.approx(expected, rel=1e-5)


def test_round_is_cut_at_requests_in_the_order_in_which_they_came(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    found = turn()

    made = found.turn
    assert made is not None
    assert (made.after, made.trained_until, made.valid_until, made.until) == (0, 120, 135, 150)
    logs = world.work / "round-0001" / "logs"
    requests = [
        set(pq.read_table(logs / f"{name}.parquet", columns=["request_id"])[0].to_pylist())
        for name in ("train", "valid", "test")
    ]
    expected = [range(1, 121), range(121, 136), range(136, 151)]
    assert requests == [{f"r{number}" for number in part} for part in expected]


def test_next_round_learns_what_the_one_before_was_judged_by(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    first = turn().turn
    assert turn().outcome == "nothing"
    world.tell(30)

    second = turn().turn

    assert first is not None
    assert second is not None
    assert second.base == first.release
    assert (second.after, second.until) == (120, 180)
    assert Path(second.bundle).name == "first-0002"
    # Files of rounds that are over go, and what they gave stays.
    assert not (world.work / "round-0001").exists()
    assert [item.number for item in Ledger(world.work).rounds] == [1, 2]


@pytest.mark.parametrize("number", [100, 150])
def test_bundle_that_was_trained_on_the_store_learns_from_later_requests_only(
    world: Any, turn: Callable[..., Refreshed], said: list[str], number: int
) -> None:
    times = [item.request.time_micros for item in world.store.joined()]
    blueprint = read_bundle(world.bundle).blueprint
    shutil.rmtree(world.bundle)
    write_bundle(world.bundle, replace(blueprint, trained_until=times[number - 1]))

    found = turn()

    last = np.datetime64(times[number - 1] // 10**6, "s")
    assert said[0] == (
        f"{number} requests with events are left out: they were asked until {last} UTC, the time "
        f"of the last row that the bundle was made of"
    )
    if number == 150:
        assert (found.outcome, found.new_requests, found.old_requests) == ("nothing", 0, 150)
    else:
        assert found.turn is not None
        assert (found.turn.after, found.turn.trained_until, found.turn.until) == (100, 140, 150)


def test_bundle_of_a_log_in_local_time_says_why_nothing_is_learnt(
    world: Any, turn: Callable[..., Refreshed], said: list[str]
) -> None:
    until = time.time_ns() // 1_000 + 9 * 3_600_000_000
    blueprint = read_bundle(world.bundle).blueprint
    shutil.rmtree(world.bundle)
    write_bundle(world.bundle, replace(blueprint, trained_until=until))

    assert turn().outcome == "nothing"
    assert re.match("150 requests .* yet to come. Times without a zone count as UTC: give", said[0])


def test_too_few_new_requests_are_left_for_later(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    found = turn(replace(LOOSE, least_requests=151))

    assert (found.outcome, found.new_requests) == ("nothing", 150)
    assert not (world.work / "round-0001").exists()


def test_requests_wait_for_their_events(world: Any, turn: Callable[..., Refreshed]) -> None:
    world.tell(40, hours_ago=0.5)

    found = turn(replace(LOOSE, settle_minutes=60))

    assert found.turn is not None
    assert found.turn.until == 150


def test_conversion_that_comes_later_than_its_request_waited_is_none_in_every_log(
    world: Any, turn: Callable[..., Refreshed], said: list[str]
) -> None:
    ads = {item.request.request_id: item.request.shown[0].ad for item in world.store.joined()}
    times = {f"r{number}": item.request.time_micros
             for number, item in enumerate(world.store.joined(), start=1)}  # fmt: skip
    late = [
        Event(event_id=f"{name} late", kind="conversion", ad=ads[name], user=None,
              request_id=name, time_micros=times[name] + 45 * 60_000_000)
        for name in ("r10", "r125", "r140")
    ]  # fmt: skip
    converted = {
        (item.request.request_id, event.ad)
        for item in world.store.joined()
        for event in item.events
        if event.kind == "conversion"
    }
    world.store.append([], late)

    found = turn(replace(LOOSE, settle_minutes=30))

    assert found.turn is not None
    rows = [
        row
        for name in ("train", "valid", "test")
        for row in pq.read_table(world.work / "round-0001" / "logs" / f"{name}.parquet").to_pylist()
    ]
    assert {(row["request_id"], row["ad_id"]) for row in rows if row["conversion"]} == converted
    assert any(line.startswith("3 events do not count: later than") for line in said)


def test_worse_bundle_is_refused_and_the_verdict_stands_until_something_is_new(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    server = FakeServer(read_bundle(world.bundle).release)
    # With such long steps nothing is left of what was learnt.
    harmful = replace(
        LOOSE, settings=("training.batch_size=64", "optimizer.dense_lr=100", "training.patience=1")
    )

    message = (
        r"round 1: the refreshed stage '\w+' must not be worse .* got a loss of [\d.]+ beside "
        r"[\d.]+ on the [\d,]+ newest rows"
    )
    with pytest.raises(RefreshRefusedError, match=message) as one:
        turn(harmful, server=server)
    with pytest.raises(RefreshRefusedError) as two:
        turn(harmful, server=server)

    assert str(one.value) == str(two.value)
    assert server.changes == []
    assert [path.name for path in world.bundle.parent.iterdir()] == ["first"]
    assert Ledger(world.work).rounds[-1].status == "refused"
    # What came of it was learnt by nobody, so that the next round begins where this one did.
    world.tell(25)
    again = turn(server=server)
    assert again.outcome == "live"
    assert again.turn is not None
    assert (again.turn.number, again.turn.after, again.turn.until) == (2, 0, 175)


def test_refused_round_is_published_once_the_tolerance_is_raised(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    server = FakeServer(read_bundle(world.bundle).release)
    harmful = replace(
        LOOSE, settings=("training.batch_size=64", "optimizer.dense_lr=100", "training.patience=1")
    )
    with pytest.raises(RefreshRefusedError, match="or raise --tolerance"):
        turn(harmful, server=server)
    (refused,) = Ledger(world.work).rounds

    # Runs of the round go on with their own settings only; that leaves the verdict as it is.
    with pytest.raises(ConfigError):
        turn(replace(LOOSE, tolerance=1e9), server=server)
    assert Ledger(world.work).rounds == (refused,)

    found = turn(replace(harmful, tolerance=1e9), server=server)

    assert found.outcome == "live"
    assert found.turn is not None
    assert (found.turn.number, found.turn.losses) == (1, refused.losses)
    assert server.serves == found.turn.release


def test_round_whose_events_do_not_suffice_fails_until_a_wider_one_begins(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    world.store.close()
    world.store = Store(f"sqlite:///{world.folder / 'young.db'}")
    world.tell(25, converts=False)

    message = r"round 1: .* column 'conversion': training labels must be of both classes"
    with pytest.raises(DataError, match=message) as one:
        turn()
    world.tell(10)
    with pytest.raises(DataError) as two:
        turn()

    assert str(one.value) == str(two.value)
    (failed,) = Ledger(world.work).rounds
    assert (failed.status, failed.until) == ("failed", 25)
    world.tell(150)
    found = turn()
    assert found.outcome == "published"
    assert found.turn is not None
    assert (found.turn.number, found.turn.after, found.turn.until) == (2, 0, 185)


def test_requests_of_a_failed_round_are_tried_again_with_other_settings(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    world.store.close()
    world.store = Store(f"sqlite:///{world.folder / 'young.db'}")
    world.tell(20)
    world.tell(5, converts=False)  # of these two validate
    by_ne, by_auc, by_log_loss = (
        replace(
            LOOSE,
            settings=(
                *LOOSE.settings,
                'training.monitor_tasks=["conversion"]',
                f'training.monitor="{metric}"',
            ),
        )
        for metric in ("ne", "auc", "log_loss")
    )
    for settings, metric in ((by_ne, "ne"), (by_auc, "auc"), (by_ne, "ne")):
        message = f"both classes of 'conversion' for training.monitor='{metric}'.* another --settle"
        with pytest.raises(DataError, match=message):
            turn(settings)
    rounds = Ledger(world.work).rounds
    assert [item.status for item in rounds] == ["failed", "failed"]
    assert rounds[0].tried == ("settle_minutes=0.0", *by_ne.settings)

    # They came two hours ago: with a longer wait there are none yet.
    found = turn(replace(by_log_loss, settle_minutes=180))
    assert (found.outcome, found.new_requests) == ("nothing", 0)
    found = turn(by_log_loss)

    assert found.outcome == "published"
    assert found.turn is not None
    assert (found.turn.number, found.turn.after, found.turn.until) == (3, 0, 25)
    assert (found.turn.problem, found.turn.tried) == ("", ())
    assert turn(by_ne).outcome == "nothing"


def test_round_that_diverged_fails_and_is_tried_again_with_other_settings(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    wild = replace(LOOSE, settings=(*LOOSE.settings, "optimizer.dense_lr=1e38"))

    for _ in range(2):
        with pytest.raises(DataError, match=r"round 1: .* must be finite, got .* optimizer"):
            turn(wild)
    (failed,) = Ledger(world.work).rounds
    assert failed.status == "failed"

    assert turn().outcome == "published"


def test_round_that_storage_stopped_goes_on(
    world: Any, turn: Callable[..., Refreshed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "learn", full)
        with pytest.raises(StorageError):
            turn()

    assert Ledger(world.work).rounds[-1].status == "open"
    found = turn()
    assert found.turn is not None
    assert (found.outcome, found.turn.number) == ("published", 1)


def test_all_tasks_of_a_stage_are_judged_together() -> None:
    def loss(stage: str, task: str, rows: int, serving: float, refreshed: float) -> Losses:
        return Losses(stage=stage, task=task, rows=rows, serving=serving, refreshed=refreshed)

    turn = Round(number=1, base="", after=0, trained_until=1, valid_until=2, until=3)
    few = loss("a", "conversion", 10, 0.5, 0.6)

    # (100 * 0.2 + 10 * 0.5) / 100 = 0.25 before, (100 * 0.19 + 10 * 0.6) / 100 = 0.25 after.
    even = module._worst(replace(turn, losses=(loss("a", "click", 100, 0.2, 0.19), few)))
    assert even is not None
    assert (even.rows, even.serving, even.refreshed) == (100, *[pytest.approx(0.25)] * 2)
    # Of two stages the one that lost more of its own counts, here a tenth beside a twentieth.
    both = (loss("a", "click", 10, 1.0, 1.05), loss("b", "click", 10, 0.1, 0.11))
    assert module._worst(replace(turn, losses=both)).stage == "b"
    assert module._worst(turn) is None


def test_tolerance_is_relative_to_the_loss_that_serves(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    harmful = ("training.batch_size=64", "optimizer.dense_lr=100", "training.patience=1")

    found = turn(replace(LOOSE, settings=harmful, tolerance=1e9))

    assert found.turn is not None
    worst = module._worst(found.turn)
    assert worst.refreshed > 1.5 * worst.serving


def test_server_takes_the_new_bundle_once(world: Any, turn: Callable[..., Refreshed]) -> None:
    first = read_bundle(world.bundle).release
    server = FakeServer(first)

    found = turn(server=server)

    assert found.outcome == "live"
    assert found.turn is not None
    assert server.changes == [(first, found.turn.release)]
    assert turn(server=server).outcome == "nothing"
    assert len(server.changes) == 1


def test_bundle_that_was_only_published_is_served_later(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    server = FakeServer(read_bundle(world.bundle).release)
    published = turn()

    later = turn(server=server)

    assert published.turn is not None
    assert later.outcome == "live"
    assert server.serves == published.turn.release


def test_round_after_a_roll_back_begins_where_the_first_bundle_was_left(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    first = read_bundle(world.bundle).release
    server = FakeServer(first)
    turn(server=server)
    server.serves = first

    assert turn(server=server).outcome == "nothing"
    world.tell(20)
    found = turn(server=server)

    assert found.turn is not None
    assert (found.turn.base, found.turn.after, found.turn.until) == (first, 0, 170)


def test_round_that_another_bundle_overtook_is_given_up(
    world: Any, turn: Callable[..., Refreshed], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_bundle(world.bundle).release
    server = FakeServer(first)
    made = turn(server=server).turn
    assert made is not None
    server.serves = first
    world.tell(20)
    with monkeypatch.context() as patch:
        patch.setattr(module, "learn", _dies)
        with pytest.raises(Killed):
            turn(server=server)
    server.serves = made.release

    found = turn(server=server)

    assert [item.status for item in Ledger(world.work).rounds] == ["live", "overtaken", "live"]
    assert found.turn is not None
    assert (found.turn.base, found.turn.after) == (made.release, 120)


def test_open_round_goes_on_without_a_server_from_the_bundle_that_it_began_with(
    world: Any, turn: Callable[..., Refreshed], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_bundle(world.bundle)
    server = FakeServer(first.release)
    turn(server=server)
    server.serves = first.release
    world.tell(20)
    with monkeypatch.context() as patch:
        patch.setattr(module, "learn", _dies)
        with pytest.raises(Killed):
            turn(server=server)
    bases = []
    real = module.learn

    def learn(base: Any, *arguments: Any, **options: Any) -> Any:
        bases.append(base)
        return real(base, *arguments, **options)

    monkeypatch.setattr(module, "learn", learn)

    found = turn()

    assert found.turn is not None
    assert (found.turn.number, found.turn.base) == (2, first.release)
    (base,) = bases
    ours, theirs = (item.stages[2].plan.model.module for item in (base, first.blueprint))
    assert weights_fingerprint(ours) == weights_fingerprint(theirs)


def test_open_round_whose_first_bundle_is_gone_is_refused(
    world: Any, turn: Callable[..., Refreshed], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = turn().turn
    world.tell(20)
    monkeypatch.setattr(module, "learn", _dies)
    with pytest.raises(Killed):
        turn()
    assert made is not None
    shutil.rmtree(made.bundle)

    message = f"must hold the bundle that round 2 began with, release {made.release[:12]}, got none"
    with pytest.raises(ConfigError, match=message):
        turn()


def test_unknown_release_of_the_server_is_refused(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    with pytest.raises(ConfigError, match="must hold the bundle that the server serves, release f"):
        turn(server=FakeServer("f" * 64))


def test_store_that_no_server_has_used_is_refused(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    world.store.close()
    world.store = Store(f"sqlite:///{world.folder / 'mistyped.db'}")

    with pytest.raises(ConfigError, match=r"mistyped\.db: must be the store of a server, got one"):
        turn()
    assert not world.work.exists()


def test_two_at_once_exclude_each_other(world: Any, turn: Callable[..., Refreshed]) -> None:
    with (
        artifacts.folder_lock(world.work),
        pytest.raises(RunInUseError, match="must not be in use by another refresh"),
    ):
        turn()


def test_killed_between_the_servers_answer_and_the_ledger(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    server = FakeServer(read_bundle(world.bundle).release)
    server.dies_after_change = True
    with pytest.raises(Killed):
        turn(server=server)
    assert Ledger(world.work).rounds[-1].status == "published"

    again = turn(server=server)

    # Nothing is left to do but to write down what is so.
    assert again.outcome == "live"
    assert Ledger(world.work).rounds[-1].status == "live"
    assert len(server.changes) == 1


def test_killed_anywhere_it_ends_with_the_same_release(
    world: Any,
    turn: Callable[..., Refreshed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = read_bundle(world.bundle).release
    replaced: list[Path] = []
    real = os.replace

    def count(source: Any, target: Any, die_at: int = -1) -> None:
        if len(replaced) == die_at:
            raise Killed
        replaced.append(Path(target))
        real(source, target)

    (tmp_path / "whole").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", count)
        whole = turn(of=world.copy(tmp_path / "whole"), server=FakeServer(first)).turn
    assert whole is not None
    steps = list(replaced)
    # A step of each kind: log, dataset, weights, checkpoint, ledger, bundle.
    names = [path.name for path in steps]
    chosen = {names.index(name) for name in ("valid.parquet", "early-data", "first-0001")}
    chosen |= {place for place, name in enumerate(names) if name == "ledger.json"}
    chosen |= {len(steps) // 3, len(steps) // 2, 2 * len(steps) // 3}
    for die_at in sorted(chosen):
        folder = tmp_path / f"killed-{die_at}"
        folder.mkdir()
        copy, server = world.copy(folder), FakeServer(first)
        replaced.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda s, t, at=die_at: count(s, t, at))
            with pytest.raises(Killed):
                turn(of=copy, server=server)

        turn(of=copy, server=server)

        assert server.changes == [(first, whole.release)], names[die_at]
        (made,) = Ledger(copy.work).rounds
        assert (made.status, made.release, made.losses) == ("live", whole.release, whole.losses)
        found = sorted(path.name for path in copy.bundle.parent.iterdir())
        assert found == ["first", "first-0001"]


@pytest.mark.parametrize(
    "changes",
    [
        {"tolerance": -0.1},
        {"least_requests": 9},
        {"settle_minutes": float("nan")},
        {"settle_minutes": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="refresh: tolerance and settle_minutes must be at least"):
        RefreshSettings(**changes)


def test_folder_of_somebody_else_is_not_taken_for_the_new_bundle(
    world: Any, turn: Callable[..., Refreshed]
) -> None:
    (world.bundle.parent / "first-0001").mkdir()

    with pytest.raises(DataError, match="first-0001: must be free for the new bundle"):
        turn()


def _dies(*arguments: object, **options: object) -> None:
    raise Killed
