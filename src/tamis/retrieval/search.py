"""Beam search through an index: from a user to the best items, level by level, with its cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tamis.data.batch import Batch
from tamis.errors import DataError
from tamis.retrieval.prefix_tree import PrefixTree
from tamis.retrieval.scorer import Scorer
from tamis.retrieval.searcher import Found, LevelTrace, Request, Trace, check_one_user, tensor_bytes
from tamis.retrieval.snapshot import SearchTree, check_versions

# What a network makes of 16 times as many pairs is memory that a process which gives back what it
# frees gets from the system each time, and that takes as long as the network. A GPU wants many.
_PAIRS_AT_ONCE_ON_CPU, _PAIRS_AT_ONCE = 1 << 12, 1 << 16

ScoringFunction = Callable[[int, Tensor, Tensor], Tensor]
"""From a level, C of its nodes (items, by their places in the tree, at the last level), and the
probabilities (C, T) of their tasks, to scores (C,)."""


class Retriever:
    """A model and a tree over items that it encoded, ready to answer requests.

    The score of a node or item is ``sum_t w_t sigmoid(z_t)``, where z are the calibrated logits of
    its level's ensemble with all coarser ones. Of equal scores the one that is first in the tree
    wins. Weights must not change as long as a retriever uses them.

    Where what an item brings depends on more than probabilities, such as an ad's bid, a function of
    the caller's gives the scores.

    Source:
        HSNN, arXiv:2408.06653, algorithm 2.

    Differs from the source:
        Children are the occupied ones of the nodes that are kept, so what is scored on a level is
        bounded by their number. How tasks become one score was not published, nor how bids or
        filters meet the search.
    """

    def __init__(
        self,
        scorer: Scorer,
        snapshot: SearchTree,
        *,
        task_weights: Sequence[float] = (),
        score: ScoringFunction | None = None,
        flops: tuple[int, tuple[int, ...]] | None = None,
    ) -> None:
        """Put both together.

        Args:
            scorer: The model, in evaluation mode.
            snapshot: An index that was published from it, or another tree of as many levels.
            task_weights: Weight w_t of each task; empty weighs them alike.
            score: Makes the scores in place of the weighted sum; None: the sum.
            flops: What the model's ``count_flops`` gives, where it is known; None: it is asked.

        Raises:
            ArtifactError: The snapshot was published from other weights.
            ConfigError: The model was trained for so short a time that all nodes score alike.
            DataError: Tree and model have not as many levels.
            ValueError: The model is in training mode.
        """
        if scorer.training:
            raise ValueError(
                "retriever: the model must be in evaluation mode, got training mode. Call eval()."
            )
        check_versions(scorer, snapshot)
        scorer.check_index()
        check_levels(scorer, snapshot.tree)
        self.scorer, self.snapshot = scorer, snapshot
        self.vectors = (*snapshot.node_vectors(), snapshot.members.vectors)
        self.task_weights = tuple(task_weights)
        self._score_of = self._weighted_sum if score is None else score
        self._user_flops, self._pair_flops = flops or scorer.count_flops()

    def exact(self, request: Request, k: int) -> Found:
        """The best k items of all, every node and item scored."""
        return self.search(request, k, self.snapshot.tree.num_nodes)

    def search(
        self,
        request: Request,
        k: int,
        beams: Sequence[int],
        *,
        allowed: Bool[Tensor, " V"] | None = None,
    ) -> Found:
        """The best k items under the nodes that are kept.

        Args:
            request: Who asks.
            k: Items to find. At least 1.
            beams: Nodes to keep at each index level, the coarsest first. At least 1.
            allowed: Which items, in the order of the tree, may be found; nodes without any are not
                looked at. None: all. What stands for a node need not be allowed itself.

        Raises:
            ValueError: A number is out of range, or there is not one beam for each index level or
                one weight for each task.
            DataError: The user is not one row, or a score is NaN.
        """
        index_levels = self.scorer.num_levels - 1
        if len(beams) != index_levels or k < 1 or any(beam < 1 for beam in beams):
            raise ValueError(
                f"search: k and a beam for each of {index_levels} index levels must be at least "
                f"1, got k={k} and beams={tuple(beams)}."
            )
        check_one_user(request, k)
        tree, members = self.snapshot.tree, self.snapshot.members
        totals = (*tree.num_nodes, tree.num_items)
        vector_bytes = tensor_bytes([members.vectors[:1]])
        levels: list[LevelTrace] = []
        with torch.inference_mode():
            users = self.scorer.encode_user(request.user)
            is_open = None if allowed is None else _open_by_level(allowed, tree)
            candidates = torch.arange(totals[0], device=members.ids.device)
            if is_open is not None:
                candidates = candidates[is_open[0]]
            outputs = None
            for level, width in enumerate((*beams, k)):
                is_item = level == index_levels
                own = logits_of_pairs(
                    self.scorer,
                    level,
                    users[level],
                    self.vectors[level],
                    candidates,
                    pairs=pairs_at(request, members.ids) if is_item else None,
                )
                outputs = own if outputs is None else torch.cat([outputs, own], dim=1)
                probabilities = torch.sigmoid(self.scorer.ensemble(level, outputs).float())
                scores = self._score_of(level, candidates, probabilities)
                kept = best_places(scores, width, where=f"search, level {level + 1}")
                levels.append(
                    LevelTrace(
                        nodes=totals[level],
                        pairs=len(candidates),
                        kept=len(kept),
                        flops=len(candidates) * self._pair_flops[level],
                        bytes=len(candidates) * vector_bytes,
                    )
                )
                if is_item:
                    order = kept[torch.argsort(-scores.index_select(0, kept), stable=True)]
                    places = candidates.index_select(0, order)
                    ids, scores = members.ids.index_select(0, places), scores[order]
                    break
                candidates, lengths = tree.expand(level, candidates.index_select(0, kept))
                outputs = torch.repeat_interleave(
                    outputs.index_select(0, kept), lengths, dim=0, output_size=len(candidates)
                )
                if is_open is not None:
                    left = is_open[level + 1].index_select(0, candidates)
                    candidates, outputs = candidates[left], outputs[left]
        trace = Trace(levels=tuple(levels), user_flops=self._user_flops)
        return Found(ids=ids, scores=scores, trace=trace)

    def _weighted_sum(self, level: int, places: Tensor, probabilities: Tensor) -> Tensor:
        del level, places
        return weighted_sum(probabilities, self.task_weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class BeamSearcher:
    """A retriever at beams that are chosen once; see :class:`Searcher`."""

    retriever: Retriever
    """Model and tree."""
    beams: tuple[int, ...]
    """Nodes to keep at each index level, the coarsest first."""
    allowed: Bool[Tensor, " V"] | None = None
    """Which items, in the order of the tree, may be found; None: all."""

    @property
    def num_items(self) -> int:
        """Items of the tree that may be found."""
        if self.allowed is not None:
            return int(self.allowed.sum())
        return self.retriever.snapshot.tree.num_items

    @property
    def index_bytes(self) -> int:
        """Vectors of nodes and items, ids of items, and the tree's offsets."""
        snapshot = self.retriever.snapshot
        return tensor_bytes(
            (snapshot.members.ids, *self.retriever.vectors, *snapshot.tree.children)
        )

    def search(self, request: Request, k: int) -> Found:
        """The best k items under the nodes that are kept."""
        return self.retriever.search(request, k, self.beams, allowed=self.allowed)


