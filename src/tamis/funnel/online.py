"""Which fields of a user are made from events while a funnel serves: histories and counters."""

from dataclasses import dataclass
from typing import Literal

from tamis.data.schema import Field, Schema
from tamis.errors import ConfigError

EventKind = Literal["impression", "click", "conversion", "hide"]
"""What can come of an ad that was shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """A sequence group that holds the ads of a user's events, oldest first."""

    group: str
    """Sequence group; each of its fields shares the table of a field of the ad, which says what of
    the ad goes into it."""
    event: EventKind = "click"
    """Events that enter it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counter:
    """A numeric field that counts what a user did before."""

    field: str
    """Numeric field that is not the ad's."""
    counts: Literal["request", "impression", "click", "conversion", "hide"]
    """What is counted: answered requests, or events of a kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineFeatures:
    """Fields that a server makes itself where a request does not give them.

    They must mean what they meant in training: a counter that training updated every hour is here
    as new as the last event.
    """

    histories: tuple[History, ...] = ()
    """Sequence groups, each named once."""
    counters: tuple[Counter, ...] = ()
    """Numeric fields, each named once."""

    def check(self, schema: Schema) -> None:
        """Refuse what a schema has no field for.

        Raises:
            ConfigError: A group or field is missing, of another kind, the ad's own, or named twice.
        """
        groups, fields = schema.sequence_groups, {item.name: item for item in schema.fields}
        for history in self.histories:
            where = f"online.histories: group {history.group!r}"
            if history.group not in groups:
                raise ConfigError(
                    f"{where}: must be a sequence group of the schema, got none of that name. "
                    f"Groups: {', '.join(groups) or 'none'}."
                )
            for item in groups[history.group]:
                owner = fields.get(item.shares)
                if item.kind != "sequence" or item.side == "item" or not _is_of_ad(owner):
                    raise ConfigError(
                        f"{where}: field {item.name!r} must be a sequence of the user that shares "
                        f"the table of a field of the ad, got kind {item.kind!r} of the "
                        f"{item.side} sharing {item.shares!r}. Set shares, or leave it out."
                    )
        for counter in self.counters:
            found = fields.get(counter.field)
            if found is None or found.kind != "numeric" or found.side == "item":
                what = "none" if found is None else f"kind {found.kind!r} of the {found.side}"
                raise ConfigError(
                    f"online.counters: field {counter.field!r} must be a numeric field that is not "
                    f"the ad's, got {what}. Name another."
                )
        names = [history.group for history in self.histories]
        names += [counter.field for counter in self.counters]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"online: {name!r} must be named once, got it twice. Remove one.")


def _is_of_ad(field: Field | None) -> bool:
    return field is not None and field.side == "item"
