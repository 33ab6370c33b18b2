"""DHEN's interaction modules: counts, symmetries, scales and slow references."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tamis.nn.token_mixers import (
    MIXERS,
    AttentionMixer,
    ConvolutionMixer,
    CrossMixer,
    DotMixer,
    LinearMixer,
    MixerSizes,
    PaperCrossMixer,
    TokenMap,
)

SIZES = MixerSizes(in_tokens=5, out_tokens=3, width=4, dot_units=8, attention_units=6)
ZHEN = MixerSizes(
    in_tokens=369,
    out_tokens=50,
    width=64,
    dot_units=512,
    dot_pairs="full",
    attention_units=2048,
    attention_compress_first=True,
    attention_qkv_bias=False,
    linear_bias=True,
)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(0))


def _randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Move every weight, bias and norm from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _linear(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    y = x @ _array(layer.weight).T
    return y if layer.bias is None else y + _array(layer.bias)


def _check(module: torch.nn.Module, tokens: torch.Tensor, expected: list[np.ndarray]) -> None:
    """Compare with the tokens of each row, worked out in float64."""
    with torch.no_grad():
        # Sums of some dozen products in float32.
        np.testing.assert_allclose(module(tokens).numpy(), expected, rtol=1e-4, atol=1e-4)


def _mapped(token_map: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """``u_l = b_l + sum_m W_lm x_m``; rows of x are tokens."""
    weight = _array(token_map.weight)
    out = np.zeros((len(weight), x.shape[1]))
    for to, token in itertools.product(range(len(weight)), range(len(x))):
        out[to] += weight[to, token] * x[token]
    return out if token_map.bias is None else out + _array(token_map.bias)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", MIXERS)
def test_module_turns_m_tokens_into_l(name: str, tokens: torch.Tensor) -> None:
    assert MIXERS[name](SIZES)(tokens).shape == (7, 3, 4)


def test_parameter_counts_are_those_of_the_formulas() -> None:
    m, count, d, h, f = 5, 3, 4, 8, 6
    pairs = m * (m - 1) // 2
    assert _count(LinearMixer(SIZES)) == m * count
    assert _count(DotMixer(SIZES)) == pairs * h + h + h * d * count + d * count
    attention = 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
    assert _count(AttentionMixer(SIZES)) == attention + m * count
    assert _count(ConvolutionMixer(SIZES)) == 25 + 1 + m * count
    assert _count(PaperCrossMixer(SIZES)) == 2 * count * d
    assert _count(CrossMixer(SIZES)) == (m * d) ** 2 + m * d + m * count


def test_parameter_counts_are_those_of_zhen() -> None:
    with torch.device("meta"):
        assert _count(DotMixer(ZHEN)) == 71_356_544
        assert _count(LinearMixer(ZHEN)) == 18_500
        assert _count(AttentionMixer(ZHEN)) == 280_960 + 18_500
        assert _count(ConvolutionMixer(ZHEN)) == 26 + 18_500


@pytest.mark.parametrize("pairs", ["upper", "diagonal", "full"])
def test_dot_module_sees_each_product_by_itself(pairs: str, tokens: torch.Tensor) -> None:
    module = DotMixer(replace(SIZES, dot_pairs=pairs))

    expected = {
        "upper": [(i, j) for i, j in itertools.product(range(5), repeat=2) if j < i],
        "diagonal": [(i, j) for i, j in itertools.product(range(5), repeat=2) if j <= i],
        "full": list(itertools.product(range(5), repeat=2)),
    }[pairs]
    products = torch.stack([(tokens[:, i] * tokens[:, j]).sum(1) for i, j in expected], dim=1)
    assert torch.allclose(module.products(tokens), products, atol=1e-5)


@pytest.mark.parametrize("pairs", ["upper", "diagonal", "full"])
def test_dot_module_sends_its_products_through_one_hidden_layer(
    pairs: str, tokens: torch.Tensor
) -> None:
    module = _randomise(DotMixer(replace(SIZES, dot_pairs=pairs)))
    first, _, last = module.mlp.layers
    products = _array(module.products(tokens))

    # W_m (W_2 relu(W_1 s + b_1) + b_2), cut into l tokens of width d, one after the other.
    flat = _linear(last, np.maximum(_linear(first, products), 0))
    _check(module, tokens, list(flat.reshape(7, 3, 4)))


@pytest.mark.parametrize("bias", [False, True])
def test_linear_module_is_a_weighted_sum_of_tokens(bias: bool, tokens: torch.Tensor) -> None:
    module = _randomise(LinearMixer(replace(SIZES, linear_bias=bias)))

    assert (module.map.bias is not None) == bias
    _check(module, tokens, [_mapped(module.map, x) for x in _array(tokens)])


def test_paper_cross_module_weighs_the_second_moments_of_the_bits(tokens: torch.Tensor) -> None:
    module = PaperCrossMixer(SIZES)
    with torch.no_grad():
        module.bias.normal_()

    expected = torch.zeros(7, 3, 4)
    for out, a, b, token in itertools.product(range(3), range(4), range(4), range(5)):
        expected[:, out, b] += module.weight[out, a] * tokens[:, token, a] * tokens[:, token, b]
    assert torch.allclose(module(tokens), expected + module.bias, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_cross_module_multiplies_input_and_its_linear_map(
    residual: bool, tokens: torch.Tensor
) -> None:
    module = _randomise(CrossMixer(replace(SIZES, dcn_residual=residual)))

    expected = []
    for x in _array(tokens):
        # x_0 * (W x_0 + b), plus x_0 with the residual of DCN.
        crossed = x.ravel() * _linear(module.cross, x.ravel())
        crossed = crossed + x.ravel() if residual else crossed
        expected.append(_mapped(module.map, crossed.reshape(x.shape)))
    _check(module, tokens, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_convolution_module_averages_its_channels(
    channels: int, kernel: int, tokens: torch.Tensor
) -> None:
    module = _randomise(
        ConvolutionMixer(replace(SIZES, conv_channels=channels, conv_kernel=kernel))
    )
    weight, bias = _array(module.conv.weight), _array(module.conv.bias)
    assert weight.shape == (channels, 1, kernel, kernel)

    expected = []
    for x in _array(tokens):
        # Tokens are the image's rows, dimensions its columns; zeros beyond the edges.
        image = np.full(x.shape, bias.mean())
        for i, j, u, v in itertools.product(range(5), range(4), range(kernel), range(kernel)):
            row, column = i + u - kernel // 2, j + v - kernel // 2
            if 0 <= row < 5 and 0 <= column < 4:
                image[i, j] += weight[:, 0, u, v].mean() * x[row, column]
        expected.append(_mapped(module.map, image))
    _check(module, tokens, expected)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("compress_first", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_attention_module_equals_loops_over_heads_and_tokens(
    heads: int, compress_first: bool, qkv_bias: bool, tokens: torch.Tensor
) -> None:
    sizes = replace(
        SIZES,
        attention_heads=heads,
        attention_compress_first=compress_first,
        attention_qkv_bias=qkv_bias,
    )
    module = _randomise(AttentionMixer(sizes))
    assert (module.project.bias is not None) == qkv_bias
    first, _, last = module.feed_forward.layers
    size = 4 // heads

    def norm(layer: torch.nn.LayerNorm, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(x.var() + layer.eps)
        return scaled * _array(layer.weight) + _array(layer.bias)

    def encode(x: np.ndarray) -> np.ndarray:
        query, key, value = np.split(_linear(module.project, x), 3, axis=1)
        out = []
        for m, token in enumerate(x):
            mixed = np.zeros(4)
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                # softmax_k(<q_m, k_k> / sqrt(d / H)), summed with the values of the head.
                scores = np.array([np.dot(query[m, own], other[own]) for other in key])
                weights = np.exp(scores / size**0.5)
                weights /= weights.sum()
                mixed[own] = sum(w * v[own] for w, v in zip(weights, value, strict=True))
            # Norms after the sums, as in the Transformer of 2017.
            hidden = norm(module.norm1, token + _linear(module.output, mixed))
            fed = _linear(last, np.maximum(_linear(first, hidden), 0))
            out.append(norm(module.norm2, hidden + fed))
        return np.stack(out)

    expected = [
        encode(_mapped(module.map, x)) if compress_first else _mapped(module.map, encode(x))
        for x in _array(tokens)
    ]
    _check(module, tokens, expected)


def test_attention_module_drops_units_while_training_only(tokens: torch.Tensor) -> None:
    module = AttentionMixer(replace(SIZES, attention_dropout=0.5))

    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))


def test_attention_module_is_a_post_norm_encoder_layer(tokens: torch.Tensor) -> None:
    module = AttentionMixer(SIZES).eval()
    reference = torch.nn.TransformerEncoderLayer(4, 1, 6, dropout=0.0, batch_first=True).eval()
    with torch.no_grad():
        reference.self_attn.in_proj_weight.copy_(module.project.weight)
        reference.self_attn.in_proj_bias.copy_(module.project.bias)
        reference.self_attn.out_proj.weight.copy_(module.output.weight)
        reference.self_attn.out_proj.bias.copy_(module.output.bias)
        for ours, theirs in ((0, reference.linear1), (-1, reference.linear2)):
            theirs.weight.copy_(module.feed_forward.layers[ours].weight)
            theirs.bias.copy_(module.feed_forward.layers[ours].bias)
        expected = module.map(reference(tokens))

        assert torch.allclose(module(tokens), expected, atol=1e-5)


def test_order_of_tokens_matters_to_the_convolution_alone(tokens: torch.Tensor) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    for name in ("attention", "linear", "conv"):
        module = MIXERS[name](SIZES).eval()
        before = module(tokens)
        with torch.no_grad():
            module.map.weight.copy_(module.map.weight[:, order])
        same = torch.allclose(module(tokens[:, order]), before, atol=1e-5)
        assert same == (name != "conv"), name
    dot = DotMixer(SIZES)
    moved = dot.products(tokens[:, order]).sort(dim=1).values
    assert torch.allclose(moved, dot.products(tokens).sort(dim=1).values, atol=1e-5)


def test_scaling_the_input_scales_each_module_by_its_order(tokens: torch.Tensor) -> None:
    dot, linear, cross = DotMixer(SIZES), LinearMixer(SIZES), PaperCrossMixer(SIZES)

    assert torch.allclose(dot.products(3 * tokens), 9 * dot.products(tokens), rtol=1e-4)
    assert torch.allclose(linear(3 * tokens), 3 * linear(tokens), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        cross.bias.zero_()
    assert torch.allclose(cross(3 * tokens), 9 * cross(tokens), rtol=1e-4, atol=1e-4)


def test_last_maps_start_the_smaller_the_larger_what_they_read() -> None:
    torch.manual_seed(0)
    sizes = MixerSizes(in_tokens=10, out_tokens=40, width=16, dot_units=64, start_scale=0.5)
    last, paper = DotMixer(sizes).mlp.layers[-1].weight, PaperCrossMixer(sizes).weight

    # Of normalised tokens products grow with the root of d = 16, the Gram matrix with m = 10.
    for weight, scale in ((last, 0.5 / 4), (paper, 0.5 / 10)):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max().item() == pytest.approx(scale * bound, rel=0.02)


def test_small_token_map_is_computed_in_float32_under_autocast() -> None:
    token_map = TokenMap(6, 2)
    tokens = torch.randn(9, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = token_map(tokens)
    expected = torch.einsum("nm,bmd->bnd", token_map.weight.detach(), tokens)
    torch.testing.assert_close(mixed.detach(), expected)


@pytest.mark.parametrize("has_mkl", [True, False], ids=["by row", "as one product"])
@pytest.mark.parametrize("rows", [0, 1, 9, 600])
def test_token_map_and_its_gradients_are_those_of_its_formula(
    has_mkl: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    token_map = TokenMap(6, 3, bias=True).double()
    tokens = torch.randn(rows, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = token_map.weight.detach().clone().requires_grad_()
    same_tokens = tokens.detach().clone().requires_grad_()

    mixed = token_map(tokens)
    expected = torch.einsum("nm,bmd->bnd", weight, same_tokens)
    (mixed**2).sum().backward()
    (expected**2).sum().backward()

    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(tokens.grad, same_tokens.grad)
    torch.testing.assert_close(token_map.weight.grad, weight.grad)
