import pytest
import torch

from tamis.nn.dropout import Dropout


def test_zeroes_the_given_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    ones = torch.ones(1000, 401)
    dropped = Dropout(0.4)(ones)
    # 401,000 draws: the share has a standard deviation of 0.0008.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.4, abs=0.004)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.007)
    assert torch.allclose(dropped[dropped > 0], torch.tensor(1 / 0.6), rtol=1e-4)


@pytest.mark.parametrize("lane", range(4))
def test_every_lane_of_a_random_word_drops_alike(lane: int) -> None:
    torch.manual_seed(lane)
    dropped = Dropout(0.25)(torch.ones(100_000, 4))
    assert (dropped[:, lane] == 0).float().mean().item() == pytest.approx(0.25, abs=0.006)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    zero = (Dropout(0.5)(torch.ones(100_000, 4)) == 0).float()
    correlation = torch.corrcoef(zero.T) - torch.eye(4)
    assert correlation.abs().max().item() < 0.015


def test_gradient_flows_through_kept_units_only() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 8, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_same_seed_gives_the_same_mask() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(Dropout(0.3)(torch.ones(5, 7)))
    assert torch.equal(*masks)


def test_inference_changes_nothing() -> None:
    x = torch.randn(3, 5)
    assert Dropout(0.9).eval()(x) is x


def test_refuses_a_probability_of_one() -> None:
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\), got 1"):
        Dropout(1.0)
