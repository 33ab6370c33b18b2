"""The items of a corpus as vectors: encoded, checked and in the order of their ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch
from tamis.errors import DataError


@runtime_checkable
class ItemEncoder(Protocol):
    """A model that turns items into vectors."""

    training: bool
    """Whether the model is in training mode, in which it may be random."""

    def encode_items(self, items: Batch, *, by_content: bool = False) -> Tensor:
        """Item vectors (B, W); with ``by_content`` as if their ids had never been seen."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemVectors:
    """V items in ascending order of their ids, so that nothing depends on the order of a corpus."""

    ids: Tensor
    """(V,) int64, all different."""
    vectors: Tensor
    """(V, W) float32."""

    @classmethod
    def of(cls, ids: Int[Tensor, " V"], vectors: Float[Tensor, "V W"]) -> "ItemVectors":
        """Put items that have vectors already into order.

        Raises:
            DataError: There is no item, or an id stands twice.
        """
        if not len(ids):
            raise DataError("index: the corpus must hold an item, got none.")
        check_different(ids)
        order = torch.argsort(ids)
        return cls(ids=ids[order].to(torch.int64), vectors=vectors[order].float())

    @classmethod
    def encode(cls, encoder: ItemEncoder, corpus: Iterable[tuple[Tensor, Batch]]) -> "ItemVectors":
        """Encode a corpus.

        Args:
            encoder: The model, in evaluation mode.
            corpus: Integer ids (B,) and the features of as many items, some at a time; only the
                item side is read.

        Raises:
            ValueError: The model is in training mode.
            DataError: There is no item, an id stands twice, ids are not as many as rows, or a
                vector is no finite number.
        """
        parts = [(ids, encode_checked(encoder, ids, items)) for ids, items in corpus]
        if not parts:
            raise DataError("index: the corpus must hold an item, got none.")
        return cls.of(torch.cat([ids for ids, _ in parts]), torch.cat([v for _, v in parts]))

    def places(self, ids: Int[Tensor, " C"]) -> Int[Tensor, " C"]:
        """Where items stand.

        Raises:
            DataError: An id is not there.
        """
        found = torch.searchsorted(self.ids, ids).clamp_max(len(self.ids) - 1)
        is_other = self.ids[found] != ids
        if bool(is_other.any()):
            raise DataError(
                f"index: ids must be of the corpus, got {int(ids[is_other][0])}. Encode the same "
                f"items."
            )
        return found


def encode_checked(
    encoder: ItemEncoder, ids: Int[Tensor, " B"], items: Batch, *, by_content: bool = False
) -> Float[Tensor, "B W"]:
    """Vectors of items in float32, checked, and free to be used where gradients flow.

    Raises:
        ValueError: The model is in training mode.
        DataError: Ids are not as many as rows, or a vector is no finite number.
    """
    if len(ids) != items.num_rows:
        raise DataError(
            f"index: ids must be as many as rows of features, got {len(ids)} and "
            f"{items.num_rows}. Give an id to each row."
        )
    if encoder.training:
        raise ValueError(
            "index: the model must be in evaluation mode, got training mode, in which it hides "
            "ids at random. Call eval()."
        )
    with torch.no_grad():
        vectors = encoder.encode_items(items, by_content=by_content).float()
    finite = vectors.isfinite().all(1)
    if not bool(finite.all()):
        raise DataError(
            f"index: item {int(ids[~finite][0])} must have a finite vector, got NaN or an "
            f"infinity. Mend its features."
        )
    return vectors


def check_different(ids: Int[Tensor, " V"]) -> None:
    """Check that no id stands twice.

    Raises:
        DataError: One does.
    """
    ascending = ids.sort().values
    twice = ascending[1:][ascending.diff() == 0]
    if len(twice):
        raise DataError(
            f"index: ids must differ, got {int(twice[0])} twice. Remove it before adding."
        )
