"""Levels of experts by themselves; the models that are built of them have files of their own."""

import pytest
import torch

from tamis.nn.experts import Experts, Fusion, Gates, NativePaths


def test_weights_of_native_experts_start_with_either_sign() -> None:
    torch.manual_seed(0)
    start = NativePaths(1, (400,), num_fusing=1, kind="paper").values["0"]

    # Uniform up to 400 ** -0.5.
    assert start.min().item() == pytest.approx(-0.05, rel=0.02)
    assert start.max().item() == pytest.approx(0.05, rel=0.02)


def test_both_forms_of_the_fusion_give_the_same() -> None:
    torch.manual_seed(0)
    counts = (3, 1)
    level = Fusion(
        Experts(4, (6, 5), counts),
        Gates(4, [range(4)] * 2, num_experts=4),
        NativePaths(4, counts, num_fusing=2, kind="paper"),
    )
    x = torch.randn(20, 4)
    units = [x, x]
    v = level.native.values["0"]  # of the first unit's three experts of four

    outputs, gates = level.experts(units), level.gates(units, x)[:, 0]
    two_terms = torch.einsum("be,beo->bo", gates, outputs)
    two_terms = two_terms + torch.einsum("e,beo->bo", v, outputs[:, :3])
    padded = torch.einsum("be,beo->bo", gates + torch.nn.functional.pad(v, (0, 1)), outputs)

    torch.testing.assert_close(two_terms, padded, atol=1e-6, rtol=0)
    torch.testing.assert_close(level(units, x)[0], two_terms, atol=1e-6, rtol=0)
