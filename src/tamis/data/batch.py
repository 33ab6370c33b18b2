"""What a loader hands to a model: whole columns of some rows, as tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Jagged:
    """Histories of different lengths without padding.

    Row b holds ``values[offsets[b]:offsets[b + 1]]``, oldest event first. Shapes: ``values``
    (nnz, E) integer table rows, ``offsets`` (B+1,) int64 starting at 0.
    """

    values: Tensor
    offsets: Tensor

    def to(self, device: torch.device) -> "Jagged":
        """The same histories on another device."""
        return Jagged(
            values=self.values.to(device, non_blocking=True),
            offsets=self.offsets.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B rows of a dataset.

    Shapes: ``numeric`` (B, M) float32; ``ids`` (B, F) integer, each a row of its own field's table;
    ``labels`` (B, T) float32 with NaN where a label was not observed; ``weights`` (B,) float32.
    """

    numeric: Tensor
    ids: Tensor
    labels: Tensor
    weights: Tensor
    sequences: Mapping[str, Jagged] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """B."""
        return self.ids.shape[0]

    def to(self, device: torch.device) -> "Batch":
        """The same rows on another device."""
        return Batch(
            numeric=self.numeric.to(device, non_blocking=True),
            ids=self.ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            sequences={name: jagged.to(device) for name, jagged in self.sequences.items()},
        )
