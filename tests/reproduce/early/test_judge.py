"""Figures of orders whose worth can be computed by hand."""

from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.reproduce.early.judge import judge
from tamis.reproduce.early.study import Judged, Study


@pytest.fixture(scope="module")
def judged(study: Study) -> Judged:
    return study.judged()


def _loop(study: Study, judged: Judged, score: np.ndarray) -> dict[str, float]:
    """Soft and hard recall, recall of what was turned away, and true value, in float64 loops."""
    value = study.values(judged.final, judged)
    truth = study.values(judged.truth, judged)
    keep, slots = study.sizes.keep, study.sizes.slots
    soft, hard, rejected, worth = [], [], [], []
    for start, stop in zip(judged.offsets[:-1], judged.offsets[1:], strict=True):
        rows = list(range(start, stop))
        least = min(value[rows])
        kept = sorted(rows, key=lambda row: -score[row])[:keep]
        best = sorted(rows, key=lambda row: -value[row])
        soft.append(
            sum(value[row] - least for row in kept) / sum(value[row] - least for row in best[:keep])
        )
        golden = best[:slots]
        hard.append(len(set(kept) & set(golden)) / slots)
        rejected += [row in kept for row in golden if judged.pool[row] == 2]
        shown = [row for row in best if row in kept][:slots]
        worth.append((sum(truth[shown]), sum(truth[golden])))
    return {
        "soft_recall": float(np.mean(soft)),
        "hard_recall": float(np.mean(hard)),
        "golden_rejected": float(np.mean(rejected)),
        "true_value": sum(a for a, _ in worth) / sum(b for _, b in worth),
    }


def test_figures_are_those_of_a_loop(study: Study, judged: Judged) -> None:
    score = np.random.default_rng(0).standard_normal(len(judged.bid))
    found = judge(study, judged, score)
    for name, value in _loop(study, judged, score).items():
        assert found[name] == pytest.approx(value, rel=1e-12), name
    # Some values are below 0: else the shift would be no part of what is tested.
    assert (study.values(judged.final, judged) < 0).any()


def test_the_final_stage_is_its_own_best_early_stage(study: Study, judged: Judged) -> None:
    found = judge(study, judged, study.values(judged.final, judged))
    for name in ("soft_recall", "hard_recall", "golden_rejected", "ndcg", "true_value"):
        assert found[name] == 1.0, name
    assert found["value_divergence"] == 0.0
    assert all(point["soft"] == 1.0 for point in found["curve"])


def test_chance_keeps_its_share_of_the_golden(study: Study, judged: Judged) -> None:
    found = judge(study, judged, np.zeros(len(judged.bid)), is_value=False)
    assert found["hard_recall"] == pytest.approx(study.sizes.keep / 30)
    assert "value_divergence" not in found


def test_true_value_of_ties_is_that_of_random_orders(study: Study, judged: Judged) -> None:
    found = judge(study, judged, np.zeros(len(judged.bid)), is_value=False)
    count, keep, slots = 30, study.sizes.keep, study.sizes.slots
    # Of all sets that may be kept, those with the candidate and with few enough better ones.
    chances = [
        sum(comb(place, n) * comb(count - 1 - place, keep - 1 - n) for n in range(slots))
        / comb(count, keep)
        for place in range(count)
    ]
    truth, value = (study.values(told, judged) for told in (judged.truth, judged.final))
    ordered = [
        truth[start:stop][np.argsort(-value[start:stop])]
        for start, stop in zip(judged.offsets[:-1], judged.offsets[1:], strict=True)
    ]
    expected = sum(chances @ worth for worth in ordered) / sum(
        worth[:slots].sum() for worth in ordered
    )
    # Twenty orders of sixty requests know it to 0.007; the order of the list gives 0.08 less.
    assert found["true_value"] == pytest.approx(expected, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_recall_lies_between_nothing_and_all(study: Study, judged: Judged, seed: int) -> None:
    score = np.random.default_rng(seed).integers(0, 4, len(judged.bid)).astype(np.float64)
    found = judge(study, judged, score, is_value=False)
    for name in ("soft_recall", "hard_recall", "golden_rejected", "ndcg"):
        assert 0.0 <= found[name] <= 1.0, name


def test_orders_are_of_value_and_not_of_clicks(study: Study, judged: Judged) -> None:
    """Bids, billing and hides all change which candidates are golden."""
    values = study.values(judged.final, judged)
    click_alone = judge(study, judged, judged.final["click"])
    assert click_alone["soft_recall"] < 1.0
    without: dict[str, Any] = {
        "bid": replace(judged, bid=np.ones_like(judged.bid)),
        "billing": replace(judged, billing=np.full_like(judged.billing, "click")),
    }
    for name, other in without.items():
        assert judge(study, other, values)["soft_recall"] < 1.0, name
    no_hides = study.values({**judged.final, "hide": np.zeros_like(judged.bid)}, judged)
    assert judge(study, judged, no_hides)["soft_recall"] < 1.0
