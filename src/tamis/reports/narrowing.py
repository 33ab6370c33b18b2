"""The one figure of a replayed funnel: how it narrows, what that keeps, and what it costs."""

from collections.abc import Mapping
from typing import Any

from tamis.reports.figures import Panel, bar_panels


def narrowing(record: Mapping[str, Any], *, title: str = "The funnel") -> str:
    """Candidates, share of total value kept and milliseconds of each stage, as inline SVG.

    Args:
        record: A replay's report in its JSON form.
        title: Above the figure.
    """
    stages = record["stages"]
    names = ["start", *(stage["name"] for stage in stages)]
    counts = [stages[0]["candidates_in"], *(stage["candidates_out"] for stage in stages)]
    times = [None, *(stage["latency_ms"]["p50"] for stage in stages)]
    panels = [
        Panel(
            xlabel="candidates that go on",
            values=counts,
            labels=[f"{count:,.0f}" if count >= 10 else f"{count:.3g}" for count in counts],
            scale="log",
        )
    ]
    kept = [stage["measures"].get("value_kept") for stage in stages]
    if any(share is not None for share in kept):
        panels.append(
            Panel(
                xlabel="share of total value kept",
                # Compared from the first stage on, what that was given has no share.
                values=[1.0 if record["scope"] == "all" else None, *kept],
                labels=["100%", *("" if share is None else f"{share:.1%}" for share in kept)],
                scale="share",
            )
        )
    panels.append(
        Panel(
            xlabel="milliseconds, median",
            values=times,
            labels=["", *(f"{ms:.3g}" for ms in times if ms is not None)],
        )
    )
    return bar_panels(names, panels, title=title)
