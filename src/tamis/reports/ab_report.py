"""The page of an A/B test of two funnels, from the record of the test alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamis import artifacts
from tamis.funnel.trace import KNOWN
from tamis.reports import page
from tamis.reports.figures import intervals

METRICS = {
    "value_per_request": "total value a request",
    "value_per_user": "total value a user",
    "click_rate": "clicks an impression",
    "conversion_rate": "conversions a click",
    "hide_rate": "hides an impression",
}
"""What each metric is called, the one that decides first."""
_ARMS = ("control", "treatment")
_DIFFERENCES_LEAD = (
    "Users are the units; intervals hold 95 %. Each p-value stands alone: where nothing differs, "
    "each metric still falls below .05 once in 20 tests, so that of five metrics one often does. "
    "The lift is the difference over the control, where that is clearly above 0. A difference has "
    "neither interval nor p-value while all users of an arm have one rate, such as none."
)
_LOOKS_LEAD = (
    "Treatment minus control after each day, counted from the first day of the test. The 95 % "
    "interval of a metric stays valid for it alone however often it is looked at, about so below "
    "some hundred users an arm: who stops on the first day whose interval leaves out 0 is wrong in "
    "one test of 20 at most. It only ever narrows; where days contradict each other nothing is "
    "left of it. Value is per user and day here, so that days compare; clicks wait two days for "
    "their conversion."
)
_LOSSES_LEAD = (
    "By the true probabilities, on some requests of each arm: how often a stage drops the ad that "
    "is worth most, how much less the best ad that is left is worth after it, and what share that "
    "is of all that the funnel lost."
)


def write_ab_test(record: Mapping[str, Any], folder: Path) -> None:
    """Write ``ab-test.json`` and its page ``report.html``.

    Args:
        record: Of ``ab_test_bundles``.
        folder: Made where it does not exist.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    artifacts.write_json(folder / "ab-test.json", record)
    artifacts.write_text(folder / "report.html", render(record))


def render(record: Mapping[str, Any]) -> str:
    """The page as HTML."""
    control, treatment = (record["arms"][arm] for arm in _ARMS)
    figures, unseen = _looks(record)
    left_out = f" Too few events for {', '.join(unseen)}." if unseen else ""
    return page.page(
        title=f"A/B test: {treatment['name']} against {control['name']}",
        subtitle=(
            f"the simulated market of {record['rows']:,} impressions and seed {record['seed']}, "
            f"days {record['first_day']} to {record['first_day'] + record['days'] - 1}, counted "
            f"from 0; releases {control['release'][:12]} and {treatment['release'][:12]}"
        ),
        sections=[
            page.cards(_headline(record)),
            page.section(
                "Differences", page.table(*difference_table(record)), lead=_DIFFERENCES_LEAD
            ),
            page.section("Day by day", page.figures(figures), lead=_LOOKS_LEAD + left_out),
            page.section(
                "Where value was lost",
                page.table(*loss_table(record)),
                page.paragraph(unjudged(record)),
                lead=_LOSSES_LEAD,
            ),
            page.section("Fallbacks", page.table(*fallback_table(record))),
        ],
    )


def verdict(record: Mapping[str, Any]) -> str:
    """What the test says of total value, in a sentence."""
    if record["sample_ratio"]["is_mismatch"]:
        return "the arms have other shares of the users than planned: trust no difference"
    found = record["differences"]["value_per_request"]
    if found["p_value"] is None:
        return "too few events to compare total value a request"
    if not found["is_significant"]:
        return "no certain difference in total value a request"
    more = "more" if found["difference"] > 0 else "less"
    names = [record["arms"][arm]["name"] for arm in reversed(_ARMS)]
    return f"{names[0]} earns {more} total value a request than {names[1]}"


