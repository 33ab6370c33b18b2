"""What a whole funnel is made of, before it is built and after it was read from a bundle."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tamis.data.encoders import Encoders
from tamis.errors import ConfigError
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.inventory import Inventory
from tamis.funnel.online import OnlineFeatures
from tamis.funnel.plan import Plan, Surroundings
from tamis.funnel.retrieval_plans import FollowsAds
from tamis.funnel.trace import AUCTION, KNOWN
from tamis.funnel.value import ValueFunction, ValueWeights

_IN_NAMES = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A stage's place in the funnel, and what it may spend."""

    name: str
    """Name in traces, reports and folders: small letters, digits, ``_`` and ``-``; not ``known`` or
    ``auction``."""
    keep: int
    """Candidates that go on. At least 1."""
    budget_ms: float | None = None
    """Milliseconds after which it falls back; None: as long as it likes."""

    def __post_init__(self) -> None:
        if not self.name or not _IN_NAMES.issuperset(self.name):
            raise ConfigError(
                f"stage {self.name!r}: name must be of small letters, digits, _ and -, as it names "
                f"a folder. Rename it."
            )
        if self.name in (KNOWN, AUCTION):
            raise ConfigError(
                f"stage {self.name!r}: name must be none of {KNOWN!r} and {AUCTION!r}, which "
                f"reports keep for what is before the first stage and after the last, got "
                f"{self.name!r}. Rename it."
            )
        if self.keep < 1 or (self.budget_ms is not None and not self.budget_ms > 0):
            raise ConfigError(
                f"stage {self.name!r}: keep must be at least 1 and budget_ms positive, got keep="
                f"{self.keep!r}, budget_ms={self.budget_ms!r}."
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlannedStage:
    """One stage."""

    budget: Budget
    """Its name and budgets."""
    plan: Plan
    """How to build it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Blueprint:
    """Everything that a funnel answers with."""

    encoders: Encoders
    """From a raw request to the features that stages read, and the schema of it."""
    inventory: Inventory
    """All ads."""
    weights: ValueWeights
    """Constants of the total value."""
    stages: tuple[PlannedStage, ...]
    """First to last."""
    reserve: float = 0.0
    """Least price of a billed event, money. At least 0."""
    online: OnlineFeatures = field(default_factory=OnlineFeatures)
    """Fields that a server makes from events."""
    trained_until: int | None = None
    """Time of the last row that a stage or the ads were learnt from, validation included,
    microseconds since 1970 UTC; None: not known."""

    def of_ads(self, inventory: Inventory) -> "Blueprint":
        """The same models around other ads, or around the same with other features.

        Args:
            inventory: Encoded as the ads before were. Where an ad's id was in training, it counts.
        """
        return self._following(inventory, lambda plan: plan.of_ads(inventory, self.encoders))

    def with_ads(self, more: Inventory) -> "Blueprint":
        """A blueprint with more ads; models stay, and an index places them by their content.

        Raises:
            DataError: An ad is there already, or lacks a field that the ads have.
        """
        inventory = self.inventory.with_ads(more)
        return self._following(inventory, lambda plan: plan.with_ads(more, self.encoders))

    def without_ads(self, codes: NDArray[np.int64]) -> "Blueprint":
        """A blueprint without some ads, by their codes; no funnel of it shows them.

        Raises:
            DataError: An ad is not there, or none would be left.
        """
        inventory = self.inventory.without_ads(codes)
        return self._following(inventory, lambda plan: plan.without_ads(codes))

    def _following(self, inventory: Inventory, change: Callable[[FollowsAds], Plan]) -> "Blueprint":
        stages = tuple(
            replace(stage, plan=change(stage.plan)) if isinstance(stage.plan, FollowsAds) else stage
            for stage in self.stages
        )
        return replace(self, inventory=inventory, stages=stages)

    def without_time_limits(self) -> "Blueprint":
        """The same funnel where nobody waits: no stage falls back for being late."""
        return replace(
            self,
            stages=tuple(
                replace(stage, budget=replace(stage.budget, budget_ms=None))
                for stage in self.stages
            ),
        )

    def build(self, requests: Encoders | None = None, *, callers: int = 1) -> Funnel:
        """A new funnel; two of one blueprint give the same bits for the same requests.

        Args:
            requests: What the requests' features are encoded with, where that is more than the
                funnel reads, or in another order; None for the funnel's own encoders.
            callers: Threads that will ask at the same time.

        Raises:
            SchemaError: A stage reads what the requests lack.
            ConfigError: The stages do not make a funnel.
        """
        value = ValueFunction(self.weights)
        surroundings = Surroundings(
            encoders=self.encoders,
            requests=self.encoders if requests is None else requests,
            inventory=self.inventory,
            value=value,
        )
        steps = [
            Step(
                name=stage.budget.name,
                stage=stage.plan.build(surroundings),
                keep=stage.budget.keep,
                budget_ms=stage.budget.budget_ms,
            )
            for stage in self.stages
        ]
        return Funnel(
            steps,
            self.inventory.attributes,
            value,
            reserve=self.reserve,
            prior=self.inventory.popularity,
            callers=callers,
        )
