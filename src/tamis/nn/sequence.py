"""Histories between the disk and attention: jagged events, one vector each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.nn.attention import PoolingAttention
from tamis.nn.embedding import EmbeddingTables
from tamis.nn.event_rows import Count, event_rows
from tamis.nn.length_groups import LengthGroups
from tamis.nn.mlp import MLP


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """One vector for each event of each row, oldest first."""

    values: Tensor
    """(nnz, D) float."""
    offsets: Tensor
    """(B+1,) int64; row b holds ``values[offsets[b]:offsets[b + 1]]``."""

    @property
    def num_rows(self) -> Count:
        """B."""
        return self.offsets.shape[0] - 1

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The row of each event."""
        return event_rows(self.offsets, self.values.shape[0])

    @property
    def ages(self) -> Int[Tensor, " nnz"]:
        """How many later events the row of each event has: 0 for the most recent one."""
        places = torch.arange(self.values.shape[0], device=self.offsets.device)
        return self.offsets[1:].index_select(0, self.rows) - 1 - places

    def sum(self) -> Float[Tensor, "B D"]:
        """Sum of each row's events; zeros for an empty history."""
        total = self.values.new_zeros(self.num_rows, self.values.shape[1])
        return total.index_add(0, self.rows, self.values)

    def softmax(self) -> Float[Tensor, "nnz D"]:
        """Softmax over the events of each row, for each column by itself."""
        rows = self.rows.unsqueeze(1).expand_as(self.values)
        largest = self.values.new_full((self.num_rows, self.values.shape[1]), -torch.inf)
        largest = largest.scatter_reduce(0, rows, self.values.detach(), "amax")
        exponentials = (self.values - largest.gather(0, rows)).exp()
        total = Events(values=exponentials, offsets=self.offsets).sum()
        return exponentials / total.index_select(0, self.rows)


class EventVectors(nn.Module):
    """Embeds the columns of all sequence groups and merges them into one vector per event.

    A group's columns describe the same events. Groups are aligned at their recent ends: the last
    events of all groups are one event of the merged history, and where a group's history is the
    shorter one its columns are zeros. Columns are merged as in InterFormer's equation (6):
    ``merge(s * mask(s))`` on the concatenated embeddings s, where ``mask`` and ``merge`` are MLPs.
    Nothing is padded here.

    Source:
        InterFormer, arXiv:2411.09852, section 4.1; MaskNet is Wang et al., DLP-KDD 2021.

    Differs from the source:
        The depth of both MLPs, the mask's activation, how weights start and how groups are aligned
        were not published. The mask is one linear map here, and without activation its biases start
        from 1, so that an event passes it nearly as it is; ``merge`` has one hidden layer.
    """

    def __init__(
        self,
        spec: InputSpec,
        width: int,
        *,
        merge_single: bool = True,
        mask_activation: Literal["none", "sigmoid"] = "none",
    ) -> None:
        """Build the merge.

        Args:
            spec: Sequence groups of the model; at least one.
            width: Embedding width D, and that of a merged event.
            merge_single: Whether a single column is merged too; else it stays as it is embedded.
            mask_activation: After the mask's MLP.
        """
        super().__init__()
        self.names = tuple(group.name for group in spec.sequences)
        total = width * sum(len(group.fields) for group in spec.sequences)
        self.mask: MLP | None = None
        self.merge: MLP | None = None
        if merge_single or total > width:
            self.mask = MLP(total, (), out_dim=total)
            if mask_activation == "none":
                # The product starts as the event itself: two factors of the size of an embedding
                # would vanish together.
                last = self.mask.layers[-1]
                assert isinstance(last, nn.Linear)
                nn.init.ones_(last.bias)
            self.merge = MLP(total, (width,), out_dim=width, activation="silu")
        self.mask_activation = mask_activation

    def forward(self, batch: Batch, tables: EmbeddingTables) -> Events:
        """Merged vectors of all events of a batch; tables are shared with the fields."""
        groups = [
            Events(
                values=tables.lookup_events(name, batch.sequences[name]).flatten(1),
                offsets=batch.sequences[name].offsets,
            )
            for name in self.names
        ]
        events = _aligned(groups)
        if self.mask is None or self.merge is None:
            return events
        mask = self.mask(events.values)
        if self.mask_activation == "sigmoid":
            mask = mask.sigmoid()
        merged = self.merge(events.values * mask)
        return Events(values=merged.float(), offsets=events.offsets)


class HistoryTokens(nn.Module):
    """One token for each column of each sequence group, made of all of its events at once.

    ``attention`` reads the events by one learned query; ``mlp`` flattens the last ``max_length``
    events, zeros before the first, into an MLP of one hidden layer, so that it knows every event's
    place from the end.
    """

    def __init__(
        self, spec: InputSpec, width: int, *, kind: Literal["attention", "mlp"], num_heads: int = 1
    ) -> None:
        """Build what makes the tokens.

        Args:
            spec: Sequence groups of the model.
            width: Embedding width D.
            kind: How events become a token.
            num_heads: Heads of the attention; divide ``width``.
        """
        super().__init__()
        self.names = tuple(group.name for group in spec.sequences)
        self.lengths = tuple(group.max_length for group in spec.sequences)
        self.kind = kind
        self.makers = nn.ModuleList()
        for group in spec.sequences:
            for _ in group.fields:
                maker = (
                    PoolingAttention(width, 1, num_heads)
                    if kind == "attention"
                    else MLP(group.max_length * width, (4 * width,), out_dim=width)
                )
                self.makers.append(maker)

    def forward(self, batch: Batch, tables: EmbeddingTables) -> Float[Tensor, "B E D"]:
        """Tokens of the groups in order; tables are shared with the fields."""
        makers = iter(self.makers)
        tokens = []
        for name, length in zip(self.names, self.lengths, strict=True):
            jagged = batch.sequences[name]
            groups = LengthGroups(jagged.offsets, jagged.values.shape[0])
            for column in tables.lookup_events(name, jagged).unbind(1):
                maker = next(makers)
                if self.kind == "mlp":
                    events = Events(values=column, offsets=jagged.offsets)
                    tokens.append(maker(_from_the_end(events, length)))
                else:
                    parts = zip(groups.pad(column), groups.valid, strict=True)
                    tokens.append(groups.join([maker(*part).squeeze(1) for part in parts]))
        return torch.stack([token.float() for token in tokens], dim=1)


