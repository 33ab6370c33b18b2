"""Figures as inline SVG that takes its colours from the page, so one file serves light and dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tamis.reports.canvas import INK, MUTED, SERIES, canvas, letters, shortened, svg_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a figure."""

    name: str
    """Legend text."""
    x: Sequence[float]
    """Positions."""
    y: Sequence[float]
    """Values, as many as positions."""
    spread: Sequence[float] = ()
    """Standard deviation of each value. Empty: not drawn."""


def learning_curves(
    curves: Sequence[Curve],
    *,
    title: str,
    ylabel: str,
    best_step: int | None = None,
    oracle: float | None = None,
) -> str:
    """Values over training steps, the chosen step marked, the oracle's value as a dashed line."""
    with canvas(width=5.6, height=3.4) as (figure, axes):
        for color, curve in zip(SERIES * len(curves), curves, strict=False):
            marker = "o" if len(curve.x) < 40 else None
            axes.plot(curve.x, curve.y, color=color, label=curve.name, marker=marker, ms=3.5)
        if best_step is not None:
            axes.axvline(best_step, color=MUTED, lw=0.9, ls=":", label="weights kept")
        if oracle is not None:
            axes.axhline(oracle, color=SERIES[2], lw=1.1, ls="--", label="true probabilities")
        axes.set(title=title, xlabel="training step", ylabel=ylabel)
        axes.legend(loc="best", fontsize=8.5)
        return svg_of(figure, title)


