"""From requests to ranked ads: past and columns, features, the funnel, and what is written down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.funnel.trace import Trace
from tamis.serving.live import Live
from tamis.serving.live_ads import codes_of
from tamis.serving.records import Arm, Exposure, RawRow, ServedRequest, ShownAd, Worth
from tamis.serving.users import Past


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A request for ads, checked."""

    request_id: str
    """Its id."""
    user: str | None
    """Id of the user; None: not known."""
    columns: RawRow
    """Columns of user and context that the request says; they go before those made of events."""
    slots: int
    """Ads that are asked for. At least 1."""
    candidates: tuple[str, ...] | None
    """Ids of the ads that may be shown; None: all."""
    time_micros: int
    """When it was asked, in microseconds since 1970 UTC."""
    arm: Arm | None = None
    """Its place in an experiment; None: in none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedAd:
    """An ad of an answer, and why it is there."""

    ad: str
    """Its id."""
    price: float
    """Money for one billed event."""
    value: float | None
    """Total value of an impression, money; None where every stage that predicts fell back."""
    bid: float
    """Money that is bid for one billed event."""
    billing: str
    """The event that is billed."""
    quality: float
    """Money that an impression is worth whatever is bid."""
    predictions: dict[str, float]
    """By task, of the last stage that predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a request is answered."""

    live: Live
    """What answered."""
    ads: tuple[RankedAd, ...]
    """First slot first; fewer than were asked for where no more may be shown."""
    unknown_candidates: int
    """How many of the request's candidates are no live ads."""
    trace: Trace | None
    """What each stage did; None where there was no ad to begin with."""
    served: ServedRequest
    """What is to be written down."""

    @property
    def release(self) -> str:
        """Bundle that answered."""
        return self.live.served.release

    def stages(self) -> list[dict[str, Any]]:
        """The trace's stages as JSON, with ids in place of ad rows."""
        ids = self.live.ads.ids
        found = [] if self.trace is None else [stage.to_json() for stage in self.trace.stages]
        return [{**stage, "ads": [ids[ad] for ad in stage["ads"]]} for stage in found]


def answer_all(
    live: Live, queries: Sequence[Query], past_of: Callable[[str | None], Past]
) -> list[Answer]:
    """Answer requests: all are encoded together, and go through the funnel stage by stage."""
    served = live.served
    # A past costs a look into the store, where it is not in memory.
    needs_past = bool(served.online.names)
    pasts = [past_of(query.user) if needs_past else Past() for query in queries]
    rows = [_columns(live, query, past) for query, past in zip(queries, pasts, strict=True)]
    codes = codes_of([query.request_id for query in queries])
    # Who is not known is a user of one request, so that no cache takes two for one, by a code that
    # no user has.
    is_known = np.array([bool(query.user) for query in queries], np.bool_)
    users = np.where(is_known, codes_of([query.user or "" for query in queries]), ~codes)
    candidates = [_candidates(live, query) for query in queries]
    seen: list[list[Candidates]] = [[] for _ in queries]
    traces: Sequence[Trace | None] = [None] * len(queries)
    if live.funnel is not None:
        requests = [
            Request(
                request_id=int(code),
                user=int(user),
                time_micros=query.time_micros,
                slots=query.slots,
                features=features,
                candidates=its,
            )
            for query, code, user, features, (its, _) in zip(
                queries, codes, users, served.encode(rows), candidates, strict=True
            )
        ]
        traces = live.funnel.answer_all(requests, observe=[found.append for found in seen])
    # Of all answers at once, as taking them out of Arrow costs the same for any number.
    shown = [np.empty(0, np.int64) if trace is None else trace.slate.ads for trace in traces]
    columns = iter(live.ads.columns(np.concatenate(shown)))
    return [
        _answer(
            live,
            query,
            row,
            unknown=unknown,
            trace=trace,
            seen=found,
            columns=[next(columns) for _ in its],
        )
        for query, row, (_, unknown), trace, found, its in zip(
            queries, rows, candidates, traces, seen, shown, strict=True
        )
    ]


def _columns(live: Live, query: Query, past: Past) -> RawRow:
    """The request's row of the log: what it says goes before what is known."""
    served = live.served
    row = {**served.online.of(past), **query.columns}
    if query.user is not None and served.schema.roles.user:
        row[served.schema.roles.user] = query.user
    return row


def _answer(
    live: Live,
    query: Query,
    row: RawRow,
    *,
    unknown: int,
    trace: Trace | None,
    seen: Sequence[Candidates],
    columns: Sequence[RawRow],
) -> Answer:
    ads = [] if trace is None else _ranked(live, trace, seen)
    return Answer(
        live=live,
        ads=tuple(ads),
        unknown_candidates=unknown,
        trace=trace,
        served=ServedRequest(
            request_id=query.request_id,
            user=query.user,
            time_micros=query.time_micros,
            release=live.served.release,
            columns=row,
            shown=tuple(
                ShownAd(ad=item.ad, columns=of_ad) for item, of_ad in zip(ads, columns, strict=True)
            ),
            exposure=None
            if query.arm is None
            else Exposure(arm=query.arm, worths=tuple(_worth(live, item) for item in ads)),
        ),
    )


def _candidates(live: Live, query: Query) -> tuple[NDArray[np.int64] | None, int]:
    """Rows of the request's candidates, and how many of them are not live."""
    if query.candidates is None:
        return None, 0
    different = set(query.candidates)
    known = [live.ads.row_by_id[name] for name in different if name in live.ads.row_by_id]
    return np.array(known, np.int64), len(different) - len(known)


def _worth(live: Live, ad: RankedAd) -> Worth:
    """What events of an ad are worth: the total value with what happened for probabilities."""
    penalties = live.served.bundle.blueprint.weights.penalties
    return Worth(
        impression=ad.quality,
        click=ad.bid if ad.billing == "click" else 0.0,
        conversion=ad.bid if ad.billing == "conversion" else 0.0,
        hide=-penalties.get("hide", 0.0),
    )


def _ranked(live: Live, trace: Trace, seen: Sequence[Candidates]) -> list[RankedAd]:
    assert live.funnel is not None
    table, slate = live.funnel.ads, trace.slate
    found = next((part for part in reversed(seen) if part.predictions), None)
    place = {} if found is None else {ad: at for at, ad in enumerate(found.ads.tolist())}
    ranked = []
    for at, ad in enumerate(slate.ads.tolist()):
        predictions = {} if found is None else found.predictions
        value = float(slate.values[at])
        ranked.append(
            RankedAd(
                ad=live.ads.ids[ad],
                price=float(slate.prices[at]),
                value=None if np.isnan(value) else value,
                bid=float(table.bid[ad]),
                billing=str(table.billing[ad]),
                quality=float(table.quality[ad]),
                predictions={name: float(p[place[ad]]) for name, p in predictions.items()},
            )
        )
    return ranked
