"""DCN-V2: explicit cross layers beside or below an MLP."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.autocast import in_autocast_type
from tamis.nn.embedding import FlatInputs
from tamis.nn.interaction import CrossNet
from tamis.nn.mlp import MLP, Activation, ExactLinear, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class DCNv2Config:
    """DCN-V2 and, with experts, DCN-Mix."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    num_cross_layers: int = 3
    """Cross layers. At least 1."""
    rank: int = 0
    """Rank of each cross layer's matrix, or of each expert; 0 takes a full matrix."""
    num_experts: int = 0
    """Gated low-rank experts of each cross layer (DCN-Mix); 0 takes one matrix."""
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
        check_ranges(self, may_be_zero=("rank", "num_experts"))
        if not self.hidden_units:
            raise ConfigError("model.hidden_units: must hold a layer, got none.")
        if self.num_experts and self.rank < 1:
            raise ConfigError(
                f"model.rank: must be at least 1 with num_experts={self.num_experts}, got "
                f"{self.rank}. Experts are low-rank maps; 32 is a common rank."
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
        num_tasks = len(spec.tasks)
        # One output layer on both parts, in two summands: the parts are never copied together.
        self.head = ExactLinear(self.deep.out_dim, num_tasks)
        self.cross_head: ExactLinear | None = None
        merged = self.deep.out_dim
        if config.structure == "parallel":
            self.cross_head = ExactLinear(width, num_tasks, bias=False)
            merged += width
        bound = (6 / (merged + num_tasks)) ** 0.5  # Xavier's, of the layer as a whole
        for head in (self.head, self.cross_head):
            if head is not None:
                nn.init.uniform_(head.weight, -bound, bound)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        x0 = in_autocast_type(self.inputs(batch))  # once for both parts
        crossed = self.cross(x0)
        if self.cross_head is not None:
            return Output(logits=self.head(self.deep(x0)) + self.cross_head(crossed))
        return Output(logits=self.head(self.deep(crossed)))
