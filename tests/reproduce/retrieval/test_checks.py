"""What would expose an index that is none: each fault that a check is for, made on purpose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.retrieval_task import read_task
from tamis.errors import TamisError
from tamis.models.hsnn import HSNN
from tamis.reproduce.make import MadeTable
from tamis.reproduce.retrieval import searchers
from tamis.reproduce.retrieval.checks import checks_of
from tamis.reproduce.retrieval.searchers import Prepared
from tamis.reproduce.retrieval.tables import RetrievalTable
from tamis.retrieval.search import Retriever
from tamis.retrieval.snapshot import IndexSnapshot
from tamis.training.predict import load_trained

pytestmark = pytest.mark.slow


@pytest.fixture
def world(
    place: Path, make_tiny: Callable[[RetrievalTable], MadeTable], tiny_table: RetrievalTable
) -> tuple[Path, Prepared, Dataset]:
    """Run of two index levels, and what it was trained and is published on."""
    make_tiny(tiny_table)
    (run,) = (place / "work" / "tiny" / "trained" / "deep").glob("*-seed0")
    (folder,) = (place / "work" / "tasks").glob("market_ads-*")
    task, dataset = read_task(folder / "task"), Dataset.open(folder / "dataset")
    encoders = Encoders.load(folder / "dataset" / "encoders", task.schema)
    return run, Prepared.of(task, encoders, dataset.spec), dataset


def test_sound_index_passes_what_is_asserted_and_reports_the_rest(
    world: tuple[Path, Prepared, Dataset],
) -> None:
    run, prepared, dataset = world
    found, forward = checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)
    named = {check["check"]: check for check in found}

    assert named["feedback on nodes moves the codebook"]["holds"]
    assert named["feedback on nodes moves the item tower"]["holds"]
    assert named["level 1: nodes differ between items"]["holds"]
    assert {name: len(levels) for name, levels in forward.items()} == {
        "soft": 3,
        "hard": 3,
        "representative": 3,
    }


def test_what_is_published_is_shifted_to_half_of_the_rows_and_checked_on_the_others(
    world: tuple[Path, Prepared, Dataset],
) -> None:
    run, prepared, dataset = world
    model, _ = searchers.published(run, prepared, dataset)
    plain = load_trained(run).module.eval()
    assert isinstance(plain, HSNN)
    shifted, others = searchers.shifting_rows(dataset)

    plain.shift_to(shifted)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    seen, unseen = (torch.cat([rows.ids for rows in half]) for half in (shifted, others))
    assert len(seen) + len(unseen) == dataset.split("train").num_rows
    assert 0 <= len(seen) - len(unseen) <= len(shifted)


def test_collapsed_codebook_fails_the_checks_of_its_spread(
    world: tuple[Path, Prepared, Dataset],
) -> None:
    run, prepared, dataset = world
    model, _ = searchers.published(run, prepared, dataset)
    with torch.no_grad():
        first = model.codebooks[0]
        first[1:] = 100.0  # no item is near to any but the first
    snapshot = IndexSnapshot.publish(model, prepared.corpus)
    found, _ = checks_of(model, snapshot, prepared, dataset)
    failed = {check["check"]: check["value"] for check in found if not check["holds"]}

    assert failed["level 1: perplexity at least half of the codes"] == pytest.approx(1 / 4)
    assert failed["level 1: at most a tenth of the codes dead"] == pytest.approx(3 / 4)


def test_search_that_scores_everything_whatever_its_beams_is_exposed(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    search = Retriever.search

    def everything(self: Retriever, request: Any, k: int, beams: Any) -> Any:
        return search(self, request, k, self.snapshot.tree.num_nodes)

    monkeypatch.setattr(Retriever, "search", everything)
    with pytest.raises(TamisError, match="fewer beams must score fewer items"):
        checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)


def test_search_that_forgets_the_coarser_levels_is_exposed(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    of = IndexSnapshot.node_vectors

    def others(self: IndexSnapshot) -> tuple[torch.Tensor, ...]:
        return tuple(-vectors for vectors in of(self))

    monkeypatch.setattr(IndexSnapshot, "node_vectors", others)
    with pytest.raises(TamisError, match="must give the scores of every level"):
        checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)


def test_index_that_keeps_what_was_removed_is_exposed(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    monkeypatch.setattr(IndexSnapshot, "remove", lambda self, ids: self)
    with pytest.raises(TamisError, match="a removed item must not stand for a node"):
        checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)


def test_items_that_are_placed_by_content_do_not_know_their_ids(
    world: tuple[Path, Prepared, Dataset],
) -> None:
    run, prepared, dataset = world
    retriever = Retriever(*searchers.published(run, prepared, dataset))
    column, _ = retriever.scorer.place_of_id
    has_row = torch.cat([items.ids[:, column] > 0 for _, items in prepared.corpus]).numpy()
    chosen = has_row & (np.arange(len(has_row)) % 3 == 0)

    placed = searchers.placed_by_content(retriever, prepared.corpus, chosen)

    def vectors(one: Retriever) -> torch.Tensor:
        members = one.snapshot.members
        return members.vectors[torch.argsort(members.ids)]

    before, after = vectors(retriever), vectors(placed)
    with torch.no_grad():
        by_content = torch.cat(
            [retriever.scorer.encode_items(items, by_content=True) for _, items in prepared.corpus]
        )
    assert chosen.any()
    assert torch.equal(after[~chosen], before[~chosen])
    torch.testing.assert_close(after[chosen], by_content[chosen])
    assert not torch.allclose(after[chosen], before[chosen])
