"""Bodies of requests and answers as they go over the wire; they are documented by the server."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tamis.funnel.trace import AUCTION
from tamis.serving.answers import Answer
from tamis.serving.columns import Kind
from tamis.serving.drift import ReleaseDrift
from tamis.serving.live import Live
from tamis.serving.pulse import TICK_S, Tick

MAX_SLOTS, MAX_CANDIDATES, MAX_EVENTS = 100, 10_000, 1_000
# The years that the times of a log may lie in, 1973 to 2128.
_FIRST_MICROS, _LAST_MICROS = 10**14, 5 * 10**15

# Neither control characters nor halves of surrogate pairs: ids stand in addresses and databases.
Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Release = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Money = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Billing = Literal["click", "conversion"]
Quality = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Popularity = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Columns = Annotated[
    dict[Annotated[str, Field(max_length=256)], Any],
    Field(max_length=1_000, description="Values by the log's column; what is left out is missing."),
]


class Body(BaseModel):
    """Strict: no field beside those named, no value of another kind."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class User(Body):
    """Who asks."""

    id: Id | None = Field(default=None, description="As in the log; null: not known.")
    features: Columns = Field(default_factory=dict)


class RankBody(Body):
    """A request for ads."""

    request_id: Id | None = Field(default=None, description="Null: the server makes one.")
    user: User = Field(default_factory=User)
    context: Columns = Field(default_factory=dict)
    k: int = Field(ge=1, le=MAX_SLOTS, description="Ads that are asked for.")
    candidates: list[Id] | None = Field(
        default=None,
        max_length=MAX_CANDIDATES,
        description="The only ads that may be shown; null: all.",
    )
    trace: bool = Field(default=False, description="Whether to say what each stage did.")


class RankedAdBody(Body):
    """An ad, and why it is there."""

    ad: str
    value: float | None = Field(description="Money; null where no stage predicted in time.")
    price: float = Field(description="Money for one billed event.")
    bid: float
    billing: str
    probabilities: dict[str, float] = Field(description="By task, of the last stage in time.")
    quality: float


class RankAnswer(Body):
    """Ranked ads, best first; fewer than were asked for where no more may be shown."""

    request_id: str = Field(description="Events of these ads name it.")
    release: str = Field(description="The bundle that answered.")
    ads: list[RankedAdBody]
    unknown_candidates: int = Field(description="Candidates that are no live ads.")
    fallbacks: dict[str, str] = Field(description="Why stages kept the order of the one before.")
    trace: list[dict[str, Any]] | None = None


class EventBody(Body):
    """Something that a user did, or was shown."""

    event_id: Id = Field(description="The same however often the event is told.")
    kind: Literal["impression", "click", "conversion", "hide"]
    ad: Id
    user: Id | None = Field(default=None, description="Whose history and counters it enters.")
    request_id: Id | None = Field(
        default=None, description="The request that the ad was an answer to."
    )
    time_micros: int | None = Field(
        default=None,
        ge=_FIRST_MICROS,
        le=_LAST_MICROS,
        description="Microseconds since 1970 UTC; null: now.",
    )
    columns: Columns = Field(default_factory=dict)


class EventsBody(Body):
    """Events, in the order in which they happened."""

    events: list[EventBody] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsAnswer(Body):
    """All events are on the disk."""

    accepted: int = Field(description="How many were new.")
    duplicates: int = Field(description="How many were told before.")
    unknown_ads: int = Field(
        description="How many are of an ad that is not there now. They are kept as well, as an ad "
        "may be gone when its click comes; of ads that serve there should be none."
    )


class AdBody(Body):
    """An ad, whole; what is asked for by GET may be changed and put back as it is."""

    ad: Id | None = Field(default=None, description="The id of the path once more.")
    features: Columns
    bid: Money = Field(description="Money for one billed event.")
    billing: Billing
    advertiser: Id | None = Field(
        description="Null: whoever the bundle has for an ad of this id, or nobody who bids for "
        "others too."
    )
    quality: Quality = 0.0
    popularity: Popularity | None = Field(
        default=None, description="Null: as popular as the bundle's ads on average."
    )
    is_from_bundle: bool | None = Field(default=None, description="Not read.")


class AdChangeBody(Body):
    """What changes of an ad; what is null or left out stays as it is."""

    features: Columns = Field(
        default_factory=dict,
        description="Values by the log's column; what is left out stays, null: missing.",
    )
    bid: Money | None = Field(default=None, description="Money for one billed event.")
    billing: Billing | None = None
    advertiser: Id | None = None
    quality: Quality | None = None
    popularity: Popularity | None = None


class AdAnswer(Body):
    """A live ad."""

    ad: str
    features: dict[str, Any]
    bid: float
    billing: str
    advertiser: str | None = Field(
        description="As it was put; null: none was, and a bundle has no names."
    )
    quality: float
    popularity: float
    is_from_bundle: bool = Field(description="Whether it came with the bundle, not by PUT.")


class AdsAnswer(Body):
    """Live ads in a row, the bundle's first."""

    total: int = Field(description="How many there are; here may be fewer.")
    ads: list[AdAnswer]


class ColumnBody(Body):
    """A column that may be said."""

    name: str
    kind: Kind
    values: list[str] = Field(description="What it mostly holds, where that is a few categories.")
    is_from_events: bool = Field(description="Whether it is made of events where it is left out.")


