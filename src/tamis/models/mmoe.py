"""MMoE, and its form of several levels."""

from collections.abc import Sequence
from dataclasses import dataclass

from tamis.data.schema import InputSpec
from tamis.models.multi_task import (
    FusionRanker,
    MultiTaskConfig,
    TaskTowers,
    check_levels,
    multi_task_inputs,
)
from tamis.models.ranges import check_ranges
from tamis.nn.experts import Experts, Fusion, FusionStack, Gates


@dataclass(frozen=True, kw_only=True, slots=True)
class MMoEConfig(MultiTaskConfig):
    """MMoE with one level; with more levels ML-MMoE."""

    expert_units: tuple[tuple[int, ...], ...] = ((256, 128),)
    """Widths of an expert's layers, for each level."""
    num_experts: int = 6
    """Experts E in every level."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_levels(self.expert_units)


class MMoE(FusionRanker):
    """Experts that all tasks share, mixed by one softmax gate for each task.

    With several levels every expert of a level reads a mixture of its own of the level below. All
    gates of all levels read the input itself.

    Source:
        Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate
        Mixture-of-Experts, KDD 2018, equations (6) and (7); several levels as in the baseline of
        AdaTT, arXiv:2304.04959, section 4.

    Differs from the source:
        Gates have biases, as in AdaTT's code; weights start from Xavier's uniform distribution and
        biases from 0, as in most tamis models, and there as PyTorch's do.
    """

    def __init__(self, config: MMoEConfig, spec: InputSpec) -> None:
        """Build the levels and towers for the tasks of ``spec``."""
        num_tasks = len(spec.tasks)
        inputs = multi_task_inputs(config, spec)
        stack = mmoe_stack(
            inputs.out_dim,
            config.expert_units,
            num_experts=config.num_experts,
            num_tasks=num_tasks,
        )
        towers = TaskTowers(config.expert_units[-1][-1], config.tower_units, num_tasks)
        owners = [f"expert {number + 1}" for number in range(config.num_experts)]
        super().__init__(inputs, stack, towers, owners=owners, spec=spec)


def mmoe_stack(
    in_dim: int, expert_units: Sequence[Sequence[int]], *, num_experts: int, num_tasks: int
) -> FusionStack:
    """Levels of experts that all tasks share, between an input vector and one for each task.

    Args:
        in_dim: Width of the input.
        expert_units: Widths of an expert's layers, for each level.
        num_experts: Experts E in every level.
        num_tasks: Vectors that the last level fuses.
    """
    width = in_dim
    everyone = range(num_experts)
    levels = []
    for place, units in enumerate(expert_units):
        is_last = place == len(expert_units) - 1
        gates = Gates(
            in_dim,
            [everyone] * (num_tasks if is_last else num_experts),
            num_experts=num_experts,
            reads="raw",
        )
        levels.append(Fusion(Experts(width, units, [1] * num_experts), gates, native=None))
        width = units[-1]
    return FusionStack(levels, num_units=num_experts)
