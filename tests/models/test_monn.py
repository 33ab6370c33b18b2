"""MoNN against its parts one by one, in float64, and what its config refuses."""

import numpy as np
import pytest
import torch

from tamis.errors import ConfigError
from tamis.models.monn import MoNN, MoNNConfig


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _build(**options: object) -> MoNN:
    config = MoNNConfig(
        user_tokens=3, user_dim=5, width=4, module_tokens=2, head_units=(6,), **options
    )
    network = MoNN(config, item_tokens=2, item_dim=3, cross_tokens=1, cross_dim=7, num_tasks=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return network


def _towers(rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5), (2, 3), (1, 7))
    return tuple(torch.randn(rows, *shape, generator=generator) for shape in shapes)


def test_network_equals_its_equations_row_by_row() -> None:
    network = _build(modules=("linear", "dcn_paper"))
    layer = network.layers[0]
    towers = _towers(4)
    found = _array(network(*towers))

    for row in range(4):
        maps = (network.of_user, network.of_item, network.of_cross)
        # User, item and cross vectors in one width, one below the other.
        tokens = np.concatenate(
            [
                _array(x[row]) @ _array(m.layers[0].weight).T + _array(m.layers[0].bias)
                for m, x in zip(maps, towers, strict=True)
            ]
        )
        linear = _array(layer.mixers[0].map.weight) @ tokens
        gram = tokens.T @ tokens
        crossed = _array(layer.mixers[1].weight) @ gram + _array(layer.mixers[1].bias)
        x = np.concatenate([linear, crossed]) + _array(layer.shortcut.weight) @ tokens
        centred = x - x.mean(1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(1, keepdims=True) + layer.norm.eps)
        x = (x * _array(layer.norm.weight) + _array(layer.norm.bias)).reshape(-1)
        first, _, last = network.head.layers
        hidden = np.maximum(_array(first.weight) @ x + _array(first.bias), 0)
        expected = _array(last.weight) @ hidden + _array(last.bias)
        user, item = (_array(x[row]).reshape(-1) for x in towers[:2])
        product = network.product.layers[0]
        partner = _array(product.weight) @ user + _array(product.bias)
        expected = expected + partner.reshape(2, -1) @ item
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


def test_one_user_row_stands_for_every_pair() -> None:
    network = _build()
    user, items, cross = _towers(5)

    whole = network(user[:1].expand(5, -1, -1), items, cross)
    torch.testing.assert_close(network(user[:1], items, cross), whole)


def test_one_kind_of_module_is_no_ensemble() -> None:
    with pytest.raises(ConfigError, match=r"must name two different modules, got \('dot', 'dot'\)"):
        MoNNConfig(modules=("dot", "dot"))


def test_heads_must_divide_the_common_width() -> None:
    with pytest.raises(ConfigError, match=r"levels\.attention_heads: must divide width=16, got 3"):
        MoNNConfig(modules=("dot", "attention"), attention_heads=3)


@pytest.mark.parametrize("users", [1, 2, 3, 6])
def test_each_user_has_as_many_pairs_that_follow_each_other(users: int) -> None:
    network = _build()
    user, item, cross = _towers(6)
    user = user[:users]

    found = network(user, item, cross)

    owner = torch.arange(6) // (6 // users)
    torch.testing.assert_close(found, network(user[owner], item, cross))
