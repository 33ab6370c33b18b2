"""DLRM: bottom MLP for numbers, dot products of all pairs, top MLP."""

from dataclasses import dataclass

import torch
from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import DenseSideTokens
from tamis.nn.interaction import DotInteraction
from tamis.nn.mlp import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class DLRMConfig:
    """DLRM with dot interaction."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    bottom_units: tuple[int, ...] = (64, 32)
    """Hidden widths of the MLP that turns the numeric features into one D-vector."""
    top_units: tuple[int, ...] = (400, 400, 400)
    """Hidden widths of the MLP over the products."""
    with_diagonal: bool = False
    """Whether a vector's product with itself counts as a feature; it does where there is no other
    vector."""
    activation: Activation = "relu"
    """After each hidden layer of the top MLP; the bottom MLP has ReLU."""
    norm: Norm = "none"
    """In each hidden layer of the top MLP."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit of the top MLP while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


class DLRM(nn.Module):
    """Products of all pairs of embeddings and the numeric side's vector, which joins the top MLP.

    Source:
        Naumov et al., Deep Learning Recommendation Model for Personalization and Recommendation
        Systems, arXiv:1906.00091, section 2.

    Differs from the source:
        Without numeric features there is no bottom MLP, and the products alone reach the top. The
        bottom MLP's last layer is linear, so that its vector has both signs as embeddings have. A
        single embedding without numeric features has no pair but itself: its square is taken even
        without the diagonal.
    """

    def __init__(self, config: DLRMConfig, spec: InputSpec) -> None:
        """Build the MLPs for the inputs of ``spec``."""
        super().__init__()
        self.tokens = DenseSideTokens(
            spec,
            config.embedding_dim,
            hidden_units=config.bottom_units,
            num_dense_tokens=1,
            init_std=config.init_std,
        )
        self.has_dense = bool(spec.numeric)
        is_alone = self.tokens.num_tokens == 1 and not self.has_dense
        self.dot = DotInteraction(
            self.tokens.num_tokens, with_diagonal=config.with_diagonal or is_alone
        )
        width = self.dot.out_dim + (config.embedding_dim if self.has_dense else 0)
        self.top = MLP(
            width,
            config.top_units,
            out_dim=len(spec.tasks),
            makes_logits=True,
            activation=config.activation,
            norm=config.norm,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        tokens = self.tokens(batch)
        features = self.dot(tokens)
        if self.has_dense:
            features = torch.cat([tokens[:, -1].to(features.dtype), features], dim=1)
        return Output(logits=self.top(features))
