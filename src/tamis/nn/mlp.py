"""Multi-layer perceptron."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.nn.dropout import Dropout

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh", "dice", "none"]
Norm = Literal["none", "batch", "layer"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class MLP(nn.Module):
    """Hidden layers of linear map, norm, activation and dropout; then a plain linear output.

    Weights start from Xavier's uniform distribution and biases from 0, which the public CTR
    benchmarks use; PyTorch's default starts a ReLU layer with a third of that variance.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_units: Sequence[int],
        *,
        out_dim: int | None = None,
        activation: Activation = "relu",
        dropout: float = 0.0,
        norm: Norm = "none",
        bias: bool = True,
        out_bias: bool = True,
        makes_logits: bool = False,
    ) -> None:
        """Build the layers.

        Args:
            in_dim: Width of the input.
            hidden_units: Widths of the hidden layers; may be empty.
            out_dim: Width of the linear output layer. None: the last hidden layer is the output.
            activation: After each hidden layer.
            dropout: Probability of zeroing a hidden unit while training.
            norm: Between the linear map and the activation of each hidden layer.
            bias: Whether linear maps have biases; those before batch norm never have.
            out_bias: Whether the output layer has one; scores of a softmax need none.
            makes_logits: Whether the output layer computes in float32 also under autocast:
                bfloat16 has 256 values between 1 and 2, which ties most rows of a data set.
        """
        super().__init__()
        layers: list[nn.Module] = []
        width = in_dim
        for units in hidden_units:
            layers.append(nn.Linear(width, units, bias=bias and norm != "batch"))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(units))
            if norm == "layer":
                layers.append(nn.LayerNorm(units))
            if activation != "none":
                layers.append(make_activation(activation, units))
            if dropout > 0:
                layers.append(Dropout(dropout))
            width = units
        if out_dim is not None:
            kind = ExactLinear if makes_logits else nn.Linear
            layers.append(kind(width, out_dim, bias=bias and out_bias))
            width = out_dim
        self.layers = nn.Sequential(*layers)
        self.out_dim = width
        for layer in layers:
            if isinstance(layer, nn.Linear | ExactLinear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B O"]:
        """Output of the last layer."""
        return self.layers(x)


def make_activation(activation: Activation, units: int) -> nn.Module:
    """The module of an activation, which for ``dice`` has parameters for each of the units."""
    return Dice(units) if activation == "dice" else _ACTIVATIONS[activation]()


class Dice(nn.Module):
    """``p x + (1 - p) a x`` with ``p = sigmoid(x normalised over the batch)`` and a learned ``a``.

    Source:
        Zhou et al., Deep Interest Network, KDD 2018, section 5.3.

    Differs from the source:
        A batch of fewer than two rows, as one without any event, is normalised by the running
        statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, units: int) -> None:
        """Keep running statistics for inference; ``a`` starts from 0."""
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(units))
        # Not a module of batch norm, which would refuse a batch of one row.
        self.register_buffer("running_mean", torch.zeros(units))
        self.register_buffer("running_var", torch.ones(units))

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """Activations, in float32 under autocast too: they follow from differences to a mean."""
        x = x.float()
        normed = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            training=self.training and len(x) > 1,
            eps=1e-8,
        )
        p = torch.sigmoid(normed)
        return x * (p + (1 - p) * self.alpha)


class ExactLinear(nn.Module):
    """A linear map in float32, whatever autocast says."""

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
        """Build the map; all weights start from 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None

    def forward(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B O"]:
        """``x W' + b`` in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)
