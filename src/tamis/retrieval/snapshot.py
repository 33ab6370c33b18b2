"""A published index: which items there are, where they stand, and which weights put them there.

A snapshot is a value. Adding or removing items gives another one, made from its members alone, so
that neither the order of items nor the way they came in can be told from it.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import safetensors.torch
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from tamis import artifacts
from tamis.data.batch import Batch
from tamis.errors import ArtifactError, DataError, StorageError
from tamis.nn.residual_index import nearest_path
from tamis.retrieval.item_vectors import check_different, encode_checked
from tamis.retrieval.prefix_tree import PrefixTree, build_tree, sorted_places
from tamis.retrieval.scorer import Scorer

SNAPSHOT_VERSION = 1
_KIND = "index snapshot"
_TENSORS = "index.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """The items of a snapshot; V rows each."""

    ids: Tensor
    """(V,) int64, all different."""
    vectors: Tensor
    """(V, W) float32, as the model encoded them."""
    codes: Tensor
    """(V, L) int64: the path of each item."""
    distances: Tensor
    """(V, L) float32: squared distance of each item to its node, level by level."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Members":
        """The same change to all four."""
        fields = dataclasses.fields(self)
        return Members(**{field.name: change(getattr(self, field.name)) for field in fields})


@runtime_checkable
class SearchTree(Protocol):
    """Items under nodes: an index snapshot is one, and so is a tree of k-means."""

    @property
    def weights_version(self) -> str:
        """SHA-256 of the weights that encoded the items."""
        ...

    @property
    def members(self) -> Members:
        """The items, in the tree's order."""
        ...

    @property
    def tree(self) -> PrefixTree:
        """Occupied nodes."""
        ...

    def node_vectors(self) -> tuple[Float[Tensor, "N W"], ...]:
        """For each level the vectors by which its networks score the nodes."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSnapshot:
    """Items, their paths, the tree over them, and one stamp on all of it.

    Every item is under exactly one leaf. A node is scored by its own vector, the sum of the centres
    on its path. Its representative, by which it can be shown, is the member nearest to that vector,
    and is chosen anew whenever members change.

    Source:
        HSNN, arXiv:2408.06653, sections on index building and online serving.

    Differs from the source:
        There a node is served by its representative's features, here by the vector that networks
        have learnt to score. Representatives are members of their node. What an addition or a
        removal costs was not published; here it rebuilds the tree, in O(V log V) without a loop
        over items.
    """

    weights_version: str
    """SHA-256 of the weights that encoded the items."""
    codebooks: tuple[Tensor, ...]
    """Centres (K_n, W) of each index level, the coarsest first."""
    members: Members
    """In the tree's order."""
    tree: PrefixTree
    """Occupied nodes."""
    version: str
    """SHA-256 of weights, codebooks, map and representatives together."""

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.members.ids)

    @classmethod
    def publish(cls, scorer: Scorer, corpus: Iterable[tuple[Tensor, Batch]]) -> "IndexSnapshot":
        """Index a corpus.

        Args:
            scorer: The model, in evaluation mode.
            corpus: Integer ids (B,) and the features of as many items, some at a time; only the
                item side is read.

        Raises:
            ConfigError: The model was trained for so short a time that it has no index yet.
            ValueError: The model is in training mode.
            DataError: There is no item, an id stands twice, ids are not as many as rows, or a
                vector is no finite number.
        """
        scorer.check_index()
        codebooks = tuple(centres.detach().clone() for centres in scorer.codebooks)
        parts = [_encoded(scorer, codebooks, ids, items) for ids, items in corpus]
        if not sum(len(part.ids) for part in parts):
            raise DataError("index: the corpus must hold an item, got none.")
        return cls._assembled(weights_version(scorer), codebooks, _joined(parts))

    def add(self, scorer: Scorer, ids: Int[Tensor, " B"], items: Batch) -> "IndexSnapshot":
        """A snapshot with more items, placed by their content alone and without training.

        Args:
            scorer: The model that the snapshot was published from.
            ids: Ids that the snapshot does not hold.
            items: Their features; the item's own id is not read.

        Raises:
            ArtifactError: The model has other weights.
            ValueError: The model is in training mode.
            DataError: An id is there already or stands twice, ids are not as many as rows, or a
                vector is no finite number.
        """
        check_versions(scorer, self)
        new = _encoded(scorer, self.codebooks, ids, items, by_content=True)
        return self._assembled(self.weights_version, self.codebooks, _joined([self.members, new]))

    def remove(self, ids: Int[Tensor, " B"]) -> "IndexSnapshot":
        """A snapshot without some items.

        Raises:
            DataError: An id is not there, or no item would be left.
        """
        known = torch.isin(ids, self.members.ids)
        if not bool(known.all()):
            raise DataError(
                f"index: ids to remove must be indexed, got {int(ids[~known][0])}. Remove it once."
            )
        kept = ~torch.isin(self.members.ids, ids)
        if not bool(kept.any()):
            raise DataError(f"index: an item must be left, got all {self.num_items} to remove.")
        left = self.members.map(lambda tensor: tensor[kept])
        return self._assembled(self.weights_version, self.codebooks, left)

    def to(self, device: torch.device) -> "IndexSnapshot":
        """The same snapshot on another device."""

        def moved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(device) for tensor in tensors)

        tree = dataclasses.replace(
            self.tree,
            children=moved(self.tree.children),
            representatives=moved(self.tree.representatives),
        )
        return dataclasses.replace(
            self,
            codebooks=moved(self.codebooks),
            members=self.members.map(lambda tensor: tensor.to(device)),
            tree=tree,
        )

    def node_vectors(self) -> tuple[Float[Tensor, "N W"], ...]:
        """For each level the vectors of its nodes: sums of the centres on their paths."""
        vectors = []
        for level in range(len(self.codebooks)):
            # Any member tells the path, also the first one.
            paths = self.members.codes.index_select(0, self.tree.bounds(level)[:-1])
            centres = (book[paths[:, n]] for n, book in enumerate(self.codebooks[: level + 1]))
            vectors.append(functools.reduce(torch.add, centres))
        return tuple(vectors)

    def representatives_of(self, ids: Int[Tensor, " B"]) -> tuple[Tensor, ...]:
        """Vectors (B, W) of the representatives of some items' nodes, level by level.

        With them a model shows what they would do to its levels in the place of nodes.

        Raises:
            DataError: An id is not there.
        """
        known, order = self.members.ids.sort()
        found = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
        if not torch.equal(known[found], ids.to(known.dtype)):
            missing = ids[known[found] != ids]
            raise DataError(f"index: ids must be indexed, got {int(missing[0])}. Add it first.")
        places = order[found]
        vectors = []
        for level, chosen in enumerate(self.tree.representatives):
            nodes = torch.searchsorted(self.tree.bounds(level), places, right=True) - 1
            vectors.append(self.members.vectors[chosen[nodes]])
        return tuple(vectors)

    def save(self, folder: Path) -> None:
        """Write the snapshot into a new folder.

        Raises:
            DataError: The folder is taken.
            RunInUseError: Another process is writing it.
            StorageError: The disk is full or the folder cannot be written.
        """
        tensors = {name: tensor.to("cpu").contiguous() for name, tensor in self._tensors().items()}
        with artifacts.draft_folder(folder) as draft, artifacts.disk_errors(folder):
            try:
                with artifacts.atomic_path(draft / _TENSORS) as temporary:
                    safetensors.torch.save_file(tensors, temporary)
            except SafetensorError as error:  # its own word for a full disk
                raise StorageError(f"{folder}: must be writable, got {error}.") from error
            artifacts.write_manifest(
                draft,
                kind=_KIND,
                version=SNAPSHOT_VERSION,
                files=[draft / _TENSORS],
                payload={
                    "stamp": self.version,
                    "weights": self.weights_version,
                    "index_levels": len(self.codebooks),
                },
            )
            artifacts.move_into_place(draft, folder)

    @classmethod
    def load(cls, folder: Path) -> "IndexSnapshot":
        """Read a snapshot and check that its parts belong together.

        Raises:
            ArtifactError: A file is missing, cut short or altered, or its parts are of different
                snapshots.
        """
        manifest = artifacts.read_manifest(
            folder, kind=_KIND, version=SNAPSHOT_VERSION, verify=True
        )
        path = folder / _TENSORS
        try:
            tensors = safetensors.torch.load_file(path)
            members = Members(
                **{field.name: tensors[field.name] for field in dataclasses.fields(Members)}
            )
            levels = range(int(manifest["index_levels"]))
            codebooks = tuple(tensors[f"codebook{level}"] for level in levels)
            stored = tuple(tensors[f"representatives{level}"] for level in levels)
            weights, stamp = str(manifest["weights"]), manifest["stamp"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path}: must hold a whole snapshot, got {error!r}. Publish it anew."
            ) from error
        snapshot = cls._assembled(weights, codebooks, members)
        pairs = zip(stored, snapshot.tree.representatives, strict=True)
        if snapshot.version != stamp or not all(torch.equal(a, b) for a, b in pairs):
            raise ArtifactError(
                f"{folder}: weights, codebooks, map and representatives must be of one snapshot "
                f"{str(stamp)[:12]}..., got a mix with stamp {snapshot.version[:12]}.... Publish "
                f"it anew."
            )
        return snapshot

    @classmethod
    def _assembled(
        cls, weights: str, codebooks: Sequence[Tensor], members: Members
    ) -> "IndexSnapshot":
        """What follows from the members: their order, the tree and the stamp."""
        order = sorted_places(members.ids, members.codes)
        members = members.map(lambda tensor: tensor[order])
        check_different(members.ids)
        tree = build_tree(members.ids, members.codes, members.distances)
        snapshot = cls(
            weights_version=weights,
            codebooks=tuple(codebooks),
            members=members,
            tree=tree,
            version="",
        )
        stamp = hashlib.sha256(weights.encode())
        for name, tensor in sorted(snapshot._tensors().items()):
            _update(stamp, name, tensor)
        return dataclasses.replace(snapshot, version=stamp.hexdigest())

    def _tensors(self) -> dict[str, Tensor]:
        """Everything but the tree's offsets, which follow from the codes."""
        tensors: dict[str, Tensor] = {
            field.name: getattr(self.members, field.name)
            for field in dataclasses.fields(self.members)
        }
        tensors |= {f"codebook{place}": centres for place, centres in enumerate(self.codebooks)}
        places = enumerate(self.tree.representatives)
        return tensors | {f"representatives{place}": tensor for place, tensor in places}


