"""DHEN: layers of different interaction modules side by side, fused, with shortcut and norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import DenseSideTokens
from tamis.nn.mlp import MLP, Activation, Norm
from tamis.nn.sequence import HistoryTokens
from tamis.nn.token_mixers import MIXERS, MixerName, MixerSizes, TokenMap

Ensemble = Literal["concat", "sum", "weighted_sum"]
Shortcut = Literal["linear", "mlp", "none"]
NormPosition = Literal["post_sum", "pre_sum"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DHENConfig:
    """DHEN; the defaults train fast on a CPU."""

    embedding_dim: int = 16
    """Width d of a token. At least 1."""
    num_layers: int = 2
    """Layers N, where ``layers`` is empty. At least 1."""
    modules: tuple[MixerName, ...] = ("dot", "linear", "dcn_v2")
    """Modules of each layer; a name may stand twice."""
    layers: tuple[tuple[MixerName, ...], ...] = ()
    """Modules layer by layer, for layers that differ; empty repeats ``modules``."""
    module_tokens: int = 8
    """Tokens l that each module emits."""
    ensemble: Ensemble = "concat"
    """How the modules' outputs are fused."""
    shortcut: Shortcut = "linear"
    """What is added to the fused output: the input (mapped over tokens where counts differ)."""
    norm: bool = True
    """Whether each layer ends in a layer norm over d."""
    norm_position: NormPosition = "post_sum"
    """Norm after the shortcut is added (paper) or before (ZHEN)."""
    dot_units: int = 256
    """Hidden width of the dot module."""
    dot_pairs: Literal["upper", "diagonal", "full"] = "upper"
    """Products that the dot module sees: i < j, i <= j, or the whole Gram matrix."""
    attention_heads: int = 1
    """Heads of the attention module; divide ``embedding_dim``."""
    attention_units: int = 64
    """Width of the attention module's feed-forward layer."""
    attention_dropout: float = 0.0
    """Dropout inside the attention module, in [0, 1)."""
    attention_compress_first: bool = False
    """Whether tokens are mapped before the attention layer (ZHEN) or after it (paper)."""
    attention_qkv_bias: bool = True
    """Whether queries, keys and values have biases (ZHEN's have none)."""
    conv_channels: int = 1
    """Channels of the convolution module."""
    conv_kernel: int = 5
    """Kernel of the convolution module, odd."""
    linear_bias: bool = False
    """Whether token maps have biases (ZHEN)."""
    dcn_residual: bool = False
    """Whether the ``dcn_v2`` module adds its own input."""
    num_dense_tokens: int = 1
    """Tokens that the numeric features become, through an MLP of their own."""
    dense_units: tuple[int, ...] = (64,)
    """Hidden widths of that MLP."""
    history: Literal["mean", "mlp", "attention"] = "mean"
    """What makes one token of each column of a history: its mean, an MLP over the events by their
    places from the end, or attention of a learned query."""
    head_units: tuple[int, ...] = (256, 128)
    """Hidden widths of the MLP over the last layer."""
    head_norm: Norm = "none"
    """Before the activation of each hidden layer of the head."""
    activation: Activation = "relu"
    """After each hidden layer of the head."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit of the head while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not all(self.layer_modules) or not self.layer_modules:
            raise ConfigError("model.modules: every layer must hold a module, got none.")
        if "attention" in {name for names in self.layer_modules for name in names} and (
            self.embedding_dim % self.attention_heads
        ):
            raise ConfigError(
                f"model.attention_heads: must divide embedding_dim={self.embedding_dim}, got "
                f"{self.attention_heads}."
            )
        if self.conv_kernel % 2 == 0:
            raise ConfigError(f"model.conv_kernel: must be odd, got {self.conv_kernel}.")

    @property
    def layer_modules(self) -> tuple[tuple[MixerName, ...], ...]:
        """Modules of every layer."""
        return self.layers or (self.modules,) * self.num_layers

    def mixer_sizes(self, in_tokens: int) -> MixerSizes:
        """Sizes of the modules of a layer that ``in_tokens`` tokens enter."""
        return MixerSizes(
            in_tokens=in_tokens,
            out_tokens=self.module_tokens,
            width=self.embedding_dim,
            dot_units=self.dot_units,
            dot_pairs=self.dot_pairs,
            attention_heads=self.attention_heads,
            attention_units=self.attention_units,
            attention_dropout=self.attention_dropout,
            attention_compress_first=self.attention_compress_first,
            attention_qkv_bias=self.attention_qkv_bias,
            conv_channels=self.conv_channels,
            conv_kernel=self.conv_kernel,
            linear_bias=self.linear_bias,
            dcn_residual=self.dcn_residual,
            start_scale=len(self.layer_modules) ** -0.5,
        )


class DHEN(nn.Module):
    """Tokens through N layers, flattened into an MLP.

    Source:
        Zhang et al., DHEN: A Deep and Hierarchical Ensemble Network for Large-Scale Click-Through
        Rate Prediction, arXiv:2203.11014, equations (1) and (2), figure 3.

    Differs from the source:
        Sizes of head and dense side, and how histories enter, were not published; T tasks share
        everything but the output layer. How weights start was not published: the last map of each
        module starts 1 / sqrt(N) as large, so that with the norm after the sum the stream through
        the shortcuts, and the gradient, keep their size whatever the depth. A norm before the sum
        undoes that, as does the one that follows the map of ``attention_compress_first``.
    """

    def __init__(self, config: DHENConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``."""
        super().__init__()
        self.tokens = DenseSideTokens(
            spec,
            config.embedding_dim,
            hidden_units=config.dense_units,
            num_dense_tokens=config.num_dense_tokens,
            pool_sequences=config.history == "mean",
            init_std=config.init_std,
        )
        count = self.tokens.num_tokens
        self.history: HistoryTokens | None = None
        if config.history != "mean" and spec.sequences:
            self.history = HistoryTokens(spec, config.embedding_dim, kind=config.history)
            count += len(self.history.makers)
        self.layers, count = dhen_layers(config, count)
        self.head = MLP(
            count * config.embedding_dim,
            config.head_units,
            out_dim=len(spec.tasks),
            makes_logits=True,
            activation=config.activation,
            dropout=config.dropout,
            norm=config.head_norm,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        parts = [self.tokens(batch)] if self.tokens.num_tokens else []
        if self.history is not None:
            parts.append(self.history(batch, self.tokens.tables))
        tokens = torch.cat(parts, dim=1)
        return Output(logits=self.head(self.layers(tokens).flatten(1)))


def dhen_layers(config: DHENConfig, in_tokens: int) -> tuple[nn.Sequential, int]:
    """The layers of a config for ``in_tokens`` tokens, and how many tokens leave the last."""
    layers: list[DHENLayer] = []
    count = in_tokens
    for index, names in enumerate(config.layer_modules):
        # ZHEN's last layer has no shortcut: it adds a layer's input where the next one starts.
        last = index == len(config.layer_modules) - 1
        zhen_end = last and config.norm_position == "pre_sum"
        layers.append(
            DHENLayer(
                names,
                config.mixer_sizes(count),
                ensemble=config.ensemble,
                shortcut="none" if zhen_end else config.shortcut,
                norm=config.norm,
                norm_position=config.norm_position,
            )
        )
        count = layers[-1].out_tokens
    return nn.Sequential(*layers), count


class DHENLayer(nn.Module):
    """``Norm(Ensemble_i Module_i(X) + ShortCut(X))``; with ``pre_sum`` the norm leaves X out.

    Source:
        DHEN, arXiv:2203.11014, equation (1); ``pre_sum`` is the order of the public ZHEN code.

    Differs from the source:
        Weights of the weighted sum are free scalars that start from 1 (not specified).
    """

    def __init__(
        self,
        modules: Sequence[MixerName],
        sizes: MixerSizes,
        *,
        ensemble: Ensemble = "concat",
        shortcut: Shortcut = "linear",
        norm: bool = True,
        norm_position: NormPosition = "post_sum",
    ) -> None:
        """Build the modules side by side.

        Args:
            modules: Their names; one may stand twice.
            sizes: Sizes of every module.
            ensemble: Fusion; ``concat`` emits k*l tokens, the sums l.
            shortcut: How X is added: a token map or MLP over tokens where counts differ, X itself
                where they are equal, or not at all.
            norm: Whether to normalise over d, per token.
            norm_position: Before or after X is added.
        """
        super().__init__()
        self.mixers = nn.ModuleList(MIXERS[name](sizes) for name in modules)
        self.is_concat = ensemble == "concat"
        self.out_tokens = sizes.out_tokens * (len(modules) if self.is_concat else 1)
        weighted = ensemble == "weighted_sum"
        self.mixer_weight = nn.Parameter(torch.ones(len(modules))) if weighted else None
        self.shortcut = _shortcut(shortcut, sizes.in_tokens, self.out_tokens)
        self.norm = nn.LayerNorm(sizes.width) if norm else nn.Identity()
        self.norm_first = norm_position == "pre_sum"

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Tokens of the next layer."""
        fused = self._fuse([mixer(tokens) for mixer in self.mixers])
        if self.shortcut is None:
            return self.norm(fused)
        if self.norm_first:
            return self.norm(fused) + self.shortcut(tokens)
        return self.norm(fused + self.shortcut(tokens))

    def _fuse(self, outputs: list[Tensor]) -> Tensor:
        if self.is_concat:
            return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        stacked = torch.stack(outputs)
        if self.mixer_weight is None:
            return stacked.sum(0)
        return torch.einsum("kbnd,k->bnd", stacked, self.mixer_weight)


class _TokenMLP(nn.Module):
    """An MLP over the token axis, the same for every dimension of d."""

    def __init__(self, in_tokens: int, out_tokens: int) -> None:
        super().__init__()
        self.mlp = MLP(in_tokens, (out_tokens,), out_dim=out_tokens)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        return self.mlp(tokens.transpose(1, 2)).transpose(1, 2)


def _shortcut(kind: Shortcut, in_tokens: int, out_tokens: int) -> nn.Module | None:
    if kind == "none":
        return None
    if in_tokens == out_tokens:
        return nn.Identity()
    return (_TokenMLP if kind == "mlp" else TokenMap)(in_tokens, out_tokens)
