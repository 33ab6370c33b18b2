"""The scan in bfloat16 leaves out nobody who is among the best in float32."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.retrieval.rounded_scan import RoundedScan, contenders


def _normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 7, 64, 300])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_products_are_off_by_no_more_than_the_bound(width: int, scale: float) -> None:
    items, queries = scale * _normal(400, width, seed=0), _normal(5, width, seed=1)
    scan = RoundedScan(items)

    found = scan.products(queries)

    exact = queries.double() @ items.double().T
    for query, row, truth in zip(queries, found, exact.numpy(), strict=True):
        assert np.abs(row - truth).max() <= scan.error(query)


def test_bound_holds_where_every_factor_is_rounded_the_same_way() -> None:
    # Just above the middle between two numbers of 8 bits: each is rounded up by half a gap.
    factor = 1.0 + 2.0**-8 + 2.0**-15
    scan = RoundedScan(torch.full((3, 64), factor))
    query = torch.full((64,), factor)

    off = abs(float(scan.products(query[None])[0, 0]) - 64 * factor**2)

    assert scan.error(query) / 4 < off <= scan.error(query)


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([0.0, 1e-4, 0.1, 10.0]))
def test_the_best_are_among_the_contenders_whatever_the_rounding(
    seed: int, keep: int, error: float
) -> None:
    generator = np.random.default_rng(seed)
    # Few different scores, so that ties and near ties are frequent.
    truth = generator.integers(0, 20, 60) / 4
    seen = (truth + generator.uniform(-error, error, 60)).astype(np.float32)

    places = contenders(seen, keep, error=error)

    assert places is not None
    assert (np.diff(places) > 0).all()
    last = np.sort(truth)[-keep]
    # Every one that scores as high as the last of the best, so that ties are the caller's.
    assert set(np.flatnonzero(truth >= last)) <= set(places)


def test_without_errors_only_the_best_and_their_equals_remain() -> None:
    scores = np.array([1.0, 5.0, 3.0, 3.0, 2.0], np.float32)

    places = contenders(scores, 2, error=0.0)

    assert places is not None
    assert places.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_say_nothing(bad: float) -> None:
    scores = np.array([1.0, bad, 2.0, bad], np.float32)

    assert contenders(scores, 2, error=0.1) is None


@pytest.mark.parametrize("best", ["anywhere", "sampled", "unsampled"])
@pytest.mark.parametrize("keep", [1, 40, 700])
@pytest.mark.parametrize("error", [0.0, 0.02, 3.0])
def test_a_sample_of_many_scores_changes_nothing(best: str, keep: int, error: float) -> None:
    generator = np.random.default_rng(keep)
    truth = generator.normal(size=20_000)
    # The sample is every sixteenth score.
    if best == "sampled":
        truth[::16] += 5
    elif best == "unsampled":
        truth[1::16] += 5
    seen = (truth + generator.uniform(-error, error, len(truth))).astype(np.float32)
    seen[generator.integers(0, len(seen), 5)] = np.nan

    places = contenders(seen, keep, error=error)

    # NaN ranks first, as whatever it hides may be the best.
    last = np.sort(seen)[-keep]
    if np.isnan(last):
        assert places is None
        return
    assert places is not None
    least = last - 2 * error
    assert set(np.flatnonzero(seen >= least)) <= set(places)
    assert (seen[places] >= least - 1e-5).all()
    assert (np.diff(places) > 0).all()
