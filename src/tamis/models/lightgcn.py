"""LightGCN: vectors of users and items, smoothed along the edges between them.

It knows ids and nothing else, so it is no ranker of batches and not in the catalog; its trainer is
``training/bpr.py``. It stands here for one question: is a retrieval baseline of ours as good as
the figures that are published for one?
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tamis.errors import DataError
from tamis.models.ranges import check_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class LightGCNConfig:
    """LightGCN."""

    embedding_dim: int = 64
    """Width D of a vector. At least 1."""
    num_layers: int = 3
    """Steps K along the edges. At least 1."""
    init_std: float = 0.1
    """Standard deviation that vectors start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


class LightGCN(nn.Module):
    """``E = mean_k (D^-1/2 A D^-1/2)^k E_0`` over k = 0..K, where A joins users and their items.

    Only E_0 is learnt: there are no weights and no activation between layers. A user's score of an
    item is the dot product of their rows of E.

    Source:
        He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation,
        SIGIR 2020, equations (3) to (8).

    Differs from the source:
        Nothing known; an edge that stands twice in the data is one edge.
    """

    neighbours: Tensor
    bounds: Tensor
    strengths: Tensor

    def __init__(
        self,
        config: LightGCNConfig,
        users: Int[Tensor, " N"],
        items: Int[Tensor, " N"],
        *,
        num_users: int,
        num_items: int,
    ) -> None:
        """Build the graph of the training interactions.

        Args:
            config: Sizes.
            users: User of each interaction, numbered from 0.
            items: Item of each interaction, numbered from 0.
            num_users: Users U.
            num_items: Items V.

        Raises:
            DataError: There is no interaction, or a number is out of range.
        """
        super().__init__()
        for name, numbers, count in (("user", users, num_users), ("item", items, num_items)):
            if not len(numbers) or int(numbers.min()) < 0 or int(numbers.max()) >= count:
                held = f"{int(numbers.min())} to {int(numbers.max())}" if len(numbers) else "none"
                raise DataError(
                    f"lightgcn: {name}s must be numbers from 0 to {count - 1}, got {held}."
                )
        self.config, self.num_users, self.num_items = config, num_users, num_items
        self.weight = nn.Parameter(torch.empty(num_users + num_items, config.embedding_dim))
        nn.init.normal_(self.weight, std=config.init_std)
        edges = torch.unique(users.to(torch.int64) * num_items + items.to(torch.int64))
        of_user, of_item = edges // num_items, edges % num_items + num_users
        rows, columns = torch.cat([of_user, of_item]), torch.cat([of_item, of_user])
        order = torch.argsort(rows, stable=True)
        rows, columns = rows[order], columns[order]
        degrees = torch.bincount(rows, minlength=len(self.weight))
        roots = degrees.clamp_min(1).double().rsqrt()
        self.register_buffer("neighbours", columns, persistent=False)
        offsets = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
        self.register_buffer("bounds", offsets, persistent=False)
        strengths = (roots[rows] * roots[columns]).float()
        self.register_buffer("strengths", strengths, persistent=False)

    def forward(self) -> tuple[Float[Tensor, "U D"], Float[Tensor, "V D"]]:
        """Vectors of all users and of all items."""
        layer = total = self.weight
        for _ in range(self.config.num_layers):
            layer = _Propagate.apply(  # type: ignore[no-untyped-call]
                layer, self.neighbours, self.bounds, self.strengths
            )
            total = total + layer
        users, items = (total / (self.config.num_layers + 1)).split(
            [self.num_users, self.num_items]
        )
        return users, items

    def starts(
        self, users: Int[Tensor, " B"], items: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Rows of E_0, which regularisation looks at."""
        return self.weight[users], self.weight[self.num_users + items]


class _Propagate(torch.autograd.Function):
    """A product with the symmetric sparse matrix, whose gradient is a product with it again.

    Weighted sums of rows are three times as fast as torch's products of sparse matrices (1.6
    million edges of width 64 on one core: 10 ms against 33).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch's own context)
        rows: Tensor,
        neighbours: Tensor,
        bounds: Tensor,
        strengths: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(neighbours, bounds, strengths)
        return _product(rows, neighbours, bounds, strengths)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None, None, None]:
        return _product(gradient.contiguous(), *ctx.saved_tensors), None, None, None


def _product(rows: Tensor, neighbours: Tensor, bounds: Tensor, strengths: Tensor) -> Tensor:
    return F.embedding_bag(
        neighbours,
        rows,
        bounds,
        mode="sum",
        per_sample_weights=strengths.to(rows.dtype),
        include_last_offset=True,
    )
