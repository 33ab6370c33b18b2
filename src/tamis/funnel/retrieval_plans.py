"""Plans of the stages that search all ads: a learnt index, and two towers with exact search."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.data.batch import Batch, blank_batch, concatenate
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.errors import ConfigError, DataError
from tamis.funnel.cache import CachedByUser, UserCache
from tamis.funnel.candidates import Candidates
from tamis.funnel.index_search import IndexSearch
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import ads_of
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
from tamis.funnel.ranker import features_of
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored, Stage, score_all
from tamis.funnel.stages import DotProduct
from tamis.models.hsnn import HSNN
from tamis.models.trained import TrainedModel, read_model, write_model
from tamis.models.two_tower import TwoTower
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.snapshot import IndexSnapshot, check_versions

_INDEX = "index"
_ADS_AT_A_TIME = 4096
_LEAST_BID = 1e-12


@runtime_checkable
class FollowsAds(Protocol):
    """A plan that holds the ads themselves, so that another inventory makes another plan."""

    def of_ads(self, inventory: Inventory, whole: Encoders) -> Plan:
        """The plan of other ads, or of the same with other features; ``whole`` encoded them."""
        ...

    def with_ads(self, more: Inventory, whole: Encoders) -> Plan:
        """The plan with more ads, which no training has seen."""
        ...

    def without_ads(self, codes: NDArray[np.int64]) -> Plan:
        """The plan without some ads, by code."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSettings:
    """How an index is searched."""

    beams: tuple[int, ...]
    """Nodes to keep at each index level, the coarsest first."""
    task_weights: tuple[float, ...] = ()
    """Weight of each task's probability in the score; empty: scores are total values."""
    flops: tuple[int, ...] = ()
    """Operations of one user's towers, then of a pair at each level; empty: not counted yet."""
    cache: UserCache | None = None
    """How answers are kept by user; None: each request is searched for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IndexPlan:
    """Beam search of a learnt index; the index holds the ads by their codes."""

    kind: ClassVar[str] = "index"

    model: TrainedModel
    """An ``HSNN``."""
    snapshot: IndexSnapshot
    """The ads as that model encoded them."""
    settings: IndexSettings
    """How it is searched."""
    encoders: Encoders | None = None
    """What it was trained with, where that is other than the funnel's; None: the funnel's."""

    def __post_init__(self) -> None:
        beams, levels = self.settings.beams, len(_hsnn(self.model).codebooks)
        if len(beams) != levels or any(beam < 1 for beam in beams):
            raise ConfigError(
                f"stage of kind 'index': beams must be at least 1, one for each of {levels} index "
                f"levels of the model, got {beams}."
            )
        weights, tasks = self.settings.task_weights, len(self.model.spec.tasks)
        if weights and len(weights) != tasks:
            raise ConfigError(
                f"stage of kind 'index': task_weights must be one for each of {tasks} tasks, got "
                f"{len(weights)}. Leave them out to search by total value."
            )
        check_versions(_hsnn(self.model), self.snapshot)

    @classmethod
    def publish(
        cls,
        model: TrainedModel,
        inventory: Inventory,
        whole: Encoders,
        *,
        settings: IndexSettings,
        encoders: Encoders | None = None,
    ) -> "IndexPlan":
        """Index all ads of an inventory.

        Args:
            model: An ``HSNN``.
            inventory: The ads.
            whole: What they are encoded with.
            settings: How the index is searched.
            encoders: What the model was trained with, where that is other than ``whole``.

        Raises:
            ConfigError: The model is another or has no index yet, or the settings are not for it.
            DataError: There is no ad, or one has features that give no vector.
        """
        hsnn = _hsnn(model)
        snapshot = IndexSnapshot.publish(hsnn, _corpus(model, inventory, whole, encoders))
        of_user, of_pairs = hsnn.count_flops()
        settings = replace(settings, flops=(of_user, *of_pairs))
        return cls(model=model, snapshot=snapshot, settings=settings, encoders=encoders)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.model.name

    def build(self, surroundings: Surroundings) -> Stage:
        """An ``IndexSearch``, in a ``CachedByUser`` where answers are kept."""
        if not self.settings.task_weights:
            check_predictions(surroundings, self.model.spec.tasks)
        reads = self.encoders or surroundings.encoders
        check_counts(self.model.spec, self.kind, where="stage")
        stage = IndexSearch(
            _hsnn(self.model),
            self.model.spec,
            self.snapshot,
            _rows_of(self.snapshot.members.ids.numpy(), surroundings.inventory.codes),
            ad_features(surroundings.inventory, surroundings.encoders, reads),
            surroundings.inventory.attributes,
            surroundings.value,
            beams=self.settings.beams,
            task_weights=self.settings.task_weights,
            flops=(flops[0], flops[1:]) if (flops := self.settings.flops) else None,
        )
        return _serving(stage, surroundings.requests, reads, self.settings.cache)

    def of_ads(self, inventory: Inventory, whole: Encoders) -> "IndexPlan":
        """Index other ads, or the same with other features; known ids count again."""
        corpus = _corpus(self.model, inventory, whole, self.encoders)
        return replace(self, snapshot=IndexSnapshot.publish(_hsnn(self.model), corpus))

    def with_ads(self, more: Inventory, whole: Encoders) -> "IndexPlan":
        """Place more ads by their content."""
        # All at once, as the tree is built anew for each addition.
        corpus = _corpus(self.model, more, whole, self.encoders, at_a_time=len(more))
        ((codes, items),) = corpus
        return replace(self, snapshot=self.snapshot.add(_hsnn(self.model), codes, items))

    def without_ads(self, codes: NDArray[np.int64]) -> "IndexPlan":
        """Take those of the ads out that the index holds."""
        held = codes[np.isin(codes, self.snapshot.members.ids.numpy())]
        if not len(held):
            return self
        return replace(self, snapshot=self.snapshot.remove(torch.from_numpy(held)))

    def write(self, folder: Path) -> None:
        """Write model, index, encoders and settings."""
        write_model(folder, self.model)
        self.snapshot.save(folder / _INDEX)
        write_settings(folder, self.settings)
        write_encoders(folder, self.encoders)

    @classmethod
    def read(cls, folder: Path) -> "IndexPlan":
        """Read what :meth:`write` wrote."""
        return cls(
            model=read_model(folder),
            snapshot=IndexSnapshot.load(folder / _INDEX),
            settings=read_settings(IndexSettings, folder),
            encoders=read_encoders(folder),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoTowerSettings:
    """How two towers are searched."""

    task_weights: tuple[float, ...] = ()
    """Weight of each task's logit in the score; empty: only the first task's counts."""
    by_bid: bool = True
    """Whether the logarithm of the bid is added to scores: logits of rare events are logarithms of
    probabilities, so that the order is that of expected money where ads pay by the first task."""
    cache: UserCache | None = None
    """How answers are kept by user; None: each request is searched for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TwoTowerPlan:
    """Exact search by the dot products of two towers."""

    kind: ClassVar[str] = "two_tower"

    model: TrainedModel
    """A ``TwoTower``."""
    settings: TwoTowerSettings = TwoTowerSettings()
    """How it is searched."""
    encoders: Encoders | None = None
    """What it was trained with, where that is other than the funnel's; None: the funnel's."""

    def __post_init__(self) -> None:
        weights, tasks = self.settings.task_weights, len(_two_tower(self.model).spec.tasks)
        if weights and len(weights) != tasks:
            raise ConfigError(
                f"stage of kind 'two_tower': task_weights must be one for each of {tasks} tasks, "
                f"got {len(weights)}."
            )

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.model.name

    def build(self, surroundings: Surroundings) -> Stage:
        """A ``DotProduct``, in a ``CachedByUser`` where answers are kept."""
        inventory = surroundings.inventory
        model, reads = _two_tower(self.model).eval(), self.encoders or surroundings.encoders
        check_counts(self.model.spec, self.kind, where="stage")
        corpus = _corpus(self.model, inventory, surroundings.encoders, self.encoders)
        items = ItemVectors.encode(model, corpus)
        first_alone = (1.0, *(0.0 for _ in self.model.spec.tasks[1:]))
        vectors = model.queries(self.settings.task_weights or first_alone)

        def queries(requests: Sequence[Request]) -> Tensor:
            return vectors.encode(
                concatenate([features_of(one, reader="retrieval") for one in requests])
            )

        stage = DotProduct(
            items.vectors[items.places(torch.from_numpy(inventory.codes))],
            lambda request: vectors.encode(features_of(request, reader="retrieval"))[0],
            queries=queries,
            offsets=np.log(np.maximum(inventory.attributes.bid, _LEAST_BID))
            if self.settings.by_bid
            else None,
            query_flops=float(vectors.flops),
        )
        return _serving(stage, surroundings.requests, reads, self.settings.cache)

    def write(self, folder: Path) -> None:
        """Write model, encoders and settings."""
        write_model(folder, self.model)
        write_settings(folder, self.settings)
        write_encoders(folder, self.encoders)

    @classmethod
    def read(cls, folder: Path) -> "TwoTowerPlan":
        """Read what :meth:`write` wrote."""
        return cls(
            model=read_model(folder),
            settings=read_settings(TwoTowerSettings, folder),
            encoders=read_encoders(folder),
        )


