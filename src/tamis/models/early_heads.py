"""What an early-stage ranker computes for each pair: from two cached vectors to a logit per head.

The query is what the request alone decides (user and context), the ad is the candidate. All heads
here take one query for each ad, or one for all of them, and give the same logits for both.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.models.multi_task import TaskTowers
from tamis.nn.experts import FusionStack
from tamis.nn.mlp import MLP, ExactLinear


class PairHeads(nn.Module, ABC):
    """H logits for each of B ads; the queries are B rows, or R = 1 row for all ads."""

    @abstractmethod
    def forward(
        self, query: Float[Tensor, "R Q"], ads: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads."""

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
        self.query_dim = query_dim
        self.first = nn.Linear(query_dim + ad_dim, bottom_units[0])
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.zeros_(self.first.bias)
        self.rest = MLP(bottom_units[0], bottom_units[1:])
        self.towers = TaskTowers(bottom_units[-1], head_units, num_heads)

    def forward(
        self, query: Float[Tensor, "R Q"], ads: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads."""
        of_query, of_ad = self.first.weight.split([self.query_dim, ads.shape[1]], dim=1)
        x = self.rest(F.relu(F.linear(query, of_query, self.first.bias) + F.linear(ads, of_ad)))
        return self.towers([x] * len(self.towers.towers))

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
        self, query: Float[Tensor, "R Q"], ads: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads."""
        fused = self.stack(torch.cat([query.expand(len(ads), -1), ads], dim=1))
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
        self, query: Float[Tensor, "R Q"], ads: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B H"]:
        """Logits of all heads, in float32 whatever autocast says."""
        with torch.autocast(ads.device.type, enabled=False):
            ads = ads.float()
            wanted = self.project(query).unflatten(1, (len(self.bias), -1))
            if len(wanted) == 1:
                return F.linear(ads, wanted[0], self.bias)
            return torch.bmm(wanted, ads.unsqueeze(2)).squeeze(2) + self.bias

    def of(self, heads: Sequence[int]) -> "DotHeads":
        """A copy with some of the heads, in the given order."""
        part = copy.deepcopy(self)
        rows = list(heads)
        weight = part.project.weight.detach().unflatten(0, (len(part.bias), -1))
        part.project.weight = nn.Parameter(weight[rows].flatten(0, 1))
        part.bias = nn.Parameter(part.bias.detach()[rows])
        return part
