"""Self-attention on a CPU, from projections to mixed values, in blocks of rows that stay in cache.

Made of whole tensors, attention over histories spends as much time on moving queries, keys, values
and their gradients through memory (to float32, rotated, apart and together) as on products. Here a
block of rows is read once, all of that happens in cache, and what comes of it is written once.
Shares are computed anew for the gradient: of long rows they are the largest thing to keep.

Source:
    Dao et al., FlashAttention, arXiv:2205.14135, for blocks and computing anew.

Differs from the source:
    A block holds whole rows of the batch, not some of their keys, so that no softmax is put
    together of parts; and it is for a CPU's cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_BYTES_PER_THREAD = 2 << 20
"""Of a block's shares, queries, keys and values; for the gradient it holds about thrice as much."""


def blocked_attention(
    projected: Float[Tensor, "B L W"],
    valid: Bool[Tensor, "B L"] | None,
    *,
    num_heads: int,
    scale: float,
    turns: Complex[Tensor, "L P"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B L D"]:
    """Softmax attention of each row's tokens to each other, in float32.

    Args:
        projected: Queries, keys and values side by side, W = 3 D, each by heads.
        valid: Tokens that may be attended to; a row without any gets zeros. None: all tokens.
        num_heads: Heads; must divide D.
        scale: Multiplies the scores.
        turns: What the P = D / 2 pairs of neighbours in queries and keys are multiplied by as
            complex numbers; None: nothing.
        causal: Whether a token sees only itself and those before it; rows then begin with a valid
            token, or have none.
    """
    blocks = _Blocks(projected, valid, num_heads, scale, turns, causal)
    mixed: Tensor = _BlockedAttention.apply(projected, blocks)  # type: ignore[no-untyped-call]
    return mixed


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, blocks: "_Blocks") -> Tensor:  # noqa: ANN401
        ctx.blocks = blocks
        ctx.save_for_backward(projected)
        with torch.autocast("cpu", enabled=False):
            return blocks.mixed(projected)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mixed: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (projected,) = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            return ctx.blocks.gradient(projected, of_mixed), None


class _Blocks:
    """Attention block by block, forth and back; b rows of a block with H heads are one batch N."""

    def __init__(
        self,
        projected: Tensor,
        valid: Tensor | None,
        num_heads: int,
        scale: float,
        turns: Tensor | None,
        causal: bool,
    ) -> None:
        self.rows, self.length, width = projected.shape
        self.heads, self.width, self.scale = num_heads, width // (3 * num_heads), scale
        # Values turn as well, by nothing: rows without gaps take less time than two thirds of them.
        self.turns = (
            None if turns is None else torch.cat([turns, turns, torch.ones_like(turns)], dim=1)
        )
        self.alive: Tensor | None = None
        self.bias: Tensor | None = None
        if valid is not None and not bool(valid.all()):
            # A row without a valid token would be NaN: it sees all of them, and is set to 0 then.
            alive = valid.any(1, keepdim=True)
            self.alive = None if bool(alive.all()) else alive[:, None, :, None]
            self.bias = _bias_of(valid | ~alive)[:, None, None, :]
        self.causal_bias = (
            _bias_of(torch.ones(self.length, self.length).tril() > 0) if causal else None
        )

    def mixed(self, projected: Tensor) -> Tensor:
        """Mixed values (B, L, D)."""
        shape = (self.rows, self.length, self.heads, self.width)
        mixed = torch.empty(shape, dtype=torch.float32)
        for block in self._blocks():
            query, key, value = self._read(projected[block])
            part = torch.bmm(self._shares(query, key, block), value)
            part = part.unflatten(0, (-1, self.heads))
            mixed[block] = self._alive(part, block).transpose(1, 2)
        return mixed.flatten(2)

    def gradient(self, projected: Tensor, of_mixed: Tensor) -> Tensor:
        """Gradient of the projections, from that of the mixed values."""
        of_projected = torch.empty_like(projected)
        of_mixed = of_mixed.unflatten(2, (self.heads, self.width))
        for block in self._blocks():
            query, key, value = self._read(projected[block])
            shares = self._shares(query, key, block)
            given = of_mixed[block].transpose(1, 2).float()
            given = self._alive(given, block).flatten(0, 1)
            parts = query.new_empty((3, *query.shape))
            torch.bmm(shares.transpose(1, 2), given, out=parts[2])
            of_scores = torch.bmm(given, value.transpose(1, 2))
            of_scores -= (of_scores * shares).sum(2, keepdim=True)
            of_scores *= shares
            torch.bmm(of_scores, key, out=parts[0])
            parts[0] *= self.scale
            torch.bmm(of_scores.transpose(1, 2), query, out=parts[1])
            of_projected[block] = self._joined(parts)
        return of_projected

    def _blocks(self) -> Iterator[slice]:
        bytes_per_row = 4 * self.heads * self.length * (self.length + 3 * self.width)
        size = max(1, torch.get_num_threads() * _BYTES_PER_THREAD // max(1, bytes_per_row))
        for start in range(0, self.rows, size):
            yield slice(start, start + size)

    def _read(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values (N, L, K)."""
        turned = _turned(projected.float(), self.turns)
        parts = turned.unflatten(2, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.flatten(1, 2).unbind(0)
        return query * self.scale, key, value

    def _shares(self, query: Tensor, key: Tensor, block: slice) -> Tensor:
        """What each token takes from each other one, (N, L, L)."""
        scores = torch.bmm(query, key.transpose(1, 2))
        if self.bias is not None:
            scores.unflatten(0, (-1, self.heads)).add_(self.bias[block])
        if self.causal_bias is not None:
            scores += self.causal_bias
        return scores.softmax(2)

    def _alive(self, tokens: Tensor, block: slice) -> Tensor:
        """Tokens (b, H, L, K), those of rows without a valid one set to 0."""
        return tokens if self.alive is None else tokens * self.alive[block]

    def _joined(self, parts: Tensor) -> Tensor:
        """Gradients of queries, keys and values (3, N, L, K), as they were projected (b, L, W)."""
        parts = parts.unflatten(1, (-1, self.heads)).permute(1, 3, 0, 2, 4)
        return _turned(parts.flatten(2), None if self.turns is None else self.turns.conj())


def _bias_of(seen: Tensor) -> Tensor:
    """What is added to scores: 0 where a token is seen."""
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)


def _turned(x: Tensor, turns: Tensor | None) -> Tensor:
    if turns is None:
        return x
    return torch.view_as_real(torch.view_as_complex(x.unflatten(2, (-1, 2))) * turns).flatten(2)
