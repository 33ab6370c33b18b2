"""DeepFM: a factorization machine and an MLP over the same embeddings."""

from dataclasses import dataclass

import torch
from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FieldTokens, FirstOrder
from tamis.nn.interaction import pairwise_products
from tamis.nn.mlp import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepFMConfig:
    """DeepFM."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    hidden_units: tuple[int, ...] = (400, 400, 400)
    """Widths of the deep part's hidden layers."""
    activation: Activation = "relu"
    """After each hidden layer."""
    norm: Norm = "none"
    """In each hidden layer."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


class DeepFM(nn.Module):
    """First order, FM and deep part, added.

    Source:
        Guo et al., DeepFM, IJCAI 2017, equations (1) to (4).

    Differs from the source:
        The token of a numeric feature has a bias beside its direction. With several tasks the FM
        part is shared: each task weighs its D dimensions, all weights starting from 1; with one
        task the weights are fixed to 1, which is the paper's model.
    """

    def __init__(self, config: DeepFMConfig, spec: InputSpec) -> None:
        """Build the three parts for the inputs of ``spec``."""
        super().__init__()
        num_tasks = len(spec.tasks)
        self.first_order = FirstOrder(spec)
        self.tokens = FieldTokens(spec, config.embedding_dim, init_std=config.init_std)
        weight = torch.ones(config.embedding_dim, num_tasks)
        if num_tasks > 1:
            self.pair_weight = nn.Parameter(weight)
        else:
            self.register_buffer("pair_weight", weight, persistent=False)
        self.deep = MLP(
            self.tokens.num_tokens * config.embedding_dim,
            config.hidden_units,
            out_dim=num_tasks,
            makes_logits=True,
            activation=config.activation,
            norm=config.norm,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        tokens = self.tokens(batch)
        # Not a matrix product: autocast would round the logits to bfloat16.
        pairs = (pairwise_products(tokens).unsqueeze(2) * self.pair_weight).sum(1)
        return Output(logits=self.first_order(batch) + pairs + self.deep(tokens.flatten(1)))
