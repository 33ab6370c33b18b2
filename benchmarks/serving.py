"""A served funnel under load: throughput, latency, overload and memory, beside two peers.

All contenders serve one funnel (see ``serving_world.py``), each in a process of its own on
loopback, and one asyncio client asks them (see ``load.py``); client and server share the cores:

- ``tamis``: ``tamis serve``, matrix products in bfloat16;
- ``tamis, float32``: the same in float32;
- ``tamis, one at a time``: without micro-batching;
- ``eager``: eager PyTorch for each request in FastAPI (see ``eager_server.py``);
- ``eager, cached``: the same with the early stage's ad tower run before.

``tamis`` writes each answered request to its store as well; the peers write nothing. In a round
every contender is measured once: first ``closed`` loops of several connections, the fastest of
which is its ``peak``; then ``open`` loops at shares of that peak; then, three times in turn and
half as long each, ``peak`` as that loop again, ``overload`` at three times the peak, and ``rest``
at the first share of it: a shared machine changes its speed within seconds, and these are compared.
``capacity`` is the highest rate at which 99 % of all that is sent is answered within ``--p99-ms``,
and 0 if there is none; the shares on both sides of it are halved a few times, so that
it is known to a thirtieth of the peak. Ratios are of capacities in one round. ``goodput`` is what
is answered a second under overload over what is at the peak, and ``slower`` the p99 of what is
accepted under overload over that at rest, of the three turns together. ``--minutes`` asks ``tamis``
at 70 % of its capacity for that long and fits a line through its resident memory.

Before anything is timed, the contenders answer the same requests, and ``same_ads`` says how many
got the very ads that ``eager`` shows.
"""

import asyncio
import gc
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil
import serving_world
from load import Client, Observed, closed_loop, open_loop, pooled

OPEN_SHARES = (0.25, 0.5, 0.7, 0.85, 1.0)
CONNECTIONS = (1, 4, 8, 16)
HALVINGS = 3
OVERLOAD = 3.0
TURNS = 3
CHECKED = 50
SETTLE_S = 30.0
"""How long answers wait for their events in memory: less than the first half of a watch of it."""
MEMORY_SHARE = 0.7
PEER = "eager"
BARS = {"tamis/eager, capacity": 4.0}
COLUMNS = {
    "contender": str,
    "kind": str,
    "rate": lambda value: f"{value:,.0f}",
    "answered_per_second": lambda value: f"{value:,.1f}",
    "p50_ms": lambda value: f"{value:.1f}",
    "p99_ms": lambda value: f"{value:.1f}",
    "turned_away": lambda value: f"{value:,}",
    "failed": lambda value: f"{value:,}",
    "client_late_p99_ms": lambda value: f"{value:.1f}",
}
SUMMARY = {
    "contender": str,
    "peak": lambda value: f"{value:,.1f}",
    "capacity": lambda value: f"{value:,.1f}",
    "p99_ms": lambda value: f"{value:.1f}",
    "goodput": lambda value: f"{value:.2f}",
    "slower": lambda value: f"{value:.2f}",
    "same_ads": lambda value: f"{value:.2f}",
    "rss_mib_per_minute": lambda value: f"{value:.2f}",
}


