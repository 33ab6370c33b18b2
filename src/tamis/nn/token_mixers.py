"""The interaction modules of DHEN: each turns m tokens of width d into l tokens of width d.

All modules of a layer see the same tokens (B, m, d); what differs is how they mix them. ``MIXERS``
is the table of their names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.nn.attention import self_attend
from tamis.nn.autocast import compiles_by_shape
from tamis.nn.dropout import Dropout
from tamis.nn.interaction import DotInteraction
from tamis.nn.linear import FEW_WEIGHTS, linear
from tamis.nn.mlp import MLP

MixerName = Literal["dot", "attention", "conv", "linear", "dcn_paper", "dcn_v2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerSizes:
    """What the modules of a layer have in common, and the options of each."""

    in_tokens: int
    """Tokens m that enter."""
    out_tokens: int
    """Tokens l that each module emits."""
    width: int
    """Width d of a token."""
    dot_units: int = 256
    """Hidden width h of the dot module."""
    dot_pairs: Literal["upper", "diagonal", "full"] = "upper"
    """Products that the dot module sees: i < j, i <= j, or the whole Gram matrix."""
    attention_heads: int = 1
    """Heads of the attention module."""
    attention_units: int = 64
    """Width of the attention module's feed-forward layer."""
    attention_dropout: float = 0.0
    """Dropout inside the attention module, in [0, 1)."""
    attention_compress_first: bool = False
    """Whether m tokens become l before the attention layer (ZHEN) or after it (paper)."""
    attention_qkv_bias: bool = True
    """Whether queries, keys and values have biases (ZHEN's have none)."""
    conv_channels: int = 1
    """Channels of the convolution module."""
    conv_kernel: int = 5
    """Kernel of the convolution module, odd."""
    linear_bias: bool = False
    """Whether token maps have biases (ZHEN)."""
    dcn_residual: bool = False
    """Whether ``dcn_v2`` adds its input; the layer's shortcut does that already."""
    start_scale: float = 1.0
    """Multiplies the weights that each module's last map starts from; with
    ``attention_compress_first`` the module ends in a norm, which undoes it."""


_LOOPS_BELOW, _LOOP_IS_FASTER_BELOW = 400, 96
"""Multiplications of a batch's single product: with fewer than the first number PyTorch computes
each on a CPU by a scalar loop, two to six times as slowly as MKL computes one that is made large
enough; with fewer than the second the loop is faster nevertheless."""
_MANY_ROWS = 512
"""Rows from which on products are made large enough. Either way rounds differently."""


