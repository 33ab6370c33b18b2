"""What every stage of a funnel must do. Call :func:`check_stage` from a test of your own stage.

Each check raises ``AssertionError`` with what it saw; none needs a test framework.
"""

import numpy as np
from numpy.typing import NDArray

from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.funnel.stage import BatchStage, Scored, Stage

_SEED = 0
_ROUNDING = 1e-5
"""Relative; matrix products round a row by its place among others."""


def check_stage(stage: Stage, request: Request, ads: NDArray[np.int64], *, keep: int = 5) -> None:
    """Run every check on a stage.

    Args:
        stage: What is checked; it may remember what it was asked.
        request: Whom it is asked for, with all that the stage reads.
        ads: (n,) different ad rows that it can score, more than ``keep``.
        keep: How many it is asked to find.

    Raises:
        AssertionError: The stage breaks a promise; the message says which.
    """
    candidates = Candidates(ads=ads.copy(), scores=np.linspace(0.0, 1.0, len(ads)))
    check_answer(stage, request, candidates, keep)
    check_arguments_stay(stage, request, candidates, keep)
    check_order_does_not_matter(stage, request, candidates, keep)
    check_answer(stage, request, candidates.take(np.array([len(ads) // 2])), keep)
    if isinstance(stage, BatchStage):
        check_together(stage, request, candidates, keep)


def check_answer(stage: Stage, request: Request, candidates: Candidates, keep: int) -> None:
    """Different candidates of those given, with numbers for scores, and counts that add up."""
    scored = stage(request, candidates, keep)
    found = scored.candidates
    if scored.fallback:
        same = np.array_equal(found.ads, candidates.ads)
        same = same and np.array_equal(found.scores, candidates.scores)
        assert same, "a fallback must return the candidates as they came"
        return
    strange = np.setdiff1d(found.ads, candidates.ads)
    assert not len(strange), f"ads must be among the candidates, got {strange[:3].tolist()}"
    assert len(np.unique(found.ads)) == len(found.ads), "an ad must be returned once, got it twice"
    for name, values in {"scores": found.scores, **found.predictions}.items():
        assert np.isfinite(values).all(), f"{name} must be finite, got {values}"
    assert 0 <= scored.cache_hits <= scored.cache_lookups, (
        f"hits must be part of the lookups, got {scored.cache_hits} of {scored.cache_lookups}"
    )
    assert 0 <= scored.scored_pairs <= len(candidates), (
        f"scored pairs must be at most the candidates, got {scored.scored_pairs}"
    )


def check_arguments_stay(stage: Stage, request: Request, candidates: Candidates, keep: int) -> None:
    """A stage writes into nothing that it is given."""
    ads, scores = candidates.ads.copy(), candidates.scores.copy()
    stage(request, candidates, keep)
    same = np.array_equal(ads, candidates.ads) and np.array_equal(scores, candidates.scores)
    assert same, "candidates must stay as they are, got them changed"


def check_order_does_not_matter(
    stage: Stage, request: Request, candidates: Candidates, keep: int
) -> None:
    """The best of an answer are the same, to the bit, however the candidates stand."""
    expected = _best(stage(request, candidates, keep), keep)
    orders = (
        np.arange(len(candidates))[::-1],
        np.random.default_rng(0).permutation(len(candidates)),
    )
    for order in orders:
        found = _best(stage(request, candidates.take(order), keep), keep)
        same = np.array_equal(found.ads, expected.ads)
        same = same and np.array_equal(found.scores, expected.scores)
        assert same, (
            f"the best must not depend on the candidates' order, got ads {found.ads.tolist()} "
            f"and {expected.ads.tolist()}"
        )


def check_together(stage: BatchStage, request: Request, candidates: Candidates, keep: int) -> None:
    """Several at once get what each would get by itself, whatever the others' candidates."""
    half = candidates.take(np.arange(0, len(candidates), 2))
    parts = [candidates, half, candidates]
    together = stage.score_all([request] * len(parts), parts, keep)
    assert len(together) == len(parts), f"there must be {len(parts)} answers, got {len(together)}"
    for part, scored in zip(parts, together, strict=True):
        wanted, found = _by_ad(stage(request, part, keep)), _by_ad(scored)
        assert np.array_equal(found.ads, wanted.ads), (
            f"ads must be those of each by itself, got {found.ads} and {wanted.ads}"
        )
        columns = {"scores": (found.scores, wanted.scores)}
        columns |= {n: (v, wanted.predictions[n]) for n, v in found.predictions.items()}
        for name, (ours, theirs) in columns.items():
            assert np.allclose(ours, theirs, rtol=_ROUNDING, atol=_ROUNDING), (
                f"{name} must be those of each by itself, got {ours} and {theirs}"
            )


def _by_ad(scored: Scored) -> Candidates:
    return scored.candidates.take(np.argsort(scored.candidates.ads))


def _best(scored: Scored, keep: int) -> Candidates:
    return scored.candidates.best(keep, seed=_SEED)
