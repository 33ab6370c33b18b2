"""Figures of tables of results: dots, lines and intervals where their numbers are."""

import re
from xml.etree import ElementTree

import pytest

from tamis.reports.canvas import standalone
from tamis.reports.table_figures import (
    Difference,
    Line,
    Seeds,
    differences,
    lines,
    seed_dots,
)


def _marks(svg: str, color: str) -> list[tuple[float, float]]:
    """Where markers of a colour stand."""
    pattern = rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\({color}\)'
    return [(float(x), float(y)) for x, y in re.findall(pattern, svg)]


def _words(svg: str) -> list[str]:
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.text]


def test_every_seed_is_a_dot_and_their_mean_a_stroke() -> None:
    panel = Seeds(xlabel="AUC", values=[[0.70, 0.72], [0.74, 0.75]])

    svg = seed_dots(["lr", "dhen"], [panel], title="tiny")

    dots, strokes = _marks(svg, "--series-1"), _marks(svg, "--ink")
    assert len(dots) == 4
    scale = (dots[3][0] - dots[0][0]) / 0.05
    for (x, _), value in zip(dots, (0.70, 0.72, 0.74, 0.75), strict=True):
        assert x - dots[0][0] == pytest.approx((value - 0.70) * scale, abs=0.1)
    for (x, _), mean in zip(strokes, (0.71, 0.745), strict=True):
        assert x - dots[0][0] == pytest.approx((mean - 0.70) * scale, abs=0.1)
    # The first name stands above the second: upright positions grow downwards.
    assert dots[0][1] == dots[1][1] == strokes[0][1] < dots[2][1]
    assert {"tiny", "lr", "dhen", "AUC"} <= set(_words(svg))


def test_a_panel_for_each_measure_and_names_beside_the_first_alone() -> None:
    panels = [Seeds(xlabel=task, values=[[0.1, 0.2], [0.2, 0.3]]) for task in ("click", "buy")]

    svg = seed_dots(["a", "b"], panels, title="two tasks", reference="b")

    words = _words(svg)
    assert words.count("a") == words.count("b") == 1
    assert {"click", "buy"} <= set(words)
    assert len(_marks(svg, "--series-1")) == 8


@pytest.mark.parametrize(("far", "told"), [(0.3, "← 0.3000"), (3.0, "3.0000 →")])
def test_what_lies_far_from_all_others_is_told_at_the_edge(far: float, told: str) -> None:
    near = [[0.980 + 0.001 * at, 0.981 + 0.001 * at] for at in range(5)]

    svg = seed_dots([*"abcde", "far"], [Seeds(xlabel="AUC", values=[*near, [far, far]])], title="")

    assert told in _words(svg)
    assert len(_marks(svg, "--series-1")) == 10


def test_means_that_are_mostly_one_leave_no_other_out() -> None:
    values = [[1.0, 1.0]] * 5 + [[0.7, 0.7], [1.1, 1.2]]

    svg = seed_dots([*"abcdefg"], [Seeds(xlabel="true value", values=values)], title="")

    assert len(_marks(svg, "--series-1")) == 14


def test_lines_have_their_names_and_positions() -> None:
    drawn = [
        Line(name="up to scored", x=range(3), y=[0.7, 0.8, 0.9], spread=[0.0, 0.01, 0.02]),
        Line(name="up to rejected", x=range(3), y=[0.7, 0.9, 0.95]),
    ]

    svg = lines(drawn, title="rounds", xlabel="round", ylabel="soft recall")

    words = _words(svg)
    assert {"up to scored", "up to rejected", "round", "soft recall", "0", "1", "2"} <= set(words)
    (first, middle, last) = _marks(svg, "--series-2")[:3]
    assert middle[0] - first[0] == pytest.approx(last[0] - middle[0], abs=0.1)
    assert (first[1] - middle[1]) / (middle[1] - last[1]) == pytest.approx(4, abs=0.05)


def test_a_logarithmic_axis_sets_equal_ratios_equally_far_apart() -> None:
    line = Line(name="hsnn-2", x=[0.5, 5.0, 50.0], y=[0.1, 0.2, 0.3])

    svg = lines([line], title="", xlabel="time", ylabel="recall", is_log=True)

    first, middle, last = (x for x, _ in _marks(svg, "--series-1")[:3])
    assert middle - first == pytest.approx(last - middle, abs=0.1)


def test_twelve_lines_look_different() -> None:
    drawn = [Line(name=str(at), x=[0, 1], y=[at, at + 1]) for at in range(12)]

    svg = lines(drawn, title="", xlabel="", ylabel="")

    looks = re.findall(
        r'<path d="M [^"]*" (?:clip-path="[^"]*" )?style="([^"]*var\(--s[^"]*)"', svg
    )
    assert len(set(looks)) == 12


def test_a_difference_within_its_interval_has_a_hollow_dot() -> None:
    found = [
        Difference(name="against baseline", estimate=0.2, lower=0.1, upper=0.3),
        Difference(name="against popularity", estimate=0.1, lower=-0.1, upper=0.3),
    ]

    svg = differences(found, title="gain", xlabel="value per request")

    assert {"against baseline", "against popularity", "value per request"} <= set(_words(svg))
    assert len(_marks(svg, "--series-1")) == 1
    assert len(re.findall(r'<use [^>]*style="fill-opacity: 0; stroke: var\(--series-1\)', svg)) == 1


def test_a_figure_by_itself_brings_its_colours_and_stays_the_same() -> None:
    def figure() -> str:
        panel = Seeds(xlabel="AUC", values=[[0.1, 0.2]])
        return standalone(seed_dots(["a"], [panel], title='"<a>"'))

    text = figure()

    assert text == figure()
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == '"<a>"'
    (style,) = [node for node in root if node.tag.endswith("style")]
    assert style.text is not None
    assert "prefers-color-scheme: dark" in style.text
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert all(f"{name}:" in style.text for name in used)
