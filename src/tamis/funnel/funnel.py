"""The funnel: stages one after another, a cut after each, then the auction."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.errors import ConfigError, DataError
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.auction import Bids, Slate, fill_without_predictions, run_auction
from tamis.funnel.candidates import Candidates
from tamis.funnel.clock import Clock, SystemClock
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored, Stage
from tamis.funnel.timeout import TimeOut
from tamis.funnel.trace import AUCTION, StageTrace, Trace

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """A stage in its place in the funnel, and what it may spend."""

    name: str
    """Name in traces and reports; no two steps share one."""
    stage: Stage
    """What scores the candidates."""
    keep: int
    """Candidates that go on to the next step. At least 1."""
    budget_ms: float | None = None
    """Milliseconds after which the step falls back to the order of the step before, in a thread of
    its own (see ``TimeOut``). None: it may take as long as it likes, and runs in the caller's."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"step {self.name!r}: keep must be at least 1, got {self.keep}.")


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
            clock: Tells the time; None for the machine's.

        Raises:
            ConfigError: Steps share a name or have the auction's, keep more than the one before, or
                there is none.
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
        self._clock = SystemClock() if clock is None else clock
        self._stages = tuple(
            step.stage
            if step.budget_ms is None
            else TimeOut(step.stage, budget_ms=step.budget_ms, clock=self._clock)
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
        started = self._clock.now_ms()
        candidates = self.start(request)
        traces = []
        for step, stage in zip(self.steps, self._stages, strict=True):
            candidates, trace = self._run(step, stage, request, candidates, observe)
            traces.append(trace)
        before = self._clock.now_ms()
        slate, fallback = self._auction(request, candidates)
        ended = self._clock.now_ms()
        return Trace(
            request_id=request.request_id,
            stages=tuple(traces),
            slate=slate,
            auction_ms=ended - before,
            elapsed_ms=ended - started,
            auction_fallback=fallback,
        )

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
        request: Request,
        candidates: Candidates,
        observe: Callable[[Candidates], None] | None,
    ) -> tuple[Candidates, StageTrace]:
        before = self._clock.now_ms()
        scored = Scored(candidates=candidates)
        try:
            if len(candidates):  # Not every model bears a batch of no rows.
                scored = stage(request, candidates, step.keep)
            fallback = scored.fallback or self._what_is_wrong(scored.candidates, candidates)
        except Exception as error:  # noqa: BLE001  (no stage may lose a request)
            _log.warning("stage %s failed", step.name, exc_info=True)
            fallback = f"{type(error).__name__}: {error}"
        found = candidates if fallback else scored.candidates
        if candidates.predictions and not found.predictions:
            found = _with_predictions_of(found, candidates)
        if observe is not None:
            observe(found)
        kept = found.best(step.keep, seed=request.request_id)
        return kept, StageTrace(
            name=step.name,
            num_candidates=len(candidates),
            ads=kept.ads.astype(np.int32),
            scores=kept.scores.astype(np.float32),
            elapsed_ms=self._clock.now_ms() - before,
            scored_pairs=scored.scored_pairs,
            flops=scored.flops,
            cache_lookups=scored.cache_lookups,
            cache_hits=scored.cache_hits,
            fallback=fallback,
            levels=scored.levels,
        )

    def _what_is_wrong(self, found: Candidates, incoming: Candidates) -> str:
        """Why a stage's answer cannot be used; empty where it can."""
        if found is incoming:
            return ""
        if not found.is_finite:
            return "returned a score or prediction that is not finite"
        if not len(found):
            return ""
        is_open = np.zeros(len(self.ads), np.bool_)
        is_open[incoming.ads] = True
        if found.ads.min() < 0 or found.ads.max() >= len(is_open) or not is_open[found.ads].all():
            return "returned an ad that was not among its candidates"
        is_open[found.ads] = False
        if np.count_nonzero(is_open) != len(incoming) - len(found):
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
        raise ConfigError("funnel: must have at least one step, got none. Add a stage.")
    names = [step.name for step in steps]
    if AUCTION in names:
        raise ConfigError(
            f"step {AUCTION!r}: name must not be that of the auction, which follows the last step. "
            f"Rename it."
        )
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"step {name!r}: names must differ, got it twice. Rename one.")
    for before, after in itertools.pairwise(steps):
        if after.keep > before.keep:
            raise ConfigError(
                f"step {after.name!r}: keep must be at most the {before.keep} that step "
                f"{before.name!r} keeps, got {after.keep}. A funnel never widens."
            )


def _with_predictions_of(found: Candidates, earlier: Candidates) -> Candidates:
    """The candidates with what was predicted for them before: a stage may score without it."""
    order = np.argsort(earlier.ads)
    at = order[np.searchsorted(earlier.ads, found.ads, sorter=order)]
    predictions = {name: values[at] for name, values in earlier.predictions.items()}
    return Candidates(ads=found.ads, scores=found.scores, predictions=predictions)
