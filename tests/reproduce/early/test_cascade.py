"""A cascade against a loop over its requests, and what its log keeps."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tamis.data.cascade_log import IMPRESSED, REJECTED, SCORED
from tamis.reproduce.early.cascade import (
    Outcome,
    all_rows,
    log_of,
    pass_cascade,
    sampled_rows,
)
from tamis.reproduce.early.variants import CascadeSizes

SIZES = CascadeSizes(
    keep=6,
    slots=2,
    train_requests=1,
    test_requests=1,
    scored_per_request=3,
    rejected_per_request=5,
    exploration=0.0,
)
REQUESTS, CANDIDATES = 40, 20


class _Final:
    """Predictions that are known beforehand, and a count of what was asked."""

    def __init__(self) -> None:
        self.click = np.random.default_rng(1).random((REQUESTS, CANDIDATES))
        self.asked: list[int] = []

    def __call__(
        self, rows: NDArray[np.int64], places: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        self.asked.append(len(rows))
        return {"click": self.click[rows, places]}


def _worth(
    found: dict[str, NDArray[np.float64]], rows: NDArray[np.int64], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    return found["click"] * (1 + places % 3)


@pytest.fixture
def early_value() -> NDArray[np.float64]:
    return np.random.default_rng(2).standard_normal((REQUESTS, CANDIDATES))


def _passed(
    early_value: NDArray[np.float64], final: _Final, sizes: CascadeSizes = SIZES
) -> Outcome:
    return pass_cascade(early_value, final, _worth, sizes, np.random.default_rng(3))


def test_both_stages_keep_what_a_loop_over_requests_keeps(
    early_value: NDArray[np.float64],
) -> None:
    final = _Final()
    outcome = _passed(early_value, final)

    for request in range(REQUESTS):
        by_early = sorted(range(CANDIDATES), key=lambda c: -early_value[request, c])
        assert outcome.early_rank[request, by_early].tolist() == list(range(CANDIDATES))
        kept = by_early[: SIZES.keep]
        by_final = sorted(kept, key=lambda c: -final.click[request, c] * (1 + c % 3))
        shown = by_final[: SIZES.slots]
        assert outcome.shown[request].tolist() == shown
        expected = [
            IMPRESSED if c in shown else SCORED if c in kept else REJECTED
            for c in range(CANDIDATES)
        ]
        assert outcome.pool[request].tolist() == expected
    # The final stage is asked for nothing that the early one turned away.
    assert final.asked == [REQUESTS * SIZES.keep]


def test_exploration_takes_the_last_slot_in_its_share_of_the_requests() -> None:
    generator = np.random.default_rng(0)
    value = generator.standard_normal((4000, CANDIDATES))

    def final(rows: NDArray[np.int64], places: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {"click": value[rows, places]}

    def worth(
        found: dict[str, NDArray[np.float64]], rows: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return found["click"]

    explored = pass_cascade(value, final, worth, replace(SIZES, exploration=0.1), generator)

    best = np.argsort(-value, axis=1)[:, : SIZES.slots]
    other = explored.shown != best
    assert not other[:, 0].any()
    # A draw among 20 is one of the 2 that are shown in a tenth of the cases: 0.2 * 18 / 20; five
    # standard deviations of a share of 4000 are 0.03.
    assert other[:, 1].mean() == pytest.approx(0.18, abs=0.03)
    assert (np.sort(explored.shown, axis=1)[:, 0] != np.sort(explored.shown, axis=1)[:, 1]).all()
    assert ((explored.pool == IMPRESSED).sum(axis=1) == SIZES.slots).all()
    # What the explored candidate took the place of was still scored.
    taken = np.take_along_axis(explored.pool, best, axis=1)[other]
    assert (taken == SCORED).all()


def test_weights_of_the_kept_rows_add_up_to_the_candidates(
    early_value: NDArray[np.float64],
) -> None:
    final = _Final()
    outcome = _passed(early_value, final)
    rows = sampled_rows(outcome, final, SIZES, seed=0)

    for request in range(REQUESTS):
        own = rows.row == request
        for pool, count, kept in (
            (IMPRESSED, 2, 2),
            (SCORED, 4, 3),
            (REJECTED, 14, 5),
        ):
            rates = rows.sampling_rate[own & (rows.pool == pool)]
            assert len(rates) == kept
            assert (1 / rates).sum() == pytest.approx(count)
        # Half of the rejected are those just below the cut.
        near = outcome.early_rank[request, rows.place[own & (rows.pool == REJECTED)]]
        assert set(range(6, 9)) <= set(near.tolist())
    np.testing.assert_allclose(rows.final["click"], final.click[rows.row, rows.place], rtol=1e-6)
    assert (np.diff(rows.row * CANDIDATES + rows.place) > 0).all()


def test_what_explored_past_the_early_stage_is_not_kept_twice(
    early_value: NDArray[np.float64],
) -> None:
    final = _Final()
    outcome = _passed(early_value, final, replace(SIZES, exploration=0.5))
    rows = sampled_rows(outcome, final, SIZES, seed=0)

    explored = (rows.pool == IMPRESSED) & (outcome.early_rank[rows.row, rows.place] >= SIZES.keep)
    assert explored.sum() > 10
    keys = rows.row * CANDIDATES + rows.place
    assert len(np.unique(keys)) == len(keys)


def test_log_has_labels_of_impressions_alone(early_value: NDArray[np.float64]) -> None:
    final = _Final()
    rows = all_rows(_passed(early_value, final), final)
    labels = {"click": np.ones(len(rows.row), np.float32)}
    log = log_of(rows, request=rows.row, candidate=rows.place, labels=labels)

    counts = log.counts()
    assert {pool: found.labels["click"] for pool, found in counts.items()} == {
        "impressed": REQUESTS * 2,
        "scored": 0,
        "rejected": 0,
    }
    # Distillation has rows in every pool.
    assert all(found.final["click"] == found.rows > 0 for found in counts.values())