class _ReadsPart:
    """A stage without predictions that reads a part of the requests' inputs."""

    def __init__(self, stage: Stage, select: InputSelection) -> None:
        self._stage, self._select = stage, select

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        return self._stage(self._part(request), candidates, keep)

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        return score_all(self._stage, [self._part(one) for one in requests], candidates, keep)

    def _part(self, request: Request) -> Request:
        if request.features is None:
            return request
        return replace(request, features=self._select(request.features))


def _serving(stage: Stage, requests: Encoders, reads: Encoders, cache: UserCache | None) -> Stage:
    select = InputSelection(requests, reads, where="stage")
    reading = stage if select.changes_nothing else _ReadsPart(stage, select)
    # A new one for each building: what it remembers is of these ads and this model.
    return reading if cache is None else CachedByUser(reading, cache)


def _hsnn(model: TrainedModel) -> HSNN:
    if not isinstance(model.module, HSNN):
        raise ConfigError(
            f"stage of kind 'index': model must be 'hsnn', got {model.name!r}. Use another kind."
        )
    return model.module.eval()


def _two_tower(model: TrainedModel) -> TwoTower:
    if not isinstance(model.module, TwoTower):
        raise ConfigError(
            f"stage of kind 'two_tower': model must be 'two_tower', got {model.name!r}. Use "
            f"another kind."
        )
    return model.module


def _corpus(
    model: TrainedModel,
    inventory: Inventory,
    whole: Encoders,
    own: Encoders | None,
    *,
    at_a_time: int = _ADS_AT_A_TIME,
) -> Iterator[tuple[Tensor, Batch]]:
    """Codes and features of the ads, some at a time."""
    features = ad_features(inventory, whole, own or whole)
    nobody = blank_batch(model.spec, 1, torch.device("cpu"))
    codes = torch.from_numpy(inventory.codes)
    for ads in torch.arange(len(inventory)).split(at_a_time):
        yield codes[ads], features.pairs(nobody, torch.zeros_like(ads), ads)


def _rows_of(ids: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ad row of each item of an index.

    Raises:
        DataError: An item is no ad of the inventory.
    """
    rows = ads_of(ids, codes)
    strange = int(np.count_nonzero(rows < 0))
    if strange:
        raise DataError(
            f"stage of kind 'index': its ads must be of the inventory, got {strange:,} of "
            f"{len(ids):,} that are not. Change both together, by with_ads and without_ads."
        )
    return rows
