"""Operations are those of matrix products, a multiplication with its addition as two."""

import torch
from torch.nn import functional as F

from tamis.models.flops import counted_flops


def test_products_count_twice_their_multiplications_and_the_result_is_handed_on() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    flops, result = counted_flops(lambda: torch.relu(left @ right) + 1)

    assert flops == 2 * 3 * 5 * 7
    assert torch.equal(result, left @ right + 1)


def test_attention_is_its_two_products() -> None:
    tokens = torch.randn(1, 2, 6, 4)
    flops, _ = counted_flops(lambda: F.scaled_dot_product_attention(tokens, tokens, tokens))

    assert flops == 2 * (2 * 2 * 6 * 6 * 4)
