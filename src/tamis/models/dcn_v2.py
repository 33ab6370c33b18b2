"""DCN-V2: explicit cross layers beside or below an MLP."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.nn.embedding import FlatInputs
from tamis.nn.interaction import CrossNet
from tamis.nn.mlp import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class DCNv2Config:
    """DCN-V2 and, with experts, DCN-Mix."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    num_cross_layers: int = 3
    """Cross layers. At least 1."""
    num_experts: int = 0
    """Low-rank experts of each cross layer; 0 takes one full matrix."""
    rank: int = 32
    """Rank of each expert."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """MLP beside the cross layers, or on top of them."""
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
        if self.num_cross_layers < 1 or not self.hidden_units:
            raise ConfigError(
                "model: num_cross_layers >= 1 and a hidden layer must hold, got "
                f"{self.num_cross_layers} and {self.hidden_units}."
            )


class DCNv2(nn.Module):
    """Cross network and MLP over flat embeddings and raw numeric features.

    Source:
        Wang et al., DCN V2, WWW 2021, sections 3.2 to 3.5.

    Differs from the source:
        T tasks share everything but the output layer.
    """

    def __init__(self, config: DCNv2Config, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``."""
        super().__init__()
        self.inputs = FlatInputs(spec, config.embedding_dim, init_std=config.init_std)
        width = self.inputs.out_dim
        self.cross = CrossNet(
            width, config.num_cross_layers, rank=config.rank, num_experts=config.num_experts
        )
        self.deep = MLP(
            width,
            config.hidden_units,
            activation=config.activation,
            norm=config.norm,
            dropout=config.dropout,
        )
        self.is_parallel = config.structure == "parallel"
        num_tasks = len(spec.tasks)
        self.head = MLP(self.deep.out_dim, (), out_dim=num_tasks)
        # One output layer on both parts, in two summands: the parts are never copied together.
        self.cross_head = nn.Linear(width, num_tasks, bias=False) if self.is_parallel else None
        if self.cross_head is not None:
            bound = (6 / (width + self.deep.out_dim + num_tasks)) ** 0.5
            nn.init.uniform_(self.cross_head.weight, -bound, bound)
            nn.init.uniform_(self.head.layers[0].weight, -bound, bound)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        x0 = self.inputs(batch)
        crossed = self.cross(x0)
        if self.cross_head is not None:
            return Output(logits=self.head(self.deep(x0)) + self.cross_head(crossed))
        return Output(logits=self.head(self.deep(crossed)))
