"""Progressive layered extraction: experts of each task, and shared ones, in levels."""

from collections.abc import Sequence
from dataclasses import dataclass

from tamis.data.schema import InputSpec
from tamis.models.multi_task import (
    FusionRanker,
    MultiTaskConfig,
    TaskTowers,
    check_levels,
    multi_task_inputs,
    unit_names,
)
from tamis.models.ranges import check_ranges
from tamis.nn.experts import Experts, Fusion, FusionStack, Gates


@dataclass(frozen=True, kw_only=True, slots=True)
class PLEConfig(MultiTaskConfig):
    """PLE; with one level CGC."""

    expert_units: tuple[tuple[int, ...], ...] = ((256,), (128,))
    """Widths of an expert's layers, for each level of extraction."""
    task_experts: int = 1
    """Experts that each task owns in every level."""
    shared_experts: int = 1
    """Experts that all tasks share in every level."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_levels(self.expert_units)


class PLE(FusionRanker):
    """A task's gate mixes the task's own experts and the shared ones, never other tasks'.

    The shared unit's gate mixes all experts; it fuses in all levels but the last. From the second
    level on, every unit's gate and experts read the unit's own vector.

    Source:
        Tang et al., Progressive Layered Extraction (PLE), RecSys 2020, equations (1) to (7).

    Differs from the source:
        Gates have biases, as in AdaTT's code; weights start from Xavier's uniform distribution and
        biases from 0, as in most tamis models, and there as PyTorch's do.
    """

    def __init__(self, config: PLEConfig, spec: InputSpec) -> None:
        """Build the levels and towers for the tasks of ``spec``."""
        num_tasks = len(spec.tasks)
        inputs = multi_task_inputs(config, spec)
        stack = ple_stack(
            inputs.out_dim,
            config.expert_units,
            task_experts=config.task_experts,
            shared_experts=config.shared_experts,
            num_tasks=num_tasks,
        )
        towers = TaskTowers(config.expert_units[-1][-1], config.tower_units, num_tasks)
        super().__init__(inputs, stack, towers, owners=unit_names(spec, is_shared=True), spec=spec)


def ple_stack(
    in_dim: int,
    expert_units: Sequence[Sequence[int]],
    *,
    task_experts: int,
    shared_experts: int,
    num_tasks: int,
) -> FusionStack:
    """Levels of extraction between an input vector and one for each task.

    Args:
        in_dim: Width of the input.
        expert_units: Widths of an expert's layers, for each level.
        task_experts: Experts that each task owns in every level.
        shared_experts: Experts that all tasks share in every level.
        num_tasks: Vectors that the last level fuses.
    """
    own = task_experts
    counts = [own] * num_tasks + [shared_experts]
    shared = range(own * num_tasks, sum(counts))
    visible = [[*range(own * task, own * (task + 1)), *shared] for task in range(num_tasks)]
    width = in_dim
    levels = []
    for place, units in enumerate(expert_units):
        is_last = place == len(expert_units) - 1
        gates = Gates(
            width,
            visible if is_last else [*visible, range(sum(counts))],
            num_experts=sum(counts),
        )
        levels.append(Fusion(Experts(width, units, counts), gates, native=None))
        width = units[-1]
    return FusionStack(levels, num_units=len(counts))
