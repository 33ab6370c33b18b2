"""The scan of rounded vectors leaves out nobody who is among the best in float32."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.nn.precision import has_fast_int8
from tamis.retrieval.rounded_scan import RoundedScan, contenders

needs_int8 = pytest.mark.skipif(
    not has_fast_int8(torch.device("cpu")), reason="products of whole numbers need AVX-512 VNNI"
)


def _normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_int8
@pytest.mark.parametrize("width", [2, 7, 64, 300])
@pytest.mark.parametrize("scale", [1e-24, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("at_once", [100, 1000])
def test_products_are_off_by_no_more_than_the_bound(
    width: int, scale: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamis.retrieval.rounded_scan._ROUNDED_AT_ONCE", at_once)
    items, queries = scale * _normal(400, width, seed=0), _normal(5, width, seed=1)
    scan = RoundedScan(items)

    found = scan.products(queries)

    exact = queries.double() @ items.double().T
    for query, row, truth in zip(queries, found, exact.numpy(), strict=True):
        assert np.abs(row - truth).max() <= scan.error(query)


@needs_int8
def test_steps_whose_product_float32_holds_badly_cost_no_digits() -> None:
    # Whole multiples of the step, so that nothing is lost but what float32 rounds.
    whole = torch.randint(-127, 128, (50, 64), generator=torch.Generator().manual_seed(0)).float()
    whole[:, 0] = 127
    items, query = whole[1:] * 3e-21, whole[0] * 3e-21
    scan = RoundedScan(items)

    (found,) = scan.products(query.unsqueeze(0))

    truth = (items.double() @ query.double()).numpy()
    # Lengths are of float64, which holds them; a quarter of the bound on what float32 rounds.
    bound = 16 * 2.0**-24 * items.double().norm(dim=1).max() * query.double().norm()
    assert np.abs(found - truth).max() <= float(bound)


@needs_int8
def test_one_long_vector_leaves_nobody_out() -> None:
    items, query = _normal(4000, 16, seed=0), _normal(16, seed=1)
    items[7, 3] = 60.0
    scan = RoundedScan(items)

    places = contenders(scan.products(query[None])[0], 50, error=scan.error(query))

    assert places is not None
    assert set((items @ query).topk(50).indices.tolist()) <= set(places.tolist())


@needs_int8
def test_bound_holds_where_every_factor_is_rounded_the_same_way() -> None:
    # Just below the middle between two multiples of the step, but for the one that sets the step.
    vector = torch.full((64,), 10.499)
    vector[0] = 127.0
    scan = RoundedScan(vector.repeat(3, 1))

    off = abs(float(scan.products(vector[None])[0, 0]) - float(vector.double() @ vector.double()))

    assert scan.error(vector) / 4 < off <= scan.error(vector)


@pytest.mark.parametrize("strange", [np.inf, np.nan])
def test_vectors_that_are_not_finite_have_errors_that_are_not(strange: float) -> None:
    items, query = _normal(40, 8, seed=0), _normal(8, seed=1)
    assert np.isfinite(RoundedScan(items).error(query))

    assert not np.isfinite(RoundedScan(items).error(torch.full((8,), strange)))
    items[7, 3] = strange
    assert not np.isfinite(RoundedScan(items).error(query))


@needs_int8
def test_vectors_of_zeros_have_products_of_zero() -> None:
    items, query = torch.zeros(5, 8), torch.zeros(8)

    assert not RoundedScan(items).products(_normal(2, 8, seed=1)).any()
    assert not RoundedScan(_normal(5, 8, seed=1)).products(query[None]).any()


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
