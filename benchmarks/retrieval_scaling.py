"""How the latency of a learnt index grows with the corpus, and what it takes to add items to it.

For each size V users are made up as for ``retrieval_latency``, and an HSNN is trained for one pass
and published. Its two index levels have codebooks of V^(1/3) centres, and so V^(1/3) and at most
V^(2/3) nodes. Requests are answered twice: keeping the same numbers of nodes at every size, and
keeping the least multiple of these, by powers of 1.5, that finds four fifths of what scoring every
node and item finds. Were all nodes filled alike, nodes and items that are scored would grow with
V^(1/3) in the former. ``kept`` is the share of what scoring everything finds, for the first 20
users, and ``exhaustive_ms`` the median time of that; rows to learn from do not grow with V, so that
a larger corpus is also known less well. Then 10,000 items are added to the published index by their
content, without training, and removed again, which must give the same index.

``4.0/growth`` compares what a corpus ten times as large does to the median latency of the same
beams, by the line through its logarithm over that of V, with ten to the power of 0.6, and
``4.0/growth, equal recall`` that of beams that find as much; ``2 s/added`` compares the seconds
that adding takes to the largest index with 2.
"""

import itertools
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
KEPT, WIDER = 0.8, 1.5
WIDTHS = ("same beams", "equal recall")
BARS = {"4.0/growth": 1.0, "4.0/growth, equal recall": 1.0, "2 s/added": 1.0}
COLUMNS = {
    "items": lambda value: f"{value:,}",
    "nodes": str,
    "beams": lambda value: "-".join(map(str, value)),
    "scored": str,
    "kept": lambda value: f"{value:.3f}",
    "p50_ms": lambda value: f"{value:.2f}",
    "p95_ms": lambda value: f"{value:.2f}",
    "flops": lambda value: f"{value / 1e6:,.2f} M",
    "exhaustive_ms": lambda value: f"{value:,.0f}",
    "publish_seconds": lambda value: f"{value:.1f}",
    "add_seconds": lambda value: f"{value:.2f}",
}


def measure(items: int, work: Path, *, is_quick: bool) -> list[dict[str, Any]]:
    """The rows of one size: the same beams at every size, and those that find enough."""
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
    everything = BeamSearcher(retriever=retriever, beams=num_nodes)
    best, exhaustive_ms = _timed(everything, task.requests[:COMPARED])
    of_index = {
        "items": items,
        "codebooks": index["codebooks"],
        "nodes": "-".join(f"{nodes:,}" for nodes in num_nodes),
        "exhaustive_ms": float(np.median(exhaustive_ms)),
        "publish_seconds": publish_seconds,
        "added": count,
        "add_seconds": float(np.median(add_seconds)),
        "round_add_seconds": add_seconds,
        "threads": 1,
    }
    enough = _beams_that_keep(retriever, task.requests[:COMPARED], best)
    return [
        of_index
        | {"width": width, "beams": list(beams)}
        | _searched(BeamSearcher(retriever=retriever, beams=beams), task.requests, best)
        for width, beams in zip(WIDTHS, (BEAMS, enough), strict=True)
    ]


def _searched(
    searcher: BeamSearcher, requests: Sequence[Request], best: Sequence[Found]
) -> dict[str, Any]:
    """What a width finds and costs; it is compared on as many requests as ``best`` answers."""
    rounds = [_timed(searcher, requests) for _ in range(ROUNDS)]
    found = rounds[0][0]
    p50, p95 = np.percentile([ms for _, times in rounds for ms in times], [50, 95]).tolist()
    scored = [[level.pairs for level in one.trace.levels] for one in found]
    return {
        "scored": "-".join(f"{pairs:,.0f}" for pairs in np.mean(scored, axis=0)),
        "kept": _kept(found[: len(best)], best),
        "p50_ms": p50,
        "p95_ms": p95,
        "round_p50_ms": [float(np.median(times)) for _, times in rounds],
        "flops": float(np.mean([one.trace.flops for one in found])),
    }


def _beams_that_keep(
    retriever: Retriever, requests: Sequence[Request], best: Sequence[Found]
) -> tuple[int, ...]:
    """The narrowest beams, of one shape, that find the share of the best that is asked for."""
    num_nodes = retriever.snapshot.tree.num_nodes
    for power in itertools.count():
        beams = tuple(
            min(nodes, round(beam * WIDER**power))
            for beam, nodes in zip(BEAMS, num_nodes, strict=True)
        )
        found, _ = _timed(BeamSearcher(retriever=retriever, beams=beams), requests)
        if _kept(found, best) >= KEPT or beams == num_nodes:
            break
    return beams


def _kept(found: Sequence[Found], best: Sequence[Found]) -> float:
    """Share of the best lists that was found."""
    pairs = zip(best, found, strict=True)
    return float(np.mean([float(torch.isin(a.ids, b.ids).float().mean()) for a, b in pairs]))


def _timed(searcher: BeamSearcher, requests: Sequence[Request]) -> tuple[list[Found], list[float]]:
    """What is found for each request, and the milliseconds that it took."""
    searcher.search(requests[0], FOUND)  # first touches of memory, outside the clock
    found, milliseconds = [], []
    for request in requests:
        started = time.perf_counter()
        found.append(searcher.search(request, FOUND))
        milliseconds.append(1e3 * (time.perf_counter() - started))
    return found, milliseconds


def growth_of(rows: Sequence[dict[str, Any]], *, round_: int | None = None) -> float:
    """By how much ten times as many items multiply the time: the line through both logarithms."""
    milliseconds = [
        row["p50_ms"] if round_ is None else row["round_p50_ms"][round_] for row in rows
    ]
    items = [row["items"] for row in rows]
    return float(10 ** np.polyfit(np.log10(items), np.log10(milliseconds), 1)[0])


def _growth_ratio(rows: Sequence[dict[str, Any]]) -> harness.Ratio:
    """The growth that is allowed over that of each round."""
    return harness.ratio_of(
        [(10**SLOPE, growth_of(rows, round_=round_)) for round_ in range(ROUNDS)]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    api.prepare_process(1)
    rows: list[dict[str, Any]] = []
    for items in ITEMS[options.quick]:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(items, Path(folder), is_quick=options.quick)
    same, equal = ([row for row in rows if row["width"] == width] for width in WIDTHS)
    ratios = {
        "4.0/growth": _growth_ratio(same),
        "4.0/growth, equal recall": _growth_ratio(equal),
        "2 s/added": harness.ratio_of(
            [(SECONDS, seconds) for seconds in same[-1]["round_add_seconds"]]
        ),
    }
    growths = (growth_of(rows) for rows in (same, equal))
    title = "one thread: 10 times the items take {:.2f} times as long, {:.2f} at equal recall"
    harness.report(
        options,
        "retrieval_scaling",
        title.format(*growths),
        COLUMNS,
        rows=rows,
        ratios=ratios,
        bars=BARS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
