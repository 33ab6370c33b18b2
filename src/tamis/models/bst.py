"""BST: a transformer over the history and the candidate."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tamis.data.schema import InputSpec
from tamis.models.interest import (
    Interest,
    InterestConfig,
    InterestRanker,
    InterestUnit,
    check_heads,
)
from tamis.nn.attention import TransformerLayer
from tamis.nn.length_groups import LengthGroups
from tamis.nn.mlp import Activation
from tamis.nn.sequence import History, last_events


@dataclass(frozen=True, kw_only=True, slots=True)
class BSTConfig(InterestConfig):
    """Behavior Sequence Transformer."""

    hidden_units: tuple[int, ...] = (1024, 512, 256)
    """Hidden widths of the MLP on top; may be empty."""
    activation: Activation = "leaky_relu"
    """After each of its hidden layers. The transformer has leaky ReLU, as published."""
    num_layers: int = 1
    """Transformer layers; one was best in the paper."""
    num_heads: int = 8
    """Attention heads; they divide the width of an event."""
    attention_dropout: float = 0.0
    """Probability of zeroing a unit of the transformer while training, in [0, 1)."""
    pooling: Literal["concat", "mean", "target"] = "concat"
    """What the MLP reads: all tokens (the paper), their mean, or the candidate's alone."""


class BST(InterestRanker):
    """``tokens = transformer([candidate, events] + positions)``, all of them read by the MLP.

    Source:
        Chen et al., Behavior Sequence Transformer for E-commerce Recommendation in Alibaba,
        DLP-KDD 2019, sections 2.1 to 2.3.

    Differs from the source:
        The position of an event is its rank from the most recent one; the paper's is a bucket of
        its age in seconds, which a log may lack. Positions are added to events, not put beside
        them. T tasks share everything but the output layer.
    """

    def __init__(self, config: BSTConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``.

        Raises:
            ConfigError: The heads do not divide the width of an event.
        """
        super().__init__(config, spec, lambda width, longest: _Unit(config, width, longest))


class _Unit(InterestUnit):
    def __init__(self, config: BSTConfig, width: int, longest: int) -> None:
        super().__init__()
        check_heads(config.num_heads, width)
        self.pooling, self.longest = config.pooling, longest
        self.out_dim = (longest + 1) * width if config.pooling == "concat" else width
        self.positions = nn.Parameter(torch.empty(longest + 1, width))
        nn.init.normal_(self.positions, std=max(config.init_std, 1e-12))
        self.layers = nn.ModuleList(
            TransformerLayer(
                width,
                config.num_heads,
                4 * width,
                activation="leaky_relu",
                dropout=config.attention_dropout,
            )
            for _ in range(config.num_layers)
        )

    def forward(self, history: History) -> Interest:
        events = history.events
        placed = events.values + self.positions[1:].index_select(0, events.ages)
        groups = LengthGroups(events.offsets, events.values.shape[0])
        targets = groups.split(history.target + self.positions[0])
        parts = zip(targets, groups.pad(placed), groups.valid, strict=True)
        return Interest(vector=groups.join([self._read(*group) for group in parts]))

    def _read(
        self,
        target: Float[Tensor, "B D"],
        padded: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B W"]:
        """What the layers make of a candidate and the events before it."""
        tokens = torch.cat([target.unsqueeze(1), padded], dim=1)
        lengths, valid = valid.sum(1), F.pad(valid, (1, 0), value=True)
        for layer in self.layers:
            tokens = layer(tokens, valid)
        if self.pooling == "target":
            return tokens[:, 0]
        if self.pooling == "mean":
            return (tokens * valid.unsqueeze(2)).sum(1) / valid.sum(1, keepdim=True)
        recent = last_events(tokens, lengths, self.longest, first=1)
        return torch.cat([tokens[:, :1], recent], dim=1).flatten(1)
