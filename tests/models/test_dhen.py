"""DHEN's layer against its equation, and the promises that a stack of layers makes."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from tamis.errors import ConfigError
from tamis.models.dhen import DHEN, DHENConfig, DHENLayer, Shortcut, dhen_layers
from tamis.nn.token_mixers import MixerName, MixerSizes
from tamis.testing.models import example_batch, example_spec


def _identity_layer(norm: bool, ensemble: str = "sum") -> DHENLayer:
    """One linear module that is the identity on one token of width 2."""
    sizes = MixerSizes(in_tokens=1, out_tokens=1, width=2)
    layer = DHENLayer(("linear",), sizes, ensemble=ensemble, norm=norm)
    with torch.no_grad():
        layer.mixers[0].map.weight.fill_(1.0)
        if norm:
            layer.norm.eps = 0.0
    return layer


def test_layer_of_an_identity_module_doubles_before_the_norm() -> None:
    x = torch.tensor([[[1.0, 3.0]]])

    # Module X plus shortcut X is 2X = (2, 6); its layer norm is (-1, 1).
    assert _identity_layer(norm=False)(x).tolist() == [[[2.0, 6.0]]]
    assert _identity_layer(norm=True)(x).tolist() == [[[-1.0, 1.0]]]


def test_layer_of_a_zero_module_is_the_norm_of_its_input() -> None:
    x = torch.tensor([[[1.0, 3.0]]])
    with_norm, without = _identity_layer(norm=True), _identity_layer(norm=False)
    with torch.no_grad():
        for layer in (with_norm, without):
            layer.mixers[0].map.weight.zero_()

    assert without(x).tolist() == [[[1.0, 3.0]]]
    assert with_norm(x).tolist() == [[[-1.0, 1.0]]]


@pytest.mark.parametrize("ensemble", ["concat", "sum", "weighted_sum"])
@pytest.mark.parametrize("position", ["post_sum", "pre_sum"])
@pytest.mark.parametrize("shortcut", ["linear", "mlp", "none"])
def test_layer_equals_its_equation(ensemble: str, position: str, shortcut: str) -> None:
    sizes = MixerSizes(in_tokens=5, out_tokens=3, width=4, dot_units=8)
    layer = DHENLayer(
        ("dot", "linear"), sizes, ensemble=ensemble, shortcut=shortcut, norm_position=position
    )
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    first, second = (mixer(x) for mixer in layer.mixers)
    if ensemble == "concat":
        fused = torch.cat([first, second], dim=1)
    elif ensemble == "sum":
        fused = first + second
    else:
        with torch.no_grad():
            layer.mixer_weight.copy_(torch.tensor([2.0, -1.0]))
        fused = 2 * first - second
    added = 0.0
    if shortcut == "linear":
        added = layer.shortcut.weight @ x
    elif shortcut == "mlp":
        added = layer.shortcut.mlp(x.transpose(1, 2)).transpose(1, 2)

    def norm(value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(value, (4,))

    expected = norm(fused) + added if position == "pre_sum" else norm(fused + added)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("shortcut", ["linear", "mlp"])
def test_shortcut_is_the_identity_where_token_counts_match(shortcut: Shortcut) -> None:
    sizes = MixerSizes(in_tokens=6, out_tokens=3, width=4)

    layer = DHENLayer(("linear", "linear"), sizes, shortcut=shortcut)

    assert isinstance(layer.shortcut, torch.nn.Identity)
    assert not list(layer.shortcut.parameters())


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("out_tokens", [3, 30])
def test_layer_has_the_parameters_of_modules_shortcut_and_norm(out_tokens: int) -> None:
    m, l, d = 5, out_tokens, 4  # noqa: E741  (the paper's letters)
    sizes = MixerSizes(in_tokens=m, out_tokens=l, width=d, linear_bias=True)

    layer = DHENLayer(("linear", "dcn_paper"), sizes)

    # Linear m l + l; DCN 2 l d; the shortcut m m' without bias, m' = 2 l tokens; the norm 2 d.
    assert _count(layer.shortcut) == m * 2 * l
    assert _count(layer.norm) == 2 * d
    assert _count(layer) == (m * l + l) + 2 * l * d + m * 2 * l + 2 * d


def test_layer_has_the_parameters_of_zhen() -> None:
    modules = ("dot", "linear", "attention", "conv")
    sizes = MixerSizes(
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
    with torch.device("meta"):
        layer = DHENLayer(modules, sizes, norm_position="pre_sum")

    counts = [71_356_544, 18_500, 280_960 + 18_500, 26 + 18_500]
    assert [_count(mixer) for mixer in layer.mixers] == counts
    assert _count(layer.norm) == 128
    assert _count(layer.shortcut) == 369 * 200
    assert _count(layer) == sum(counts) + 128 + 369 * 200


def test_every_option_of_a_module_reaches_it() -> None:
    options = {
        "dot_units": 3,
        "dot_pairs": "full",
        "attention_heads": 2,
        "attention_units": 5,
        "attention_dropout": 0.25,
        "attention_compress_first": True,
        "attention_qkv_bias": False,
        "conv_channels": 2,
        "conv_kernel": 3,
        "linear_bias": True,
        "dcn_residual": True,
    }
    by_layer = {"in_tokens": 5, "out_tokens": 3, "width": 4}

    sizes = DHENConfig(embedding_dim=4, module_tokens=3, **options).mixer_sizes(5)

    expected = by_layer | options
    assert {item.name for item in fields(sizes)} == {*expected, "start_scale"}
    assert {name: getattr(sizes, name) for name in expected} == expected
    assert not any(getattr(DHENConfig(), name) == value for name, value in options.items())


OPTIONS = (
    {},
    {"ensemble": "sum", "module_tokens": 3},
    {"ensemble": "weighted_sum", "module_tokens": 3},
    {"ensemble": "sum", "module_tokens": 4},  # as many tokens as enter: no map in the shortcut
    {"shortcut": "mlp"},
    {"shortcut": "none"},
    {"norm": False},
    {"norm_position": "pre_sum", "num_layers": 3},
    {"linear_bias": True, "dcn_residual": True},
    {"dot_pairs": "diagonal"},
    {"dot_pairs": "full"},
    {"layers": (("dot",), ("linear", "linear", "dcn_v2"))},
    {"num_dense_tokens": 2, "dense_units": ()},
    {"activation": "tanh"},
    {"head_norm": "layer"},
    {"head_norm": "batch"},
)


def _mapped(reference, token_map, has_bias: bool, x: np.ndarray) -> np.ndarray:
    # u_l = sum_m W_lm x_m (+ b_l); rows of x are tokens.
    weight = reference.array(token_map.weight)
    out = np.zeros((len(weight), x.shape[1]))
    for to, token in itertools.product(range(len(weight)), range(len(x))):
        out[to] += weight[to, token] * x[token]
    assert (token_map.bias is not None) == has_bias
    return out + reference.array(token_map.bias) if has_bias else out


def _mixed(reference, name: str, mixer, config: DHENConfig, x: np.ndarray) -> np.ndarray:
    if name == "linear":
        return _mapped(reference, mixer.map, config.linear_bias, x)
    if name == "dcn_v2":
        # x_0 * (W x_0 + b) (+ x_0) on the flat tokens, then a map of tokens.
        flat = x.ravel()
        crossed = flat * reference.linear(mixer.cross, flat)
        crossed = crossed + flat if config.dcn_residual else crossed
        return _mapped(reference, mixer.map, config.linear_bias, crossed.reshape(x.shape))
    # Inner products s_ij, j < i unless told otherwise, through an MLP of one hidden layer.
    last = {"upper": lambda i: i, "diagonal": lambda i: i + 1, "full": lambda _: len(x)}
    pairs = [(i, j) for i in range(len(x)) for j in range(last[config.dot_pairs](i))]
    products = np.array([np.dot(x[i], x[j]) for i, j in pairs])
    return reference.mlp(mixer.mlp, products, num_hidden=1).reshape(-1, x.shape[1])


def _layer(
    reference, layer, names: tuple[str, ...], config: DHENConfig, x: np.ndarray, *, last: bool
) -> np.ndarray:
    mixers = zip(names, layer.mixers, strict=True)
    outputs = [_mixed(reference, name, mixer, config, x) for name, mixer in mixers]
    if config.ensemble == "concat":
        fused = np.concatenate(outputs)
    else:
        is_weighted = config.ensemble == "weighted_sum"
        weights = reference.array(layer.mixer_weight) if is_weighted else np.ones(len(outputs))
        fused = sum(weight * output for weight, output in zip(weights, outputs, strict=True))

    def norm(tokens: np.ndarray) -> np.ndarray:
        return np.stack([reference.layer_norm(layer.norm, token) for token in tokens])

    norm = norm if config.norm else lambda tokens: tokens
    if config.shortcut == "none" or (config.norm_position == "pre_sum" and last):
        return norm(fused)
    if len(fused) == len(x):
        added = x
    elif config.shortcut == "linear":
        added = _mapped(reference, layer.shortcut, False, x)
    else:
        # The same MLP, of one hidden layer of m' units, over the tokens of each dimension.
        mlp = layer.shortcut.mlp
        added = np.stack([reference.mlp(mlp, column, num_hidden=1) for column in x.T], axis=1)
    # Equation (1): X_{n+1} = Norm(Ensemble_i Module_i(X_n) + ShortCut(X_n)); ZHEN's norm is inside.
    return norm(fused) + added if config.norm_position == "pre_sum" else norm(fused + added)


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_equal_equations_1_and_2(reference, options: dict) -> None:
    base = {
        "embedding_dim": 3,
        "module_tokens": 2,
        "dot_units": 12,
        "dense_units": (4,),
        "head_units": (12, 10),
    }
    config = DHENConfig(**(base | options))
    model = reference.build(DHEN, config)
    names_of = config.layers or (("dot", "linear", "dcn_v2"),) * config.num_layers

    def logits(row: int) -> np.ndarray:
        num_hidden = len(config.dense_units)
        x = np.stack(reference.dense_side_tokens(model.tokens, row, num_hidden=num_hidden))
        assert len(x) == 3 + config.num_dense_tokens
        for index, (names, layer) in enumerate(zip(names_of, model.layers, strict=True)):
            x = _layer(reference, layer, names, config, x, last=index == len(names_of) - 1)
        return reference.mlp(
            model.head,
            x.ravel(),
            num_hidden=2,
            norm=config.head_norm,
            activation=config.activation,
        )

    reference.check(model, logits)


@pytest.mark.parametrize("modules", [("dot", "linear"), ("dcn_paper", "attention")])
@pytest.mark.parametrize("learning", [0, 1])
@pytest.mark.parametrize("silenced", [(), (0,), (1,), (0, 1)])
def test_each_module_of_a_layer_learns_through_each_of_the_next(
    modules: tuple[MixerName, ...], learning: int, silenced: tuple[int, ...]
) -> None:
    sizes = MixerSizes(in_tokens=5, out_tokens=3, width=4, dot_units=8)
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    first = DHENLayer(modules, sizes)
    second = DHENLayer(modules, replace(sizes, in_tokens=6), shortcut="none")
    with torch.no_grad():
        for index in silenced:
            for parameter in second.mixers[index].parameters():
                parameter.zero_()
    weights = torch.linspace(-1, 1, 24).view(6, 4)
    (second(first(x)) * weights).sum().backward()

    gradients = [parameter.grad for parameter in first.mixers[learning].parameters()]
    # Where one module of the second layer emits 0 the other is the only way; where both do, none.
    is_alive = len(silenced) < 2
    assert all(bool(gradient.norm() > 1e-6) == is_alive for gradient in gradients)


def _gradient_norm_at_the_input(
    modules: tuple[MixerName, ...], num_layers: int, shortcut: Shortcut, seed: int
) -> float:
    torch.manual_seed(seed)
    config = DHENConfig(
        num_layers=num_layers,
        modules=modules,
        module_tokens=8 // len(modules),
        shortcut=shortcut,
        dot_units=32,
    )
    layers, _ = dhen_layers(config, 8)
    x = torch.randn(64, 8, config.embedding_dim, requires_grad=True)
    (layers(x) * torch.randn(8, config.embedding_dim)).sum(dim=(1, 2)).mean().backward()
    assert x.grad is not None
    return float(x.grad.norm())


@pytest.mark.parametrize(
    "modules",
    [("linear", "dot"), ("dot", "dcn_v2"), ("dcn_v2", "linear"), ("dcn_paper", "linear"), ("dot",)],
)
def test_shortcut_keeps_the_gradient_of_32_layers_alive(modules: tuple[MixerName, ...]) -> None:
    with torch.random.fork_rng():
        for seed in range(3):
            one = _gradient_norm_at_the_input(modules, 1, "linear", seed)
            deep = _gradient_norm_at_the_input(modules, 32, "linear", seed)
            cut = _gradient_norm_at_the_input(modules, 32, "none", seed)

            assert 0.1 < deep / one < 10
            assert not 0.1 < cut / one < 10


def test_layers_may_differ_and_hold_a_module_twice() -> None:
    config = DHENConfig(
        layers=(("attention", "linear"), ("dot", "dot"), ("conv", "dcn_paper", "dcn_v2")),
        module_tokens=3,
    )
    spec = example_spec(num_tasks=2)

    model = DHEN(config, spec)

    assert [len(layer.mixers) for layer in model.layers] == [2, 2, 3]
    assert model(example_batch(spec)).logits.shape == (40, 2)


def test_zhen_order_has_no_shortcut_in_the_last_layer() -> None:
    model = DHEN(DHENConfig(norm_position="pre_sum", num_layers=3), example_spec())

    assert [layer.shortcut is None for layer in model.layers] == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": ()}, "every layer must hold a module"),
        ({"modules": ("attention",), "attention_heads": 3}, "must divide embedding_dim=16, got 3"),
        ({"conv_kernel": 4}, "conv_kernel: must be odd, got 4"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DHENConfig(**settings)
