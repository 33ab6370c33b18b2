"""Multi-layer perceptron."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.nn.dropout import Dropout
from tamis.nn.linear import Linear

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
                bfloat16 has 128 values between 1 and 2, which ties most rows of a data set.
        """
        super().__init__()
        layers: list[nn.Module] = []
        width = in_dim
        for units in hidden_units:
            layers.append(Linear(width, units, bias=bias and norm != "batch"))
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
            kind = ExactLinear if makes_logits else Linear
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
    momentum = 0.1
    epsilon = 1e-8

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
        by_batch = self.training and len(x) > 1
        if by_batch:
            with torch.no_grad():
                mean, variance = _moments(x)
                unbiased = variance * (len(x) / (len(x) - 1))
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(unbiased, self.momentum)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = (variance + self.epsilon).rsqrt()
        return _Gate.apply(x, mean, scale, self.alpha, by_batch)  # type: ignore[no-untyped-call]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each column; ``torch.var_mean`` takes thrice as long on a CPU."""
    mean = x.mean(0)
    squares = x.new_zeros(x.shape[1])
    for rows in _parts(x):
        squares += (rows - mean).square_().sum(0)
    return mean, squares / len(x)


class _Gate(torch.autograd.Function):
    """``x (p + (1 - p) a)`` and its gradients, some rows at a time.

    Written as tensor operations on everything, a dozen passes over all rows go to memory and back;
    a history of a hundred events has a hundred times the rows of a batch. Rows that fit the cache
    are read from it.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (untyped in torch)
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        alpha: Tensor,
        by_batch: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, scale, alpha)
        ctx.by_batch = by_batch
        shift, rest = -mean * scale, 1 - alpha
        out = torch.empty_like(x)
        for rows, place in zip(_parts(x), _parts(out), strict=True):
            gate = torch.addcmul(shift, rows, scale).sigmoid_()
            torch.mul(torch.addcmul(alpha, gate, rest), rows, out=place)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, mean, scale, alpha = ctx.saved_tensors
        shift, rest = -mean * scale, 1 - alpha
        moved = torch.empty_like(x)
        of_alpha, total, turned = (x.new_zeros(x.shape[1]) for _ in range(3))
        for rows, grads, place in zip(_parts(x), _parts(gradient), _parts(moved), strict=True):
            normed = torch.addcmul(shift, rows, scale)
            p = torch.sigmoid(normed)
            q = 1 - p
            product = grads * rows
            of_alpha += (product * q).sum(0)
            through = product.mul_(p).mul_(q).mul_(rest)  # by the normed value
            total += through.sum(0)
            turned += (through * normed).sum(0)
            torch.addcmul(grads * torch.addcmul(alpha, p, rest), through, scale, out=place)
        if ctx.by_batch:
            # The mean and the deviation moved with every row.
            total, turned = scale * total / len(x), scale * turned / len(x)
            for rows, place in zip(_parts(x), _parts(moved), strict=True):
                place.sub_(total)
                place.addcmul_(torch.addcmul(shift, rows, scale), turned, value=-1)
        return moved, None, None, of_alpha, None


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """Rows in parts of about half a megabyte.

    On a GPU, whose memory is as fast, all of them; and in an exported graph, which has no loops.
    """
    if x.device.type != "cpu" or torch.compiler.is_exporting() or not x.numel():
        return (x,)
    return x.split(max(1, 2**17 // x.shape[1]))


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
