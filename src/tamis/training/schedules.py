"""What changes while a run goes on: step sizes, and whether it should stop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tamis.data.schema import Task
from tamis.errors import ConfigError
from tamis.training.config import ScheduleConfig, TrainingConfig


def step_size_fraction(config: ScheduleConfig, *, step: int, total_steps: int) -> float:
    """Share of the configured step size at a step, plateau reductions apart.

    Args:
        config: Warm-up and shape.
        step: Steps done before this one.
        total_steps: Steps of the longest possible run; a cosine ends there.

    Returns:
        Rises linearly to 1 over ``warmup_steps``, then stays or falls along half a cosine.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    span = max(1, total_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    return config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """The validation metric that picks the weights and stops the run."""

    tasks: tuple[str, ...]
    """Tasks that are looked at."""
    metric: str
    """``ne``, ``log_loss``, ``auc``, ``gauc``, or ``rmse`` for a task that is not binary."""

    @property
    def larger_is_better(self) -> bool:
        """Whether an increase is an improvement."""
        return self.metric in ("auc", "gauc")

    @property
    def needs_both_classes(self) -> bool:
        """Whether the metric is undefined where all labels are equal."""
        return self.metric in ("ne", "auc", "gauc")

    @property
    def needs_users(self) -> bool:
        """Whether the metric is one within users."""
        return self.metric == "gauc"

    def value(self, metrics: Mapping[str, Mapping[str, Any]]) -> float:
        """Its mean over the tasks; NaN where it is undefined for one of them."""
        values = [metrics[task][self.metric] for task in self.tasks]
        return math.nan if None in values else sum(map(float, values)) / len(values)


def choose_monitor(config: TrainingConfig, tasks: tuple[Task, ...]) -> Monitor:
    """The metric that a config asks for; a task that is not binary is monitored by its RMSE.

    Raises:
        ConfigError: There is no such task, or tasks of several kinds would be averaged.
    """
    kinds = {task.name: task.kind for task in tasks}
    names = config.monitor_tasks or (tasks[0].name,)
    for name in names:
        if name not in kinds:
            raise ConfigError(
                f"training.monitor_tasks: must be of {', '.join(kinds)}, got {name!r}."
            )
    if len({kinds[name] for name in names}) > 1:
        raise ConfigError(
            f"training.monitor_tasks: must all be of one kind to have a mean, got "
            f"{', '.join(names)}."
        )
    is_binary = kinds[names[0]] == "binary"
    return Monitor(tasks=tuple(names), metric=config.monitor if is_binary else "rmse")


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a run stands; together with weights and generators this is its whole state."""

    step: int = 0
    """Steps done."""
    epoch: int = 0
    """Passes finished."""
    batch: int = 0
    """Batches done in the current pass."""
    best_value: float | None = None
    """Best monitored value so far."""
    best_step: int = 0
    """Step at which it was reached."""
    stale_evaluations: int = 0
    """Evaluations since then."""
    plateau_evaluations: int = 0
    """Evaluations without improvement since the last reduction of the step size."""
    plateau_fraction: float = 1.0
    """Product of the reductions so far."""
    loss_sum: float = 0.0
    """Sum of the training loss over the steps since the last evaluation."""
    loss_steps: int = 0
    """Their number."""
    rows: int = 0
    """Rows trained on, each pass counted."""
    lines: int = 0
    """Lines of ``metrics.jsonl`` that belong to this state."""
    seconds: float = 0.0
    """Training time so far, in all processes that worked on the run."""

    def observe(
        self,
        value: float,
        *,
        larger_is_better: bool,
        min_improvement: float,
        config: ScheduleConfig,
    ) -> bool:
        """Take in a validation metric: remember the best, reduce the step size on a plateau.

        Returns:
            Whether this is the best value so far; NaN never is.
        """
        sign = 1.0 if larger_is_better else -1.0
        better = not math.isnan(value) and (
            self.best_value is None or sign * (value - self.best_value) > min_improvement
        )
        if better:
            self.best_value, self.best_step = value, self.step
            self.stale_evaluations = self.plateau_evaluations = 0
            return True
        self.stale_evaluations += 1
        self.plateau_evaluations += 1
        if self.plateau_evaluations > config.plateau_patience and config.plateau_factor < 1:
            self.plateau_fraction *= config.plateau_factor
            self.plateau_evaluations = 0
        return False
