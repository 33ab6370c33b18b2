"""Search in two steps: a cheap searcher's best m items, then a network's order of them."""

from collections.abc import Sequence

import torch

from tamis.errors import DataError
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.scorer import Scorer
from tamis.retrieval.search import best_places, logits_of_pairs, pairs_at, total_scores
from tamis.retrieval.searcher import (
    Found,
    LevelTrace,
    Request,
    Searcher,
    Trace,
    check_one_user,
    tensor_bytes,
)


class Reranker:
    """The items that another searcher finds, scored by a model without index levels.

    With two towers and an index before it, and the network of HSNN's leaf as the model, it spends
    as much on as many items as HSNN does, under an index that learnt nothing of the network. Of
    equal scores the item that the first searcher preferred wins.

    See :class:`tamis.retrieval.searcher.Searcher`.
    """

    def __init__(
        self,
        first: Searcher,
        scorer: Scorer,
        items: ItemVectors,
        *,
        num_candidates: int,
        task_weights: Sequence[float] = (),
    ) -> None:
        """Put both steps together.

        Args:
            first: What finds the candidates.
            scorer: A model whose only level is that of items, in evaluation mode.
            items: The same corpus as it encodes it.
            num_candidates: Items m that are scored. At least 1.
            task_weights: Weight of each task's probability; empty weighs them alike.

        Raises:
            ValueError: The model is in training mode, or there is no candidate.
            DataError: The model has levels for nodes, or the corpora differ in size.
        """
        if scorer.training:
            raise ValueError(
                "reranker: the model must be in evaluation mode, got training mode. Call eval()."
            )
        if num_candidates < 1:
            raise ValueError(f"reranker: num_candidates must be at least 1, got {num_candidates}.")
        if scorer.num_levels != 1:
            raise DataError(
                f"reranker: the model must have no level but that of items, got "
                f"{scorer.num_levels}. Train one without codebooks."
            )
        if first.num_items != len(items.ids):
            raise DataError(
                f"reranker: both steps must know the same items, got {first.num_items} and "
                f"{len(items.ids)}. Encode the same corpus."
            )
        self.first, self.scorer, self.items = first, scorer, items
        self.num_candidates, self.task_weights = num_candidates, tuple(task_weights)
        self._user_flops, (self._pair_flops,) = scorer.count_flops()

    @property
    def num_items(self) -> int:
        """Items of the corpus."""
        return self.first.num_items

    @property
    def index_bytes(self) -> int:
        """What the first searcher keeps, and the model's own vectors and ids."""
        own = tensor_bytes((self.items.ids, self.items.vectors))
        return self.first.index_bytes + own

    def search(self, request: Request, k: int) -> Found:
        """The best k of the m candidates; all of them where k is larger."""
        check_one_user(request, k)
        found = self.first.search(request, self.num_candidates)
        with torch.inference_mode():
            places = self.items.places(found.ids)
            (user,) = self.scorer.encode_user(request.user)
            own = logits_of_pairs(
                self.scorer,
                0,
                user,
                self.items.vectors,
                places,
                [len(places)],
                pairs=[pairs_at(request, self.items.ids)],
            )
            scores = total_scores(self.scorer, 0, own, self.task_weights)
            kept = best_places(scores, k)
            order = kept[torch.argsort(-scores.index_select(0, kept), stable=True)]
        level = LevelTrace(
            nodes=self.num_items,
            pairs=len(found.ids),
            kept=len(order),
            flops=len(found.ids) * self._pair_flops,
            bytes=len(places) * tensor_bytes([self.items.vectors[:1]]),
        )
        trace = Trace(
            levels=(*found.trace.levels, level),
            user_flops=found.trace.user_flops + self._user_flops,
        )
        return Found(ids=found.ids[order], scores=scores[order], trace=trace)
