"""What is read off the searched rows of a table of retrieval: rows, claims, the printed form."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tamis import artifacts
from tamis.evaluation.retrieval import CUTOFFS
from tamis.evaluation.seeds import paired_t_test
from tamis.reports.figures import Curve
from tamis.reports.table_figures import lines
from tamis.reproduce.results import three_digits
from tamis.reproduce.retrieval.tables import RetrievalTable
from tamis.training.runlog import device_of, source_commit

_VALUE, _CLICKS = "value_recall@100", "recall@100"
_KEPT_GAIN, _FLOPS_SHARE = 0.8, 0.15
INDEX_LOSS = 0.03
"""Share of the recall of scoring everything that an index may lose, be it learnt or not."""
_LATENCY_GAIN, _COLD_SHARE, _COLLAPSE = 0.065, 0.8, 0.8
_BARS = "bars of the specification"

Row = Mapping[str, Any]


def search_row_of(
    name: str, seed: int, found: Row, run: Path | None, *, has_ne: bool
) -> dict[str, Any]:
    """What the table keeps of a searched row.

    Args:
        name: Its name.
        seed: Seed of its model.
        found: What its process measured.
        run: Run of its model; None for popularity.
        has_ne: Whether what the run predicted of test rows is what the row would.
    """
    main = next(point for point in found["points"] if point["is_main"])
    metrics = {name: value for name, value in main.items() if name not in ("setting", "is_main")}
    result: dict[str, Any] = {
        "model": name,
        "seed": seed,
        "split": "test",
        "setting": main["setting"],
        "metrics": {"ne": None, **metrics},
        **found,
        "commit": source_commit(),
    }
    if run is None:
        return result
    trained = artifacts.read_json(run / "run.json")
    if has_ne:
        (task,) = artifacts.read_json(run / "metrics.json")["metrics"]["test"].values()
        result["metrics"] |= {"ne": task["ne"], "calibration": task["calibration"]}
    if "curve" in trained:
        result["curve"] = trained["curve"]
    return result | {
        "parameters": trained["parameters"]["total"],
        "dense_parameters": trained["parameters"]["dense"],
        "samples_per_second": round(trained["samples_per_second"]),
        "commit": trained["commit"],
        "device": device_of(trained["environment"]),
        "precision": trained["precision"],
    }


def recall_of(metrics: Row) -> float:
    """Recall at 100: of true value where it is known, else of what users went for."""
    return float(metrics.get(_VALUE, metrics[_CLICKS]))


def index_loss(point: Row, exhaustive: Row) -> float:
    """Share of the recall of scoring everything that a point loses."""
    best = recall_of(exhaustive)
    return 1.0 - recall_of(point) / best if best else 0.0


def claims_of(table: RetrievalTable, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table's comparisons and the bars of the specification."""
    by_name = {
        row.name: sorted(
            (found for found in rows if found["model"] == row.name), key=lambda one: one["seed"]
        )
        for row in table.rows
    }
    claims = [
        _comparison(by_name[claim.better], by_name[claim.worse], claim.metric)
        for claim in table.comparisons
    ]
    first, reference = by_name[table.indexed[0]], by_name[table.reference]
    if table.approximate:
        claims.append(_as_much_for_less(by_name[table.approximate], reference))
    if table.separate:
        claims.append(_not_worse(first, by_name[table.separate]))
        claims.append(_ends_apart(first, by_name[table.separate]))
    if table.large:
        large = by_name[table.large]
        claims.append(_kept_gain(first, reference, large))
        claims.append(
            _bar(
                f"{table.indexed[0]} takes at most {_FLOPS_SHARE:.0%} of the operations of "
                f"{table.large}",
                [a["metrics"]["flops"] / b["metrics"]["flops"] for a, b in _pairs(first, large)],
                lambda share: share <= _FLOPS_SHARE,
            )
        )
    for name in table.indexed:
        claims.append(
            _bar(
                f"{name} loses at most {INDEX_LOSS:.0%} of the recall of scoring everything",
                [row["metrics"]["index_loss"] for row in by_name[name]],
                lambda loss: loss <= INDEX_LOSS,
            )
        )
        claims.append(_beams_bind(by_name[name]))
    claims += [_at_equal_latency(first, by_name[name]) for name in table.rivals]
    if table.tells_shown:
        claims += _cold(first)
    if table.balance_removed:
        claims.append(_collapse(by_name[table.balance_removed], first))
    if table.short_queue:
        claims.append(_queue_matters(by_name[table.short_queue], first))
    for row in table.rows:
        if row.is_checked:
            claims += _checks(by_name[row.name])
    return claims


