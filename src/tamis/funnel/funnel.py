"""The funnel: stages one after another, a cut after each, then the auction."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tamis.errors import ConfigError, DataError
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.auction import Bids, Slate, fill_without_predictions, run_auction
from tamis.funnel.candidates import Candidates
from tamis.funnel.clock import Clock, SystemClock
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored, Stage, score_all
from tamis.funnel.timeout import TimeOut
from tamis.funnel.trace import AUCTION, KNOWN, StageTrace, Trace

_REQUESTS_AT_ONCE = 16
"""Calling the stages costs as much as a request's candidates; of so many requests it is little."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """A stage in its place in the funnel, and what it may spend."""

    name: str
    """Name in traces and reports, other than ``known`` and ``auction``; no two steps share one."""
    stage: Stage
    """What scores the candidates."""
    keep: int
    """Candidates that go on to the next step. At least 1."""
    budget_ms: float | None = None
    """Milliseconds after which the step falls back to the order of the step before, in a thread of
    its own (see ``TimeOut``). None: it may take as long as it likes, and runs in the caller's."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"stage {self.name!r}: keep must be at least 1, got {self.keep}.")


class Funnel:
    """Answers requests.

    Whatever a stage does, the request is answered: a stage that raises, runs late or returns what
    it must not is as if it were not there, its candidates go on in the order of the stage before,
    and the trace says why. Answers depend neither on the order of a request's candidates nor on
    earlier requests, unless a stage remembers those.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        ads: AdTable,
        value: Valuation,
        *,
        reserve: float = 0.0,
        prior: NDArray[np.float64] | None = None,
        callers: int = 1,
        clock: Clock | None = None,
    ) -> None:
        """Put the steps together.

        Args:
            steps: First to last, each keeping no more than the one before; the predictions of the
                last one that predicts enter the auction.
            ads: All ads.
            value: Total value of an impression.
            reserve: Least price of a billed event, money. Not negative.
            prior: (N,) scores that stand for a stage before the first, in case that one falls back;
                None: all ads alike.
            callers: Threads that will ask at the same time: a step with a budget works for as many.
            clock: Tells the time; None for the machine's.

        Raises:
            ConfigError: Steps share a name or have a reserved one, keep more than the one before,
                or there is none.
            DataError: ``prior`` is not one finite score for each ad, or there is no ad.
        """
        _check_steps(steps)
        if not (0 <= reserve < np.inf):
            raise ConfigError(f"reserve: must be finite and not negative, got {reserve!r}.")
        scores = np.zeros(len(ads)) if prior is None else prior
        if scores.shape != (len(ads),) or not len(ads) or not np.isfinite(scores).all():
            raise DataError(
                f"prior: must be one finite score for each of {len(ads)} ads, and at least one ad, "
                f"got shape {scores.shape}. Score every ad."
            )
        self.steps = tuple(steps)
        self.ads = ads
        self.value = value
        self.reserve = reserve
        self.callers = callers
        self._clock = SystemClock() if clock is None else clock
        self._stages = tuple(
            step.stage
            if step.budget_ms is None
            else TimeOut(step.stage, budget_ms=step.budget_ms, workers=callers, clock=self._clock)
            for step in steps
        )
        self._corpus = Candidates(ads=np.arange(len(ads)), scores=scores)

    def answer(
        self, request: Request, *, observe: Callable[[Candidates], None] | None = None
    ) -> Trace:
        """The slate for a request, and how it came about.

        Args:
            request: Who asks.
            observe: Told of each step, in order, what it goes on with before the cut: the trace
                keeps no scores of what is dropped.

        Raises:
            DataError: The request names an ad that there is not.
        """
        (trace,) = self.answer_all([request], observe=None if observe is None else [observe])
        return trace

    def answer_all(
        self,
        requests: Sequence[Request],
        *,
        observe: Sequence[Callable[[Candidates], None]] | None = None,
    ) -> list[Trace]:
        """Answer several requests, stage by stage: as :meth:`answer` does, but for rounding.

        Times in a trace are those of all requests together, as each waits for all. What a stage
        raises for all at once it is asked again for each by itself, so that one request cannot cost
        the others the stage; each then has the stage's whole budget.

        Args:
            requests: Who ask, at least one.
            observe: For each request, as in :meth:`answer`.

        Raises:
            DataError: A request names an ad that there is not.
        """
        started = self._clock.now_ms()
        candidates = [self.start(request) for request in requests]
        traces: list[list[StageTrace]] = [[] for _ in requests]
        for step, stage in zip(self.steps, self._stages, strict=True):
            candidates, made = self._run(step, stage, requests, candidates, observe)
            for trace, of_step in zip(traces, made, strict=True):
                trace.append(of_step)
        before = self._clock.now_ms()
        filled = [self._auction(*pair) for pair in zip(requests, candidates, strict=True)]
        ended = self._clock.now_ms()
        return [
            Trace(
                request_id=request.request_id,
                stages=tuple(stages),
                slate=slate,
                auction_ms=ended - before,
                elapsed_ms=ended - started,
                auction_fallback=fallback,
            )
            for request, stages, (slate, fallback) in zip(requests, traces, filled, strict=True)
        ]

    def answer_each(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Trace, Sequence[Candidates]]]:
        """Answer many requests that nobody waits for, a few at a time, in their order.

        Yields:
            For each the trace, and what each step goes on with before its cut.
        """
        asked = iter(requests)
        while some := list(itertools.islice(asked, _REQUESTS_AT_ONCE)):
            seen: list[list[Candidates]] = [[] for _ in some]
            traces = self.answer_all(some, observe=[one.append for one in seen])
            yield from zip(traces, seen, strict=True)

    def start(self, request: Request) -> Candidates:
        """What the first stage is given: the request's own candidates, each once, or all ads.

        Raises:
            DataError: The request names an ad that there is not.
        """
        if request.candidates is None:
            return self._corpus
        ads = np.unique(request.candidates).astype(np.int64)
        if len(ads) and not (ads[0] >= 0 and ads[-1] < len(self.ads)):
            raise DataError(
                f"request {request.request_id}: candidates must be ad rows from 0 to "
                f"{len(self.ads) - 1}, got {ads[0]} to {ads[-1]}. Check which table they number."
            )
        return Candidates(ads=ads, scores=self._corpus.scores[ads])

    def _run(
        self,
        step: Step,
        stage: Stage,
        requests: Sequence[Request],
        candidates: Sequence[Candidates],
        observe: Sequence[Callable[[Candidates], None]] | None,
    ) -> tuple[list[Candidates], list[StageTrace]]:
        before = self._clock.now_ms()
        # Not every model bears a batch of no rows: who has no candidates left is not scored.
        some = [at for at, its in enumerate(candidates) if len(its)]
        results = [Scored(candidates=its) for its in candidates]
        made = self._scored(
            step, stage, [requests[at] for at in some], [candidates[at] for at in some]
        )
        for at, scored in zip(some, made, strict=True):
            results[at] = scored
        kept = []
        for at, (request, incoming, scored) in enumerate(
            zip(requests, candidates, results, strict=True)
        ):
            found = incoming if scored.fallback else scored.candidates
            if incoming.predictions and not found.predictions:
                found = _with_predictions_of(found, incoming)
            if observe is not None:
                observe[at](found)
            kept.append(found.best(step.keep, seed=request.request_id))
        elapsed_ms = self._clock.now_ms() - before
        return kept, [
            StageTrace(
                name=step.name,
                num_candidates=len(incoming),
                ads=best.ads.astype(np.int32),
                scores=best.scores.astype(np.float32),
                elapsed_ms=elapsed_ms,
                scored_pairs=scored.scored_pairs,
                flops=scored.flops,
                cache_lookups=scored.cache_lookups,
                cache_hits=scored.cache_hits,
                fallback=scored.fallback,
                levels=scored.levels,
            )
            for incoming, best, scored in zip(candidates, kept, results, strict=True)
        ]

    def _scored(
        self,
        step: Step,
        stage: Stage,
        requests: Sequence[Request],
        candidates: Sequence[Candidates],
    ) -> list[Scored]:
        """What a stage makes of each request's candidates; a fallback where it cannot be used."""
        try:
            made = score_all(stage, requests, candidates, step.keep)
            return [
                scored
                if scored.fallback or not (wrong := self._what_is_wrong(scored.candidates, its))
                else replace(scored, fallback=wrong)
                for scored, its in zip(made, candidates, strict=True)
            ]
        except Exception as error:  # noqa: BLE001  (no stage may lose a request)
            if len(requests) > 1:
                return [
                    scored
                    for request, its in zip(requests, candidates, strict=True)
                    for scored in self._scored(step, stage, [request], [its])
                ]
            _log.warning("stage %s failed", step.name, exc_info=True)
            why = f"{type(error).__name__}: {error}"
            return [Scored(candidates=its, fallback=why) for its in candidates]

    def _what_is_wrong(self, found: Candidates, incoming: Candidates) -> str:
        """Why a stage's answer cannot be used; empty where it can."""
        if found is incoming or not len(found):
            return ""
        if not found.is_finite:
            return "returned a score or prediction that is not finite"
        if found.ads is incoming.ads:
            return ""
        # Sorted: an array over all ads would cost more than most stages return.
        ads = np.sort(found.ads)
        if len(incoming) == len(self.ads):
            is_strange = bool(ads[0] < 0 or ads[-1] >= len(self.ads))
        else:
            known = np.sort(incoming.ads)
            at = np.minimum(np.searchsorted(known, ads), len(known) - 1)
            is_strange = bool((known[at] != ads).any())
        if is_strange:
            return "returned an ad that was not among its candidates"
        if (ads[1:] == ads[:-1]).any():
            return "returned an ad twice"
        return ""

    def _auction(self, request: Request, candidates: Candidates) -> tuple[Slate, str]:
        """The slate, and why predictions were not used although there were some."""
        ads = candidates.ads
        bid, advertiser = self.ads.bid[ads], self.ads.advertiser[ads]
        fallback = ""
        if candidates.predictions:
            try:
                rate, offset = self.ads.linear_value(self.value, candidates.predictions, ads)
                bids = Bids(ads=ads, advertiser=advertiser, bid=bid, rate=rate, offset=offset)
                slate = run_auction(
                    bids, slots=request.slots, reserve=self.reserve, seed=request.request_id
                )
            except Exception as error:  # noqa: BLE001  (nor may the value function)
                _log.warning("value function failed", exc_info=True)
                fallback = f"{type(error).__name__}: {error}"
            else:
                return slate, ""
        slate = fill_without_predictions(
            ads,
            candidates.scores,
            advertiser,
            bid,
            slots=request.slots,
            reserve=self.reserve,
            seed=request.request_id,
        )
        return slate, fallback


def _check_steps(steps: Sequence[Step]) -> None:
    if not steps:
        raise ConfigError("funnel: must have at least one stage, got none. Add one.")
    names = [step.name for step in steps]
    for name, what in (
        (KNOWN, "what the funnel knows, which comes before the first stage"),
        (AUCTION, "the auction, which follows the last stage"),
    ):
        if name in names:
            raise ConfigError(f"stage {name!r}: name must not be that of {what}. Rename it.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"stage {name!r}: names must differ, got it twice. Rename one.")
    for before, after in itertools.pairwise(steps):
        if after.keep > before.keep:
            raise ConfigError(
                f"stage {after.name!r}: keep must be at most the {before.keep} that stage "
                f"{before.name!r} keeps, got {after.keep}. A funnel never widens."
            )


def _with_predictions_of(found: Candidates, earlier: Candidates) -> Candidates:
    """The candidates with what was predicted for them before: a stage may score without it."""
    order = np.argsort(earlier.ads)
    at = order[np.searchsorted(earlier.ads, found.ads, sorter=order)]
    predictions = {name: values[at] for name, values in earlier.predictions.items()}
    return Candidates(ads=found.ads, scores=found.scores, predictions=predictions)
