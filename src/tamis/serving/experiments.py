"""Two bundles at once: one that serves a share of the users, or one that scores without serving.

There is one experiment at a time. Whom the treatment serves hangs on the user's id and on the id of
the experiment, and on nothing that is kept: every server and every restart splits alike. Requests
of users that are not known are in no experiment.
"""

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from tamis.errors import DataError, TamisError
from tamis.evaluation.experiment import (
    ArmDifference,
    ExperimentMetric,
    SampleRatio,
    UserTotals,
    arm_difference,
    sample_ratio,
)
from tamis.evaluation.ratio import Estimate
from tamis.evaluation.sequential import SequentialLooks, always_valid_looks, may_look
from tamis.funnel.ab_test import SplitByUser
from tamis.serving.answers import Answer, Query
from tamis.serving.drift import DriftWatch
from tamis.serving.engine import Engine
from tamis.serving.live import Live
from tamis.serving.live_ads import codes_of
from tamis.serving.records import Arm, Experiment
from tamis.serving.refused import RefusedError
from tamis.serving.shadow import Shadow, ShadowReport
from tamis.serving.shelf import take_bundle

_log = logging.getLogger(__name__)
_DAY_MICROS = 24 * 3_600_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One metric of an experiment as it stands."""

    metric: ExperimentMetric
    """Which."""
    difference: ArmDifference | None
    """Treatment minus control, for one look at the end; None: an arm has too few events yet."""
    guarded: SequentialLooks | None
    """The same for as many looks as one likes, one of which this is; value is per user and day
    here. None: no smallest difference was fixed, or an arm has too few events yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowLook:
    """A shadow as it stands; it is kept in memory, and begins anew with the process."""

    report: ShadowReport
    """What it has done."""
    differences: Mapping[str, Estimate]
    """By task: its log loss minus that of what was served, on the same rows; below 0 it is better.
    For one look at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentLook:
    """An experiment as it stands."""

    plan: Experiment
    """What it is."""
    is_running: bool
    """Whether this server splits or shadows by it now."""
    split: SampleRatio | None
    """Whether users were split as planned; with a mismatch no other number can be trusted. None:
    nobody was exposed."""
    metrics: tuple[Look, ...]
    """Click rate, conversion rate, hide rate and value per user; none of a shadow."""
    shadow: ShadowLook | None
    """What it would have done; None: it is no shadow, or not running here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Running:
    plan: Experiment
    split: SplitByUser
    shadow: Shadow | None


