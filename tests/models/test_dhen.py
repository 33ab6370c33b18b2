"""DHEN's layer against its equation, and the promises that a stack of layers makes."""

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


def test_shortcut_is_the_identity_where_token_counts_match() -> None:
    sizes = MixerSizes(in_tokens=6, out_tokens=3, width=4)

    layer = DHENLayer(("linear", "linear"), sizes)

    assert isinstance(layer.shortcut, torch.nn.Identity)
    assert not list(layer.shortcut.parameters())


def test_norm_has_two_weights_per_dimension_whatever_the_tokens() -> None:
    for tokens in (3, 30):
        layer = DHENLayer(("linear",), MixerSizes(in_tokens=5, out_tokens=tokens, width=4))
        assert sum(p.numel() for p in layer.norm.parameters()) == 8


def test_first_layer_learns_through_both_modules_of_the_second() -> None:
    sizes = MixerSizes(in_tokens=5, out_tokens=3, width=4, dot_units=8)
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    for silenced in (0, 1):
        first = DHENLayer(("dot", "linear"), sizes)
        next_sizes = MixerSizes(in_tokens=6, out_tokens=3, width=4, dot_units=8)
        second = DHENLayer(("dot", "linear"), next_sizes, shortcut="none")
        with torch.no_grad():
            for parameter in second.mixers[silenced].parameters():
                parameter.zero_()
        weights = torch.linspace(-1, 1, 24).view(6, 4)
        (second(first(x)) * weights).sum().backward()

        gradient = first.mixers[0].mlp.layers[0].weight.grad
        assert gradient is not None
        assert gradient.norm() > 1e-4


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
