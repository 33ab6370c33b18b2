"""A model none of whose weights is at its start, a corpus of items, and the index of both."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tamis.data.batch import Batch
from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.models.hsnn import HSNN, HSNNConfig
from tamis.models.monn import MoNNConfig
from tamis.retrieval.searcher import Request
from tamis.retrieval.snapshot import IndexSnapshot

_SMALL = MoNNConfig(user_tokens=2, user_dim=6, width=6, module_tokens=2, head_units=(8,))
_SPEC = InputSpec(
    numeric=("affinity", "price"),
    categorical=(
        CategoricalInput(name="user", table="user", side="user"),
        CategoricalInput(name="item", table="item", side="item"),
        CategoricalInput(name="kind", table="kind", side="item"),
    ),
    sequences=(),
    tables=(
        Table(name="user", num_rows=10),
        Table(name="item", num_rows=400),
        Table(name="kind", num_rows=12),
    ),
    tasks=(Task(name="click"), Task(name="buy")),
    numeric_sides=("context", "item"),
    item="item",
)


def _blank(rows: int) -> Batch:
    return Batch(
        numeric=torch.zeros(rows, 2),
        ids=torch.zeros(rows, 3, dtype=torch.int32),
        labels=torch.zeros(rows, 2),
        weights=torch.ones(rows),
    )


@dataclass(frozen=True)
class World:
    """Items are numbered; their features, and those of pairs, follow from the number."""

    model: HSNN

    def features(self, ids: Tensor) -> Batch:
        batch = _blank(len(ids))
        batch.ids[:, 1], batch.ids[:, 2] = ids % 400, ids % 12
        batch.numeric[:, 1] = torch.sin(ids * 1.7)
        return batch

    def request(self, user: int, seen: list[Tensor] | None = None) -> Request:
        """A user's request; ``seen`` collects the ids whose pairs were asked for."""
        row = _blank(1)
        row.ids[:, 0] = user

        def pairs(ids: Tensor) -> Batch:
            if seen is not None:
                seen.append(ids.clone())
            batch = _blank(len(ids))
            batch.numeric[:, 0] = torch.cos(ids * (user + 0.3))
            return batch

        return Request(user=row, pairs=pairs)

    def publish(self, ids: Tensor) -> IndexSnapshot:
        return IndexSnapshot.publish(self.model, [(ids, self.features(ids))])


def _world(codebooks: tuple[int, ...]) -> World:
    config = HSNNConfig(
        embedding_dim=6,
        levels=(replace(_SMALL, user_tokens=4, num_layers=2), _SMALL, _SMALL)[
            -len(codebooks) - 1 :
        ],
        codebooks=codebooks,
        item_dim=8,
        cross_dim=6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HSNN(config, _SPEC).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape))
    world = World(model)
    if codebooks:
        vectors = model.encode_items(world.features(torch.arange(1, 300))).detach()
        model.index.fit(vectors, seed=0)
    return world


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    """A world whose index has codebooks of the given sizes."""
    return _world


@pytest.fixture
def world() -> World:
    return _world((6, 4))


@pytest.fixture
def snapshot(world: World) -> IndexSnapshot:
    return world.publish(torch.arange(1, 301))
