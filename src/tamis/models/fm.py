"""Factorization machine."""

from dataclasses import dataclass

from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FieldTokens, FirstOrder
from tamis.nn.interaction import pairwise_products


@dataclass(frozen=True, kw_only=True, slots=True)
class FMConfig:
    """Second-order factorization machine."""

    embedding_dim: int = 16
    """Width D of each task's factors. At least 1."""
    init_std: float = 0.01
    """Standard deviation that factors start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


class FM(nn.Module):
    """First order plus inner products of all pairs of tokens.

    Source:
        Rendle, Factorization Machines, ICDM 2010, equation (1).

    Differs from the source:
        T tasks have factors of their own, side by side in one table of width T*D; a sequence
        enters as the mean of its events; the factor of a numeric feature has a bias.
    """

    def __init__(self, config: FMConfig, spec: InputSpec) -> None:
        """Build tables for the inputs of ``spec``."""
        super().__init__()
        self.num_tasks = len(spec.tasks)
        self.first_order = FirstOrder(spec)
        self.tokens = FieldTokens(
            spec, self.num_tasks * config.embedding_dim, init_std=config.init_std
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        pairs = pairwise_products(self.tokens(batch)).unflatten(1, (self.num_tasks, -1)).sum(2)
        return Output(logits=self.first_order(batch) + pairs)
