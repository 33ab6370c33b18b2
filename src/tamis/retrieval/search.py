"""Beam search through an index: from a user to the best items, level by level, with its cost."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tamis.data.batch import Batch, concatenate
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
        A node is scored by the vector that networks have learnt to score, not by its representative
        (see ``IndexSnapshot``). Children are the occupied ones of the nodes that are kept, so what
        is scored on a level is bounded by their number. How tasks become one score was not
        published, nor how bids or filters meet the search.
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
        (found,) = self.search_all([request], k, beams, allowed=[allowed])
        return found

    def search_all(
        self,
        requests: Sequence[Request],
        k: int,
        beams: Sequence[int],
        *,
        allowed: Sequence[Bool[Tensor, " V"] | None] = (),
    ) -> list[Found]:
        """What :meth:`search` finds for each of several requests, whose pairs are scored together.

        Matrix products round a row by its place among others, so that scores may differ in their
        last bits.

        Args:
            requests: Who ask, at least one.
            k: As in :meth:`search`.
            beams: As in :meth:`search`.
            allowed: For each request as in :meth:`search`. Empty: all items for all of them.

        Raises:
            ValueError: As in :meth:`search`; or there is no request, or not one ``allowed`` each.
            DataError: As in :meth:`search`.
        """
        index_levels = self.scorer.num_levels - 1
        if len(beams) != index_levels or k < 1 or any(beam < 1 for beam in beams):
            raise ValueError(
                f"search: k and a beam for each of {index_levels} index levels must be at least "
                f"1, got k={k} and beams={tuple(beams)}."
            )
        if not requests or len(allowed) not in (0, len(requests)):
            raise ValueError(
                f"search: there must be a request, and allowed must be empty or one for each, got "
                f"{len(requests)} requests and {len(allowed)} of allowed."
            )
        for request in requests:
            check_one_user(request, k)
        tree, members = self.snapshot.tree, self.snapshot.members
        totals = (*tree.num_nodes, tree.num_items)
        vector_bytes = tensor_bytes([members.vectors[:1]])
        levels: list[list[LevelTrace]] = [[] for _ in requests]
        with torch.inference_mode():
            users = self.scorer.encode_user(concatenate([request.user for request in requests]))
            is_open = [None if one is None else _open_by_level(one, tree) for one in allowed]
            everything = torch.arange(totals[0], device=members.ids.device)
            # What each request has left, one after another, and how many that is of each.
            parts = [everything if one is None else everything[one[0]] for one in is_open]
            parts = parts or [everything] * len(requests)
            candidates, counts = torch.cat(parts), [len(part) for part in parts]
            outputs = None
            for level, width in enumerate((*beams, k)):
                is_item = level == index_levels
                own = logits_of_pairs(
                    self.scorer,
                    level,
                    users[level],
                    self.vectors[level],
                    candidates,
                    counts,
                    pairs=[pairs_at(one, members.ids) if is_item else None for one in requests],
                )
                outputs = own if outputs is None else torch.cat([outputs, own], dim=1)
                probabilities = torch.sigmoid(self.scorer.ensemble(level, outputs).float())
                scores = self._score_of(level, candidates, probabilities)
                where = f"search, level {level + 1}"
                kept = [best_places(part, width, where=where) for part in scores.split(counts)]
                for trace, pairs, best in zip(levels, counts, kept, strict=True):
                    trace.append(
                        LevelTrace(
                            nodes=totals[level],
                            pairs=pairs,
                            kept=len(best),
                            flops=pairs * self._pair_flops[level],
                            bytes=pairs * vector_bytes,
                        )
                    )
                if is_item:
                    break
                starts = itertools.accumulate(counts[:-1], initial=0)
                on = torch.cat([best + start for best, start in zip(kept, starts, strict=True)])
                candidates, lengths = tree.expand(level, candidates.index_select(0, on))
                outputs = torch.repeat_interleave(
                    outputs.index_select(0, on), lengths, dim=0, output_size=len(candidates)
                )
                counts = [int(own.sum()) for own in lengths.split([len(best) for best in kept])]
                if any(one is not None for one in is_open):
                    left = [
                        torch.ones_like(part, dtype=torch.bool)
                        if one is None
                        else one[level + 1].index_select(0, part)
                        for one, part in zip(is_open, candidates.split(counts), strict=True)
                    ]
                    counts = [int(part.sum()) for part in left]
                    is_left = torch.cat(left)
                    candidates, outputs = candidates[is_left], outputs[is_left]
            return [
                self._found(*of_one)
                for of_one in zip(
                    candidates.split(counts), scores.split(counts), kept, levels, strict=True
                )
            ]

    def _found(
        self, places: Tensor, scores: Tensor, kept: Tensor, levels: Sequence[LevelTrace]
    ) -> Found:
        """The kept ones of some items, the best first."""
        order = kept[torch.argsort(-scores.index_select(0, kept), stable=True)]
        ids = self.snapshot.members.ids.index_select(0, places.index_select(0, order))
        trace = Trace(levels=tuple(levels), user_flops=self._user_flops)
        return Found(ids=ids, scores=scores[order], trace=trace)

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
    users: Tensor,
    vectors: Float[Tensor, "V W"],
    places: Int[Tensor, " C"],
    counts: Sequence[int],
    *,
    pairs: Sequence[Callable[[Int[Tensor, " c"]], Batch] | None],
) -> Float[Tensor, "C 1 T"]:
    """A level's own logits of users with some nodes or items, a few at a time.

    Args:
        scorer: The model.
        level: Its level.
        users: What that level reads of the users, a row for each.
        vectors: Of all nodes or items.
        places: Those that are scored, user by user.
        counts: How many of them are each user's.
        pairs: For each user from places to the context side of pairs; None: there is none.
    """
    at_once = _PAIRS_AT_ONCE_ON_CPU if vectors.device.type == "cpu" else _PAIRS_AT_ONCE
    rows = None
    if len(counts) > 1:
        repeats = torch.tensor(counts, device=places.device)
        rows = torch.arange(len(counts), device=places.device).repeat_interleave(repeats)
    parts = []
    for start in range(0, max(1, len(places)), at_once):
        some = places[start : start + at_once]
        of = None if rows is None else rows[start : start + at_once]
        context = _context_of(some, of, pairs)
        items = vectors.index_select(0, some)
        parts.append(scorer.pair_logits(level, users, items, context, of))
    return torch.cat(parts).unsqueeze(1)


def _context_of(
    places: Tensor,
    rows: Tensor | None,
    pairs: Sequence[Callable[[Int[Tensor, " c"]], Batch] | None],
) -> Batch | None:
    """The context side of some pairs, given by places and, of several users, their rows."""
    if rows is None or not len(rows):
        return None if pairs[0] is None else pairs[0](places)
    found = []
    users, counts = rows.unique_consecutive(return_counts=True)
    for user, part in zip(users.tolist(), places.split(counts.tolist()), strict=True):
        beside = pairs[user]
        if beside is None:
            return None
        found.append(beside(part))
    return concatenate(found)


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
