"""DIEN: interests extracted by one recurrent network, evolving towards the candidate in another."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.schema import InputSpec
from tamis.models.interest import Interest, InterestConfig, InterestRanker, InterestUnit
from tamis.nn.linear import Linear
from tamis.nn.mlp import Activation
from tamis.nn.recurrent import AttentionalGRU, JaggedGRU, steps_of
from tamis.nn.sequence import Events, History


@dataclass(frozen=True, kw_only=True, slots=True)
class DIENConfig(InterestConfig):
    """Deep Interest Evolution Network."""

    activation: Activation = "dice"
    """After each hidden layer of the MLP on top."""
    auxiliary_weight: float = 1.0
    """Factor on the loss that asks each interest to know the next event. At least 0."""


class DIEN(InterestRanker):
    """``interest = AUGRU(h_1..h_n; a)`` with ``h = GRU(events)``, a from h and the candidate.

    The auxiliary loss, while training, is that of telling the next event of a history from an event
    drawn from the batch, by the inner product of either with the interest before it.

    Source:
        Zhou et al., Deep Interest Evolution Network, AAAI 2019, equations (6), (7), (14) to (16).

    Differs from the source:
        Negative events are drawn from the batch, not from all items, and may by chance be the very
        next one. The auxiliary loss is a mean over pairs of events, whatever the weights of their
        rows. Reset gates are those of PyTorch's unit (see ``JaggedGRU``). T tasks share everything
        but the output layer.
    """

    def __init__(self, config: DIENConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``."""
        super().__init__(config, spec, lambda width, _: _Unit(config, width))


class _Unit(InterestUnit):
    def __init__(self, config: DIENConfig, width: int) -> None:
        super().__init__()
        self.out_dim = width
        self.auxiliary_weight = config.auxiliary_weight
        self.extract = JaggedGRU(width)
        self.attention = Linear(width, width, bias=False)
        self.evolve = AttentionalGRU(width)
        nn.init.xavier_uniform_(self.attention.weight)

    def forward(self, history: History) -> Interest:
        events = history.events
        steps = steps_of(events)
        interests = self.extract(events, steps)
        wanted = self.attention(history.target).float().index_select(0, events.rows)
        scores = (interests.values * wanted).sum(1, keepdim=True)
        weights = replace(events, values=scores).softmax()
        loss = None
        if self.training and self.auxiliary_weight > 0:
            loss = self.auxiliary_weight * next_event_loss(interests.values, events)
        return Interest(vector=self.evolve(interests, weights, steps), loss=loss)


def next_event_loss(interests: Float[Tensor, "nnz W"], events: Events) -> Tensor:
    """Mean cross entropy, in nats, of telling next events from events drawn from the batch.

    Args:
        interests: What is known after each event.
        events: What is told apart.
    """
    earlier = (events.ages > 0).nonzero().squeeze(1)
    if not len(earlier):
        return interests.sum() * 0.0
    known = interests.index_select(0, earlier).float()
    values = events.values.float()
    drawn = torch.randint(len(values), (len(earlier),), device=values.device)
    true = (known * values.index_select(0, earlier + 1)).sum(1)
    false = (known * values.index_select(0, drawn)).sum(1)
    return (F.softplus(-true) + F.softplus(false)).mean()
