"""Retrieval over a full corpus: recall, NDCG and the true value of what was found.

Each metric gives one number per user, so that two ways to search can be compared user by user.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError

CUTOFFS = (20, 50, 100, 500)
"""Lengths of lists at which recall is reported."""
NDCG_AT = 20
"""Length of lists at which NDCG is reported."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemLists:
    """Items of U users, one list after the other: ``ids[offsets[u]:offsets[u + 1]]``."""

    offsets: NDArray[np.int64]
    """(U + 1,) from 0 to N."""
    ids: NDArray[np.int64]
    """(N,) ids, at least 0; within a list all different."""

    def __post_init__(self) -> None:
        if self.ids.size and self.ids.min() < 0:
            raise DataError(f"item lists: ids must be at least 0, got {int(self.ids.min())}.")
        keys = np.sort(self.owners * (int(self.ids.max(initial=0)) + 1) + self.ids)
        twice = keys[1:][keys[1:] == keys[:-1]]
        if twice.size:
            user, item = divmod(int(twice[0]), int(self.ids.max()) + 1)
            raise DataError(
                f"item lists: a list must not hold an item twice, got item {item} twice for user "
                f"{user}. Drop repeats beforehand."
            )

    @classmethod
    def of(cls, lists: Sequence[ArrayLike]) -> "ItemLists":
        """Lists as they are, one for each user."""
        arrays = [np.asarray(ids, np.int64) for ids in lists]
        lengths = np.array([0, *(len(ids) for ids in arrays)], np.int64)
        return cls(offsets=lengths.cumsum(), ids=np.concatenate([np.zeros(0, np.int64), *arrays]))

    @classmethod
    def of_pairs(cls, users: ArrayLike, ids: ArrayLike, *, num_users: int) -> "ItemLists":
        """Lists of pairs (N,) of a user, numbered from 0, and an item, in any order."""
        owner, items = np.asarray(users, np.int64), np.asarray(ids, np.int64)
        counts = np.bincount(owner, minlength=num_users)
        order = np.argsort(owner, kind="stable")
        return cls(offsets=np.concatenate([[0], counts.cumsum()]), ids=items[order])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(U,) items of each list."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """(N,) number of the user of each item."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def lists(self) -> list[NDArray[np.int64]]:
        """The items of each user."""
        return np.split(self.ids, self.offsets[1:-1])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RetrievalScores:
    """Scores of U users; nan for those without a relevant item."""

    recall: dict[int, NDArray[np.float64]]
    """(U,) for each cutoff k: share of the relevant items that are among the first k."""
    ndcg: NDArray[np.float64]
    """(U,) normalised discounted cumulative gain of the first ``ndcg_at`` items."""
    ndcg_at: int
    """Length of lists that NDCG looks at."""

    @property
    def users(self) -> int:
        """Users that have a relevant item."""
        return int(np.isfinite(self.ndcg).sum())

    def means(self) -> dict[str, float]:
        """Mean over users that have a relevant item, by name of the metric."""
        named = {f"recall@{k}": values for k, values in self.recall.items()}
        named[f"ndcg@{self.ndcg_at}"] = self.ndcg
        return {name: float(values[np.isfinite(values)].mean()) for name, values in named.items()}


