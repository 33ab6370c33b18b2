"""What a request costs: one early-stage model for all tasks, or a model for each.

Costs are modelled, from counts of the real modules that serve. What one model saves is towers,
embedding tables and fetched features; heads are cheap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import InputSpec, Side
from tamis.data.sides import side_spec
from tamis.errors import ConfigError
from tamis.models.early_serving import ServedHead, SideTower, label_tasks
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.nn.embedding import GivenRows
from tamis.training.cost import count_call_flops, count_parameters
from tamis.training.predict import evaluation_mode

_BISECTIONS = 40
_COUNTED = {"mm", "addmm", "bmm", "baddbmm", "embedding", "_embedding_bag"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Requests as they come."""

    candidates: int = 500
    """Candidates N of a request. At least 1."""
    miss_rate: float = 0.01
    """Share of them, in [0, 1], whose vector is not in the table of ads and is computed."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or not 0 <= self.miss_rate <= 1:
            raise ConfigError(
                f"load: candidates of at least 1 and a miss_rate in [0, 1] must hold, got "
                f"{self.candidates} and {self.miss_rate}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestCost:
    """What one request costs, and what must be held in memory to answer it."""

    flops: float
    """Floating-point operations of matrix products, a multiplication with its addition as two."""
    dense_parameters: int
    """Parameters outside tables, of what serves."""
    table_bytes: int
    """Embedding tables of all towers."""
    activation_bytes: float
    """Results of matrix products and lookups, float32."""
    features_fetched: float
    """Columns of the user, the context, and of the ads whose vector is not cached."""
    vectors_fetched: float
    """Vectors of ads that are looked up."""

    def __add__(self, other: "RequestCost") -> "RequestCost":
        """Both, one after the other."""
        return RequestCost(**{n: getattr(self, n) + getattr(other, n) for n in _COSTS})


_COSTS = tuple(field.name for field in fields(RequestCost))


@dataclass(frozen=True, kw_only=True, slots=True)
class Consolidation:
    """One model for all tasks beside a model for each."""

    together: RequestCost
    """The one model."""
    apart: RequestCost
    """All models of one task, summed."""

    @property
    def ratios(self) -> dict[str, float]:
        """What the models of one task cost for each unit that the one model costs, by cost."""
        found = {}
        for name in _COSTS:
            apart, together = getattr(self.apart, name), getattr(self.together, name)
            found[name] = apart / together if together else math.nan
        return found


def request_cost(model: EarlyStage, load: Load, *, head: ServedHead = "distilled") -> RequestCost:
    """Cost of a request: user and context once, ads that are not cached, and a pair for each ad.

    ``c_user + c_context + miss_rate N c_ad + c_pairs(N)``, where the pairs' part that a request's
    query alone decides is computed once, as the scorer does.

    Args:
        model: The ranker; untouched.
        load: Requests.
        head: Which heads serve; the others cost nothing.

    Source:
        Wang et al., arXiv:2307.11096, claim that one model costs less to serve than several.

    Differs from the source:
        The paper's own account of the cost was not read; this one is of this library.
    """
    parts = model.export(head=head)
    count, missed = load.candidates, load.miss_rate * load.candidates
    towers: dict[Side, tuple[SideTower, float]] = {
        "user": (parts.user_tower, 1.0),
        "item": (parts.ad_tower, missed),
    }
    if parts.context_tower is not None:
        towers["context"] = (parts.context_tower, 1.0)
    width = model.config.tower_dim
    device = model.inputs.tables.weight.device
    pairs = (
        torch.zeros(1, width * (len(towers) - 1), device=device),
        torch.zeros(count, width, device=device),
    )
    flops = count_call_flops(parts.scorer, *pairs)
    activations = _activation_bytes(parts.scorer, *pairs)
    parameters = count_parameters(parts.scorer)["dense"]
    table_bytes, features = 0, 0.0
    for side, (tower, times) in towers.items():
        spec = side_spec(model.spec, side)
        row = _one_row(spec, device)
        flops += times * count_call_flops(tower, row)
        activations += times * _activation_bytes(tower, row)
        parameters += count_parameters(tower)["dense"]
        table_bytes += _table_bytes(tower)
        features += times * _num_columns(spec)
    return RequestCost(
        flops=flops,
        dense_parameters=parameters,
        table_bytes=table_bytes,
        activation_bytes=activations,
        features_fetched=features,
        vectors_fetched=float(count),
    )


def compare_costs(
    together: EarlyStage,
    apart: Sequence[EarlyStage],
    load: Load,
    *,
    head: ServedHead = "distilled",
) -> Consolidation:
    """One model of all tasks beside models of one task, each with towers and caches of its own.

    Args:
        together: Ranker of all tasks.
        apart: At least one ranker, together of the same tasks.
        load: Requests.
        head: Which heads serve.

    Raises:
        ConfigError: The models of one task do not serve what the one model serves.
    """
    wanted = [task.name for task in label_tasks(together.spec.tasks)]
    found = [task.name for model in apart for task in label_tasks(model.spec.tasks)]
    if sorted(wanted) != sorted(found):
        raise ConfigError(
            f"consolidation: models apart must serve {', '.join(wanted)}, got {', '.join(found)}. "
            f"Compare what serves the same."
        )
    costs = [request_cost(model, load, head=head) for model in apart]
    total = costs[0]
    for cost in costs[1:]:
        total = total + cost
    return Consolidation(together=request_cost(together, load, head=head), apart=total)


def equal_cost_config(
    config: EarlyStageConfig,
    spec: InputSpec,
    load: Load,
    *,
    flops: float,
    head: ServedHead = "distilled",
) -> EarlyStageConfig:
    """The widest model of a config's shape that answers a request within a budget.

    All widths shrink by one factor, those of embeddings among them. For models of one task at the
    cost of one model for M tasks, give each an M-th of its ``flops``.

    Args:
        config: Shape; no width grows beyond it.
        spec: Inputs and tasks of the model.
        load: Requests.
        flops: Budget of a request.
        head: Which heads serve.

    Raises:
        ConfigError: Not even widths of 1 are within the budget.
    """

    def cost(scale: float) -> float:
        return request_cost(_priced(_scaled(config, scale), spec), load, head=head).flops

    if cost(1.0) <= flops:
        return config
    low, high = 0.0, 1.0
    if cost(low) > flops:
        raise ConfigError(
            f"consolidation: the budget must allow widths of 1, which cost {cost(low):,.0f}, got "
            f"{flops:,.0f}. Allow more, or take fewer candidates."
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= flops else (low, middle)
        if _scaled(config, low) == _scaled(config, high):
            break
    return _scaled(config, low)


def _scaled(config: EarlyStageConfig, scale: float) -> EarlyStageConfig:
    """All widths times a factor, rounded, at least 1."""

    def times(units: Sequence[int]) -> tuple[int, ...]:
        return tuple(max(1, round(scale * width)) for width in units)

    (embedding_dim, tower_dim) = times((config.embedding_dim, config.tower_dim))
    return replace(
        config,
        embedding_dim=embedding_dim,
        tower_dim=tower_dim,
        tower_units=times(config.tower_units),
        bottom_units=times(config.bottom_units),
        expert_units=tuple(times(level) for level in config.expert_units),
        head_units=times(config.head_units),
    )


def _priced(config: EarlyStageConfig, spec: InputSpec) -> EarlyStage:
    """A model to count operations of, whose tables hold one row: lookups cost none."""
    tables = tuple(replace(table, num_rows=1) for table in spec.tables)
    with torch.random.fork_rng(devices=[]):
        return EarlyStage(config, replace(spec, tables=tables))


def _one_row(spec: InputSpec, device: torch.device) -> Batch:
    """A row of first categories and zeros, with full histories."""
    integers: dict[str, Any] = {"dtype": torch.int64, "device": device}
    return Batch(
        numeric=torch.zeros(1, len(spec.numeric), device=device),
        ids=torch.zeros(1, len(spec.categorical), **integers),
        labels=torch.zeros(1, len(spec.tasks), device=device),
        weights=torch.ones(1, device=device),
        sequences={
            group.name: Jagged(
                values=torch.zeros(group.max_length, len(group.fields), **integers),
                offsets=torch.tensor([0, group.max_length], **integers),
            )
            for group in spec.sequences
        },
    )


def _num_columns(spec: InputSpec) -> int:
    events = sum(len(group.fields) for group in spec.sequences)
    return len(spec.numeric) + len(spec.categorical) + events


def _table_bytes(tower: SideTower) -> int:
    rows: list[Tensor] = [tower.inputs.tables.weight]
    rows += [part.rows for part in tower.modules() if isinstance(part, GivenRows)]
    return sum(part.numel() * part.element_size() for part in rows)


class _CountBytes(TorchDispatchMode):
    """Sums the bytes of what matrix products and lookups give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  (an operator of torch)
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _COUNTED:
            first = result if isinstance(result, Tensor) else result[0]
            self.total += first.numel() * first.element_size()
        return result


def _activation_bytes(module: nn.Module, *inputs: Any) -> float:  # noqa: ANN401
    counter = _CountBytes()
    with evaluation_mode(module), torch.no_grad(), counter:
        module(*inputs)
    return float(counter.total)
