"""What a stage of the funnel is: scores for the candidates that it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.retrieval.searcher import LevelTrace


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """What a stage made of its candidates, and what that took."""

    candidates: Candidates
    """Some or all of those it was given, in any order, with its own scores."""
    scored_pairs: int = 0
    """Pairs of request and ad that were computed, not read from a cache; nodes of an index are
    counted in ``levels``."""
    flops: float | None = None
    """Floating-point operations that took; None where the stage does not know."""
    cache_lookups: int = 0
    """What caches were asked for: whole answers, or single ads."""
    cache_hits: int = 0
    """How many of them were there."""
    levels: tuple[LevelTrace, ...] = ()
    """What each level of an index cost, the coarsest first and the ads last; empty: no index."""
    fallback: str = ""
    """Why the candidates are as they came, with the scores of the stage before. Empty: they are
    not."""


class Stage(Protocol):
    """One step of the funnel. Wrappers (a time-out, a cache) are stages around a stage.

    The life of a stage: the funnel calls it once for each request, from the thread that the request
    is answered in, or from one of the workers of a ``TimeOut``; whoever answers requests in several
    threads needs stages that bear it. A stage keeps no state of a request and writes into none of
    its arguments. It may raise: the funnel then keeps the order of the stage before.
    """

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """Score candidates.

        Args:
            request: Who asks.
            candidates: What may be chosen, with the scores of the stage before.
            keep: How many the funnel goes on with, at least 1. A stage that searches need find no
                more; the funnel itself cuts what is returned.
        """
        ...


@runtime_checkable
class BatchStage(Stage, Protocol):
    """A stage that does better with several requests at once than with one after another.

    Who inherits from it answers one request as several.
    """

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """Score candidates as :meth:`score_all` does those of several requests."""
        (scored,) = self.score_all([request], [candidates], keep)
        return scored

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """Score the candidates of each request, as a call for it alone would.

        Matrix products round a row by its place among others, so that scores may differ in their
        last bits. An error is everybody's: the funnel then asks for each request by itself.

        Args:
            requests: Who ask, at least one.
            candidates: Of each.
            keep: As in a call.
        """
        ...


def score_all(
    stage: Stage, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
) -> list[Scored]:
    """Score the candidates of several requests together, where the stage can, or one by one."""
    if len(requests) > 1 and isinstance(stage, BatchStage):
        return stage.score_all(requests, candidates, keep)
    return [stage(one, its, keep) for one, its in zip(requests, candidates, strict=True)]
