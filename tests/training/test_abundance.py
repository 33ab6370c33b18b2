"""Information abundance: known answers, and the tables that it is taken of."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tamis.data.dataset import Dataset
from tamis.models import catalog
from tamis.training import abundance
from tamis.training.abundance import information_abundance, table_abundances


def test_known_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(50, 3, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    table = left @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ right

    assert information_abundance(table) == pytest.approx(7 / 4)
    assert information_abundance(100 * table) == pytest.approx(7 / 4)
    assert information_abundance(torch.eye(3)) == pytest.approx(3)
    assert information_abundance(torch.outer(torch.ones(9), torch.ones(3))) == pytest.approx(1)
    assert information_abundance(torch.zeros(9, 3)) == 0


def test_a_table_in_parts_equals_the_singular_values_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = torch.randn(100, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)
    monkeypatch.setattr(abundance, "_ROWS_AT_ONCE", 7)
    singular = torch.linalg.svdvals(table.double())

    assert information_abundance(table) == pytest.approx(float(singular.sum() / singular[0]))


def test_each_member_has_tables_of_its_own_and_first_order_weights_have_none(
    make_dataset: Callable[..., Dataset],
) -> None:
    spec = make_dataset().spec
    members = ({"name": "deepfm", "embedding_dim": 4}, {"name": "dcn_v2", "embedding_dim": 8})
    entry = catalog.entry("cetnet")
    found = table_abundances(entry.model(entry.config(members=members), spec), spec)

    given = replace(spec, tables=(replace(spec.tables[0], vectors=4), *spec.tables[1:]))
    left = table_abundances(entry.model(entry.config(members=members), given), given)
    assert [item["table"] for item in left] == 2 * [table.name for table in spec.tables[1:]]
    assert [item["width"] for item in found] == [4] * len(spec.tables) + [8] * len(spec.tables)
    assert [item["table"] for item in found] == 2 * [table.name for table in spec.tables]
    assert {item["module"].split(".")[1] for item in found} == {"0", "1"}
    for item in found:
        assert 1 <= item["information_abundance"] <= item["width"]
