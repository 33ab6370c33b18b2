"""Interactions against slow loops and numbers worked out by hand."""

import itertools

import pytest
import torch

from tamis.nn.interaction import (
    CompressedInteraction,
    CrossNet,
    DotInteraction,
    FieldAttention,
    pairwise_products,
)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))


def test_pairwise_products_equal_a_loop_over_pairs(tokens: torch.Tensor) -> None:
    expected = sum(tokens[:, i] * tokens[:, j] for i, j in itertools.combinations(range(4), 2))

    assert torch.allclose(pairwise_products(tokens), expected, atol=1e-5)


def _randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Move every weight, bias and norm from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("with_diagonal", [False, True])
def test_dot_interaction_lists_each_pair_once(tokens: torch.Tensor, with_diagonal: bool) -> None:
    module = DotInteraction(4, with_diagonal=with_diagonal)

    # (1, 0), (2, 0), (2, 1), ...; with the diagonal (0, 0), (1, 0), (1, 1), ...
    pairs = [(i, j) for i in range(4) for j in range(i + 1 if with_diagonal else i)]
    expected = torch.stack([(tokens[:, i] * tokens[:, j]).sum(1) for i, j in pairs], dim=1)
    assert torch.allclose(module(tokens), expected, atol=1e-5)
    assert module.out_dim == len(pairs)


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


@pytest.mark.parametrize("shape", [{}, {"rank": 2}, {"rank": 2, "num_experts": 2}])
def test_gradients_of_cross_layers_equal_finite_differences(shape: dict[str, int]) -> None:
    net = _randomise(CrossNet(3, 2, **shape)).double()
    names = [name for name, _ in net.named_parameters()]
    weights = [weight.detach().requires_grad_() for weight in net.parameters()]
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()

    def output(x0: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x0,))

    assert torch.autograd.gradcheck(output, (x0, *weights))


@pytest.mark.parametrize("shape", [{}, {"rank": 4}, {"rank": 4, "num_experts": 2}])
def test_cross_layers_under_autocast_are_near_float32(shape: dict[str, int]) -> None:
    net = _randomise(CrossNet(8, 3, **shape))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(64, 8, generator=generator)

    def run(*, autocast: bool) -> list[torch.Tensor]:
        leaf = x0.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, autocast):
            output = net(leaf)
        output.float().square().mean().backward()
        gradients = [leaf.grad, *(parameter.grad for parameter in net.parameters())]
        net.zero_grad()
        return [output, *gradients]

    for half, full in zip(run(autocast=True), run(autocast=False), strict=True):
        # bfloat16 has eight bits of mantissa: a relative error of 2**-9 for each rounding.
        assert (half.float() - full).norm() < 0.02 * full.norm()


def test_low_rank_cross_layers_equal_equation_2() -> None:
    net = _randomise(CrossNet(5, 2, rank=2))
    x0 = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))

    # x_{l+1} = x_0 * (U (V' x_l) + b) + x_l: no activation between V and U, one bias.
    x = x0
    for layer in net.layers:
        down, up = layer
        assert down.bias is None
        x = x0 * (x @ down.weight.T @ up.weight.T + up.bias) + x
    assert torch.allclose(net(x0), x, rtol=1e-4, atol=1e-4)


def test_cross_experts_equal_a_loop_over_experts() -> None:
    net = _randomise(CrossNet(3, 1, rank=2, num_experts=2))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    layer = net.layers[0]
    gates = torch.softmax(x @ layer.gate.weight.T + layer.gate.bias, dim=1)
    mixed = torch.zeros_like(x)
    for expert in range(2):
        hidden = torch.tanh(x @ layer.down[expert])
        hidden = torch.tanh(hidden @ layer.core[expert])
        mixed += gates[:, expert : expert + 1] * (hidden @ layer.up[expert])

    assert torch.allclose(net(x), x * (mixed + layer.bias) + x, atol=1e-5)


@pytest.mark.parametrize("split_half", [True, False])
def test_compressed_interaction_equals_loops(tokens: torch.Tensor, split_half: bool) -> None:
    cin = _randomise(CompressedInteraction(4, (6, 2), split_half=split_half))

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


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_field_attention_equals_a_loop_over_heads(
    tokens: torch.Tensor, scale: bool, layer_norm: bool
) -> None:
    layer = _randomise(FieldAttention(3, 4, 2, scale=scale, layer_norm=layer_norm))
    query, key, value, residual = (tokens @ w.T for w in layer.project.weight.chunk(4))
    heads = []
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / (2**0.5 if scale else 1)
        heads.append(torch.softmax(scores, dim=2) @ value[..., part])

    expected = torch.cat(heads, dim=2) + residual
    if layer_norm:
        mean = expected.mean(2, keepdim=True)
        deviation = (expected.var(2, unbiased=False, keepdim=True) + layer.norm.eps).sqrt()
        expected = (expected - mean) / deviation * layer.norm.weight + layer.norm.bias
    assert torch.allclose(layer(tokens), torch.relu(expected), atol=1e-5)
