"""One HTML page from parts: style, headline figures, tables. Opens offline, light and dark."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from tamis.reports.canvas import PALETTE

_CSS = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 "Source Sans 3", "Segoe UI", system-ui, -apple-system, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 24px 64px; }
header { border-bottom: 1px solid var(--grid); margin-bottom: 24px; padding-bottom: 14px; }
h1 { font-size: 26px; margin: 0 0 2px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 40px 0 10px; }
p { margin: 0 0 10px; max-width: 76ch; }
.muted, header p { color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 12px 14px; }
.card .name { color: var(--muted); font-size: 12.5px; }
.card .value { font-size: 25px; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
.card .note { color: var(--muted); font-size: 12px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr));
  gap: 16px; align-items: start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 12px; max-width: 100%; overflow-x: auto; }
figure svg { width: 100%; max-width: 640px; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th { color: var(--muted); font-weight: 500; }
th:first-child, td:first-child { text-align: left; }
pre { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 14px; overflow-x: auto; font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, monospace; }
details summary { cursor: pointer; color: var(--accent); margin: 8px 0; }
a { color: var(--accent); }
@media print { body { background: none; } figure, .card { break-inside: avoid; } }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One headline figure."""

    name: str
    """What it is."""
    value: str
    """The figure."""
    note: str = ""
    """One line below it."""


def page(*, title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole HTML document; ``sections`` are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{PALETTE}{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p></header>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str, lead: str = "") -> str:
    """A headed part of the page; empty when it has no content."""
    body = "\n".join(part for part in parts if part)
    if not body:
        return ""
    intro = f'<p class="muted">{html.escape(lead)}</p>' if lead else ""
    return f"<section><h2>{html.escape(heading)}</h2>{intro}{body}</section>"


def cards(items: Sequence[Card]) -> str:
    """Headline figures side by side."""
    inner = "".join(
        f'<div class="card"><div class="name">{html.escape(item.name)}</div>'
        f'<div class="value">{html.escape(item.value)}</div>'
        f'<div class="note">{html.escape(item.note)}</div></div>'
        for item in items
    )
    return f'<div class="cards">{inner}</div>'


def figures(svgs: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    inner = "".join(f"<figure>{svg}</figure>" for svg in svgs)
    return f'<div class="figures">{inner}</div>' if svgs else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; first column left, the others right. Empty without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text; empty without any."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def folded(summary: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def code(text: str) -> str:
    """Text in a fixed-width block."""
    return f"<pre>{html.escape(text)}</pre>"
