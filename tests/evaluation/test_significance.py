"""The distributions behind p-values, against scipy, and the written form of a difference."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from tamis.errors import DataError
from tamis.evaluation.significance import (
    PairedDifference,
    normal_p_value,
    normal_quantile,
    require_confidence,
    student_p_value,
    student_quantile,
)


def difference(baseline: float, change: float, p_value: float) -> PairedDifference:
    return PairedDifference(
        metric="ne",
        baseline=baseline,
        candidate=baseline + change,
        difference=change,
        standard_error=0.001,
        lower=change - 0.002,
        upper=change + 0.002,
        p_value=p_value,
        confidence=0.95,
        method="by hand",
        units=10,
        replicates=0,
    )


@pytest.mark.parity
@given(st.floats(-60, 60), st.integers(1, 400))
@settings(deadline=None)
def test_student_p_value_equals_scipy(statistic: float, degrees: int) -> None:
    # Not stats.t.sf, which is off by 3e-9 where the statistic is next to 0.
    square = statistic * statistic
    wanted = special.betaincc(0.5, degrees / 2, square / (degrees + square))
    assert student_p_value(statistic, degrees) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@pytest.mark.parity
@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 200])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_student_quantile_equals_scipy(confidence: float, degrees: int) -> None:
    wanted = stats.t.ppf(0.5 + confidence / 2, degrees)
    assert student_quantile(confidence, degrees) == pytest.approx(wanted, rel=1e-9)


def test_student_p_value_of_one_with_one_degree_is_a_half() -> None:
    # Cauchy: P(|T| > 1) = 1 - 2 * atan(1) / pi.
    assert student_p_value(1.0, 1) == pytest.approx(0.5, rel=1e-12)
    assert student_p_value(0.0, 7) == 1.0
    assert student_p_value(math.inf, 7) == 0.0


def test_normal_p_value_and_quantile_of_two_sides() -> None:
    assert normal_quantile(0.95) == pytest.approx(1.959963984540054)
    assert normal_p_value(-1.959963984540054, 1.0) == pytest.approx(0.05)
    assert normal_p_value(0.0, 0.0) == 1.0
    assert normal_p_value(0.1, 0.0) == 0.0


def test_relative_difference_and_significance_follow_from_the_fields() -> None:
    better = difference(0.8, -0.004, 0.01)
    assert better.relative == pytest.approx(-0.005)
    assert better.is_significant
    assert not difference(0.8, -0.004, 0.05 + 1e-9).is_significant


def test_json_of_a_difference_is_strict() -> None:
    values = json.loads(json.dumps(difference(0.0, 0.1, 0.5).to_json(), allow_nan=False))
    assert values["relative"] is None
    assert (values["metric"], values["difference"], values["is_significant"]) == ("ne", 0.1, False)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(DataError, match="here: confidence must lie strictly between 0 and 1"):
        require_confidence("here", confidence)
