"""What an early-stage ranker computes for each pair: from two cached vectors to a logit per head.

The query is what the request alone decides (user and context), the ad is the candidate. All heads
here take one query for each ad, one for all of them, or several with the one of each ad, and give
the same logits for all three, but for the order in which sums are added up. In bfloat16 that holds
where layers are fused (``nn/rounded.py``); elsewhere the first layer is rounded once more for some.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tamis.models.multi_task import TaskTowers
from tamis.nn.autocast import in_autocast_type
from tamis.nn.experts import FusionStack
from tamis.nn.mlp import MLP, ExactLinear
from tamis.nn.rounded import linear_add_relu, linear_relu

_FEW = 32
"""Most queries that are put beside the ads' vectors."""


class PairHeads(nn.Module, ABC):
    """H logits for each of B ads."""

    @abstractmethod
    def forward(
        self,
        query: Float[Tensor, "R Q"],
        ads: Float[Tensor, "B A"],
        rows: Int64[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads.

        Args:
            query: Of R requests.
            ads: Of B candidates.
            rows: The query of each ad; None: each has its own, or all have the only one.
        """

    @abstractmethod
    def of(self, heads: Sequence[int]) -> "PairHeads":
        """A copy with some of the heads, in the given order."""


class SharedHeads(PairHeads):
    """A network that all heads share, then an MLP for each.

    Its first layer is applied to query and ad apart, ``W [q; a] = W_q q + W_a a``, so that the
    query's part is computed once in a request.
    """

    def __init__(
        self,
        query_dim: int,
        ad_dim: int,
        bottom_units: Sequence[int],
        head_units: Sequence[int],
        num_heads: int,
    ) -> None:
        """Build the layers.

        Args:
            query_dim: Width Q of a query.
            ad_dim: Width A of an ad.
            bottom_units: Hidden widths of the shared network, at least one.
            head_units: Hidden widths of each head; may be empty.
            num_heads: Heads H.
        """
        super().__init__()
        self.of_query = nn.Linear(query_dim, bottom_units[0])
        self.of_ad = nn.Linear(ad_dim, bottom_units[0], bias=False)
        # The two halves of one layer, which starts as others do.
        first = nn.init.xavier_uniform_(torch.empty(bottom_units[0], query_dim + ad_dim))
        with torch.no_grad():
            self.of_query.weight.copy_(first[:, :query_dim])
            self.of_ad.weight.copy_(first[:, query_dim:])
        nn.init.zeros_(self.of_query.bias)
        self.rest = MLP(bottom_units[0], bottom_units[1:])
        self.towers = TaskTowers(bottom_units[-1], head_units, num_heads)

    def forward(
        self,
        query: Float[Tensor, "R Q"],
        ads: Float[Tensor, "B A"],
        rows: Int64[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads."""
        x = self.rest(self._first(self.of_query(query), ads, rows))
        return self.towers([x] * len(self.towers.towers))

    def _first(self, of_query: Tensor, ads: Tensor, rows: Tensor | None) -> Tensor:
        """``relu(W_q q + W_a a)`` of each ad, given ``W_q q`` of each query."""
        ads = in_autocast_type(ads)
        # In float32, whose sums depend on a row's place in the batch, a pass more costs little.
        if ads.dtype == torch.bfloat16:
            weight = in_autocast_type(self.of_ad.weight)
            if len(of_query) == 1:
                # What all ads share is a bias to them.
                return linear_relu(ads, weight, of_query[0])
            # One query that is not finite must not reach the ads of others.
            if rows is not None and len(of_query) <= _FEW and of_query.isfinite().all():
                # A sum over few queries, of which one counts, costs less than a pass over all rows.
                chosen = F.one_hot(rows, len(of_query)).to(ads)
                both = torch.cat([weight, of_query.T], dim=1)
                return linear_relu(torch.cat([ads, chosen], dim=1), both, None)
            return linear_add_relu(ads, weight, of_query if rows is None else of_query[rows])
        of_ads = of_query if rows is None else of_query[rows]
        return F.relu(of_ads + self.of_ad(ads))

    def of(self, heads: Sequence[int]) -> "SharedHeads":
        """A copy with some of the heads, in the given order."""
        part = copy.deepcopy(self)
        part.towers = part.towers.of(heads)
        return part


class ExpertHeads(PairHeads):
    """Levels of experts that fuse a vector for each head, then an MLP for each."""

    def __init__(
        self, stack: FusionStack, width: int, head_units: Sequence[int], num_heads: int
    ) -> None:
        """Build the heads.

        Args:
            stack: Experts on query and ad, of MMoE or PLE, that fuse H vectors.
            width: Width of a fused vector.
            head_units: Hidden widths of each head; may be empty.
            num_heads: Heads H.
        """
        super().__init__()
        self.stack = stack
        self.towers = TaskTowers(width, head_units, num_heads)
        self.heads = tuple(range(num_heads))

    def forward(
        self,
        query: Float[Tensor, "R Q"],
        ads: Float[Tensor, "B A"],
        rows: Int64[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads."""
        of_ads = query.expand(len(ads), -1) if rows is None else query[rows]
        fused = self.stack(torch.cat([of_ads, ads], dim=1))
        return self.towers([fused[head] for head in self.heads])

    def of(self, heads: Sequence[int]) -> "ExpertHeads":
        """A copy with some of the heads, in the given order; the experts are all kept."""
        part = copy.deepcopy(self)
        part.towers = part.towers.of(heads)
        part.heads = tuple(self.heads[head] for head in heads)
        return part


class DotHeads(PairHeads):
    """``z_h = <W_h q, a> + b_h``: all that a pair costs is a product of two vectors a head."""

    def __init__(self, query_dim: int, ad_dim: int, num_heads: int) -> None:
        """Build a map of the query for each head; biases start from 0."""
        super().__init__()
        self.project = ExactLinear(query_dim, num_heads * ad_dim, bias=False)
        nn.init.xavier_uniform_(self.project.weight)
        self.bias = nn.Parameter(torch.zeros(num_heads))

    def forward(
        self,
        query: Float[Tensor, "R Q"],
        ads: Float[Tensor, "B A"],
        rows: Int64[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads, in float32 whatever autocast says."""
        with torch.autocast(ads.device.type, enabled=False):
            ads = ads.float()
            wanted = self.project(query).unflatten(1, (len(self.bias), -1))
            if len(wanted) == 1:
                return F.linear(ads, wanted[0], self.bias)
            if rows is not None:
                of_all = F.linear(ads, wanted.flatten(0, 1)).unflatten(1, wanted.shape[:2])
                return of_all[torch.arange(len(ads), device=ads.device), rows] + self.bias
            return torch.bmm(wanted, ads.unsqueeze(2)).squeeze(2) + self.bias

    def of(self, heads: Sequence[int]) -> "DotHeads":
        """A copy with some of the heads, in the given order."""
        part = copy.deepcopy(self)
        rows = list(heads)
        weight = part.project.weight.detach().unflatten(0, (len(part.bias), -1))
        part.project.weight = nn.Parameter(weight[rows].flatten(0, 1))
        part.bias = nn.Parameter(part.bias.detach()[rows])
        return part
