"""What the settings of all models have in common: ranges, and kinds of tasks."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tamis.data.schema import Task
from tamis.errors import ConfigError


def check_probabilities(tasks: Sequence[Task], *, why: str) -> None:
    """Check that a model predicts probabilities only.

    Args:
        tasks: Tasks of the data.
        why: Why the model needs that, and what to do.

    Raises:
        ConfigError: A task is a regression.
    """
    for task in tasks:
        if task.kind == "regression":
            raise ConfigError(
                f"model: task {task.name!r} must be binary, got a {task.kind} task. {why}"
            )


def check_ranges(config: Any, *, may_be_zero: tuple[str, ...] = ()) -> None:  # noqa: ANN401
    """Check the numbers of a model's config by what they are.

    Whole numbers, and those in tuples, are counts and sizes and at least 1; a dropout is in [0, 1);
    every other float is at least 0.

    Args:
        config: A model's config.
        may_be_zero: Whole numbers for which 0 means "none".

    Raises:
        ConfigError: A number is out of its range.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            floor = 0 if isinstance(number, float) or field.name in may_be_zero else 1
            is_share = field.name.endswith("dropout")
            if not number >= floor or (is_share and number >= 1):
                must = "in [0, 1)" if is_share else f"at least {floor}"
                raise ConfigError(f"model.{field.name}: must be {must}, got {value!r}.")
