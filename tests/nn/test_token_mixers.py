"""DHEN's interaction modules: counts, symmetries, scales and slow references."""

import itertools

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
        assert _count(torch.nn.LayerNorm(64)) == 128


@pytest.mark.parametrize("pairs", ["upper", "diagonal", "full"])
def test_dot_module_sees_each_product_by_itself(pairs: str, tokens: torch.Tensor) -> None:
    from dataclasses import replace

    module = DotMixer(replace(SIZES, dot_pairs=pairs))

    expected = {
        "upper": [(i, j) for i, j in itertools.product(range(5), repeat=2) if j < i],
        "diagonal": [(i, j) for i, j in itertools.product(range(5), repeat=2) if j <= i],
        "full": list(itertools.product(range(5), repeat=2)),
    }[pairs]
    products = torch.stack([(tokens[:, i] * tokens[:, j]).sum(1) for i, j in expected], dim=1)
    assert torch.allclose(module.products(tokens), products, atol=1e-5)


def test_linear_module_is_a_weighted_sum_of_tokens(tokens: torch.Tensor) -> None:
    module = LinearMixer(SIZES)
    weight = module.map.weight

    expected = torch.zeros(7, 3, 4)
    for out, token in itertools.product(range(3), range(5)):
        expected[:, out] += weight[out, token] * tokens[:, token]
    assert torch.allclose(module(tokens), expected, atol=1e-5)


def test_paper_cross_module_weighs_the_second_moments_of_the_bits(tokens: torch.Tensor) -> None:
    module = PaperCrossMixer(SIZES)
    with torch.no_grad():
        module.bias.normal_()

    expected = torch.zeros(7, 3, 4)
    for out, a, b, token in itertools.product(range(3), range(4), range(4), range(5)):
        expected[:, out, b] += module.weight[out, a] * tokens[:, token, a] * tokens[:, token, b]
    assert torch.allclose(module(tokens), expected + module.bias, atol=1e-4)


def test_cross_module_multiplies_input_and_its_linear_map(tokens: torch.Tensor) -> None:
    module = CrossMixer(SIZES)
    flat = tokens.flatten(1)

    crossed = flat * (flat @ module.cross.weight.T + module.cross.bias)
    expected = module.map.weight @ crossed.view(7, 5, 4)
    assert torch.allclose(module(tokens), expected, atol=1e-5)


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