def full_corpus_scores(
    found: ArrayLike,
    relevant: ItemLists,
    masked: ItemLists,
    *,
    num_items: int,
    candidates: ArrayLike,
    cutoffs: Sequence[int] = CUTOFFS,
    ndcg_at: int = NDCG_AT,
) -> RetrievalScores:
    """Recall and NDCG of lists that were found among all items but the masked ones.

    Args:
        found: (U, K) ids, the best item first, -1 after the last one of a list that is shorter.
            Here and below they number the items of the corpus, from 0.
        relevant: What each user went for in the evaluated window.
        masked: What no list may hold, such as the items of the user's training rows.
        num_items: Items V of the corpus.
        candidates: (U,) items that each list was chosen from, as the searcher counts them. It must
            be V less the masked ones: recall among sampled candidates is another, larger number.
        cutoffs: Lengths k of lists at which recall is computed.
        ndcg_at: Length of lists at which NDCG is computed.

    Returns:
        A number per user and metric. Recall@k is hits over all relevant items. NDCG gives a hit at
        place r, counted from 1, ``1 / log2(r + 1)``, and divides by the best sum that the user's
        relevant items allow.

    Raises:
        DataError: Candidates were sampled, a list is too short for a cutoff, holds an item twice or
            a masked one, an item is both relevant and masked or none of the corpus, or no user has
            a relevant item.

    Source:
        Protocol of He et al., LightGCN, SIGIR 2020, section 4.1.

    Differs from the source:
        Users without a relevant item have no score.

    Example:
        >>> scores = full_corpus_scores(
        ...     [[3, 1]],
        ...     ItemLists.of([[1, 2]]),
        ...     ItemLists.of([[0]]),
        ...     num_items=4,
        ...     candidates=[3],
        ...     cutoffs=(1, 2),
        ...     ndcg_at=2,
        ... )
        >>> [float(scores.recall[k][0]) for k in (1, 2)]
        [0.0, 0.5]
    """
    lists = np.asarray(found, np.int64)
    users = len(relevant.offsets) - 1
    longest = max((*cutoffs, ndcg_at))
    _check_corpus(lists, masked, users, num_items, np.asarray(candidates))
    width = min(longest, num_items)
    if lists.shape[1] < width:
        raise DataError(
            f"retrieval: lists must hold {width} items for the largest cutoff, got "
            f"{lists.shape[1]}. Search for more items."
        )
    _check_known(lists, relevant, masked, num_items)
    _check_lists(lists, relevant, masked)
    hits = _is_in(lists, relevant)
    count = relevant.lengths.astype(np.float64)
    with np.errstate(invalid="ignore"):
        recall = {int(k): hits[:, :k].sum(1) / count for k in cutoffs}
        gains = 1.0 / np.log2(np.arange(2, ndcg_at + 2))
        best = np.concatenate([[0.0], gains.cumsum()])[np.minimum(relevant.lengths, ndcg_at)]
        ndcg = hits[:, :ndcg_at] @ gains[: lists.shape[1]] / best
    if not count.any():
        raise DataError(f"retrieval: a user must have a relevant item, got none in {users} users.")
    return RetrievalScores(recall=recall, ndcg=ndcg, ndcg_at=ndcg_at)


def true_value_recall(found: ArrayLike, values: ArrayLike, k: int) -> NDArray[np.float64]:
    """True value of the first k items found, over that of the k most valuable of all.

    Args:
        found: (U, K) columns of ``values``, the best item first, -1 after the last one of a list
            that is shorter.
        values: (U, V) what each item is truly worth to each user, as a simulated market knows it;
            finite and at least 0.
        k: Items that count. At least 1.

    Returns:
        (U,) shares in [0, 1]; nan where nothing is worth anything.

    Raises:
        DataError: A number is out of its range, or a list holds an item twice.

    Example:
        >>> true_value_recall([[2, 0]], [[1.0, 4.0, 3.0]], 2).tolist()
        [0.5714285714285714]
    """
    lists, worth = np.asarray(found, np.int64), np.asarray(values, np.float64)
    if k < 1:
        raise DataError(f"true_value_recall: k must be at least 1, got {k}.")
    if worth.ndim != 2 or lists.ndim != 2 or len(lists) != len(worth):
        raise DataError(
            f"true_value_recall: lists and values must be two matrices with a row for each user, "
            f"got shapes {lists.shape} and {worth.shape}."
        )
    if not (np.isfinite(worth) & (worth >= 0.0)).all():
        raise DataError(
            "true_value_recall: values must be finite and at least 0, got "
            f"{float(worth[~(np.isfinite(worth) & (worth >= 0.0))][0])}."
        )
    _check_different(lists)
    num_items = worth.shape[1]
    if lists.size and not (lists < num_items).all():
        raise DataError(
            f"true_value_recall: items must be below {num_items}, the columns of values, got "
            f"{int(lists.max())}."
        )
    first = lists[:, :k]
    got = np.where(first >= 0, np.take_along_axis(worth, np.maximum(first, 0), axis=1), 0.0).sum(1)
    cut = min(k, num_items)
    best = np.partition(worth, num_items - cut, axis=1)[:, num_items - cut :].sum(1)
    with np.errstate(invalid="ignore"):
        # The same numbers summed in another order may give a hair more.
        share: NDArray[np.float64] = np.minimum(got / best, 1.0)
    return share