class Experiments:
    """Begins, ends and reads experiments; any thread may call."""

    def __init__(self, engine: Engine, bundles: Path, drift: DriftWatch) -> None:
        """Go on with the experiment that the store knows to be running, where that is possible.

        Args:
            engine: Serves, and keeps the second bundle.
            bundles: Folder of the bundles that may be second.
            drift: Joins answers with events.

        Raises:
            StoreError: The store cannot be reached.
        """
        self._engine, self._bundles, self._drift = engine, bundles, drift
        self._running: _Running | None = None
        self._change = threading.Lock()
        for plan in engine.store.experiments():
            if plan.ended_micros is None:
                try:
                    self._prepare(plan)
                    self._run(plan)
                except TamisError as error:
                    # What serves must start all the same; the look says that it is not running.
                    _log.warning("experiment %s cannot go on: %s", plan.experiment, error)
                break

    @property
    def running(self) -> Experiment | None:
        """The experiment that runs; None where none does."""
        running = self._running
        return None if running is None else running.plan

    @property
    def shadow(self) -> ShadowReport | None:
        """What the shadow has done; None where there is none."""
        running = self._running
        return None if running is None or running.shadow is None else running.shadow.report()

    def choose(self, user: str | None) -> tuple[Live, Arm | None]:
        """What answers a user, and where the request belongs."""
        running, beside = self._running, self._engine.beside
        if running is None or beside is None or user is None or running.plan.kind == "shadow":
            return self._engine.live, None
        is_treated = bool(running.split.is_treated(codes_of([user]))[0])
        arm = Arm(experiment=running.plan.experiment, is_treated=is_treated)
        return (beside if is_treated else self._engine.live), arm

    def served(self, query: Query, answer: Answer) -> None:
        """Let the shadow see what was served, if there is one; never waits."""
        running = self._running
        if running is not None and running.shadow is not None:
            running.shadow.offer(query, answer)

    def start(self, plan: Experiment) -> None:
        """Begin an experiment; whoever asks from now on may be in it.

        Raises:
            RefusedError: One runs already, the id was used before, another release serves, or the
                folder holds no bundle of the treatment.
            StoreError: The store cannot be written; nothing began.
            TamisError: The bundle cannot serve, or values events otherwise than the control.
        """
        with self._change:
            if any(item.ended_micros is None for item in self._engine.store.experiments()):
                raise RefusedError(
                    409, "path.experiment", "must be the only one; another runs. End it first."
                )
            self._prepare(plan)
            try:
                # Before anybody is exposed, so that an exposure always has its experiment.
                is_new = self._engine.store.put_experiment(plan)
            except TamisError:
                self._engine.drop_beside()
                raise
            if not is_new:
                # Its users would be split as they were then, and counted with them.
                self._engine.drop_beside()
                raise RefusedError(
                    409, "path.experiment", "must be new; it was used before. Name another."
                )
            self._run(plan)

    def stop(self, name: str, *, now_micros: int) -> None:
        """End an experiment; what it has found can still be looked at.

        Raises:
            RefusedError: There is none of that id.
            StoreError: The store cannot be written; it goes on.
        """
        with self._change:
            self._plan(name)
            self._engine.store.end_experiment(name, now_micros=now_micros)
            if self._running is not None and self._running.plan.experiment == name:
                self._end()

    def look(self, name: str, *, now_micros: int) -> ExperimentLook:
        """An experiment as it stands.

        Raises:
            RefusedError: There is none of that id.
            StoreError: The store cannot be reached.
        """
        plan, running = self._plan(name), self._running
        is_running = running is not None and running.plan.experiment == name
        split: SampleRatio | None = None
        metrics: tuple[Look, ...] = ()
        shadow: ShadowLook | None = None
        if plan.kind == "split":
            until = now_micros if plan.ended_micros is None else plan.ended_micros
            totals = self._engine.store.totals(plan, now_micros=now_micros)
            split = _split_of(totals, plan)
            days = max(1.0, (until - plan.began_micros) / _DAY_MICROS)
            metrics = tuple(
                _look_at(metric, totals, plan, days) for metric in get_args(ExperimentMetric)
            )
        elif is_running and running is not None and running.shadow is not None:
            shadow = ShadowLook(
                report=running.shadow.report(),
                differences=self._drift.differences(plan.treatment, plan.control),
            )
        return ExperimentLook(
            plan=plan, is_running=is_running, split=split, metrics=metrics, shadow=shadow
        )

    def close(self) -> None:
        """End the threads; the experiment goes on when the server starts again."""
        with self._change:
            self._end()

    def _plan(self, name: str) -> Experiment:
        for plan in self._engine.store.experiments():
            if plan.experiment == name:
                return plan
        raise RefusedError(404, "path.experiment", "must be an experiment; there is none of it.")

    def _prepare(self, plan: Experiment) -> None:
        """Keep the treatment ready beside the control."""
        bundle = take_bundle(self._bundles, plan.treatment)
        served = self._engine.live.served.bundle
        if bundle.release == served.release:
            raise RefusedError(
                409, "body.release", "must be another release than the one that serves."
            )
        if plan.kind == "split" and bundle.blueprint.weights != served.blueprint.weights:
            raise RefusedError(
                409,
                "body.release",
                "must value events as the bundle that serves, or one arm would be worth more by "
                "definition. Publish it with the same [value].",
            )
        self._engine.put_beside(bundle, control=plan.control)

    def _run(self, plan: Experiment) -> None:
        self._running = _Running(
            plan=plan,
            split=SplitByUser(salt=_salt(plan.experiment), treated_share=plan.treated_share),
            shadow=Shadow(self._engine, self._drift) if plan.kind == "shadow" else None,
        )

    def _end(self) -> None:
        running, self._running = self._running, None
        self._engine.drop_beside()
        if running is not None and running.shadow is not None:
            running.shadow.close()


def _salt(name: str) -> int:
    """A number of 32 bits that hangs on the experiment's id alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _split_of(totals: UserTotals, plan: Experiment) -> SampleRatio | None:
    users, treated = totals.is_treated.size, int(np.count_nonzero(totals.is_treated))
    if not users:
        return None
    return sample_ratio(users - treated, treated, treated_share=plan.treated_share, many_looks=True)


def _look_at(metric: ExperimentMetric, totals: UserTotals, plan: Experiment, days: float) -> Look:
    top, bottom = totals.ratio(metric)
    try:
        found = arm_difference(metric, totals.is_treated, top, bottom)
    except DataError:
        # An arm has fewer than two users, or nothing to divide by.
        return Look(metric=metric, difference=None, guarded=None)
    guarded = None
    smallest = plan.smallest.get(metric)
    # An arm without events has no error yet, and the sequence of looks begins after it.
    if smallest is not None and may_look(totals.is_treated, bottom) and found.standard_error > 0:
        # A value that grows with every day has no difference that a test could be built for.
        per = days if metric == "value_per_user" else 1.0
        guarded = always_valid_looks(
            [found.difference / per], [found.standard_error / per], mixture_sd=smallest
        )
    return Look(metric=metric, difference=found, guarded=guarded)
