"""Shared-Bottom: one network for all tasks, then a tower for each."""

from dataclasses import dataclass

from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.multi_task import MultiTaskConfig, TaskTowers, multi_task_inputs
from tamis.models.output import Output
from tamis.nn.mlp import MLP


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedBottomConfig(MultiTaskConfig):
    """Shared-Bottom."""

    bottom_units: tuple[int, ...] = (256, 128)
    """Hidden widths of the shared network; empty for towers on the inputs themselves."""


class SharedBottom(nn.Module):
    """``logit_t = tower_t(bottom(x))``.

    Source:
        Caruana, Multitask Learning, Machine Learning 1997; the baseline of MMoE, KDD 2018,
        equation (1).

    Differs from the source:
        Layers start from Xavier's uniform distribution, in AdaTT's code as PyTorch's do.
    """

    def __init__(self, config: SharedBottomConfig, spec: InputSpec) -> None:
        """Build the network and a tower for each task of ``spec``."""
        super().__init__()
        self.inputs = multi_task_inputs(config, spec)
        self.bottom = MLP(self.inputs.out_dim, config.bottom_units)
        self.towers = TaskTowers(self.bottom.out_dim, config.tower_units, len(spec.tasks))

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        x = self.bottom(self.inputs(batch))
        return Output(logits=self.towers([x] * len(self.towers.towers)))
