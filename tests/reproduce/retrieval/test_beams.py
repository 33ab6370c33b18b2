"""The choice of beams: as narrow as the allowed loss on validation users lets them be."""

import pytest

from tamis.reproduce.retrieval.beams import (
    BEAM_SHARES,
    CHOICES,
    Tried,
    best_of,
    choose_share,
    measured_shares,
)


@pytest.mark.parametrize(
    ("recalls", "share"),
    [
        # Of 0.5 a loss of half of 3 % leaves 0.4925.
        ((0.3, 0.492, 0.493, 0.5), 0.2),
        ((0.493, 0.3, 0.3, 0.3), 0.05),
        ((0.1, 0.2, 0.3, 0.4), 0.4),
    ],
)
def test_narrowest_share_within_the_allowed_loss_is_chosen_and_no_wider_one_is_tried(
    recalls: tuple[float, ...], share: float
) -> None:
    asked = []

    def quality_of(tried: float) -> dict[str, float]:
        asked.append(tried)
        return {"recall@100": 0.0, "value_recall@100": recalls[CHOICES.index(tried)]}

    chosen, tried = choose_share(quality_of, {"recall@100": 1.0, "value_recall@100": 0.5})

    assert chosen == share
    assert asked == [one.share for one in tried] == list(CHOICES[: CHOICES.index(share) + 1])
    assert tried[-1].index_loss == pytest.approx(1 - recalls[CHOICES.index(share)] / 0.5)
    assert [one.recall for one in tried] == list(recalls[: len(tried)])


def _tried(*recalls: float) -> list[Tried]:
    pairs = zip(CHOICES, recalls, strict=False)
    return [Tried(share=share, index_loss=0.0, recall=recall) for share, recall in pairs]


def test_the_best_of_two_recalls_more_at_the_widest_share_that_both_were_tried_at() -> None:
    assert best_of({"mean": _tried(0.1, 0.2, 0.4), "member": _tried(0.2, 0.19)}) == "mean"
    assert best_of({"mean": _tried(0.1, 0.2, 0.4), "member": _tried(0.0, 0.21)}) == "member"
    assert best_of({"mean": _tried(0.2), "member": _tried(0.2)}) == "mean"


@pytest.mark.parametrize(
    ("chosen", "whole_curve", "widest"),
    [(0.05, False, 0.2), (0.2, False, 0.2), (0.4, False, 0.4), (0.05, True, 0.4)],
)
def test_a_curve_is_as_wide_as_it_is_read(chosen: float, whole_curve: bool, widest: float) -> None:
    shares = measured_shares(chosen, whole_curve=whole_curve)
    assert shares == tuple(share for share in BEAM_SHARES if share <= widest)


def test_a_narrower_share_than_any_that_may_be_chosen_is_measured() -> None:
    assert BEAM_SHARES[0] == min(CHOICES) / 2
    assert BEAM_SHARES[1:] == CHOICES
