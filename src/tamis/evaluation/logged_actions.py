"""Logs with propensities: what was shown, how likely that was, and what came of it.

Every off-policy estimate starts here, so that a missing propensity means the same to all of them.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.rows import number_column, refuse

_SUM_TOLERANCE = 1e-5
"""How far from 1 the probabilities of one row may add up, which float32 policies reach."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoggedActions:
    """n rows of a log, after the checks of :func:`logged_actions`."""

    action: NDArray[np.int64]
    """(n,) what was shown, from 0."""
    reward: NDArray[np.float64]
    """(n,) what came of it, such as a click or a value."""
    propensity: NDArray[np.float64]
    """(n,) probability with which the logging policy showed this action here, in (0, 1]."""
    position: NDArray[np.int64] | None
    """(n,) place in the slate, from 0; None where each row is a decision of its own."""
    groups: NDArray[np.generic] | None
    """(n,) independent unit of each row, such as its user; None for independent rows."""
    is_possible: NDArray[np.bool_] | None
    """(n, A) which actions the logging policy could have taken; None where the log does not say."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.action.size)

    def take(self, rows: NDArray[np.int64]) -> "LoggedActions":
        """Some of the rows.

        Args:
            rows: Their numbers.

        Returns:
            The rows, in the order of the numbers.
        """
        return LoggedActions(
            action=self.action[rows],
            reward=self.reward[rows],
            propensity=self.propensity[rows],
            position=None if self.position is None else self.position[rows],
            groups=None if self.groups is None else self.groups[rows],
            is_possible=None if self.is_possible is None else self.is_possible[rows],
        )


def logged_actions(
    action: ArrayLike,
    reward: ArrayLike,
    propensity: ArrayLike | None,
    *,
    position: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    logging_policy: ArrayLike | None = None,
) -> LoggedActions:
    """Checks the columns of a log.

    Args:
        action: (n,) what was shown, whole numbers from 0.
        reward: (n,) finite numbers.
        propensity: (n,) probability with which the logging policy showed the action, given the
            row's context and position, in (0, 1]. A log without propensities (None) is refused:
            they cannot be made up afterwards.
        position: (n,) place in the slate, whole numbers from 0. Rows of one slate are judged one
            by one: the reward of a place may depend on the place, not on its neighbours.
        groups: (n,) independent unit of each row, such as its user or request.
        logging_policy: (n, A), or (n, P, A) with ``position``: all probabilities of the logging
            policy, where they are known. They tell exactly which actions it never takes.

    Returns:
        The rows.

    Raises:
        DataError: A column is missing, not as long as the others, or holds a value without
            meaning; the message names the first position.
    """
    actions = _whole_numbers("actions", action, size=None)
    size = actions.size
    if size == 0:
        raise DataError("logged_actions: there must be at least one row, got 0. Read the log.")
    if propensity is None:
        raise DataError(
            "propensities: must be logged with the actions, got None. Log the probability with "
            "which each action was chosen; without it a policy cannot be evaluated off-line."
        )
    rewards = number_column("rewards", reward, size=size, like="actions")
    refuse("rewards", "finite", rewards, ~np.isfinite(rewards))
    chances = number_column("propensities", propensity, size=size, like="actions")
    refuse("propensities", "in (0, 1]", chances, ~((chances > 0.0) & (chances <= 1.0)))
    positions = None if position is None else _whole_numbers("positions", position, size=size)
    units = None if groups is None else np.asarray(groups)
    if units is not None and units.shape != (size,):
        raise DataError(
            f"groups: must be of shape ({size},) as the actions are, got {units.shape}. "
            "Pass one group per row."
        )
    log = LoggedActions(
        action=actions,
        reward=rewards,
        propensity=chances,
        position=positions,
        groups=units,
        is_possible=None,
    )
    if logging_policy is None:
        return log
    known = action_probabilities(log, logging_policy, "logging_policy")
    own = known[np.arange(size), actions]
    differs = ~np.isclose(own, chances, rtol=1e-4, atol=0.0)
    refuse("propensities", "those of logging_policy for the logged action", chances, differs)
    return replace(log, is_possible=known > 0.0)


def action_probabilities(
    log: LoggedActions, policy: ArrayLike, name: str = "policy"
) -> NDArray[np.float64]:
    """What a policy would do at each row of a log.

    Args:
        log: The rows.
        policy: (n, A) probabilities of the actions, or (n, P, A) of which the row's position is
            taken. A policy that is the same everywhere may be broadcast; it is not copied whole.
        name: What to call it in a message.

    Returns:
        (n, A) probabilities of the actions at each row.

    Raises:
        DataError: The shape does not fit the log, or the probabilities are none.
    """
    table = np.asarray(policy)
    if table.dtype.kind not in "biuf" or table.ndim not in (2, 3) or table.shape[0] != log.rows:
        raise DataError(
            f"{name}: must be numbers of shape (n, A) or (n, P, A) with n={log.rows}, got dtype "
            f"{table.dtype} and shape {table.shape}. Give the probability of every action."
        )
    if table.ndim == 3:
        if log.position is None or log.position.max() >= table.shape[1]:
            last = None if log.position is None else int(log.position.max())
            raise DataError(
                f"{name}: probabilities by position need positions below {table.shape[1]} in the "
                f"log, got at most {last!r}. Pass positions from 0 to logged_actions."
            )
        table = table[np.arange(log.rows), log.position]
    chosen = table.astype(np.float64, copy=False)
    if log.action.max() >= chosen.shape[1]:
        raise DataError(
            f"{name}: must know every logged action, got {chosen.shape[1]} actions and a logged "
            f"action {int(log.action.max())}. Number actions from 0."
        )
    sums = chosen.sum(axis=1)
    broken = ~(chosen >= 0.0).all(axis=1) | ~(np.abs(sums - 1.0) <= _SUM_TOLERANCE)
    refuse(f"{name}: the sum over actions", "1, of terms that are not negative", sums, broken)
    return chosen


def _whole_numbers(name: str, values: ArrayLike, *, size: int | None) -> NDArray[np.int64]:
    column = number_column(name, values, size=size, like="actions")
    # NaN compares false with everything, so it is refused as well.
    whole = (column >= 0.0) & (column == np.floor(column)) & (column < 2**53)
    refuse(name, "whole numbers from 0", column, ~whole)
    return column.astype(np.int64)
