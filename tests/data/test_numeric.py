"""Numeric transforms: what a value becomes must not depend on the rows beside it."""

import numpy as np
import pytest

from tamis.data.numeric import NumericEncoder, NumericFit
from tamis.data.schema import Field
from tamis.data.vocabulary import FieldCounts


def _fitted(values: list[float], **settings: object) -> NumericEncoder:
    fit = NumericFit(Field(name="x", kind="numeric", **settings))
    fit.add(np.array(values))
    return fit.finish()


@pytest.mark.parametrize("transform", ["none", "standardise", "log", "quantile"])
def test_value_becomes_the_same_whatever_stands_beside_it(transform: str) -> None:
    encoder = _fitted([0.0, 1.0, 2.0, 5.0], transform=transform)
    values = np.array([50.0, np.inf, -3.0, np.nan, -np.inf, 1.0, 1e39, -1e300, 3e38])

    together = encoder.encode(values, FieldCounts())
    alone = [encoder.encode(values[place : place + 1], FieldCounts())[0] for place in range(9)]

    assert together.tolist() == alone
    # Only what float32 cannot hold takes the place of the largest or smallest training value.
    ends = encoder.encode(np.array([5.0, 0.0]), FieldCounts())
    assert together[[1, 6]].tolist() == [ends[0]] * 2
    assert together[[4, 7]].tolist() == [ends[1]] * 2


def test_bucket_of_a_value_is_the_same_whatever_stands_beside_it() -> None:
    # Bounds 0.5 and 3.5.
    encoder = _fitted([0.0, 1.0, 2.0, 5.0], transform="bucket", num_buckets=3)
    values = np.array([-9.0, 9.0, np.inf, 1.0])

    together = encoder.bucket(values, FieldCounts())

    assert together.tolist() == [
        encoder.bucket(values[place : place + 1], FieldCounts())[0] for place in range(4)
    ]
    assert together.tolist() == [1, 3, 3, 2]


@pytest.mark.parametrize(
    ("values", "num_buckets", "knots"),
    [
        # Quartiles 1.75, 2.5 and 3.25 part the values as the middles between them do.
        ([4.0, 1.0, 3.0, 2.0], 4, (1.5, 2.5, 3.5)),
        # Quantiles 2 and 3 are values themselves, and begin a bucket.
        ([1.0, 2.0, 3.0, 4.0], 3, (1.5, 2.5)),
        # Quartiles 0, 0 and 1.25: nothing is below the first two.
        ([0.0, 0.0, 0.0, 5.0], 4, (2.5,)),
        ([7.0, 7.0], 4, ()),
    ],
)
def test_bounds_of_buckets_lie_midway_between_training_values(
    values: list[float], num_buckets: int, knots: tuple[float, ...]
) -> None:
    encoder = _fitted(values, transform="bucket", num_buckets=num_buckets)

    assert encoder.knots == knots
    assert encoder.num_buckets == len(knots) + 1


def test_bucket_of_a_value_is_the_same_in_float32_and_in_float64() -> None:
    # Of nine values the quartiles are the third, the fifth and the seventh: 0.3 is one.
    values = np.arange(1, 10) / 10
    in_log = values.astype(np.float32).astype(np.float64)
    encoder = _fitted(in_log.tolist(), transform="bucket", num_buckets=4)

    assert (in_log != values).any()
    assert (encoder.bucket(values, FieldCounts()) == encoder.bucket(in_log, FieldCounts())).all()


def test_quantile_of_a_frequent_value_is_nearly_the_same_in_float32_and_in_float64() -> None:
    # A third of the log is 0.3, in float32.
    in_log = float(np.float32(0.3))
    encoder = _fitted(
        [*np.arange(100.0) / 500, *[in_log] * 100, *np.arange(100.0) + 1], transform="quantile"
    )

    logged, served = encoder.encode(np.array([in_log, 0.3]), FieldCounts())

    assert in_log != 0.3
    assert served == pytest.approx(logged, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "becomes"),
    [
        # Half of the steps are 0's, from -1 to 0.
        ([0.0] * 50 + [*range(1, 51)], {0.0: -0.5, 25.0: 0.5, 50.0: 1.0, -9.0: -0.5, 99.0: 1.0}),
        ([7.0], {7.0: 0.0, 6.0: 0.0, 8.0: 0.0}),
        ([np.nan], {7.0: 0.0}),
    ],
)
def test_frequent_value_becomes_the_middle_of_its_ranks(
    values: list[float], becomes: dict[float, float]
) -> None:
    encoder = _fitted(values, transform="quantile")

    encoded = encoder.encode(np.array(list(becomes)), FieldCounts())

    assert encoded == pytest.approx(np.array(list(becomes.values())), abs=0.02)


def test_text_of_an_encoder_names_ranks_of_quantiles_alone() -> None:
    # Fingerprints of datasets hold it, and rows of results those fingerprints.
    fitted = {
        transform: _fitted([1.0, 2.0, 2.0, 3.0], transform=transform)
        for transform in ("none", "standardise", "log", "quantile")
    }

    tables = {transform: encoder.to_table() for transform, encoder in fitted.items()}

    common = {"transform", "mean", "std", "minimum", "maximum", "knots"}
    assert set(tables.pop("quantile")) == {*common, "ranks"}
    assert all(set(table) == common for table in tables.values())
    for encoder in fitted.values():
        assert NumericEncoder.from_table(encoder.to_table()) == encoder


def test_quantiles_of_an_earlier_version_are_read_as_they_were() -> None:
    table = _fitted([1.0, 2.0, 3.0], transform="quantile").to_table()
    del table["ranks"]
    table["knots"] = [1.0, 2.0, 3.0]

    encoder = NumericEncoder.from_table(table)

    assert encoder.encode(np.array([1.0, 2.5]), FieldCounts()).tolist() == [-1.0, 0.5]


def test_number_beyond_float32_counts_as_infinite() -> None:
    encoder = _fitted([0.0, 1.0, 2.0, 1e200, -1e39, float(np.finfo(np.float32).max)])
    counts = FieldCounts()

    encoded = encoder.encode(np.array([1e39, 1.0]), counts)

    assert (encoder.minimum, encoder.maximum, encoder.mean) == (0.0, 2.0, 1.0)
    assert encoded == pytest.approx([np.sqrt(1.5), 0.0])
    assert counts.clipped == 1


def test_field_that_hardly_varied_in_training_stays_finite() -> None:
    encoder = _fitted([0.0, 1e-6])

    assert np.isfinite(encoder.encode(np.array([3e38, -3e38]), FieldCounts())).all()