class AboutAnswer(Body):
    """What serves, and what it may be told."""

    release: str
    ads: int
    needs_token: bool = Field(description="Whether writes and changes must bear a token.")
    experiment: str | None = Field(description="The experiment that runs; null: none does.")
    user: list[ColumnBody] = Field(description="May stand in user.features of a ranking.")
    context: list[ColumnBody] = Field(description="May stand in context of a ranking.")
    ad: list[ColumnBody] = Field(description="May stand in features of an ad.")


class BundleBody(Body):
    """Which bundle is to serve."""

    replaces: Release = Field(description="The release that serves now, as far as you know.")
    release: Release | None = Field(
        default=None, description="Release of a bundle that lies in the server's folder of bundles."
    )
    roll_back: bool = Field(default=False, description="Serve the bundle before this one again.")


class BundleAnswer(Body):
    """What serves."""

    release: str


class FitBody(Body):
    """How well probabilities fit what happened; null: the rows cannot tell."""

    rows: int = Field(description="Ads that were seen and whose label is known.")
    positives: int = Field(description="Those whose label is 1.")
    log_loss: float | None = Field(description="Mean, nats.")
    ne: float | None = Field(description="Normalised entropy; smaller is better.")
    predicted: float = Field(description="Sum of probabilities.")
    calibration: float | None = Field(description="Sum of probabilities over positives.")


class FitOfPartBody(FitBody):
    """The same of a part of the time."""

    start_s: float = Field(description="Seconds since the release went live.")


class ShiftBody(Body):
    """How the newest probabilities are spread, beside the release's first ones."""

    value: float = Field(description="Population stability index; 0: as they were.")
    expected: float = Field(description="What it is on average when nothing shifts.")
    reference_rows: int
    rows: int


class TaskDriftBody(Body):
    """One task of a release."""

    all: FitBody
    shift: ShiftBody | None = Field(description="Null: too few rows yet.")
    parts: list[FitOfPartBody] = Field(description="Oldest first.")


class ReleaseDriftBody(Body):
    """One release since it first answered here."""

    release: str
    since_micros: int
    tasks: dict[str, TaskDriftBody]


class TickBody(Body):
    """Some seconds of the server."""

    ranked: int
    turned_away: int
    p50_ms: float | None = Field(description="Null: nothing was ranked.")
    p99_ms: float | None


class WatchAnswer(Body):
    """What the server sees of itself."""

    release: str = Field(description="What serves now.")
    tick_s: float = Field(description="Length of a tick.")
    ticks: list[TickBody] = Field(description="Oldest first; those that are over.")
    settle_s: float = Field(description="How long after an answer its events count.")
    drift: list[ReleaseDriftBody] = Field(description="By release; who answered last is last.")


class Problem(Body):
    """Why a request was not answered."""

    field: str = Field(description="What of the request is to blame; 'server' where nothing is.")
    message: str = Field(description="What must hold; it repeats no value of the request.")


class ProblemAnswer(Body):
    """Any answer of 4xx or 5xx."""

    error: Problem


def rank_answer(answer: Answer, *, with_trace: bool) -> RankAnswer:
    """An answer as it goes over the wire."""
    trace = answer.trace
    fallbacks = {}
    if trace is not None:
        fallbacks = {stage.name: stage.fallback for stage in trace.stages if stage.fallback}
        if trace.auction_fallback:
            fallbacks[AUCTION] = trace.auction_fallback
    return RankAnswer(
        request_id=answer.served.request_id,
        release=answer.release,
        ads=[
            RankedAdBody(
                ad=item.ad,
                value=item.value,
                price=item.price,
                bid=item.bid,
                billing=item.billing,
                probabilities=item.predictions,
                quality=item.quality,
            )
            for item in answer.ads
        ],
        unknown_candidates=answer.unknown_candidates,
        fallbacks=fallbacks,
        trace=answer.stages() if with_trace else None,
    )


def ad_answers(live: Live, rows: Sequence[int]) -> list[AdAnswer]:
    """Live ads, by row, as they go over the wire."""
    ads, inventory = live.ads, live.ads.inventory
    attributes = inventory.attributes
    # The id stands beside, and not among them.
    said = live.served.catalogue.said.names
    return [
        AdAnswer(
            ad=ads.ids[row],
            features={name: columns[name] for name in said},
            bid=float(attributes.bid[row]),
            billing=str(attributes.billing[row]),
            advertiser=None
            if row < ads.num_of_bundle
            else ads.advertisers[row - ads.num_of_bundle],
            quality=float(attributes.quality[row]),
            popularity=float(inventory.popularity[row]),
            is_from_bundle=row < ads.num_of_bundle,
        )
        for row, columns in zip(rows, ads.columns(np.array(rows, np.int64)), strict=True)
    ]


def watch_answer(
    drift: Sequence[ReleaseDrift], ticks: Sequence[Tick], *, release: str, settle_s: float
) -> WatchAnswer:
    """What the server sees of itself as it goes over the wire."""
    return WatchAnswer(
        release=release,
        tick_s=TICK_S,
        ticks=[TickBody(**asdict(tick)) for tick in ticks],
        settle_s=settle_s,
        drift=[
            ReleaseDriftBody(
                release=item.release,
                since_micros=item.since_micros,
                tasks={
                    task: TaskDriftBody.model_validate(asdict(found), strict=False)
                    for task, found in item.tasks.items()
                },
            )
            for item in drift
        ],
    )
