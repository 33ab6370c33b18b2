"""DMIN: several interests of one history, each weighed against the candidate."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from tamis.data.schema import InputSpec
from tamis.models.dien import next_event_loss
from tamis.models.interest import (
    Interest,
    InterestConfig,
    InterestRanker,
    InterestUnit,
    check_heads,
)
from tamis.nn.attention import ActivationUnit, SequenceAttention, self_attend
from tamis.nn.length_groups import LengthGroups
from tamis.nn.linear import Linear
from tamis.nn.mlp import MLP, Activation
from tamis.nn.sequence import History


@dataclass(frozen=True, kw_only=True, slots=True)
class DMINConfig(InterestConfig):
    """Deep Multi-Interest Network."""

    activation: Activation = "dice"
    """After each hidden layer of the MLP on top."""
    num_heads: int = 4
    """Attention heads of the first layer, and interests; they divide the width of an event."""
    attention_units: tuple[int, ...] = (80, 40)
    """Hidden widths of the activation unit of each interest."""
    attention_activation: Activation = "dice"
    """After each of its hidden layers."""
    position_dim: int = 2
    """Width of the position of an event, which the activation units read beside the candidate."""
    auxiliary_weight: float = 1.0
    """Factor on the loss that asks each refined event to know the next one. At least 0."""


class DMIN(InterestRanker):
    """Self-attention refines events; then every head of a second one is an interest of its own.

    Both attentions are causal, so that the auxiliary loss asks a refined event for one that it has
    not seen. Each interest is a history again, and is pooled by an activation unit on the candidate
    and how recent an event is, with weights that sum to 1.

    Source:
        Xiao et al., Deep Multi-Interest Network for Click-through Rate Prediction, CIKM 2020,
        sections 3.2 to 3.4.

    Differs from the source:
        The auxiliary loss compares by inner products, with events drawn from the batch, as this
        library's DIEN does. Histories are padded from the right, which a causal mask does not see.
        T tasks share everything but the output layer.
    """

    def __init__(self, config: DMINConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``.

        Raises:
            ConfigError: The heads do not divide the width of an event.
        """
        super().__init__(config, spec, lambda width, longest: _Unit(config, width, longest))


class _Unit(InterestUnit):
    def __init__(self, config: DMINConfig, width: int, longest: int) -> None:
        super().__init__()
        check_heads(config.num_heads, width)
        self.num_heads = config.num_heads
        self.out_dim = config.num_heads * width
        self.auxiliary_weight = config.auxiliary_weight
        self.refine = SequenceAttention(width, config.num_heads, rotary=False, causal=True)
        self.refine_norm = nn.LayerNorm(width)
        self.refine_feed_forward = MLP(width, (2 * width,), out_dim=width)
        self.project = Linear(width, 3 * width)
        for part in self.project.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.project.bias)
        heads = range(config.num_heads)
        self.widen = nn.ModuleList(MLP(width // len(heads), (), out_dim=width) for _ in heads)
        self.feed_forward = nn.ModuleList(MLP(width, (2 * width,), out_dim=width) for _ in heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in heads)
        self.positions = nn.Parameter(torch.empty(longest, config.position_dim))
        nn.init.normal_(self.positions, std=max(config.init_std, 1e-12))
        self.place = nn.ModuleList(
            MLP(width + config.position_dim, (), out_dim=width) for _ in heads
        )
        self.pool = nn.ModuleList(
            ActivationUnit(width, config.attention_units, config.attention_activation, softmax=True)
            for _ in heads
        )

    def forward(self, history: History) -> Interest:
        events = history.events
        # Padded only where events look at each other.
        groups = LengthGroups(events.offsets, events.values.shape[0])
        padded = zip(groups.pad(events.values), groups.valid, strict=True)
        attended = groups.flat([self.refine(*group) for group in padded])
        refined = self.refine_norm(events.values + attended)
        refined = refined + self.refine_feed_forward(refined)
        loss = None
        if self.training and self.auxiliary_weight > 0:
            loss = self.auxiliary_weight * next_event_loss(refined, events)
        projected = zip(groups.pad(self.project(refined)), groups.valid, strict=True)
        mixed = [self_attend(*group, num_heads=self.num_heads, causal=True) for group in projected]
        heads = groups.flat(mixed).chunk(self.num_heads, dim=1)
        positions = self.positions.index_select(0, events.ages)
        placed = torch.cat([history.target_of_events, positions], dim=1)
        vectors = []
        parts = (self.widen, self.feed_forward, self.norms, self.place, self.pool)
        for head, widen, feed_forward, norm, place, pool in zip(heads, *parts, strict=True):
            interest = norm(refined + widen(head))
            interest = interest + feed_forward(interest)
            weights = replace(events, values=pool(place(placed), interest)).softmax()
            vectors.append(replace(events, values=interest * weights).sum())
        return Interest(vector=torch.cat(vectors, dim=1), loss=loss)
