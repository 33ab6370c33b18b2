"""A tree of k-means in k-means over item vectors that do not change: the index without learning."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch
from tamis.nn.kmeans import kmeans, squared_distances
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.prefix_tree import PrefixTree, build_tree, sorted_places
from tamis.retrieval.scorer import Scorer
from tamis.retrieval.snapshot import Members, weights_version

NodeVectors = Literal["mean", "member"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KMeansTree:
    """Items under nodes, each node split by a k-means of its own members.

    It takes an index snapshot's place in a :class:`tamis.retrieval.search.Retriever`: the same
    networks score its nodes, so that a comparison shows what the learnt index is worth and nothing
    else. Unlike the residual index it has centres of its own in every node, and no way to place an
    item that was not there: build it anew.

    Source:
        HSNN, arXiv:2408.06653, separate index learning (k-means on item embeddings); a tree of
        k-means over learnt embeddings is that of Zhu et al., TDM, KDD 2018, section 3.4.

    Differs from the source:
        Any branching per level instead of TDM's balanced binary splits, and no vectors of nodes
        that were learnt.
    """

    weights_version: str
    """SHA-256 of the weights that encoded the items."""
    members: Members
    """In the tree's order; codes are numbers within the node above."""
    tree: PrefixTree
    """Occupied nodes."""
    nodes: NodeVectors = "mean"
    """By what networks score a node: the mean of its members, as the centres that they learnt from
    are means of items; or the member nearest to its centre."""

    @classmethod
    def build(
        cls,
        scorer: Scorer,
        corpus: Iterable[tuple[Tensor, Batch]],
        branching: Sequence[int],
        *,
        seed: int,
    ) -> "KMeansTree":
        """Encode a corpus and cluster it, level by level.

        Args:
            scorer: The model, in evaluation mode.
            corpus: Integer ids (B,) and the features of as many items, some at a time.
            branching: Children of a node of each level at most, the coarsest first. As many levels
                as the model has for nodes.
            seed: Decides where each k-means starts.

        Raises:
            ValueError: The model is in training mode, or a number is below 1.
            DataError: There is no item, an id stands twice, ids are not as many as rows, or a
                vector is no finite number.
        """
        if not branching or min(branching) < 1:
            raise ValueError(
                f"k-means tree: branching must hold numbers of at least 1, got {tuple(branching)}."
            )
        items = ItemVectors.encode(scorer, corpus)
        nodes = torch.zeros(len(items.ids), dtype=torch.int64, device=items.ids.device)
        codes, distances = [], []
        for level, count in enumerate(branching):
            code, distance = _split(items.vectors, nodes, count, seed=seed + level)
            codes.append(code)
            distances.append(distance)
            nodes = torch.unique(nodes * count + code, return_inverse=True)[1]
        members = Members(
            ids=items.ids,
            vectors=items.vectors,
            codes=torch.stack(codes, dim=1),
            distances=torch.stack(distances, dim=1),
        )
        order = sorted_places(members.ids, members.codes)
        members = members.map(lambda tensor: tensor[order])
        tree = build_tree(members.ids, members.codes, members.distances)
        return cls(weights_version=weights_version(scorer), members=members, tree=tree)

    def node_vectors(self) -> tuple[Float[Tensor, "N W"], ...]:
        """For each level the vectors of its nodes, see ``nodes``."""
        vectors = self.members.vectors
        if self.nodes == "member":
            return tuple(vectors.index_select(0, places) for places in self.tree.representatives)
        means = []
        for level, count in enumerate(self.tree.num_nodes):
            sizes = self.tree.bounds(level).diff()
            node = torch.repeat_interleave(torch.arange(count, device=sizes.device), sizes)
            sums = vectors.new_zeros(count, vectors.shape[1]).index_add_(0, node, vectors)
            means.append(sums / sizes.unsqueeze(1))
        return tuple(means)


def _split(
    vectors: Float[Tensor, "V W"], nodes: Int[Tensor, " V"], count: int, *, seed: int
) -> tuple[Int[Tensor, " V"], Float[Tensor, " V"]]:
    """Number of each item's centre within its node, and its squared distance to that centre."""
    code, distance = torch.zeros_like(nodes), vectors.new_zeros(len(vectors))
    order = torch.argsort(nodes, stable=True)
    for part in order.split(torch.bincount(nodes).tolist()):
        own = vectors[part]
        apart = squared_distances(own, kmeans(own, min(count, len(own)), seed=seed))
        distance[part], code[part] = apart.min(1)
    return code, distance
