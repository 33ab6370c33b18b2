"""Cross-stitch networks: a network for each task, whose layers exchange linear combinations."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.multi_task import MultiTaskConfig, TaskTowers, check_levels, multi_task_inputs
from tamis.models.output import Output
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


class CrossStitch(nn.Module):
    """One network per task; after each level task t goes on with ``sum_j S[t, j] E_j``.

    Source:
        Misra et al., Cross-stitch Networks for Multi-task Learning, CVPR 2016, equation (1); as in
        the baseline of AdaTT, arXiv:2304.04959, S starts at random and is one matrix per level.

    Differs from the source:
        On vectors instead of the maps of a convolution.
    """

    def __init__(self, config: CrossStitchConfig, spec: InputSpec) -> None:
        """Build a network and a tower for each task of ``spec``."""
        super().__init__()
        num_tasks = len(spec.tasks)
        self.inputs = multi_task_inputs(config, spec)
        width = self.inputs.out_dim
        levels = []
        for units in config.expert_units:
            levels.append(Stitch(Experts(width, units, [1] * num_tasks), num_tasks))
            width = units[-1]
        self.stack = FusionStack(levels, num_units=num_tasks)
        self.towers = TaskTowers(width, config.tower_units, num_tasks)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        return Output(logits=self.towers(self.stack(self.inputs(batch))))

    def fusion_weights(self, batch: Batch) -> list[Float[Tensor, "B A E"]]:
        """S of every level, the same for all rows."""
        return self.stack.weights(self.inputs(batch))
