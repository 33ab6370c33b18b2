"""xDeepFM: linear part, compressed interaction network and MLP."""

from dataclasses import dataclass

from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FieldTokens, FirstOrder
from tamis.nn.interaction import CompressedInteraction
from tamis.nn.mlp import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class XDeepFMConfig:
    """xDeepFM."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    cin_maps: tuple[int, ...] = (32, 32)
    """Feature maps of each layer of the interaction network; even where they are split."""
    split_half: bool = True
    """Whether half of each layer but the last goes straight to the output."""
    hidden_units: tuple[int, ...] = (400, 400, 400)
    """Widths of the MLP's hidden layers."""
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
        split = self.cin_maps[:-1] if self.split_half else ()
        if not self.cin_maps or any(count % 2 for count in split):
            raise ConfigError(
                f"model.cin_maps: must hold a layer, and even numbers where layers are split in "
                f"half (all but the last), got {self.cin_maps}."
            )


class XDeepFM(nn.Module):
    """Linear part, CIN and MLP, added.

    Source:
        Lian et al., xDeepFM, KDD 2018, equation (9).

    Differs from the source:
        T tasks share everything but the output layers; the token of a numeric feature has a bias
        beside its direction.
    """

    def __init__(self, config: XDeepFMConfig, spec: InputSpec) -> None:
        """Build the three parts for the inputs of ``spec``."""
        super().__init__()
        num_tasks = len(spec.tasks)
        self.first_order = FirstOrder(spec)
        self.tokens = FieldTokens(spec, config.embedding_dim, init_std=config.init_std)
        self.cin = CompressedInteraction(
            self.tokens.num_tokens, config.cin_maps, split_half=config.split_half
        )
        self.cin_head = MLP(self.cin.out_dim, (), out_dim=num_tasks, makes_logits=True)
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
        logits = self.first_order(batch) + self.cin_head(self.cin(tokens))
        return Output(logits=logits + self.deep(tokens.flatten(1)))
