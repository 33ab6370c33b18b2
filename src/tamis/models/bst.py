"""BST: a transformer over the history and the candidate."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from tamis.data.schema import InputSpec
from tamis.models.interest import (
    Interest,
    InterestConfig,
    InterestRanker,
    InterestUnit,
    check_heads,
)
from tamis.nn.attention import TransformerLayer
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
        padded, valid = replace(events, values=placed).padded()
        target = (history.target + self.positions[0]).unsqueeze(1)
        tokens = torch.cat([target, padded], dim=1)
        valid = torch.cat([valid.new_ones(len(valid), 1), valid], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, valid)
        if self.pooling == "target":
            return Interest(vector=tokens[:, 0])
        if self.pooling == "mean":
            total = (tokens * valid.unsqueeze(2)).sum(1)
            return Interest(vector=total / valid.sum(1, keepdim=True))
        recent = last_events(tokens, events.offsets.diff(), self.longest, first=1)
        return Interest(vector=torch.cat([tokens[:, :1], recent], dim=1).flatten(1))
