"""What replay needs of a logged split: its ads, and its requests one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch, Jagged, concatenate
from tamis.data.dataset import EncodedRows, Split
from tamis.data.loader import Loader
from tamis.data.schema import InputSpec, Schema
from tamis.errors import DataError
from tamis.funnel.inventory import joined_ads
from tamis.funnel.request import Impressions, Request

_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoggedAds:
    """The N ads that a log shows."""

    codes: NDArray[np.int64]
    """(N,) of the role ``item``; no two alike."""
    rows: EncodedRows
    """The item fields of each, as one of its rows in the log has them; ``AdFeatures.of_rows`` takes
    them. ``row`` is the number of that row."""


def logged_ads(
    splits: Sequence[Split],
    schema: Schema,
    spec: InputSpec,
    *,
    of: Literal["first", "last"] = "last",
) -> LoggedAds:
    """The ads of some splits of a log. Memory holds one column of a split at a time.

    Rows that do not say which ad they show are left out.

    Leave out the splits that a funnel is measured on: features such as an ad's click rate would
    tell what happened in them.

    Args:
        splits: At least one, in the order of time, whose rows have the role ``item``.
        schema: Which fields are the item's.
        spec: Inputs, in order.
        of: Which of an ad's rows has the fields that are taken.

    Raises:
        DataError: A split has no role ``item``, or none of the rows says which ad it shows.
    """
    codes, parts = np.empty(0, np.int64), []
    # What a later split has seen of an ad is newer.
    for split in splits if of == "first" else reversed(splits):
        found = _ads_of_split(split, schema, spec, of)
        is_new = ~np.isin(found.codes, codes)
        codes = np.concatenate([codes, found.codes[is_new]])
        parts.append(found.rows.select(is_new))
    if not len(codes):
        names = ", ".join(repr(split.name) for split in splits)
        raise DataError(
            f"splits {names}: some row must say which ad it shows, got none in column "
            f"{schema.roles.item!r}. Name the right column as the role 'item'."
        )
    return LoggedAds(codes=codes, rows=joined_ads(parts))


def request_starts(split: Split) -> NDArray[np.int64]:
    """(R,) first row of each request, in the order of the log. Memory holds one column.

    Raises:
        DataError: The log does not say which request a row belongs to, or rows of other requests
            stand between those of one.
    """
    codes = split.role("request")
    if codes is None:
        raise _no_role(split, "request")
    if (codes < 0).any():
        raise DataError(
            f"split {split.name!r}, row {int(np.argmax(codes < 0))}: must belong to a request, got "
            f"none. Give every row of the log a request."
        )
    starts = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])[: len(codes)]
    found = codes[starts]
    order = np.argsort(found, kind="stable")
    again = order[1:][found[order[1:]] == found[order[:-1]]]
    if len(again):
        raise DataError(
            f"split {split.name!r}, row {starts[again.min()]}: the rows of a request must follow "
            f"one another, got a request that goes on after rows of others, {len(again):,} times. "
            f"Sort the log by request, the requests by time, and ingest it anew."
        )
    return starts


def count_requests(split: Split) -> int:
    """How many requests :func:`logged_requests` gives.

    Raises:
        DataError: As :func:`request_starts` does.
    """
    return len(request_starts(split))


def logged_requests(
    split: Split,
    spec: InputSpec,
    item_codes: NDArray[np.int64],
    *,
    may_be_unknown: bool = False,
) -> Iterator[Request]:
    """Requests with what was shown, in the order of the log.

    A request is made of rows that follow one another with the same code of the ``request`` role. It
    asks for as many ads as were shown; user and context are those of its first row; each impression
    keeps those of its own. Whoever is not known counts as a user of one request, so that no cache
    takes two for one; so does everybody in a log without times, which does not tell how old what a
    cache remembers would be. Memory does not grow with the log, once its column of requests was
    looked through.

    Args:
        split: Rows with the roles ``request`` and ``item``; ``user`` and ``time`` where there are.
        spec: Inputs, in order.
        item_codes: (N,) code of each ad in the role ``item``, by ad row; no two alike.
        may_be_unknown: Whether rows may show ads that are not in the table, such as those that came
            later. They are left out of what was shown, and still count as slots.

    Raises:
        DataError: When the first request is asked for: a role is missing, a row has no request, or
            rows of one stand apart. Later, too: a row shows an ad that must be known.
    """
    for role in ("request", "item"):
        if not split.columns.has(f"role:{role}"):
            raise _no_role(split, role)
    request_starts(split)
    by_code = np.argsort(item_codes, kind="stable")
    waiting: _Rows | None = None
    start = 0
    loader = Loader(split, spec, batch_size=_ROWS_AT_A_TIME, shuffle=False)
    for batch in loader.epoch(0):
        roles = _roles(split, start, start + batch.num_rows)
        ads = ads_of(roles["item"], item_codes, by_code)
        if not may_be_unknown and (ads < 0).any():
            raise _unknown_ad(split, start + int(np.argmax(ads < 0)), len(item_codes))
        start += batch.num_rows
        code = roles["request"]
        firsts = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]])).tolist()
        for first, last in zip(firsts, [*firsts[1:], batch.num_rows], strict=True):
            rows = _Rows(
                code=int(code[first]),
                user=int(roles["user"][first]),
                time_micros=int(roles["time"][first]),
                features=_rows_of(batch, first, last),
                ads=ads[first:last],
            )
            if waiting is not None and waiting.code == rows.code:
                # Its rows went on in the next batch.
                rows = waiting.with_more(rows)
            elif waiting is not None:
                yield waiting.to_request(spec)
            waiting = rows
    if waiting is not None:
        yield waiting.to_request(spec)


def ads_of(
    codes: NDArray[np.int64],
    item_codes: NDArray[np.int64],
    by_code: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Ad rows of codes (n,) of the role ``item``; -1 where the table has none.

    Args:
        codes: Of some rows of a log.
        item_codes: (N,) code of each ad, by ad row; no two alike.
        by_code: (N,) ad rows in the order of their codes, for who asks often; None: found here.
    """
    by_code = np.argsort(item_codes) if by_code is None else by_code
    ads = np.full(len(codes), -1)
    known = np.isin(codes, item_codes)
    ads[known] = by_code[np.searchsorted(item_codes, codes[known], sorter=by_code)]
    return ads


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Rows:
    """Rows of one request; ad -1 is not in the table."""

    code: int
    user: int
    time_micros: int
    features: Batch
    ads: NDArray[np.int64]

    def with_more(self, later: "_Rows") -> "_Rows":
        return _Rows(
            code=self.code,
            user=self.user,
            time_micros=self.time_micros,
            features=concatenate([self.features, later.features]),
            ads=np.concatenate([self.ads, later.ads]),
        )

    def to_request(self, spec: InputSpec) -> Request:
        known, features = self.ads >= 0, self.features
        if not known.all():
            features = features.take(torch.from_numpy(np.flatnonzero(known)))
        labels = features.labels.numpy()
        by_task = {task.name: labels[:, at] for at, task in enumerate(spec.tasks)}
        return Request(
            request_id=self.code,
            user=self.user,
            time_micros=self.time_micros,
            slots=len(self.ads),
            features=_rows_of(self.features, 0, 1),
            shown=Impressions(ads=self.ads[known], labels=by_task, features=features),
        )