class Server:
    """A contender in a process of its own."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        """Start it, and wait until it says where it listens."""
        self.name = name
        self._log = (folder / f"{name}.log").open("w+")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "COLUMNS": "300",
        }
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder, stdout=self._log, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        while not (found := re.search(r"serving .*at (http://\S+);", self.text)):
            if self.process.poll() is not None:
                raise RuntimeError(f"{name}: must start, and has not. It said: {self.text}")
            time.sleep(0.05)
        self.address = found.group(1)

    @property
    def text(self) -> str:
        """What it has said."""
        return Path(self._log.name).read_text()

    def rss_bytes(self) -> int:
        """Its resident memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def end(self) -> None:
        """Let it end."""
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long, how often and how hard."""

    seconds: float
    """Length of each measurement."""
    rounds: int
    """Rounds, in each of which every contender is measured."""
    p99_ms: float
    """Latency that capacity must keep."""
    minutes: float
    """How long memory is watched; 0 does not."""


def contenders(folder: Path, max_wait_ms: float) -> dict[str, list[str]]:
    """Commands by name; each may use every core."""
    cores = str(os.cpu_count() or 1)

    def tamis(bundle: str, store: str, *more: str) -> list[str]:
        return [
            "-m", "tamis", "serve", str(folder / bundle), "--port", "0", "--threads", cores,
            "--store", f"sqlite:///{folder / store}.db", "--max-wait-ms", f"{max_wait_ms:g}",
            "--settle-s", f"{SETTLE_S:g}", *more,
        ]  # fmt: skip

    eager = [str(Path(__file__).with_name("eager_server.py")), str(folder / "float32")]
    return {
        "tamis": tamis("bfloat16", "micro"),
        "tamis, float32": tamis("float32", "float32"),
        "tamis, one at a time": tamis("bfloat16", "single", "--max-batch", "1"),
        PEER: eager,
        "eager, cached": [*eager, "--cache-early"],
    }


async def same_ads(server: Server, wanted: list[list[str]], bodies: list[dict[str, Any]]) -> float:
    """Share of the requests that get the wanted ads; the first answers warm the server up too."""
    client = Client(server.address, "/v1/rank", bodies)
    found = []
    for number in range(len(bodies)):
        status, body = await client.post(number)
        if status != 200:
            raise RuntimeError(f"{server.name}: must answer 200, got {status}: {body[:500]!r}.")
        found.append([ad["ad"] for ad in json.loads(body)["ads"]])
    await client.close()
    if not wanted:
        wanted.extend(found)
    return float(np.mean([ours == theirs for ours, theirs in zip(found, wanted, strict=True)]))


async def measure(
    server: Server, bodies: list[dict[str, Any]], plan: Plan, *, seed: int
) -> list[dict[str, Any]]:
    """Rows of one contender in one round: closed loops, open loops, then the three in turn."""
    client = Client(server.address, "/v1/rank", bodies)
    rows: list[dict[str, Any]] = []

    def add(kind: str, rate: float, observed: Observed) -> dict[str, Any]:
        row = {"contender": server.name, "round": seed, "kind": kind, "rate": rate}
        rows.append(row | observed.to_row())
        return rows[-1]

    peak, fastest = 0.0, 0
    for connections in CONNECTIONS:
        observed = await closed_loop(client, connections=connections, seconds=plan.seconds)
        row = add(f"closed, {connections}", 0.0, observed)
        row["rate"] = row["answered_per_second"]
        peak, fastest = max((peak, fastest), (row["rate"], connections))

    async def bears(share: float) -> bool:
        observed = await open_loop(client, rate=share * peak, seconds=plan.seconds, seed=seed)
        return is_kept(add(f"open, {share:g}", share * peak, observed), plan.p99_ms)

    borne = [share for share in OPEN_SHARES if await bears(share)]
    low = max(borne, default=0.0)
    high = min((share for share in OPEN_SHARES if share > low), default=low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if low == high:
            break
        low, high = (middle, high) if await bears(middle) else (low, middle)

    rates = {"peak": peak, "overload": OVERLOAD * peak, "rest": OPEN_SHARES[0] * peak}
    turns: dict[str, list[Observed]] = {kind: [] for kind in rates}
    for turn in range(TURNS):
        for kind, rate in rates.items():
            if kind == "peak":
                part = closed_loop(client, connections=fastest, seconds=plan.seconds / 2)
            else:
                part = open_loop(
                    client, rate=rate, seconds=plan.seconds / 2, seed=TURNS * seed + turn
                )
            turns[kind].append(await part)
    for kind, parts in turns.items():
        add(kind, rates[kind], pooled(parts))
    await client.close()
    return rows


def is_kept(row: Mapping[str, Any], p99_ms: float) -> bool:
    """Whether nearly all requests of an open loop were answered in time."""
    in_time: bool = row.get("p99_of_sent_ms", np.inf) <= p99_ms
    return in_time


def summary_of(rows: Sequence[Mapping[str, Any]], p99_ms: float) -> dict[str, float]:
    """What one contender's rows of one round come to."""
    peak = max(row["answered_per_second"] for row in rows if row["kind"].startswith("closed"))
    opened = [row for row in rows if row["kind"].startswith("open")]
    kept = [row["answered_per_second"] for row in opened if is_kept(row, p99_ms)]
    again_peak, overload, rest = (
        next(row for row in rows if row["kind"] == kind) for kind in ("peak", "overload", "rest")
    )
    return {
        "peak": peak,
        "capacity": max(kept, default=0.0),
        "p99_ms": rest["p99_ms"],
        "goodput": overload["answered_per_second"] / again_peak["answered_per_second"],
        "slower": overload.get("p99_ms", np.inf) / rest["p99_ms"],
    }


