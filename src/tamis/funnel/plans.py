"""What stages are made of: enough to build each again, and to write it into a bundle.

Popularity and the stages that predict stand here, those that search all ads in
``retrieval_plans.py``, and what a plan is in ``plan.py``. Another kind of stage is one more class
with these methods and one more row in ``PLANS``; whatever it needs it writes into the folder that
it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.batch import Batch
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.schema import InputSpec, Task
from tamis.errors import ConfigError
from tamis.funnel.cache import CachedByAd
from tamis.funnel.calibration import UNCALIBRATED, Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.early import EarlyStageRanker
from tamis.funnel.plan import (
    Plan,
    Surroundings,
    ad_features,
    check_counts,
    check_predictions,
    read_encoders,
    read_settings,
    write_encoders,
    write_settings,
)
from tamis.funnel.ranker import RankerStage
from tamis.funnel.request import Request
from tamis.funnel.retrieval_plans import IndexPlan, TwoTowerPlan
from tamis.funnel.stage import Scored, Stage, score_all
from tamis.funnel.stages import Popularity
from tamis.models.early_serving import ServedHead, label_tasks
from tamis.models.early_stage import EarlyStage
from tamis.models.trained import TrainedModel, read_model, write_model

Precision = Literal["float32", "bfloat16"]
_CALIBRATION = "calibration.json"


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
        write_settings(folder, self)

    @classmethod
    def read(cls, folder: Path) -> "PopularityPlan":
        """Read what :meth:`write` wrote."""
        return read_settings(cls, folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerSettings:
    """How a model of the catalog serves."""

    precision: Precision = "float32"
    """Type of matrix products."""
    flops_per_pair: float | None = None
    """Operations of one prediction; None: not known."""
    max_ads: int | None = None
    """Most ads whose scores are kept at a time; None: none are. Only where the model reads the ad
    alone."""


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

    def __post_init__(self) -> None:
        if self.settings.max_ads is not None:
            _check_reads_ads_alone(self.model.spec)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.model.name

    def build(self, surroundings: Surroundings) -> Stage:
        """A ``RankerStage``, in a ``RemembersAds`` where scores are kept."""
        check_predictions(surroundings, self.model.spec.tasks)
        reads = self.encoders or surroundings.encoders
        stage = RankerStage(
            self.model.module,
            self.model.spec.tasks,
            ad_features(surroundings.inventory, surroundings.encoders, reads),
            surroundings.inventory.attributes,
            surroundings.value,
            calibration=self.calibration,
            precision=getattr(torch, self.settings.precision),
            flops_per_pair=self.settings.flops_per_pair,
        )
        reading = _reading(stage, surroundings.requests, reads)
        if self.settings.max_ads is None:
            return reading
        num_ads = len(surroundings.inventory)
        return RemembersAds(reading, num_ads=num_ads, max_ads=self.settings.max_ads)

    def write(self, folder: Path) -> None:
        """Write model, encoders, settings and calibration."""
        _write_served(folder, self)

    @classmethod
    def read(cls, folder: Path) -> "RankerPlan":
        """Read what :meth:`write` wrote."""
        return cls(
            model=read_model(folder),
            encoders=read_encoders(folder),
            settings=read_settings(RankerSettings, folder),
            calibration=Calibration.from_json(artifacts.read_json(folder / _CALIBRATION)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStageSettings:
    """How an early-stage ranker serves."""

    head: ServedHead = "distilled"
    """Which head gives a task's prediction."""
    precision: Precision = "float32"
    """Type of matrix products."""
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
        check_predictions(surroundings, label_tasks(spec.tasks))
        check_counts(spec, self.kind, where="stage")
        reads = self.encoders or surroundings.encoders
        assert isinstance(module, EarlyStage)
        stage = EarlyStageRanker(
            module.export(head=self.settings.head),
            spec,
            ad_features(surroundings.inventory, surroundings.encoders, reads),
            surroundings.inventory.attributes,
            surroundings.value,
            max_users=self.settings.max_users,
            time_to_live_ms=self.settings.time_to_live_ms,
            precision=getattr(torch, self.settings.precision),
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
            encoders=read_encoders(folder),
            settings=read_settings(EarlyStageSettings, folder),
            calibration=Calibration.from_json(artifacts.read_json(folder / _CALIBRATION)),
        )


PLANS: dict[str, type[Plan]] = {
    plan.kind: plan
    for plan in (PopularityPlan, IndexPlan, TwoTowerPlan, EarlyStagePlan, RankerPlan)
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
        return self.stage(self._part(request), candidates, keep)

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """Score the candidates of several requests by their parts."""
        return score_all(self.stage, [self._part(one) for one in requests], candidates, keep)

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs; ``features`` are those of requests."""
        return self.stage.predict(self._select(features), rows, ads)

    def predict_rows(self, rows: Batch, ads: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P rows of the requests' inputs, as they are."""
        return self.stage.predict_rows(self._select(rows), ads)

    def _part(self, request: Request) -> Request:
        if request.features is None:
            return request
        return replace(request, features=self._select(request.features))


class RemembersAds:
    """A model's stage whose scores of ads are kept; single pairs are predicted anew."""

    def __init__(
        self, stage: RankerStage | EarlyStageRanker | ReadsPart, *, num_ads: int, max_ads: int
    ) -> None:
        """Start with nothing remembered, see ``CachedByAd``."""
        self.stage = stage
        self.tasks: tuple[Task, ...] = stage.tasks
        self._cached = CachedByAd(stage, num_ads=num_ads, max_ads=max_ads)

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """Remembered scores, and new ones for the other ads."""
        return self._cached(request, candidates, keep)

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs; ``features`` are those of requests."""
        return self.stage.predict(features, rows, ads)

    def predict_rows(self, rows: Batch, ads: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P rows of the requests' inputs, as they are."""
        return self.stage.predict_rows(rows, ads)


def _check_reads_ads_alone(spec: InputSpec) -> None:
    sides = [
        *((item.name, item.side) for item in spec.categorical),
        *zip(spec.numeric, spec.sides_of_numeric, strict=True),
        *((group.name, group.side) for group in spec.sequences),
    ]
    for name, side in sides:
        if side != "item":
            raise ConfigError(
                f"stage of kind 'ranker': max_ads must be left out where the model reads more than "
                f"the ad, as a score of one request is wrong for the next, got {name!r} of side "
                f"{side!r}. Remove max_ads, or train a model of the ad's fields alone."
            )


def _reading(
    stage: RankerStage | EarlyStageRanker, requests: Encoders, reads: Encoders
) -> RankerStage | EarlyStageRanker | ReadsPart:
    select = InputSelection(requests, reads, where="stage")
    return stage if select.changes_nothing else ReadsPart(stage, select)


def _write_served(folder: Path, plan: RankerPlan | EarlyStagePlan) -> None:
    write_model(folder, plan.model)
    write_settings(folder, plan.settings)
    artifacts.write_json(folder / _CALIBRATION, plan.calibration.to_json())
    write_encoders(folder, plan.encoders)
