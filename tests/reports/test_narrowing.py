"""The figure of a funnel, from a replay's record alone."""

import re
from typing import Any
from xml.etree import ElementTree

from tamis.reports.narrowing import narrowing


def _stage(name: str, count: float, kept: float | None, ms: float) -> dict[str, Any]:
    return {
        "name": name,
        "candidates_in": 50_000,
        "candidates_out": count,
        "latency_ms": {"p50": ms},
        "measures": {} if kept is None else {"value_kept": kept},
    }


def _record(*, compared: bool = True) -> dict[str, Any]:
    stages = [
        _stage("retrieval", 1000, 0.953 if compared else None, 1.25),
        _stage("early", 100, 0.871 if compared else None, 2.5),
        _stage("auction", 3.9, 0.8505 if compared else None, 0.126),
    ]
    return {"stages": stages, "scope": "all" if compared else None}


def _words(svg: str) -> list[str]:
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.text]


def test_every_stage_has_its_candidates_value_and_time() -> None:
    words = _words(narrowing(_record()))

    for word in ("start", "retrieval", "early", "auction"):
        assert words.count(word) == 1
    for word in ("50,000", "1,000", "100", "3.9"):
        assert word in words
    for word in ("100%", "95.3%", "87.1%", "85.0%"):
        assert word in words
    for word in ("1.25", "2.5", "0.126"):
        assert word in words


def test_colours_come_from_the_page_and_bytes_are_the_same_twice() -> None:
    svg = narrowing(_record(), title='A "funnel"')

    assert not re.search(r"#0[1-7]0[1-7]0[1-7]", svg)
    assert ElementTree.fromstring(svg).attrib["aria-label"] == 'A "funnel"'
    assert "mathdefault" not in svg
    assert svg == narrowing(_record(), title='A "funnel"')


def test_replay_without_a_reference_has_no_panel_of_value() -> None:
    words = _words(narrowing(_record(compared=False)))

    assert "share of total value kept" not in words
    assert "candidates that go on" in words
    assert "milliseconds, median" in words


def test_start_has_no_share_where_only_the_first_stages_candidates_were_compared() -> None:
    words = _words(narrowing({**_record(), "scope": "first"}))

    # The axis names 100% too.
    assert words.count("100%") == _words(narrowing(_record())).count("100%") - 1


def test_stage_that_keeps_less_than_one_candidate_is_drawn() -> None:
    record = _record()
    record["stages"][2]["candidates_out"] = 0.25

    words = _words(narrowing(record))

    assert "0.25" in words
    assert "NaN" not in words
