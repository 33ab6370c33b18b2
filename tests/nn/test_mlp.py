"""Multi-layer perceptrons: the order of their parts, and what stays exact under autocast."""

import pytest
import torch

from tamis.nn.mlp import MLP, Dice, _parts


def _names(mlp: MLP) -> list[str]:
    return [type(layer).__name__ for layer in mlp.layers]


def test_hidden_layer_is_map_norm_activation_dropout() -> None:
    mlp = MLP(3, (4, 5), out_dim=2, activation="silu", dropout=0.5, norm="layer")

    assert _names(mlp) == ["Linear", "LayerNorm", "SiLU", "Dropout"] * 2 + ["Linear"]
    assert mlp.out_dim == 2


def test_last_hidden_layer_is_the_output_without_an_output_width() -> None:
    mlp = MLP(3, (4, 5), activation="none")

    assert _names(mlp) == ["Linear", "Linear"]
    assert mlp.out_dim == 5


def test_maps_before_batch_norm_have_no_bias() -> None:
    mlp = MLP(3, (4,), out_dim=2, norm="batch")

    assert mlp.layers[0].bias is None
    assert mlp.layers[-1].bias is not None


@pytest.mark.parametrize("makes_logits", [True, False])
def test_weights_start_from_xaviers_uniform_distribution_and_biases_from_zero(
    makes_logits: bool,
) -> None:
    torch.manual_seed(0)
    mlp = MLP(200, (100,), out_dim=60, makes_logits=makes_logits)

    for layer in (mlp.layers[0], mlp.layers[-1]):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert layer.weight.min().item() == pytest.approx(-bound, rel=0.01)
        assert layer.weight.max().item() == pytest.approx(bound, rel=0.01)
        assert not layer.bias.any()


@pytest.mark.parametrize("hidden_units", [(), (4,)])
def test_logits_are_float32_under_autocast(hidden_units: tuple[int, ...]) -> None:
    mlp = MLP(3, hidden_units, out_dim=1, makes_logits=True)
    last = mlp.layers[-1]
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    with torch.autocast("cpu", torch.bfloat16):
        logits = mlp(x)
        hidden = mlp.layers[:-1](x)

    assert logits.dtype == torch.float32
    expected = hidden.float() @ last.weight.T + last.bias
    # Only rounding of float32: bfloat16 would be off by 1 in 256.
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_dice_gates_by_the_place_in_the_batch() -> None:
    torch.manual_seed(0)
    dice = Dice(3)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.25, -1.0]))
    x = 3 * torch.randn(50, 3) + 2
    p = torch.sigmoid((x - x.mean(0)) / x.std(0, correction=0))

    torch.testing.assert_close(dice(x), p * x + (1 - p) * dice.alpha * x)


def test_dice_of_fewer_than_two_rows_keeps_the_running_statistics() -> None:
    dice = Dice(3)
    for rows in (0, 1):
        x = torch.full((rows, 3), 2.0)
        torch.testing.assert_close(dice(x), x * torch.sigmoid(x))
    assert dice.running_mean.tolist() == [0.0] * 3


def test_dice_moves_its_running_statistics_by_a_tenth() -> None:
    dice = Dice(1)
    dice(torch.tensor([[1.0], [3.0]]))

    # From 0 to the mean 2, and from 1 to the unbiased variance, 2 as well.
    assert dice.running_mean.item() == pytest.approx(0.2)
    assert dice.running_var.item() == pytest.approx(1.1)


def test_dice_follows_the_running_statistics_at_inference() -> None:
    torch.manual_seed(0)
    dice = Dice(3)
    for _ in range(200):
        dice(2 * torch.randn(64, 3) + 5)
    dice.eval()
    x = torch.tensor([[5.0, 7.0, 3.0]])

    assert dice.running_mean.tolist() == pytest.approx([5.0] * 3, abs=0.3)
    torch.testing.assert_close(
        dice(x), x * torch.sigmoid((x - dice.running_mean) / dice.running_var.sqrt())
    )


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_dice_are_those_of_its_formula_over_several_parts(training: bool) -> None:
    torch.manual_seed(0)
    dice = Dice(3).train(training)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.25, -1.0]))
        dice.running_mean.fill_(0.5)
    x = (3 * torch.randn(60_000, 3) + 2).requires_grad_()
    assert len(_parts(x)) > 1
    weights = torch.randn_like(x)
    found = torch.autograd.grad((dice(x) * weights).sum(), (x, dice.alpha))

    exact, alpha = x.detach().double().requires_grad_(), dice.alpha.detach().double()
    alpha.requires_grad_()
    mean, deviation = (exact.mean(0), exact.std(0, correction=0)) if training else (0.5, 1.0)
    p = torch.sigmoid((exact - mean) / deviation)
    expected = torch.autograd.grad(((p + (1 - p) * alpha) * exact * weights).sum(), (exact, alpha))
    torch.testing.assert_close(found[0], expected[0].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1].float(), rtol=1e-4, atol=1e-2)
