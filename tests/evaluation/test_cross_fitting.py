"""Cross-fitting: who sees whom, units whole, shapes checked."""

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.cross_fitting import cross_fit
from tamis.evaluation.logged_actions import logged_actions


def numbered_log(rows: int, groups=None):
    return logged_actions(
        np.arange(rows) % 3, np.arange(rows), np.full(rows, 0.5), groups=groups, position=[0] * rows
    )


def test_no_row_is_scored_by_a_model_that_saw_it_and_each_is_scored_once() -> None:
    scored = []

    def fit(context, part):
        # The reward is the row's number here, and so is the context.
        seen = set(part.reward.tolist())
        assert seen == set(context[:, 0].tolist())

        def predict(context, position):
            assert position.shape == (len(context),)
            assert seen.isdisjoint(context[:, 0].tolist())
            scored.extend(context[:, 0].tolist())
            # A row's own number in its prediction shows that rows come back in order.
            return context[:, :1] + np.array([0.0, 100.0])

        return predict

    predicted = cross_fit(fit, np.arange(23.0)[:, None], numbered_log(23), folds=4, seed=1)

    assert sorted(scored) == list(range(23))
    assert predicted.tolist() == [[row, row + 100.0] for row in range(23)]


def test_rows_of_one_unit_are_never_on_both_sides_and_folds_are_even() -> None:
    users = np.arange(40) // 2
    sizes = []

    def fit(context, part):
        trained = set(part.groups.tolist())

        def predict(context, position):
            assert trained.isdisjoint(context.tolist())
            sizes.append(len(context))
            return np.zeros((len(context), 3))

        return predict

    cross_fit(fit, users, numbered_log(40, groups=users), folds=5, seed=2)

    assert sizes == [8] * 5


def test_deal_depends_on_the_seed() -> None:
    def fit(context, part):
        mean = part.reward.mean()
        return lambda context, position: np.full((len(context), 2), mean)

    log = numbered_log(20)
    first, again, other = (cross_fit(fit, np.arange(20), log, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_settings_and_predictions_without_meaning_are_refused() -> None:
    log = numbered_log(6)

    def flat(context, part):
        return lambda context, position: np.zeros(len(context))

    def uneven(context, part):
        return lambda context, position: np.zeros((len(context), 2 + int(context[0] == 0)))

    with pytest.raises(DataError, match=r"one entry for each of 6 rows, got shape \(5,\)"):
        cross_fit(flat, np.arange(5), log, seed=0)
    with pytest.raises(DataError, match="number of units, 6, and seed at least 0, got 7 and 0"):
        cross_fit(flat, np.arange(6), log, folds=7, seed=0)
    with pytest.raises(DataError, match="got 1 and 0"):
        cross_fit(flat, np.arange(6), log, folds=1, seed=0)
    with pytest.raises(DataError, match="got 2 and -1"):
        cross_fit(flat, np.arange(6), log, folds=2, seed=-1)
    with pytest.raises(DataError, match=r"of fold 0 must be of shape \(3, A\) .* got \(3,\)"):
        cross_fit(flat, np.arange(6), log, folds=2, seed=0)
    with pytest.raises(DataError, match=r"with one A for all folds, got \(1, [23]\)"):
        cross_fit(uneven, np.arange(6), log, folds=6, seed=0)
