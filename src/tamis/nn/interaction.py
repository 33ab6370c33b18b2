"""Feature interactions that several models share."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.nn.attention import self_attend
from tamis.nn.autocast import in_autocast_type


def pairwise_products(tokens: Float[Tensor, "B F D"]) -> Float[Tensor, "B D"]:
    """Sum over all pairs of tokens of their element-wise product, in O(F D).

    Source:
        Rendle, Factorization Machines, ICDM 2010, lemma 3.1.

    Differs from the source:
        Not yet summed over D, so a model may weigh the dimensions.

    Example:
        >>> pairwise_products(torch.tensor([[[1.0], [2.0], [3.0]]]))
        tensor([[11.]])
    """
    return 0.5 * (tokens.sum(1).square() - tokens.square().sum(1))


class DotInteraction(nn.Module):
    """Inner products of all pairs of tokens, each as its own feature."""

    positions: Tensor

    def __init__(self, num_tokens: int, *, with_diagonal: bool = False) -> None:
        """List the pairs.

        Args:
            num_tokens: Tokens F per row.
            with_diagonal: Whether a token's product with itself counts as a pair.
        """
        super().__init__()
        rows, columns = torch.tril_indices(num_tokens, num_tokens, 0 if with_diagonal else -1)
        self.register_buffer("positions", rows * num_tokens + columns, persistent=False)
        self.out_dim = len(rows)

    def forward(self, tokens: Float[Tensor, "B F D"]) -> Float[Tensor, "B P"]:
        """The P products of a row, pair (1, 0) first, then (2, 0), (2, 1), ..."""
        gram = torch.bmm(tokens, tokens.transpose(1, 2))
        # In float32, where selecting columns is vectorised: a third of the time, both ways.
        return gram.float().flatten(1).index_select(1, self.positions)


class CrossNet(nn.Module):
    """Cross layers ``x <- x0 * (W x + b) + x`` on a flat vector.

    With ``rank > 0`` and no experts W is a product ``U V'`` of two matrices of that rank. With
    ``num_experts > 0`` it is a gated mixture of low-rank maps:
    ``x <- x0 * sum_e g_e(x) (U_e tanh(C_e tanh(V_e x)) + b) + x`` with softmax gates g.

    Source:
        Wang et al., DCN V2, WWW 2021, equations (1) to (4).

    Differs from the source:
        Nothing known.
    """

    def __init__(self, width: int, num_layers: int, *, rank: int = 0, num_experts: int = 0) -> None:
        """Build the layers.

        Args:
            width: Width W of the vector.
            num_layers: Cross layers.
            rank: Rank of W, or of each expert; 0 takes a full matrix. Experts need one.
            num_experts: Experts per layer; 0 takes one matrix per layer.
        """
        super().__init__()
        self.layers = nn.ModuleList(_cross_map(width, rank, num_experts) for _ in range(num_layers))

    def forward(self, x0: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """The last cross layer's output."""
        x0 = in_autocast_type(x0)
        x = x0
        for layer in self.layers:
            x = _AddProduct.apply(x, x0, layer(x))  # type: ignore[no-untyped-call]
        return x


