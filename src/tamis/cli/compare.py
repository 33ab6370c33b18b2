"""``tamis compare``: is the second run better than the first?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.cli.console import Debug, Json, number, print_table, session

if TYPE_CHECKING:
    from tamis.evaluation.significance import PairedDifference


def compare(
    first: Annotated[Path, typer.Argument(help="Run that is the baseline.")],
    second: Annotated[Path, typer.Argument(help="Run that may be better.")],
    *,
    split: Annotated[str, typer.Option(help="Split whose predictions are compared.")] = "test",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two runs on the same rows, with intervals and p-values."""
    with session("compare", as_json=as_json, debug=debug) as current:
        from tamis import api

        api.prepare_process()
        comparisons = api.compare(first, second, split=split)
        rows = []
        for item in comparisons:
            for name, difference in (("NE", item.ne), ("AUC", item.auc)):
                if difference is not None:
                    rows.append(_row(f"{item.task} {name}", difference))
        print_table(
            current,
            title=f"{second} against {first}, {split} split",
            columns=["metric", "first", "second", "difference", "95 % interval", "p"],
            rows=rows,
        )
        for item in comparisons:
            verdict = item.note if item.ne is None else _verdict(item.ne)
            current.say(f"{item.task}: {verdict}")
        compared = {item.task for item in comparisons}
        for run in (first, second):
            for task in api.Run(run).metrics[split]:
                if task not in compared:
                    current.say(f"{task}: not compared, as {run} alone has it")
        current.finish(
            run=second,
            runs=[first, second],
            split=split,
            metrics={split: {item.task: item.metrics[1] for item in comparisons}},
            baseline={
                "run": first,
                "metrics": {split: {item.task: item.metrics[0] for item in comparisons}},
            },
            comparisons={
                item.task: {
                    "ne": item.ne.to_json() if item.ne else None,
                    "auc": item.auc.to_json() if item.auc else None,
                    "note": item.note,
                }
                for item in comparisons
            },
        )


def _row(name: str, difference: "PairedDifference") -> list[str]:
    return [
        name,
        number(difference.baseline, 5),
        number(difference.candidate, 5),
        f"{difference.difference:+.5f}",
        f"[{difference.lower:+.5f}, {difference.upper:+.5f}]",
        f"{difference.p_value:.2g}",
    ]


def _verdict(difference: "PairedDifference") -> str:
    if difference.upper < 0:
        return "the second run is better (its NE is lower, interval below 0)"
    if difference.lower > 0:
        return "the second run is worse (its NE is higher, interval above 0)"
    return "no difference that these rows can show"
