"""Widths of the ways to search a corpus."""

from tamis.reproduce.retrieval.beams import CHOICES
from tamis.reproduce.retrieval.searchers import RERANKED_SHARES


def test_rivals_may_score_as_many_items_as_the_widest_beams_do() -> None:
    assert max(RERANKED_SHARES) >= max(CHOICES)
