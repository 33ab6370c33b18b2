"""Step sizes over a run, and what an evaluation does to them."""

import math

import pytest

from tamis.training.config import ScheduleConfig
from tamis.training.schedules import Progress, step_size_fraction


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
