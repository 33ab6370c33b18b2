"""Regret by stage: by hand, by loops, and adding up."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.evaluation.candidates import rank_candidates
from tamis.evaluation.stages import stage_losses

STAGES = ("early", "final", "auction")


def lists(offsets, value):
    return rank_candidates(offsets, value, np.zeros(len(value)))


def test_losses_of_three_requests_by_hand() -> None:
    # Request 0: the best (9) dies early, 7 survives all but the auction, which keeps 4.
    # Request 1: the best survives everything. Request 2: the final stage keeps nothing.
    value = [4.0, 9.0, 7.0, 1.0, 6.0, 5.0, 2.0]
    survived = [3, 0, 2, 0, 3, 1, 1]
    found = stage_losses(lists([0, 3, 5, 7], value), survived, STAGES)
    assert found.died.tolist() == [0, 3, 1]
    assert found.lost.tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 0.0]]
    assert found.regret.tolist() == [5.0, 0.0, 5.0]
    assert found.kept_value.tolist() == [[11.0, 6.0, 7.0], [11.0, 6.0, 0.0], [4.0, 6.0, 0.0]]
    assert found.best_value.tolist() == [[16.0, 6.0, 7.0], [16.0, 6.0, 0.0], [9.0, 6.0, 0.0]]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_losses_equal_a_loop_over_requests_and_stages_and_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(1, 9, 5))))
    size = int(offsets[-1])
    # Multiples of 1/4 add up without rounding; few different ones, so that best ones tie.
    value, survived = rng.integers(0, 12, size) / 4, rng.integers(0, 4, size)
    found = stage_losses(lists(offsets, value), survived, STAGES)
    for index, (start, stop) in enumerate(itertools.pairwise(offsets)):
        worth, passed = value[start:stop], survived[start:stop]
        before = worth.max()
        for stage in range(3):
            alive = worth[passed > stage]
            after = alive.max() if alive.size else 0.0
            assert found.lost[stage, index] == before - after
            assert found.kept_value[stage, index] == alive.sum()
            assert found.best_value[stage, index] == np.sort(worth)[::-1][: alive.size].sum()
            before = after
        assert found.died[index] == passed[worth == worth.max()].max()
        # Contributions of the stages add up to the whole regret, exactly.
        assert found.lost[:, index].sum() == worth.max() - before
        assert found.regret[index] == worth.max() - before
    assert (found.lost >= 0.0).all()


def test_summary_gives_shares_mean_losses_and_kept_value() -> None:
    value = np.tile([3.0, 2.0, 1.0], 40)
    # In 30 requests the early stage drops the best, in 10 the final one does.
    survived = np.concatenate([np.tile([0, 2, 1], 30), np.tile([1, 2, 0], 10)])
    found = stage_losses(lists(np.arange(41) * 3, value), survived, ("early", "final"))
    early, final = found.summary(seed=0, replicates=200)
    assert (early.stage, final.stage) == ("early", "final")
    assert (early.died.value, final.died.value) == (0.75, 0.25)
    assert (early.lost.value, final.lost.value) == (0.75, 0.25)
    assert early.lost.value + final.lost.value == found.regret.mean()
    # Early keeps 2 + 1 or 3 + 2 of 3 + 2; the final stage 2 of 3.
    assert early.kept.value == pytest.approx((30 * 3 + 10 * 5) / (40 * 5))
    assert final.kept.value == pytest.approx(2 / 3)
    assert early.died.lower < 0.75 < early.died.upper
    assert early.died.units == 40


def test_one_stage_equals_the_regret_of_its_first_choice() -> None:
    rng = np.random.default_rng(1)
    value, score = rng.lognormal(size=200), rng.normal(size=200)
    offsets = np.arange(11) * 20
    ranked = rank_candidates(offsets, value, score)
    first = np.zeros(200, np.int64)
    first[ranked.by_score[ranked.offsets[:-1]]] = 1
    found = stage_losses(ranked, first, ("rank",))
    shown = value.reshape(10, 20)[np.arange(10), score.reshape(10, 20).argmax(axis=1)]
    np.testing.assert_allclose(found.regret, value.reshape(10, 20).max(axis=1) - shown, rtol=1e-12)


def test_stages_and_numbers_without_meaning_are_refused() -> None:
    ranked = lists([0, 2], [1.0, 2.0])
    with pytest.raises(DataError, match=r"different names, at least one, got \('a', 'a'\)"):
        stage_losses(ranked, [0, 1], ("a", "a"))
    with pytest.raises(DataError, match=r"at least one, got \(\)"):
        stage_losses(ranked, [0, 0], ())
    with pytest.raises(DataError, match=r"shape \(2,\), got dtype int64 and shape \(3,\)"):
        stage_losses(ranked, [0, 1, 1], ("a",))
    with pytest.raises(DataError, match="got dtype float64"):
        stage_losses(ranked, [0.0, 1.0], ("a",))
    with pytest.raises(DataError, match="in 0 to 1, the number of stages, got 0 to 2"):
        stage_losses(ranked, [0, 2], ("a",))
    with pytest.raises(DataError, match="got -1 to 1"):
        stage_losses(ranked, [-1, 1], ("a",))
