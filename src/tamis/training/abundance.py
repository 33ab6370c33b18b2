"""Information abundance: how many directions of an embedding table carry something."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.schema import InputSpec
from tamis.nn.embedding import EmbeddingTables, FirstOrder

_ROWS_AT_ONCE = 2**18


def information_abundance(table: Float[Tensor, "N D"]) -> float:
    """Sum of the singular values over the largest one: between 1 and D, 0 for a table of zeros.

    Near 1 the rows lie along one direction, whatever the width: the table has collapsed.

    Source:
        Guo et al., On the Embedding Collapse when Scaling up Recommendation Models, ICML 2024,
        definition 1.

    Differs from the source:
        A table of zeros, for which there is no definition, has 0.
    """
    # Of the D x D Gram matrix, part by part: a table has millions of rows and a few dozen columns.
    gram = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64, device=table.device)
    for rows in table.detach().split(_ROWS_AT_ONCE):
        exact = rows.double()
        gram += exact.T @ exact
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    largest = singular.max()
    return float(singular.sum() / largest) if largest > 0 else 0.0


def table_abundances(model: nn.Module, spec: InputSpec) -> list[dict[str, Any]]:
    """Every table of embeddings: its place in the model, its size and its abundance.

    First-order weights are no embeddings and are left out, as are vectors that are given.
    """
    found = []
    weights = {
        id(part)
        for module in model.modules()
        if isinstance(module, FirstOrder)
        for part in module.modules()
    }
    for path, module in model.named_modules():
        if not isinstance(module, EmbeddingTables) or id(module) in weights:
            continue
        for table in spec.tables:
            if table.vectors:
                continue
            rows = module.rows_of(table.name)
            found.append(
                {
                    "module": path,
                    "table": table.name,
                    "rows": table.num_rows,
                    "width": module.width,
                    "information_abundance": information_abundance(rows),
                }
            )
    return found
