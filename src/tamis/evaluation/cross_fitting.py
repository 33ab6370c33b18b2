"""Reward models for doubly robust estimates: no row is scored by a model that saw it."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamis.errors import DataError
from tamis.evaluation.bootstrap import unit_codes
from tamis.evaluation.logged_actions import LoggedActions

RewardPredictor = Callable[[NDArray[np.generic], NDArray[np.int64] | None], ArrayLike]
"""From m contexts and their positions (None where the log has none) to (m, A) rewards."""

RewardFitter = Callable[[NDArray[np.generic], LoggedActions], RewardPredictor]
"""From the contexts and the log of the training rows to a predictor."""


def cross_fit(
    fit: RewardFitter, context: ArrayLike, log: LoggedActions, *, folds: int = 5, seed: int
) -> NDArray[np.float64]:
    """Predicts the reward of every action at every row, each row by a model of the other folds.

    A model that saw a row's reward repeats its noise, and a doubly robust estimate would take the
    noise off again: its error would look smaller than it is. The units of the log's groups are
    dealt to the folds at random; ``fit`` is called once for each fold, with the rows of the
    others only.

    Args:
        fit: Trains on contexts and log rows, and answers a function that predicts.
        context: (n, ...) what is known of each row before the action; anything NumPy can index.
        log: The log, from :func:`tamis.evaluation.logged_actions.logged_actions`.
        folds: Number of folds, at least 2 and at most the number of units.
        seed: Seed of the deal, at least 0.

    Returns:
        (n, A) predicted rewards, for the direct method and the doubly robust estimator.

    Raises:
        DataError: Contexts do not fit the log, ``folds`` or ``seed`` is out of range, or a
            prediction has another shape than (m, A).

    Source:
        Chernozhukov et al., Double/debiased machine learning for treatment and structural
        parameters, Econometrics Journal 2018, definition 3.2 (DML2).

    Differs from the source:
        Folds are dealt by unit, so that rows of one user are never on both sides.
    """
    known = np.asarray(context)
    if known.ndim == 0 or known.shape[0] != log.rows:
        raise DataError(
            f"cross_fit: context must have one entry for each of {log.rows} rows, got shape "
            f"{known.shape}. Pass the context of every row."
        )
    unit = unit_codes(log.groups, log.rows)
    units = int(unit.max()) + 1
    if not 2 <= folds <= units or seed < 0:
        raise DataError(
            f"cross_fit: folds must be from 2 to the number of units, {units}, and seed at least "
            f"0, got {folds!r} and {seed!r}. Use 5 folds."
        )
    fold = (np.random.default_rng(seed).permutation(units) % folds)[unit]
    scored: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for held_out in range(folds):
        rows, train = np.flatnonzero(fold == held_out), np.flatnonzero(fold != held_out)
        predict = fit(known[train], log.take(train))
        position = None if log.position is None else log.position[rows]
        scored.append((rows, np.asarray(predict(known[rows], position), dtype=np.float64)))
    num_actions = scored[0][1].shape[-1] if scored[0][1].ndim == 2 else 0
    predicted = np.empty((log.rows, num_actions))
    for held_out, (rows, part) in enumerate(scored):
        if part.shape != (rows.size, num_actions):
            raise DataError(
                f"cross_fit: the predictions of fold {held_out} must be of shape ({rows.size}, A) "
                f"with one A for all folds, got {part.shape}. Predict the reward of every action."
            )
        predicted[rows] = part
    return predicted
