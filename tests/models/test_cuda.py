"""On a CUDA device every model computes what it computes on a CPU."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tamis.data.schema import InputSpec
from tamis.models import catalog
from tamis.testing import models as conformance
from tamis.training.objective import training_loss

pytestmark = pytest.mark.gpu


def _build(name: str, spec: InputSpec) -> nn.Module:
    entry = catalog.entry(name)
    torch.manual_seed(0)
    # No dropout: each device draws from a generator of its own.
    return entry.model(entry.config(), spec).eval()


def _pass(
    model: nn.Module, spec: InputSpec, device: str, *, is_bfloat16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of each parameter, on the CPU."""
    model = copy.deepcopy(model).to(device)
    batch = conformance.example_batch(spec, rows=200).to(torch.device(device))
    with torch.autocast(device, torch.bfloat16, is_bfloat16):
        output = model(batch)
    weights = torch.ones(len(spec.tasks), device=device)
    training_loss(output, batch.labels, batch.weights, spec.tasks, weights).backward()
    gradients = {
        key: value.grad.cpu().to_dense()
        for key, value in model.named_parameters()
        if value.grad is not None
    }
    return output.logits.detach().float().cpu(), gradients


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_logits_and_gradients_are_those_of_a_cpu(name: str) -> None:
    spec = conformance.example_spec(num_tasks=2)
    model = _build(name, spec)

    logits, gradients = _pass(model, spec, "cuda")

    expected_logits, expected = _pass(model, spec, "cpu")
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(float(value.abs().max()), 1e-6) if value.numel() else 1.0
        torch.testing.assert_close(
            gradients[key] / scale, value / scale, rtol=1e-3, atol=1e-3, msg=lambda m, k=key: k + m
        )


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_bfloat16_is_near_float32(name: str) -> None:
    spec = conformance.example_spec(num_tasks=2)
    model = _build(name, spec)

    logits, gradients = _pass(model, spec, "cuda", is_bfloat16=True)

    expected, _ = _pass(model, spec, "cpu")
    scale = max(1.0, float(expected.abs().max()))
    assert float((logits - expected).abs().max()) < 0.1 * scale
    assert all(value.isfinite().all() for value in gradients.values())


@pytest.mark.parametrize("name", catalog.CATALOG)
@pytest.mark.parametrize("longest", [0, 1])
def test_empty_histories_are_survived(name: str, longest: int) -> None:
    spec = conformance.example_spec()
    model = _build(name, spec).to("cuda")
    batch = conformance.example_batch(spec, longest=longest).to(torch.device("cuda"))

    assert model(batch).logits.isfinite().all()
