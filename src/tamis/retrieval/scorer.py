"""What retrieval needs of a model whose levels score nodes and items."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tamis.data.batch import Batch


@runtime_checkable
class Scorer(Protocol):
    """A model in evaluation mode; :class:`tamis.models.hsnn.HSNN` is one.

    Level n < N scores a user with nodes, given as vectors as wide as those of items: what a tree's
    ``node_vectors`` has for them. Level N, the last one, scores items.
    """

    training: bool
    """Whether the model is in training mode, in which it may be random."""

    @property
    def num_levels(self) -> int:
        """Levels N, that of the items included."""
        ...

    @property
    def codebooks(self) -> Sequence[Tensor]:
        """Centres (K_n, W) of each of the N - 1 index levels, the coarsest first."""
        ...

    def check_index(self) -> None:
        """Check that the levels for nodes have learnt what nodes are, where there are any.

        Raises:
            ConfigError: Training ended before.
        """
        ...

    def encode_items(self, items: Batch, *, by_content: bool = False) -> Tensor:
        """Item vectors (B, W); with ``by_content`` as if their ids had never been seen."""
        ...

    def encode_user(self, users: Batch) -> Sequence[Tensor]:
        """What each level reads of the user, one row for each row of the batch."""
        ...

    def pair_logits(
        self,
        level: int,
        user: Tensor,
        items: Tensor,
        pairs: Batch | None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """A level's own logits (C, T) of C items or nodes with one user, or with those of rows."""
        ...

    def ensemble(self, level: int, logits: Tensor) -> Tensor:
        """Calibrated logits (C, T) from the own ones (C, n, T) of this and all coarser levels."""
        ...

    def count_flops(self) -> tuple[int, tuple[int, ...]]:
        """Floating-point operations of one user, and of one pair at each level."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that decides what the model says, by name."""
        ...
