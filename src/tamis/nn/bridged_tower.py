"""A tower of layers with two branches each, an MLP and an attentional FM, and a bridge between."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.nn.mlp import MLP

Bridge = Literal["product", "sum", "attention"]


class AttentionalFM(nn.Module):
    """``sum_pq a_pq (e_p * e_q)`` over pairs of tokens p < q.

    The weights are ``a_pq = softmax_pq(h' relu(W (e_p * e_q) + b))``. A single token is its own
    pair.

    Source:
        Xiao et al., Attentional Factorization Machines, IJCAI 2017, equations (3) to (5).

    Differs from the source:
        Without the first-order part and the map to a prediction; no dropout.
    """

    first: Tensor
    second: Tensor

    def __init__(self, num_tokens: int, width: int, *, attention_units: int) -> None:
        """List the pairs and build the attention.

        Args:
            num_tokens: Tokens M per row.
            width: Width D of a token.
            attention_units: Rows of W.
        """
        super().__init__()
        first, second = torch.triu_indices(num_tokens, num_tokens, 1 if num_tokens > 1 else 0)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        # No bias at the end: the softmax would not see it. One pair has a weight of 1 anyway.
        self.scores: MLP | None = None
        if len(first) > 1:
            self.scores = MLP(width, (attention_units,), out_dim=1, out_bias=False)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B D"]:
        """The weighted sum of products."""
        products = tokens.index_select(1, self.first) * tokens.index_select(1, self.second)
        if self.scores is None:
            return products.squeeze(1)
        weights = torch.softmax(self.scores(products).float(), dim=1)
        return (weights * products).sum(1)


class BridgedTower(nn.Module):
    """Layers of two branches on the tokens of one side, then a map to the tokens that leave.

    Layer l reads tokens X (M x D). A gate per branch weighs the tokens,
    ``X_b = M softmax(g_b) * X``. The implicit branch is ``P = relu(W X_mlp + c)`` on the flat
    tokens, the explicit one ``Q = V afm(X_fm)``, both M x D again. The next tokens are
    ``LayerNorm(X + bridge(P, Q))``. The tower emits a linear map of the last P, Q and X, which
    starts from Xavier's uniform distribution.

    Source:
        HSNN, arXiv:2408.06653, section on MoNN: a tower "like EDCN" whose layers have an MLP and an
        attentional FM; EDCN is Chen et al., Enhancing Explicit and Implicit Feature Interactions
        via Information Sharing for Parallel Deep CTR Models, DLP-KDD 2021, equations (5) to (9).

    Differs from the source:
        HSNN publishes no equation and no size. EDCN's cross network is the attentional FM, whose
        vector a linear map turns into tokens again; shortcut and layer norm are added, so that
        depth does not shrink products of small embeddings.
    """

    def __init__(
        self,
        in_tokens: int,
        width: int,
        *,
        num_layers: int,
        out_tokens: int,
        out_dim: int,
        attention_units: int = 16,
        bridge: Bridge = "attention",
    ) -> None:
        """Build the layers.

        Args:
            in_tokens: Tokens M that enter. At least 1.
            width: Their width D.
            num_layers: Layers. At least 1.
            out_tokens: Tokens that leave.
            out_dim: Their width.
            attention_units: Hidden width of the attention over pairs, and of the bridge's.
            bridge: How the branches are fused between layers.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            _BridgedLayer(in_tokens, width, attention_units, bridge) for _ in range(num_layers)
        )
        self.output = MLP(3 * in_tokens * width, (), out_dim=out_tokens * out_dim)
        self.out_tokens, self.out_dim = out_tokens, out_dim

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N O"]:
        """Tokens of the tower."""
        last = [tokens]
        for layer in self.layers:
            last = layer(last[-1])
        flat = torch.cat(last, dim=1).flatten(1)
        return self.output(flat).float().unflatten(1, (self.out_tokens, self.out_dim))


class _BridgedLayer(nn.Module):
    def __init__(self, num_tokens: int, width: int, attention_units: int, bridge: Bridge) -> None:
        super().__init__()
        # A single token has nothing to be weighed against.
        self.gates = nn.Parameter(torch.zeros(2, num_tokens)) if num_tokens > 1 else None
        flat = num_tokens * width
        self.mlp = MLP(flat, (flat,))
        self.fm = AttentionalFM(num_tokens, width, attention_units=attention_units)
        self.spread = MLP(width, (), out_dim=flat)
        self.bridge = bridge
        self.preference: MLP | None = None
        if bridge == "attention":
            self.preference = MLP(width, (attention_units,), out_dim=1, out_bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B M D"]) -> list[Tensor]:
        """P, Q and the next tokens."""
        for_mlp, for_fm = x, x
        if self.gates is not None:
            gates = (torch.softmax(self.gates, dim=1) * x.shape[1]).unsqueeze(2)
            for_mlp, for_fm = x * gates[0], x * gates[1]
        implicit = self.mlp(for_mlp.flatten(1)).view_as(x)
        explicit = self.spread(self.fm(for_fm)).view_as(x)
        return [implicit, explicit, self.norm(x + self._bridged(implicit, explicit))]

    def _bridged(self, implicit: Tensor, explicit: Tensor) -> Tensor:
        if self.bridge == "product":
            return implicit * explicit
        if self.preference is None:
            return implicit + explicit
        share = self.preference(implicit).float() - self.preference(explicit).float()
        # A softmax over two branches, token by token.
        return torch.lerp(explicit.float(), implicit.float(), torch.sigmoid(share))
