"""DIN: the history weighed by what each event has to do with the candidate."""

from dataclasses import dataclass, replace

from tamis.data.schema import InputSpec
from tamis.models.interest import Interest, InterestConfig, InterestRanker, InterestUnit
from tamis.nn.attention import ActivationUnit
from tamis.nn.mlp import Activation
from tamis.nn.sequence import History


@dataclass(frozen=True, kw_only=True, slots=True)
class DINConfig(InterestConfig):
    """Deep Interest Network."""

    activation: Activation = "dice"
    """After each hidden layer of the MLP on top."""
    attention_units: tuple[int, ...] = (80, 40)
    """Hidden widths of the activation unit."""
    attention_activation: Activation = "dice"
    """After each of its hidden layers."""
    softmax: bool = False
    """Whether the weights of a history's events sum to 1; as published they do not, so that a
    history full of what the candidate is like weighs more."""


class DIN(InterestRanker):
    """``interest = sum_j a(e_j, candidate) e_j`` for each history, computed without padding.

    Source:
        Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018, section 4.3
        and figure 2.

    Differs from the source:
        Mini-batch aware regularisation is an option of the optimizer (``embedding_l2``), not of the
        model. T tasks share everything but the output layer.
    """

    def __init__(self, config: DINConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``."""
        super().__init__(config, spec, lambda width, _: _Unit(config, width))


class _Unit(InterestUnit):
    def __init__(self, config: DINConfig, width: int) -> None:
        super().__init__()
        self.out_dim = width
        self.softmax = config.softmax
        self.attention = ActivationUnit(
            width,
            config.attention_units,
            config.attention_activation,
            softmax=config.softmax,
        )

    def forward(self, history: History) -> Interest:
        events = history.events
        weights = self.attention(history.target_of_events, events.values)
        if self.softmax:
            weights = replace(events, values=weights).softmax()
        return Interest(vector=replace(events, values=events.values * weights).sum())
