"""The catalog is complete, and every model in it passes the conformance suite."""

from pathlib import Path

import pytest
import torch

from tamis.errors import ConfigError
from tamis.models import catalog
from tamis.testing import models as conformance

_NOT_MODELS = {"__init__", "catalog", "output"}


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_model_passes_the_conformance_suite(name: str) -> None:
    entry = catalog.entry(name)

    conformance.check_model(entry.config, entry.model)


@pytest.mark.parametrize("name", [name for name in catalog.CATALOG if name not in ("lr", "fm")])
def test_model_memorises_64_rows(name: str) -> None:
    entry = catalog.entry(name)
    spec = conformance.example_spec()
    batch = conformance.example_batch(spec, rows=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = entry.model(entry.config(), spec)
    dense = [p for n, p in model.named_parameters() if not n.endswith("tables.weight")]
    tables = [p for n, p in model.named_parameters() if n.endswith("tables.weight")]
    optimizers = [torch.optim.Adam(dense, lr=3e-3), torch.optim.SparseAdam(tables, lr=0.02)]
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(batch).logits, batch.labels
        )
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    # A constant guess costs 0.69 nats; one row that is not learnt would cost more than 0.01.
    assert loss.item() < 0.02


def test_every_model_file_is_in_the_catalog() -> None:
    folder = Path(catalog.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - _NOT_MODELS

    assert {entry.model.__module__.rsplit(".", 1)[1] for entry in catalog.CATALOG.values()} == files


def test_unknown_model_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"got 'dcnv2'. Did you mean 'dcn_v2'\?"):
        catalog.entry("dcnv2")
