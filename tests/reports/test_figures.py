"""Figures: themed by the page, reproducible, and true to their numbers."""

import re
from xml.etree import ElementTree

import pytest

from tamis.reports import figures


def _curve() -> figures.Curve:
    return figures.Curve(name="validation", x=[0, 10, 20], y=[1.0, 0.9, 0.85])


def test_learning_curves_take_every_colour_from_the_page() -> None:
    svg = figures.learning_curves([_curve()], title="NE, click", ylabel="NE", best_step=20)

    # Stand-in colours are replaced; whatever is left would not follow dark mode.
    assert not re.search(r"#0[1-7]0[1-7]0[1-7]", svg)
    assert "var(--series-1)" in svg
    assert "var(--ink)" in svg


def test_learning_curves_are_the_same_bytes_twice() -> None:
    first = figures.learning_curves([_curve()], title="NE", ylabel="NE", oracle=0.8)
    second = figures.learning_curves([_curve()], title="NE", ylabel="NE", oracle=0.8)

    assert first == second


def test_figures_are_well_formed_and_named_for_screen_readers() -> None:
    bins = [{"predicted": 0.01, "observed": 0.02, "lower": 0.01, "upper": 0.03}]

    svg = figures.reliability(bins, title="Calibration, click")

    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Calibration, click"


def test_bars_write_each_value_beside_its_name() -> None:
    svg = figures.bars(["user_id", "ad_id"], [0.031, -0.002], title="Importance", xlabel="NE")

    assert "user_id" in svg
    assert "+0.0310" in svg
    assert "0.0020" in svg


def test_reliability_leaves_out_bins_that_a_logarithm_cannot_show() -> None:
    bins = [
        {"predicted": 0.01, "observed": 0.0, "lower": 0.0, "upper": 0.01},
        {"predicted": 0.1, "observed": 0.1, "lower": 0.05, "upper": 0.2},
    ]

    assert "NaN" not in figures.reliability(bins, title="Calibration")


def test_a_title_may_hold_any_character() -> None:
    svg = figures.learning_curves([_curve()], title='NE, <"$&$">', ylabel="NE")

    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'NE, <"$&$">'


def test_matrix_names_rows_and_columns_and_writes_each_value() -> None:
    svg = figures.matrix(["click", "buy"], ["a", "b", "c"], [[1, 0.25, 0], [0, -2, 3]], title="W")

    words = [node.text for node in ElementTree.fromstring(svg).iter() if node.text]
    for word in ("click", "buy", "a", "b", "c", "0.25", "-2", "3"):
        assert word in words
    assert not re.search(r"#0[1-7]0[1-7]0[1-7]", svg)


def test_matrix_of_zeros_is_drawn() -> None:
    assert "<svg" in figures.matrix(["click"], ["a"], [[0.0]], title="W")


def test_matrix_has_room_for_long_names_beside_a_single_column() -> None:
    rows = ["perplexity, as a share of the nodes", "entropy of a row's memberships, in nats"]
    title = "Traffic over the nodes of each index level"

    # Without room the squares collapse, of which matplotlib warns.
    figure = figures.matrix(rows, ["level 1"], [[0.7], [3.6]], title=title)

    assert all(name in figure for name in ("level 1", "3.6"))


@pytest.mark.filterwarnings("error")
def test_names_of_any_script_and_length_are_drawn_without_a_warning() -> None:
    short, long = "ユーザー", "a_column_" * 30
    names = [short, long, "列" * 90]
    panel = figures.Panel(xlabel="share", values=[0.1, 0.2, 0.3], labels=["", "", ""])

    for svg in (
        figures.bars(names, [0.1, 0.2, 0.3], title=short, xlabel="NE"),
        figures.matrix(names, names, [[0.1] * 3] * 3, title=short),
        figures.matrix(names, names * 2, [[0.1] * 6] * 3, title=short),
        figures.bar_panels(names, [panel, panel], title=short),
    ):
        words = [node.text for node in ElementTree.fromstring(svg).iter() if node.text]
        assert short in words
        assert f"{long[:39]}…" in words
        assert f"{'列' * 19}…" in words
        assert long not in words


def test_intervals_stand_at_their_positions_beside_zero() -> None:
    def ends(lower: float, upper: float) -> list[tuple[float, float]]:
        """Where the bar of a figure begins and ends, in the figure's own units."""
        svg = figures.intervals(
            [1, 2], [lower, -1.0], [upper, 1.0], title="clicks", xlabel="day", ylabel="difference"
        )
        bars = re.search(r'id="LineCollection_1".*?</g>', svg, flags=re.S)
        assert bars is not None
        found = re.findall(r"M ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)", bars.group(0))
        assert len(found) == 2
        return [(float(low), float(high)) for _, low, _, high in found]

    (low, high), (least, most) = ends(0.0, 0.5)
    # Heights grow downwards: from 0 to .5 is the upper half of what -1 to 1 takes, halved.
    assert low == pytest.approx((least + most) / 2, abs=0.01)
    assert low - high == pytest.approx((least - most) / 4, abs=0.01)
    assert ends(-0.5, 0.5)[0] != (low, high)
