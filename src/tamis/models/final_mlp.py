"""FinalMLP: two MLP streams over gated features, fused bilinearly."""

import difflib
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Side
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FieldTokens, num_tokens
from tamis.nn.mlp import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalMLPConfig:
    """FinalMLP; without gating DualMLP."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    first_units: tuple[int, ...] = (400, 400, 400)
    """Hidden widths of the first stream; the last one is a multiple of ``num_heads``."""
    second_units: tuple[int, ...] = (400,)
    """Hidden widths of the second stream; the last one is a multiple of ``num_heads``."""
    gating: bool = True
    """Whether each stream sees features weighed by a gate of its own."""
    first_context: tuple[str, ...] = ()
    """What the first gate sees: categorical or numeric fields by name, or all categorical fields of
    a side by its name (``user``, ``item``, ``context``) where no field has that name; nothing
    there: a learnt vector."""
    second_context: tuple[str, ...] = ()
    """The same for the second gate."""
    gate_units: tuple[int, ...] = (400,)
    """Hidden widths of each gate's MLP."""
    num_heads: int = 2
    """Heads of the bilinear fusion."""
    activation: Activation = "relu"
    """After each hidden layer of the streams; the gates have ReLU."""
    norm: Norm = "none"
    """In each hidden layer of the streams."""
    first_dropout: float = 0.0
    """Probability of zeroing a hidden unit of the first stream while training, in [0, 1)."""
    second_dropout: float = 0.0
    """The same for the second stream."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("first_units", "second_units"):
            units = getattr(self, name)
            if not units or units[-1] % self.num_heads:
                raise ConfigError(
                    f"model.{name}: must end in a multiple of num_heads={self.num_heads}, got "
                    f"{units}."
                )


class FinalMLP(nn.Module):
    """Two streams, feature gating, multi-head bilinear fusion.

    Source:
        Mao et al., FinalMLP, AAAI 2023, equations (4) to (8).

    Differs from the source:
        Tokens of numeric features and pooled sequences are gated like the others, and numeric ones
        have a bias beside their direction; T tasks share everything but the fusion's output width.
        The authors' gates have embeddings of their own for the fields that they see and start a
        learnt vector from zeros; here they see the model's tokens, and the vector starts random.
    """

    def __init__(self, config: FinalMLPConfig, spec: InputSpec) -> None:
        """Build the streams for the inputs of ``spec``."""
        super().__init__()
        self.tokens = FieldTokens(spec, config.embedding_dim, init_std=config.init_std)
        width = self.tokens.num_tokens * config.embedding_dim
        contexts = (config.first_context, config.second_context)
        self.gates = nn.ModuleList(
            _FeatureGate(
                _context_positions(spec, context), config.embedding_dim, width, config.gate_units
            )
            for context in (contexts if config.gating else ())
        )
        settings = zip(
            (config.first_units, config.second_units),
            (config.first_dropout, config.second_dropout),
            strict=True,
        )
        self.streams = nn.ModuleList(
            MLP(width, units, activation=config.activation, norm=config.norm, dropout=dropout)
            for units, dropout in settings
        )
        self.fusion = BilinearFusion(
            config.first_units[-1],
            config.second_units[-1],
            len(spec.tasks),
            num_heads=config.num_heads,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        tokens = self.tokens(batch)
        flat = tokens.flatten(1)
        features = [flat * gate(tokens) for gate in self.gates] or [flat, flat]
        first, second = (
            stream(feature) for stream, feature in zip(self.streams, features, strict=True)
        )
        return Output(logits=self.fusion(first, second))


def _context_positions(spec: InputSpec, context: tuple[str, ...]) -> list[int]:
    """Positions, among the tokens, of the fields that a gate sees."""
    categorical = [item.name for item in spec.categorical]
    first_numeric = num_tokens(spec) - len(spec.numeric)
    positions: list[int] = []
    for name in context:
        if name in categorical:
            positions.append(categorical.index(name))
        elif name in spec.numeric:
            positions.append(first_numeric + spec.numeric.index(name))
        elif name in get_args(Side):
            positions += [i for i, item in enumerate(spec.categorical) if item.side == name]
        else:
            known = [*get_args(Side), *categorical, *spec.numeric]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"model: a gate's context must name sides or categorical or numeric fields, got "
                f"{name!r}.{hint}"
            )
    return sorted(set(positions))


class _FeatureGate(nn.Module):
    """Weights in (0, 2) for every embedding dimension, from a context."""

    def __init__(
        self, positions: list[int], embedding_dim: int, width: int, units: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.positions = positions
        # From zeros a ReLU gate would never learn: nothing but its last bias has a gradient there.
        start = torch.randn(1, embedding_dim) / embedding_dim**0.5
        self.learnt = None if self.positions else nn.Parameter(start)
        self.mlp = MLP(max(1, len(self.positions)) * embedding_dim, units, out_dim=width)

    def forward(self, tokens: Float[Tensor, "B F D"]) -> Float[Tensor, "#B W"]:
        known = self.learnt is None
        context = tokens[:, self.positions].flatten(1) if known else self.learnt
        return 2.0 * torch.sigmoid(self.mlp(context))


class BilinearFusion(nn.Module):
    """``b + w_1 x + w_2 y + sum_h x_h' W_h y_h`` for each output, x and y cut into heads.

    Source:
        Mao et al., FinalMLP, AAAI 2023, equations (7) and (8).

    Differs from the source:
        Nothing known.
    """

    def __init__(self, first_dim: int, second_dim: int, out_dim: int, *, num_heads: int) -> None:
        """Build the weights.

        Args:
            first_dim: Width of x, a multiple of ``num_heads``.
            second_dim: Width of y, a multiple of ``num_heads``.
            out_dim: Outputs T.
            num_heads: Heads H.
        """
        super().__init__()
        self.num_heads = num_heads
        self.linear = MLP(first_dim + second_dim, (), out_dim=out_dim, makes_logits=True)
        shape = (num_heads, first_dim // num_heads, out_dim, second_dim // num_heads)
        self.weight = nn.Parameter(torch.empty(shape))
        # Every product of a pair of units is an input of its own: first_dim * second_dim / H.
        inputs = first_dim * second_dim // num_heads
        nn.init.normal_(self.weight, std=(2.0 / (inputs + out_dim)) ** 0.5)

    def forward(self, x: Float[Tensor, "B X"], y: Float[Tensor, "B Y"]) -> Float[Tensor, "B T"]:
        """Fused outputs."""
        heads_x = x.unflatten(1, (self.num_heads, -1))
        heads_y = y.unflatten(1, (self.num_heads, -1))
        # x first: its heads are summed over before T multiplies the size of anything.
        mixed = torch.einsum("bhx,hxty->bhty", heads_x, self.weight)
        # Not a matrix product: autocast would round the logits to bfloat16.
        bilinear = (mixed.float() * heads_y.float().unsqueeze(2)).sum((1, 3))
        return self.linear(torch.cat([x, y], dim=1)) + bilinear
