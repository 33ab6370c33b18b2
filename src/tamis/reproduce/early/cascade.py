"""A cascade of two stages on many requests at once, and the rows that its log keeps of them.

The early stage keeps K_e of a request's N candidates, the final stage shows K_f of these, and a few
places explore. Whatever is scored here is scored by models that were trained on earlier days.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.cascade_log import IMPRESSED, REJECTED, SCORED, CascadeLog
from tamis.data.rejected import sample_rejected
from tamis.reproduce.early.variants import CascadeSizes

Places = NDArray[np.int64]
FinalStage = Callable[[Places, Places], Mapping[str, NDArray[np.float64]]]
"""From request (P,) and place among its candidates (P,) to predictions (P,) by task."""
Worth = Callable[[Mapping[str, NDArray[np.float64]], Places, Places], NDArray[np.float64]]
"""From predictions (P,) of such pairs to total values (P,)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What became of the N candidates of each of R requests."""

    early_rank: NDArray[np.int64]
    """(R, N) place in the early stage's order, from 0."""
    pool: NDArray[np.int8]
    """(R, N) place in ``POOLS``."""
    shown: NDArray[np.int64]
    """(R, K_f) candidates by position, the most valuable first and an explored one last."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """n candidates that the log keeps, request by request."""

    row: NDArray[np.int64]
    """(n,) row of the request, of those that were passed."""
    place: NDArray[np.int64]
    """(n,) place among its candidates."""
    pool: NDArray[np.int8]
    """(n,) place in ``POOLS``."""
    sampling_rate: NDArray[np.float64]
    """(n,) in (0, 1]."""
    final: Mapping[str, NDArray[np.float32]]
    """(n,) the final stage's prediction by task; for rejected ones made afterwards."""


def pass_cascade(
    early_value: NDArray[np.float64],
    final: FinalStage,
    worth: Worth,
    sizes: CascadeSizes,
    generator: np.random.Generator,
) -> Outcome:
    """Send the candidates of R requests through both stages.

    Args:
        early_value: (R, N) what the early stage orders by.
        final: Predicts what it is asked for: the candidates that were kept.
        worth: Total value of the final stage's predictions.
        sizes: Of the cascade.
        generator: Source of exploration.
    """
    count, num = early_value.shape
    order: NDArray[np.int64] = np.argsort(-early_value, axis=1, kind="stable")
    early_rank = np.empty_like(order)
    np.put_along_axis(early_rank, order, np.arange(num)[None, :], axis=1)
    is_kept = early_rank < sizes.keep
    rows, places = np.nonzero(is_kept)
    value = np.full((count, num), -np.inf)
    value[rows, places] = worth(final(rows, places), rows, places)
    by_value: NDArray[np.int64] = np.argsort(-value, axis=1, kind="stable")
    shown = by_value[:, : sizes.slots]
    # One slot explores, in as many requests as make the share of all impressions right.
    explores = generator.random(count) < sizes.exploration * sizes.slots
    drawn: NDArray[np.int64] = generator.integers(0, num, (count,))
    explores &= ~(shown == drawn[:, None]).any(axis=1)
    shown[explores, -1] = drawn[explores]
    pool = np.where(is_kept, SCORED, REJECTED)
    np.put_along_axis(pool, shown, IMPRESSED, axis=1)
    return Outcome(early_rank=early_rank, pool=pool, shown=shown)


def sampled_rows(outcome: Outcome, final: FinalStage, sizes: CascadeSizes, *, seed: int) -> Rows:
    """The rows that a log keeps to train on: all impressed, and samples of the other pools.

    Args:
        outcome: Of :func:`pass_cascade`.
        final: The final stage, which scores the sample of the rejected afterwards.
        sizes: Of the samples.
        seed: Decides the draws.
    """
    count, num = outcome.pool.shape
    pool = outcome.pool.ravel()
    request = np.repeat(np.arange(count), num)
    impressed = np.flatnonzero(pool == IMPRESSED)
    scored, scored_rate = _drawn(
        np.flatnonzero(pool == SCORED), num, sizes.scored_per_request, seed
    )
    rejected = sample_rejected(
        request,
        outcome.early_rank.ravel(),
        num_kept=sizes.keep,
        per_request=sizes.rejected_per_request,
        seed=seed + 1,
    )
    # What explored past the early stage was turned away by it, and yet was shown.
    unseen = pool[rejected.rows] == REJECTED
    found = np.concatenate([impressed, scored, rejected.rows[unseen]])
    rate = np.concatenate([np.ones(len(impressed)), scored_rate, rejected.sampling_rate[unseen]])
    order = np.argsort(found)
    return _rows(outcome, found[order], rate[order], final)


def all_rows(outcome: Outcome, final: FinalStage) -> Rows:
    """Every candidate, for judging: golden ones are looked for among all."""
    found = np.arange(outcome.pool.size)
    return _rows(outcome, found, np.ones(len(found)), final)


def log_of(
    rows: Rows,
    *,
    request: NDArray[np.int64],
    candidate: NDArray[np.int64],
    labels: Mapping[str, NDArray[np.float32]],
) -> CascadeLog:
    """The rows as a cascade's log.

    Args:
        rows: What is kept.
        request: (n,) id of each row's request.
        candidate: (n,) id of each row's ad.
        labels: (n,) by task, read where the ad was shown.
    """
    shown = rows.pool == IMPRESSED
    return CascadeLog(
        request=request,
        candidate=candidate,
        pool=rows.pool,
        sampling_rate=rows.sampling_rate,
        labels={
            name: np.where(shown, values, np.nan).astype(np.float32)
            for name, values in labels.items()
        },
        final=rows.final,
    )


def pairs_table(
    requests: pa.Table, ads: pa.Table, rows: Places, places: Places, columns: list[str]
) -> pa.Table:
    """Some columns of pairs, each from the table that has it."""
    return pa.table(
        {
            name: ads[name].take(pa.array(places))
            if name in ads.column_names
            else requests[name].take(pa.array(rows))
            for name in columns
        }
    )


def _rows(
    outcome: Outcome, found: NDArray[np.int64], rate: NDArray[np.float64], final: FinalStage
) -> Rows:
    row, place = np.divmod(found, outcome.pool.shape[1])
    predictions = final(row, place)
    return Rows(
        row=row,
        place=place,
        pool=outcome.pool.ravel()[found],
        sampling_rate=rate,
        final={name: values.astype(np.float32) for name, values in predictions.items()},
    )


def _drawn(
    found: NDArray[np.int64], num: int, per_request: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Up to so many of each request's candidates, uniformly, and the chance of each."""
    request = found // num
    keys = np.random.default_rng(seed).random(len(found))
    found = found[np.lexsort((keys, request))]
    _, starts, counts = np.unique(request, return_index=True, return_counts=True)
    kept = np.arange(len(found)) - np.repeat(starts, counts) < per_request
    rate = np.minimum(1.0, per_request / np.repeat(counts, counts))
    return found[kept], rate[kept]
