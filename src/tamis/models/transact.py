"""TransAct: the candidate beside every event, a transformer, and its recent outputs."""

from dataclasses import dataclass

import torch
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
from tamis.nn.interaction import CrossNet
from tamis.nn.length_groups import LengthGroups
from tamis.nn.sequence import History, last_events


@dataclass(frozen=True, kw_only=True, slots=True)
class TransActConfig(InterestConfig):
    """TransAct."""

    hidden_units: tuple[int, ...] = (512, 256, 64)
    """Hidden widths of the MLP on top; may be empty."""
    num_layers: int = 2
    """Transformer layers."""
    num_heads: int = 1
    """Attention heads; they divide twice the width of an event."""
    feed_forward: int = 32
    """Hidden width of the transformer's feed-forward layers."""
    attention_dropout: float = 0.0
    """Probability of zeroing a unit of the transformer while training, in [0, 1)."""
    recent_tokens: int = 10
    """Outputs of the most recent events that are kept beside the maximum over all."""
    num_cross_layers: int = 2
    """Full-rank cross layers of DCN-V2 below the MLP."""


class TransAct(InterestRanker):
    """``[recent outputs, max over outputs]`` of a transformer on ``[event, candidate]`` pairs.

    Source:
        Xia et al., TransAct: Transformer-based Realtime User Action Model for Recommendation at
        Pinterest, KDD 2023, section 3.3: early fusion by concatenation, no positions, the first K
        outputs and a max-pooled one; DCN-V2 on top.

    Differs from the source:
        Action types are one of the sequence's columns where the log has them. The random window
        that hides the latest minutes while training is left out: a log need not say when events
        were. No linear map follows the maximum, as in the authors' code. T tasks share everything
        but the output layer.
    """

    def __init__(self, config: TransActConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``.

        Raises:
            ConfigError: The heads do not divide the width of a pair.
        """
        super().__init__(
            config,
            spec,
            lambda width, longest: _Unit(config, width, longest),
            make_cross=lambda width: CrossNet(width, config.num_cross_layers),
        )


class _Unit(InterestUnit):
    def __init__(self, config: TransActConfig, width: int, longest: int) -> None:
        super().__init__()
        check_heads(config.num_heads, 2 * width)
        self.recent = min(config.recent_tokens, longest)
        self.out_dim = (self.recent + 1) * 2 * width
        self.layers = nn.ModuleList(
            TransformerLayer(
                2 * width, config.num_heads, config.feed_forward, dropout=config.attention_dropout
            )
            for _ in range(config.num_layers)
        )

    def forward(self, history: History) -> Interest:
        events = history.events
        pairs = torch.cat([events.values, history.target_of_events], dim=1)
        groups = LengthGroups(events.offsets, events.values.shape[0])
        parts = zip(groups.pad(pairs), groups.valid, strict=True)
        return Interest(vector=groups.join([self._read(*group) for group in parts]))

    def _read(
        self, tokens: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B W"]:
        """The last events after the layers, and the largest value of each channel."""
        for layer in self.layers:
            tokens = layer(tokens, valid)
        recent = last_events(tokens, valid.sum(1), self.recent)
        lowest = torch.finfo(tokens.dtype).min
        largest = tokens.masked_fill(~valid.unsqueeze(2), lowest).amax(1)
        largest = largest * valid.any(1, keepdim=True)
        return torch.cat([recent.flatten(1), largest], dim=1)
