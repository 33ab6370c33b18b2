"""What a plan of a stage is, and what the plans of models share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from tamis import artifacts, config
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.schema import InputSpec, Schema, Side, Task, load_schema
from tamis.errors import ArtifactError, ConfigError, SchemaError
from tamis.funnel.inventory import Inventory
from tamis.funnel.ranker import AdFeatures
from tamis.funnel.stage import Stage
from tamis.funnel.value import ValueFunction
from tamis.retrieval.inverted_index import pair_counts

_SETTINGS, _ENCODERS, _SCHEMA = "settings.json", "encoders", "schema.toml"
# Sides whose counts do no harm to a kind of stage that encodes user and ad apart.
_SIDES_OF_COUNTS: dict[str, tuple[Side, ...]] = {
    "index": ("context",),
    "two_tower": ("context",),
    "early": (),
}
_Settings = TypeVar("_Settings")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Surroundings:
    """What the stages of a funnel share."""

    encoders: Encoders
    """Encoders of the ads."""
    requests: Encoders
    """Encoders of the requests' features."""
    inventory: Inventory
    """All ads."""
    value: ValueFunction
    """Combines predictions and bid."""


class Plan(Protocol):
    """How to build one stage."""

    kind: ClassVar[str]
    """Its row in ``PLANS``."""

    @property
    def model_name(self) -> str:
        """Name in the catalog of the model that it runs; empty where it runs none."""
        ...

    def build(self, surroundings: Surroundings) -> Stage:
        """A new stage, with caches of its own.

        Raises:
            ConfigError: The stage does not predict what the value of the ads needs.
            SchemaError: It reads what the requests or the ads lack.
        """
        ...

    def write(self, folder: Path) -> None:
        """Write all that :meth:`read` needs into an existing folder, which the caller seals."""
        ...

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Read what :meth:`write` wrote; the stage that it builds gives the same bits."""
        ...


def check_predictions(surroundings: Surroundings, tasks: tuple[Task, ...]) -> None:
    """Look for what the value reads now: in a request, its lack would be a fallback every time.

    Raises:
        ConfigError: The tasks are not those that the value of the ads needs.
    """
    names = [task.name for task in tasks]
    read = surroundings.value.weights.read_of(surroundings.inventory.attributes.billing)
    for setting, name in read.items():
        if name not in names:
            is_penalty = setting.startswith("value.penalties.")
            advice = "Take it out" if is_penalty else f"Set {setting} to one of them"
            why = ", as ads pay for conversions" if setting == "value.conversion" else ""
            raise ConfigError(
                f"{setting}: must be a task of every stage that predicts{why}, got {name!r} beside "
                f"a model of {', '.join(names)}. {advice}, or train a model that predicts it."
            )


def check_reads_ads(schema: Schema, *, where: str) -> None:
    """Refuse a model that does not read the ad, as it would take every candidate for one.

    Fields of user and context are the request's: an ad's id among them is of an ad that the log
    showed, whichever candidate is scored.

    Args:
        schema: What the model was trained with.
        where: Who runs it, for messages.

    Raises:
        SchemaError: No field is of side ``item``, or one of the item's id is of another.
    """
    advice = (
        "Set side = 'item' in schema.toml for every field of the ad, ingest the log anew and train "
        "again."
    )
    for field in schema.fields:
        if field.source == schema.roles.item and field.side != "item":
            raise SchemaError(
                f"{where}: field {field.name!r} must be of side 'item', as the role 'item' names "
                f"its column, got {field.side!r}. {advice}"
            )
    if not any(field.side == "item" for field in schema.fields):
        fields = ", ".join(repr(field.name) for field in schema.fields)
        raise SchemaError(
            f"{where}: must read a field of side 'item' to tell ads apart, got none among "
            f"{fields}. {advice}"
        )


def check_counts(spec: InputSpec, kind: str, *, where: str) -> None:
    """Refuse counts of the user's events by the ad's category where no pair is looked at.

    Args:
        spec: What the stage's model reads.
        kind: The stage's kind.
        where: Who runs it, for messages.

    Raises:
        SchemaError: The stage encodes user and ad apart, and a count is of a side that it encodes.
    """
    if kind not in _SIDES_OF_COUNTS:
        return
    sides = _SIDES_OF_COUNTS[kind]
    for count in pair_counts(spec):
        name, side = spec.numeric[count.number], spec.sides_of_numeric[count.number]
        if side not in sides:
            advice = "Take it out of schema.toml"
            if sides:
                advice = f"Set its side = {sides[0]!r} in schema.toml, or take it out"
            raise SchemaError(
                f"{where}: field {name!r} must not count events of "
                f"{spec.numeric_counts[count.number]!r}, as a stage of kind {kind!r} encodes user "
                f"and ad apart, got side {side!r}. {advice}, ingest the log anew and train again."
            )


def ad_features(inventory: Inventory, whole: Encoders, reads: Encoders) -> AdFeatures:
    """What a model reads of every ad.

    Args:
        inventory: All ads.
        whole: What they are encoded with.
        reads: What the model was trained with.

    Raises:
        SchemaError: The model reads what the ads lack, or no field of an ad.
    """
    check_reads_ads(reads.schema, where="stage")
    rows = InputSelection(whole, reads, where="stage").of_fields(inventory.rows)
    return AdFeatures.of_rows(rows, reads.schema, reads.spec)


def write_settings(folder: Path, settings: Any) -> None:  # noqa: ANN401  (any settings)
    """Write a plan's settings, a config dataclass."""
    artifacts.write_json(folder / _SETTINGS, config.to_table(settings))


def read_settings(cls: type[_Settings], folder: Path) -> _Settings:
    """Read what :func:`write_settings` wrote.

    Raises:
        ArtifactError: They are not those of such a stage.
    """
    path = folder / _SETTINGS
    try:
        return config.from_table(cls, artifacts.read_json(path))
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error} Publish anew.") from error


def write_encoders(folder: Path, encoders: Encoders | None) -> None:
    """Write encoders of a model's own, if it has any."""
    if encoders is not None:
        (folder / _ENCODERS).mkdir()
        encoders.save(folder / _ENCODERS)
        artifacts.write_text(folder / _SCHEMA, encoders.schema.to_toml())


def read_encoders(folder: Path) -> Encoders | None:
    """Read what :func:`write_encoders` wrote; None where there were none."""
    if not (folder / _ENCODERS).exists():
        return None
    return Encoders.load(folder / _ENCODERS, load_schema(folder / _SCHEMA))