def pairs_at(
    request: Request, ids: Int[Tensor, " V"]
) -> Callable[[Int[Tensor, " C"]], Batch] | None:
    """From places among items of these ids to the pairs' context side; None where there is none."""
    of_ids = request.pairs
    if of_ids is None:
        return None
    return lambda places: of_ids(ids.index_select(0, places))


def logits_of_pairs(
    scorer: Scorer,
    level: int,
    user: Tensor,
    vectors: Float[Tensor, "V W"],
    places: Int[Tensor, " C"],
    *,
    pairs: Callable[[Int[Tensor, " C"]], Batch] | None,
) -> Float[Tensor, "C 1 T"]:
    """A level's own logits of a user with some nodes or items, a few at a time.

    Args:
        scorer: The model.
        level: Its level.
        user: What that level reads of the user.
        vectors: Of all nodes or items.
        places: Those that are scored.
        pairs: From places to the context side of pairs; None: there is none.
    """
    on_cpu = vectors.device.type == "cpu"
    parts = [
        scorer.pair_logits(
            level, user, vectors.index_select(0, some), None if pairs is None else pairs(some)
        )
        for some in places.split(_PAIRS_AT_ONCE_ON_CPU if on_cpu else _PAIRS_AT_ONCE)
    ]
    return torch.cat(parts).unsqueeze(1)