def _ads_of_split(
    split: Split, schema: Schema, spec: InputSpec, of: Literal["first", "last"]
) -> LoggedAds:
    item = split.role("item")
    if item is None:
        raise _no_role(split, "item")
    if of == "first":
        codes, at = np.unique(item, return_index=True)
    else:
        # The first of the reversed rows is the last of the rows.
        codes, last = np.unique(item[::-1], return_index=True)
        at = len(item) - 1 - last
    # A row that does not say which ad it shows is of none.
    codes, at = codes[codes >= 0], at[codes >= 0]
    of_item = {field.name for field in schema.fields if field.side == "item"}
    sequences = {}
    for group in spec.sequences:
        if of_item.issuperset(group.fields):
            columns = [_histories_at(split, name, at) for name in group.fields]
            values = np.stack([values for values, _ in columns], axis=1)
            sequences[group.name] = (values, columns[0][1])
    rows = EncodedRows(
        row=split.rows()[at],
        numeric={name: split.numeric(name)[at] for name in spec.numeric if name in of_item},
        ids={f.name: split.ids(f.name)[at] for f in spec.categorical if f.name in of_item},
        sequences=sequences,
    )
    return LoggedAds(codes=codes, rows=rows)


def _no_role(split: Split, role: str) -> DataError:
    return DataError(
        f"split {split.name!r}: must have the role {role!r}, got none. Name its column under "
        f"[roles] in the schema and ingest the log anew."
    )


def _histories_at(
    split: Split, name: str, rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Events and lengths of some rows of a jagged column."""
    values, lengths = split.columns.read_jagged(name, 0, split.num_rows)
    split.columns.release()
    ends = np.cumsum(lengths)
    picked = lengths[rows]
    # Event k of the result lies (k - first event of its row) events into its source.
    shift = (ends - lengths)[rows] - (np.cumsum(picked) - picked)
    return values[np.arange(int(picked.sum())) + np.repeat(shift, picked)], picked


def _roles(split: Split, start: int, stop: int) -> dict[str, NDArray[np.int64]]:
    """Codes of some rows; a user of one request has a code that is no user's, as it is below 0."""
    found = {}
    for role in ("request", "item", "user", "time"):
        column = np.full((stop - start, 1), 0 if role == "time" else -1, np.int64)
        if split.columns.has(f"role:{role}"):
            split.columns.read_into([f"role:{role}"], start, stop, column)
        found[role] = column[:, 0]
    split.columns.release()
    # Codes are hashes of texts: as it is, request 17's would be that of the user 17.
    is_of_one_request = (found["user"] < 0) | (not split.columns.has("role:time"))
    found["user"] = np.where(is_of_one_request, ~found["request"], found["user"])
    return found


def _unknown_ad(split: Split, row: int, num_ads: int) -> DataError:
    return DataError(
        f"split {split.name!r}, row {row}: its ad must be one of the {num_ads} of the table, got "
        f"another. Make the table of all ads that the log shows."
    )


def _rows_of(batch: Batch, first: int, last: int) -> Batch:
    sequences = {}
    for name, jagged in batch.sequences.items():
        offsets = jagged.offsets[first : last + 1]
        events = jagged.values[int(offsets[0]) : int(offsets[-1])]
        sequences[name] = Jagged(values=events, offsets=offsets - offsets[0])
    return Batch(
        numeric=batch.numeric[first:last],
        ids=batch.ids[first:last],
        labels=batch.labels[first:last],
        weights=batch.weights[first:last],
        sequences=sequences,
    )
