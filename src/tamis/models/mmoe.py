"""MMoE, and its form of several levels."""

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
        Gates have biases, as in AdaTT's code.
    """

    def __init__(self, config: MMoEConfig, spec: InputSpec) -> None:
        """Build the levels and towers for the tasks of ``spec``."""
        num_tasks = len(spec.tasks)
        inputs = multi_task_inputs(config, spec)
        raw_dim = width = inputs.out_dim
        everyone = range(config.num_experts)
        levels = []
        for place, units in enumerate(config.expert_units):
            is_last = place == len(config.expert_units) - 1
            gates = Gates(
                raw_dim,
                [everyone] * (num_tasks if is_last else config.num_experts),
                num_experts=config.num_experts,
                reads="raw",
            )
            experts = Experts(width, units, [1] * config.num_experts)
            levels.append(Fusion(experts, gates, native=None))
            width = units[-1]
        stack = FusionStack(levels, num_units=config.num_experts)
        towers = TaskTowers(width, config.tower_units, num_tasks)
        super().__init__(
            inputs, stack, towers, owners=[f"expert {number + 1}" for number in everyone], spec=spec
        )
