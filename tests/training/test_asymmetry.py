"""A teacher must know and compute more than its student."""

import pytest

from tamis.errors import ConfigError
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.models.interformer import InterFormer, InterFormerConfig
from tamis.testing.models import example_spec
from tamis.training.asymmetry import check_asymmetry

_FULL, _PART = example_spec(), example_spec(sequences=False)
_SMALL = EarlyStageConfig(tower_units=(), tower_dim=8, bottom_units=(8,), head_units=())


def test_smaller_model_without_histories_may_learn() -> None:
    final = InterFormer(InterFormerConfig(), _FULL)
    check_asymmetry(EarlyStage(_SMALL, _PART), _PART, final, _FULL)


def test_student_that_sees_as_much_is_refused() -> None:
    final = InterFormer(InterFormerConfig(), _FULL)
    with pytest.raises(ConfigError, match="must see more, got the same 7 features for both"):
        check_asymmetry(EarlyStage(_SMALL, _FULL), _FULL, final, _FULL)


def test_student_that_sees_something_else_is_refused() -> None:
    final = EarlyStage(EarlyStageConfig(), _PART)
    with pytest.raises(ConfigError, match="among the final stage's, got past0, past1 which"):
        check_asymmetry(EarlyStage(_SMALL, _FULL), _FULL, final, _PART)


def test_student_of_like_size_is_refused() -> None:
    early, final = EarlyStage(EarlyStageConfig(), _PART), EarlyStage(EarlyStageConfig(), _FULL)
    with pytest.raises(ConfigError, match=r"must have 2 times as many .* got [\d,]+ and [\d,]+\."):
        check_asymmetry(early, _PART, final, _FULL)
