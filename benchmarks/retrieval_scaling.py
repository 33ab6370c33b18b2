"""How the latency of a learnt index grows with the corpus, and what it takes to add items to it.

For each size V users are made up as for ``retrieval_latency``, and an HSNN is trained for one pass
and published. Its two index levels have codebooks of V^(1/3) centres, and so V^(1/3) and at most
V^(2/3) nodes. Every request keeps the same numbers of nodes; were all of them filled alike, nodes
and items that are scored would grow with V^(1/3). ``kept`` is the share of what scoring every node
and item finds, for the first 20 users, and ``exhaustive_ms`` the median time of that; rows to learn
from do not grow with V, so that a larger corpus is also known less well. Then 10,000 items are
added to the published index by their content, without training, and removed again, which must give
the same index.

``4.0/growth`` compares what a corpus ten times as large does to the median latency, by the line
through its logarithm over that of V, with ten to the power of 0.6; ``2 s/added`` compares the
seconds that adding takes to the largest index with 2.
"""

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
from tamis.retrieval.searcher import Found, Request
from tamis.retrieval.snapshot import IndexSnapshot

ITEMS = {False: (100_000, 316_000, 1_000_000), True: (1000, 4000)}
USERS = {False: 60_000, True: 1000}
REQUESTS, COMPARED, ROUNDS = 200, 20, 3
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
    "exhaustive_ms": lambda value: f"{value:,.0f}",
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

    count = ADDED[is_quick]
    _, features = next(task.corpus(batch_size=count))
    new = torch.arange(items, items + count)
    add_seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        grown = snapshot.add(model, new, features)
        add_seconds.append(time.perf_counter() - started)
    if grown.remove(new).version != snapshot.version:
        raise AssertionError("adding and removing items must give the same index")

    retriever = Retriever(model, snapshot)
    num_nodes = snapshot.tree.num_nodes
    own = BeamSearcher(retriever=retriever, beams=BEAMS)
    everything = BeamSearcher(retriever=retriever, beams=num_nodes)
    best, exhaustive_ms = _timed(everything, task.requests[:COMPARED])
    rounds = [_timed(own, task.requests) for _ in range(ROUNDS)]
    found = rounds[0][0]
    kept = [
        float(torch.isin(wanted.ids, some.ids).float().mean())
        for wanted, some in zip(best, found[:COMPARED], strict=True)
    ]
    p50, p95 = np.percentile([ms for _, times in rounds for ms in times], [50, 95]).tolist()
    scored = [[level.pairs for level in one.trace.levels] for one in found]
    return {
        "items": items,
        "codebooks": index["codebooks"],
        "nodes": "-".join(f"{nodes:,}" for nodes in num_nodes),
        "beams": list(BEAMS),
        "scored": "-".join(f"{pairs:,.0f}" for pairs in np.mean(scored, axis=0)),
        "kept": float(np.mean(kept)),
        "p50_ms": p50,
        "p95_ms": p95,
        "round_p50_ms": [float(np.median(times)) for _, times in rounds],
        "exhaustive_ms": float(np.median(exhaustive_ms)),
        "flops": float(np.mean([one.trace.flops for one in found])),
        "publish_seconds": publish_seconds,
        "added": count,
        "add_seconds": float(np.median(add_seconds)),
        "round_add_seconds": add_seconds,
        "threads": 1,
    }


def _timed(searcher: BeamSearcher, requests: Sequence[Request]) -> tuple[list[Found], list[float]]:
    """What is found for each request, and the milliseconds that it took."""
    searcher.search(requests[0], FOUND)  # first touches of memory, outside the clock
    found, milliseconds = [], []
    for request in requests:
        started = time.perf_counter()
        found.append(searcher.search(request, FOUND))
        milliseconds.append(1e3 * (time.perf_counter() - started))
    return found, milliseconds


def growth_of(items: Sequence[int], milliseconds: Sequence[float]) -> float:
    """By how much ten times as many items multiply the time: the line through both logarithms."""
    slope = np.polyfit(np.log10(items), np.log10(milliseconds), 1)[0]
    return float(10**slope)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    api.prepare_process(1)
    rows = []
    for items in ITEMS[options.quick]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(items, Path(folder), is_quick=options.quick))
    sizes = [row["items"] for row in rows]
    by_round = zip(*(row["round_p50_ms"] for row in rows), strict=True)
    ratios = {
        "4.0/growth": harness.ratio_of([(10**SLOPE, growth_of(sizes, ms)) for ms in by_round]),
        "2 s/added": harness.ratio_of(
            [(SECONDS, seconds) for seconds in rows[-1]["round_add_seconds"]]
        ),
    }
    growth = growth_of(sizes, [row["p50_ms"] for row in rows])
    beams = "-".join(map(str, BEAMS))
    title = f"beams of {beams}, one thread: 10 times the items take {growth:.2f} times as long"
    harness.report(
        options, "retrieval_scaling", title, COLUMNS, rows=rows, ratios=ratios, bars=BARS
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
