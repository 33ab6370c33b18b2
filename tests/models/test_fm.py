"""The factorization machine against equation (1) of its paper, written as loops."""

import itertools

import numpy as np

from tamis.models.fm import FM, FMConfig


def test_logits_equal_equation_1_for_each_task(reference) -> None:
    model = reference.build(FM, FMConfig(embedding_dim=3))

    def logits(row: int) -> np.ndarray:
        # w_0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j; task t has factors of its own.
        total = reference.first_order(model.first_order, row)
        tokens = reference.field_tokens(model.tokens, row)
        for task in range(2):
            own = slice(3 * task, 3 * task + 3)
            for first, second in itertools.combinations(tokens, 2):
                total[task] += np.dot(first[own], second[own])
        return total

    reference.check(model, logits)
