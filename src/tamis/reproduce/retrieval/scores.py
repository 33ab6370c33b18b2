"""What a searcher is worth and what it costs: recall, true value, cold items, operations, time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tamis.data.retrieval_task import StoredTask
from tamis.evaluation.retrieval import CUTOFFS, ItemLists, full_corpus_scores, true_value_recall
from tamis.reproduce.retrieval.results import index_loss
from tamis.reproduce.retrieval.searchers import Point
from tamis.retrieval.collect import Collected, collect
from tamis.retrieval.search import BeamSearcher, Retriever
from tamis.retrieval.searcher import Request, Searcher

FOUND = 100
"""Length of the lists that are compared."""
_TIMED, _LEAST_TIMED, _SECONDS = 100, 10, 30.0
_SEED = 7
"""Of the items that those never shown are compared with."""


class Measurer:
    """Measures one way to search after another, on the same users and beside the same reference."""

    def __init__(self, task: StoredTask, requests: Sequence[Request], reference: Searcher) -> None:
        """Take what all ways have in common.

        Args:
            task: What is to be found.
            requests: One for each user of the task.
            reference: What each way is timed beside, in turns.
        """
        self._task, self._requests, self._reference = task, requests, reference
        self._is_cold = task.impressions == 0
        self._wanted = _most_valuable(task)
        self._exhaustive: _Exhaustive | None = None

    @property
    def num_users(self) -> int:
        """Users U who ask."""
        return len(self._requests)

    def exhaustive(self, retriever: Retriever, *, users: int) -> dict[str, Any]:
        """Quality of a network that scores every node and item, for some users.

        Points that are measured afterwards are compared with it, for the same users.

        Args:
            retriever: The network and its index.
            users: How many users, at most.
        """
        everything = BeamSearcher(retriever=retriever, beams=retriever.snapshot.tree.num_nodes)
        places = spread(self.num_users, users)
        some = Measurer(*of_users(self._task, self._requests, places), self._reference)
        quality, found = some._found(everything)
        self._exhaustive = _Exhaustive(users=some, places=places, quality=quality, lists=found.ids)
        return quality

    def measure(self, point: Point) -> dict[str, Any]:
        """Quality, cost and time of a point; JSON values."""
        quality, found = self._found(point.searcher)
        if self._exhaustive is not None:
            quality |= self._exhaustive.beside(found)
        return {
            "setting": point.setting,
            "is_main": point.is_main,
            **quality,
            "index_bytes": point.searcher.index_bytes,
            **self._times(point.searcher),
        }

    def quality(self, searcher: Searcher) -> dict[str, Any]:
        """Quality and modelled cost of a searcher, which is not timed; JSON values."""
        return self._found(searcher)[0]

    def among_unseen(self, searcher: BeamSearcher) -> dict[str, float] | None:
        """Recall at 100 among items that were never shown, and among others; JSON values.

        Each kind is searched by itself. The others are as many of each category that pairs are
        matched by, or all where there are fewer. In lists of all items there is hardly one that was
        never shown: what has a record stands out by it, for better or worse.

        Returns:
            ``cold`` and ``warm``, each the share of the true value, or of what users went for where
            no value is known; and the leaves that either lies under, as items that crowd under
            fewer leaves than a beam keeps are all scored. None where there are no such items,
            nothing of a kind is worth anything, or nobody went for it.
        """
        members = searcher.retriever.snapshot.members
        place, leaf = members.ids.cpu().numpy(), members.codes.cpu().numpy()
        found: dict[str, float] = {}
        for name, is_of_kind in (
            ("cold", self._is_cold),
            ("warm", _drawn_alike(self._is_cold, self._task.matched)),
        ):
            if not is_of_kind.any():
                return None
            some = replace(searcher, allowed=torch.from_numpy(is_of_kind[place]))
            masked = ItemLists.of([ids[is_of_kind[ids]] for ids in self._task.masked.lists()])
            lists = collect(some, self._requests, FOUND, masked=masked).ids
            recall: float | None
            if self._task.values is None:
                recall = _recall_among(lists, self._task.relevant, is_of_kind)
            else:
                shares = true_value_recall(lists, self._task.values * is_of_kind, FOUND)
                recall = None if np.isnan(shares).all() else float(np.nanmean(shares))
            if recall is None:
                return None
            found[name] = recall
            found[f"{name}_leaves"] = float(len(np.unique(leaf[is_of_kind[place]], axis=0)))
        return found

    def _found(self, searcher: Searcher) -> tuple[dict[str, Any], Collected]:
        found = collect(searcher, self._requests, max(CUTOFFS), masked=self._task.masked)
        quality: dict[str, Any] = {
            **self.shares(found.ids, found.candidates),
            "pairs": found.mean_pairs,
            "flops": found.mean_flops,
            "bytes": found.mean_bytes,
        }
        first = found.ids[:, :FOUND]
        for name, is_of_kind in (("cold", self._is_cold), ("warm", ~self._is_cold)):
            quality[f"{name}_recall@{FOUND}"] = _recall_among(first, self._wanted, is_of_kind)
        return quality, found

    def shares(self, lists: NDArray[np.int64], candidates: NDArray[np.int64]) -> dict[str, Any]:
        """What lists hold of what users went for, and of the true value where that is known.

        Args:
            lists: (U, K) items, the best first.
            candidates: (U,) items that each list was chosen among.
        """
        task = self._task
        scores = full_corpus_scores(
            lists, task.relevant, task.masked, num_items=task.num_items, candidates=candidates
        )
        if task.values is None:
            return scores.means()
        of_value = true_value_recall(lists, task.values, FOUND)
        return {**scores.means(), f"value_recall@{FOUND}": float(np.nanmean(of_value))}

    def _times(self, searcher: Searcher) -> dict[str, float]:
        """Milliseconds of a request, and how many times those of the reference that is.

        Every search is the one that found the lists, of as many items: a walk through a graph keeps
        no fewer than it is asked for, so that a shorter list would cost less than what was judged.
        Both answer the same requests in turns, each a second time that counts: what the other one
        left in the caches would slow down the cheaper of the two, and flatter the dearer. Their
        ratio is of the processor's time, which does not count what other processes of the machine
        take away from this one.
        """
        taken: list[list[float]] = []
        started = time.perf_counter()
        asked = max(CUTOFFS) + self._task.masked.lengths
        for request, k in zip(self._requests[:_TIMED], asked.tolist(), strict=False):
            clocks = []
            for one in (searcher, self._reference):
                one.search(request, k)
                clocks.append((time.perf_counter(), time.thread_time()))
                one.search(request, k)
                clocks.append((time.perf_counter(), time.thread_time()))
            taken.append((1e3 * np.diff(clocks, axis=0)[::2]).ravel().tolist())
            if clocks[-1][0] - started > _SECONDS and len(taken) >= _LEAST_TIMED:
                break
        wall, processor, _, reference = np.array(taken).T
        p50, p95 = np.percentile(wall, [50, 95]).tolist()
        own, beside = (float(np.median(times)) for times in (processor, reference))
        return {
            "p50_ms": p50,
            "p95_ms": p95,
            "cpu_ms": own,
            "reference_cpu_ms": beside,
            "latency": own / beside,
            "timed": float(len(taken)),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exhaustive:
    """What scoring every node and item finds for some users."""

    users: Measurer
    places: NDArray[np.int64]
    quality: dict[str, Any]
    lists: NDArray[np.int64]

    def beside(self, found: Collected) -> dict[str, float]:
        """What a searcher keeps of the lists, and loses of their recall, for the same users."""
        own, candidates = found.ids[self.places], found.candidates[self.places]
        pairs = zip(own[:, :FOUND], self.lists[:, :FOUND], strict=True)
        return {
            "kept": float(np.mean([np.isin(all_, some).mean() for some, all_ in pairs])),
            "index_loss": index_loss(self.users.shares(own, candidates), self.quality),
        }


def spread(num_users: int, count: int) -> NDArray[np.int64]:
    """Places of so many users at most, at equal distances: a number may tell since when one came.

    Example:
        >>> spread(10, 4).tolist(), spread(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    count = min(num_users, count)
    return np.arange(count) * num_users // max(1, count)


def of_users(
    task: StoredTask, requests: Sequence[Request], places: NDArray[np.int64]
) -> tuple[StoredTask, list[Request]]:
    """The task of some users and their requests; its log of requests is still that of all."""
    relevant, masked = task.relevant.lists(), task.masked.lists()
    some = replace(
        task,
        relevant=ItemLists.of([relevant[place] for place in places]),
        masked=ItemLists.of([masked[place] for place in places]),
        histories=[task.histories[place] for place in places] if task.histories else [],
        values=None if task.values is None else task.values[places],
    )
    return some, [requests[place] for place in places]


def _most_valuable(task: StoredTask) -> ItemLists:
    """What cold and warm items are to be found among: of most true value, or what was gone for."""
    if task.values is None:
        return task.relevant
    cut = min(FOUND, task.num_items)
    return ItemLists.of(list(np.argpartition(-task.values, cut - 1, axis=1)[:, :cut]))


def _drawn_alike(is_cold: NDArray[np.bool_], category: NDArray[np.int64]) -> NDArray[np.bool_]:
    """As many other items of each category as are cold, or all where there are fewer."""
    generator = np.random.default_rng(_SEED)
    is_drawn = np.zeros_like(is_cold)
    for one in np.unique(category[is_cold]):
        others = generator.permutation(np.flatnonzero(~is_cold & (category == one)))
        is_drawn[others[: int((is_cold & (category == one)).sum())]] = True
    return is_drawn


def _recall_among(
    first: NDArray[np.int64], wanted: ItemLists, is_of_kind: NDArray[np.bool_]
) -> float | None:
    """Share of the wanted items of a kind that were found, all users together; None without any."""
    found = asked = 0
    for list_, ids in zip(first, wanted.lists(), strict=True):
        own = ids[is_of_kind[ids]]
        asked += len(own)
        found += int(np.isin(own, list_).sum())
    return found / asked if asked else None
