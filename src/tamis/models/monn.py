"""MoNN, the network that scores a user with an item or with a node of an index."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.errors import ConfigError
from tamis.models.dhen import DHENConfig, dhen_layers
from tamis.models.ranges import check_ranges
from tamis.nn.event_rows import Count
from tamis.nn.mlp import MLP
from tamis.nn.token_mixers import MixerName


@dataclass(frozen=True, kw_only=True, slots=True)
class MoNNConfig:
    """One network: its user tower and what stands above all towers."""

    user_tokens: int = 8
    """Vectors n_u that the user tower emits. At least 1."""
    user_dim: int = 16
    """Their width d_u."""
    user_layers: int = 1
    """Layers of the user tower, which is computed once per request."""
    width: int = 16
    """Common width d that user, item and cross vectors are mapped to."""
    num_layers: int = 1
    """DHEN layers on them."""
    modules: tuple[MixerName, ...] = ("dot", "linear", "dcn_v2")
    """Modules side by side in each of these layers; at least two different ones."""
    module_tokens: int = 4
    """Tokens that each module emits."""
    dot_units: int = 64
    """Hidden width of the module ``dot``, where there is one."""
    attention_heads: int = 1
    """Heads of the module ``attention``, where there is one; divide ``width``."""
    head_units: tuple[int, ...] = (64,)
    """Hidden widths of the MLP above the layers; may be empty."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(set(self.modules)) < 2:
            raise ConfigError(
                f"model.levels.modules: must name two different modules, got {self.modules}: an "
                f"ensemble of one kind is none."
            )
        if "attention" in self.modules and self.width % self.attention_heads:
            raise ConfigError(
                f"model.levels.attention_heads: must divide width={self.width}, got "
                f"{self.attention_heads}."
            )
        self.over_arch()

    def over_arch(self) -> DHENConfig:
        """The layers above the towers."""
        return DHENConfig(
            embedding_dim=self.width,
            num_layers=self.num_layers,
            modules=self.modules,
            module_tokens=self.module_tokens,
            dot_units=self.dot_units,
            attention_heads=self.attention_heads,
        )


def for_pairs(
    user: Float[Tensor, "R U D"], pairs: Count, rows: Int[Tensor, " B"] | None = None
) -> Float[Tensor, "B U D"]:
    """Vectors of each pair's user.

    Args:
        user: Of R users.
        pairs: Pairs B.
        rows: Row in ``user`` of each pair. None: one row for all pairs, one for each, or one for
            every B / R that follow each other, in the order of the rows.
    """
    if rows is not None:
        return user.index_select(0, rows)
    if user.shape[0] == pairs:
        return user
    return user.unsqueeze(1).expand(-1, pairs // user.shape[0], -1, -1).flatten(0, 1)


class MoNN(nn.Module):
    """Vectors of three towers, mapped to one width, through DHEN layers and an MLP to T logits.

    To each of them the inner product of the item's vectors, side by side, with as wide a linear map
    of the user's is added. Layers and MLP learn products of two vectors slowly; where rows are
    few for each item, two towers that meet in a product would be better than what contains them.

    Source:
        HSNN, arXiv:2408.06653, section on the mixture of neural networks: user, item and
        interaction towers, and an OverArch in the manner of DHEN.

    Differs from the source:
        The towers stand outside, as a node has no item tower of its own. How vectors of different
        widths meet was not published; here a linear map for each tower. The inner product is added.
    """

    def __init__(
        self,
        config: MoNNConfig,
        *,
        item_tokens: int,
        item_dim: int,
        cross_tokens: int,
        cross_dim: int,
        num_tasks: int,
    ) -> None:
        """Build the network.

        Args:
            config: Its sizes.
            item_tokens: Vectors n_i of an item or node.
            item_dim: Their width.
            cross_tokens: Vectors n_x about a pair; 0 where nothing is known of pairs.
            cross_dim: Their width.
            num_tasks: Tasks T.
        """
        super().__init__()
        self.of_user = MLP(config.user_dim, (), out_dim=config.width)
        self.of_item = MLP(item_dim, (), out_dim=config.width)
        self.of_cross = MLP(cross_dim, (), out_dim=config.width) if cross_tokens else None
        in_tokens = config.user_tokens + item_tokens + cross_tokens
        self.num_tasks = num_tasks
        self.product = MLP(
            config.user_tokens * config.user_dim, (), out_dim=num_tasks * item_tokens * item_dim
        )
        self.layers, count = dhen_layers(config.over_arch(), in_tokens)
        self.head = MLP(
            count * config.width, config.head_units, out_dim=num_tasks, makes_logits=True
        )

    def forward(
        self,
        user: Float[Tensor, "R U DU"],
        item: Float[Tensor, "B I DI"],
        cross: Float[Tensor, "B X DX"] | None,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Logits of pairs.

        Args:
            user: Of the user tower.
            item: Of the item tower, or vectors of nodes in their place.
            cross: Of the interaction tower, where there is one.
            rows: Row in ``user`` of each pair; see :func:`for_pairs`.
        """
        parts = [for_pairs(self.of_user(user), item.shape[0], rows), self.of_item(item)]
        if self.of_cross is not None:
            parts.append(self.of_cross(cross))
        logits = self.head(self.layers(torch.cat(parts, dim=1).float()).flatten(1))
        products = for_pairs(self._partners(user), item.shape[0], rows)
        return logits + (products * item.flatten(1).unsqueeze(1)).sum(2)

    def products(
        self, user: Float[Tensor, "R U DU"], item: Float[Tensor, "B W"]
    ) -> Float[Tensor, "R T B"]:
        """The inner products alone, a part of the logits: of each user with each item, for little.

        Args:
            user: Of the user tower.
            item: Vectors of each item side by side.
        """
        return self._partners(user) @ item.float().T

    def _partners(self, user: Float[Tensor, "R U DU"]) -> Float[Tensor, "R T W"]:
        """What the item's vectors, side by side, are multiplied with, for each task."""
        return self.product(user.flatten(1)).float().unflatten(1, (self.num_tasks, -1))