def reliability(bins: Sequence[Mapping[str, float]], *, title: str) -> str:
    """Observed against predicted probability on logarithmic axes, with 95 % intervals."""
    from matplotlib.ticker import LogLocator, NullFormatter

    with canvas(width=5.6, height=3.4) as (figure, axes):
        shown = [item for item in bins if item["predicted"] > 0 and item["observed"] > 0]
        predicted = [item["predicted"] for item in shown]
        observed = [item["observed"] for item in shown]
        floor = min([*predicted, *observed], default=1e-3) / 2
        below = [item["observed"] - max(item["lower"], floor) for item in shown]
        above = [item["upper"] - item["observed"] for item in shown]
        low, high = floor, min(1.0, max([*predicted, *observed], default=1.0) * 2)
        axes.plot([low, high], [low, high], color=MUTED, lw=0.9, ls="--", label="calibrated")
        axes.errorbar(
            predicted,
            observed,
            yerr=[[max(0.0, value) for value in below], [max(0.0, value) for value in above]],
            color=SERIES[0],
            fmt="o",
            ms=4,
            lw=1,
            label="bins of equal mass",
        )
        axes.set(
            title=title,
            xlabel="predicted probability",
            ylabel="observed share",
            xscale="log",
            yscale="log",
            xlim=(low, high),
            ylim=(low, high),
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper left", fontsize=8.5)
        return svg_of(figure, title)


def intervals(
    x: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> str:
    """An interval at each position as an upright bar, beside a line at 0."""
    with canvas(width=4.2, height=2.8) as (figure, axes):
        axes.axhline(0, color=MUTED, lw=0.9, ls="--")
        axes.vlines(x, lower, upper, color=SERIES[0], lw=3, alpha=0.75)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xticks=list(x))
        axes.set_xlim(min(x) - 0.6, max(x) + 0.6)
        return svg_of(figure, title)


def bars(names: Sequence[str], values: Sequence[float], *, title: str, xlabel: str) -> str:
    """Horizontal bars, the first name on top, each with its value."""
    names = [shortened(name) for name in names]
    with canvas(width=6.4, height=0.9 + 0.24 * len(names)) as (figure, axes):
        positions = range(len(names))
        axes.barh(list(positions), values, color=SERIES[0], height=0.62)
        axes.set_yticks(list(positions), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.set(title=title, xlabel=xlabel)
        for position, value in zip(positions, values, strict=True):
            axes.annotate(
                f"{value:+.4f}",
                (max(value, 0.0), position),
                textcoords="offset points",
                xytext=(4, 0),
                va="center",
                fontsize=8,
                color=MUTED,
            )
        axes.margins(x=0.16)
        return svg_of(figure, title)


def matrix(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, title: str
) -> str:
    """A matrix as squares, the larger in magnitude the darker, each with its value."""
    rows, columns = [shortened(name) for name in rows], [shortened(name) for name in columns]
    size = max((abs(value) for row in values for value in row), default=0.0) or 1.0
    # Room for the longest name of a row beside the squares, at 0.07 inches a letter.
    names = max(1.6, 0.6 + 0.07 * max(map(letters, rows), default=0))
    width = max(3.2, names + 0.72 * len(columns))
    # Turned names of columns stand below the squares, at half their length.
    below = 0.035 * max(map(letters, columns), default=0) if len(columns) > 4 else 0.0
    with canvas(width=width, height=0.9 + 0.42 * len(rows) + below) as (figure, axes):
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                # The series colour, let through by the magnitude; readable in light and dark.
                axes.add_patch(_square(x, y, alpha=0.55 * abs(value) / size))
                axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=8.5, color=INK)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns, fontsize=8.5)
        axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
        if len(columns) > 4:
            axes.tick_params(axis="x", rotation=30)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_title(title)
        return svg_of(figure, title)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One column of bars in a figure of several."""

    xlabel: str
    """What the bars measure."""
    values: Sequence[float | None]
    """One for each name; None draws no bar."""
    labels: Sequence[str]
    """Text at the end of each bar."""
    scale: Literal["linear", "share", "log"] = "linear"
    """Of the axis: from 0 on; from 0 to 1 in percent; or logarithmic from 1 on."""


def bar_panels(names: Sequence[str], panels: Sequence[Panel], *, title: str) -> str:
    """Horizontal bars of the same names in two panels or more, the first name on top."""
    names = [shortened(name) for name in names]
    width, height = 2.4 + 2.1 * len(panels), 1.1 + 0.34 * len(names)
    with canvas(width=width, height=height, columns=len(panels)) as (figure, columns):
        for color, axes, panel in zip(SERIES, columns, panels, strict=False):
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_yticks(range(len(names)), names if axes is columns[0] else [""] * len(names))
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(panel.xlabel)
            _draw_bars(axes, panel, color)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        return svg_of(figure, title)


def _draw_bars(axes: Any, panel: Panel, color: str) -> None:  # noqa: ANN401  (matplotlib is untyped)
    base = 1.0 if panel.scale == "log" else 0.0
    # On a logarithmic axis a bar cannot end below where all of them begin.
    ends = [(at, max(v, base)) for at, v in enumerate(panel.values) if v is not None]
    widths = [end - base for _, end in ends]
    axes.barh([at for at, _ in ends], widths, left=base, color=color, height=0.62)
    for at, end in ends:
        axes.annotate(
            panel.labels[at],
            (end, at),
            textcoords="offset points",
            xytext=(4, 0),
            va="center",
            fontsize=8,
            color=MUTED,
        )
    largest = max((end for _, end in ends), default=1.0)
    if panel.scale == "log":
        axes.set_xscale("log")
        axes.set_xlim(base, max(largest, 10.0) ** 1.4)  # room for the label of the longest bar
        ticks = [10.0**power for power in range(0, int(math.log10(largest)) + 1, 2)]
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
    else:
        axes.set_xlim(base, (1.0 if panel.scale == "share" else largest or 1.0) * 1.4)
    if panel.scale == "share":
        axes.set_xticks([0.0, 0.5, 1.0], ["0%", "50%", "100%"])


def _square(x: float, y: float, *, alpha: float) -> Any:  # noqa: ANN401  (matplotlib is untyped)
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=SERIES[0], alpha=alpha, lw=0)
