"""AdaTT: every task owns experts, borrows those of the others, and keeps its own beside."""

from dataclasses import dataclass
from typing import Literal

from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.multi_task import (
    FusionRanker,
    MultiTaskConfig,
    TaskTowers,
    check_levels,
    multi_task_inputs,
    unit_names,
)
from tamis.models.ranges import check_ranges
from tamis.nn.experts import Experts, Fusion, FusionStack, Gates, NativePaths


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaTTConfig(MultiTaskConfig):
    """AdaTT-sp and, with shared experts, the general AdaTT."""

    expert_units: tuple[tuple[int, ...], ...] = ((256,), (128,))
    """Widths of an expert's layers, for each level of fusion."""
    task_experts: tuple[int, ...] = (2,)
    """Experts that each task owns in every level: one number for all tasks, or one for each."""
    shared_experts: int = 0
    """Experts of the shared unit in every level; 0 is AdaTT-sp, which has no shared unit."""
    level_experts: tuple[tuple[int, ...], ...] = ()
    """For each level the experts of each task, and behind them those of the shared unit where there
    is one. Empty: the two numbers above, in every level; else they are not read."""
    gate: Literal["own", "raw", "constant", "none"] = "own"
    """What gates read: their unit's own vector, the model's input, or nothing (weights that are the
    same for all rows); ``none`` leaves them out, so that tasks share nothing but the input."""
    gate_bias: bool = True
    """Whether gates have biases; of gates that read something (``own`` and ``raw``)."""
    native: Literal["paper", "official", "unit", "softmax", "gated", "none"] = "paper"
    """Weights of a unit's own experts beside the gate: 1 for a unit of one expert and else learned;
    learned in all units as soon as one has several (the authors' code); always 1; learned with sum
    1; a linear map of the unit's vector; or no such path."""

    def __post_init__(self) -> None:
        check_ranges(self, may_be_zero=("shared_experts",))
        check_levels(self.expert_units)
        if not self.task_experts:
            raise ConfigError("model.task_experts: must hold a number, got none.")
        if self.level_experts and len(self.level_experts) != len(self.expert_units):
            raise ConfigError(
                f"model.level_experts: must hold a list for each of the {len(self.expert_units)} "
                f"levels of model.expert_units, got {len(self.level_experts)}."
            )
        if any(count < 1 for counts in self.level_experts for count in counts):
            raise ConfigError(
                f"model.level_experts: must be at least 1 everywhere, got {self.level_experts}."
            )
        if self.gate == "none" and self.native == "none":
            raise ConfigError(
                "model.native: must not be 'none' together with model.gate, got 'none' for both: "
                "no expert would reach a task."
            )

    def counts(self, num_tasks: int) -> tuple[tuple[int, ...], ...]:
        """For each level the experts of each unit: those of the tasks, then the shared one.

        Raises:
            ConfigError: ``task_experts`` holds neither one number nor one for each task, or
                ``level_experts`` has other units than tasks and at most one shared, in all levels.
        """
        if self.level_experts:
            units = {len(counts) for counts in self.level_experts}
            if len(units) > 1 or not units <= {num_tasks, num_tasks + 1}:
                raise ConfigError(
                    f"model.level_experts: must hold {num_tasks} numbers in every level, one for "
                    f"each task, or one more in every level for the shared unit, got "
                    f"{[list(counts) for counts in self.level_experts]}."
                )
            return self.level_experts
        if len(self.task_experts) not in (1, num_tasks):
            raise ConfigError(
                f"model.task_experts: must hold one number or one for each of {num_tasks} tasks, "
                f"got {list(self.task_experts)}."
            )
        counts = self.task_experts * (num_tasks if len(self.task_experts) == 1 else 1)
        if self.shared_experts:
            counts = (*counts, self.shared_experts)
        return (counts,) * len(self.expert_units)


class AdaTT(FusionRanker):
    """Levels of fusion units ``f_t = (G_t + pad(v_t))' E`` over the experts E of all units.

    Task t's gate G_t and its own experts read f_t of the level below; the first level sees the
    input in every unit. v_t weighs the task's own experts and does not depend on the row. With
    shared experts there is one more unit, which fuses in all levels but the last.

    Source:
        Li et al., AdaTT, KDD 2023, arXiv:2304.04959, equations (1) to (11); the general form is
        section 3.2.

    Differs from the source:
        Gates have biases by default, as in the authors' code and not in equation (10). Weights
        start from Xavier's uniform distribution and biases from 0, as in most tamis models; the
        maps of ``native = "gated"``, which are no part of the paper, start as PyTorch's do.
    """

    def __init__(self, config: AdaTTConfig, spec: InputSpec) -> None:
        """Build the levels and towers for the tasks of ``spec``."""
        num_tasks = len(spec.tasks)
        inputs = multi_task_inputs(config, spec)
        raw_dim = width = inputs.out_dim
        levels = []
        of_levels = config.counts(num_tasks)
        num_units = len(of_levels[0])
        for place, (units, counts) in enumerate(zip(config.expert_units, of_levels, strict=True)):
            is_last = place == len(of_levels) - 1
            fusing = num_tasks if is_last else num_units
            gates = native = None
            if config.gate != "none":
                gates = Gates(
                    raw_dim if config.gate == "raw" else width,
                    [range(sum(counts))] * fusing,
                    num_experts=sum(counts),
                    reads=config.gate,
                    bias=config.gate_bias,
                )
            if config.native != "none":
                native = NativePaths(width, counts, num_fusing=fusing, kind=config.native)
            levels.append(Fusion(Experts(width, units, counts), gates, native))
            width = units[-1]
        stack = FusionStack(levels, num_units=num_units)
        towers = TaskTowers(width, config.tower_units, num_tasks)
        super().__init__(
            inputs,
            stack,
            towers,
            owners=unit_names(spec, is_shared=num_units > num_tasks),
            spec=spec,
        )