def display_of(
    table: RetrievalTable, rows: Sequence[Row], *, is_page: bool
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table, one line per row.

    A cell is of all seeds or blank: rows that were measured before a metric was lack it, and a mean
    of the others would be beside means of other seeds.

    Args:
        table: What is shown.
        rows: All of its rows.
        is_page: Whether it is for the page, where everything has its standard deviation; what is
            printed has only that of recall at 100, and fits 100 columns.
    """
    main = _VALUE if any(_VALUE in row["metrics"] for row in rows) else _CLICKS
    heads = {_VALUE: "value@100"} if main == _VALUE else {}
    heads |= {f"recall@{k}": f"recall@{k}" for k in CUTOFFS if is_page or k == 100}
    heads |= {"ndcg@20": "NDCG@20", "ne": "NE", "index_loss": "index loss" if is_page else "loss"}
    heads |= {"pairs": "pairs", "flops": "MFLOP" if is_page else "FLOP", "cpu_ms": "cpu ms"}
    heads |= {"latency": "x two towers" if is_page else "x towers"}
    forms: dict[str, Callable[[float], str]] = {
        "index_loss": lambda value: f"{value:.3f}",
        "pairs": (lambda value: f"{value:,.0f}") if is_page else _short,
        "flops": (lambda value: f"{value / 1e6:,.2f}") if is_page else _short,
        "cpu_ms": lambda value: f"{value:.2f}",
        "latency": lambda value: f"{value:.2f}",
    }
    display = []
    for row in table.rows:
        own = [found["metrics"] for found in rows if found["model"] == row.name]
        cells = [row.name]
        for name in heads:
            values = [metrics.get(name) for metrics in own]
            form = forms.get(name, _four)
            has_spread = is_page or name == main
            cells.append(_cell(values, form, has_spread=has_spread, is_page=is_page) or "")
        display.append(cells)
    return ["row", *heads.values()], display


def figure_of(table: RetrievalTable, rows: Sequence[Row]) -> str:
    """Recall at 100 over processor time: the table's ways to search, from narrow to wide.

    Widths that find less than half of the best would leave the others no room, and are not drawn.
    Times are geometric means over seeds, as they are ratios on a logarithmic axis.
    """
    least = 0.5 * max(recall_of(row["metrics"]) for row in rows)
    drawn = []
    for name in table.drawn:
        own = [row["points"] for row in rows if row["model"] == name]
        # By place: what is equally wide has another number of beams where nodes are fewer. Seeds
        # whose beams were chosen wider were measured at more widths than all of them.
        widths = list(zip(*own, strict=False))
        kinds = [_kind_of(points[0]["setting"]) for points in widths]
        for kind in dict.fromkeys(kinds):
            points = [
                (
                    float(np.exp(np.mean(np.log([point["latency"] for point in same])))),
                    float(np.mean([recall_of(point) for point in same])),
                )
                for same, of in zip(widths, kinds, strict=True)
                if of == kind
            ]
            shown = [point for point in points if point[1] >= least]
            if shown:
                x, y = zip(*shown, strict=True)
                full_name = name if len(set(kinds)) == 1 else f"{name}, {kind}"
                drawn.append(Curve(name=full_name, x=x, y=y))
    is_value = any(_VALUE in row["metrics"] for row in rows)
    return lines(
        drawn,
        title=f"{table.name}: what is found, from half of the best on, and what it takes",
        xlabel=f"processor time, times that of {table.reference}",
        ylabel=f"recall at 100{' of true value' if is_value else ''}",
        is_log=True,
    )


def _kind_of(setting: str) -> str:
    """A width without its numbers: Faiss searches in two ways, of several widths each."""
    return setting.partition(",")[0] if "," in setting else setting.partition(" ")[0]


def levels_of(
    table: RetrievalTable, rows: Sequence[Row], *, is_page: bool
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the levels of every row with an index of its own, one line per level.

    A cell is of all seeds or a dash: rows that were made before something was measured lack it.
    Items are under no node, and are no level of an index: their cells of both are blank.

    Args:
        table: What is shown.
        rows: All of its rows.
        is_page: As for :func:`display_of`; no standard deviation is printed.
    """
    four, two = _four, "{:.2f}".format
    shown: list[tuple[str, str, str, str, Callable[[float], str]]] = [
        *(
            ("forward", stands, f"NE {stands}", short, four)
            for stands, short in (
                ("soft", "NE soft"),
                ("hard", "NE hard"),
                ("representative", "NE repr."),
            )
        ),
        ("served", "", "calibration on test rows", "calibration", "{:.3f}".format),
        ("levels", "perplexity", "perplexity of items", "perplexity", two),
        ("traffic", "perplexity", "of traffic", "traffic", two),
        ("levels", "largest_to_mean", "largest node by items", "largest", two),
        ("traffic", "largest_to_mean", "by traffic", "busiest", two),
    ]
    display = []
    for row in table.rows:
        own = [found for found in rows if found["model"] == row.name]
        num_levels = max((len(found["levels"]) for found in own), default=0)
        for level in range(num_levels + 1 if num_levels else 0):
            is_items = level == num_levels
            cells = [row.name, "items" if is_items else str(level + 1)]
            for part, key, _, _, form in shown:
                if is_items and part in ("levels", "traffic"):
                    cells.append("")
                    continue
                values = [_value_of_level(found, part, key, level) for found in own]
                cells.append(_cell(values, form, has_spread=is_page, is_page=is_page) or "-")
            display.append(cells)
    heads = [long if is_page else short for _, _, long, short, _ in shown]
    return ["row", "level", *heads], display


def _value_of_level(row: Row, part: str, key: str, level: int) -> float | None:
    """A number of a level: from a list for each key, a list, or a record for each level."""
    found = row.get(part)
    if isinstance(found, Mapping):
        found = found[key]
    if not found:
        return None
    one = found[level]
    return float(one[key] if isinstance(one, Mapping) else one)


def _four(value: float) -> str:
    return f"{value:.4f}"


def _short(value: float) -> str:
    return three_digits(round(value))


def _cell(
    values: Sequence[float | None],
    form: Callable[[float], str],
    *,
    has_spread: bool,
    is_page: bool,
) -> str:
    """Mean, and standard deviation; empty where a seed lacks the value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    mean = form(float(np.mean(known)))
    if not has_spread:
        return mean
    return f"{mean}{' ± ' if is_page else '±'}{form(float(np.std(known, ddof=1)))}"


def _pairs(one: Sequence[Row], other: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of the same seeds."""
    return list(zip(one, other, strict=True))


def _metric_of(row: Row, metric: str) -> float:
    return recall_of(row["metrics"]) if metric == "recall" else float(row["metrics"]["ne"])


def _metric_beside(row: Row, better: Row, worse: Row, metric: str) -> float:
    """Metric of a row; of recall of two indexes at the share of nodes that the better one keeps.

    Each index has beams of its own, and one that is worse might make up for it by wider ones. Where
    one of them was not measured as wide, it is the widest share of both.

    Args:
        row: Either of both.
        better: The one that is claimed to be better, whose share counts.
        worse: The other one.
        metric: ``recall`` or ``ne``.
    """
    if metric == "ne" or not ("validation" in better and "validation" in worse):
        return _metric_of(row, metric)
    place = min(_main_place(better), len(better["points"]) - 1, len(worse["points"]) - 1)
    return recall_of(row["points"][place])


def _main_place(row: Row) -> int:
    return next(place for place, point in enumerate(row["points"]) if point["is_main"])


def _comparison(better: Sequence[Row], worse: Sequence[Row], metric: str) -> dict[str, Any]:
    test = paired_t_test(
        metric,
        [_metric_beside(bad, good, bad, metric) for bad, good in _pairs(worse, better)],
        [_metric_beside(good, good, bad, metric) for bad, good in _pairs(worse, better)],
    )
    is_less = metric == "ne"
    return {
        "claim": f"{better[0]['model']} has a {'lower NE' if is_less else 'higher recall'} than "
        f"{worse[0]['model']}",
        "estimate": test.difference,
        "interval": [test.lower, test.upper],
        "holds": test.upper < 0 if is_less else test.lower > 0,
        "how": f"paired t test over {test.units} seeds",
    }


def _not_worse(joint: Sequence[Row], separate: Sequence[Row]) -> dict[str, Any]:
    claim = _comparison(joint, separate, "recall")
    return claim | {
        "claim": f"{joint[0]['model']} recalls no less than {separate[0]['model']}",
        "holds": claim["estimate"] >= 0,
        "how": f"mean of {len(joint)} seeds; {_BARS}",
    }


def _bar(claim: str, values: Sequence[float], holds: Callable[[float], bool]) -> dict[str, Any]:
    mean = float(np.mean(values))
    return {
        "claim": claim,
        "estimate": mean,
        "interval": None,
        "holds": holds(mean),
        "how": f"mean of {len(values)} seeds; {_BARS}",
    }


def _as_much_for_less(approximate: Sequence[Row], exact: Sequence[Row]) -> dict[str, Any]:
    """What is looked for is the same: to find more would be luck, to find less is its error."""
    pairs = _pairs(approximate, exact)
    gain = -float(np.mean([index_loss(a["metrics"], b["metrics"]) for a, b in pairs]))
    share = float(np.mean([a["metrics"]["flops"] / b["metrics"]["flops"] for a, b in pairs]))
    return {
        "claim": f"{approximate[0]['model']} recalls what {exact[0]['model']} does to within "
        f"{INDEX_LOSS:.0%}, for fewer operations",
        "estimate": gain,
        "interval": None,
        "holds": abs(gain) <= INDEX_LOSS and share < 1.0,
        "how": f"mean of {len(pairs)} seeds; {share:.1%} of the operations",
    }


def _ends_apart(joint: Sequence[Row], separate: Sequence[Row]) -> dict[str, Any]:
    """Joint learning that changed nothing would be k-means under another name."""
    share = float(np.mean([a["weights"] != b["weights"] for a, b in _pairs(joint, separate)]))
    return {
        "claim": f"{joint[0]['model']} and {separate[0]['model']} end at different weights",
        "estimate": share,
        "interval": None,
        "holds": share == 1.0,
        "how": f"each of {len(joint)} seeds",
        "is_check": True,
    }


def _beams_bind(rows: Sequence[Row]) -> dict[str, Any]:
    """Beams that are no limit prune nothing, and what they keep says nothing of the index."""
    gaps = []
    for row in rows:
        kept = [point["kept"] for point in row["points"]]
        main = _main_place(row)
        gaps.append(kept[main] - kept[max(0, main - 1)])
    return _bar(
        f"{rows[0]['model']} keeps less of what scoring everything finds with half the beams",
        gaps,
        lambda gap: gap > 0,
    ) | {"how": f"mean of {len(rows)} seeds", "is_check": True}


def _kept_gain(
    first: Sequence[Row], reference: Sequence[Row], large: Sequence[Row]
) -> dict[str, Any]:
    """By the widest beams that take no more operations than the bar allows.

    Of means: the gain of one seed may be near 0, and a share of it anything.
    """
    kept = float(np.mean([_within(row, other) for row, other in _pairs(first, large)]))
    base = float(np.mean([recall_of(row["metrics"]) for row in reference]))
    gain = _comparison(large, reference, "recall")
    # Without a gain there is nothing to keep, and the bar says nothing: it does not hold.
    share = (kept - base) / gain["estimate"] if gain["estimate"] > 0 else 0.0
    return {
        "claim": f"{first[0]['model']} keeps at least {_KEPT_GAIN:.0%} of the gain in recall of "
        f"{large[0]['model']} over {reference[0]['model']}, for {_FLOPS_SHARE:.0%} of its "
        "operations",
        "estimate": share,
        "interval": None,
        "holds": gain["holds"] and share >= _KEPT_GAIN,
        "how": f"means of {len(first)} seeds; the gain is {gain['estimate']:+.4f}, "
        f"{gain['interval'][0]:+.4f} to {gain['interval'][1]:+.4f}, and where that holds 0 there "
        f"is none to keep; {_BARS}",
    }


def _within(row: Row, large: Row) -> float:
    """Recall of the widest beams of those operations; 0 where the narrowest take more."""
    limit = _FLOPS_SHARE * large["metrics"]["flops"]
    allowed = [point for point in row["points"] if point["flops"] <= limit]
    if not allowed:
        return 0.0
    return recall_of(max(allowed, key=lambda point: point["flops"]))


def _at_equal_latency(first: Sequence[Row], rival: Sequence[Row]) -> dict[str, Any]:
    """Gain over the rival's best width that takes no longer, each in units of the reference.

    The rival's width is picked on the very users that both are compared on, which favours it. Where
    none of its widths is as fast, its fastest one stands for it.
    """
    gains = []
    for row, other in _pairs(first, rival):
        fastest = min(point["latency"] for point in other["points"])
        limit = max(row["metrics"]["latency"], fastest)
        best = max(recall_of(point) for point in other["points"] if point["latency"] <= limit)
        own = recall_of(row["metrics"])
        gains.append(own / best - 1.0 if best else float(own > 0))
    return _bar(
        f"{first[0]['model']} recalls at least {_LATENCY_GAIN:.1%} more than the best width of "
        f"{rival[0]['model']} at equal latency",
        gains,
        lambda gain: gain >= _LATENCY_GAIN,
    )


def _cold(first: Sequence[Row]) -> list[dict[str, Any]]:
    """Items that were never shown against others, by themselves and in the lists that are served.

    By themselves is what content alone can tell, by which alone they are placed. In a list of all
    items those with a record of many clicks stand first, as they should where nothing but content
    is known of the others.
    """
    name = first[0]["model"]
    placed = [row["by_content"] for row in first if row.get("by_content")]
    alone = [(one["cold"], one["warm"]) for one in placed]
    served = [
        (cold, row["metrics"][f"warm_{_CLICKS}"])
        for row in first
        if (cold := row["metrics"][f"cold_{_CLICKS}"]) is not None
    ]
    return [
        _bar(
            f"{name} recalls items that were never shown at least {_COLD_SHARE:.0%} as well {how}",
            [cold / warm for cold, warm in pairs if warm],
            lambda share: share >= _COLD_SHARE,
        )
        for how, pairs in (
            ("among themselves as others of the same categories", alone),
            ("in lists of all items as others", served),
        )
        if any(warm for _, warm in pairs)
    ]


def _collapse(removed: Sequence[Row], first: Sequence[Row]) -> dict[str, Any]:
    ratios = [
        one["levels"][0]["perplexity"] / other["levels"][0]["perplexity"]
        for one, other in _pairs(removed, first)
    ]
    return _bar(
        f"without balance the perplexity of codes falls by more than {1 - _COLLAPSE:.0%}",
        ratios,
        lambda ratio: ratio < _COLLAPSE,
    )


def _queue_matters(short: Sequence[Row], first: Sequence[Row]) -> dict[str, Any]:
    """By more than seeds differ: the last digits of two trainings are never the same."""
    test = paired_t_test(
        "perplexity", *([row["levels"][0]["perplexity"] for row in rows] for rows in (first, short))
    )
    return {
        "claim": "balance judged by one batch gives another perplexity of codes",
        "estimate": test.difference,
        "interval": [test.lower, test.upper],
        "holds": test.lower > 0 or test.upper < 0,
        "how": f"paired t test over {test.units} seeds",
        "is_check": True,
    }


def _checks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every check of a row's index, on all seeds that were asked for it."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        for check in row["checks"]:
            by_name.setdefault(check["check"], []).append(check)
    return [
        {
            "claim": f"{rows[0]['model']}: {name}",
            "estimate": float(np.mean([check["value"] for check in found])),
            "interval": None,
            "holds": all(check["holds"] for check in found),
            "how": f"each of {len(found)} seeds",
            "is_check": True,
        }
        for name, found in by_name.items()
    ]
