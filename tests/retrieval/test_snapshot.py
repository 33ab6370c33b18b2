"""Index snapshots: members, tree, representatives, versions, files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tamis import artifacts
from tamis.errors import ArtifactError, ConfigError, DataError
from tamis.models.hsnn import HSNN
from tamis.retrieval.snapshot import IndexSnapshot, churn, weights_version


def _paths(snapshot: IndexSnapshot) -> dict[int, tuple[int, ...]]:
    members = snapshot.members
    codes = members.codes.tolist()
    return {i: tuple(c) for i, c in zip(members.ids.tolist(), codes, strict=True)}


def _leaves(snapshot: IndexSnapshot) -> list[list[int]]:
    """Ids under each leaf, by walking down from the roots."""
    tree, ids = snapshot.tree, snapshot.members.ids
    nodes = [[node] for node in range(tree.num_nodes[0])]
    for level in range(len(tree.num_nodes)):
        nodes = [
            [child]
            for (node,) in nodes
            for child in tree.expand(level, torch.tensor([node]))[0].tolist()
        ]
    places = [place for (place,) in nodes]
    found: dict[tuple[int, ...], list[int]] = {}
    for place in places:
        path = tuple(snapshot.members.codes[place].tolist())
        found.setdefault(path, []).append(int(ids[place]))
    return list(found.values())


def test_codes_are_the_nearest_centres_of_what_is_left(world: Any, snapshot: IndexSnapshot) -> None:
    for item, path in _paths(snapshot).items():
        left = world.model.encode_items(world.features(torch.tensor([item])))[0].detach()
        for level, code in enumerate(path):
            distances = (left - snapshot.codebooks[level]).square().sum(1)
            assert distances[code].item() <= distances.min().item() + 1e-5
            left = left - snapshot.codebooks[level][code]


def test_every_item_is_under_exactly_one_leaf(snapshot: IndexSnapshot) -> None:
    under = [item for leaf in _leaves(snapshot) for item in leaf]

    assert sorted(under) == list(range(1, 301))
    assert len(_leaves(snapshot)) == snapshot.tree.num_nodes[1]
    assert snapshot.tree.num_nodes == tuple(
        len({path[: level + 1] for path in _paths(snapshot).values()}) for level in range(2)
    )


def test_children_of_a_node_are_those_of_its_prefix(snapshot: IndexSnapshot) -> None:
    tree, codes = snapshot.tree, snapshot.members.codes
    nodes = torch.tensor([3, 0, 4])
    children, lengths = tree.expand(0, nodes)
    parents = torch.repeat_interleave(nodes, lengths)

    for child, parent in zip(children.tolist(), parents.tolist(), strict=True):
        items, _ = tree.expand(1, torch.tensor([child]))
        above = codes[tree.representatives[0][parent], 0]
        assert bool((codes[items, 0] == above).all())
        assert codes[items, 1].unique().numel() == 1


def _nearest(snapshot: IndexSnapshot, level: int) -> set[int]:
    """The member of each node that is nearest to the node's vector, by brute force."""
    nodes: dict[tuple[int, ...], list[tuple[float, int]]] = {}
    for place, (item, path) in enumerate(_paths(snapshot).items()):
        vector = sum(snapshot.codebooks[n][path[n]] for n in range(level + 1))
        distance = float((snapshot.members.vectors[place] - vector).double().norm())
        nodes.setdefault(path[: level + 1], []).append((distance, item))
    return {min(members)[1] for members in nodes.values()}


@pytest.mark.parametrize("level", [0, 1])
def test_representative_is_the_member_nearest_to_its_node(
    snapshot: IndexSnapshot, level: int
) -> None:
    chosen = snapshot.members.ids[snapshot.tree.representatives[level]]

    assert set(chosen.tolist()) == _nearest(snapshot, level)


def test_representatives_of_items_are_those_of_their_nodes(snapshot: IndexSnapshot) -> None:
    ids = torch.tensor([300, 7, 7, 41])
    paths, chosen = _paths(snapshot), {}
    for level, places in enumerate(snapshot.tree.representatives):
        for place in places.tolist():
            path = tuple(snapshot.members.codes[place, : level + 1].tolist())
            chosen[path] = snapshot.members.vectors[place]

    for level, vectors in enumerate(snapshot.representatives_of(ids)):
        expected = torch.stack([chosen[paths[i][: level + 1]] for i in ids.tolist()])
        assert torch.equal(vectors, expected)
    with pytest.raises(DataError, match="ids must be indexed, got 999"):
        snapshot.representatives_of(torch.tensor([5, 999]))


