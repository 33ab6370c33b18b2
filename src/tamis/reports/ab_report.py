"""The page of an A/B test of two funnels, from the record of the test alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamis import artifacts
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
_LOSS_COLUMNS = ("arm", "stage", "best ad dies here", "value lost", "of all loss")


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
    return page.page(
        title=f"A/B test: {treatment['name']} against {control['name']}",
        subtitle=(
            f"the simulated market of {record['rows']:,} impressions and seed {record['seed']}, "
            f"days {record['first_day']} to {record['first_day'] + record['days'] - 1}; releases "
            f"{control['release'][:12]} and {treatment['release'][:12]}"
        ),
        sections=[
            page.cards(_headline(record)),
            page.section(
                "Differences",
                page.table(*difference_table(record)),
                lead="Users are the units. Every p-value stands for itself: of five metrics "
                "without any difference, one in twenty each has a p-value below .05.",
            ),
            page.section(
                "Day by day",
                page.figures(_looks(record)),
                lead="Treatment minus control after each day, in intervals that stay valid however "
                "often they are looked at: whoever stops as soon as one leaves 0 is wrong no more "
                "often than they say.",
            ),
            page.section(
                "Where value was lost",
                page.table(*loss_table(record)),
                lead="By the true probabilities, on the requests that were judged: how often each "
                "stage drops the most valuable ad, and what the best ad that is left loses there.",
            ),
        ],
    )


def verdict(record: Mapping[str, Any]) -> str:
    """What the test says of total value, in a sentence."""
    if record["sample_ratio"]["is_mismatch"]:
        return "the arms have other shares of the users than planned: trust no difference"
    found = record["differences"]["value_per_request"]
    if not found["is_significant"]:
        return "no certain difference in total value a request"
    more = "more" if found["difference"] > 0 else "less"
    names = [record["arms"][arm]["name"] for arm in reversed(_ARMS)]
    return f"{names[0]} earns {more} total value a request than {names[1]}"


def difference_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each metric in both arms, and the difference."""
    rows = []
    for name, words in METRICS.items():
        found = record["differences"][name]
        lift = "-"
        if found["lift"] is not None:
            low, high = found["lift_lower"], found["lift_upper"]
            lift = f"{found['lift']:+.1%} [{low:+.1%}, {high:+.1%}]"
        values = [f"{found[arm]['value']:.4g}" for arm in _ARMS]
        rows.append([words, *values, lift, f"{found['p_value']:.2g}"])
    return ["metric", *_ARMS, "lift", "p"], rows


def loss_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what each stage of each arm lost; no rows where nothing was judged."""
    rows = []
    for arm in _ARMS:
        losses = record["losses"][arm]
        if losses is None:
            continue
        whole = losses["regret"]["value"]
        for stage in losses["stages"]:
            if stage["stage"] == "known":  # what every funnel knows of; it has lost nothing yet
                continue
            lost = stage["lost"]["value"]
            share = f"{lost / whole:.0%}" if whole else "-"
            rows.append(
                [arm, stage["stage"], f"{stage['died']['value']:.1%}", f"{lost:.4g}", share]
            )
    return list(_LOSS_COLUMNS), rows


def _headline(record: Mapping[str, Any]) -> list[page.Card]:
    found, ratio = record["differences"]["value_per_request"], record["sample_ratio"]
    cards = [
        page.Card(name="verdict", value=verdict(record), note=f"p = {found['p_value']:.2g}"),
        page.Card(
            name="users",
            value=f"{ratio['control_users']:,} and {ratio['treated_users']:,}",
            note=f"planned share {ratio['treated_share']:.0%}, p = {ratio['p_value']:.2g}",
        ),
    ]
    if found["lift"] is not None:
        cards.insert(
            1,
            page.Card(
                name="total value a request",
                value=f"{found['lift']:+.1%}",
                note=f"from {found['lift_lower']:+.1%} to {found['lift_upper']:+.1%}",
            ),
        )
    return cards


def _looks(record: Mapping[str, Any]) -> list[str]:
    figures = []
    for name, words in METRICS.items():
        found = record["guarded"].get(name)
        if found is None:
            continue
        what = f"{words} and day" if name == "value_per_user" else words
        stopped = found["stopped_on"]
        when = "decided on none" if stopped is None else f"decided on day {stopped}"
        figures.append(
            intervals(
                found["days"],
                found["lower"],
                found["upper"],
                title=what,
                xlabel=f"day of the test; {when}",
                ylabel="difference",
            )
        )
    return figures
