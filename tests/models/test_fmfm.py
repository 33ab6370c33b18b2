"""The field-matrixed factorization machine against its equation, written as loops."""

import numpy as np
import torch

from tamis.models.fm import FM, FMConfig
from tamis.models.fmfm import FmFM, FmFMConfig


def test_logits_equal_the_equation_for_each_task(reference) -> None:
    width = 3
    model = reference.build(FmFM, FmFMConfig(embedding_dim=width))
    matrices = [parameter.detach().numpy() for parameter in model.matrices]

    def logits(row: int) -> np.ndarray:
        # w_0 + sum_i w_i x_i + sum_{i<j} <v_i x_i M_ij, v_j x_j>
        total = reference.first_order(model.first_order, row)
        tokens = reference.field_tokens(model.tokens, row)
        for first in range(len(tokens) - 1):
            num_later = len(tokens) - 1 - first
            for task in range(2):
                for second in range(num_later):
                    start = (task * num_later + second) * width
                    matrix = matrices[first][:, start : start + width]
                    total[task] += tokens[first] @ matrix @ tokens[first + 1 + second]
        return total

    reference.check(model, logits)


def test_it_has_a_matrix_for_each_pair_of_tokens_and_task(reference) -> None:
    model = reference.build(FmFM, FmFMConfig(embedding_dim=3))
    num_tokens = model.tokens.num_tokens

    found = sum(parameter.numel() for parameter in model.matrices)

    assert found == 2 * (num_tokens * (num_tokens - 1) // 2) * 3 * 3


def test_with_unit_matrices_it_is_a_factorization_machine(reference) -> None:
    model = reference.build(FmFM, FmFMConfig(embedding_dim=3))
    # Both tasks of this one on the same factors, as those of the other model share theirs.
    plain = reference.build(FM, FMConfig(embedding_dim=3))
    with torch.no_grad():
        for parameter in model.matrices:
            parameter.copy_(torch.eye(3).repeat(1, parameter.shape[1] // 3))
        plain.first_order.load_state_dict(model.first_order.state_dict())
        for name, value in model.tokens.state_dict().items():
            plain.tokens.get_parameter(name).copy_(value.repeat(1, 2))
        batch = reference.batch
        assert torch.allclose(model(batch).logits, plain(batch).logits, atol=1e-6)
