"""AutoInt+: self-attention between fields beside an MLP."""

import itertools
from dataclasses import dataclass

from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FieldTokens
from tamis.nn.interaction import FieldAttention
from tamis.nn.mlp import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoIntConfig:
    """AutoInt+; without hidden units plain AutoInt."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    num_layers: int = 3
    """Attention layers. At least 1."""
    num_heads: int = 2
    """Heads H."""
    attention_dim: int = 32
    """Width of a token after attention; a multiple of ``num_heads``."""
    scale: bool = True
    """Whether to divide scores by the root of the head width."""
    layer_norm: bool = False
    """Whether each attention layer ends in a layer norm, as in the public benchmark's best runs."""
    hidden_units: tuple[int, ...] = (400, 400, 400)
    """Widths of the MLP's hidden layers; empty leaves the MLP out."""
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
        if self.attention_dim % self.num_heads:
            raise ConfigError(
                f"model.attention_dim: must be a multiple of num_heads={self.num_heads}, got "
                f"{self.attention_dim}."
            )


class AutoInt(nn.Module):
    """Attention layers over tokens; their output and an MLP's are added.

    Source:
        Song et al., AutoInt, CIKM 2019, sections 4.3 to 4.6; "+" is the joint MLP of section 5.5.

    Differs from the source:
        T tasks share everything but the output layers; the token of a numeric feature has a bias
        beside its direction; layer norm is an option.
    """

    def __init__(self, config: AutoIntConfig, spec: InputSpec) -> None:
        """Build the layers for the inputs of ``spec``."""
        super().__init__()
        num_tasks = len(spec.tasks)
        self.tokens = FieldTokens(spec, config.embedding_dim, init_std=config.init_std)
        widths = [config.embedding_dim] + [config.attention_dim] * config.num_layers
        self.attention = nn.Sequential(
            *(
                FieldAttention(
                    before,
                    after,
                    config.num_heads,
                    scale=config.scale,
                    layer_norm=config.layer_norm,
                )
                for before, after in itertools.pairwise(widths)
            )
        )
        attended = self.tokens.num_tokens * config.attention_dim
        self.head = MLP(attended, (), out_dim=num_tasks, makes_logits=True)
        self.deep = (
            MLP(
                self.tokens.num_tokens * config.embedding_dim,
                config.hidden_units,
                out_dim=num_tasks,
                makes_logits=True,
                activation=config.activation,
                norm=config.norm,
                dropout=config.dropout,
            )
            if config.hidden_units
            else None
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        tokens = self.tokens(batch)
        logits = self.head(self.attention(tokens).flatten(1))
        if self.deep is not None:
            logits = logits + self.deep(tokens.flatten(1))
        return Output(logits=logits)
