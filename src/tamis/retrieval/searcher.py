"""What every way to find items has in common: a request, what was found, and what that cost."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from tamis.data.batch import Batch
from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Who asks, and how to tell what is known of him and an item."""

    user: Batch
    """One row, of which the user side is read."""
    pairs: Callable[[Tensor], Batch] | None = None
    """Rows whose context side tells of the user with each of the items (C,) that are given by id;
    None where the model has no such features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelTrace:
    """What one level of a search cost."""

    nodes: int
    """Nodes that are occupied; at the last level the items of the index."""
    pairs: int
    """Nodes, or items, that were scored."""
    kept: int
    """How many of them went on."""
    flops: int
    """Floating-point operations of their scores."""
    bytes: int
    """Bytes of the vectors, or of the codes, that the scores read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What a search cost; operations and bytes are modelled, not measured."""

    levels: tuple[LevelTrace, ...]
    """The coarsest first, the items last."""
    user_flops: int
    """Operations that are spent once per request, such as those of the user's towers."""

    @property
    def pairs(self) -> int:
        """Scores of nodes and items together."""
        return sum(level.pairs for level in self.levels)

    @property
    def flops(self) -> int:
        """Operations of the whole request."""
        return self.user_flops + sum(level.flops for level in self.levels)

    @property
    def bytes(self) -> int:
        """Bytes of vectors and codes that were read, weights of networks left out."""
        return sum(level.bytes for level in self.levels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The best items of a request, the best one first."""

    ids: Tensor
    """(k,) int64, or fewer where fewer items were reached."""
    scores: Tensor
    """(k,) float32, of which only the order means something."""
    trace: Trace
    """What it took to find them."""


@runtime_checkable
class Searcher(Protocol):
    """A trained model and a corpus, ready to answer requests.

    Beam search through a learnt index and all its rivals are searchers, so that one table can
    compare them.
    """

    @property
    def num_items(self) -> int:
        """Items that can be found."""
        ...

    @property
    def index_bytes(self) -> int:
        """Bytes of what is searched: vectors, codes, links and ids, but no weights of networks."""
        ...

    def search(self, request: Request, k: int) -> Found:
        """The best k items, or as many as were reached.

        Raises:
            ValueError: ``k`` is below 1.
            DataError: The user is not one row.
        """
        ...


def check_one_user(request: Request, k: int) -> None:
    """Check what every searcher is asked for.

    Raises:
        ValueError: ``k`` is below 1.
        DataError: The user is not one row.
    """
    if k < 1:
        raise ValueError(f"search: k must be at least 1, got {k}.")
    if request.user.num_rows != 1:
        raise DataError(f"search: the user must be one row, got {request.user.num_rows}.")


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
