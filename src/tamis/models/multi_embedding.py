"""Multi-embedding DCN-V2: several tables, each with cross layers of its own, under one MLP."""

from dataclasses import dataclass

import torch
from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.autocast import in_autocast_type
from tamis.nn.embedding import FlatInputs
from tamis.nn.interaction import CrossNet
from tamis.nn.mlp import MLP, Activation


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiEmbeddingConfig:
    """DCN-V2 on several embeddings of every field."""

    embedding_dim: int = 16
    """Width D of each table. At least 1."""
    num_tables: int = 2
    """Embeddings of every field. At least 1; with 1 this is DCN-V2 with an MLP on top."""
    num_cross_layers: int = 4
    """Cross layers of each table. At least 1."""
    hidden_units: tuple[int, ...] = (400, 400)
    """Widths of the MLP's hidden layers, at least one; each table has a first one of its own."""
    activation: Activation = "relu"
    """After each hidden layer."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.hidden_units:
            raise ConfigError("model.hidden_units: must hold a layer, got none.")


class MultiEmbedding(nn.Module):
    """``y = MLP(mean_k h_k)``, ``h_k = act(W_k cross_k(x_k) + b_k)``, x_k by table k.

    The control of an ensemble with tables of its own: tables do not collapse into a few directions
    together, as each feeds an interaction of its own, but what they find is averaged where it is
    hidden, not as predictions, and there is one loss.

    Source:
        Guo et al., On the Embedding Collapse when Scaling up Recommendation Models, ICML 2024:
        multi-embedding, as their code has it for DCN-V2.

    Differs from the source:
        Hidden vectors are averaged after their activation. Numeric features, which are categories
        there, stand beside each table's embeddings; a sequence enters as the mean of its events; T
        tasks share everything but the output layer.
    """

    def __init__(self, config: MultiEmbeddingConfig, spec: InputSpec) -> None:
        """Build the tables and layers for the inputs of ``spec``."""
        super().__init__()
        first, *further = config.hidden_units
        self.inputs, self.crosses, self.firsts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(config.num_tables):
            inputs = FlatInputs(spec, config.embedding_dim, init_std=config.init_std)
            self.inputs.append(inputs)
            self.crosses.append(CrossNet(inputs.out_dim, config.num_cross_layers))
            self.firsts.append(
                MLP(inputs.out_dim, (first,), activation=config.activation, dropout=config.dropout)
            )
        self.top = MLP(
            first,
            further,
            out_dim=len(spec.tasks),
            makes_logits=True,
            activation=config.activation,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        parts = zip(self.inputs, self.crosses, self.firsts, strict=True)
        hidden = [first(cross(in_autocast_type(inputs(batch)))) for inputs, cross, first in parts]
        return Output(logits=self.top(torch.stack(hidden).mean(0)))