class _AddProduct(torch.autograd.Function):
    """``x + factor * mapped`` in one pass; addcmul's own backward multiplies by its scalar too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, mapped: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(factor, mapped)
        return torch.addcmul(x, factor, mapped)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        factor, mapped = ctx.saved_tensors
        return gradient, gradient * mapped, gradient * factor


class _CrossExperts(nn.Module):
    def __init__(self, width: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(num_experts, width, rank))
        self.core = nn.Parameter(torch.empty(num_experts, rank, rank))
        self.up = nn.Parameter(torch.empty(num_experts, rank, width))
        for weight in (self.down, self.core, self.up):
            for expert in weight:
                nn.init.xavier_normal_(expert)
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, num_experts)

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        hidden = torch.tanh(torch.einsum("bw,ewr->ber", x, self.down))
        hidden = torch.tanh(torch.einsum("ber,ers->bes", hidden, self.core))
        gates = torch.softmax(self.gate(x), dim=1).unsqueeze(2)
        return torch.einsum("ber,erw->bw", hidden * gates, self.up) + self.bias


class CompressedInteraction(nn.Module):
    """Compressed interaction network (CIN): products of tokens, compressed layer by layer.

    Layer k: ``X_k[h] = sum_ij W_k[h, i, j] X_{k-1}[i] * X_0[j]`` (element-wise over D). With
    ``split_half`` half of a layer's maps feed the next layer and the other half the output.

    Source:
        Lian et al., xDeepFM, KDD 2018, equations (6) and (8), section 3.2.

    Differs from the source:
        Linear maps, as the paper's own experiments chose; ``split_half`` and the biases of the
        maps, which start from 0, are of the authors' code.
    """

    def __init__(self, num_tokens: int, maps: Sequence[int], *, split_half: bool) -> None:
        """Build the layers.

        Args:
            num_tokens: Tokens F per row.
            maps: Feature maps of each layer.
            split_half: Whether half of each layer but the last goes straight to the output.
        """
        super().__init__()
        self.split_half = split_half
        self.layers = nn.ModuleList()
        width, self.out_dim = num_tokens, 0
        for index, count in enumerate(maps):
            layer = nn.Linear(num_tokens * width, count)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
            last = index == len(maps) - 1
            width = count // 2 if split_half and not last else count
            self.out_dim += count - width if split_half and not last else count

    def forward(self, tokens: Float[Tensor, "B F D"]) -> Float[Tensor, "B H"]:
        """Sum over D of every map that goes to the output."""
        base = tokens.transpose(1, 2)
        x, outputs = base, []
        for index, layer in enumerate(self.layers):
            products = (base.unsqueeze(3) * x.unsqueeze(2)).flatten(2)
            x = layer(products)
            if self.split_half and index < len(self.layers) - 1:
                half = x.shape[2] // 2
                x, out = x[:, :, :half], x[:, :, half:]
                outputs.append(out)
            else:
                outputs.append(x)
        return torch.cat(outputs, dim=2).sum(1)


class FieldAttention(nn.Module):
    """Multi-head self-attention between tokens, with a residual map and ReLU.

    Source:
        Song et al., AutoInt, CIKM 2019, equations (5) to (8).

    Differs from the source:
        Scores may be divided by the root of the head width; the output may be normalised.
    """

    def __init__(
        self, in_dim: int, out_dim: int, num_heads: int, *, scale: bool, layer_norm: bool = False
    ) -> None:
        """Build the projections.

        Args:
            in_dim: Width of a token.
            out_dim: Width of an output token; a multiple of ``num_heads``.
            num_heads: Heads H.
            scale: Whether to divide scores by the root of the head width.
            layer_norm: Whether to normalise the sum of attention and residual before the ReLU.
        """
        super().__init__()
        self.num_heads, self.out_dim, self.scale = num_heads, out_dim, scale
        # Query, key, value and residual in one matrix product.
        self.project = nn.Linear(in_dim, 4 * out_dim, bias=False)
        for part in self.project.weight.chunk(4):
            nn.init.xavier_uniform_(part)
        self.norm = nn.LayerNorm(out_dim) if layer_norm else nn.Identity()

    def forward(self, tokens: Float[Tensor, "B F D"]) -> Float[Tensor, "B F O"]:
        """Tokens after attention."""
        projected, residual = self.project(tokens).split((3 * self.out_dim, self.out_dim), dim=2)
        scale = None if self.scale else 1.0
        mixed = self_attend(projected, num_heads=self.num_heads, scale=scale)
        return F.relu(self.norm(mixed + residual))


def _cross_map(width: int, rank: int, num_experts: int) -> nn.Module:
    if num_experts:
        return _CrossExperts(width, rank, num_experts)
    shapes = ((rank, width), (width, rank)) if rank else ((width, width),)
    maps = [nn.Linear(into, out, bias=False) for out, into in shapes]
    last = maps[-1]
    last.bias = nn.Parameter(torch.zeros(width))
    for layer in maps:
        nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(*maps) if rank else last
