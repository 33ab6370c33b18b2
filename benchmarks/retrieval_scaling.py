"""How the latency of a learnt index grows with the corpus, and what it takes to add items to it.

For each size V users are made up as for ``retrieval_latency``, and an HSNN with two index levels of
V^(1/3) nodes each is trained and published. Every request keeps the same numbers of nodes, so that
the nodes and items that are scored grow with V^(1/3). ``kept`` is the share of what scoring every
node and item finds. Then 10,000 items are added to the published index by their content, without
training, and removed again, which must give the same index.

``4.0/growth`` compares what a corpus ten times as large does to the median latency, by the line
through its logarithm over that of V, with ten to the power of 0.6; ``2 s/added`` compares the
seconds that adding takes to the largest index with 2.
"""

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from retrieval_latency import FOUND, LEVELS, make_task, make_up, train_model

from tamis import api
from tamis.retrieval.search import BeamSearcher, Retriever
from tamis.retrieval.snapshot import IndexSnapshot

ITEMS = {False: (100_000, 316_000, 1_000_000), True: (1000, 4000)}
USERS = {False: 60_000, True: 1000}
REQUESTS, COMPARED = 200, 20
BEAMS = (12, 36)
ADDED = {False: 10_000, True: 100}
SLOPE, SECONDS = 0.6, 2.0
BARS = {"4.0/growth": 1.0, "2 s/added": 1.0}
COLUMNS = {
    "items": lambda value: f"{value:,}",
    "nodes": str,
    "scored": str,
    "kept": lambda value: f"{value:.3f}",
    "p50_ms": lambda value: f"{value:.2f}",
    "p95_ms": lambda value: f"{value:.2f}",
    "flops": lambda value: f"{value / 1e6:,.2f} M",
    "publish_seconds": lambda value: f"{value:.1f}",
    "add_seconds": lambda value: f"{value:.2f}",
}


def measure(items: int, work: Path, *, is_quick: bool) -> dict[str, Any]:
    """The row of one size."""
    published = work / "set"
    published.mkdir()
    make_up(published, items, USERS[is_quick])
    task = make_task(published, work, requests=REQUESTS)
    side = round(items ** (1 / 3))
    index = {
        "codebooks": [side, side],
        "levels": LEVELS,
        "alpha_steps": 500,
        "start_steps": 2 if is_quick else 250,
        "cluster_rows": 8192,
    }
    model = train_model(task.dataset, work / "hsnn", {"name": "hsnn", **index}, epochs=1)
    started = time.perf_counter()
    snapshot = IndexSnapshot.publish(model, task.corpus())
    publish_seconds = time.perf_counter() - started

    ids, features = next(task.corpus())
    count = min(ADDED[is_quick], len(ids))
    new, rows = torch.arange(items, items + count), features.take(torch.arange(count))
    started = time.perf_counter()
    grown = snapshot.add(model, new, rows)
    add_seconds = time.perf_counter() - started
    if grown.remove(new).version != snapshot.version:
        raise AssertionError("adding and removing items must give the same index")

    retriever = Retriever(model, snapshot)
    num_nodes = snapshot.tree.num_nodes
    own = BeamSearcher(retriever=retriever, beams=BEAMS)
    everything = BeamSearcher(retriever=retriever, beams=num_nodes)
    own.search(task.requests[0], FOUND)  # first touches of memory, outside the clock
    milliseconds, kept, traces = [], [], []
    for place, request in enumerate(task.requests):
        started = time.perf_counter()
        found = own.search(request, FOUND)
        milliseconds.append(1e3 * (time.perf_counter() - started))
        traces.append(found.trace)
        if place < COMPARED:
            wanted = everything.search(request, FOUND).ids
            kept.append(float(torch.isin(wanted, found.ids).float().mean()))
    p50, p95 = np.percentile(milliseconds, [50, 95]).tolist()
    scored = [[level.pairs for level in trace.levels] for trace in traces]
    return {
        "items": items,
        "codebooks": index["codebooks"],
        "nodes": "-".join(f"{nodes:,}" for nodes in num_nodes),
        "beams": list(BEAMS),
        "scored": "-".join(f"{pairs:,.0f}" for pairs in np.mean(scored, axis=0)),
        "kept": float(np.mean(kept)),
        "p50_ms": p50,
        "p95_ms": p95,
        "flops": float(np.mean([trace.flops for trace in traces])),
        "publish_seconds": publish_seconds,
        "added": count,
        "add_seconds": add_seconds,
        "threads": 1,
    }


def slope_of(rows: Sequence[dict[str, Any]]) -> float:
    """Slope of the median latency over the number of items, both logarithmic."""
    sizes, times = ([math.log(row[name]) for row in rows] for name in ("items", "p50_ms"))
    return float(np.polyfit(sizes, times, 1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    api.prepare_process(1)
    rows = []
    for items in ITEMS[options.quick]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(items, Path(folder), is_quick=options.quick))
    slope = slope_of(rows)
    ratios = {
        name: harness.Ratio(median=value, min=value, max=value, pairs=1)
        for name, value in (
            ("4.0/growth", 10 ** (SLOPE - slope)),
            ("2 s/added", SECONDS / rows[-1]["add_seconds"]),
        )
    }
    console = harness.console()
    title = f"beams of {'-'.join(map(str, BEAMS))}, one thread: slope of latency {slope:.2f}"
    console.print(harness.table_of(title, COLUMNS, rows))
    console.print(harness.ratio_table(ratios, BARS))
    if options.json:
        harness.write_json(
            options.json, "retrieval_scaling", quick=options.quick, rows=rows, ratios=ratios
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
