"""Interactions against slow loops and numbers worked out by hand."""

import itertools

import pytest
import torch

from tamis.nn.interaction import (
    CompressedInteraction,
    CrossNet,
    DotInteraction,
    FieldAttention,
    attend,
    pairwise_products,
)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))


def test_pairwise_products_equal_a_loop_over_pairs(tokens: torch.Tensor) -> None:
    expected = sum(tokens[:, i] * tokens[:, j] for i, j in itertools.combinations(range(4), 2))

    assert torch.allclose(pairwise_products(tokens), expected, atol=1e-5)


def test_dot_interaction_lists_each_pair_once(tokens: torch.Tensor) -> None:
    products = DotInteraction(4)(tokens)

    pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    expected = torch.stack([(tokens[:, i] * tokens[:, j]).sum(1) for i, j in pairs], dim=1)
    assert torch.allclose(products, expected, atol=1e-5)
    assert DotInteraction(4, with_diagonal=True)(tokens).shape == (5, 10)


def test_cross_layer_is_x0_times_linear_plus_x() -> None:
    net = CrossNet(2, 2)
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
        net.layers[0].bias.copy_(torch.tensor([0.0, 1.0]))
        net.layers[1].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        net.layers[1].bias.zero_()

    # x0 = (1, 2). Layer 1: W x + b = (1, 2 + 2 + 1) = (1, 5); x0 * that + x = (2, 12).
    # Layer 2: W x = (12, 2); x0 * that + x = (1 * 12 + 2, 2 * 2 + 12) = (14, 16).
    assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[14.0, 16.0]]


def test_cross_experts_equal_a_loop_over_experts() -> None:
    net = CrossNet(3, 1, rank=2, num_experts=2)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    layer = net.layers[0]
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    gates = torch.softmax(x @ layer.gate.weight.T + layer.gate.bias, dim=1)
    mixed = torch.zeros_like(x)
    for expert in range(2):
        hidden = torch.tanh(x @ layer.down[expert])
        hidden = torch.tanh(hidden @ layer.core[expert])
        mixed += gates[:, expert : expert + 1] * (hidden @ layer.up[expert])

    assert torch.allclose(net(x), x * (mixed + layer.bias) + x, atol=1e-6)


@pytest.mark.parametrize("split_half", [True, False])
def test_compressed_interaction_equals_loops(tokens: torch.Tensor, split_half: bool) -> None:
    cin = CompressedInteraction(4, (6, 2), split_half=split_half)

    def layer(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(5, weight.shape[0], 3)
        for h, i, j in itertools.product(range(weight.shape[0]), range(4), range(x.shape[1])):
            out[:, h] += weight[h, i * x.shape[1] + j] * tokens[:, i] * x[:, j]
        return out + bias[:, None]

    first = layer(cin.layers[0].weight, cin.layers[0].bias, tokens)
    kept, direct = (first[:, :3], first[:, 3:]) if split_half else (first, first)
    second = layer(cin.layers[1].weight, cin.layers[1].bias, kept)
    expected = torch.cat([direct, second], dim=1).sum(2)

    assert torch.allclose(cin(tokens), expected, atol=1e-4)
    assert cin.out_dim == expected.shape[1]


def test_field_attention_equals_a_loop_over_heads(tokens: torch.Tensor) -> None:
    layer = FieldAttention(3, 4, 2, scale=True)
    query, key, value, residual = (tokens @ w.T for w in layer.project.weight.chunk(4))
    heads = []
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 2**0.5
        heads.append(torch.softmax(scores, dim=2) @ value[..., part])

    expected = torch.relu(torch.cat(heads, dim=2) + residual)
    assert torch.allclose(layer(tokens), expected, atol=1e-5)


def test_attention_in_bfloat16_is_computed_in_float32_on_a_cpu() -> None:
    query = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()

    assert attend(query, query, query).dtype == torch.float32