async def watch_memory(
    server: Server, bodies: list[dict[str, Any]], rate: float, minutes: float
) -> dict[str, Any]:
    """Resident memory while requests arrive, and the slope of a line through its second half.

    Buffers, caches of users and the allocator's arenas fill in the first half.
    """
    client = Client(server.address, "/v1/rank", bodies)
    samples: list[tuple[float, int]] = []

    async def sample() -> None:
        started = time.perf_counter()
        while True:
            samples.append(((time.perf_counter() - started) / 60, server.rss_bytes()))
            await asyncio.sleep(1.0)

    watcher = asyncio.create_task(sample())
    observed = await open_loop(client, rate=rate, seconds=60 * minutes, seed=0)
    watcher.cancel()
    await client.close()
    at, rss = np.array(samples).T
    late = at >= minutes / 2
    slope = float(np.polyfit(at[late], rss[late], 1)[0]) if late.sum() > 2 else float("nan")
    return {
        "contender": server.name,
        "kind": "memory",
        "rate": rate,
        **observed.to_row(),
        "rss_first_bytes": int(rss[0]),
        "rss_last_bytes": int(rss[-1]),
        "rss_bytes_per_minute": slope,
    }


async def run(
    servers: Sequence[Server], sizes: serving_world.Sizes, plan: Plan
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows, and a summary of every contender in every round."""
    checked = serving_world.requests(sizes, CHECKED, seed=0)
    bodies = serving_world.requests(sizes, 5000, seed=1)
    for number, body in enumerate(bodies):
        # The same id again would be the same request to the store, which keeps one of them.
        body.pop("request_id")
        body["user"]["features"]["user_requests"] = float(number % 100)
    wanted: list[list[str]] = []
    same: dict[str, dict[str, float]] = {}
    has_peer = any(server.name == PEER for server in servers)
    for server in sorted(servers, key=lambda server: server.name != PEER):
        share = await same_ads(server, wanted, checked)
        # Without the peer there is nothing to compare with.
        same[server.name] = {"same_ads": share} if has_peer else {}
    rows: list[dict[str, Any]] = []
    summaries: list[dict[str, Any]] = []
    for seed in range(plan.rounds):
        for server in servers:
            own = bodies_for(server, bodies)
            found = await measure(server, own, plan, seed=seed)
            rows += found
            summaries.append(
                {
                    "contender": server.name,
                    "round": seed,
                    **summary_of(found, plan.p99_ms),
                    **same[server.name],
                }
            )
    if plan.minutes:
        first = summaries[0]
        row = await watch_memory(
            servers[0], bodies, MEMORY_SHARE * (first["capacity"] or first["peak"]), plan.minutes
        )
        rows.append(row)
        first["rss_mib_per_minute"] = row["rss_bytes_per_minute"] / 2**20
    return rows, summaries


def bodies_for(server: Server, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peers' ids of requests are their caller's to make."""
    if server.name.startswith(PEER):
        return [{"request_id": str(number), **body} for number, body in enumerate(bodies)]
    return bodies


def ratios_of(summaries: Sequence[Mapping[str, Any]]) -> dict[str, harness.Ratio]:
    """Capacities of ``tamis`` over those of each other contender, round by round.

    A round in which ``tamis`` has none counts as 0; one in which only the other has none, whose
    ratio has no upper end, is left out.
    """
    by_round: dict[int, dict[str, float]] = {}
    for row in summaries:
        by_round.setdefault(row["round"], {})[row["contender"]] = row["capacity"]
    ratios = {}
    for name in next(iter(by_round.values())):
        # A ratio is of costs, and capacity is the inverse of one.
        pairs = [
            (1 / found[name], 1 / found["tamis"] if found["tamis"] else np.inf)
            for found in by_round.values()
            if found[name]
        ]
        if name != "tamis" and pairs:
            ratios[f"tamis/{name}, capacity"] = harness.ratio_of(pairs)
    return ratios


def command_of(arguments: Sequence[str]) -> str:
    """The command line of a run, but for the file that holds it."""
    kept = list(arguments)
    if "--json" in kept:
        at = kept.index("--json")
        del kept[at : at + 2]
    return shlex.join(["python", "benchmarks/serving.py", *kept])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--ads", type=int, help="ads in the funnel")
    parser.add_argument("--retrieved", type=int, default=1000, help="ads that retrieval keeps")
    parser.add_argument("--final", type=int, default=100, help="ads that reach the final stage")
    parser.add_argument("--seconds", type=float, help="length of each measurement")
    parser.add_argument("--rounds", type=int, help="times that every contender is measured")
    parser.add_argument("--p99-ms", type=float, default=100.0, help="latency for capacity")
    parser.add_argument("--max-wait-ms", type=float, default=80.0, help="as of tamis serve")
    parser.add_argument("--minutes", type=float, default=0.0, help="watch memory for so long")
    parser.add_argument("--only", nargs="+", help="names of contenders; tamis is always there")
    options = parser.parse_args(arguments)
    sizes = serving_world.Sizes(
        ads=options.ads or (20_000 if options.quick else 200_000),
        retrieved=options.retrieved,
        early=options.final,
    )
    plan = Plan(
        seconds=options.seconds or (3.0 if options.quick else 10.0),
        rounds=options.rounds or (1 if options.quick else 3),
        p99_ms=options.p99_ms,
        minutes=options.minutes,
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for precision in ("float32", "bfloat16"):
            serving_world.publish(folder / precision, sizes, precision=precision)
        servers: list[Server] = []
        try:
            for name, command in contenders(folder, options.max_wait_ms).items():
                if name == "tamis" or options.only is None or name in options.only:
                    servers.append(Server(name, command, folder))
            # The client, too, would stop for a look through all that was loaded by now.
            gc.collect()
            gc.freeze()
            rows, summaries = asyncio.run(run(servers, sizes, plan))
        finally:
            for server in servers:
                server.end()
    ratios = ratios_of(summaries)
    command = command_of(sys.argv[1:] if arguments is None else arguments)
    rows = [{**row, "command": command, "ads": sizes.ads} for row in [*rows, *summaries]]
    console = harness.console()
    title = f"requests to a funnel of {sizes.ads:,} ads, {sizes.retrieved:,} retrieved"
    console.print(harness.table_of(title, COLUMNS, [row for row in rows if "kind" in row]))
    console.print(harness.table_of("by contender and round", SUMMARY, summaries))
    console.print(harness.ratio_table(ratios, BARS))
    if options.json:
        harness.write_json(options.json, "serving", quick=options.quick, rows=rows, ratios=ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