def weights_version(scorer: Scorer) -> str:
    """SHA-256 of everything that decides what a model says, as 64 hexadecimal digits."""
    stamp = hashlib.sha256()
    for name, value in sorted(scorer.state_dict().items()):
        _update(stamp, name, value)
    return stamp.hexdigest()


def check_versions(scorer: Scorer, snapshot: SearchTree) -> None:
    """Check that the items of a tree were encoded by these very weights.

    Raises:
        ArtifactError: They were not.
    """
    version = weights_version(scorer)
    if version != snapshot.weights_version:
        raise ArtifactError(
            f"index: weights must be those it was published from, "
            f"{snapshot.weights_version[:12]}..., got {version[:12]}.... Publish an index from "
            f"these weights, or load the others."
        )


def churn(
    before: IndexSnapshot, after: IndexSnapshot, *, among: Int[Tensor, " B"] | None = None
) -> tuple[float, ...]:
    """Share of the items of both snapshots that have moved to another node, level by level.

    Args:
        before: The earlier snapshot.
        after: The later one.
        among: Ids to look at, such as those of items whose features did not change; None for all.

    Returns:
        A share in [0, 1] for each index level; nan where the snapshots have no item in common.
    """
    paths = []
    common = torch.isin(before.members.ids, after.members.ids)
    if among is not None:
        common &= torch.isin(before.members.ids, among)
    shared = before.members.ids[common]
    for snapshot in (before, after):
        members = snapshot.members
        chosen = torch.isin(members.ids, shared).nonzero().squeeze(1)
        paths.append(members.codes[chosen[torch.argsort(members.ids[chosen])]])
    differs = (paths[0] != paths[1]).cumsum(1) > 0  # a node is a prefix: what is below moves too
    return tuple(differs.double().mean(0).tolist())


def _encoded(
    scorer: Scorer,
    codebooks: Sequence[Tensor],
    ids: Tensor,
    items: Batch,
    *,
    by_content: bool = False,
) -> Members:
    vectors = encode_checked(scorer, ids, items, by_content=by_content)
    with torch.no_grad():
        codes = torch.zeros(len(ids), 0, dtype=torch.int64, device=vectors.device)
        distances = vectors.new_zeros(len(ids), 0)
        if codebooks:
            codes, nodes = nearest_path(vectors, codebooks)
            left = [(vectors - node).square().sum(1) for node in nodes]
            distances = torch.stack(left, dim=1)
    return Members(ids=ids.to(torch.int64), vectors=vectors, codes=codes, distances=distances)


def _joined(parts: Sequence[Members]) -> Members:
    return Members(
        **{
            field.name: torch.cat([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Members)
        }
    )


def _update(stamp: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    stamp.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().to("cpu").contiguous().flatten()
    stamp.update(flat.view(torch.uint8).numpy().data)
