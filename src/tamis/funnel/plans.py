"""What stages are made of: enough to build each again, and to write it into a bundle.

A stage that comes later, such as the search of a learnt index, is one more class with these
methods and one more row in ``PLANS``; whatever it needs, such as a snapshot of the index, it writes
into the folder that it is given.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tamis import artifacts, config
from tamis.data.batch import Batch
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.schema import Task, load_schema
from tamis.errors import ArtifactError, ConfigError
from tamis.funnel.calibration import UNCALIBRATED, Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.early import EarlyStageRanker
from tamis.funnel.inventory import Inventory
from tamis.funnel.ranker import AdFeatures, RankerStage
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored, Stage
from tamis.funnel.stages import Popularity
from tamis.funnel.value import ValueFunction
from tamis.models.early_serving import ServedHead, label_tasks
from tamis.models.early_stage import EarlyStage
from tamis.models.trained import TrainedModel, read_model, write_model

Precision = Literal["float32", "bfloat16"]
_SETTINGS, _CALIBRATION = "settings.json", "calibration.json"
_ENCODERS, _SCHEMA = "encoders", "schema.toml"
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
            DataError: The stage does not predict what the value of the ads needs.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PopularityPlan:
    """Ads by the popularity of the inventory."""

    kind: ClassVar[str] = "popularity"

    @property
    def model_name(self) -> str:
        """None."""
        return ""

    def build(self, surroundings: Surroundings) -> Stage:
        """A ``Popularity``."""
        return Popularity(surroundings.inventory.popularity)

    def write(self, folder: Path) -> None:
        """Write that there is nothing to say."""
        artifacts.write_json(folder / _SETTINGS, config.to_table(self))

    @classmethod
    def read(cls, folder: Path) -> "PopularityPlan":
        """Read what :meth:`write` wrote."""
        return _settings(cls, folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerSettings:
    """How a model of the catalog serves."""

    precision: Precision = "float32"
    """Type of matrix products."""
    flops_per_pair: float | None = None
    """Operations of one prediction; None: not known."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankerPlan:
    """Any model of the catalog, run on every candidate."""

    kind: ClassVar[str] = "ranker"

    model: TrainedModel
    """The model."""
    encoders: Encoders | None = None
    """What it was trained with, where that is other than the funnel's; None: the funnel's."""
    settings: RankerSettings = RankerSettings()
    """How it serves."""
    calibration: Calibration = UNCALIBRATED
    """What its predictions pass through."""

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.model.name

    def build(self, surroundings: Surroundings) -> Stage:
        """A ``RankerStage``."""
        _check_predictions(surroundings, self.model.spec.tasks)
        reads = self.encoders or surroundings.encoders
        stage = RankerStage(
            self.model.module,
            self.model.spec.tasks,
            _features(surroundings, reads),
            surroundings.inventory.attributes,
            surroundings.value,
            calibration=self.calibration,
            precision=getattr(torch, self.settings.precision),
            flops_per_pair=self.settings.flops_per_pair,
        )
        return _reading(stage, surroundings.requests, reads)

    def write(self, folder: Path) -> None:
        """Write model, encoders, settings and calibration."""
        _write_served(folder, self)

    @classmethod
    def read(cls, folder: Path) -> "RankerPlan":
        """Read what :meth:`write` wrote."""
        return cls(
            model=read_model(folder),
            encoders=_read_encoders(folder),
            settings=_settings(RankerSettings, folder),
            calibration=Calibration.from_json(artifacts.read_json(folder / _CALIBRATION)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStageSettings:
    """How an early-stage ranker serves."""

    head: ServedHead = "distilled"
    """Which head gives a task's prediction."""
    max_users: int = 100_000
    """Most users whose vectors are kept at a time."""
    time_to_live_ms: float = 60_000.0
    """How long a user's vector serves."""
    flops_per_pair: float | None = None
    """Operations of the scorer for one ad; None: not known."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EarlyStagePlan:
    """An early-stage ranker, whose towers are cached."""

    kind: ClassVar[str] = "early"

    model: TrainedModel
    """An ``EarlyStage``."""
    encoders: Encoders | None = None
    """What it was trained with, where that is other than the funnel's; None: the funnel's."""
    settings: EarlyStageSettings = EarlyStageSettings()
    """How it serves."""
    calibration: Calibration = UNCALIBRATED
    """What the served heads' predictions pass through."""

    def __post_init__(self) -> None:
        if not isinstance(self.model.module, EarlyStage):
            raise ConfigError(
                f"stage of kind 'early': model must be 'early_stage', got {self.model.name!r}. "
                f"Use kind = 'ranker'."
            )

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.model.name

    def build(self, surroundings: Surroundings) -> Stage:
        """An ``EarlyStageRanker``."""
        spec, module = self.model.spec, self.model.module
        _check_predictions(surroundings, label_tasks(spec.tasks))
        reads = self.encoders or surroundings.encoders
        assert isinstance(module, EarlyStage)
        stage = EarlyStageRanker(
            module.export(head=self.settings.head),
            spec,
            _features(surroundings, reads),
            surroundings.inventory.attributes,
            surroundings.value,
            max_users=self.settings.max_users,
            time_to_live_ms=self.settings.time_to_live_ms,
            calibration=self.calibration,
            flops_per_pair=self.settings.flops_per_pair,
        )
        return _reading(stage, surroundings.requests, reads)

    def write(self, folder: Path) -> None:
        """Write model, encoders, settings and calibration."""
        _write_served(folder, self)

    @classmethod
    def read(cls, folder: Path) -> "EarlyStagePlan":
        """Read what :meth:`write` wrote."""
        return cls(
            model=read_model(folder),
            encoders=_read_encoders(folder),
            settings=_settings(EarlyStageSettings, folder),
            calibration=Calibration.from_json(artifacts.read_json(folder / _CALIBRATION)),
        )


PLANS: dict[str, type[Plan]] = {
    plan.kind: plan for plan in (PopularityPlan, EarlyStagePlan, RankerPlan)
}
"""Every kind of stage that a bundle can hold."""


class ReadsPart:
    """A model's stage that reads a part of the requests' inputs."""

    def __init__(self, stage: RankerStage | EarlyStageRanker, select: InputSelection) -> None:
        """Take the stage, and what makes its inputs of the requests'."""
        self.stage = stage
        self.tasks: tuple[Task, ...] = stage.tasks
        self._select = select

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """Score candidates by the part of the request."""
        if request.features is not None:
            request = replace(request, features=self._select(request.features))
        return self.stage(request, candidates, keep)

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs; ``features`` are those of requests."""
        return self.stage.predict(self._select(features), rows, ads)


def _check_predictions(surroundings: Surroundings, tasks: tuple[Task, ...]) -> None:
    """Ask for a value now: in a request, what is missing would be a fallback every time."""
    constants = {task.name: np.full(1, 0.5) for task in tasks}
    for billing in np.unique(surroundings.inventory.attributes.billing):
        surroundings.value.score(constants, np.ones(1), np.array([billing]))


def _features(surroundings: Surroundings, reads: Encoders) -> AdFeatures:
    select = InputSelection(surroundings.encoders, reads, where="stage")
    rows = select.of_fields(surroundings.inventory.rows)
    return AdFeatures.of_rows(rows, reads.schema, reads.spec)


def _reading(stage: RankerStage | EarlyStageRanker, requests: Encoders, reads: Encoders) -> Stage:
    select = InputSelection(requests, reads, where="stage")
    return stage if select.changes_nothing else ReadsPart(stage, select)


def _write_served(folder: Path, plan: RankerPlan | EarlyStagePlan) -> None:
    write_model(folder, plan.model)
    artifacts.write_json(folder / _SETTINGS, config.to_table(plan.settings))
    artifacts.write_json(folder / _CALIBRATION, plan.calibration.to_json())
    if plan.encoders is not None:
        (folder / _ENCODERS).mkdir()
        plan.encoders.save(folder / _ENCODERS)
        artifacts.write_text(folder / _SCHEMA, plan.encoders.schema.to_toml())


def _read_encoders(folder: Path) -> Encoders | None:
    if not (folder / _ENCODERS).exists():
        return None
    return Encoders.load(folder / _ENCODERS, load_schema(folder / _SCHEMA))


def _settings(cls: type[_Settings], folder: Path) -> _Settings:
    path = folder / _SETTINGS
    try:
        return config.from_table(cls, artifacts.read_json(path))
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error} Publish anew.") from error
