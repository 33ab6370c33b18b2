"""Retrieval metrics over a full corpus: known answers, slow loops, and what is refused."""

from math import log2

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.retrieval import ItemLists, full_corpus_scores, true_value_recall


def _scores(found, relevant, masked, **options):
    settings = {"num_items": 10, "cutoffs": (1, 3), "ndcg_at": 3} | options
    masks = ItemLists.of(masked)
    settings.setdefault("candidates", settings["num_items"] - masks.lengths)
    return full_corpus_scores(found, ItemLists.of(relevant), masks, **settings)


def test_recall_and_ndcg_known_answer() -> None:
    scores = _scores([[4, 7, 2], [1, 0, 5]], [[7, 2, 9], [1]], [[0], []])

    # User 0: of 7, 2 and 9 none is first, and two are among three.
    assert scores.recall[1].tolist() == [0.0, 1.0]
    assert scores.recall[3].tolist() == pytest.approx([2 / 3, 1.0])
    # Hits at places 2 and 3; three relevant items could have filled places 1 to 3.
    best = 1 + 1 / log2(3) + 1 / 2
    assert scores.ndcg.tolist() == pytest.approx([(1 / log2(3) + 1 / 2) / best, 1.0])
    assert scores.means() == pytest.approx(
        {"recall@1": 0.5, "recall@3": 5 / 6, "ndcg@3": (1 + (1 / log2(3) + 1 / 2) / best) / 2}
    )


def test_scores_equal_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    found, relevant, masked = [], [], []
    for _ in range(40):
        order = generator.permutation(60)
        masked.append(order[: generator.integers(0, 8)])
        left = order[len(masked[-1]) :]
        relevant.append(left[generator.random(len(left)) < 0.1])
        found.append(generator.permutation(left)[:30])
    scores = _scores(found, relevant, masked, num_items=60, cutoffs=(5, 30), ndcg_at=20)

    for user in range(40):
        wanted, ranked = set(relevant[user].tolist()), found[user].tolist()
        if not wanted:
            assert np.isnan(scores.ndcg[user])
            continue
        for k in (5, 30):
            hits = len(wanted & set(ranked[:k]))
            assert scores.recall[k][user] == pytest.approx(hits / len(wanted))
        gain = sum(1 / log2(r + 2) for r, item in enumerate(ranked[:20]) if item in wanted)
        best = sum(1 / log2(r + 2) for r in range(min(20, len(wanted))))
        assert scores.ndcg[user] == pytest.approx(gain / best)
    assert scores.users == sum(len(wanted) > 0 for wanted in relevant)


def test_users_without_a_relevant_item_do_not_count() -> None:
    scores = _scores([[4, 7, 2], [1, 0, 5]], [[4], []], [[], []])

    assert scores.users == 1
    assert np.isnan(scores.recall[1][1])
    assert scores.means()["recall@1"] == 1.0


def test_shorter_lists_end_with_nothing_and_nothing_is_no_hit() -> None:
    # Key 10 * 1 - 1 would be that of item 9 of the user before.
    scores = _scores([[9, 1, 2], [3, -1, -1]], [[9], [4]], [[], []])

    assert scores.recall[3].tolist() == [1.0, 0.0]


def test_list_of_the_whole_corpus_may_be_shorter_than_a_cutoff() -> None:
    scores = _scores([[1, 0]], [[0]], [[]], num_items=2, cutoffs=(50,), ndcg_at=20)

    assert scores.recall[50].tolist() == [1.0]
    assert scores.ndcg.tolist() == pytest.approx([1 / log2(3)])


def test_ndcg_alone_needs_no_cutoff() -> None:
    scores = _scores([[4, 7, 2]], [[7]], [[]], cutoffs=())

    assert scores.means() == pytest.approx({"ndcg@3": 1 / log2(3)})


def test_lists_of_pairs_are_lists_in_the_order_of_users() -> None:
    lists = ItemLists.of_pairs([2, 0, 2], [5, 6, 7], num_users=4)

    assert [ids.tolist() for ids in lists.lists()] == [[6], [], [5, 7], []]


