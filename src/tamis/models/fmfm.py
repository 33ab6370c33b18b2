"""Field-matrixed factorization machine."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import FieldTokens, FirstOrder


@dataclass(frozen=True, kw_only=True, slots=True)
class FmFMConfig:
    """Field-matrixed factorization machine."""

    embedding_dim: int = 16
    """Width D. At least 1."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)


class FmFM(nn.Module):
    """First order plus ``<v_i M_ij, v_j>`` of all pairs of tokens, each with a matrix of its own.

    Source:
        Sun et al., FM2: Field-matrixed Factorization Machines for Recommender Systems, WWW 2021,
        equation (10).

    Differs from the source:
        T tasks share the embeddings, and each has matrices of its own; a sequence enters as the
        mean of its events; the token of a numeric feature has a bias. All tokens are equally wide.
        Matrices start from Xavier's normal distribution.
    """

    def __init__(self, config: FmFMConfig, spec: InputSpec) -> None:
        """Build tables and matrices for the inputs of ``spec``."""
        super().__init__()
        self.first_order = FirstOrder(spec)
        self.tokens = FieldTokens(spec, config.embedding_dim, init_std=config.init_std)
        self.num_tasks, width = len(spec.tasks), config.embedding_dim
        self.matrices = nn.ParameterList()
        for later in range(self.tokens.num_tokens - 1, 0, -1):
            matrices = torch.empty(width, self.num_tasks * later * width)
            # As for each of these square matrices by itself.
            nn.init.normal_(matrices, std=width**-0.5)
            self.matrices.append(nn.Parameter(matrices))

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        tokens = self.tokens(batch)
        logits = self.first_order(batch)
        for place, matrices in enumerate(self.matrices):
            logits = logits + self._pairs(tokens[:, place], tokens[:, place + 1 :], matrices)
        return Output(logits=logits)

    def _pairs(
        self, token: Float[Tensor, "B D"], later: Float[Tensor, "B L D"], matrices: Tensor
    ) -> Float[Tensor, "B T"]:
        """What a token makes with all that follow it, each pair through a matrix (D, D)."""
        mapped = (token @ matrices).unflatten(1, (self.num_tasks, *later.shape[1:]))
        return (mapped * later.unsqueeze(1)).sum((2, 3))
