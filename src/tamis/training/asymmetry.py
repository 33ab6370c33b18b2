"""Whether there is anything to distil: a final stage that knows more and computes more."""

from torch import nn

from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.training.cost import count_parameters

LEAST_RATIO = 2.0
"""Dense parameters of a final stage for each of the early stage's, at least."""


def check_asymmetry(
    early: nn.Module, early_spec: InputSpec, final: nn.Module, final_spec: InputSpec
) -> None:
    """Refuse a teacher that is no more than its student.

    What an early stage loses to a final stage it loses for want of features and size. With the same
    of both, a copy of the teacher measures how well one model imitates its like, and says nothing
    of a cascade.

    Args:
        early: The student.
        early_spec: Its inputs.
        final: The teacher.
        final_spec: Its inputs.

    Raises:
        ConfigError: The student's features are no strict part of the teacher's, or the teacher has
            less than twice as many parameters outside tables.
    """
    ours, theirs = _features(early_spec), _features(final_spec)
    if more := sorted(ours - theirs):
        raise ConfigError(
            f"early stage: its features must be among the final stage's, got {', '.join(more)} "
            f"which that does not see. Take them out, or add them to the final stage."
        )
    if ours == theirs:
        raise ConfigError(
            f"early stage: the final stage must see more, got the same {len(ours)} features for "
            f"both. Take the costly ones, such as histories, from the early stage."
        )
    check_sizes(*(count_parameters(model)["dense"] for model in (early, final)))


def check_sizes(early: int, final: int) -> None:
    """Refuse a teacher that is hardly larger than its student.

    Args:
        early: The student's parameters outside tables.
        final: The teacher's.

    Raises:
        ConfigError: The teacher has less than twice as many.
    """
    if final < LEAST_RATIO * early:
        raise ConfigError(
            f"early stage: the final stage must have {LEAST_RATIO:g} times as many parameters "
            f"outside tables, got {final:,} and {early:,}. Shrink the early stage."
        )


def _features(spec: InputSpec) -> set[str]:
    """Names of all columns that a model reads."""
    events = {name for group in spec.sequences for name in group.fields}
    return {*spec.numeric, *(item.name for item in spec.categorical), *events}
