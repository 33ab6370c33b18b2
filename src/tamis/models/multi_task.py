"""What multi-task rankers have in common: inputs in one vector, and a tower for each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FlatInputs, OneHotInputs
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
