"""Load on an HTTP server from one asyncio client: at fixed arrival rates, and as fast as it goes.

At a fixed rate requests arrive whether or not earlier ones were answered, as users do, and the time
of each is counted from the moment at which it was due: a server that stalls is charged for all who
came meanwhile, and a client that is late charges itself.
"""

import asyncio
import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

_PAUSE_S = 0.01
"""How long a closed loop's connection rests after it was turned away."""
_GIVE_UP_S = 30.0
_STALE_S = 2.0
"""Servers close what is idle; a connection is not used again after so long, well before they do."""


@dataclass(kw_only=True, slots=True)
class Observed:
    """What became of the requests of one measurement."""

    seconds: float = 0.0
    """From the first arrival until the last answer, and at least for as long as was asked for."""
    sent: int = 0
    """Requests that were sent."""
    latencies_ms: list[float] = field(default_factory=list)
    """Of those that were answered 200, from the moment at which they were due."""
    turned_away: int = 0
    """Answers of 503."""
    failed: int = 0
    """Any other status, connections that broke, and what was not answered in time."""
    late_ms: list[float] = field(default_factory=list)
    """How much later than due each was sent: the client's own doing."""

    def to_row(self) -> dict[str, Any]:
        """Figures for the table; a percentile that lies beyond all answers is left out."""
        row: dict[str, Any] = {
            "seconds": self.seconds,
            "sent": self.sent,
            "answered": len(self.latencies_ms),
            "answered_per_second": len(self.latencies_ms) / self.seconds,
            "turned_away": self.turned_away,
            "failed": self.failed,
        }
        if self.latencies_ms:
            p50, p99 = np.percentile(self.latencies_ms, [50, 99]).tolist()
            row |= {"p50_ms": p50, "p99_ms": p99}
        # Whoever got no answer waited longer than anybody else.
        most = math.ceil(0.99 * self.sent)
        if 0 < most <= len(self.latencies_ms):
            row["p99_of_sent_ms"] = sorted(self.latencies_ms)[most - 1]
        if self.late_ms:
            row["client_late_p99_ms"] = float(np.percentile(self.late_ms, 99))
        return row


def pooled(parts: Sequence[Observed]) -> Observed:
    """Several measurements as one."""
    return Observed(
        seconds=sum(part.seconds for part in parts),
        sent=sum(part.sent for part in parts),
        latencies_ms=[each for part in parts for each in part.latencies_ms],
        turned_away=sum(part.turned_away for part in parts),
        failed=sum(part.failed for part in parts),
        late_ms=[each for part in parts for each in part.late_ms],
    )


class Client:
    """Keeps connections to one server, and posts JSON bodies over them."""

    def __init__(self, address: str, path: str, bodies: Sequence[dict[str, Any]]) -> None:
        """Prepare the bytes of every request, so that sending costs next to nothing."""
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._requests = [_request_bytes(parts.netloc, path, body) for body in bodies]
        self._idle: deque[tuple[_Connection, float]] = deque()
        """Those that are free and since when, the one that was used last at the end."""

    async def post(self, number: int) -> tuple[int, bytes]:
        """Status and body of the answer to a request; 0 where the connection broke."""
        request = self._requests[number % len(self._requests)]
        connection = self._take()
        try:
            if connection is None:
                connection = _Connection(*await asyncio.open_connection(self._host, self._port))
            async with asyncio.timeout(_GIVE_UP_S):
                status, body, is_open = await connection.exchange(request)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            if connection is not None:
                connection.writer.close()
            return 0, b""
        if is_open:
            self._idle.append((connection, time.perf_counter()))
        else:
            connection.writer.close()
        return status, body

    def _take(self) -> "_Connection | None":
        """A connection that is free, if there is one that the server has not given up."""
        oldest_allowed = time.perf_counter() - _STALE_S
        while self._idle and self._idle[0][1] < oldest_allowed:
            self._idle.popleft()[0].writer.close()
        return self._idle.pop()[0] if self._idle else None

    async def close(self) -> None:
        """Close all connections."""
        for connection, _ in self._idle:
            connection.writer.close()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()
        self._idle.clear()


async def open_loop(client: Client, *, rate: float, seconds: float, seed: int) -> Observed:
    """Send requests that arrive by chance, so many a second on average.

    Args:
        client: Sends them.
        rate: Arrivals a second.
        seconds: How long they arrive.
        seed: Decides when; the same for every contender.
    """
    observed = Observed()
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 10)
    arrivals = np.cumsum(gaps)
    start = time.perf_counter() + 0.05

    async def send(number: int, due: float) -> None:
        observed.late_ms.append((time.perf_counter() - due) * 1e3)
        status, _ = await client.post(number)
        _count(observed, status, due)

    tasks: deque[asyncio.Task[None]] = deque()
    for number, arrival in enumerate(arrivals[arrivals < seconds].tolist()):
        due = start + arrival
        while (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        observed.sent += 1
        tasks.append(asyncio.create_task(send(number, due)))
        while tasks and tasks[0].done():
            tasks.popleft()
    await asyncio.gather(*tasks)
    # What is answered after the last arrival was not answered in the time of the arrivals.
    observed.seconds = max(seconds, time.perf_counter() - start)
    return observed


async def closed_loop(client: Client, *, connections: int, seconds: float) -> Observed:
    """Let some connections ask one request after another, as fast as each is answered."""
    observed, start = Observed(), time.perf_counter()
    end = start + seconds

    async def ask(first: int) -> None:
        number = first
        while (due := time.perf_counter()) < end:
            observed.sent += 1
            status, _ = await client.post(number)
            _count(observed, status, due)
            number += connections
            if status != 200:
                await asyncio.sleep(_PAUSE_S)

    await asyncio.gather(*(ask(first) for first in range(connections)))
    observed.seconds = time.perf_counter() - start
    return observed


def _count(observed: Observed, status: int, due: float) -> None:
    if status == 200:
        observed.latencies_ms.append((time.perf_counter() - due) * 1e3)
    elif status == 503:
        observed.turned_away += 1
    else:
        observed.failed += 1


@dataclass(frozen=True, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def exchange(self, request: bytes) -> tuple[int, bytes, bool]:
        """Status, body, and whether the connection may be used again."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        return int(head[9:12]), body, b"connection: close" not in head


def _request_bytes(host: str, path: str, body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text