def test_every_tensor_moves_to_another_device(snapshot: IndexSnapshot) -> None:
    moved = snapshot.to(torch.device("meta"))
    tensors = [*moved.codebooks, *moved.tree.children, *moved.tree.representatives]
    members = moved.members
    tensors += [members.ids, members.vectors, members.codes, members.distances]

    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.version == snapshot.version
    assert moved.tree.num_nodes == snapshot.tree.num_nodes


def test_removed_item_represents_nothing_any_more(snapshot: IndexSnapshot) -> None:
    for _ in range(3):
        dead = torch.cat([snapshot.members.ids[r] for r in snapshot.tree.representatives]).unique()
        snapshot = snapshot.remove(dead)
        for level, places in enumerate(snapshot.tree.representatives):
            chosen = set(snapshot.members.ids[places].tolist())
            assert not chosen & set(dead.tolist())
            assert chosen == _nearest(snapshot, level)


def test_nodes_without_items_are_gone(snapshot: IndexSnapshot) -> None:
    path = next(iter(_paths(snapshot).values()))
    gone = [item for item, other in _paths(snapshot).items() if other == path]
    left = snapshot.remove(torch.tensor(gone))

    assert left.tree.num_nodes[1] == snapshot.tree.num_nodes[1] - 1
    assert path not in _paths(left).values()


