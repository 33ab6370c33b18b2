"""The inputs of one side at a time as tokens, from tables that all sides share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Side
from tamis.nn.embedding import ColumnTables, EmbeddingTables

_SIDES: tuple[Side, ...] = ("user", "item", "context")


class SideTokens(nn.Module):
    """User, item and context fields as D-vectors, each side by itself.

    The tokens of a side stand in this order: its categorical fields; the mean-pooled columns of its
    sequence groups; its numeric features, one token ``x_m * w_m + b_m`` each. Only the inputs of
    the side that is asked for are looked up, so a batch may hold anything in the place of others.
    """

    def __init__(self, spec: InputSpec, width: int, *, init_std: float = 0.01) -> None:
        """Build tables and numeric directions.

        Args:
            spec: Inputs of the model, each with its side.
            width: Embedding width D.
            init_std: Standard deviation of embeddings and of the numeric directions at the start.
        """
        super().__init__()
        self.tables = EmbeddingTables(spec, width, init_std=init_std)
        self.numeric_weight = nn.Parameter(torch.empty(len(spec.numeric), width))
        self.numeric_bias = nn.Parameter(torch.zeros(len(spec.numeric), width))
        nn.init.normal_(self.numeric_weight, std=max(init_std, 1e-12))
        self.num_tokens: dict[Side, int] = {}
        self._groups: dict[Side, tuple[str, ...]] = {}
        self._tables: dict[Side, ColumnTables] = {}
        for side in _SIDES:
            columns, numbers = spec.categorical_of(side), spec.numeric_of(side)
            groups = spec.sequences_of(side)
            self._groups[side] = tuple(group.name for group in groups)
            self._tables[side] = self.tables.columns_of(columns)
            events = sum(len(group.fields) for group in groups)
            self.num_tokens[side] = len(columns) + events + len(numbers)
            for name, places in (("columns", columns), ("numbers", numbers)):
                index = torch.tensor(places, dtype=torch.int64)
                self.register_buffer(f"{side}_{name}", index, persistent=False)

    def forward(self, batch: Batch, side: Side) -> Float[Tensor, "B F D"]:
        """Tokens of one side, of which there may be none."""
        columns, numbers = self.get_buffer(f"{side}_columns"), self.get_buffer(f"{side}_numbers")
        parts = [batch.numeric.new_zeros(batch.num_rows, 0, self.tables.width)]
        if len(columns):
            parts += [self.tables.lookup_columns(batch.ids, columns, self._tables[side])]
        parts += [self.tables.pool(name, batch.sequences[name]) for name in self._groups[side]]
        if len(numbers):
            values = batch.numeric.index_select(1, numbers).unsqueeze(2)
            weight = self.numeric_weight.index_select(0, numbers)
            parts.append(values * weight + self.numeric_bias.index_select(0, numbers))
        return torch.cat(parts, dim=1)
