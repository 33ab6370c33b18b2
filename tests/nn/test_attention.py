"""Attention against loops, its masks and its positions."""

import math

import numpy as np
import pytest
import torch

from tamis.nn.attention import PoolingAttention, SequenceAttention, attend, rotate


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def valid() -> torch.Tensor:
    """Three events, five events, none."""
    return torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


def test_scores_are_divided_by_the_root_of_the_width_and_masked_before_the_softmax(
    tokens: torch.Tensor, valid: torch.Tensor
) -> None:
    heads = tokens.unflatten(2, (2, 4)).transpose(1, 2)
    expected = torch.zeros_like(heads)
    for row in range(2):
        keys = int(valid[row].sum())
        for head in range(2):
            for place in range(5):
                scores = heads[row, head, :keys] @ heads[row, head, place] / math.sqrt(4)
                expected[row, head, place] = scores.softmax(0) @ heads[row, head, :keys]

    assert torch.allclose(attend(heads, heads, heads, valid=valid), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_stays_in_float32_on_a_cpu(dtype: torch.dtype) -> None:
    query = torch.randn(2, 1, 3, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(query, query, query)

    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, attend(query.float(), query.float(), query.float()))


def test_rotation_turns_pairs_by_their_position() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 3, 2, 4)
    turned = rotate(x)[0]

    # Position 2, width 4: pair (1, 2) turns by 2, pair (3, 4) by 2 * 10000 ** -0.5 = 0.02.
    expected = [
        math.cos(2) - 2 * math.sin(2),
        math.sin(2) + 2 * math.cos(2),
        3 * math.cos(0.02) - 4 * math.sin(0.02),
        3 * math.sin(0.02) + 4 * math.cos(0.02),
    ]
    for head in range(2):
        assert turned[2, head].tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(turned[0], x[0, 0])


def test_products_of_rotated_vectors_depend_on_the_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(8, generator=generator).expand(1, 9, 1, 8) for _ in range(2))
    products = rotate(query)[0, :, 0] @ rotate(key)[0, :, 0].T

    for distance in range(-4, 5):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)


def _array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def test_pooling_equals_a_loop_over_queries_and_heads(
    tokens: torch.Tensor, valid: torch.Tensor
) -> None:
    torch.manual_seed(0)
    module = PoolingAttention(8, num_queries=2, num_heads=2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    pooled = module(tokens, valid)

    keys, values = np.split(
        _array(tokens) @ _array(module.project.weight).T + _array(module.project.bias), 2, axis=2
    )
    for row, count in enumerate((3, 5, 0)):
        for place, query in enumerate(_array(module.queries)):
            read = np.zeros(8)
            for head in (slice(0, 4), slice(4, 8)):
                if count:
                    scores = keys[row, :count, head] @ query[head] / 2
                    weights = np.exp(scores - scores.max())
                    read[head] = weights / weights.sum() @ values[row, :count, head]
            expected = _array(module.output.weight) @ read + _array(module.output.bias)
            np.testing.assert_allclose(pooled[row, place].detach(), expected, rtol=1e-4, atol=1e-5)


def test_pooling_does_not_see_the_order_of_events(tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    module = PoolingAttention(8, num_queries=2, num_heads=2)
    everything = torch.ones(3, 5, dtype=torch.bool)

    shuffled = tokens[:, [3, 0, 4, 2, 1]]
    assert torch.allclose(module(tokens, everything), module(shuffled, everything), atol=1e-6)


@pytest.mark.parametrize("rotary", [True, False])
def test_events_know_their_order_by_rotation_only(tokens: torch.Tensor, rotary: bool) -> None:
    torch.manual_seed(0)
    module = SequenceAttention(8, 2, rotary=rotary)
    everything = torch.ones(3, 5, dtype=torch.bool)
    order = [3, 0, 4, 2, 1]

    same = torch.allclose(
        module(tokens, everything)[:, order], module(tokens[:, order], everything), atol=1e-6
    )
    assert same is not rotary


def test_what_stands_in_masked_places_changes_nothing(
    tokens: torch.Tensor, valid: torch.Tensor
) -> None:
    torch.manual_seed(0)
    module = SequenceAttention(8, 2)
    other = torch.where(valid.unsqueeze(2), tokens, 100 * torch.randn(3, 5, 8))

    first, second = module(tokens, valid), module(other, valid)
    assert torch.allclose(first[valid], second[valid], atol=1e-5)
    assert second.isfinite().all()


def test_causal_attention_sees_no_later_token() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    valid = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    whole = attend(query, key, value, valid=valid, causal=True)

    for place in range(3):
        seen = slice(0, place + 1)
        scores = query[0, :, place : place + 1] @ key[0, :, seen].transpose(1, 2) / 2
        expected = torch.softmax(scores, dim=2) @ value[0, :, seen]
        torch.testing.assert_close(whole[0, :, place : place + 1], expected)
    assert whole[1].eq(0).all()