def test_add_then_remove_restores_the_snapshot(world: Any, snapshot: IndexSnapshot) -> None:
    ids = torch.arange(301, 340)
    grown = snapshot.add(world.model, ids, world.features(ids))
    restored = grown.remove(ids)

    assert grown.num_items == 339
    assert grown.version != snapshot.version == restored.version
    for name in ("ids", "vectors", "codes", "distances"):
        assert torch.equal(getattr(restored.members, name), getattr(snapshot.members, name))
    for field in ("children", "representatives"):
        pairs = zip(getattr(restored.tree, field), getattr(snapshot.tree, field), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_remove_then_add_by_content_is_the_same_where_the_id_says_nothing(
    world: Any, snapshot: IndexSnapshot
) -> None:
    # 400 and 800 are row 0 of the table: their vectors are those of their content already.
    ids = torch.tensor([400, 800])
    whole = snapshot.add(world.model, ids, world.features(ids))
    vectors = world.model.encode_items(world.features(ids))

    found = whole.members.vectors[torch.isin(whole.members.ids, ids)]
    order = whole.members.ids[torch.isin(whole.members.ids, ids)].argsort()
    torch.testing.assert_close(found[order], vectors.detach())


def test_added_items_are_placed_by_content_whatever_the_id_table_holds(
    world: Any, snapshot: IndexSnapshot
) -> None:
    ids = torch.arange(310, 350)
    features = world.features(ids)
    grown = snapshot.add(world.model, ids, features)
    other = world.features(ids)
    other.ids[:, 1] = 0  # no row of their own

    assert snapshot.add(world.model, ids, other).version == grown.version
    published = world.publish(ids)
    rows = torch.isin(grown.members.ids, ids)
    by_id = grown.members.ids[rows].argsort()
    assert not torch.allclose(
        grown.members.vectors[rows][by_id],
        published.members.vectors[published.members.ids.argsort()],
    )


def test_snapshot_does_not_depend_on_the_order_or_the_parts_of_the_corpus(
    world: Any, snapshot: IndexSnapshot
) -> None:
    order = torch.arange(1, 301)[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    parts = [(ids, world.features(ids)) for ids in order.split(47)]
    other = IndexSnapshot.publish(world.model, parts)

    assert torch.equal(other.members.ids, snapshot.members.ids)
    assert torch.equal(other.members.codes, snapshot.members.codes)
    for level in range(2):
        assert torch.equal(other.tree.representatives[level], snapshot.tree.representatives[level])
    # Rows of a matrix product may differ in the last bit with the rows beside them.
    torch.testing.assert_close(other.members.vectors, snapshot.members.vectors)


def test_version_follows_weights_codebooks_map_and_members(
    world: Any, snapshot: IndexSnapshot
) -> None:
    ids = torch.arange(1, 301)
    assert world.publish(ids).version == snapshot.version
    versions = {snapshot.version, world.publish(ids[:-1]).version}
    with torch.no_grad():
        world.model.levels[0].shift += 1e-3  # a weight that moves no item
    moved = world.publish(ids)
    versions.add(moved.version)
    assert moved.weights_version != snapshot.weights_version
    with torch.no_grad():
        world.model.index.codebook0[0, 0] += 1e-6
    versions.add(world.publish(ids).version)

    assert len(versions) == 4


def test_items_of_other_weights_are_refused(world: Any, snapshot: IndexSnapshot) -> None:
    with torch.no_grad():
        world.model.levels[2].shift += 1e-3
    ids = torch.tensor([301])

    with pytest.raises(ArtifactError, match="weights must be those it was published from"):
        snapshot.add(world.model, ids, world.features(ids))


def test_weights_version_knows_names_and_values(world: Any) -> None:
    before = weights_version(world.model)
    assert len(before) == 64
    with torch.no_grad():
        world.model.tokens.tables.weight[7, 0] += 1e-6

    assert weights_version(world.model) != before


def test_churn_counts_items_that_moved(world: Any, snapshot: IndexSnapshot) -> None:
    assert churn(snapshot, snapshot.remove(torch.tensor([5]))) == (0.0, 0.0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        table = world.model.tokens.tables.weight
        table += 0.3 * torch.randn(table.shape, generator=generator)
    later = world.publish(torch.arange(11, 321))
    before, after = _paths(snapshot), _paths(later)
    common = before.keys() & after.keys()
    expected = [
        sum(before[i][: n + 1] != after[i][: n + 1] for i in common) / len(common) for n in (0, 1)
    ]

    assert churn(snapshot, later) == pytest.approx(expected)
    assert 0 < expected[0] < expected[1]
    few = torch.arange(11, 20)
    some = [sum(before[i][: n + 1] != after[i][: n + 1] for i in few.tolist()) / 9 for n in (0, 1)]
    assert churn(snapshot, later, among=few) == pytest.approx(some)


# Files.


def test_snapshot_is_read_as_it_was_written(snapshot: IndexSnapshot, tmp_path: Path) -> None:
    snapshot.save(tmp_path / "index")
    read = IndexSnapshot.load(tmp_path / "index")

    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        "index.safetensors",
        "manifest.json",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert read.version == snapshot.version
    assert torch.equal(read.members.vectors, snapshot.members.vectors)
    assert all(
        torch.equal(a, b) for a, b in zip(read.tree.children, snapshot.tree.children, strict=True)
    )


def test_folder_that_exists_is_not_written_over(snapshot: IndexSnapshot, tmp_path: Path) -> None:
    snapshot.save(tmp_path / "index")

    with pytest.raises(DataError, match="must not exist or be empty, got files in it"):
        snapshot.save(tmp_path / "index")


def test_altered_file_is_refused(snapshot: IndexSnapshot, tmp_path: Path) -> None:
    snapshot.save(tmp_path / "index")
    path = tmp_path / "index" / "index.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    with pytest.raises(ArtifactError, match="It was altered after it was written"):
        IndexSnapshot.load(tmp_path / "index")


def _forge(folder: Path, changes: dict[str, torch.Tensor], **payload: str) -> None:
    """Write other tensors into a snapshot, with a manifest whose hashes fit."""
    path = folder / "index.safetensors"
    tensors = safetensors.torch.load_file(path) | changes
    safetensors.torch.save_file(tensors, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = {key: manifest[key] for key in ("stamp", "weights", "index_levels")}
    artifacts.write_manifest(
        folder, kind=manifest["kind"], version=1, files=[path], payload=kept | payload
    )


@pytest.mark.parametrize("part", ["codebook0", "codes", "representatives1", "weights"])
def test_parts_of_different_snapshots_are_refused(
    world: Any, snapshot: IndexSnapshot, tmp_path: Path, part: str
) -> None:
    snapshot.save(tmp_path / "index")
    shutil.copytree(tmp_path / "index", tmp_path / "mixed")
    if part == "weights":
        _forge(tmp_path / "mixed", {}, weights="0" * 64)
    else:
        tensors = safetensors.torch.load_file(tmp_path / "index" / "index.safetensors")
        _forge(tmp_path / "mixed", {part: tensors[part].roll(1, 0)})

    with pytest.raises(ArtifactError, match=r"must be of one snapshot .* got a mix with stamp"):
        IndexSnapshot.load(tmp_path / "mixed")


def test_file_without_a_part_is_refused(snapshot: IndexSnapshot, tmp_path: Path) -> None:
    snapshot.save(tmp_path / "index")
    _forge(tmp_path / "index", {}, index_levels="3")

    with pytest.raises(ArtifactError, match="must hold a whole snapshot, got KeyError"):
        IndexSnapshot.load(tmp_path / "index")


# What is refused.


def test_model_in_training_mode_is_refused(world: Any) -> None:
    world.model.train()

    with pytest.raises(ValueError, match=r"must be in evaluation mode, got training mode.* eval"):
        world.publish(torch.arange(1, 5))


def test_id_that_stands_twice_is_named(world: Any, snapshot: IndexSnapshot) -> None:
    ids = torch.tensor([3, 9, 3])
    with pytest.raises(DataError, match="ids must differ, got 3 twice"):
        world.publish(ids)
    with pytest.raises(DataError, match="ids must differ, got 300 twice"):
        snapshot.add(world.model, torch.tensor([300]), world.features(torch.tensor([300])))


def test_removal_names_an_id_that_is_not_there(snapshot: IndexSnapshot) -> None:
    with pytest.raises(DataError, match="ids to remove must be indexed, got 999"):
        snapshot.remove(torch.tensor([3, 999]))
    with pytest.raises(DataError, match="an item must be left, got all 300 to remove"):
        snapshot.remove(torch.arange(1, 301))


def test_ids_must_be_as_many_as_rows(world: Any, snapshot: IndexSnapshot) -> None:
    features = world.features(torch.tensor([301, 302]))

    with pytest.raises(DataError, match="as many as rows of features, got 1 and 2"):
        snapshot.add(world.model, torch.tensor([301]), features)


def test_corpus_without_items_is_refused(world: Any) -> None:
    with pytest.raises(DataError, match="the corpus must hold an item, got none"):
        IndexSnapshot.publish(world.model, [])


def test_item_without_a_finite_vector_is_named(world: Any) -> None:
    ids = torch.tensor([3, 8])
    features = world.features(ids)
    features.numeric[1, 1] = torch.nan

    with pytest.raises(DataError, match="item 8 must have a finite vector"):
        IndexSnapshot.publish(world.model, [(ids, features)])


@pytest.mark.parametrize(
    ("settings", "begins", "option"),
    [
        ({"start_steps": 9}, 9, "start_steps"),
        ({"index_learning": "em", "start_steps": 9}, 9, "start_steps"),
        ({"index_learning": "sil", "cluster_steps": 7}, 7, "cluster_steps"),
    ],
)
def test_index_that_does_not_exist_yet_is_not_published(
    world: Any, settings: dict[str, Any], begins: int, option: str
) -> None:
    model = HSNN(replace(world.model.config, **settings), world.model.spec).eval()
    ids = torch.arange(1, 20)
    corpus = [(ids, world.features(ids))]
    vectors = model.encode_items(corpus[0][1]).detach()
    for _ in range(begins - 1):
        model.index.advance(vectors)

    with pytest.raises(
        ConfigError,
        match=rf"which begins in step {begins}, got those of step {begins - 1}\. Train longer or "
        rf"lower model\.{option}\.",
    ):
        IndexSnapshot.publish(model, corpus)
    model.index.advance(vectors)
    assert IndexSnapshot.publish(model, corpus).num_items == 19
    # Without levels for nodes there is nothing to wait for.
    config = replace(model.config, levels=model.config.levels[-1:], codebooks=())
    assert IndexSnapshot.publish(HSNN(config, model.spec).eval(), corpus).num_items == 19
