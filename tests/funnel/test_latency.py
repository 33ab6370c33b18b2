"""Percentiles from a histogram: those of the sorted latencies, within its bins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.funnel.latency import LatencyHistogram


@given(st.lists(st.floats(0.002, 1e5), min_size=1, max_size=200))
@settings(deadline=None)
def test_percentiles_are_within_half_a_percent_of_the_sorted_ones(times: list[float]) -> None:
    histogram = LatencyHistogram()
    for ms in times:
        histogram.add(ms)

    found = histogram.summary()

    assert found is not None
    ordered = sorted(times)
    for share, value in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        exact = ordered[math.ceil(share * len(ordered)) - 1]
        assert value == pytest.approx(exact, rel=0.00502)  # exp(1 / 200) - 1 = 0.0050125
    assert found.max == ordered[-1]
    assert found.mean == pytest.approx(np.mean(times))
    assert found.p50 <= found.p95 <= found.p99 <= found.max


def test_latencies_beyond_the_bins_are_counted() -> None:
    histogram = LatencyHistogram()
    for ms in (0.0, 0.0, 1e9):
        histogram.add(ms)

    found = histogram.summary()

    assert found is not None
    assert found.p50 <= 1e-3
    assert found.p99 >= 1e6
    assert found.max == 1e9


def test_nothing_has_no_percentiles() -> None:
    assert LatencyHistogram().summary() is None
