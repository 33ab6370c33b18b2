"""Softmax attention: over fields without positions, over events with them, and by learned queries.

Masks are true where a token may be attended to. A row without any such token gets zeros.
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from tamis.nn.blocked_attention import blocked_attention
from tamis.nn.dropout import Dropout
from tamis.nn.event_rows import Count
from tamis.nn.linear import Linear, linear
from tamis.nn.mlp import MLP, Activation


def attend(
    query: Float[Tensor, "B H Q K"],
    key: Float[Tensor, "B H L K"],
    value: Float[Tensor, "B H L K"],
    *,
    scale: float | None = None,
    valid: Bool[Tensor, "B L"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B H Q K"]:
    """Softmax attention; on a CPU in float32, as its backward pass is slower in bfloat16.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        scale: Multiplies the scores; None divides by the root of K.
        valid: Keys that may be attended to; None allows all.
        causal: Whether a query sees no key behind its own place; it then needs Q = L and rows that
            begin with a valid key, or have none.
    """
    mask = None if valid is None else _mask_of(valid)
    if causal:
        places = torch.arange(key.shape[2], device=key.device)
        earlier = places <= places.unsqueeze(1)
        mask = earlier if mask is None else mask & earlier
    if query.device.type != "cpu":
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    else:
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=mask, scale=scale
            )
    if valid is None:
        return mixed
    return mixed * valid.any(1).view(-1, 1, 1, 1)


def _mask_of(valid: Tensor) -> Tensor:
    """The mask that the kernel takes; a row without a valid key would be NaN, so it gets them all.

    What such a row attends to is set to 0 afterwards.
    """
    return (valid | ~valid.any(1, keepdim=True))[:, None, None, :]


def self_attend(
    projected: Float[Tensor, "B L W"],
    valid: Bool[Tensor, "B L"] | None = None,
    *,
    num_heads: int,
    scale: float | None = None,
    rotary: bool = False,
    causal: bool = False,
) -> Float[Tensor, "B L D"]:
    """Softmax attention of each row's tokens to each other.

    Args:
        projected: Queries, keys and values side by side, W = 3 D, each by heads.
        valid: Tokens that may be attended to; a row without any gets zeros. None: all tokens.
        num_heads: Heads; must divide D.
        scale: As in :func:`attend`.
        rotary: Whether queries and keys are rotated; values are not.
        causal: As in :func:`attend`.
    """
    length, width = projected.shape[1], projected.shape[2] // 3
    scale = (width // num_heads) ** -0.5 if scale is None else scale
    # PyTorch's kernel is as fast on one thread, and hardly faster on more of them.
    # A compiler cannot ask for their number.
    is_read_by_compiler = torch.compiler.is_compiling()
    if projected.device.type == "cpu" and not is_read_by_compiler and torch.get_num_threads() > 1:
        turns = None
        if rotary:
            turns = _turns(length, width // num_heads, projected.device).repeat(1, num_heads)
        return blocked_attention(
            projected, valid, num_heads=num_heads, scale=scale, turns=turns, causal=causal
        )
    both, value = projected.split((2 * width, width), dim=2)
    both = both.unflatten(2, (2 * num_heads, -1))
    if rotary:
        both = rotate(both)
    query, key = both.transpose(1, 2).chunk(2, dim=1)
    value = value.unflatten(2, (num_heads, -1)).transpose(1, 2).to(key.dtype)
    mixed = attend(query, key, value, scale=scale, valid=valid, causal=causal)
    return mixed.transpose(1, 2).flatten(2)


def rotate(x: Float[Tensor, "B L H K"]) -> Float[Tensor, "B L H K"]:
    """Rotary positions 0 to L-1: pair i of a head turns by ``position * 10000 ** (-2i / K)``.

    The product of a rotated query and a rotated key depends on the distance of their positions.
    Computed in float32: far positions differ by less than bfloat16 can tell.

    Source:
        Su et al., RoFormer, arXiv:2104.09864, equation (34).

    Differs from the source:
        Pairs are counted from 0 and not from 1; the angles are the same.
    """
    length, heads, width = x.shape[1:]
    if torch.compiler.is_exporting():
        # Graphs of other servers have no complex numbers.
        angles = _angles(length, width, x.device)
        cosine, sine = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        first, second = x.float().unflatten(3, (-1, 2)).unbind(4)
        turned = [first * cosine - second * sine, first * sine + second * cosine]
        return torch.stack(turned, dim=4).flatten(3)
    # The same for all heads, but laid out for each: one product of rows without gaps takes a
    # quarter of the time of sines and cosines over halves of a head.
    turns = _turns(length, width, x.device).unsqueeze(1).repeat(1, heads, 1)
    pairs = torch.view_as_complex(x.float().unflatten(3, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(3)


def _turns(length: Count, width: int, device: torch.device) -> Complex[Tensor, "L P"]:
    angles = _angles(length, width, device)
    return torch.polar(torch.ones_like(angles), angles)


def _angles(length: Count, width: int, device: torch.device) -> Float[Tensor, "L P"]:
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    return torch.arange(cast("int", length), device=device).unsqueeze(1) * rates


class SequenceAttention(nn.Module):
    """Multi-head self-attention between the tokens of a sequence, with rotary positions.

    Queries and keys are rotated, values are not. Without a causal mask unless asked for: the whole
    history is known when an item is ranked.

    Source:
        Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2.2; Su et al., RoFormer,
        arXiv:2104.09864, for the positions.

    Differs from the source:
        Projections have biases. A sequence without a valid token reads zeros.
    """

    def __init__(
        self, width: int, num_heads: int, *, rotary: bool = True, causal: bool = False
    ) -> None:
        """Build the projections; ``num_heads`` must divide ``width``, into even parts to rotate.

        Args:
            width: Width of a token.
            num_heads: Attention heads.
            rotary: Whether queries and keys are rotated.
            causal: Whether a token sees only itself and those before it.
        """
        super().__init__()
        self.num_heads, self.rotary, self.causal = num_heads, rotary, causal
        self.project = Linear(width, 3 * width)
        self.output = Linear(width, width)
        for part in [*self.project.weight.chunk(3), self.output.weight]:
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, tokens: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        """Tokens after attention; those that are not valid hold no information."""
        mixed = self_attend(
            self.project(tokens),
            valid,
            num_heads=self.num_heads,
            rotary=self.rotary,
            causal=self.causal,
        )
        return self.output(mixed)


class PoolingAttention(nn.Module):
    """Multi-head attention of a few learned queries to a sequence: P tokens, whatever its length.

    Source:
        Lee et al., Set Transformer, ICML 2019, equation (11), pooling by multihead attention.

    Differs from the source:
        Attention only: no feed-forward layer, no residual and no norm around it.
    """

    def __init__(self, width: int, num_queries: int, num_heads: int) -> None:
        """Build the queries, which start from a normal distribution, and the projections."""
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.project = Linear(width, 2 * width)
        self.output = Linear(width, width)
        for part in [*self.project.weight.chunk(2), self.output.weight]:
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, tokens: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B P D"]:
        """What each query reads.

        The queries are the same for all rows, so both projections change places with the sums over
        tokens: a query passes the keys' map, and what it reads the values', instead of each token.
        The keys' bias moves all scores of a query alike and so changes nothing.
        """
        heads = (self.num_heads, -1)
        key_map, value_map = (part.unflatten(0, heads) for part in self.project.weight.chunk(2))
        value_bias = self.project.bias.chunk(2)[1]
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float()
            asked = torch.einsum("phk,hkd->hpd", self.queries.unflatten(1, heads), key_map)
            scores = F.linear(tokens, asked.flatten(0, 1) * key_map.shape[1] ** -0.5)
            hidden = ~_mask_of(valid).squeeze(1)
            shares = scores.transpose(1, 2).masked_fill(hidden, -torch.inf).softmax(2)
            read = torch.bmm(shares, tokens).unflatten(1, heads)
            mixed = torch.einsum("bhpd,hkd->bphk", read, value_map).flatten(2) + value_bias
        return self.output(mixed * valid.any(1).view(-1, 1, 1))


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward layer on each token; after each a residual and layer norm.

    Source:
        Vaswani et al., Attention Is All You Need, NeurIPS 2017, sections 3.1 to 3.3, the encoder.

    Differs from the source:
        Attention has biases in its projections, and tokens have no positions but what a model adds
        to them. The activation is an argument.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        feed_forward: int,
        *,
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        """Build the layer; ``num_heads`` must divide ``width``.

        Args:
            width: Width of a token.
            num_heads: Attention heads.
            feed_forward: Hidden width of the feed-forward layer.
            activation: In the feed-forward layer.
            dropout: Probability of zeroing a unit of either branch while training.
        """
        super().__init__()
        self.attention = SequenceAttention(width, num_heads, rotary=False)
        # On tokens, whose places are no channels: an activation that normalises has no say here.
        assert activation != "dice", "dice normalises rows of a batch, not tokens"
        self.feed_forward = MLP(width, (feed_forward,), out_dim=width, activation=activation)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout: nn.Module = Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(
        self, tokens: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        """Tokens after the layer; those that are not valid hold no information."""
        attention, feed_forward = self.norms
        tokens = attention(tokens + self.dropout(self.attention(tokens, valid)))
        return feed_forward(tokens + self.dropout(self.feed_forward(tokens)))


class ActivationUnit(nn.Module):
    """How much an event has to do with a candidate: an MLP on both, their difference and product.

    Source:
        Zhou et al., Deep Interest Network, KDD 2018, section 4.3 and figure 2, the local activation
        unit.

    Differs from the source:
        Difference and product stand for the outer product, as in the paper's public code.
    """

    def __init__(
        self,
        width: int,
        hidden_units: tuple[int, ...],
        activation: Activation,
        *,
        softmax: bool,
    ) -> None:
        """Build the MLP.

        Args:
            width: Width of an event and of a candidate.
            hidden_units: Hidden widths.
            activation: After each hidden layer.
            softmax: Whether scores go through a softmax, which needs no bias.
        """
        super().__init__()
        self.score = MLP(
            4 * width,
            hidden_units,
            out_dim=1,
            activation=activation,
            out_bias=not softmax,
        )
        first = self.score.layers[0]
        assert isinstance(first, nn.Linear)
        self.score.layers[0] = _LinearOfPair(first)

    def forward(
        self,
        target: Float[Tensor, "N W"],
        events: Float[Tensor, "N W"],
    ) -> Float[Tensor, "N 1"]:
        """One score for each pair, in float32."""
        first, *rest = self.score.layers
        x = first(target, events)
        for layer in rest:
            x = layer(x)
        return x.float()


class _LinearOfPair(nn.Module):
    """A linear map of ``[target, event, target - event, target * event]``, without the third."""

    def __init__(self, of_all_four: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = of_all_four.weight, of_all_four.bias

    def forward(
        self, target: Float[Tensor, "N W"], events: Float[Tensor, "N W"]
    ) -> Float[Tensor, "N O"]:
        # The difference is linear in both, so its weights join theirs: a quarter of the work less.
        of_target, of_event, of_difference, of_product = self.weight.chunk(4, dim=1)
        weight = torch.cat([of_target + of_difference, of_event - of_difference, of_product], dim=1)
        return linear(torch.cat([target, events, target * events], dim=1), weight, self.bias)
