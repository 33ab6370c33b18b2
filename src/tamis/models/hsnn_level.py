"""What one level of HSNN is made of."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.models.monn import MoNN, for_pairs
from tamis.nn.bridged_tower import BridgedTower
from tamis.nn.mlp import ExactLinear


class Level(nn.Module):
    """What belongs to one level: towers, network, ensemble with coarser levels, calibration."""

    def __init__(
        self,
        user_tower: BridgedTower,
        node_tower: BridgedTower | None,
        network: MoNN,
        *,
        user_dim: int,
        item_dim: int,
        cross_dim: int,
        num_inputs: int,
    ) -> None:
        """Join the parts.

        Args:
            user_tower: Emits the level's own vectors of users.
            node_tower: Emits interaction vectors of user and node; None where the model has no
                context side, and at the items' level.
            network: Scores users with nodes or items.
            user_dim: Width d_u of the vectors of users.
            item_dim: Width d_i of the vectors of items, and so of nodes.
            cross_dim: Width d_x of the interaction vectors.
            num_inputs: Levels whose logits are joined, this one included.
        """
        super().__init__()
        self.user_tower, self.network, self.node_tower = user_tower, network, node_tower
        if node_tower is not None:
            self.of_user = nn.Linear(user_dim, cross_dim)
            self.of_node = nn.Linear(item_dim, cross_dim)
        num_tasks = network.head.out_dim
        self.weigh = ExactLinear(num_inputs * num_tasks, num_tasks)
        with torch.no_grad():  # its own logits at first, whatever the coarser levels say
            self.weigh.weight[:, -num_tasks:] = torch.eye(num_tasks)
        self.log_scale = nn.Parameter(torch.zeros(num_tasks))
        self.shift = nn.Parameter(torch.zeros(num_tasks))

    def interact(self, user: Tensor, node: Tensor, rows: Tensor | None = None) -> Tensor:
        """Interaction vectors of user and node; of ``rows`` see :func:`for_pairs`."""
        assert self.node_tower is not None
        of_user = for_pairs(self.of_user(user), node.shape[0], rows)
        return self.node_tower(torch.cat([of_user, self.of_node(node)], dim=1).float())

    def joined(self, outputs: Float[Tensor, "B N T"]) -> Float[Tensor, "B T"]:
        """The ensemble z of this level's logits with those of coarser levels."""
        return self.weigh(outputs.flatten(1))

    def calibrated(self, logits: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Logits whose probabilities are those of the labels; their order stays."""
        return logits * self.log_scale.exp() + self.shift
