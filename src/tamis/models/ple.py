"""Progressive layered extraction: experts of each task, and shared ones, in levels."""

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
        Gates have biases, as in AdaTT's code.
    """

    def __init__(self, config: PLEConfig, spec: InputSpec) -> None:
        """Build the levels and towers for the tasks of ``spec``."""
        num_tasks, own = len(spec.tasks), config.task_experts
        counts = [own] * num_tasks + [config.shared_experts]
        shared = range(own * num_tasks, sum(counts))
        visible = [[*range(own * task, own * (task + 1)), *shared] for task in range(num_tasks)]
        inputs = multi_task_inputs(config, spec)
        width = inputs.out_dim
        levels = []
        for place, units in enumerate(config.expert_units):
            is_last = place == len(config.expert_units) - 1
            gates = Gates(
                width,
                visible if is_last else [*visible, range(sum(counts))],
                num_experts=sum(counts),
            )
            levels.append(Fusion(Experts(width, units, counts), gates, native=None))
            width = units[-1]
        stack = FusionStack(levels, num_units=len(counts))
        towers = TaskTowers(width, config.tower_units, num_tasks)
        super().__init__(inputs, stack, towers, owners=unit_names(spec, is_shared=True), spec=spec)
