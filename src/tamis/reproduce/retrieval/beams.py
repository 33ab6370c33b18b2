"""How wide an index is searched: chosen on validation users, before test users are looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamis.reproduce.retrieval.results import INDEX_LOSS, index_loss, recall_of

CHOICES = (0.05, 0.1, 0.2, 0.4)
"""Nodes that a search may keep at each index level, as shares of those that are occupied."""
BEAM_SHARES = (CHOICES[0] / 2, *CHOICES)
"""The shares that may be measured. The first is never chosen; it shows whether the next binds."""
_ENOUGH = 0.2
"""A curve that nothing but comparisons with another index is read off ends here, unless a wider
share was chosen: four tenths of the nodes take a quarter of a row's time."""

LOSS_ON_VALIDATION = INDEX_LOSS / 2
"""A hundred users know the loss to about a hundredth: one at the bar might as well miss it."""


def measured_shares(chosen: float, *, whole_curve: bool) -> tuple[float, ...]:
    """The shares of a row's curve.

    Args:
        chosen: The one that stands for the row.
        whole_curve: Whether all are measured.

    Example:
        >>> measured_shares(0.1, whole_curve=False), measured_shares(0.4, whole_curve=False)
        ((0.025, 0.05, 0.1, 0.2), (0.025, 0.05, 0.1, 0.2, 0.4))
    """
    widest = BEAM_SHARES[-1] if whole_curve else max(chosen, _ENOUGH)
    return tuple(share for share in BEAM_SHARES if share <= widest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One share on validation users."""

    share: float
    """Nodes that were kept."""
    index_loss: float
    """Recall that is lost, of that of scoring everything."""
    recall: float
    """Recall."""


def choose_share(
    quality_of: Callable[[float], Mapping[str, Any]], exhaustive: Mapping[str, Any]
) -> tuple[float, Sequence[Tried]]:
    """The least share that loses half of what the bar allows, or the largest where none does.

    Args:
        quality_of: Metrics of a share on validation users; asked from the least share on, and no
            further than is needed.
        exhaustive: Metrics of scoring every node and item for the same users.

    Returns:
        The share, and what was tried.
    """
    tried: list[Tried] = []
    for share in CHOICES:
        quality = quality_of(share)
        loss = index_loss(quality, exhaustive)
        tried.append(Tried(share=share, index_loss=loss, recall=recall_of(quality)))
        if tried[-1].index_loss <= LOSS_ON_VALIDATION:
            break
    return tried[-1].share, tried


def best_of(tried: Mapping[str, Sequence[Tried]]) -> str:
    """Which of several indexes recalls most at the widest share that all were tried at.

    Args:
        tried: For each what :func:`choose_share` tried; of equal ones the first wins.

    Example:
        >>> narrow = [Tried(share=0.05, index_loss=0.0, recall=0.2)]
        >>> wide = [Tried(share=share, index_loss=0.1, recall=share) for share in CHOICES]
        >>> best_of({"wide": wide, "narrow": narrow})
        'narrow'
    """
    last = min(len(found) for found in tried.values()) - 1
    return max(tried, key=lambda name: tried[name][last].recall)
