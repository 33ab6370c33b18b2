"""DMR: how well user and candidate match, as two numbers that the ranker reads."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamis.data.schema import InputSpec
from tamis.models.interest import Interest, InterestConfig, InterestRanker, InterestUnit
from tamis.nn.mlp import MLP, Activation
from tamis.nn.sequence import Events, History


@dataclass(frozen=True, kw_only=True, slots=True)
class DMRConfig(InterestConfig):
    """Deep Match to Rank."""

    hidden_units: tuple[int, ...] = (512, 256, 128)
    """Hidden widths of the MLP on top; may be empty."""
    activation: Activation = "dice"
    """After each of its hidden layers."""
    attention_dim: int = 36
    """Hidden width of both additive attentions."""
    auxiliary_weight: float = 0.1
    """Factor on the loss of predicting the last event from those before it. At least 0."""
    num_negatives: int = 10
    """Events drawn from the batch against each last one."""


class DMR(InterestRanker):
    """Match of user and item, match of item and items, and the history pooled for the candidate.

    User to item: events are pooled by attention to them and their positions, whatever the
    candidate, and the result is compared with the candidate's output vector by an inner product;
    the auxiliary loss trains that product to predict the last event. Item to item: the sum of the
    candidate's attention scores.

    Source:
        Lyu et al., Deep Match to Rank Model for Personalized Click-Through Rate Prediction,
        AAAI 2020, equations (5) to (12).

    Differs from the source:
        An item's output vector is a learned linear map of its embedding, not a row of a second
        table. Negative events are drawn from the batch, whatever the weights of rows, and may by
        chance be the very event. The plain sum of the history is no input of the MLP, whose
        activation is dice, not PReLU. T tasks share everything but the output layer.
    """

    def __init__(self, config: DMRConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``."""
        super().__init__(config, spec, lambda width, longest: _Unit(config, width, longest))


class _Unit(InterestUnit):
    def __init__(self, config: DMRConfig, width: int, longest: int) -> None:
        super().__init__()
        self.out_dim = width + 2
        self.auxiliary_weight = config.auxiliary_weight
        self.num_negatives = config.num_negatives
        self.positions = nn.Parameter(torch.empty(longest, width))
        nn.init.normal_(self.positions, std=max(config.init_std, 1e-12))
        hidden = (config.attention_dim,)
        self.user_score = MLP(2 * width, hidden, out_dim=1, activation="tanh", out_bias=False)
        # No bias: it would count the events in the sum of the scores.
        self.item_score = MLP(3 * width, hidden, out_dim=1, activation="tanh", out_bias=False)
        self.user_map = nn.Sequential(MLP(width, (), out_dim=width), nn.PReLU(width))
        self.output_map = MLP(width, (), out_dim=width)

    def forward(self, history: History) -> Interest:
        events = history.events
        places = self.positions.index_select(0, events.ages)
        user_scores = self.user_score(torch.cat([places, events.values], dim=1)).float()
        user = self._user(events, user_scores)
        user_match = (user * self.output_map(history.target).float()).sum(1, keepdim=True)

        beside = torch.cat([history.target_of_events, places, events.values], dim=1)
        scores = replace(events, values=self.item_score(beside).float())
        pooled = replace(events, values=events.values * scores.softmax()).sum()
        loss = None
        if self.training and self.auxiliary_weight > 0:
            loss = self.auxiliary_weight * self._last_event_loss(events, user_scores)
        vector = torch.cat([pooled, user_match, scores.sum()], dim=1)
        return Interest(vector=vector, loss=loss)

    def _user(self, events: Events, scores: Tensor) -> Tensor:
        weights = replace(events, values=scores).softmax()
        pooled = replace(events, values=events.values * weights).sum()
        return self.user_map(pooled).float()

    def _last_event_loss(self, events: Events, scores: Tensor) -> Tensor:
        """Negative sampling loss of the last event of each history given the others, in nats."""
        ages, lengths = events.ages, events.offsets.diff()
        rows = (lengths > 1).nonzero().squeeze(1)
        if not len(rows):
            return scores.sum() * 0.0
        kept = (ages > 0).nonzero().squeeze(1)
        shorter = (lengths - 1).clamp_min(0).cumsum(0)
        offsets = torch.cat([shorter.new_zeros(1), shorter])
        before = Events(values=events.values.index_select(0, kept), offsets=offsets)
        user = self._user(before, scores.index_select(0, kept)).index_select(0, rows)
        outputs = self.output_map(events.values).float()
        true = (user * outputs.index_select(0, events.offsets[1:][rows] - 1)).sum(1)
        shape = (len(rows), self.num_negatives)
        drawn = torch.randint(len(outputs), shape, device=outputs.device)
        false = torch.einsum("bw,bnw->bn", user, outputs[drawn])
        return (F.softplus(-true) + F.softplus(false).sum(1)).mean()
