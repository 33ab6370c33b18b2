"""An early-stage ranker's parts as they serve: towers, a table of ads, and the scorer of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import Task
from tamis.errors import DataError
from tamis.models.early_heads import PairHeads
from tamis.models.output import probabilities_of
from tamis.nn.embedding import FlatInputs

ServedHead = Literal["label", "distilled", "mean"]
"""Which head gives a task's prediction: that of its label, that of the final stage's prediction of
it, or both, by the mean of their logits."""


def label_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The L tasks with labels of their own, for which predictions are served."""
    return tuple(task for task in tasks if not task.distils)


def served_tasks(tasks: Sequence[Task], head: ServedHead) -> tuple[tuple[int, ...], ...]:
    """For each task with labels of its own, places of the tasks whose logits are averaged.

    A task whose prediction by the final stage is not learned is served by its label's head.
    """
    distilled = {task.distils: place for place, task in enumerate(tasks) if task.distils}
    found = []
    for place, task in enumerate(tasks):
        if task.distils:
            continue
        twin = distilled.get(task.name, place)
        chosen = {"label": (place,), "distilled": (twin,), "mean": (place, twin)}[head]
        found.append(chosen)
    return tuple(found)


def served_logits(
    logits: Float[Tensor, "B T"], tasks: Sequence[Task], head: ServedHead
) -> Float[Tensor, "B L"]:
    """Logits that serve, of those of all tasks: what :class:`PairScorer` gives for the same rows.

    Args:
        logits: Of an early-stage ranker's ``Output``.
        tasks: All T tasks, in the order of the logits.
        head: Which head serves.
    """
    columns = [logits[:, list(places)].mean(1) for places in served_tasks(tasks, head)]
    return torch.stack(columns, dim=1)


class SideTower(nn.Module):
    """One side's inputs and its tower: a batch of ``side_spec`` to the vectors that a cache keeps.

    It holds the embedding tables of its side and no others.
    """

    def __init__(self, inputs: FlatInputs, tower: nn.Module) -> None:
        """Put the parts together."""
        super().__init__()
        self.inputs, self.tower = inputs, tower

    def forward(self, batch: Batch) -> Float[Tensor, "B A"]:
        """A vector for each row."""
        return self.tower(self.inputs(batch))


