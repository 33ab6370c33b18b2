"""Logistic regression against its equation, written as loops."""

import numpy as np

from tamis.models.lr import LR, LRConfig


def test_logits_equal_the_equation(reference) -> None:
    model = reference.build(LR, LRConfig())

    def logits(row: int) -> np.ndarray:
        # w_0 + sum_i w_i x_i, with the mean weight of a history's events.
        return reference.first_order(model.first_order, row)

    reference.check(model, logits)
