"""Cross-stitch networks: a network for each task, whose layers exchange linear combinations."""

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
from tamis.nn.experts import Experts, FusionStack, Stitch


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossStitchConfig(MultiTaskConfig):
    """Cross-stitch network."""

    expert_units: tuple[tuple[int, ...], ...] = ((256,), (128,))
    """Widths of each task's layers before each stitch."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_levels(self.expert_units)


class CrossStitch(FusionRanker):
    """One network per task; after each level task t goes on with ``sum_j S[t, j] E_j``.

    Source:
        Misra et al., Cross-stitch Networks for Multi-task Learning, CVPR 2016, equation (1); as in
        the baseline of AdaTT, arXiv:2304.04959, S starts at random and is one matrix per level.

    Differs from the source:
        On vectors instead of the maps of a convolution. Layers start from Xavier's uniform
        distribution, in AdaTT's code as PyTorch's do.
    """

    def __init__(self, config: CrossStitchConfig, spec: InputSpec) -> None:
        """Build a network and a tower for each task of ``spec``."""
        num_tasks = len(spec.tasks)
        inputs = multi_task_inputs(config, spec)
        width = inputs.out_dim
        levels = []
        for units in config.expert_units:
            levels.append(Stitch(Experts(width, units, [1] * num_tasks), num_tasks))
            width = units[-1]
        stack = FusionStack(levels, num_units=num_tasks)
        towers = TaskTowers(width, config.tower_units, num_tasks)
        super().__init__(inputs, stack, towers, owners=unit_names(spec, is_shared=False), spec=spec)