class PairScorer(nn.Module):
    """The heads that serve, and nothing of those that do not."""

    def __init__(self, heads: PairHeads, served: Sequence[tuple[int, ...]]) -> None:
        """Keep what serves.

        Args:
            heads: All heads of a ranker; copied.
            served: For each of the L tasks the heads whose logits are averaged.
        """
        super().__init__()
        kept = sorted({head for group in served for head in group})
        self.heads = heads.of(kept)
        self.served = [[kept.index(head) for head in group] for group in served]

    def forward(
        self,
        query: Float[Tensor, "R Q"],
        ads: Float[Tensor, "B A"],
        rows: Int64[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B L"]:
        """Logits of the served tasks: of one query for all ads, of one for each, or of ``rows``."""
        logits = self.heads(query, ads, rows)
        if self.served == [[head] for head in range(logits.shape[1])]:
            return logits
        return torch.stack([logits[:, group].mean(1) for group in self.served], dim=1)


class AdTable:
    """Cached vectors of ads by id; every change costs the rows that change.

    For one writer at a time: whoever shares a table between threads guards it with a lock.
    """

    def __init__(self, width: int, *, device: torch.device | None = None) -> None:
        """Start empty.

        Args:
            width: Width A of a vector.
            device: Where vectors are kept; None is the CPU.
        """
        with torch.inference_mode(mode=False):
            self._vectors = torch.empty(0, width, device=device)
        self._row_by_id: dict[int, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        """Ads N in the table."""
        return len(self._row_by_id)

    def __contains__(self, ad: object) -> bool:
        """Whether an id has a vector."""
        return ad in self._row_by_id

    def add(self, ads: NDArray[np.int64], vectors: Tensor) -> None:
        """Put in ads that are not there yet.

        Raises:
            DataError: An id is there already or twice in ``ads``, or the shapes do not fit; the
                table is then as it was.
        """
        ids = self._checked(ads, vectors)
        for ad in ids:
            if ad in self._row_by_id:
                raise DataError(
                    f"ad table: an ad to add must not be in it, got {ad}. Update it, or remove it "
                    f"before."
                )
        self._grow(len(ids) - len(self._free))
        rows = [self._free.pop() for _ in ids]
        self._row_by_id.update(zip(ids, rows, strict=True))
        self._vectors[torch.tensor(rows, dtype=torch.int64)] = vectors.detach().to(self._vectors)

    def update(self, ads: NDArray[np.int64], vectors: Tensor) -> None:
        """Give ads of the table other vectors.

        Raises:
            DataError: An id is not there or twice in ``ads``, or the shapes do not fit; the table
                is then as it was.
        """
        self._checked(ads, vectors)
        self._vectors[self._rows(ads)] = vectors.detach().to(self._vectors)

    def remove(self, ads: NDArray[np.int64]) -> None:
        """Take ads out.

        Raises:
            DataError: An id is not there, or twice in ``ads``; the table is then as it was.
        """
        self._rows(ads)
        ids = _distinct(ads)
        self._free += [self._row_by_id.pop(ad) for ad in ids]

    def lookup(self, ads: NDArray[np.int64]) -> Float[Tensor, "N A"]:
        """Vectors of candidates, in their order.

        Raises:
            DataError: An id is not there.
        """
        return self._vectors.index_select(0, self._rows(ads))

    def _rows(self, ads: NDArray[np.int64]) -> Tensor:
        ids = ads.tolist()
        try:
            rows = np.fromiter(map(self._row_by_id.__getitem__, ids), np.int64, len(ids))
        except KeyError as error:
            raise DataError(
                f"ad table: must hold every ad that is asked for, got none of id {error}. Add it, "
                f"or leave the candidate out."
            ) from error
        return torch.from_numpy(rows).to(self._vectors.device)

    def _checked(self, ads: NDArray[np.int64], vectors: Tensor) -> list[int]:
        wanted = (len(ads), self._vectors.shape[1])
        if tuple(vectors.shape) != wanted:
            raise DataError(
                f"ad table: vectors of {len(ads)} ads must be of shape {wanted}, got "
                f"{tuple(vectors.shape)}. Take them from the ad tower of the same model."
            )
        return _distinct(ads)

    def _grow(self, missing: int) -> None:
        """Make room for so many more rows; doubling, so that adding costs O(1) a row."""
        if missing <= 0:
            return
        before = len(self._vectors)
        after = before + max(missing, before)
        # A tensor made in inference mode could never be written outside it.
        with torch.inference_mode(mode=False), torch.no_grad():
            grown = self._vectors.new_empty(after, self._vectors.shape[1])
            grown[:before] = self._vectors
        self._vectors = grown
        self._free += range(after - 1, before - 1, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStageParts:
    """What an early-stage ranker serves with; each part may live on a machine of its own."""

    user_tower: SideTower
    """A user's inputs to the vector that is kept for the user."""
    ad_tower: SideTower
    """An ad's inputs to its row of the table of ads; runs when the ad changes."""
    ad_table: AdTable
    """Vectors of the ads that may be candidates; empty until they are added."""
    context_tower: SideTower | None
    """A request's inputs to a vector; None where the schema has no context fields."""
    scorer: PairScorer
    """Vectors of a request and of its candidates to logits."""
    tasks: tuple[Task, ...]
    """The L served tasks."""

    @torch.inference_mode()
    def embed_user(self, user: Batch) -> Float[Tensor, "R A"]:
        """Vectors to keep for users, from their inputs as ``side_batch`` gives them."""
        return self.user_tower(user)

    @torch.inference_mode()
    def query(
        self, user: Float[Tensor, "R A"], context: Batch | None = None
    ) -> Float[Tensor, "R Q"]:
        """What the scorer takes for a request, or for several.

        Args:
            user: Of :meth:`embed_user`, now or a while ago.
            context: The request's inputs as ``side_batch`` gives them; only and always where there
                is a context tower.

        Raises:
            DataError: The context is missing, or there is no tower for it.
        """
        if (context is None) != (self.context_tower is None):
            needs = "needs no" if self.context_tower is None else "needs a"
            raise DataError(
                f"early stage: this model {needs} context, got "
                f"{'none' if context is None else 'one'}. Export follows the schema's context "
                f"fields."
            )
        if self.context_tower is None:
            return user
        return torch.cat([user, self.context_tower(context)], dim=1)

    @torch.inference_mode()
    def embed_ads(self, ads: Batch) -> Float[Tensor, "N A"]:
        """Vectors for the table of ads, from the ads' inputs as ``side_batch`` gives them."""
        return self.ad_tower(ads)

    @torch.inference_mode()
    def score(
        self, query: Float[Tensor, "R Q"], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Predictions of the served tasks in one call.

        Args:
            query: Of :meth:`query`: that of one request, whose candidates the ads are, or one for
                each ad.
            ads: (N,) ids in the table of ads.

        Returns:
            (N,) by task: probabilities, but for regression tasks, whose are values; of a chain the
            factors, as a value function multiplies them.

        Raises:
            DataError: An ad is not in the table.
        """
        return self.score_vectors(query, self.ad_table.lookup(ads))

    @torch.inference_mode()
    def score_vectors(
        self,
        query: Float[Tensor, "R Q"],
        ads: Float[Tensor, "N A"],
        rows: Int64[Tensor, " N"] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """As :meth:`score`, for vectors of ads that the caller keeps.

        Args:
            query: Of :meth:`query`.
            ads: Of :meth:`embed_ads`.
            rows: The query of each ad; None: each has its own, or all have the only one.
        """
        logits = self.scorer(query, ads, rows)
        predictions = probabilities_of(logits, self.tasks).cpu().numpy()
        return {task.name: predictions[:, at].copy() for at, task in enumerate(self.tasks)}


def _distinct(ads: NDArray[np.int64]) -> list[int]:
    ids: list[int] = ads.tolist()
    if len(set(ids)) < len(ids):
        twice = next(ad for place, ad in enumerate(ids) if ad in ids[:place])
        raise DataError(f"ad table: ids must differ, got {twice} twice. Take the newest of each.")
    return ids
