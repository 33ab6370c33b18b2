"""Figures of tables of results: what every seed gave, what finding more costs, differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.reports.canvas import INK, MUTED, SERIES, canvas, shortened, svg_of
from tamis.reports.figures import Curve

_FAR = 6.0
"""Distance from the median, in median distances, from which a mean is told and not drawn."""
_ALIKE = 0.001
"""Share of the whole width that this distance needs: most means may be the same to the digit."""
_DASHES, _MARKERS = ("-", "--", ":"), "os^D"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """One column of dots in a figure of several."""

    xlabel: str
    """What the dots measure."""
    values: Sequence[Sequence[float]]
    """Of each name, what its seeds gave."""


def seed_dots(
    names: Sequence[str], panels: Sequence[Seeds], *, title: str, reference: str | None = None
) -> str:
    """A dot for every seed and a stroke at their mean, the first name on top.

    Names whose mean lies far from those of all others, and from all of their seeds, are told at the
    edge: drawn, they would leave the others no room.

    Args:
        names: What is compared.
        panels: What is measured of each.
        title: Above the figure.
        reference: Name whose mean is a line through each panel. None: no line.
    """
    base = None if reference is None else names.index(reference)
    names = [shortened(name) for name in names]
    width, height = 1.8 + 3.0 * len(panels), 0.9 + 0.25 * len(names)
    with canvas(width=width, height=height, columns=len(panels)) as (figure, columns):
        all_axes = [columns] if len(panels) == 1 else columns
        for axes, panel in zip(all_axes, panels, strict=True):
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_yticks(range(len(names)), names if axes is all_axes[0] else [""] * len(names))
            axes.tick_params(axis="y", length=0)
            axes.set_xlabel(panel.xlabel)
            _draw_seeds(axes, panel.values, base)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        return svg_of(figure, title)


def _draw_seeds(
    axes: Any,  # noqa: ANN401  (matplotlib is untyped)
    values: Sequence[Sequence[float]],
    base: int | None,
) -> None:
    means = np.array([np.mean(own) for own in values])
    away = means - np.median(means)
    least = _FAR * np.median(np.abs(away))
    is_far = (np.abs(away) > least) & (least > _ALIKE * np.ptp(means))
    # Where seeds of others reach as far, leaving one out would make no room.
    near = np.concatenate([own for own, far in zip(values, is_far, strict=True) if not far])
    room = np.ptp(near)
    is_far &= (means > near.max() + room) | (means < near.min() - room)
    if base is not None and not is_far[base]:
        axes.axvline(means[base], color=MUTED, lw=0.9, ls=":")
    for at, own in enumerate(values):
        if is_far[at]:
            side = float(away[at] > 0)
            axes.annotate(
                f"{means[at]:.4f} →" if side else f"← {means[at]:.4f}",
                (side, at),
                xycoords=("axes fraction", "data"),
                ha="right" if side else "left",
                va="center",
                fontsize=8,
                color=MUTED,
            )
        else:
            axes.plot(own, [at] * len(own), "o", ms=4, color=SERIES[0], alpha=0.45, mew=0)
            axes.plot([means[at]], [at], "|", ms=11, mew=2, color=INK)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=5)


def lines(
    drawn: Sequence[Curve], *, title: str, xlabel: str, ylabel: str, is_log: bool = False
) -> str:
    """Curves, or single points, named beside the figure.

    Args:
        drawn: Up to twelve that look different, told apart without their colours too.
        title: Above the figure.
        xlabel: What positions are; unless their axis is logarithmic, each has a tick.
        ylabel: What values are.
        is_log: Whether the axis of positions is logarithmic.
    """
    from matplotlib.ticker import NullFormatter

    with canvas(width=7.2, height=3.8) as (figure, axes):
        for at, line in enumerate(drawn):
            axes.errorbar(
                line.x,
                line.y,
                yerr=line.spread or None,
                color=SERIES[at % len(SERIES)],
                ls=_DASHES[at // len(SERIES) % len(_DASHES)],
                marker=_MARKERS[(at + at // len(SERIES)) % len(_MARKERS)],
                ms=4,
                lw=1.4,
                capsize=2,
                label=line.name,
            )
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if is_log:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            # Within a decade there may be no major tick at all.
            few = (lambda value, _: f"{value:g}") if high < 10 * low else NullFormatter()
            axes.xaxis.set_minor_formatter(few)
        else:
            axes.set_xticks(sorted({x for line in drawn for x in line.x}))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
        return svg_of(figure, title)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One line of a figure of differences."""

    name: str
    """What is compared."""
    estimate: float
    """The difference."""
    lower: float
    """Lower end of its interval; not a number where it is not known."""
    upper: float
    """Upper end of its interval."""


def differences(found: Sequence[Difference], *, title: str, xlabel: str) -> str:
    """A dot and its interval for each difference, the first on top, beside a line at 0.

    A dot is hollow where the interval holds 0, or is not known.
    """
    with canvas(width=7.2, height=0.9 + 0.27 * len(found)) as (figure, axes):
        axes.axvline(0, color=MUTED, lw=0.9, ls="--")
        for at, one in enumerate(found):
            is_apart = one.lower > 0 or one.upper < 0
            axes.hlines(at, one.lower, one.upper, color=SERIES[0], lw=2, alpha=0.6)
            axes.plot(
                [one.estimate],
                [at],
                "o",
                ms=5,
                color=SERIES[0],
                mfc=SERIES[0] if is_apart else "none",
            )
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_yticks(range(len(found)), [shortened(one.name) for one in found])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(title=title, xlabel=xlabel)
        return svg_of(figure, title)
