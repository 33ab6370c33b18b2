"""K-means in torch: seeded, without a loop over rows, and without dead centres."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def squared_distances(
    points: Float[Tensor, "N D"], centres: Float[Tensor, "K D"]
) -> Float[Tensor, "N K"]:
    """Squared Euclidean distances, never below 0, in full precision also under autocast."""
    # |p|^2 - 2 p'c + |c|^2: one matrix product instead of N K differences. The differences of such
    # sums are small, and bfloat16 would leave nothing of them.
    with torch.autocast(points.device.type, enabled=False):
        lengths = points.square().sum(1, keepdim=True)
        return (lengths - 2 * points @ centres.T + centres.square().sum(1)).clamp_min(0)


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "N D"],
    num_centres: int,
    *,
    seed: int,
    start: Float[Tensor, "K D"] | None = None,
    max_rounds: int = 25,
) -> Float[Tensor, "K D"]:
    """Centres that are the means of the points nearest to them, by Lloyd's rounds.

    They start as k-means++ draws them. After each round a centre without members moves onto the
    point that is farthest from its own centre, the next dead one onto the next farthest. Where
    there are fewer different points than centres the rest stays dead, as no split could fill it.

    Args:
        points: At least one.
        num_centres: Centres K.
        seed: Decides the start; the same seed gives the same centres.
        start: Centres to begin from instead, which keeps their order from one call to the next.
        max_rounds: Rounds at most; it stops where no point changes its centre.

    Raises:
        ValueError: There is no point.

    Source:
        Lloyd, Least squares quantization in PCM, 1982; Arthur and Vassilvitskii, k-means++,
        SODA 2007, section 2.2.

    Differs from the source:
        Dead centres are repaired.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
        >>> sorted(kmeans(points, 2, seed=0).flatten().tolist())
        [0.5, 11.0]
    """
    if not len(points):
        raise ValueError("kmeans: points must hold at least one row, got none.")
    centres = _spread_start(points, num_centres, seed) if start is None else start.clone()
    codes = points.new_full((len(points),), -1, dtype=torch.int64)
    for _ in range(max_rounds):
        distances, nearest = squared_distances(points, centres).min(1)
        if torch.equal(nearest, codes):
            break
        codes = nearest
        centres = _repaired(points, _means(points, codes, centres), codes, distances)
    return centres


def _spread_start(points: Tensor, num_centres: int, seed: int) -> Tensor:
    """K-means++: each next centre is a point, drawn by its squared distance to the nearest one."""
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    nearest = squared_distances(points, points[first : first + 1]).squeeze(1)
    for _ in range(num_centres - 1):
        mass = nearest.double().cpu().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * mass[-1]
        place = min(int(torch.searchsorted(mass, draw, right=True)), len(points) - 1)
        chosen.append(place)
        distances = squared_distances(points, points[place : place + 1]).squeeze(1)
        nearest = torch.minimum(nearest, distances)
    return points[chosen].clone()


def _means(points: Tensor, codes: Int[Tensor, " N"], centres: Tensor) -> Tensor:
    """Mean of each centre's members; a centre without any stays."""
    counts = torch.bincount(codes, minlength=len(centres)).unsqueeze(1)
    sums = torch.zeros_like(centres).index_add_(0, codes, points)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def _repaired(points: Tensor, centres: Tensor, codes: Tensor, distances: Tensor) -> Tensor:
    dead = (torch.bincount(codes, minlength=len(centres)) == 0).nonzero().squeeze(1)
    if not len(dead):
        return centres
    # Of points that are alike only one may carry a centre away, or both would share it.
    alike = torch.unique(points, dim=0, return_inverse=True)[1]
    order = torch.argsort(distances, descending=True, stable=True)
    _, ranks = torch.unique(alike[order], return_inverse=True)
    first = torch.full_like(order, len(order)).scatter_reduce(
        0, ranks, torch.arange(len(order), device=order.device), "amin"
    )
    candidates = order[first[first < len(order)].sort().values]
    candidates = candidates[distances[candidates] > 0][: len(dead)]
    repaired = centres.clone()
    repaired[dead[: len(candidates)]] = points[candidates]
    return repaired
