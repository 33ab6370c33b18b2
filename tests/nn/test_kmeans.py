"""K-means: known answers, repair of dead centres, seeds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.nn.kmeans import kmeans, squared_distances


def _codes(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return squared_distances(points, centres).argmin(1)


def _blobs(num_blobs: int, per_blob: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    places = 10.0 * torch.randn(num_blobs, 4, generator=generator)
    noise = 0.1 * torch.randn(num_blobs, per_blob, 4, generator=generator)
    return (places.unsqueeze(1) + noise).flatten(0, 1)


def test_squared_distances_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    points, centres = (torch.randn(n, 3, generator=generator) for n in (5, 4))
    expected = [[float((p - c).double().square().sum()) for c in centres] for p in points]

    torch.testing.assert_close(squared_distances(points, centres), torch.tensor(expected))
    assert squared_distances(points, points).min().item() >= 0


def test_two_pairs_on_a_line_have_two_means() -> None:
    # Means of {0, 1, 2} and {10, 14}.
    points = torch.tensor([[0.0], [10.0], [1.0], [14.0], [2.0]])

    assert sorted(kmeans(points, 2, seed=3).flatten().tolist()) == [1.0, 12.0]


def test_far_blobs_get_a_centre_each() -> None:
    points = _blobs(8, 30)
    codes = _codes(points, kmeans(points, 8, seed=0)).view(8, 30)

    assert bool((codes == codes[:, :1]).all())
    assert codes[:, 0].unique().numel() == 8


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 1000))
def test_centres_are_means_and_none_is_dead(num_points: int, num_centres: int, seed: int) -> None:
    points = torch.randn(num_points, 3, generator=torch.Generator().manual_seed(seed))
    centres = kmeans(points, num_centres, seed=seed, max_rounds=100)
    codes = _codes(points, centres)

    assert codes.unique().numel() == min(num_points, num_centres)
    for code in codes.unique():
        torch.testing.assert_close(centres[code], points[codes == code].mean(0))


def test_dead_centres_are_moved_onto_the_farthest_points() -> None:
    points = torch.cat([torch.zeros(50, 2), torch.tensor([[5.0, 0.0], [0.0, 9.0]])])
    # Two of three centres begin where no point is near.
    start = torch.tensor([[0.0, 0.0], [1e3, 1e3], [-1e3, 1e3]])
    centres = kmeans(points, 3, seed=0, start=start)

    assert {tuple(c) for c in centres.tolist()} == {(0.0, 0.0), (5.0, 0.0), (0.0, 9.0)}


def test_points_that_are_alike_carry_one_dead_centre_away() -> None:
    far = torch.tensor([[0.0, 9.0]] * 3 + [[5.0, 0.0]])
    start = torch.tensor([[0.0, 0.0], [1e3, 1e3], [-1e3, 1e3]])
    centres = kmeans(torch.cat([torch.zeros(50, 2), far]), 3, seed=0, start=start, max_rounds=1)

    assert centres[1:].tolist() == [[0.0, 9.0], [5.0, 0.0]]


def test_fewer_different_points_than_centres_leave_the_rest_dead() -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(10, 1)
    centres = kmeans(points, 5, seed=0)

    assert centres.isfinite().all()
    assert squared_distances(points, centres).min(1).values.max().item() == 0
    assert _codes(points, centres).unique().numel() == 2


def test_seed_decides_the_start_and_nothing_else_does() -> None:
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = kmeans(points, 10, seed=7)
    torch.manual_seed(2)

    assert torch.equal(first, kmeans(points, 10, seed=7))
    assert not torch.equal(first, kmeans(points, 10, seed=8))


def test_warm_start_keeps_the_order_of_centres() -> None:
    points = _blobs(6, 20)
    centres = kmeans(points, 6, seed=0)
    drifted = kmeans(points + 0.2, 6, seed=1, start=centres)

    assert torch.equal(_codes(points, centres), _codes(points + 0.2, drifted))


def test_no_point_is_refused() -> None:
    with pytest.raises(ValueError, match="points must hold at least one row, got none"):
        kmeans(torch.zeros(0, 3), 2, seed=0)
