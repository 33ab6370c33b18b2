"""What would expose an index that is none: each fault that a check is for, made on purpose."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.loader import Loader
from tamis.data.retrieval_task import read_task
from tamis.errors import TamisError
from tamis.models.hsnn import HSNN, HSNNConfig
from tamis.models.monn import MoNNConfig
from tamis.nn.residual_index import Quantised, ResidualIndex, nearest_path
from tamis.reproduce.retrieval import checks, searchers
from tamis.reproduce.retrieval.checks import checks_of
from tamis.reproduce.retrieval.searchers import Prepared
from tamis.reproduce.retrieval.table import RetrievalRows
from tamis.reproduce.retrieval.tables import RetrievalTable
from tamis.reproduce.training import train
from tamis.retrieval.search import Retriever
from tamis.retrieval.snapshot import IndexSnapshot
from tamis.training.predict import load_trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train_recipe(
    place: Path, tiny_table: RetrievalTable, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Prepared, Dataset]]:
    """Run of a recipe, and what it was trained and is published on."""
    recipes = place / "recipes" / "small"
    folder, _ = RetrievalRows(tiny_table).prepare(None, place / "work", recipes)
    task, dataset = read_task(folder / "task"), Dataset.open(folder / "dataset")
    encoders = Encoders.load(folder / "dataset" / "encoders", task.schema)
    prepared = Prepared.of(task, encoders, dataset.spec)

    def call(name: str) -> tuple[Path, Prepared, Dataset]:
        run = tmp_path_factory.mktemp("checks") / name
        train(folder / "dataset", recipe=recipes / f"{name}.toml", run=run)
        return run, prepared, dataset

    return call


@pytest.fixture(scope="module")
def world(
    train_recipe: Callable[[str], tuple[Path, Prepared, Dataset]],
) -> tuple[Path, Prepared, Dataset]:
    """Run of two index levels, learnt by gradients."""
    return train_recipe("deep")


def _holds(model: HSNN, prepared: Prepared, dataset: Dataset) -> dict[str, bool]:
    """Which checks hold of a model and the index that it publishes now."""
    snapshot = IndexSnapshot.publish(model, prepared.corpus)
    found = checks_of(model, snapshot, prepared, dataset)["checks"]
    return {check["check"]: check["holds"] for check in found}


@pytest.fixture(scope="module")
def sound(world: tuple[Path, Prepared, Dataset]) -> dict[str, bool]:
    """Which checks hold of the run as it is."""
    run, prepared, dataset = world
    model, _ = searchers.published(run, prepared, dataset)
    return _holds(model, prepared, dataset)


def test_sound_index_passes_what_is_asserted_and_reports_the_rest(
    world: tuple[Path, Prepared, Dataset],
) -> None:
    run, prepared, dataset = world
    model, snapshot = searchers.published(run, prepared, dataset)
    found = checks_of(model, snapshot, prepared, dataset)
    named = {check["check"]: check for check in found["checks"]}

    assert named["level 1: feedback on nodes moves the codebook"]["holds"]
    assert named["level 2: feedback on nodes moves the codebook"]["holds"]
    assert named["level 1: feedback on nodes moves the item tower"]["holds"]
    assert named["level 1: nodes differ between items"]["holds"]
    assert {name: len(levels) for name, levels in found["forward"].items()} == {
        "soft": 3,
        "hard": 3,
        "representative": 3,
    }

    # All test rows whose items lie under occupied nodes, in one batch.
    tests = dataset.split("test")
    loader = Loader(tests, dataset.spec, batch_size=tests.num_rows, seed=0, prefetch=1)
    (rows,) = loader.epoch(0)
    with torch.no_grad():
        codes, _ = nearest_path(model.encode_items(rows), snapshot.codebooks)
        predicted = torch.sigmoid(model.level_logits(rows, "hard")[:, :, 0].double())
    paths = set(map(tuple, snapshot.members.codes.tolist()))
    kept = torch.tensor([tuple(path) in paths for path in codes.tolist()])
    kept &= ~rows.labels.isnan().any(1)
    labels, weights = rows.labels[kept, 0].double(), rows.weights[kept, None]
    ratios = (weights * predicted[kept]).sum(0) / (weights[:, 0] * labels).sum()
    assert found["served"] == pytest.approx(ratios.tolist(), rel=1e-5)
    clicked = codes[kept][labels > 0]
    counts = torch.bincount(clicked[:, 0], minlength=4).double()
    assert counts.sum() > 0
    share = counts / counts.sum()
    traffic = found["traffic"][0]
    assert traffic["perplexity"] == pytest.approx(float(torch.special.entr(share).sum().exp()))
    nodes = snapshot.tree.num_nodes[0]
    assert traffic["largest_to_mean"] == pytest.approx(float(counts.max() / counts.sum() * nodes))
    assert [level["codes"] for level in found["traffic"]] == [4, 3]


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
    found = checks_of(model, snapshot, prepared, dataset)["checks"]
    failed = {check["check"]: check["value"] for check in found if not check["holds"]}

    assert failed["level 1: perplexity at least half of the codes"] == pytest.approx(1 / 4)
    assert failed["level 1: at most a tenth of the codes dead"] == pytest.approx(3 / 4)


def test_node_with_nearly_all_items_is_too_large(world: tuple[Path, Prepared, Dataset]) -> None:
    _, prepared, dataset = world
    torch.manual_seed(0)
    # Untrained: the run of the others has fewer than eleven nodes at its first level.
    levels = (MoNNConfig(), MoNNConfig())
    config = HSNNConfig(item_dim=8, codebooks=(16,), levels=levels, init_std=1.0)
    model = HSNN(config, prepared.spec).eval()
    with torch.no_grad():
        items = torch.cat([model.encode_items(items) for _, items in prepared.corpus])
        # Vectors have length 1: one that is nearly twice as long is nearest to its item alone.
        model.codebooks[0].copy_(torch.cat([torch.zeros(1, 8), 1.99 * items[:15]]))

    holds = _holds(model, prepared, dataset)

    assert holds["level 1: at most a tenth of the codes dead"]
    assert not holds["level 1: largest node at most 10 times the mean"]


def test_memberships_that_stay_flat_are_told(
    world: tuple[Path, Prepared, Dataset], sound: dict[str, bool]
) -> None:
    run, prepared, dataset = world
    model, _ = searchers.published(run, prepared, dataset)
    model.index.alpha_max = 1e-3  # for distances around 1

    holds = _holds(model, prepared, dataset)

    for level in (1, 2):
        for check in ("nodes differ between items", "entropy of memberships below 0.5 nat"):
            name = f"level {level}: {check}"
            assert (sound[name], holds[name]) == (True, False), name


def test_second_level_that_describes_nothing_is_told(
    world: tuple[Path, Prepared, Dataset], sound: dict[str, bool]
) -> None:
    run, prepared, dataset = world
    model, _ = searchers.published(run, prepared, dataset)
    with torch.no_grad():
        model.codebooks[1].zero_()

    holds = _holds(model, prepared, dataset)

    for name in (
        "mean length of residuals falls with every level",
        "shuffled codes of the second level leave more over",
    ):
        assert (sound[name], holds[name]) == (True, False), name


@pytest.mark.parametrize(("factor", "expected"), [(1.0, True), (0.0, False), (-1.0, False)])
def test_features_of_pairs_that_are_not_read_or_misread_are_told(
    world: tuple[Path, Prepared, Dataset],
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    expected: bool,
) -> None:
    run, prepared, dataset = world
    model, _ = searchers.published(run, prepared, dataset)
    (column,) = dataset.spec.numeric_of("context")
    rows_of, logits_of = checks._shuffled, HSNN.level_logits

    def telling(dataset: Dataset, split: str) -> Iterator[Batch]:
        """Rows whose feature of the pair is the very label."""
        for rows in rows_of(dataset, split):
            numeric = rows.numeric.clone()
            numeric[:, column] = rows.labels[:, 0].nan_to_num()
            yield replace(rows, numeric=numeric)

    def read(self: HSNN, rows: Batch, nodes: Any) -> torch.Tensor:
        return logits_of(self, rows, nodes) + factor * rows.numeric[:, column, None, None]

    with torch.no_grad():  # by itself the model reads nothing of pairs
        assert model.cross_tower is not None
        for parameter in model.cross_tower.parameters():
            parameter.zero_()
    monkeypatch.setattr(checks, "_shuffled", telling)
    monkeypatch.setattr(HSNN, "level_logits", read)

    assert _holds(model, prepared, dataset)["permuted features of pairs raise the NE"] is expected


@pytest.mark.parametrize("by", [0.3, -0.3])
def test_level_that_is_shifted_off_the_labels_is_told(
    world: tuple[Path, Prepared, Dataset], by: float
) -> None:
    run, prepared, dataset = world
    model, _ = searchers.published(run, prepared, dataset)
    # To the very rows that are checked: the others are too few here to tell their rate.
    model.shift_to(searchers.shifting_rows(dataset)[1])
    with torch.no_grad():
        model.levels[1].shift.add_(by)

    holds = _holds(model, prepared, dataset)

    name = "level {}: shifted predictions add up to other labels within 2 %"
    assert [holds[name.format(level)] for level in (1, 2, 3)] == [True, False, True]


def test_search_that_scores_everything_whatever_its_beams_is_exposed(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    search = Retriever.search

    def everything(self: Retriever, request: Any, k: int, beams: Any) -> Any:
        return search(self, request, k, self.snapshot.tree.num_nodes)

    monkeypatch.setattr(Retriever, "search", everything)
    with pytest.raises(TamisError, match="must keep no more nodes than its beams are wide"):
        checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)


def test_search_that_scores_everything_and_tells_of_what_it_kept_is_exposed(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    search = Retriever.search

    def sorted_first(self: Retriever, request: Any, k: int, beams: Any) -> Any:
        search(self, request, k, self.snapshot.tree.num_nodes)
        return search(self, request, k, beams)

    monkeypatch.setattr(Retriever, "search", sorted_first)
    with pytest.raises(TamisError, match="must be those under the nodes that are kept, got"):
        checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)


def test_search_that_scores_more_under_fewer_nodes_is_exposed(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    search = Retriever.search

    def contrary(self: Retriever, request: Any, k: int, beams: Any) -> Any:
        """The largest leaf for a beam of one, else the two smallest."""
        tree = self.snapshot.tree
        sizes = tree.bounds(1).diff()
        leaves = sizes.argsort(descending=beams[-1] == 1)[: 2 - (beams[-1] == 1)]
        if tuple(beams) == tree.num_nodes:
            leaves = torch.arange(len(sizes))
        of_item = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        allowed = torch.isin(of_item, leaves)
        return search(self, request, k, tree.num_nodes, allowed=allowed)

    monkeypatch.setattr(Retriever, "search", contrary)
    with pytest.raises(TamisError, match="fewer beams must score fewer items"):
        checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)


@pytest.mark.parametrize(
    ("level", "offset", "must"),
    [
        (0, -1, "every item must be under exactly one leaf, got"),  # the last leaf hangs on nothing
        (1, 1, "the items of a leaf must be those of one path, got"),  # the next leaf's first item
    ],
)
def test_tree_that_does_not_fit_its_items_is_exposed(
    world: tuple[Path, Prepared, Dataset], level: int, offset: int, must: str
) -> None:
    run, prepared, dataset = world
    model, snapshot = searchers.published(run, prepared, dataset)
    children = [offsets.clone() for offsets in snapshot.tree.children]
    children[level][offset] += 1 if level else -1
    broken = replace(snapshot, tree=replace(snapshot.tree, children=tuple(children)))

    with pytest.raises(TamisError, match=must):
        checks_of(model, broken, prepared, dataset)


def test_items_placed_by_more_than_their_content_are_exposed(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    encode = HSNN.encode_items

    def by_id(self: HSNN, items: Batch, *, by_content: bool = False) -> torch.Tensor:
        del by_content
        return encode(self, items)

    monkeypatch.setattr(HSNN, "encode_items", by_id)
    with pytest.raises(TamisError, match="must not depend on the table of ids"):
        checks_of(*searchers.published(run, prepared, dataset), prepared, dataset)


def test_codebook_that_feedback_does_not_reach_is_told_at_its_level(
    world: tuple[Path, Prepared, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = world
    forward = ResidualIndex.forward

    def detached(self: ResidualIndex, vectors: torch.Tensor) -> Quantised:
        found = forward(self, vectors)
        return replace(found, nodes=(found.nodes[0], found.nodes[1].detach()))

    model, snapshot = searchers.published(run, prepared, dataset)
    monkeypatch.setattr(ResidualIndex, "forward", detached)
    found = checks_of(model, snapshot, prepared, dataset)["checks"]
    named = {check["check"]: check["holds"] for check in found}

    assert named["level 1: feedback on nodes moves the codebook"]
    assert not named["level 2: feedback on nodes moves the codebook"]


def test_gap_of_an_index_learnt_apart_is_to_what_a_search_reads_of_its_nodes(
    train_recipe: Callable[[str], tuple[Path, Prepared, Dataset]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared, dataset = train_recipe("apart")
    model, snapshot = searchers.published(run, prepared, dataset)
    of, asked = IndexSnapshot.node_vectors, list[int]()

    def later_others(self: IndexSnapshot) -> tuple[torch.Tensor, ...]:
        """Those of the index for the search, which is checked by itself; then its opposites."""
        asked.append(1)
        return tuple(vectors if len(asked) == 1 else -vectors for vectors in of(self))

    def gap() -> dict[str, Any]:
        checks = checks_of(model, snapshot, prepared, dataset)["checks"]
        return next(check for check in checks if check["check"].startswith("NE of every level"))

    sound = gap()
    monkeypatch.setattr(IndexSnapshot, "node_vectors", later_others)
    assert sound["value"] == pytest.approx(0.0, abs=1e-5)
    assert sound["holds"]
    assert gap()["value"] > 1e-3


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
