"""The retrieval stage: beam search through a learnt index, level by level."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.errors import DataError
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.candidates import Candidates
from tamis.funnel.ranker import AdFeatures, features_of
from tamis.funnel.request import Request
from tamis.funnel.stage import BatchStage, Scored
from tamis.models.hsnn import HSNN
from tamis.retrieval import searcher
from tamis.retrieval.search import Retriever
from tamis.retrieval.snapshot import IndexSnapshot


class IndexSearch(BatchStage):
    """The best candidates under the nodes that a beam keeps, and no other ad is looked at.

    The user's towers run once for a request; several requests walk the index together. Only nodes
    that hold a candidate are walked, and only candidates are found: an ad that the request's
    inventory does not allow never comes back, nor does one that the index does not hold. What is
    known of the context is the same for all ads, but for what counts events of the user by the ad's
    category.

    Scores are total values, by the one function that all stages share: of an ad with its own
    predictions, and of a node the mean of what its ads, those that are no candidates included,
    would be worth with the node's predictions.

    Source:
        HSNN, arXiv:2408.06653: beam search through the learnt hierarchy, ensemble across levels.

    Differs from the source:
        How bids, several tasks and filters meet the search was not published.
    """

    def __init__(
        self,
        model: HSNN,
        spec: InputSpec,
        snapshot: IndexSnapshot,
        rows: NDArray[np.int64],
        features: AdFeatures,
        ads: AdTable,
        value: Valuation,
        *,
        beams: tuple[int, ...],
        task_weights: tuple[float, ...] = (),
        flops: tuple[int, tuple[int, ...]] | None = None,
    ) -> None:
        """Put model and index together.

        Args:
            model: On the CPU, in evaluation mode.
            spec: Its inputs, in order.
            snapshot: An index that was published from it.
            rows: (V,) ad row of each item, in the order of the snapshot's members.
            features: Item fields of all ads.
            ads: Bids and quality of the same ads.
            value: Combines predictions and bid.
            beams: Nodes to keep at each index level, the coarsest first.
            task_weights: Of each task; scores are then the weighted sums of probabilities, whatever
                is bid. Empty: scores are total values.
            flops: Operations of one user, and of a pair at each level; None: they are counted.

        Raises:
            ArtifactError: The snapshot was published from other weights.
            DataError: Model and index have not as many levels, or rows are not those of ads.
        """
        if rows.shape != (snapshot.num_items,) or rows.min() < 0 or rows.max() >= len(ads):
            raise DataError(
                f"IndexSearch: rows must be one of {len(ads)} ads for each of "
                f"{snapshot.num_items} items of the index, got shape {rows.shape} with "
                f"{rows.min()} to {rows.max()}. Index the ads of the inventory."
            )
        self._beams, self._num_ads = beams, len(ads)
        self._rows, self._features = rows, features
        self._groups = {group.name for group in spec.sequences_of("context")}
        self._order = np.argsort(snapshot.members.ids.numpy())
        self._ids = snapshot.members.ids.numpy()[self._order]
        score = None if task_weights else _NodeValues(snapshot, rows, ads, value, spec.tasks)
        self._retriever = Retriever(
            model, snapshot, task_weights=task_weights, score=score, flops=flops
        )

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """The best candidates of several requests, which walk the index together.

        Raises:
            DataError: A request has no features.
        """
        found = self._retriever.search_all(
            [self._query(request) for request in requests],
            keep,
            self._beams,
            allowed=[self._allowed(its) for its in candidates],
        )
        return [
            Scored(
                candidates=Candidates(
                    ads=self._ads_of(one.ids), scores=one.scores.numpy().astype(np.float64)
                ),
                scored_pairs=one.trace.levels[-1].pairs,
                flops=float(one.trace.flops),
                levels=one.trace.levels,
            )
            for one in found
        ]

    def _query(self, request: Request) -> searcher.Request:
        features = features_of(request, reader="retrieval")
        return searcher.Request(user=features, pairs=self._context_of(features))

    def _allowed(self, candidates: Candidates) -> Tensor | None:
        """Which items are candidates; None: all."""
        if len(candidates) == self._num_ads:
            return None
        is_open = np.zeros(self._num_ads, np.bool_)
        is_open[candidates.ads] = True
        return torch.from_numpy(is_open[self._rows])

    def _context_of(self, features: Batch) -> Callable[[Tensor], Batch]:
        """What is known of the request beside each of some items, which are given by id."""
        # A user's own histories are not read beside ads, and long.
        read = {name: features.sequences[name] for name in self._groups}
        row = replace(features, sequences=read)

        def beside(items: Tensor) -> Batch:
            of = torch.zeros(len(items), dtype=torch.int64)
            if not self._features.counts:
                return row.take(of)
            ads = torch.from_numpy(self._ads_of(items))
            return self._features.pairs(features, of, ads, groups=self._groups)

        return beside

    def _ads_of(self, items: Tensor) -> NDArray[np.int64]:
        """Ad rows of items, which are given by id."""
        return self._rows[self._order[np.searchsorted(self._ids, items.numpy())]]


class _NodeValues:
    """Total values of ads, and of nodes the mean over their ads.

    A value is linear in the bid for each way of billing, so the mean over the ads of a node is that
    of their mean bids, weighed by how many of them are billed so.
    """

    def __init__(
        self,
        snapshot: IndexSnapshot,
        rows: NDArray[np.int64],
        ads: AdTable,
        value: Valuation,
        tasks: tuple[Task, ...],
    ) -> None:
        self._rows, self._ads, self._value = rows, ads, value
        self._names = [task.name for task in tasks]
        bid, billing = ads.bid[rows], ads.billing[rows]
        self._quality: list[NDArray[np.float64]] = []
        # By level, for each way of billing: share of a node's ads, and their mean bid.
        self._billed: list[dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = []
        for level in range(len(snapshot.tree.num_nodes)):
            bounds = snapshot.tree.bounds(level).numpy()
            sizes = np.diff(bounds)
            self._quality.append(_sums(ads.quality[rows], bounds) / sizes)
            by_way = {}
            for way in np.unique(billing):
                is_so = billing == way
                counts = _sums(is_so.astype(np.float64), bounds)
                bids = _sums(np.where(is_so, bid, 0.0), bounds)
                by_way[way] = (counts / sizes, bids / np.maximum(counts, 1.0))
            self._billed.append(by_way)

    def __call__(self, level: int, places: Tensor, probabilities: Tensor) -> Tensor:
        """Scores (C,) of nodes of a level, or of items by place."""
        at, columns = places.numpy(), probabilities.double().numpy()
        predictions = {name: columns[:, task] for task, name in enumerate(self._names)}
        if level == len(self._billed):
            values = self._ads.total_value(self._value, predictions, self._rows[at])
            return torch.from_numpy(values).float()
        values = self._quality[level][at]
        for way, (share, mean_bid) in self._billed[level].items():
            billing = np.full(len(at), way)
            values = values + share[at] * self._value.score(predictions, mean_bid[at], billing)
        return torch.from_numpy(values).float()


def _sums(values: NDArray[np.float64], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the values between each two bounds; nodes are never empty."""
    sums: NDArray[np.float64] = np.add.reduceat(values, bounds[:-1])
    return sums
