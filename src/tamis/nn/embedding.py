"""Embedding tables merged into one parameter, looked up without copies of unused rows.

The backward pass of every lookup here is a sparse gradient that holds only the rows of the batch,
not yet summed over duplicates; ``training/optimizers.py`` sums and applies it in O(rows in batch).
``torch.compile`` leaves lookups as they are: it has no code for sparse gradients. Lists of what was
looked up grow by ``+=``, as ``append``, a method of that very list, would wait for the lookup, and
what comes after it would be compiled anew for every batch's list.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import InputSpec, Table
from tamis.nn.event_rows import event_rows
from tamis.nn.mlp import MLP
from tamis.nn.outside_compiler import outside_compiler


class EmbeddingTables(nn.Module):
    """All embedding tables of one width in one parameter.

    ``weight`` (sum of rows, D): the rows of table i start at ``first_row[table name]``. Row 0 of
    every table is its out-of-vocabulary row. Ids stay integers throughout, so they are exact
    beyond 2**24.

    Tables whose vectors are given have no rows there: each is a :class:`GivenTable`.
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
        self._num_rows = spec.num_rows_by_table
        self._given: dict[str, GivenTable] = {}
        for table in spec.tables:
            if table.vectors:
                self._given[table.name] = GivenTable(table, width, starts_from_zero=init_std == 0)
            else:
                self.first_row[table.name] = total
                total += table.num_rows
        self.weight = nn.Parameter(torch.zeros(total, width))
        if init_std > 0:
            nn.init.normal_(self.weight, std=init_std)
        self.given = nn.ModuleList(self._given.values())
        categories = [item.table for item in spec.categorical]
        self._category_columns = ColumnTables(categories, self._given)
        self._event_columns = {
            group.name: ColumnTables(group.tables, self._given) for group in spec.sequences
        }
        self._register_offsets("category_offsets", categories)
        self._buffer_by_sequence = {}
        for index, group in enumerate(spec.sequences):
            self._buffer_by_sequence[group.name] = f"sequence_offsets_{index}"
            self._register_offsets(f"sequence_offsets_{index}", group.tables)

    @outside_compiler
    def lookup(self, ids: Int[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """Embeddings of the categorical fields of a batch."""
        return self._embed(ids, self.category_offsets, self._category_columns)

    @outside_compiler
    def lookup_columns(
        self, ids: Int[Tensor, "B F"], places: Int[Tensor, " C"], columns: "ColumnTables"
    ) -> Float[Tensor, "B C D"]:
        """Embeddings of some of the categorical fields of a batch.

        Args:
            ids: Of all fields.
            places: Places of those that are wanted, on the device of the ids.
            columns: What :meth:`columns_of` gives for these places.
        """
        offsets = self.category_offsets.index_select(0, places)
        return self._embed(ids.index_select(1, places), offsets, columns)

    def columns_of(self, places: Sequence[int]) -> "ColumnTables":
        """Tables of some of the categorical fields, for :meth:`lookup_columns`."""
        tables = self._category_columns.tables
        return ColumnTables([tables[place] for place in places], self._given)

    @outside_compiler
    def lookup_events(self, name: str, jagged: Jagged) -> Float[Tensor, "nnz E D"]:
        """Embeddings of every event of the sequence group ``name``, one per column."""
        offsets = self.get_buffer(self._buffer_by_sequence[name])
        return self._embed(jagged.values, offsets, self._event_columns[name])

    @outside_compiler
    def pool(self, name: str, jagged: Jagged) -> Float[Tensor, "B E D"]:
        """Mean embedding of each history, one per column; zeros for an empty history."""
        offsets = self.get_buffer(self._buffer_by_sequence[name])
        ids = jagged.values.to(torch.int64)
        rows = ids + offsets
        pooled = []
        for column, table in enumerate(self._event_columns[name].tables):
            pooled += [
                self._given[table].pool(ids[:, column], jagged.offsets)
                if table in self._given
                else F.embedding_bag(
                    rows[:, column].contiguous(),
                    self.weight,
                    jagged.offsets,
                    mode="mean",
                    sparse=True,
                    include_last_offset=True,
                )
            ]
        return torch.stack(pooled, dim=1)

    def rows_of(self, table: str) -> Float[Tensor, "V D"]:
        """The learned rows of a table, as a view of ``weight``."""
        first = self.first_row[table]
        return self.weight[first : first + self._num_rows[table]]

    @torch.no_grad()
    def copy_tables(self, other: "EmbeddingTables") -> None:
        """Take over these tables, rows and maps, from one that has them all, of the same width."""
        for name in self.first_row:
            self.rows_of(name).copy_(other.rows_of(name))
        for name, table in self._given.items():
            table.load_state_dict(other._given[name].state_dict())

    def _embed(
        self, ids: Int[Tensor, "n C"], offsets: Int[Tensor, " C"], columns: "ColumnTables"
    ) -> Float[Tensor, "n C D"]:
        """Embeddings of columns of ids, those of learned tables by one lookup."""
        rows = ids.to(torch.int64) + offsets
        if not columns.given:
            return F.embedding(rows, self.weight, sparse=True)
        looked_up = F.embedding(columns.learned_of(rows), self.weight, sparse=True).unbind(1)
        learned = iter(looked_up)
        # Not put in order by an index: its backward pass would add row by row.
        vectors = [
            self._given[table](ids[:, place]) if table in self._given else next(learned)
            for place, table in enumerate(columns.tables)
        ]
        return torch.stack(vectors, dim=1)

    def _register_offsets(self, name: str, tables: Sequence[str]) -> None:
        firsts = [self.first_row.get(table, 0) for table in tables]
        self.register_buffer(name, torch.tensor(firsts, dtype=torch.int64), persistent=False)


class ColumnTables:
    """Tables of some columns of ids, told apart by whether their rows are learned or given."""

    def __init__(self, tables: Sequence[str], given: Collection[str]) -> None:
        """Tell them apart.

        Args:
            tables: Table of each column.
            given: Tables whose rows are given.
        """
        self.tables = tuple(tables)
        self.given = [(place, table) for place, table in enumerate(tables) if table in given]
        self._learned = [place for place, table in enumerate(tables) if table not in given]

    def learned_of(self, ids: Int[Tensor, "n C"]) -> Int[Tensor, "n L"]:
        """Ids of the columns whose rows are learned."""
        if not self.given:
            return ids
        # Not by an index, which a GPU would wait for.
        columns = [ids[:, place] for place in self._learned]
        return torch.stack(columns, dim=1) if columns else ids[:, :0]


class GivenRows(nn.Module):
    """The rows of a table whose vectors are given, and stay as they are."""

    rows: Tensor

    def __init__(self, table: Table) -> None:
        """Make room for the rows; all but row 0 are NaN until :func:`give_rows` puts them there.

        Args:
            table: Rows V of the table, and their numbers W.
        """
        super().__init__()
        self.name = table.name
        rows = torch.full((table.num_rows, table.vectors), torch.nan)
        rows[0] = 0
        self.register_buffer("rows", rows)

    def forward(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n W"]:
        """Vectors of categories."""
        return F.embedding(ids.to(torch.int64), self.rows)

    def pool(self, ids: Int[Tensor, " nnz"], offsets: Int[Tensor, " n1"]) -> Float[Tensor, "n W"]:
        """Mean vector of each history; zeros for an empty one."""
        rows = ids.to(torch.int64).contiguous()
        return F.embedding_bag(rows, self.rows, offsets, mode="mean", include_last_offset=True)


class GivenTable(nn.Module):
    """A table whose vectors are given; a learned map makes them D wide.

    Source:
        FuxiCTR's frozen pretrained embeddings and, behind them, the linear map without a bias of
        the published set-ups of KuaiVideo, whose items have visual vectors.

    Differs from the source:
        First-order weights are a map of the vector too; there every category has one of its own.
    """

    def __init__(self, table: Table, width: int, *, starts_from_zero: bool = False) -> None:
        """Build the rows and the map.

        Args:
            table: Rows V of the table, and their numbers W.
            width: Embedding width D.
            starts_from_zero: Whether the map does, as first-order weights do; else it starts as
                Xavier's.
        """
        super().__init__()
        self.given = GivenRows(table)
        self.project = nn.Linear(table.vectors, width, bias=False)
        if starts_from_zero:
            nn.init.zeros_(self.project.weight)
        else:
            nn.init.xavier_normal_(self.project.weight)

    def forward(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Embeddings of categories."""
        return self._mapped(self.given(ids))

    def pool(self, ids: Int[Tensor, " nnz"], offsets: Int[Tensor, " n1"]) -> Float[Tensor, "n D"]:
        """Mean embedding of each history, which is that of its mean vector."""
        return self._mapped(self.given.pool(ids, offsets))

    def _mapped(self, vectors: Float[Tensor, "n W"]) -> Float[Tensor, "n D"]:
        # In float32 under autocast too, as rows that are learned are.
        with torch.autocast(vectors.device.type, enabled=False):
            return self.project(vectors)


@torch.no_grad()
def give_rows(model: nn.Module, rows: Mapping[str, NDArray[np.float32]]) -> None:
    """Put vectors into the tables of a model that they are given for.

    Args:
        model: Any; of one without such tables nothing changes.
        rows: (V, W) of each table, by the field that owns it, as ``Dataset.given_rows`` gives them.
    """
    for module in model.modules():
        if isinstance(module, GivenRows):
            module.rows.copy_(torch.from_numpy(rows[module.name]))


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
    of n events 1/n; vectors that are given come next, as they are, those of a sequence as their
    mean; numeric features come last. For small tables: the vector is dense.
    """

    offsets: Tensor

    def __init__(self, spec: InputSpec) -> None:
        """Count the columns of every input of ``spec``."""
        super().__init__()
        tables = {table.name: table for table in spec.tables}
        self._given = {table.name: GivenRows(table) for table in spec.tables if table.vectors}
        self.given = nn.ModuleList(self._given.values())
        categories = [item.table for item in spec.categorical]
        self._categories = ColumnTables(categories, self._given)
        self._groups = {
            group.name: ColumnTables(group.tables, self._given) for group in spec.sequences
        }
        names = [*categories, *(name for group in spec.sequences for name in group.tables)]
        widths = [tables[name].num_rows for name in names if name not in self._given]
        starts = torch.tensor([0, *widths]).cumsum(0)
        self.register_buffer("offsets", starts[:-1], persistent=False)
        self.num_columns = int(starts[-1])
        given = sum(tables[name].vectors for name in names)
        self.out_dim = self.num_columns + given + len(spec.numeric)

    def forward(self, batch: Batch) -> Float[Tensor, "B W"]:
        """Columns of categories, of sequences, vectors that are given, then numeric features."""
        x = batch.numeric.new_zeros(batch.num_rows, self.num_columns)
        ids = self._categories.learned_of(batch.ids)
        first = ids.shape[1]
        x.scatter_(1, ids.to(torch.int64) + self.offsets[:first], 1.0)
        given = [self._given[table](batch.ids[:, at]) for at, table in self._categories.given]
        for name, group in self._groups.items():
            events, offsets = batch.sequences[name].values, batch.sequences[name].offsets
            values = group.learned_of(events)
            lengths = offsets.diff()
            row = event_rows(offsets, values.shape[0])
            last = first + values.shape[1]
            columns = values.to(torch.int64) + self.offsets[first:last]
            shares = lengths[row].reciprocal().unsqueeze(1).expand_as(columns).to(x.dtype)
            x.index_put_((row.unsqueeze(1).expand_as(columns), columns), shares, accumulate=True)
            first = last
            given += [self._given[table].pool(events[:, at], offsets) for at, table in group.given]
        return torch.cat([x, *given, batch.numeric], dim=1)


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
