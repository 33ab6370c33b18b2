"""One turn of the loop: events of a store, stages trained further, judged, published, served.

A turn may be killed at any moment and begun again: what was finished is kept, and what others can
see, a bundle beside the others and a server that changed, happens once.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tamis import artifacts
from tamis.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DivergedError,
    RefreshRefusedError,
    RunInUseError,
)
from tamis.funnel.bundle import Bundle, read_bundle, write_bundle
from tamis.refreshing.learn import Lesson, learn, log_schema
from tamis.refreshing.ledger import Ledger, Round
from tamis.refreshing.server import Server
from tamis.serving.joined_log import write_joined_log
from tamis.serving.refused import RefusedError
from tamis.serving.shelf import take_bundle
from tamis.serving.store import EVERYTHING, Store, Window
from tamis.training.loop import Observer

_VALID, _TEST = 0.1, 0.1
"""Shares of a round's requests that calibrate, and that judge: the newest ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshSettings:
    """When there is enough to learn from, and when what was learnt is good enough."""

    tolerance: float = 0.01
    """Largest relative increase of a stage's loss on the newest requests, over all of its tasks.
    At least 0."""
    least_requests: int = 1000
    """Fewest new requests with events that a round begins with. At least 10."""
    settle_minutes: float = 60.0
    """How long a request waits for its events before it is learnt from; later ones do not count.
    At least 0, which counts all that are there."""
    settings: tuple[str, ...] = ()
    """Overrides of the stages' recipes, such as ``training.max_epochs=3``."""

    def __post_init__(self) -> None:
        settles = 0 <= self.settle_minutes < math.inf
        if not self.tolerance >= 0 or self.least_requests < 10 or not settles:
            raise ConfigError(
                f"refresh: tolerance and settle_minutes must be at least 0, settle_minutes finite "
                f"and least_requests at least 10, got tolerance={self.tolerance!r}, "
                f"settle_minutes={self.settle_minutes!r}, least_requests={self.least_requests!r}."
            )

    @property
    def settle_micros(self) -> int:
        """``settle_minutes`` in microseconds."""
        return round(self.settle_minutes * 60e6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refreshed:
    """How a turn ended."""

    outcome: Literal["live", "published", "nothing"]
    """The server took the new bundle; it was published, and nobody was told; too little is new."""
    turn: Round | None
    """The round; None for ``nothing``."""
    new_requests: int = 0
    """New requests with events, for ``nothing``."""
    old_requests: int = 0
    """Those that are not new by the time of the bundle's last row, for ``nothing``."""


def refresh(
    bundle: Path,
    store: Store,
    work: Path,
    settings: RefreshSettings,
    *,
    server: Server | None = None,
    say: Callable[[str], None],
    observer: Observer | None = None,
) -> Refreshed:
    """Learn from what came since the last refresh, and serve it if it is no worse.

    What is trained further is the bundle that the server serves or, without a server, the newest
    that was published here. Its release says how far it has learnt: after a roll-back the next
    round begins where the bundle that serves again was left. One that no round made has learnt from
    the requests until its ``trained_until``.

    Args:
        bundle: Where the loop began. New bundles appear beside it, as ``<name>-0001`` and so on.
        store: Requests and events.
        work: Folder of the ledger, and of the newest round's logs, datasets and runs.
        settings: When to learn, and when to accept.
        server: Serves a bundle that lies beside ``bundle``; None: bundles are only published.
        say: Told what happens.
        observer: Draws the progress of trainings.

    Raises:
        ConfigError: No bundle has ever served with the store, or that of the server, or of the
            round that goes on, is not there.
        DataError: The events of the round do not suffice to learn from, or training on them
            diverged, now or when it was last tried with these settings and too few have come since.
        RefreshRefusedError: The new bundle is worse than the one that serves, now or when it was
            last tried, too few have come since and the tolerance is as strict.
        RunInUseError: Another process refreshes in this folder.
        ServerError: The server cannot be reached, or refuses.
        TamisError: As reading the store, training and publishing do.
    """
    _check_place(bundle, store)
    with _only_one(work):
        ledger = Ledger(work)
        serving = _serving(bundle, ledger, server)
        turn = _unfinished(ledger, serving.release, has_server=server is not None)
        if turn is None:
            old = _old_requests(ledger, serving, store)
            if len(old):
                say(_left_out(len(old), serving))
            after = _learnt_until(ledger, serving, old)
            turn, fresh = _new_round(ledger, serving, store, settings, after)
            if turn is not None:
                ledger.add(turn)
                _remove_rounds(work, but=turn.number)
            else:
                turn = _judged_again(ledger, serving.release, settings)
                if turn is None:
                    return Refreshed(
                        outcome="nothing", turn=None, new_requests=fresh, old_requests=len(old)
                    )
        say(f"round {turn.number}: requests {turn.after + 1} to {turn.until} of the store")
        if turn.status == "open":
            turn = _learn(ledger, turn, bundle, serving, store, work, settings, say, observer)
        if turn.status == "published" and server is not None:
            server.change(replaces=turn.base, release=turn.release)
            turn = ledger.update(status="live")
    return Refreshed(outcome="live" if turn.status == "live" else "published", turn=turn)


@contextlib.contextmanager
def _only_one(work: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(artifacts.folder_lock(work))
        except RunInUseError as error:
            raise RunInUseError(
                f"{work}: must not be in use by another refresh, got one that is alive. Wait for "
                f"it, or stop it; the next one goes on where it was."
            ) from error
        yield


def _check_place(bundle: Path, store: Store) -> None:
    """Refuse a mistyped bundle or store before a folder is made for them."""
    if artifacts.kind_of(bundle) != "bundle":
        raise ArtifactError(
            f"{bundle}: must be a finished bundle, got none. Name the folder that tamis publish "
            f"wrote."
        )
    if store.newest_schema() is None:
        # A file that is not there is made, and would be an empty store for ever.
        raise ConfigError(
            f"{store.url}: must be the store of a server, got one that no bundle has served with. "
            f"Give the server's own --store."
        )


def _serving(bundle: Path, ledger: Ledger, server: Server | None) -> Bundle:
    """What the next round begins from, or what an open one has begun from."""
    if server is not None:
        return _beside(bundle, server.release(), "that the server serves")
    last = ledger.last
    if last is not None and last.status == "open":
        # Not the newest one if a server had been rolled back when the round began.
        return _beside(bundle, last.base, f"that round {last.number} began with")
    done = [turn for turn in ledger.rounds if turn.status in ("published", "live")]
    return read_bundle(Path(done[-1].bundle) if done else bundle)


def _beside(bundle: Path, release: str, which: str) -> Bundle:
    folder = bundle.resolve().parent
    try:
        return take_bundle(folder, release)
    except RefusedError as error:
        raise ConfigError(
            f"{folder}: must hold the bundle {which}, release {release[:12]}, got none of it. Put "
            f"it there, or name a bundle in the folder where it is."
        ) from error


def _unfinished(ledger: Ledger, serving: str, *, has_server: bool) -> Round | None:
    """The newest round, if there is something left to do for it."""
    turn = ledger.last
    if turn is None or turn.status in ("failed", "refused", "live", "overtaken"):
        return None
    if turn.status == "published":
        if not has_server:
            return None
        if serving == turn.release:
            # It was killed between the server's answer and the ledger.
            return ledger.update(status="live")
    if serving != turn.base:
        ledger.update(status="overtaken")
        return None
    return turn


def _new_round(
    ledger: Ledger, serving: Bundle, store: Store, settings: RefreshSettings, after: int
) -> tuple[Round | None, int]:
    """The next round, or None and how many new requests there are."""
    before_micros = time.time_ns() // 1_000 - settings.settle_micros
    numbers = store.requests_with_events(Window(after=after), before_micros=before_micros)
    rounds = _tried_alike(ledger, settings)
    seen = max((turn.until for turn in rounds if turn.status != "overtaken"), default=0)
    fresh = int((numbers > seen).sum())
    if fresh < settings.least_requests:
        return None, fresh
    count = len(numbers)
    turn = Round(
        number=len(ledger.rounds) + 1,
        base=serving.release,
        after=after,
        trained_until=int(numbers[round(count * (1 - _VALID - _TEST)) - 1]),
        valid_until=int(numbers[round(count * (1 - _TEST)) - 1]),
        until=int(numbers[-1]),
    )
    return turn, fresh


def _old_requests(ledger: Ledger, serving: Bundle, store: Store) -> NDArray[np.int64]:
    """Numbers of the requests until the last row of a bundle that no round made."""
    time_micros = serving.blueprint.trained_until
    if time_micros is None or ledger.round_of(serving.release) is not None:
        return np.empty(0, np.int64)
    # It may have been trained from the beginning on a log of this very store.
    return store.requests_with_events(EVERYTHING, before_micros=time_micros + 1)


def _left_out(count: int, serving: Bundle) -> str:
    """What is said of requests that are not learnt from."""
    until_micros = serving.blueprint.trained_until
    assert until_micros is not None  # else none would be old
    until = np.datetime64(until_micros // 10**6, "s")
    said = (
        f"{count:,} requests with events are left out: they were asked until {until} UTC, the time "
        f"of the last row that the bundle was made of"
    )
    if until_micros > time.time_ns() // 1_000:
        said += (
            ", which is yet to come. Times without a zone count as UTC: give those of the log "
            "theirs, and ingest, train and publish anew"
        )
    return said


def _learnt_until(ledger: Ledger, serving: Bundle, old: NDArray[np.int64]) -> int:
    """Number of the last request that a bundle has learnt from; 0: of none."""
    made_by = ledger.round_of(serving.release)
    if made_by is not None:
        return made_by.trained_until
    return int(old[-1]) if len(old) else 0


def _tried_alike(ledger: Ledger, settings: RefreshSettings) -> list[Round]:
    """All rounds but those that failed with other settings, which may be why."""
    tried = _tried(settings)
    return [turn for turn in ledger.rounds if turn.status != "failed" or turn.tried == tried]


def _tried(settings: RefreshSettings) -> tuple[str, ...]:
    """What decides whether a round's events suffice, and whether training on them diverges."""
    return (f"settle_minutes={float(settings.settle_minutes)!r}", *settings.settings)


def _judged_again(ledger: Ledger, serving: str, settings: RefreshSettings) -> Round | None:
    """The newest round, at work again, if it was refused and the tolerance has been raised.

    The ledger keeps the refusal until the round is published.

    Raises:
        DataError: It failed, with these settings.
        RefreshRefusedError: It was refused, and would be again.
    """
    last = next(reversed(_tried_alike(ledger, settings)), None)
    if last is None or last.base != serving:
        return None
    if last.status == "failed":
        raise _failed(last)
    # Of a round before the newest nothing is left that could be published.
    if last.status != "refused" or last != ledger.last:
        return None
    if not _is_accepted(last, settings):
        raise _refused(last)
    return replace(last, status="open")


def _learn(
    ledger: Ledger,
    turn: Round,
    bundle: Path,
    serving: Bundle,
    store: Store,
    work: Path,
    settings: RefreshSettings,
    say: Callable[[str], None],
    observer: Observer | None,
) -> Round:
    """Train, judge and publish an open round."""
    folder = work / _name(turn.number)
    try:
        logs = _write_logs(store, turn, folder / "logs", serving, settings, say)
        lesson = Lesson(logs=logs, folder=folder, settings=settings.settings)
        with artifacts.disk_errors(folder):
            learnt = learn(serving.blueprint, lesson, say=say, observer=observer)
    except (DataError, DivergedError) as error:
        # Its logs stay as they are: with the same settings it would fail in this way again.
        failed = ledger.update(status="failed", problem=str(error), tried=_tried(settings))
        raise _failed(failed) from error
    turn = ledger.update(losses=learnt.losses)
    if not _is_accepted(turn, settings):
        raise _refused(ledger.update(status="refused"))
    if not turn.bundle:
        # Noted before it is written, so that a bundle found there is known to be this one.
        turn = ledger.update(bundle=str(_free_folder(bundle.resolve(), turn.number)))
    out = Path(turn.bundle)
    if artifacts.kind_of(out) == "bundle":
        release = read_bundle(out).release
    else:
        release = write_bundle(out, learnt.blueprint)
    say(f"published: {out}")
    return ledger.update(status="published", release=release)


def _write_logs(
    store: Store,
    turn: Round,
    folder: Path,
    serving: Bundle,
    settings: RefreshSettings,
    say: Callable[[str], None],
) -> dict[str, Path]:
    """A log for each part of the round; events that come later change none of them."""
    schema = log_schema(serving.blueprint)
    windows = {
        "train": Window(after=turn.after, until=turn.trained_until),
        "valid": Window(after=turn.trained_until, until=turn.valid_until),
        "test": Window(after=turn.valid_until, until=turn.until),
    }
    logs, late = {}, 0
    for name, window in windows.items():
        logs[name] = folder / f"{name}.parquet"
        if not logs[name].exists():
            report = write_joined_log(
                store,
                schema,
                logs[name],
                window=window,
                # One wait for all: the newest, which calibrate and judge, have had no longer.
                attribution_micros=settings.settle_micros or None,
            )
            late += report.late
    if late:
        say(f"{late:,} events do not count: later than --settle-minutes after their request")
    return logs


def _free_folder(bundle: Path, number: int) -> Path:
    out = bundle.with_name(f"{bundle.name}-{number:04d}")
    if out.exists():
        raise DataError(
            f"{out}: must be free for the new bundle, got another one's files. Move it away."
        )
    return out


def _remove_rounds(work: Path, *, but: int) -> None:
    """Remove logs, datasets and runs of rounds that are over; the ledger keeps what they gave."""
    for number in range(1, but):
        shutil.rmtree(work / _name(number), ignore_errors=True)


def _name(number: int) -> str:
    return f"round-{number:04d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Total:
    """A stage's loss over all its tasks, nats a row."""

    stage: str
    rows: int
    serving: float
    refreshed: float


def _worst(turn: Round) -> _Total | None:
    """The stage whose loss rose most; None where nothing could be compared.

    All tasks together, each with as many rows as have its label: that is how likely the newest
    rows are. Judged one by one, the few conversions of a round would decide by chance.
    """
    totals = []
    for stage in dict.fromkeys(loss.stage for loss in turn.losses):
        own = [loss for loss in turn.losses if loss.stage == stage]
        rows = max(loss.rows for loss in own)
        serving, refreshed = (
            sum(loss.rows * getattr(loss, which) for loss in own) / rows
            for which in ("serving", "refreshed")
        )
        totals.append(_Total(stage=stage, rows=rows, serving=serving, refreshed=refreshed))
    return max(
        totals,
        key=lambda total: (total.refreshed - total.serving) / max(total.serving, 1e-12),
        default=None,
    )


def _is_accepted(turn: Round, settings: RefreshSettings) -> bool:
    worst = _worst(turn)
    return worst is not None and worst.refreshed <= worst.serving * (1 + settings.tolerance)


def _failed(turn: Round) -> DataError:
    return DataError(
        f"round {turn.number}: {turn.problem} What serves goes on; a round of all these requests "
        f"and later ones begins once --least-requests new ones have come, or with another "
        f"--settle-minutes or --set."
    )


def _refused(turn: Round) -> RefreshRefusedError:
    worst = _worst(turn)
    if worst is None:
        return RefreshRefusedError(
            f"round {turn.number}: the newest requests must have labels to judge by, got none. "
            f"What serves goes on. Wait for more events."
        )
    return RefreshRefusedError(
        f"round {turn.number}: the refreshed stage {worst.stage!r} must not be worse than the one "
        f"that serves by more than the tolerance, got a loss of {worst.refreshed:.5f} beside "
        f"{worst.serving:.5f} on the {worst.rows:,} newest rows. What serves goes on; look at the "
        f"events of that time, or raise --tolerance."
    )
