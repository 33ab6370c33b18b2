"""What stages are made of: enough to build each again, and to write it into a bundle.

A stage that comes later, such as the search of a learnt index, is one more class with these three
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
from tamis.data.inputs import InputSelection, reads_the_same
from tamis.data.schema import InputSpec, Schema, Task
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
from tamis.models.early_serving import ServedHead
from tamis.models.early_stage import EarlyStage
from tamis.models.trained import TrainedModel, read_model, write_model

Precision = Literal["float32", "bfloat16"]
_SETTINGS, _CALIBRATION = "settings.json", "calibration.json"
_Settings = TypeVar("_Settings")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Surroundings:
    """What the stages of a funnel share."""

    schema: Schema
    """Which fields are the item's."""
    requests: InputSpec
    """Inputs of the requests' features."""
    inventory: Inventory
    """All ads."""
    value: ValueFunction
    """Combines predictions and bid."""


class Plan(Protocol):
    """How to build one stage."""

    kind: ClassVar[str]
    """Its row in ``PLANS``."""

    def build(self, surroundings: Surroundings) -> Stage:
        """A new stage, with caches of its own."""
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
    settings: RankerSettings = RankerSettings()
    """How it serves."""
    calibration: Calibration = UNCALIBRATED
    """What its predictions pass through."""

    def build(self, surroundings: Surroundings) -> Stage:
        """A ``RankerStage``."""
        stage = RankerStage(
            self.model.module,
            self.model.spec.tasks,
            _features(surroundings, self.model.spec),
            surroundings.inventory.attributes,
            surroundings.value,
            calibration=self.calibration,
            precision=getattr(torch, self.settings.precision),
            flops_per_pair=self.settings.flops_per_pair,
        )
        return _reading(stage, surroundings.requests, self.model.spec)

    def write(self, folder: Path) -> None:
        """Write model, settings and calibration."""
        _write_served(folder, self.model, self.settings, self.calibration)

    @classmethod
    def read(cls, folder: Path) -> "RankerPlan":
        """Read what :meth:`write` wrote."""
        return cls(
            model=read_model(folder),
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

    def build(self, surroundings: Surroundings) -> Stage:
        """An ``EarlyStageRanker``."""
        spec, module = self.model.spec, self.model.module
        assert isinstance(module, EarlyStage)
        stage = EarlyStageRanker(
            module.export(head=self.settings.head),
            spec,
            _features(surroundings, spec),
            surroundings.inventory.attributes,
            surroundings.value,
            max_users=self.settings.max_users,
            time_to_live_ms=self.settings.time_to_live_ms,
            calibration=self.calibration,
            flops_per_pair=self.settings.flops_per_pair,
        )
        return _reading(stage, surroundings.requests, spec)

    def write(self, folder: Path) -> None:
        """Write model, settings and calibration."""
        _write_served(folder, self.model, self.settings, self.calibration)

    @classmethod
    def read(cls, folder: Path) -> "EarlyStagePlan":
        """Read what :meth:`write` wrote."""
        return cls(
            model=read_model(folder),
            settings=_settings(EarlyStageSettings, folder),
            calibration=Calibration.from_json(artifacts.read_json(folder / _CALIBRATION)),
        )


PLANS: dict[str, type[Plan]] = {
    plan.kind: plan for plan in (PopularityPlan, EarlyStagePlan, RankerPlan)
}
"""Every kind of stage that a bundle can hold."""


class ReadsPart:
    """A model's stage that reads some of the requests' inputs, or in another order."""

    def __init__(
        self, stage: RankerStage | EarlyStageRanker, requests: InputSpec, reads: InputSpec
    ) -> None:
        """Find the columns.

        Args:
            stage: The stage.
            requests: Inputs of the requests' features.
            reads: Inputs of the stage's model.

        Raises:
            SchemaError: The requests lack an input of the model.
        """
        self.stage = stage
        self.tasks: tuple[Task, ...] = stage.tasks
        self._select = InputSelection(requests, reads)

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


def _features(surroundings: Surroundings, spec: InputSpec) -> AdFeatures:
    return AdFeatures.of_rows(surroundings.inventory.rows, surroundings.schema, spec)


def _reading(stage: RankerStage | EarlyStageRanker, requests: InputSpec, reads: InputSpec) -> Stage:
    return stage if reads_the_same(requests, reads) else ReadsPart(stage, requests, reads)


def _write_served(
    folder: Path,
    model: TrainedModel,
    settings: RankerSettings | EarlyStageSettings,
    calibration: Calibration,
) -> None:
    write_model(folder, model)
    artifacts.write_json(folder / _SETTINGS, config.to_table(settings))
    artifacts.write_json(folder / _CALIBRATION, calibration.to_json())


def _settings(cls: type[_Settings], folder: Path) -> _Settings:
    path = folder / _SETTINGS
    try:
        return config.from_table(cls, artifacts.read_json(path))
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error} Publish anew.") from error
