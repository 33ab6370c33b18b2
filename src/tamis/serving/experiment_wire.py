"""Bodies of experiments as they go over the wire."""

import math
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field

from tamis.evaluation.experiment import ArmDifference, ExperimentMetric
from tamis.evaluation.ratio import Estimate
from tamis.evaluation.significance import known
from tamis.serving.experiments import ExperimentLook, Look
from tamis.serving.wire import Body, Release


class ExperimentBody(Body):
    """A bundle that is to stand beside the one that serves."""

    kind: Literal["split", "shadow"] = Field(
        default="split", description="It serves a share of the users, or scores without serving."
    )
    release: Release = Field(
        description="Release of the treatment; it lies in the server's folder of bundles."
    )
    replaces: Release = Field(description="The release that serves now, as far as you know.")
    treated_share: float = Field(default=0.5, gt=0, lt=1, description="Share of the users.")
    attribution_hours: float = Field(
        default=24.0,
        gt=0,
        le=24 * 90,
        description="A conversion counts within so long after its request.",
    )
    smallest: dict[ExperimentMetric, Annotated[float, Field(gt=0, le=1e12)]] = Field(
        default_factory=dict,
        description="The smallest difference that matters, of the metrics that are to be looked at "
        "while it runs; value is per user and day here.",
    )


class EstimateBody(Body):
    """A number with its interval."""

    value: float
    lower: float
    upper: float


class ChangeBody(Body):
    """Treatment minus control."""

    value: float
    lower: float | None = Field(description="Null: not known while an arm's users have one rate.")
    upper: float | None


class GuardedBody(Body):
    """An interval that holds however often one looks."""

    lower: float
    upper: float
    p_value: float


class DifferenceBody(Body):
    """Treatment minus control; its interval and p-value are for one look at the end."""

    control: EstimateBody
    treatment: EstimateBody
    difference: ChangeBody
    lift: EstimateBody | None = Field(
        description="Over the control; null: that is 0, or the interval is not known."
    )
    p_value: float | None = Field(description="Null: as the interval.")


class LookBody(Body):
    """A metric of an experiment."""

    metric: ExperimentMetric
    difference: DifferenceBody | None = Field(description="Null: too few events yet.")
    guarded: GuardedBody | None = Field(
        description="Of the difference, value per user and day; null: no smallest one was given, "
        "or too few events yet."
    )


class SplitBody(Body):
    """Users that were answered, by arm."""

    control_users: int
    treated_users: int
    p_value: float = Field(description="Chance of such a split when it is sound.")
    is_mismatch: bool = Field(description="Then no other number can be trusted.")


class ShadowBody(Body):
    """What the shadow has done since the process began."""

    scored: int
    dropped: int = Field(description="Requests that there was no time for.")
    failed: int
    overlap: float | None = Field(description="Share of served ads that it would show too.")
    log_loss_differences: dict[str, EstimateBody] = Field(
        description="By task: shadow minus served on the same rows, nats; for one look at the end."
    )


class ExperimentAnswer(Body):
    """An experiment as it stands."""

    experiment: str
    kind: str
    control: str
    treatment: str
    treated_share: float
    began_micros: int
    ended_micros: int | None
    is_running: bool = Field(description="Whether this server acts by it now.")
    split: SplitBody | None
    metrics: list[LookBody]
    shadow: ShadowBody | None


def experiment_answer(look: ExperimentLook) -> ExperimentAnswer:
    """An experiment as it goes over the wire."""
    plan, split, shadow = look.plan, look.split, look.shadow
    return ExperimentAnswer(
        experiment=plan.experiment,
        kind=plan.kind,
        control=plan.control,
        treatment=plan.treatment,
        treated_share=plan.treated_share,
        began_micros=plan.began_micros,
        ended_micros=plan.ended_micros,
        is_running=look.is_running,
        split=None
        if split is None
        else SplitBody(
            control_users=split.control_users,
            treated_users=split.treated_users,
            p_value=split.p_value,
            is_mismatch=split.is_mismatch,
        ),
        metrics=[_look(item) for item in look.metrics],
        shadow=None
        if shadow is None
        else ShadowBody(
            **asdict(shadow.report),
            log_loss_differences={
                task: _estimate(found) for task, found in shadow.differences.items()
            },
        ),
    )


def _look(look: Look) -> LookBody:
    found, guarded = look.difference, look.guarded
    return LookBody(
        metric=look.metric,
        difference=None if found is None else _difference(found),
        guarded=None
        if guarded is None
        else GuardedBody(
            lower=float(guarded.lower[-1]),
            upper=float(guarded.upper[-1]),
            p_value=float(guarded.p_value[-1]),
        ),
    )


def _difference(found: ArmDifference) -> DifferenceBody:
    return DifferenceBody(
        control=_estimate(found.control),
        treatment=_estimate(found.treatment),
        difference=ChangeBody(
            value=found.difference, lower=known(found.lower), upper=known(found.upper)
        ),
        lift=None
        if math.isnan(found.lift_lower)
        else EstimateBody(value=found.lift, lower=found.lift_lower, upper=found.lift_upper),
        p_value=known(found.p_value),
    )


def _estimate(found: Estimate) -> EstimateBody:
    return EstimateBody(value=found.value, lower=found.lower, upper=found.upper)
