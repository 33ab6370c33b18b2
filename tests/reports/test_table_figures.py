"""Figures of tables of results: dots, lines and intervals where their numbers are."""

import math
import re
from xml.etree import ElementTree

import pytest

from tamis.reports.canvas import standalone
from tamis.reports.figures import Curve
from tamis.reports.table_figures import (
    Difference,
    Seeds,
    differences,
    lines,
    seed_dots,
)


def _marks(svg: str, color: str) -> list[tuple[float, float]]:
    """Where markers of a colour stand."""
    pattern = rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\({color}\)'
    return [(float(x), float(y)) for x, y in re.findall(pattern, svg)]


def _paths(svg: str, style: str) -> list[list[tuple[float, float]]]:
    """Corners of lines of a style."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*{style}', svg)
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
        for path in found
    ]


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
    # A dotted line in each panel, at the mean of b: its stroke is the second of the panel.
    dotted = _paths(svg, "stroke-dasharray: 0.9")
    strokes = _marks(svg, "--ink")
    assert [line[0][0] for line in dotted] == pytest.approx([strokes[1][0], strokes[3][0]])
    assert all(line[0][0] == line[-1][0] for line in dotted)


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


def test_a_mean_among_the_seeds_of_others_is_drawn() -> None:
    # Means of 0.5, 0.5 and 0.53, and seeds from 0.45 to 0.55: leaving out the last makes no room.
    around = [0.45, 0.55, 0.5]
    values = [around, around, [value + 0.03 for value in around]]

    svg = seed_dots(["a", "b", "c"], [Seeds(xlabel="AUC", values=values)], title="")

    assert len(_marks(svg, "--series-1")) == 9
    assert not any("→" in word for word in _words(svg))


def test_lines_have_their_names_and_positions() -> None:
    drawn = [
        Curve(name="up to scored", x=range(3), y=[0.7, 0.8, 0.9], spread=[0.0, 0.01, 0.02]),
        Curve(name="up to rejected", x=range(3), y=[0.7, 0.9, 0.95]),
    ]

    svg = lines(drawn, title="rounds", xlabel="round", ylabel="soft recall")

    words = _words(svg)
    assert {"up to scored", "up to rejected", "round", "soft recall", "0", "1", "2"} <= set(words)
    (first, middle, last) = _marks(svg, "--series-2")[:3]
    assert middle[0] - first[0] == pytest.approx(last[0] - middle[0], abs=0.1)
    assert (first[1] - middle[1]) / (middle[1] - last[1]) == pytest.approx(4, abs=0.05)
    # Whiskers of one standard deviation to either side: 0.01 and 0.02, where 0.1 is a step.
    step = (first[1] - middle[1]) / 2
    columns = [{round(x, 2)} for x, _ in (first, middle, last)]  # the legend has a whisker too
    whiskers = [
        path for path in _paths(svg, "--series-1") if {round(x, 2) for x, _ in path} in columns
    ]
    lengths = sorted(abs(path[0][1] - path[-1][1]) for path in whiskers)
    assert lengths == pytest.approx([0.0, 0.2 * step, 0.4 * step], abs=0.05)


def test_a_logarithmic_axis_sets_equal_ratios_equally_far_apart() -> None:
    line = Curve(name="hsnn-2", x=[0.5, 5.0, 50.0], y=[0.1, 0.2, 0.3])

    svg = lines([line], title="", xlabel="time", ylabel="recall", is_log=True)

    first, middle, last = (x for x, _ in _marks(svg, "--series-1")[:3])
    assert middle - first == pytest.approx(last - middle, abs=0.1)
    assert {"1", "10"} <= set(_words(svg))


def test_a_logarithmic_axis_within_a_decade_has_plain_labels() -> None:
    line = Curve(name="hsnn-2", x=[1.2, 2.5, 4.0], y=[0.1, 0.2, 0.3])

    words = _words(lines([line], title="", xlabel="time", ylabel="recall", is_log=True))

    assert {"2", "3", "4"} <= set(words)
    assert not any("math" in word for word in words)


def test_four_lines_differ_without_their_colours() -> None:
    drawn = [Curve(name=str(at), x=[0, 1], y=[at, at + 1]) for at in range(4)]

    svg = lines(drawn, title="", xlabel="", ylabel="")

    marks = re.findall(r'<use xlink:href="(#[^"]*)"[^>]*style="[^"]*var\(--series', svg)
    assert len(set(marks)) == 4


def test_twelve_lines_look_different() -> None:
    drawn = [Curve(name=str(at), x=[0, 1], y=[at, at + 1]) for at in range(12)]

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
    hollow = (
        r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill-opacity: 0; stroke: var\(--series-1\)'
    )
    ((x, _),) = re.findall(hollow, svg)
    # Both dots stand in the middle of their bars, which end together: 0.1 are half of one bar.
    first, second = (path for path in _paths(svg, "--series-1"))
    assert first[-1][0] == pytest.approx(second[-1][0])
    scale = (first[-1][0] - first[0][0]) / 0.2
    assert second[-1][0] - second[0][0] == pytest.approx(0.4 * scale)
    assert _marks(svg, "--series-1")[0][0] == pytest.approx(first[0][0] + 0.1 * scale, abs=0.01)
    assert float(x) == pytest.approx(second[0][0] + 0.2 * scale, abs=0.01)


def test_a_difference_without_an_interval_is_hollow_and_has_no_bar() -> None:
    found = [
        Difference(name="known", estimate=0.2, lower=0.1, upper=0.3),
        Difference(name="unknown", estimate=0.2, lower=math.nan, upper=math.nan),
    ]

    svg = differences(found, title="", xlabel="")

    assert len(_marks(svg, "--series-1")) == 1
    assert len([path for path in _paths(svg, "--series-1") if path]) == 1


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
    assert "background: var(--paper)" in style.text
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert all(f"{name}:" in style.text for name in used)
