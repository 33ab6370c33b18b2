"""Candidates of a live funnel as a cascade's log, from which the next early stage can learn.

The shown, the scored and the rejected candidates of the judged requests, each with the inputs that
the log would have had of it: a policy that learns from its impressions alone never meets the rest.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.cascade_log import POOLS, CascadeLog
from tamis.data.hashing import hash_integers
from tamis.data.market.tables import HOUR_MICROS, LOG_COLUMNS, START_MICROS
from tamis.errors import ConfigError, DataError
from tamis.funnel.live import KNOWN
from tamis.funnel.rounds import KnownLog
from tamis.funnel.trace import AUCTION

_IMPRESSED, _SCORED, _REJECTED = (np.int8(POOLS.index(name)) for name in POOLS)
_TASKS = ("click", "conversion", "hide")
_PREDICTED = "predicted_"


def cascade_of(known: KnownLog, *, rejected_rate: float, seed: int) -> tuple[CascadeLog, pa.Table]:
    """The candidates of all funnels so far, with their inputs; ``write_cascade_log`` takes both.

    The final stage is the last step before the auction, and its predictions are those that the
    auction used. A candidate without any, as where every stage that predicts fell back, counts as
    rejected unless it was shown. Requests that got no ad are left out: the
    log does not know their users.

    Args:
        known: What is known at the end of a round.
        rejected_rate: Share of the rejected candidates to keep, in (0, 1].
        seed: Decides which are kept.

    Returns:
        The log, and a table of the same rows with the columns of an ordinary log that are known
        before the ad is shown. The position is the logged one where the ad was shown, else the
        first, for which the funnel scored it.

    Raises:
        ConfigError: ``rejected_rate`` is not in (0, 1].
        DataError: No funnel told its candidates.
    """
    if not 0 < rejected_rate <= 1:
        raise ConfigError(f"cascade_of.rejected_rate: must be in (0, 1], got {rejected_rate!r}.")
    found = _of_funnels(known.candidates)
    first_row = _rows_of(known.log["request_id"].to_numpy(), found["request_id"].to_numpy())
    found = found.filter(first_row >= 0)
    first_row = first_row[first_row >= 0]
    request, ad = found["request_id"].to_numpy(), found["ad_id"].to_numpy().astype(np.int64)
    num_ads = int(known.ads["ad_id"].to_numpy().max()) + 1
    shown_row = _rows_of(
        known.log["request_id"].to_numpy() * num_ads + known.log["ad_id"].to_numpy(),
        request * num_ads + ad,
    )
    predictions = {
        name.removeprefix(_PREDICTED): _numbers(found[name]).astype(np.float32)
        for name in found.column_names
        if name.startswith(_PREDICTED)
    }
    pool = np.full(len(ad), _REJECTED)
    is_predicted = np.ones(len(ad), np.bool_)
    for values in predictions.values():
        is_predicted &= ~np.isnan(values)
    pool[is_predicted & bool(predictions)] = _SCORED
    pool[shown_row >= 0] = _IMPRESSED
    kept = (pool != _REJECTED) | _drawn(request * num_ads + ad, rejected_rate, seed)
    shown_row, pool = shown_row[kept], pool[kept]
    log = CascadeLog(
        request=request[kept],
        candidate=ad[kept],
        pool=pool,
        sampling_rate=np.where(pool == _REJECTED, rejected_rate, 1.0),
        labels={task: _labels(known.log, task, shown_row) for task in _TASKS},
        final={
            task: np.where(pool == _REJECTED, np.float32(np.nan), values[kept])
            for task, values in predictions.items()
        },
    )
    return log, _inputs(known, first_row[kept], shown_row, ad[kept], num_ads)


def _of_funnels(candidates: pa.Table) -> pa.Table:
    """Those of funnels; the judged requests of other policies have one stage and no final one."""
    if "stages" in candidates.column_names:
        stages = candidates["stages"].cast(pa.string()).combine_chunks().dictionary_encode()
        names = [text.split(",") for text in stages.dictionary.to_pylist()]
        is_funnel = np.array([(n[0], n[-1]) == (KNOWN, AUCTION) for n in names], np.bool_)
        found = candidates.filter(is_funnel[stages.indices.to_numpy()])
        if found.num_rows:
            return found
    raise DataError(
        "cascade_of: a funnel must have told its candidates, got none of any. Serve a round by "
        "FunnelPolicy first."
    )


def _inputs(
    known: KnownLog,
    first_row: NDArray[np.int64],
    shown_row: NDArray[np.int64],
    ad: NDArray[np.int64],
    num_ads: int,
) -> pa.Table:
    """What the log shows, or would have shown, of each candidate before its outcome."""
    request = known.log.take(pa.array(first_row))
    hour = (request["event_time"].cast(pa.int64()).to_numpy() - START_MICROS) // HOUR_MICROS
    ads = known.ads
    at = _rows_of(
        ads["market_hour"].to_numpy() * num_ads + ads["ad_id"].to_numpy(), hour * num_ads + ad
    )
    item = ads.take(pa.array(at))
    logged = known.log["position"].to_numpy()[np.maximum(shown_row, 0)]
    columns = {
        name: item[name] if name in ads.column_names else request[name]
        for name in LOG_COLUMNS
        if name not in ("impression_id", "request_id", "conversion_time", *_TASKS)
    }
    columns["position"] = np.where(shown_row >= 0, logged, np.int32(1))
    return pa.table(columns)


def _labels(log: pa.Table, task: str, row: NDArray[np.int64]) -> NDArray[np.float32]:
    """Labels of some rows of the log; NaN for row -1 and where the log has none."""
    labels = _numbers(log[task]).astype(np.float32)[np.maximum(row, 0)]
    return np.where(row >= 0, labels, np.float32(np.nan))


def _drawn(pair: NDArray[np.int64], rate: float, seed: int) -> NDArray[np.bool_]:
    """Whether each pair is in a sample that depends on the pair alone."""
    # The upper 53 bits are what a float64 in [0, 1) holds exactly.
    drawn: NDArray[np.bool_] = (hash_integers(pair, seed=seed) >> np.uint64(11)) * 2.0**-53 < rate
    return drawn


def _rows_of(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row with each wanted key; -1 where there is none."""
    known, first = np.unique(keys, return_index=True)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, first[at], -1)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Numbers of a column, NaN for null."""
    numbers: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    return numbers
