"""AUC by histogram: within its bound of the exact one, mergeable, honest about broken input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.ranking import auc
from tamis.evaluation.streaming_auc import StreamingAuc


def drawn_rows(seed: int, size: int):
    rng = np.random.default_rng(seed)
    probabilities = rng.beta(0.5, 8, size)
    labels = (rng.random(size) < probabilities).astype(float)
    labels[:2] = (0, 1)
    return labels, probabilities, rng.random(size)


def test_estimate_of_distant_probabilities_is_exact_with_bound_zero() -> None:
    # Pairs: .9 > .4 yes, .9 > .1 yes, .2 > .4 no, .2 > .1 yes: 3 of 4.
    histogram = StreamingAuc()
    histogram.update([1, 0, 1, 0, np.nan], [0.9, 0.4, 0.2, 0.1, 0.5])
    estimate = histogram.estimate()
    assert (estimate.value, estimate.error_bound, estimate.rows) == (0.75, 0.0, 4)
    assert histogram.unobserved == 1


def test_bound_is_half_the_share_of_pairs_in_one_bin() -> None:
    # With two bins per octave .80 and .85 share [.75, 1): 1 pair of 2 counts one half.
    histogram = StreamingAuc(mantissa_bits=1)
    histogram.update([1, 0, 0], [0.85, 0.8, 0.1])
    estimate = histogram.estimate()
    assert (estimate.value, estimate.error_bound) == (0.75, 0.25)


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.sampled_from([1, 4, 11]))
@settings(max_examples=50, deadline=None)
def test_exact_auc_lies_within_the_bound(seed: int, size: int, bits: int) -> None:
    labels, probabilities, weights = drawn_rows(seed, size)
    plain, weighted = StreamingAuc(bits), StreamingAuc(bits)
    plain.update(labels, probabilities)
    weighted.update(labels, probabilities, weights=weights)
    for histogram, exact in (
        (plain, auc(labels, probabilities)),
        (weighted, auc(labels, probabilities, weights=weights)),
    ):
        estimate = histogram.estimate()
        assert abs(estimate.value - exact) <= estimate.error_bound + 1e-12


def test_default_bins_bound_the_error_of_ad_probabilities_by_one_in_ten_thousand() -> None:
    labels, probabilities, _ = drawn_rows(1, 200_000)
    histogram = StreamingAuc()
    histogram.update(labels, probabilities)
    assert 0.0 < histogram.estimate().error_bound < 1e-4


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_merged_shards_equal_the_whole(seed: int, num_shards: int) -> None:
    labels, probabilities, _ = drawn_rows(seed, 100)
    shard = np.random.default_rng(seed).integers(0, num_shards, 100)
    merged, whole = StreamingAuc(6), StreamingAuc(6)
    for index in range(num_shards):
        part = StreamingAuc(6)
        part.update(labels[shard == index], probabilities[shard == index])
        merged = merged.merge(part)
    whole.update(labels, probabilities)
    assert merged.estimate() == whole.estimate()
    assert np.array_equal(merged.counts(), whole.counts())


def test_zero_minus_zero_and_one_have_bins_of_their_own() -> None:
    histogram = StreamingAuc()
    histogram.update([0, 0, 1, 1], [0.0, -0.0, 1.0, 1.0])
    assert histogram.estimate().value == 1.0
    assert histogram.counts()[0, 0] == 2.0
    assert histogram.counts()[1, -1] == 2.0


def test_estimate_of_one_class_is_refused() -> None:
    histogram = StreamingAuc()
    histogram.update([1, 1], [0.2, 0.3])
    with pytest.raises(DataError, match=r"got weight 2\.0 of positives and 0\.0 of negatives"):
        histogram.estimate()


def test_histograms_with_other_bins_do_not_merge() -> None:
    with pytest.raises(DataError, match="equal mantissa_bits, got 11 and 8"):
        StreamingAuc().merge(StreamingAuc(8))


def test_mantissa_bits_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"mantissa_bits must be in \[1, 16\], got 17"):
        StreamingAuc(17)
