"""What multi-task rankers have in common: inputs, levels of experts, a tower for each task."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Inspection, Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FlatInputs, OneHotInputs
from tamis.nn.experts import FusionStack
from tamis.nn.mlp import MLP


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiTaskConfig:
    """Settings that all multi-task rankers have."""

    inputs: Literal["embeddings", "one_hot"] = "embeddings"
    """Categories as learned vectors, or as one column for every value, for tables of few rows."""
    embedding_dim: int = 16
    """Width of an embedding; unused with ``one_hot``."""
    tower_units: tuple[int, ...] = (64,)
    """Hidden widths of each task's tower; may be empty."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


def check_levels(expert_units: tuple[tuple[int, ...], ...]) -> None:
    """Check the widths of the experts of each level.

    Raises:
        ConfigError: There is no level, or one without a layer or with a width below 1.
    """
    if not expert_units or any(not level or min(level) < 1 for level in expert_units):
        raise ConfigError(
            f"model.expert_units: must hold a list of widths for each level, got "
            f"{expert_units!r}. Two levels of one layer are [[256], [128]]."
        )


def multi_task_inputs(config: MultiTaskConfig, spec: InputSpec) -> FlatInputs | OneHotInputs:
    """The vector that all tasks start from."""
    if config.inputs == "one_hot":
        return OneHotInputs(spec)
    return FlatInputs(spec, config.embedding_dim, init_std=config.init_std)


class TaskTowers(nn.Module):
    """One MLP with ReLU and one logit for each task, each on its own vector."""

    def __init__(self, in_dim: int, hidden_units: Sequence[int], num_tasks: int) -> None:
        """Build the towers."""
        super().__init__()
        self.towers = nn.ModuleList(
            MLP(in_dim, hidden_units, out_dim=1, makes_logits=True) for _ in range(num_tasks)
        )

    def forward(self, vectors: Sequence[Float[Tensor, "B W"]]) -> Float[Tensor, "B T"]:
        """Logits of all tasks, one vector each."""
        logits = [tower(x) for tower, x in zip(self.towers, vectors, strict=True)]
        return torch.cat(logits, dim=1)

    def of(self, tasks: Sequence[int]) -> "TaskTowers":
        """A copy with the towers of some tasks, in the given order."""
        part = copy.deepcopy(self)
        part.towers = nn.ModuleList(part.towers[task] for task in tasks)
        return part


class FusionRanker(nn.Module):
    """``logit_t = tower_t(fusion_t(x))``: what rankers with levels of experts share."""

    def __init__(
        self,
        inputs: FlatInputs | OneHotInputs,
        stack: FusionStack,
        towers: TaskTowers,
        *,
        owners: Sequence[str],
        spec: InputSpec,
    ) -> None:
        """Put the parts together.

        Args:
            inputs: The vector x.
            stack: Levels of experts; the last one fuses a vector for each task.
            towers: A tower for each task.
            owners: Name of each unit of experts, in the stack's order.
            spec: Names of the tasks.
        """
        super().__init__()
        self.inputs, self.stack, self.towers = inputs, stack, towers
        self.task_names = tuple(task.name for task in spec.tasks)
        self.owners = tuple(owners)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        return Output(logits=self.towers(self.stack(self.inputs(batch))))

    def fusion_weights(self, batch: Batch) -> list[Float[Tensor, "B A E"]]:
        """What each fused vector weighs each expert by, level by level and row by row.

        Gates and native paths together; 0 for experts that a unit does not see.
        """
        return [weights for weights, _ in self.stack.trace(self.inputs(batch))]

    def inspections(self, batch: Batch) -> list[Inspection]:
        """Mean weights of every level, and how often an expert says nothing at all."""
        found = []
        for place, (weights, outputs) in enumerate(self.stack.trace(self.inputs(batch)), start=1):
            experts = self._names_of_experts(self.stack.counts[place - 1])
            is_last = place == len(self.stack.levels)
            found.append(
                Inspection(
                    title=f"Level {place}: mean weight of each expert",
                    rows=self.task_names if is_last else self.owners,
                    columns=experts,
                    values=weights.float().mean(0),
                )
            )
            silent = (outputs == 0).all(2).float().mean(0, keepdim=True)
            found.append(
                Inspection(
                    title=f"Level {place}: share of rows in which an expert is all zero",
                    rows=("all rows",),
                    columns=experts,
                    values=silent,
                )
            )
        return found

    def _names_of_experts(self, counts: Sequence[int]) -> tuple[str, ...]:
        if all(count == 1 for count in counts):
            return self.owners
        units = zip(self.owners, counts, strict=True)
        return tuple(f"{owner} {number + 1}" for owner, count in units for number in range(count))


def unit_names(spec: InputSpec, *, is_shared: bool) -> list[str]:
    """A unit of experts for each task, and one that all share."""
    return [*(task.name for task in spec.tasks), *(["shared"] if is_shared else [])]
