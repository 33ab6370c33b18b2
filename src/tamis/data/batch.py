"""What a loader hands to a model: whole columns of some rows, as tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tamis.data.schema import InputSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Jagged:
    """Histories of different lengths without padding.

    Row b holds ``values[offsets[b]:offsets[b + 1]]``, oldest event first. Shapes: ``values``
    (nnz, E) integer table rows, ``offsets`` (B+1,) int64 starting at 0.
    """

    values: Tensor
    offsets: Tensor

    def take(self, rows: Tensor) -> "Jagged":
        """The histories of some rows (P,) int64, in that order; a row may be taken often."""
        lengths = self.offsets.diff().index_select(0, rows)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # Event k of the result lies (k - first event of its row) events into its source.
        shift = self.offsets.index_select(0, rows) - offsets[:-1]
        total = int(offsets[-1])
        events = torch.arange(total, device=rows.device)
        events += torch.repeat_interleave(shift, lengths, output_size=total)
        return Jagged(values=self.values.index_select(0, events), offsets=offsets)

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
    ``labels`` (B, T) float32 with NaN where a label was not observed; ``weights`` (B,) float32;
    ``is_taught`` (B,) bool, whether the row has no label of its own but a teacher's, None without a
    teacher.
    """

    numeric: Tensor
    ids: Tensor
    labels: Tensor
    weights: Tensor
    sequences: Mapping[str, Jagged] = field(default_factory=dict)
    is_taught: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """B."""
        return self.ids.shape[0]

    @property
    def is_unlabelled(self) -> Tensor:
        """(B,) bool, whether nobody logged any label of the row."""
        return self.logged_labels.isnan().all(1)

    @property
    def logged_labels(self) -> Tensor:
        """(B, T), the labels without those of a teacher."""
        if self.is_taught is None:
            return self.labels
        return self.labels.masked_fill(self.is_taught.unsqueeze(1), torch.nan)

    @property
    def rewards(self) -> Tensor:
        """(B, T), what each row logged of each task times its weight; 0 where it logged nothing."""
        return self.logged_labels.nan_to_num(0.0) * self.weights.unsqueeze(1)

    def take(self, rows: Tensor) -> "Batch":
        """Some of the rows (P,) int64, in that order; a row may be taken often."""
        return Batch(
            numeric=self.numeric.index_select(0, rows),
            ids=self.ids.index_select(0, rows),
            labels=self.labels.index_select(0, rows),
            weights=self.weights.index_select(0, rows),
            sequences={name: history.take(rows) for name, history in self.sequences.items()},
            is_taught=None if self.is_taught is None else self.is_taught.index_select(0, rows),
        )

    def to(self, device: torch.device) -> "Batch":
        """The same rows on another device."""
        return Batch(
            numeric=self.numeric.to(device, non_blocking=True),
            ids=self.ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            sequences={name: jagged.to(device) for name, jagged in self.sequences.items()},
            is_taught=None
            if self.is_taught is None
            else self.is_taught.to(device, non_blocking=True),
        )


def blank_batch(spec: InputSpec, rows: int, device: torch.device) -> Batch:
    """Rows of nothing: unknown categories, empty histories, zeros."""
    sequences = {
        group.name: Jagged(
            values=torch.zeros(0, len(group.fields), dtype=torch.int64),
            offsets=torch.zeros(rows + 1, dtype=torch.int64),
        )
        for group in spec.sequences
    }
    return Batch(
        numeric=torch.zeros(rows, len(spec.numeric)),
        ids=torch.zeros(rows, len(spec.categorical), dtype=torch.int64),
        labels=torch.full((rows, len(spec.tasks)), torch.nan),
        weights=torch.ones(rows),
        sequences=sequences,
    ).to(device)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches of the same inputs, one after another; at least one batch."""
    if len(batches) == 1:
        return batches[0]
    sequences = {}
    for name in batches[0].sequences:
        parts = [batch.sequences[name] for batch in batches]
        lengths = torch.cat([part.offsets.diff() for part in parts])
        sequences[name] = Jagged(
            values=torch.cat([part.values for part in parts]),
            offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        )
    taught = [batch.is_taught for batch in batches if batch.is_taught is not None]
    assert len(taught) in (0, len(batches)), "batches with a teacher beside batches without one"
    return Batch(
        numeric=torch.cat([batch.numeric for batch in batches]),
        ids=torch.cat([batch.ids for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        weights=torch.cat([batch.weights for batch in batches]),
        sequences=sequences,
        is_taught=torch.cat(taught) if taught else None,
    )