def total_scores(
    scorer: Scorer, level: int, outputs: Float[Tensor, "C n T"], task_weights: Sequence[float]
) -> Float[Tensor, " C"]:
    """``sum_t w_t sigmoid(z_t)`` of a level's ensemble; see :class:`Retriever`.

    Raises:
        ValueError: There is not one weight for each task.
    """
    probabilities = torch.sigmoid(scorer.ensemble(level, outputs).float())
    return weighted_sum(probabilities, task_weights)


def weighted_sum(
    probabilities: Float[Tensor, "C T"], task_weights: Sequence[float]
) -> Float[Tensor, " C"]:
    """``sum_t w_t p_t``; without weights all are 1.

    Raises:
        ValueError: There is not one weight for each task.
    """
    weights = weights_of_tasks(task_weights, probabilities.shape[1])
    return (probabilities * probabilities.new_tensor(weights)).sum(1)


def weights_of_tasks(task_weights: Sequence[float], num_tasks: int) -> tuple[float, ...]:
    """A weight for each task; 1 for each where none is given.

    Raises:
        ValueError: They are not as many as the tasks.
    """
    weights = tuple(task_weights) or (1.0,) * num_tasks
    if len(weights) != num_tasks:
        raise ValueError(
            f"search: task_weights must be one for each of {num_tasks} tasks, got {len(weights)}."
        )
    return weights


def _open_by_level(allowed: Bool[Tensor, " V"], tree: PrefixTree) -> list[Tensor]:
    """For each level whether a node has an item that is allowed, and for the items themselves."""
    until = torch.cat([allowed.new_zeros(1, dtype=torch.int64), allowed.cumsum(0)])
    nodes = [until[tree.bounds(level)].diff() > 0 for level in range(len(tree.num_nodes))]
    return [*nodes, allowed]


def check_levels(scorer: Scorer, tree: PrefixTree) -> None:
    """Check that a model has a network for each level of a tree.

    Raises:
        DataError: It has more or fewer index levels.
    """
    if len(tree.num_nodes) != scorer.num_levels - 1:
        raise DataError(
            f"retriever: the tree must have as many levels as the model has for nodes, "
            f"{scorer.num_levels - 1}, got {len(tree.num_nodes)}. Build a tree of that depth."
        )


def best_places(
    scores: Float[Tensor, " C"], count: int, *, where: str = "search"
) -> Int[Tensor, " K"]:
    """Places of the highest scores, in order of place; of equal scores the first ones.

    Args:
        scores: Of what there is to choose from.
        count: How many to choose.
        where: What an error begins with.

    Raises:
        DataError: A score is NaN, which is neither above nor below another.

    Example:
        >>> best_places(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2).tolist()
        [1, 2]
    """
    is_all = count >= len(scores)
    # Which of several equal scores topk returns is left open, so it is asked for values alone. It
    # takes NaN to be the highest one.
    best = scores if is_all else torch.topk(scores, count).values
    if bool(best.isnan().any()):
        place = int(scores.isnan().nonzero()[0])
        raise DataError(
            f"{where}: scores must be numbers, got nan in place {place} of {len(scores)}. Mend the "
            f"features of the user or of the pair, or the scoring function."
        )
    if is_all:
        return torch.arange(len(scores), device=scores.device)
    above = scores > best[-1]
    ties = (scores == best[-1]).nonzero().squeeze(1)[: count - int(above.sum())]
    return torch.cat([above.nonzero().squeeze(1), ties]).sort().values