def _from_the_end(events: Events, length: int) -> Float[Tensor, "B W"]:
    """Each row's last ``length`` events in one vector, the last event in its last place."""
    width = events.values.shape[1]
    places = (events.rows + 1) * length - 1 - events.ages
    kept = events.ages < length
    flat = events.values.new_zeros(events.num_rows * length, width)
    return flat.index_copy(0, places[kept], events.values[kept]).view(events.num_rows, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """One sequence group, and what the candidate has in the place of its events."""

    events: Events
    """Embedded columns side by side, W = E * D."""
    target: Tensor
    """(B, W) the candidate's own embeddings, from the same tables."""

    @property
    def target_of_events(self) -> Float[Tensor, "nnz W"]:
        """The candidate beside each event."""
        return self.target.index_select(0, self.events.rows)


class CandidateInputs(nn.Module):
    """Fields in one vector, and every sequence group beside what the candidate has in its place.

    The candidate's counterpart of a sequence column is the field that owns the column's table, or,
    where only others share it, the first of these. A column without any has a learned vector in its
    place. ``unmatched`` names the groups that have no column with one, so that nothing in them can
    be compared with the candidate.
    """

    def __init__(self, spec: InputSpec, width: int, *, init_std: float = 0.01) -> None:
        """Build tables for every input of ``spec``.

        Args:
            spec: Inputs of the model.
            width: Embedding width D.
            init_std: Standard deviation that embeddings start from.
        """
        super().__init__()
        self.tables = EmbeddingTables(spec, width, init_std=init_std)
        self.names = tuple(group.name for group in spec.sequences)
        self.widths = tuple(width * len(group.fields) for group in spec.sequences)
        self.fields_dim = len(spec.categorical) * width + len(spec.numeric)
        names = [item.name for item in spec.categorical]
        tables = [item.table for item in spec.categorical]

        def counterpart(table: str) -> int | None:
            if table in names:
                return names.index(table)
            return tables.index(table) if table in tables else None

        self.counterparts = tuple(
            tuple(counterpart(table) for table in group.tables) for group in spec.sequences
        )
        self.unmatched = tuple(
            name
            for name, places in zip(self.names, self.counterparts, strict=True)
            if all(place is None for place in places)
        )
        missing = sum(place is None for group in self.counterparts for place in group)
        self.missing = nn.Parameter(torch.empty(missing, width))
        nn.init.normal_(self.missing, std=max(init_std, 1e-12))

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B W"], tuple[History, ...]]:
        """The fields, then numeric features; and a history for each group."""
        fields = self.tables.lookup(batch.ids)
        missing = iter(self.missing)
        histories = []
        for name, places in zip(self.names, self.counterparts, strict=True):
            jagged = batch.sequences[name]
            target = [
                next(missing).expand(batch.num_rows, -1) if place is None else fields[:, place]
                for place in places
            ]
            vectors = self.tables.lookup_events(name, jagged).flatten(1)
            histories.append(
                History(
                    events=Events(values=vectors, offsets=jagged.offsets),
                    target=torch.cat(target, dim=1),
                )
            )
        return torch.cat([fields.flatten(1), batch.numeric], dim=1), tuple(histories)


def _aligned(groups: Sequence[Events]) -> Events:
    """Histories side by side, the last event of each in the last place of the longest."""
    if len(groups) == 1:
        return groups[0]
    lengths = torch.stack([group.offsets.diff() for group in groups])
    longest = lengths.max(0).values
    offsets = torch.cat([longest.new_zeros(1), longest.cumsum(0)])
    total = cast("int", offsets[-1].item())
    if torch.compiler.is_exporting():
        torch._check(total >= 0)
    columns = []
    for group in groups:
        row = event_rows(group.offsets, group.values.shape[0])
        # From the end of the row's own history to the end of the merged one.
        places = torch.arange(row.shape[0], device=row.device) - group.offsets[1:][row]
        places = places + offsets[1:][row]
        empty = group.values.new_zeros((total, group.values.shape[1]))
        columns.append(empty.index_copy(0, places, group.values))
    return Events(values=torch.cat(columns, dim=1), offsets=offsets)


def last_events(
    tokens: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], count: int, *, first: int = 0
) -> Float[Tensor, "B N D"]:
    """The last ``count`` events of each row, the most recent first; zeros where there are fewer.

    Args:
        tokens: Tokens with the events from place ``first`` on, the oldest first.
        lengths: Events of each row.
        count: Events N to take.
        first: Tokens before the first event.
    """
    back = torch.arange(1, count + 1, device=tokens.device)
    places = lengths.unsqueeze(1) - back
    is_there = places >= 0
    places = (places.clamp_min(0) + first).unsqueeze(2).expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, places) * is_there.unsqueeze(2)