def unjudged(record: Mapping[str, Any]) -> str:
    """Why it is not known what the stages of an arm lost; empty where it is known of both."""
    arms = [arm for arm in _ARMS if record["losses"][arm] is None]
    if not arms:
        return ""
    return (
        f"Too few requests of {' and '.join(arms)} were asked for that: ask every so many fewer, "
        f"or take more days."
    )


def difference_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each metric in both arms, and the difference."""
    rows = []
    for name, words in METRICS.items():
        found = record["differences"].get(name)
        if found is None:
            continue
        values = [f"{found[arm]['value']:.4g}" for arm in _ARMS]
        rows.append([words, *values, _difference(found), _lift(found), _p_value(found)])
    return ["metric", *_ARMS, "difference", "lift", "p"], rows


def loss_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what each stage of each arm lost; no rows where nothing is known."""
    rows = []
    for arm in _ARMS:
        losses = record["losses"][arm]
        if losses is None:
            continue
        whole = losses["regret"]["value"]
        for stage in losses["stages"]:
            if stage["stage"] == KNOWN:  # what every funnel knows of; it has lost nothing yet
                continue
            lost = stage["lost"]["value"]
            share = f"{lost / whole:.0%}" if whole else "-"
            rows.append(
                [arm, stage["stage"], f"{stage['died']['value']:.1%}", f"{lost:.4g}", share]
            )
    return ["arm", "stage", "drops the best ad", "value lost", "share of loss"], rows


def fallback_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: answers that a stage did not order itself; no rows where all did."""
    rows = [
        [arm, found["stage"], found["reason"], f"{found['requests']:,}"]
        for arm in _ARMS
        for found in record["arms"][arm]["fallbacks"]
    ]
    return ["arm", "stage", "reason", "requests"], rows


def _difference(found: Mapping[str, Any]) -> str:
    difference = f"{found['difference']:+.3g}"
    if found["lower"] is None:
        return difference
    return f"{difference} [{found['lower']:+.3g}, {found['upper']:+.3g}]"


def _p_value(found: Mapping[str, Any]) -> str:
    return "-" if found["p_value"] is None else f"{found['p_value']:.2g}"


def _lift(found: Mapping[str, Any]) -> str:
    is_clear = found["lift"] is not None and found["control"]["lower"] > 0
    return f"{found['lift']:+.1%}" if is_clear else "-"


def _headline(record: Mapping[str, Any]) -> list[page.Card]:
    found, ratio = record["differences"]["value_per_request"], record["sample_ratio"]
    interval = (
        "interval not known"
        if found["lower"] is None
        else f"from {found['lower']:+.3g} to {found['upper']:+.3g}"
    )
    return [
        page.Card(name="verdict", value=verdict(record), note=f"p = {_p_value(found)}"),
        page.Card(
            name="total value a request",
            value=f"{found['difference']:+.3g}",
            note=f"{interval}; lift {_lift(found)}",
        ),
        page.Card(
            name="users",
            value=f"{ratio['control_users']:,} and {ratio['treated_users']:,}",
            note=f"planned share {ratio['treated_share']:.0%}, p = {ratio['p_value']:.2g}",
        ),
    ]


def _looks(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """A figure for each metric that was looked at, and names of those that had too few events."""
    figures, unseen = [], []
    for name, words in METRICS.items():
        if name == "value_per_request":  # looked at per user and day
            continue
        found = record["guarded"].get(name)
        if found is None:
            unseen.append(words)
            continue
        rows = zip(found["days"], found["lower"], found["upper"], strict=True)
        agreeing = [(day, low, high) for day, low, high in rows if low <= high]
        stopped = found["stopped_on"]
        when = "decided on none" if stopped is None else f"decided on day {stopped}"
        if len(agreeing) < len(found["days"]):
            when += f"; the days after {agreeing[-1][0]} contradict"
        figures.append(
            intervals(
                *(list(column) for column in zip(*agreeing, strict=True)),
                title=f"{words} and day" if name == "value_per_user" else words,
                xlabel=f"day of the test; {when}",
                ylabel="difference",
            )
        )
    return figures, unseen