class TokenMap(nn.Module):
    """``u = W' X``: each of l output tokens is a weighted sum of the m tokens.

    Xavier's uniform distribution starts the weights, 0 the biases. m*l parameters, +l with bias.

    Source:
        DHEN, arXiv:2203.11014, section 3, linear module.

    Differs from the source:
        Nothing known; the bias is ZHEN's.
    """

    def __init__(
        self, in_tokens: int, out_tokens: int, *, bias: bool = False, scale: float = 1.0
    ) -> None:
        """Build the map; ``scale`` multiplies the weights that it starts from."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_tokens, in_tokens))
        nn.init.xavier_uniform_(self.weight, gain=scale)
        self.bias = nn.Parameter(torch.zeros(out_tokens, 1)) if bias else None

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Mixed tokens."""
        if self._goes_by_row(tokens):
            with torch.autocast("cpu", enabled=False):
                count, missing = self.weight.shape[0], self._missing_rows(tokens)
                maps = F.pad(self.weight, (0, 0, 0, missing)) if missing else self.weight
                by_row = maps.expand(tokens.shape[0], -1, -1)
                mixed = torch.bmm(by_row, tokens.to(maps.dtype))[:, :count]
        else:
            mixed = linear(tokens.mT, self.weight).mT
        return mixed if self.bias is None else mixed + self.bias

    def _missing_rows(self, tokens: Tensor) -> int:
        """Rows of zeros that make a row's product large enough for MKL; see ``_LOOPS_BELOW``."""
        count, least = self.weight.shape[0], tokens.shape[1] * tokens.shape[2]
        is_looped = _LOOP_IS_FASTER_BELOW <= count * least < _LOOPS_BELOW
        # Operations are counted on fewer rows, and zeros are none of the model's.
        is_many = tokens.shape[0] >= _MANY_ROWS
        return -(-_LOOPS_BELOW // least) - count if is_looped and is_many else 0

    def _goes_by_row(self, tokens: Tensor) -> bool:
        """Whether a product for each row takes less time than one of all tokens, transposed twice.

        So it is with MKL's batches of products, in float32: by 1.3 to 5 times with the gradients.
        Elsewhere a batch is a loop. What is compiled decides for itself.
        """
        return (
            not torch.compiler.is_compiling()
            and tokens.device.type == "cpu"
            and torch.backends.mkl.is_available()
            and (self.weight.numel() < FEW_WEIGHTS or not compiles_by_shape(tokens))
        )


class LinearMixer(nn.Module):
    """The linear module: a token map and nothing else; see ``TokenMap``."""

    def __init__(self, sizes: MixerSizes) -> None:
        """Build the map."""
        super().__init__()
        self.map = _last_map(sizes)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Mixed tokens."""
        return self.map(tokens)


class DotMixer(nn.Module):
    """Inner products of pairs of tokens, through one hidden layer back to tokens.

    Source:
        DHEN, arXiv:2203.11014, section 3: ``u = W_m AdvancedDLRM(X)``; the "dot" mixer of the
        public ZHEN code is this with the whole Gram matrix.

    Differs from the source:
        AdvancedDLRM was never published; this is DLRM's dot arch, without the dense-side vector,
        which is among the tokens here.
    """

    def __init__(self, sizes: MixerSizes) -> None:
        """Build the pairs and the MLP."""
        super().__init__()
        self.pairs: DotInteraction | None = None
        num_pairs = sizes.in_tokens**2
        if sizes.dot_pairs != "full":
            # A single token has no pair but itself.
            with_diagonal = sizes.dot_pairs == "diagonal" or sizes.in_tokens == 1
            self.pairs = DotInteraction(sizes.in_tokens, with_diagonal=with_diagonal)
            num_pairs = self.pairs.out_dim
        out_dim = sizes.out_tokens * sizes.width
        self.mlp = MLP(num_pairs, (sizes.dot_units,), out_dim=out_dim)
        last = self.mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        # Products of normalised tokens have a standard deviation of the root of d.
        nn.init.xavier_uniform_(last.weight, gain=sizes.start_scale / sizes.width**0.5)
        self.width = sizes.width

    def products(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B P"]:
        """The inner products that the MLP sees."""
        if self.pairs is not None:
            return self.pairs(tokens)
        return torch.bmm(tokens, tokens.transpose(1, 2)).flatten(1)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Tokens made of inner products."""
        return self.mlp(self.products(tokens)).unflatten(1, (-1, self.width))


class AttentionMixer(nn.Module):
    """A post-norm Transformer encoder layer over the tokens and a token map.

    No positions and no mask: tokens are a set of fields. ``4d^2 + 4d`` parameters of attention,
    ``2 d f + f + d`` of the feed-forward layer, ``4d`` of the norms, and the token map's.

    Source:
        DHEN, arXiv:2203.11014, section 3: ``u = W TransformerEncoderLayer(X)``; Vaswani et al.,
        Attention Is All You Need, 2017.

    Differs from the source:
        Dropout acts on the outputs of attention and feed-forward layer, not on attention weights or
        hidden units; mapping tokens before the encoder layer is ZHEN's.
    """

    def __init__(self, sizes: MixerSizes) -> None:
        """Build the encoder layer and the map."""
        super().__init__()
        width = sizes.width
        self.map = _last_map(sizes)
        self.compress_first = sizes.attention_compress_first
        self.num_heads = sizes.attention_heads
        self.project = nn.Linear(width, 3 * width, bias=sizes.attention_qkv_bias)
        self.output = nn.Linear(width, width)
        self.feed_forward = MLP(width, (sizes.attention_units,), out_dim=width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(sizes.attention_dropout)
        for layer in (self.project, self.output):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Tokens after attention and the token map."""
        if self.compress_first:
            return self._encode(self.map(tokens))
        return self.map(self._encode(tokens))

    def _encode(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        mixed = self.output(self_attend(self.project(x), num_heads=self.num_heads))
        x = self.norm1(x + self.dropout(mixed))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class ConvolutionMixer(nn.Module):
    """A 2-D convolution over the matrix of tokens as a one-channel image, and a token map.

    Which tokens are neighbours matters to it, beyond what permuted weights could undo. Several
    channels are averaged.

    Source:
        DHEN, arXiv:2203.11014, section 3: ``u = W Conv2d(X)``.

    Differs from the source:
        Kernel and channels were not published; the default is ZHEN's single 5 x 5 filter.
    """

    def __init__(self, sizes: MixerSizes) -> None:
        """Build the filter and the map."""
        super().__init__()
        padding = sizes.conv_kernel // 2
        self.conv = nn.Conv2d(1, sizes.conv_channels, sizes.conv_kernel, padding=padding)
        self.map = _last_map(sizes)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Tokens after the filter and the map."""
        return self.map(self.conv(tokens.unsqueeze(1)).mean(1))


class PaperCrossMixer(nn.Module):
    """The paper's DCN module read literally: ``u = W (X' X) + b`` on the d x d Gram matrix.

    Source:
        DHEN, arXiv:2203.11014, section 3, DCN module (reading A: W is l x d, b is l x d).

    Differs from the source:
        Nothing known; the residual of DCN is left to the layer's shortcut, as the paper says.
    """

    def __init__(self, sizes: MixerSizes) -> None:
        """Build W and b."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sizes.out_tokens, sizes.width))
        # The Gram matrix of m normalised tokens grows with m.
        nn.init.xavier_uniform_(self.weight, gain=sizes.start_scale / sizes.in_tokens)
        self.bias = nn.Parameter(torch.zeros(sizes.out_tokens, sizes.width))

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Tokens made of the bits' second moments."""
        gram = torch.bmm(tokens.transpose(1, 2), tokens)
        return torch.matmul(self.weight, gram) + self.bias


class CrossMixer(nn.Module):
    """One cross layer of DCN-V2 on the flat tokens, and a token map.

    ``x0 * (W x0 + b)``, reshaped to m tokens and mapped to l.

    Source:
        Wang et al., DCN V2, WWW 2021, equation (1), as later work that reuses DHEN does.

    Differs from the source:
        The residual is off by default: the layer's shortcut adds the input.
    """

    def __init__(self, sizes: MixerSizes) -> None:
        """Build the cross layer and the map."""
        super().__init__()
        flat = sizes.in_tokens * sizes.width
        self.cross = nn.Linear(flat, flat)
        nn.init.xavier_uniform_(self.cross.weight)
        nn.init.zeros_(self.cross.bias)
        self.map = _last_map(sizes)
        self.residual = sizes.dcn_residual
        self.width = sizes.width

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        """Crossed tokens."""
        flat = tokens.flatten(1)
        crossed = flat * self.cross(flat)
        if self.residual:
            crossed = crossed + flat
        return self.map(crossed.unflatten(1, (-1, self.width)))


def _last_map(sizes: MixerSizes) -> TokenMap:
    return TokenMap(
        sizes.in_tokens, sizes.out_tokens, bias=sizes.linear_bias, scale=sizes.start_scale
    )


MIXERS: dict[str, Callable[[MixerSizes], nn.Module]] = {
    "dot": DotMixer,
    "attention": AttentionMixer,
    "conv": ConvolutionMixer,
    "linear": LinearMixer,
    "dcn_paper": PaperCrossMixer,
    "dcn_v2": CrossMixer,
}
"""Module by name."""
