"""A rounded copy gives what autocast gives, shares what it does not round, and fuses ReLUs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamis.models import catalog
from tamis.nn.embedding import EmbeddingTables
from tamis.nn.mlp import MLP
from tamis.nn.rounded import RoundedLinear, linear_add_relu, linear_relu, rounded
from tamis.testing.models import example_batch, example_spec

_BF16 = torch.bfloat16


def _draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


_OTHERS = [(name, {"attention_activation": "relu"}) for name in ("din", "dmin")]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in catalog.CATALOG), *_OTHERS])
def test_every_model_predicts_rounded_what_it_predicts_under_autocast(
    name: str, options: dict[str, Any]
) -> None:
    entry = catalog.entry(name)
    spec = example_spec(num_tasks=2)
    torch.manual_seed(0)
    model = entry.model(entry.config(**options), spec).eval()
    for table in model.modules():
        if isinstance(table, EmbeddingTables):
            nn.init.normal_(table.weight, std=0.3)
    batch = example_batch(spec)

    copied = rounded(model)

    with torch.inference_mode():
        exact = model(batch).logits
        with torch.autocast("cpu", _BF16):
            wanted, found = model(batch).logits, copied(batch).logits
    # The same factors are rounded; sums may be added up in another order.
    off, allowed = (found - exact).abs().mean(), (wanted - exact).abs().mean()
    assert off <= 1.2 * allowed + 1e-6, (off, allowed)


def test_copy_shares_what_is_not_rounded_and_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), MLP(4, (1024, 64, 3), out_dim=1, makes_logits=True))
    model.eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    copied = rounded(model)

    assert copied[0].weight is model[0].weight
    first, second, third, activation, last = copied[1].layers
    assert isinstance(first, RoundedLinear)
    assert isinstance(second, RoundedLinear)
    assert first.has_relu
    assert second.has_relu
    # Few weights, and logits, are exact under autocast too.
    assert third.weight is model[1].layers[4].weight
    assert isinstance(activation, nn.ReLU)
    assert last.weight is model[1].layers[6].weight
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_without_autocast_the_copy_computes_what_the_model_does() -> None:
    model, x = MLP(64, (64, 64), out_dim=2).eval(), _draw(9, 64)

    assert torch.equal(rounded(model)(x), model(x))


@pytest.mark.parametrize("rows", [0, 1, 50])
@pytest.mark.parametrize("has_bias", [True, False])
def test_product_and_relu_in_one(rows: int, has_bias: bool) -> None:
    x, weight = _draw(rows, 24, dtype=_BF16), _draw(16, 24, seed=1, dtype=_BF16)
    bias = _draw(16, seed=2, dtype=_BF16) if has_bias else None

    with torch.inference_mode():
        found = linear_relu(x, weight, bias)

    wanted = F.relu(F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    assert found.dtype == _BF16
    torch.testing.assert_close(found.double(), wanted, rtol=2.0**-7, atol=2.0**-7)


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_product_sum_and_relu_in_one(rows: int) -> None:
    x, weight = _draw(rows, 24, dtype=_BF16), _draw(16, 24, seed=1, dtype=_BF16)
    other = _draw(rows, 16, seed=2, dtype=_BF16)
    before = other.clone()

    with torch.inference_mode():
        found = linear_add_relu(x, weight, other)
        exact = linear_add_relu(x.float(), weight.float(), other.float())

    wanted = F.relu(other.double() + F.linear(x.double(), weight.double()))
    assert found.dtype == _BF16
    torch.testing.assert_close(found.double(), wanted, rtol=2.0**-7, atol=2.0**-5)
    torch.testing.assert_close(exact.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(other, before)


def test_slices_other_types_and_gradients_are_served_as_well() -> None:
    x, wide = _draw(7, 8, dtype=_BF16), _draw(5, 20, seed=1, dtype=_BF16)
    with torch.inference_mode():
        torch.testing.assert_close(
            linear_relu(x, wide[:, 3:11], None), F.relu(F.linear(x, wide[:, 3:11]))
        )
        exact = linear_relu(x.float(), wide[:, :8].float(), None)
    assert exact.dtype == torch.float32
    weight = wide[:, :8].clone().requires_grad_()
    linear_relu(x, weight, None).sum().backward()
    linear_add_relu(x, weight, _draw(7, 5, seed=2, dtype=_BF16)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