def _check_corpus(
    lists: NDArray[np.int64],
    masked: ItemLists,
    users: int,
    num_items: int,
    candidates: NDArray[np.generic],
) -> None:
    if lists.ndim != 2 or not len(lists) == len(masked.offsets) - 1 == users == len(candidates):
        raise DataError(
            f"retrieval: there must be a list, masked items and a number of candidates for each of "
            f"{users} users, got lists of shape {lists.shape}, {len(masked.offsets) - 1} masks and "
            f"{len(candidates)} numbers."
        )
    expected = num_items - masked.lengths
    wrong = np.flatnonzero(candidates != expected)
    if wrong.size:
        user = int(wrong[0])
        raise DataError(
            f"retrieval: the candidates of user {user} must be the {num_items} items of the corpus "
            f"less {int(masked.lengths[user])} masked ones, {int(expected[user])}, got "
            f"{candidates[user]}. Search the whole corpus; recall among sampled items is another "
            f"number."
        )


def _check_known(
    lists: NDArray[np.int64], relevant: ItemLists, masked: ItemLists, num_items: int
) -> None:
    for what, ids, least in (
        ("items of lists", lists, -1),  # -1 is no item
        ("relevant items", relevant.ids, 0),
        ("masked items", masked.ids, 0),
    ):
        is_unknown = (ids < least) | (ids >= num_items)
        if is_unknown.any():
            raise DataError(
                f"retrieval: {what} must be of the {num_items} items of the corpus, numbered from "
                f"0, got {int(ids[is_unknown][0])}. Number the same corpus throughout."
            )


def _check_lists(lists: NDArray[np.int64], relevant: ItemLists, masked: ItemLists) -> None:
    _check_different(lists)
    for is_wrong, what in (
        (_is_in(lists, masked), "lists must not hold a masked item"),
        (_contains(relevant.owners, relevant.ids, masked), "relevant items must not be masked"),
    ):
        if is_wrong.any():
            place = np.flatnonzero(is_wrong.ravel())[0]
            ids = lists if is_wrong.ndim == 2 else relevant.ids
            raise DataError(
                f"retrieval: {what}, got item {int(ids.ravel()[place])}. Drop it beforehand."
            )


def _check_different(lists: NDArray[np.int64]) -> None:
    ordered = np.sort(lists, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        raise DataError(
            f"retrieval: a list must not hold an item twice, got item "
            f"{int(ordered[:, 1:][twice][0])} twice."
        )


def _is_in(lists: NDArray[np.int64], wanted: ItemLists) -> NDArray[np.bool_]:
    """(U, K) whether each place holds an item of the user's list."""
    owners = np.repeat(np.arange(len(lists)), lists.shape[1])
    return _contains(owners, lists.ravel(), wanted).reshape(lists.shape)


def _contains(
    owners: NDArray[np.int64], ids: NDArray[np.int64], wanted: ItemLists
) -> NDArray[np.bool_]:
    """Whether pairs of user and item are pairs of ``wanted``."""
    # One key for each pair; -1, which is no item, must not be the last item of the user before.
    span = max(int(ids.max(initial=0)), int(wanted.ids.max(initial=0))) + 1
    is_pair = np.isin(owners * span + ids, wanted.owners * span + wanted.ids)
    found: NDArray[np.bool_] = is_pair & (ids >= 0)
    return found
