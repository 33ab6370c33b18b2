"""Widths of the ways to search a corpus."""

from tamis.reproduce.retrieval.searchers import BEAM_SHARES, RERANKED_SHARES


def test_rivals_may_score_as_many_items_as_the_widest_beams_do() -> None:
    assert max(RERANKED_SHARES) >= max(BEAM_SHARES)
