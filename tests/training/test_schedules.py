"""Step sizes over a run, and what an evaluation does to them."""

import math
from typing import Literal

import pytest

from tamis.data.schema import Task
from tamis.errors import ConfigError
from tamis.training.config import ScheduleConfig, TrainingConfig
from tamis.training.schedules import Progress, choose_monitor, step_size_fraction

_TASKS = (Task(name="click"), Task(name="spend", kind="regression"))


def test_warmup_rises_linearly_to_one() -> None:
    config = ScheduleConfig(warmup_steps=4)

    fractions = [step_size_fraction(config, step=step, total_steps=10) for step in range(6)]

    assert fractions == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_to_its_final_fraction() -> None:
    config = ScheduleConfig(kind="cosine", final_fraction=0.1)

    # Half way: 0.1 + 0.9 * (1 + cos(pi / 2)) / 2 = 0.55.
    assert step_size_fraction(config, step=0, total_steps=100) == 1.0
    assert step_size_fraction(config, step=50, total_steps=100) == pytest.approx(0.55)
    assert step_size_fraction(config, step=100, total_steps=100) == pytest.approx(0.1)


def _observe(progress: Progress, values: list[float], config: ScheduleConfig) -> list[bool]:
    return [
        progress.observe(value, larger_is_better=False, min_improvement=0.01, config=config)
        for value in values
    ]


def test_improvement_below_the_threshold_does_not_count() -> None:
    progress = Progress()

    found = _observe(progress, [1.0, 0.995, 0.98], ScheduleConfig())

    # 0.995 is 0.005 better than 1.0, below 0.01; 0.98 is 0.02 better than the best, 1.0.
    assert found == [True, False, True]
    assert progress.best_value == 0.98
    assert progress.stale_evaluations == 0


def test_plateau_reduces_the_step_size_after_its_patience() -> None:
    progress = Progress()
    config = ScheduleConfig(plateau_factor=0.5, plateau_patience=1)

    _observe(progress, [1.0, 1.0, 1.0, 1.0, 1.0], config)

    # Four evaluations without improvement: the second and the fourth reduce.
    assert progress.plateau_fraction == 0.25
    assert progress.stale_evaluations == 4


def test_nan_is_never_the_best() -> None:
    progress = Progress()

    assert _observe(progress, [math.nan, 1.0, math.nan], ScheduleConfig()) == [False, True, False]


def test_larger_is_better_turns_the_comparison() -> None:
    progress = Progress()

    found = [
        progress.observe(v, larger_is_better=True, min_improvement=0.0, config=ScheduleConfig())
        for v in (0.7, 0.6, 0.8)
    ]

    assert found == [True, False, True]


def test_monitor_reads_the_first_task_unless_another_is_named() -> None:
    metrics = {"click": {"ne": 0.9, "auc": 0.7}, "spend": {"rmse": 2.0}}

    first = choose_monitor(TrainingConfig(monitor="auc"), _TASKS)
    other = choose_monitor(TrainingConfig(monitor="auc", monitor_tasks=("spend",)), _TASKS)

    assert first.value(metrics) == 0.7
    assert first.larger_is_better
    assert other.value(metrics) == 2.0
    # Asked for AUC, a regression task is still judged by its error: smaller is better.
    assert not other.larger_is_better


@pytest.mark.parametrize(
    ("metric", "larger_is_better", "needs_both_classes", "needs_users"),
    [
        ("ne", False, True, False),
        ("log_loss", False, False, False),
        ("auc", True, True, False),
        ("gauc", True, True, True),
    ],
)
def test_monitor_knows_what_its_metric_needs(
    metric: Literal["ne", "log_loss", "auc", "gauc"],
    larger_is_better: bool,
    needs_both_classes: bool,
    needs_users: bool,
) -> None:
    monitor = choose_monitor(TrainingConfig(monitor=metric), _TASKS)
    values = {"ne": 0.9, "log_loss": 0.5, "auc": 0.7, "gauc": 0.6}

    assert monitor.value({"click": values}) == values[metric]
    assert monitor.larger_is_better is larger_is_better
    assert monitor.needs_both_classes is needs_both_classes
    assert monitor.needs_users is needs_users


def test_monitor_of_an_undefined_metric_is_nan() -> None:
    monitor = choose_monitor(TrainingConfig(), _TASKS)

    assert math.isnan(monitor.value({"click": {"ne": None}}))


def test_monitor_refuses_an_unknown_task() -> None:
    with pytest.raises(ConfigError, match=r"monitor_tasks: must be of click, spend, got 'clik'"):
        choose_monitor(TrainingConfig(monitor_tasks=("clik",)), _TASKS)


def test_monitor_of_several_tasks_is_their_mean() -> None:
    tasks = (Task(name="click"), Task(name="buy"))
    monitor = choose_monitor(TrainingConfig(monitor="auc", monitor_tasks=("click", "buy")), tasks)

    assert monitor.value({"click": {"auc": 0.6}, "buy": {"auc": 0.9}}) == pytest.approx(0.75)
    assert math.isnan(monitor.value({"click": {"auc": 0.6}, "buy": {"auc": None}}))


def test_tasks_of_two_kinds_have_no_mean() -> None:
    with pytest.raises(ConfigError, match="must all be of one kind to have a mean"):
        choose_monitor(TrainingConfig(monitor_tasks=("click", "spend")), _TASKS)
