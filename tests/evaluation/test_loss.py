"""Log loss and normalised entropy: known answers, merging, clipping, normalisers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss

from tamis.errors import DataError
from tamis.evaluation.loss import (
    LogLossAccumulator,
    entropy,
    log_loss,
    log_loss_from_logits,
    normalised_entropy,
)

LABELS = [1, 0, 0, 0]
PROBABILITIES = [0.7, 0.1, 0.1, 0.1]


def test_log_loss_of_two_rows_is_the_mean_of_log_two_and_log_four() -> None:
    assert log_loss([1, 0], [0.5, 0.75]) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_log_loss_with_weights_of_two_rows() -> None:
    # (3 log 2 + 1 log 4) / 4 = 5/4 log 2.
    value = log_loss([1, 0], [0.5, 0.75], weights=[3.0, 1.0])
    assert value == pytest.approx(1.25 * math.log(2))


def test_normalised_entropy_of_the_published_example_is_0_29909() -> None:
    # (-ln .7 - 3 ln .9) / 4 = .168189; entropy(.25) = .562335; quotient .29909.
    result = normalised_entropy(LABELS, PROBABILITIES)
    assert result.value == pytest.approx(0.29909, abs=5e-6)
    assert result.log_loss == pytest.approx(0.168189, abs=5e-7)
    assert (result.base_rate, result.rows) == (0.25, 4)
    assert result.normaliser == "evaluated rows"


def test_normalised_entropy_with_a_given_base_rate_divides_by_its_entropy_and_says_so() -> None:
    result = normalised_entropy(LABELS, PROBABILITIES, base_rate=0.5)
    assert result.value == pytest.approx(0.168189 / math.log(2), abs=1e-6)
    assert (result.base_rate, result.normaliser) == (0.5, "given base rate")


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.1, 10.0))
@settings(deadline=None)
def test_normalised_entropy_of_the_base_rate_is_one(positives, negatives, weight) -> None:
    labels = np.repeat([1, 0], [positives, negatives])
    weights = np.repeat([weight, 1.0], [positives, negatives])
    rate = positives / (positives + negatives)
    assert normalised_entropy(labels, np.full(labels.size, rate)).value == pytest.approx(
        1, abs=1e-13
    )
    rate = positives * weight / (positives * weight + negatives)
    assert normalised_entropy(
        labels, np.full(labels.size, rate), weights=weights
    ).value == pytest.approx(1, abs=1e-12)


@given(st.floats(0.001, 0.999))
@settings(deadline=None)
def test_no_constant_has_a_normalised_entropy_below_one(rate: float) -> None:
    assert normalised_entropy(LABELS, np.full(4, rate)).value >= 1 - 1e-14


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_merged_and_batched_sums_equal_the_whole(seed, num_parts, weighted) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(60) < 0.1, np.nan, rng.random(60) < 0.4)
    labels[:2] = (0, 1)
    probabilities = rng.random(60)
    weights = rng.random(60) if weighted else None
    part = rng.integers(0, num_parts, 60)
    merged = LogLossAccumulator()
    batched = LogLossAccumulator()
    for index in range(num_parts):
        member = part == index
        part_weights = None if weights is None else weights[member]
        shard = LogLossAccumulator()
        shard.update(labels[member], probabilities[member], weights=part_weights)
        batched.update(labels[member], probabilities[member], weights=part_weights)
        merged = merged.merge(shard)
    whole = normalised_entropy(labels, probabilities, weights=weights)
    for sums in (merged, batched):
        result = sums.normalised_entropy()
        assert result.value == pytest.approx(whole.value, rel=1e-12)
        assert result.rows == whole.rows
        assert sums.unobserved == int(np.isnan(labels).sum())


def test_normalised_entropy_of_batches_is_not_the_mean_of_their_values() -> None:
    sums = LogLossAccumulator()
    sums.update([1, 0], [0.7, 0.1])
    sums.update([1, 0, 0, 0], [0.2, 0.1, 0.1, 0.1])
    whole = normalised_entropy([1, 0, 1, 0, 0, 0], [0.7, 0.1, 0.2, 0.1, 0.1, 0.1]).value
    mean = (
        normalised_entropy([1, 0], [0.7, 0.1]).value
        + normalised_entropy([1, 0, 0, 0], [0.2, 0.1, 0.1, 0.1]).value
    ) / 2
    assert sums.normalised_entropy().value == pytest.approx(whole, rel=1e-14)
    assert abs(whole - mean) > 0.01


def test_merge_leaves_both_accumulators_unchanged() -> None:
    one, other = LogLossAccumulator(), LogLossAccumulator()
    one.update([1, 0], [0.6, 0.1])
    other.update([0], [0.3])
    before = one.sums(), other.sums()
    assert one.merge(other).rows == 3
    assert one.sums().tolist() == before[0].tolist()
    assert other.sums().tolist() == before[1].tolist()


def test_sums_travel_as_numbers_and_come_back_equal() -> None:
    sums = LogLossAccumulator()
    sums.update([1, 0, np.nan], [0.6, 0.0, 0.5])
    again = LogLossAccumulator.from_sums(sums.sums().tolist())
    assert again.log_loss() == sums.log_loss()
    assert (again.rows, again.positives, again.unobserved, again.clipped) == (2, 1, 1, 1)


@pytest.mark.parametrize("sums", [[1.0, 2.0], [0, 0, 0, 0, 0, 0, -1.0], [np.nan] * 7])
def test_sums_that_no_accumulator_gave_are_refused(sums: list[float]) -> None:
    with pytest.raises(DataError, match="log loss sums: must be 7 finite numbers"):
        LogLossAccumulator.from_sums(sums)


def test_batch_that_is_refused_adds_nothing() -> None:
    sums = LogLossAccumulator()
    sums.update([1, 0], [0.6, 0.1])
    before = sums.sums().tolist()
    with pytest.raises(DataError, match=r"got 1\.5 at position 0"):
        sums.update([1, 0], [1.5, 0.1])
    assert sums.sums().tolist() == before


def test_certain_mistake_is_clipped_counted_and_costs_27_6_nats() -> None:
    sums = LogLossAccumulator()
    sums.update([1, 0, 1], [0.0, 0.5, 0.5])
    assert sums.clipped == 1
    # -ln 1e-12 = 27.631; plus ln 2 twice, over three rows.
    assert sums.log_loss() == pytest.approx((12 * math.log(10) + 2 * math.log(2)) / 3)
    # 1 - (1 - 1e-12) is 1e-12 to four digits only.
    assert log_loss([0, 0, 1], [1.0, 0.5, 0.5]) == pytest.approx(sums.log_loss(), rel=1e-5)


def test_certain_mistake_in_logits_is_not_clipped() -> None:
    # log(1 + e^40) = 40 to 17 digits; as a probability 1 - 4e-18 rounds to 1 and would be clipped.
    assert log_loss_from_logits([0, 1], [40.0, 40.0]) == pytest.approx(20.0, rel=1e-14)
    assert log_loss_from_logits([1], [-800.0]) == 800.0


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-20, 20)), min_size=1, max_size=50))
@settings(deadline=None)
def test_log_loss_from_logits_equals_that_of_probabilities(rows) -> None:
    labels, logits = (np.array(column) for column in zip(*rows, strict=True))
    probabilities = 1 / (1 + np.exp(-logits))
    # 1 - p loses digits near p = 1: at logit 20 about 1e-16 / 2e-9 relative to the odds.
    assert log_loss_from_logits(labels, logits) == pytest.approx(
        log_loss(labels, probabilities), rel=1e-7
    )


def test_infinite_logits_are_refused() -> None:
    with pytest.raises(DataError, match="logits: must be finite, got inf at observed row 1"):
        log_loss_from_logits([1, 0], [0.0, np.inf])


def test_log_loss_without_observed_rows_is_refused() -> None:
    with pytest.raises(DataError, match="got weight 0 over 0 observed and 2 unobserved rows"):
        log_loss([np.nan, np.nan], [0.5, 0.5])


def test_batch_without_weight_adds_rows_but_no_loss() -> None:
    sums = LogLossAccumulator()
    sums.update([1, 0], [0.5, 0.5], weights=[0.0, 0.0])
    with pytest.raises(DataError, match="got weight 0 over 2 observed and 0 unobserved rows"):
        sums.log_loss()
    sums.update([1], [0.25], weights=[2.0])
    assert (sums.rows, sums.log_loss()) == (3, pytest.approx(math.log(4)))


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_normalised_entropy_of_one_class_is_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match="base rate must lie strictly between 0 and 1, got"):
        normalised_entropy(labels, [0.5, 0.5])


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_entropy_of_a_sure_or_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        entropy(rate)


@pytest.mark.parity
def test_log_loss_equals_scikit_learn() -> None:
    rng = np.random.default_rng(11)
    labels, probabilities = rng.random(3000) < 0.1, rng.random(3000)
    weights = rng.random(3000)
    assert log_loss(labels, probabilities, weights=weights) == pytest.approx(
        sklearn_log_loss(labels, probabilities, sample_weight=weights), rel=1e-12
    )
