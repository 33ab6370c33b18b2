"""What every benchmark shares: interleaved pairs, ratios, machine, table and JSON.

A claim about speed is a ratio, and a ratio comes from pairs that were measured one after the other
in one run on one machine: what slows the machine down slows both halves of most pairs.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times faster (or smaller) tamis is, over pairs of measurements."""

    median: float
    """Middle of the pairs' ratios."""
    min: float
    """Worst pair."""
    max: float
    """Best pair."""
    pairs: int
    """Pairs measured."""

    def to_json(self) -> dict[str, float | int]:
        """As it stands in the JSON form."""
        return {"median": self.median, "min": self.min, "max": self.max, "pairs": self.pairs}


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Ratio of the peer's cost to tamis' cost over ``(peer, tamis)`` pairs.

    Raises:
        ValueError: There is no pair, or a cost is not positive.
    """
    if not pairs:
        raise ValueError("pairs: must hold at least one pair, got none.")
    for peer, tamis in pairs:
        if not (peer > 0 and tamis > 0):
            raise ValueError(f"pairs: costs must be positive, got {(peer, tamis)}.")
    ratios = [peer / tamis for peer, tamis in pairs]
    return Ratio(median=median(ratios), min=min(ratios), max=max(ratios), pairs=len(ratios))


def interleave(
    contenders: Mapping[str, Callable[[], float]], *, rounds: int
) -> dict[str, list[float]]:
    """Measure every contender once in each round, in turn.

    Args:
        contenders: What measures one cost, by name.
        rounds: Measurements of each.

    Returns:
        Costs by name; those at one index belong to one round.
    """
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            costs[name].append(measure())
    return costs


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, load at the start, versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": list(os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "pyarrow": metadata.version("pyarrow"),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """Commit of the checkout, ``+changes`` where files differ from it; empty outside git."""
    head = _git("rev-parse", "HEAD")
    return head + ("+changes" if head and _git("status", "--porcelain") else "")


def write_json(
    path: Path,
    benchmark: str,
    *,
    quick: bool,
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Ratio],
) -> None:
    """Write the form that is kept stable for whoever reads benchmarks."""
    document = {
        "benchmark": benchmark,
        "machine": machine(),
        "commit": commit(),
        "quick": quick,
        "rows": list(rows),
        "ratios": {name: ratio.to_json() for name, ratio in ratios.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--quick", action="store_true", help="small sizes, minutes not hours")
    result.add_argument("--json", type=Path, help="write the measurements here")
    result.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="compute threads of every contender; all cores unless said otherwise",
    )
    return result


def console() -> Console:
    """Where tables go; wide enough not to cut figures when the output is a file."""
    result = Console()
    return result if result.is_terminal else Console(width=140)


def table_of(
    title: str, columns: Mapping[str, Callable[[Any], str]], rows: Sequence[Mapping[str, Any]]
) -> Table:
    """A table with one formatter per column; a row that failed shows its ``error`` instead."""
    table = Table(title=title)
    with_errors = any("error" in row for row in rows)
    for name in columns:
        # In words, so that a narrow terminal breaks a heading instead of cutting it.
        justify = "right" if name != next(iter(columns)) else "left"
        table.add_column(name.replace("_", " "), justify=justify)
    if with_errors:
        table.add_column("error")
    for row in rows:
        cells = [form(row[name]) if name in row else "" for name, form in columns.items()]
        table.add_row(*cells, *([str(row.get("error", ""))] if with_errors else []))
    return table


def ratio_table(ratios: Mapping[str, Ratio], bars: Mapping[str, float]) -> Table:
    """Ratios beside the least that is claimed for them."""
    table = Table(title="ratios (times better than the peer; median, worst and best pair)")
    for name in ("ratio", "median", "min", "max", "pairs", "claimed", "holds"):
        table.add_column(name, justify="left" if name == "ratio" else "right")
    for name, ratio in ratios.items():
        bar = bars.get(name)
        table.add_row(
            name,
            f"{ratio.median:.2f}",
            f"{ratio.min:.2f}",
            f"{ratio.max:.2f}",
            str(ratio.pairs),
            "" if bar is None else f"{bar:g}",
            "" if bar is None else ("yes" if ratio.median >= bar else "NO"),
        )
    return table


def print_tables(
    title: str,
    columns: Mapping[str, Callable[[Any], str]],
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Ratio],
    bars: Mapping[str, float],
) -> None:
    """Print the table, and the ratios beside their bars."""
    to = console()
    to.print(table_of(title, columns, rows))
    to.print(ratio_table(ratios, bars))


def report(
    options: argparse.Namespace,
    benchmark: str,
    title: str,
    columns: Mapping[str, Callable[[Any], str]],
    *,
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Ratio],
    bars: Mapping[str, float],
) -> None:
    """Print the table and the ratios beside their bars; write the JSON form where it is asked."""
    print_tables(title, columns, rows, ratios, bars)
    if options.json:
        write_json(options.json, benchmark, quick=options.quick, rows=rows, ratios=ratios)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git here: a source archive
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
