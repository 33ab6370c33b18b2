"""What the server keeps: ads, the requests that it answered, and the events that came of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tamis.evaluation.experiment import ExperimentMetric
from tamis.funnel.online import EventKind

RawValue = str | float | bool | list[str] | None
"""A cell of a raw log, as JSON has it; whole numbers are floats or texts, None is missing."""
RawRow = Mapping[str, RawValue]
"""Cells by the log's column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that a user did, or was shown."""

    event_id: str
    """Given by whoever reports it; the same event has the same id, however often it is told."""
    kind: EventKind
    """What happened."""
    ad: str
    """Id of the ad, as in the log."""
    user: str | None
    """Id of the user, as in the log; None: not known."""
    request_id: str | None
    """Request that the ad was an answer to; None: to none of ours."""
    time_micros: int
    """When it happened, in microseconds since 1970 UTC."""
    columns: RawRow = field(default_factory=dict)
    """What the log says of the impression otherwise than of the request, such as a position."""
    ad_columns: RawRow = field(default_factory=dict)
    """The ad's columns of the log as they were when the event came in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownAd:
    """One ad of an answer."""

    ad: str
    """Its id."""
    columns: RawRow
    """Its columns of the log as they were scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """A second bundle beside the one that serves."""

    experiment: str
    """Its id; the split of users hangs on it alone."""
    kind: Literal["split", "shadow"]
    """Whether the second bundle serves a share of the users, or scores without serving."""
    control: str
    """Release that served when it began, and serves the other users."""
    treatment: str
    """Release beside it."""
    treated_share: float
    """Share of the users that the treatment serves, in (0, 1)."""
    attribution_micros: int
    """A conversion counts if it happens within so long after its request. Positive."""
    smallest: Mapping[ExperimentMetric, float]
    """The smallest difference that matters, by metric, for those that are looked at while it runs;
    fixed before the first look. Value is per user and day here."""
    began_micros: int
    """When it began, in microseconds since 1970 UTC."""
    ended_micros: int | None = None
    """When it ended; None: it has not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Worth:
    """Money that an ad of an answer is worth by what comes of it."""

    impression: float
    """Once it is seen: its quality."""
    click: float
    """For a click: its bid, where clicks are billed."""
    conversion: float
    """For a conversion: its bid, where these are billed."""
    hide: float
    """For a hide: at most 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """Where a request belongs in an experiment."""

    experiment: str
    """Its id."""
    is_treated: bool
    """Whether the treatment answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """A user of an experiment was answered."""

    arm: Arm
    """Which arm of which experiment."""
    worths: tuple[Worth, ...]
    """Of each ad of the answer, first slot first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedRequest:
    """A request that was answered, with the columns of the log that its ranking was made from."""

    request_id: str
    """Its id."""
    user: str | None
    """Id of the user; None: not known."""
    time_micros: int
    """When it was asked."""
    release: str
    """Bundle that answered."""
    columns: RawRow
    """User's and context's columns, histories and counters as they were then included."""
    shown: tuple[ShownAd, ...]
    """The answer, first slot first."""
    exposure: Exposure | None = None
    """Its place in an experiment; None: in none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAd:
    """An ad that was put into the store."""

    ad: str
    """Its id."""
    columns: RawRow
    """Its columns of the log."""
    bid: float
    """Money for one billed event. At least 0."""
    billing: Literal["click", "conversion"]
    """The event that is billed."""
    advertiser: str | None
    """Who bids; None: whoever the bundle has for an ad of this id, else nobody who bids for others
    too."""
    quality: float = 0.0
    """Money that an impression is worth whatever is bid."""
    popularity: float | None = None
    """How often it was clicked, say; None: as often as the bundle's ads on average."""
