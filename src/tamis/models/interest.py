"""What rankers of a user's interest in a candidate share: fields, a vector per history, an MLP."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.mlp import MLP, Activation, Norm
from tamis.nn.sequence import CandidateInputs, History


@dataclass(frozen=True, kw_only=True, slots=True)
class InterestConfig:
    """Settings that all of these rankers have."""

    embedding_dim: int = 16
    """Width D of an embedding. At least 1."""
    hidden_units: tuple[int, ...] = (200, 80)
    """Hidden widths of the MLP on top; may be empty."""
    activation: Activation = "relu"
    """After each of its hidden layers."""
    norm: Norm = "none"
    """In each of its hidden layers."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interest:
    """What a history says of the candidate."""

    vector: Tensor
    """(B, O)."""
    loss: Tensor | None = None
    """Auxiliary loss, a scalar, while training."""


class InterestUnit(nn.Module, ABC):
    """The part in which these rankers differ."""

    out_dim: int
    """O."""

    @abstractmethod
    def forward(self, history: History) -> Interest:
        """Interest of each row, whose history may be empty."""


class InterestRanker(nn.Module):
    """``logits = MLP([fields, interest of each history])``."""

    def __init__(
        self,
        config: InterestConfig,
        spec: InputSpec,
        make_unit: Callable[[int, int], InterestUnit],
        *,
        make_cross: Callable[[int], nn.Module] = lambda _: nn.Identity(),
    ) -> None:
        """Build the inputs, a unit for each sequence group, and the MLP.

        Args:
            config: Its settings.
            spec: Inputs of the model.
            make_unit: A unit for events of a width and histories of a longest length.
            make_cross: A module on the concatenated vector, whose width it keeps, below the MLP.
        """
        super().__init__()
        self.inputs = CandidateInputs(spec, config.embedding_dim, init_std=config.init_std)
        units = [
            make_unit(width, group.max_length)
            for width, group in zip(self.inputs.widths, spec.sequences, strict=True)
        ]
        self.units = nn.ModuleList(units)
        width = self.inputs.fields_dim + sum(unit.out_dim for unit in units)
        self.cross = make_cross(width)
        self.head = MLP(
            width,
            config.hidden_units,
            out_dim=len(spec.tasks),
            makes_logits=True,
            activation=config.activation,
            norm=config.norm,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        fields, histories = self.inputs(batch)
        vectors = [fields]
        losses: dict[str, Tensor] = {}
        for unit, name, history in zip(self.units, self.inputs.names, histories, strict=True):
            interest: Interest = unit(history)
            vectors.append(interest.vector.float())
            if interest.loss is not None:
                losses[name] = interest.loss
        x = self.cross(torch.cat(vectors, dim=1))
        return Output(logits=self.head(x), auxiliary_losses=losses)


def check_heads(num_heads: int, width: int) -> None:
    """Check that attention heads divide the width of an event.

    Raises:
        ConfigError: They do not.
    """
    if width % num_heads:
        raise ConfigError(
            f"model.num_heads: must divide the width of an event, {width} for this data, got "
            f"{num_heads}. A divisor of embedding_dim always does."
        )
