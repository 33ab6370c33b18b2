"""Embedding tables merged into one parameter, looked up without copies of unused rows.

The backward pass of every lookup here is a sparse gradient that holds only the rows of the batch,
not yet summed over duplicates; ``training/optimizers.py`` sums and applies it in O(rows in batch).
``torch.compile`` leaves lookups as they are: it has no code for sparse gradients. Lists of what was
looked up grow by ``+=``, as ``append``, a method of that very list, would wait for the lookup, and
what comes after it would be compiled anew for every batch's list.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import InputSpec
from tamis.nn.event_rows import event_rows
from tamis.nn.mlp import MLP
from tamis.nn.outside_compiler import outside_compiler


class EmbeddingTables(nn.Module):
    """All embedding tables of one width in one parameter.

    ``weight`` (sum of rows, D): the rows of table i start at ``first_row[table name]``. Row 0 of
    every table is its out-of-vocabulary row. Ids stay integers throughout, so they are exact
    beyond 2**24.
    """

    category_offsets: Tensor

    def __init__(self, spec: InputSpec, width: int, *, init_std: float = 0.01) -> None:
        """Build tables for every field of ``spec``.

        Args:
            spec: Tables and which inputs use them.
            width: Embedding width D.
            init_std: Standard deviation of the normal that rows start from; 0 gives zeros.
        """
        super().__init__()
        self.width = width
        self.first_row: dict[str, int] = {}
        total = 0
        for table in spec.tables:
            self.first_row[table.name] = total
            total += table.num_rows
        self.weight = nn.Parameter(torch.zeros(total, width))
        if init_std > 0:
            nn.init.normal_(self.weight, std=init_std)
        firsts = [self.first_row[item.table] for item in spec.categorical]
        self.register_buffer(
            "category_offsets", torch.tensor(firsts, dtype=torch.int64), persistent=False
        )
        self._buffer_by_sequence = {}
        for index, group in enumerate(spec.sequences):
            offsets = torch.tensor([self.first_row[t] for t in group.tables], dtype=torch.int64)
            self._buffer_by_sequence[group.name] = f"sequence_offsets_{index}"
            self.register_buffer(f"sequence_offsets_{index}", offsets, persistent=False)

    @outside_compiler
    def lookup(self, ids: Int[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """Embeddings of the categorical fields of a batch."""
        rows = ids.to(torch.int64) + self.category_offsets
        return F.embedding(rows, self.weight, sparse=True)

    @outside_compiler
    def lookup_columns(
        self, ids: Int[Tensor, "B F"], columns: Int[Tensor, " C"]
    ) -> Float[Tensor, "B C D"]:
        """Embeddings of some of the categorical fields of a batch."""
        rows = ids.index_select(1, columns).to(torch.int64)
        rows = rows + self.category_offsets.index_select(0, columns)
        return F.embedding(rows, self.weight, sparse=True)

    @outside_compiler
    def lookup_events(self, name: str, jagged: Jagged) -> Float[Tensor, "nnz E D"]:
        """Embeddings of every event of the sequence group ``name``, one per column."""
        return F.embedding(self._event_rows(name, jagged), self.weight, sparse=True)

    @outside_compiler
    def pool(self, name: str, jagged: Jagged) -> Float[Tensor, "B E D"]:
        """Mean embedding of each history, one per column; zeros for an empty history."""
        rows = self._event_rows(name, jagged)
        pooled = [
            F.embedding_bag(
                rows[:, column].contiguous(),
                self.weight,
                jagged.offsets,
                mode="mean",
                sparse=True,
                include_last_offset=True,
            )
            for column in range(rows.shape[1])
        ]
        return torch.stack(pooled, dim=1)

    def _event_rows(self, name: str, jagged: Jagged) -> Tensor:
        offsets = self.get_buffer(self._buffer_by_sequence[name])
        return jagged.values.to(torch.int64) + offsets


class FieldTokens(nn.Module):
    """Every input of a batch as one D-vector: the token matrix that interaction models start from.

    Tokens stand in this order: the F categorical fields; the mean-pooled columns of each sequence
    group; then, for numeric features, M tokens ``x_m * w_m + b_m`` (one per feature).
    """

    def __init__(self, spec: InputSpec, width: int, *, init_std: float = 0.01) -> None:
        """Build tables and numeric directions.

        Args:
            spec: Inputs of the model.
            width: Embedding width D.
            init_std: Standard deviation of embeddings and of the numeric directions at the start.
        """
        super().__init__()
        self.tables = EmbeddingTables(spec, width, init_std=init_std)
        self.sequence_names = tuple(group.name for group in spec.sequences)
        num_numeric = len(spec.numeric)
        self.numeric_weight = nn.Parameter(torch.empty(num_numeric, width))
        self.numeric_bias = nn.Parameter(torch.zeros(num_numeric, width))
        nn.init.normal_(self.numeric_weight, std=max(init_std, 1e-12))
        self.num_tokens = num_tokens(spec)
        self.width = width

    def forward(self, batch: Batch) -> Float[Tensor, "B F D"]:
        """Tokens of a batch; F here counts all tokens."""
        parts = []
        if batch.ids.shape[1]:
            parts += [self.tables.lookup(batch.ids)]
        parts += [self.tables.pool(name, batch.sequences[name]) for name in self.sequence_names]
        if batch.numeric.shape[1]:
            parts.append(batch.numeric.unsqueeze(2) * self.numeric_weight + self.numeric_bias)
        return torch.cat(parts, dim=1)


class FlatInputs(nn.Module):
    """Every input of a batch in one vector: flattened embeddings, then raw numeric features."""

    def __init__(self, spec: InputSpec, width: int, *, init_std: float = 0.01) -> None:
        """Build tables; arguments as for ``FieldTokens``."""
        super().__init__()
        self.tables = EmbeddingTables(spec, width, init_std=init_std)
        self.sequence_names = tuple(group.name for group in spec.sequences)
        self.out_dim = (num_tokens(spec) - len(spec.numeric)) * width + len(spec.numeric)

    def forward(self, batch: Batch) -> Float[Tensor, "B W"]:
        """Categorical embeddings, pooled sequences, numeric features."""
        parts = []
        if batch.ids.shape[1]:
            parts += [self.tables.lookup(batch.ids).flatten(1)]
        for name in self.sequence_names:
            parts += [self.tables.pool(name, batch.sequences[name]).flatten(1)]
        if batch.numeric.shape[1]:
            parts.append(batch.numeric)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class OneHotInputs(nn.Module):
    """Every input of a batch in one vector without a parameter: a column for every table row.

    A category is 1 in the column of its row; a column of a sequence gives each event of a history
    of n events 1/n; numeric features come last. For small tables: the vector is dense.
    """

    offsets: Tensor

    def __init__(self, spec: InputSpec) -> None:
        """Count the columns of every input of ``spec``."""
        super().__init__()
        rows = {table.name: table.num_rows for table in spec.tables}
        widths = [rows[item.table] for item in spec.categorical]
        widths += [rows[name] for group in spec.sequences for name in group.tables]
        starts = torch.tensor([0, *widths]).cumsum(0)
        self.register_buffer("offsets", starts[:-1], persistent=False)
        self.sequence_names = tuple(group.name for group in spec.sequences)
        self.num_columns = int(starts[-1])
        self.out_dim = self.num_columns + len(spec.numeric)

    def forward(self, batch: Batch) -> Float[Tensor, "B W"]:
        """Columns of categories, of sequences, then numeric features."""
        num_rows, first = batch.ids.shape
        x = batch.numeric.new_zeros(num_rows, self.num_columns)
        x.scatter_(1, batch.ids.to(torch.int64) + self.offsets[:first], 1.0)
        for name in self.sequence_names:
            values, offsets = batch.sequences[name].values, batch.sequences[name].offsets
            lengths = offsets.diff()
            row = event_rows(offsets, values.shape[0])
            last = first + values.shape[1]
            columns = values.to(torch.int64) + self.offsets[first:last]
            shares = lengths[row].reciprocal().unsqueeze(1).expand_as(columns).to(x.dtype)
            x.index_put_((row.unsqueeze(1).expand_as(columns), columns), shares, accumulate=True)
            first = last
        return torch.cat([x, batch.numeric], dim=1)


class DenseSideTokens(nn.Module):
    """Tokens where the numeric features, all together, become a few vectors through an MLP.

    Order: categorical fields, pooled sequence columns, then the vectors of the dense side.
    """

    def __init__(
        self,
        spec: InputSpec,
        width: int,
        *,
        hidden_units: Sequence[int],
        num_dense_tokens: int,
        pool_sequences: bool = True,
        init_std: float = 0.01,
    ) -> None:
        """Build tables and the dense side's MLP.

        Args:
            spec: Inputs of the model.
            width: Embedding width D.
            hidden_units: Hidden widths of the MLP.
            num_dense_tokens: D-vectors that the numeric features become; none without features.
            pool_sequences: Whether columns of sequences are tokens; a model that reads events
                itself leaves them out.
            init_std: Standard deviation that embeddings start from.
        """
        super().__init__()
        self.tables = EmbeddingTables(spec, width, init_std=init_std)
        pooled = spec.sequences if pool_sequences else ()
        self.sequence_names = tuple(group.name for group in pooled)
        self.width = width
        self.num_tokens = len(spec.categorical) + sum(len(group.fields) for group in pooled)
        self.dense: MLP | None = None
        if spec.numeric:
            out_dim = num_dense_tokens * width
            self.dense = MLP(len(spec.numeric), hidden_units, out_dim=out_dim)
            self.num_tokens += num_dense_tokens

    def forward(self, batch: Batch) -> Float[Tensor, "B F D"]:
        """Tokens of a batch; F here counts all tokens."""
        parts = []
        if batch.ids.shape[1]:
            parts += [self.tables.lookup(batch.ids)]
        parts += [self.tables.pool(name, batch.sequences[name]) for name in self.sequence_names]
        if self.dense is not None:
            parts.append(self.dense(batch.numeric).unflatten(1, (-1, self.width)).float())
        return torch.cat(parts, dim=1)


class FirstOrder(nn.Module):
    """The linear part of a model: one weight per table row and numeric feature, for each task.

    The weights of table rows live in a merged table of width T that starts from 0. Pooled columns
    of a sequence count as the mean weight of their events.
    """

    def __init__(self, spec: InputSpec) -> None:
        """Build weights for every input of ``spec``; all start from 0."""
        super().__init__()
        width = len(spec.tasks)
        self.tables = EmbeddingTables(spec, width, init_std=0.0)
        self.sequence_names = tuple(group.name for group in spec.sequences)
        self.numeric_weight = nn.Parameter(torch.zeros(len(spec.numeric), width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, batch: Batch) -> Float[Tensor, "B T"]:
        """Sum of the weights of what each row holds, plus the bias."""
        # Not a matrix product: autocast would round the logits to bfloat16.
        logits = self.bias + (batch.numeric.unsqueeze(2) * self.numeric_weight).sum(1)
        if batch.ids.shape[1]:
            logits = logits + self.tables.lookup(batch.ids).sum(1)
        for name in self.sequence_names:
            logits = logits + self.tables.pool(name, batch.sequences[name]).sum(1)
        return logits


def num_tokens(spec: InputSpec) -> int:
    """How many tokens ``FieldTokens`` makes of a batch."""
    jagged = sum(len(group.fields) for group in spec.sequences)
    return len(spec.categorical) + jagged + len(spec.numeric)
