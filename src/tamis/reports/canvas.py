"""What every figure is drawn on: SVG that takes its colours from where it stands."""

import html
import io
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PALETTE = """
:root { color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1c1b19; --muted: #6b6760; --grid: #e4e0d8;
  --accent: #b4532a; --series-1: #b4532a; --series-2: #2b6a80; --series-3: #6d7d2f;
  --series-4: #7b4f8c; --good: #3f7a3a; --bad: #a8322d; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #171614; --card: #201f1c; --ink: #ece8e1; --muted: #a39d92; --grid: #383530;
  --accent: #e58a5b; --series-1: #e58a5b; --series-2: #72b5cc; --series-3: #b3c46a;
  --series-4: #c294d4; --good: #8cc585; --bad: #e8837d; } }
"""
"""Style sheet of the colours, light and dark."""
_ALONE = """svg { background: var(--paper); }
text { font-family: "Source Sans 3", "Segoe UI", system-ui, sans-serif !important; }
"""

# matplotlib draws with these stand-ins; the page's style sheet then decides what they look like.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{color: f"var(--series-{index + 1})" for index, color in enumerate(SERIES)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tamis",
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a field may be called "$"
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

_LONGEST_NAME = 40
"""Letters of a name beside an axis; what is longer would take the room of the figure itself."""


def letters(name: str) -> int:
    """Width of a name in Latin letters; those of Chinese, Japanese and Korean are twice as wide."""
    return len(name) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in name)


def shortened(name: str) -> str:
    """A name as it stands beside an axis: the beginning of what is too long for one."""
    if letters(name) <= _LONGEST_NAME:
        return name
    while letters(name) >= _LONGEST_NAME:
        name = name[:-1]
    return f"{name}…"


@contextmanager
def canvas(*, width: float, height: float, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """A figure of so many inches and its axes, or a row of them, to be drawn within the block."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A context of its own: the caller's matplotlib settings neither matter nor change.
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(ncols=columns)


def svg_of(figure: Any, title: str) -> str:  # noqa: ANN401  (matplotlib is untyped)
    """The figure as an element of a page, whose style sheet holds the palette."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text, and whoever shows the page has fonts of their own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def standalone(svg: str) -> str:
    """The figure as a file of its own, which brings its style sheet along."""
    head, body = svg.split(">", 1)
    return f"{head}>\n<style>{PALETTE}{_ALONE}</style>{body}\n"
