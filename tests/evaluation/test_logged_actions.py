"""Logs with propensities: what is kept, and every column that is refused."""

import math

import numpy as np
import pytest

from tamis.errors import DataError
from tamis.evaluation.logged_actions import action_probabilities, logged_actions


def test_rows_are_taken_in_the_order_asked_for() -> None:
    log = logged_actions(
        [0, 1, 2],
        [1, 0, 5],
        [0.5, 0.25, 0.125],
        position=[0, 1, 0],
        groups=["a", "b", "c"],
        logging_policy=[[0.5, 0.5, 0, 0], [0.75, 0.25, 0, 0], [0.5, 0, 0.125, 0.375]],
    )
    part = log.take(np.array([2, 0]))
    assert part.rows == 2
    assert part.action.tolist() == [2, 0]
    assert part.reward.tolist() == [5.0, 1.0]
    assert part.propensity.tolist() == [0.125, 0.5]
    assert part.position.tolist() == [0, 0]
    assert part.groups.tolist() == ["c", "a"]
    assert part.is_possible.tolist() == [[True, False, True, True], [True, True, False, False]]


def test_probabilities_by_position_are_those_of_the_row_s_position() -> None:
    log = logged_actions([0, 1], [0, 0], [0.5, 0.5], position=[1, 0])
    by_position = np.broadcast_to([[0.25, 0.75], [0.875, 0.125]], (2, 2, 2))
    assert action_probabilities(log, by_position).tolist() == [[0.875, 0.125], [0.25, 0.75]]


@pytest.mark.parametrize("propensity", [0.0, math.nan, -0.5, 1.5])
def test_propensities_outside_their_range_are_refused(propensity: float) -> None:
    message = rf"propensities: must be in \(0, 1\], got {propensity!r} at position 1 \(1 such"
    with pytest.raises(DataError, match=message):
        logged_actions([0, 1], [0, 0], [0.5, propensity])


def test_log_without_propensities_is_refused() -> None:
    with pytest.raises(DataError, match="propensities: must be logged with the actions, got None"):
        logged_actions([0, 1], [0, 0], None)


def test_columns_without_meaning_are_refused() -> None:
    half = [0.5, 0.5]
    with pytest.raises(DataError, match="at least one row, got 0"):
        logged_actions([], [], [])
    with pytest.raises(DataError, match=r"actions: must be whole numbers from 0, got 0\.5 at"):
        logged_actions([0, 0.5], [0, 0], half)
    with pytest.raises(DataError, match=r"actions: must be whole numbers from 0, got -1\.0 at"):
        logged_actions([0, -1], [0, 0], half)
    with pytest.raises(DataError, match="positions: must be whole numbers from 0, got nan at"):
        logged_actions([0, 1], [0, 0], half, position=[0, math.nan])
    with pytest.raises(DataError, match="rewards: must be finite, got inf at position 0"):
        logged_actions([0, 1], [math.inf, 0], half)
    with pytest.raises(DataError, match=r"rewards: must be of shape \(2,\) .* got shape \(3,\)"):
        logged_actions([0, 1], [0, 0, 0], half)
    with pytest.raises(DataError, match=r"actions: must be one-dimensional, got shape \(1, 2\)"):
        logged_actions([[0, 1]], [0, 0], half)
    with pytest.raises(DataError, match="actions: must be numbers, got dtype <U1"):
        logged_actions(["a", "b"], [0, 0], half)
    with pytest.raises(DataError, match=r"groups: must be of shape \(2,\) .* got \(1,\)"):
        logged_actions([0, 1], [0, 0], half, groups=[7])


def test_propensities_that_contradict_the_logging_policy_are_refused() -> None:
    with pytest.raises(DataError, match=r"those of logging_policy .* got 0\.5 at position 1"):
        logged_actions([0, 1], [0, 0], [0.25, 0.5], logging_policy=[[0.25, 0.75]] * 2)


def test_policies_that_do_not_fit_the_log_are_refused() -> None:
    log = logged_actions([0, 2], [0, 0], [0.5, 0.5])
    with pytest.raises(DataError, match=r"\(n, A\) or \(n, P, A\) with n=2, got .* shape \(1, 3\)"):
        action_probabilities(log, [[0.5, 0.25, 0.25]])
    with pytest.raises(DataError, match="got 2 actions and a logged action 2"):
        action_probabilities(log, [[0.5, 0.5]] * 2)
    with pytest.raises(DataError, match=r"the sum over actions: must be 1, .* got 1\.25 at"):
        action_probabilities(log, [[0.5, 0.5, 0.25]] * 2)
    # The sum is 1, and still these are no probabilities.
    with pytest.raises(DataError, match=r"terms that are not negative, got 1\.0 at position 1"):
        action_probabilities(log, [[0.5, 0.5, 0.0], [1.5, -0.5, 0.0]])
    with pytest.raises(DataError, match="need positions below 1 in the log, got at most None"):
        action_probabilities(log, [[[0.5, 0.25, 0.25]]] * 2)
    placed = logged_actions([0, 2], [0, 0], [0.5, 0.5], position=[0, 3])
    with pytest.raises(DataError, match="need positions below 2 in the log, got at most 3"):
        action_probabilities(placed, np.full((2, 2, 4), 0.25))