def test_lists_of_items_that_repeat_or_are_none_are_refused() -> None:
    with pytest.raises(DataError, match=r"got item 4 twice for user 1\. Drop repeats"):
        ItemLists.of([[4, 2], [4, 0, 4]])
    with pytest.raises(DataError, match="ids must be at least 0, got -1"):
        ItemLists.of([[0], [-1]])


@pytest.mark.parametrize(
    ("found", "relevant", "masked", "options", "message"),
    [
        ([[1, 2, 3]], [[1]], [[4]], {"candidates": [10]}, r"less 1 masked ones, 9, got 10"),
        ([[1, 2, 3]], [[1]], [[]], {"candidates": [100]}, "recall among sampled items"),
        ([[1, 2]], [[1]], [[]], {}, "must hold 3 items for the largest cutoff, got 2"),
        ([[1, 2, 1]], [[1]], [[]], {}, "must not hold an item twice, got item 1 twice"),
        ([[1, 2, 3]], [[1]], [[3]], {}, "lists must not hold a masked item, got item 3"),
        ([[1, 2, 3]], [[8]], [[8]], {}, "relevant items must not be masked, got item 8"),
        ([[1, 2, 3]], [[]], [[]], {}, "a user must have a relevant item, got none in 1 users"),
        ([[1, 2, 3]], [[1], [2]], [[]], {"candidates": [10]}, "for each of 2 users"),
        ([[1, 10, 3]], [[1]], [[]], {}, "items of lists must be of the 10 items .*, got 10"),
        ([[1, 2, -2]], [[1]], [[]], {}, "items of lists must be of the 10 items .*, got -2"),
        ([[1, 2, 3]], [[1, 11]], [[]], {}, "relevant items must be of the 10 items .*, got 11"),
        ([[1, 2, 3]], [[1]], [[12]], {}, "masked items must be of the 10 items .*, got 12"),
    ],
)
def test_what_would_give_a_wrong_number_is_refused(
    found, relevant, masked, options, message
) -> None:
    with pytest.raises(DataError, match=message):
        _scores(found, relevant, masked, **options)


def test_true_value_recall_known_answer() -> None:
    values = [[1.0, 4.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 1.0, 5.0]]
    shares = true_value_recall([[2, 0, 1], [0, 1, 2], [3, -1, -1]], values, 2)

    # The best two are worth 4 + 3; 5 + 2 for the last user, for whom one item was found.
    assert shares[[0, 2]].tolist() == pytest.approx([(3 + 1) / 7, 5 / 7])
    assert np.isnan(shares[1])


def test_true_value_recall_is_1_for_the_most_valuable_items_and_never_above() -> None:
    values = np.random.default_rng(0).lognormal(size=(30, 50))
    order = np.argsort(-values, axis=1)

    # Sums of the same values in another order differ by some 1e-16.
    assert true_value_recall(order, values, 20) == pytest.approx(1.0, abs=1e-12)
    assert true_value_recall(order[:, ::-1], values, 50) == pytest.approx(1.0, abs=1e-12)
    assert (true_value_recall(order[:, ::-1], values, 20) < 0.5).all()
    assert true_value_recall(order, values, 20).max() <= 1.0


@pytest.mark.parametrize(
    ("found", "values", "k", "message"),
    [
        ([[0]], [[1.0]], 0, "k must be at least 1, got 0"),
        ([[0]], [[-1.0]], 1, r"finite and at least 0, got -1\.0"),
        ([[2]], [[1.0, 2.0]], 1, "must be below 2, the columns of values, got 2"),
        ([[0, 0]], [[1.0, 2.0]], 1, "must not hold an item twice"),
        ([[0]], [[1.0], [2.0]], 1, r"got shapes \(1, 1\) and \(2, 1\)"),
    ],
)
def test_true_value_of_what_has_none_is_refused(found, values, k, message) -> None:
    with pytest.raises(DataError, match=message):
        true_value_recall(found, values, k)
