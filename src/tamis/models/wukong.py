"""Wukong: stacked factorization machine blocks with linear compression."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import DenseSideTokens
from tamis.nn.mlp import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class WukongConfig:
    """Wukong."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    num_layers: int = 3
    """Wukong layers. At least 1."""
    fm_tokens: int = 8
    """Tokens that the factorization machine block emits per layer."""
    linear_tokens: int = 8
    """Tokens that the linear compression block emits per layer."""
    rank: int = 8
    """Columns k of the low-rank factorization machine."""
    fm_units: tuple[int, ...] = (256,)
    """Hidden widths of the MLP in each factorization machine block."""
    num_dense_tokens: int = 1
    """Tokens that the numeric features become."""
    dense_units: tuple[int, ...] = (64,)
    """Hidden widths of the numeric side's MLP."""
    head_units: tuple[int, ...] = (256, 128)
    """Hidden widths of the MLP over the last layer."""
    head_norm: Norm = "none"
    """Before the activation of each hidden layer of the head."""
    activation: Activation = "relu"
    """After each hidden layer of the head; the numeric side has ReLU."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit of the head while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Wukong(nn.Module):
    """Layers ``LayerNorm([FMB(X), LCB(X)] + X)``, flattened into an MLP.

    Source:
        Zhang et al., Wukong: Towards a Scaling Law for Large-Scale Recommendation, ICML 2024,
        sections 3.2 to 3.6.

    Differs from the source:
        T tasks share everything but the output layer.
    """

    def __init__(self, config: WukongConfig, spec: InputSpec) -> None:
        """Build the layers for the inputs of ``spec``."""
        super().__init__()
        self.tokens = DenseSideTokens(
            spec,
            config.embedding_dim,
            hidden_units=config.dense_units,
            num_dense_tokens=config.num_dense_tokens,
            init_std=config.init_std,
        )
        out_tokens = config.fm_tokens + config.linear_tokens
        counts = [self.tokens.num_tokens] + [out_tokens] * config.num_layers
        self.layers = nn.Sequential(*(_WukongLayer(count, config) for count in counts[:-1]))
        self.head = MLP(
            out_tokens * config.embedding_dim,
            config.head_units,
            out_dim=len(spec.tasks),
            makes_logits=True,
            activation=config.activation,
            dropout=config.dropout,
            norm=config.head_norm,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        return Output(logits=self.head(self.layers(self.tokens(batch)).flatten(1)))


class FactorizationMachineBlock(nn.Module):
    """Low-rank products of tokens, normalised, through an MLP back to tokens.

    ``FM(X) = X (X' Y)`` with learnt Y (F, k): the F x F products are never formed.

    Source:
        Zhang et al., Wukong, ICML 2024, sections 3.4 and 3.5.

    Differs from the source:
        Y is a plain parameter; the paper also describes making it from X.
    """

    def __init__(
        self,
        num_tokens: int,
        width: int,
        out_tokens: int,
        *,
        rank: int,
        units: tuple[int, ...],
        activation: Activation = "relu",
    ) -> None:
        """Build the block: F tokens of width D in, ``out_tokens`` of width D out."""
        super().__init__()
        self.compress = nn.Parameter(torch.empty(num_tokens, rank))
        nn.init.xavier_uniform_(self.compress)
        self.norm = nn.LayerNorm(num_tokens * rank)
        self.mlp = MLP(num_tokens * rank, units, out_dim=out_tokens * width, activation=activation)
        self.width = width

    def forward(self, tokens: Float[Tensor, "B F D"]) -> Float[Tensor, "B N D"]:
        """Tokens made of pairwise products."""
        projected = tokens.transpose(1, 2) @ self.compress
        products = torch.bmm(tokens, projected)
        return self.mlp(self.norm(products.flatten(1))).unflatten(1, (-1, self.width))


class _WukongLayer(nn.Module):
    def __init__(self, num_tokens: int, config: WukongConfig) -> None:
        super().__init__()
        self.products = FactorizationMachineBlock(
            num_tokens,
            config.embedding_dim,
            config.fm_tokens,
            rank=config.rank,
            units=config.fm_units,
            activation=config.activation,
        )
        self.linear = _token_map(num_tokens, config.linear_tokens)
        out_tokens = config.fm_tokens + config.linear_tokens
        same = num_tokens == out_tokens
        self.residual = None if same else _token_map(num_tokens, out_tokens)
        self.norm = nn.LayerNorm(config.embedding_dim)

    def forward(self, tokens: Float[Tensor, "B F D"]) -> Float[Tensor, "B N D"]:
        mixed = torch.cat([self.products(tokens), self.linear.T @ tokens], dim=1)
        residual = tokens if self.residual is None else self.residual.T @ tokens
        return self.norm(mixed + residual)


def _token_map(num_tokens: int, out_tokens: int) -> nn.Parameter:
    weight = torch.empty(num_tokens, out_tokens)
    nn.init.xavier_uniform_(weight)
    return nn.Parameter(weight)
