"""The load on a server whose times are known, and what figures come to."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import load
import pytest
import serving

Answer = Callable[[int], Awaitable[int]]


class Known:
    """A server whose answer to its n-th request a test decides."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self._count = answer, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                self._count += 1
                status = await self._answer(self._count)
                writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        except asyncio.IncompleteReadError:
            writer.close()


def _measured(answer: Answer, loop: Callable[[load.Client], Awaitable[load.Observed]]):
    async def run() -> load.Observed:
        server = await asyncio.start_server(Known(answer).serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        client = load.Client(f"http://{host}:{port}", "/", [{"k": 1}])
        try:
            return await loop(client)
        finally:
            await client.close()
            server.close()

    return asyncio.run(run())


def test_stall_is_charged_for_every_request_that_was_due_meanwhile() -> None:
    stalled_until = 0.0

    async def answer(count: int) -> int:
        nonlocal stalled_until
        if count == 1:
            stalled_until = time.perf_counter() + 1.0
        await asyncio.sleep(max(0.0, stalled_until - time.perf_counter()))
        return 200

    found = _measured(answer, lambda c: load.open_loop(c, rate=100, seconds=1.0, seed=3))

    # All come due while the server stalls, evenly over the second: they wait for its second half on
    # average, and however late the answers are, half a second less than the whole run took.
    # A client that waits for each answer before it sends the next would have sent one.
    assert 60 < found.sent == len(found.latencies_ms)
    mean_ms = sum(found.latencies_ms) / len(found.latencies_ms)
    assert 350 < mean_ms < 1000 * found.seconds - 350
    assert max(found.latencies_ms) > 900


def test_same_seed_sends_as_many_requests_at_the_asked_rate() -> None:
    async def answer(count: int) -> int:
        return 200

    sent = [
        _measured(answer, lambda c: load.open_loop(c, rate=400, seconds=0.5, seed=5)).sent
        for _ in range(2)
    ]

    assert sent[0] == sent[1]
    # A Poisson count of 200 lies within five standard deviations, 14 each.
    assert abs(sent[0] - 200) < 71


def test_refusals_and_failures_are_no_answers() -> None:
    async def answer(count: int) -> int:
        return {0: 200, 1: 503, 2: 500}[count % 3]

    found = _measured(answer, lambda c: load.closed_loop(c, connections=1, seconds=0.3))

    assert found.sent == len(found.latencies_ms) + found.turned_away + found.failed
    assert abs(found.turned_away - found.failed) <= 1
    assert found.to_row()["answered_per_second"] == len(found.latencies_ms) / found.seconds


def _row(kind: str, rate: float, answered_per_second: float, p99_ms: float, sent: int = 1000):
    answered = round(min(1.0, answered_per_second / rate) * sent)
    row = {
        "kind": kind, "rate": rate, "answered_per_second": answered_per_second, "p99_ms": p99_ms,
        "sent": sent, "answered": answered,
    }  # fmt: skip
    return row | ({"p99_of_sent_ms": p99_ms} if answered >= 0.99 * sent else {})


def test_unanswered_requests_are_the_latest_of_all() -> None:
    slow = [float(ms) for ms in range(1, 991)]

    row = load.Observed(seconds=1, sent=1000, latencies_ms=slow, turned_away=10).to_row()
    assert row["p99_of_sent_ms"] == 990
    assert row["p99_ms"] < 981

    row = load.Observed(seconds=1, sent=1001, latencies_ms=slow, turned_away=11).to_row()
    assert "p99_of_sent_ms" not in row


def test_capacity_is_the_highest_rate_that_keeps_latency_and_answers_all() -> None:
    rows = [
        _row("closed, 1", 40, 40, 9),
        _row("closed, 4", 100, 100, 50),
        _row("open, 0.25", 25, 25, 20),
        _row("open, 0.5", 50, 50, 60),
        _row("open, 0.7", 70, 60, 80),  # keeps the latency, and turns some away
        _row("open, 1", 100, 100, 101),  # answers all, and too late
        _row("peak", 100, 80, 50),
        _row("overload", 300, 60, 30),
        _row("rest", 25, 25, 20),
    ]

    found = serving.summary_of(rows, 100.0)

    assert found == {
        "peak": 100, "capacity": 50, "p99_ms": 20, "goodput": 0.75, "slower": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("borne", [3, 20, 63, 200])
def test_capacity_is_looked_for_between_the_shares(
    monkeypatch: pytest.MonkeyPatch, borne: int
) -> None:
    async def closed(client: load.Client, *, connections: int, seconds: float) -> load.Observed:
        del client, seconds
        return load.Observed(seconds=1.0, sent=25 * connections, latencies_ms=[50.0] * 100)

    async def opened(
        client: load.Client, *, rate: float, seconds: float, seed: int
    ) -> load.Observed:
        del client, seconds, seed
        sent = round(rate)
        return load.Observed(
            seconds=1.0, sent=sent, latencies_ms=[50.0 if rate <= borne else 200.0] * sent
        )

    monkeypatch.setattr(serving, "closed_loop", closed)
    monkeypatch.setattr(serving, "open_loop", opened)
    server = SimpleNamespace(name="tamis", address="http://127.0.0.1:1")
    plan = serving.Plan(seconds=1.0, rounds=1, p99_ms=100.0, minutes=0.0)

    rows = asyncio.run(serving.measure(server, [{}], plan, seed=0))

    # The peak is 100, and the widest gap between shares 25, which is halved thrice.
    found = serving.summary_of(rows, 100.0)["capacity"]
    assert min(borne, 100) - 25 / 2**3 - 1 <= found <= borne


def test_peak_overload_and_rest_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    async def closed(client: load.Client, *, connections: int, seconds: float) -> load.Observed:
        del client
        asked.append(connections)
        # Four connections are fastest; the latency of a measurement is its number.
        count = {1: 10, 4: 40, 8: 30, 16: 20}[connections]
        return load.Observed(seconds=seconds, sent=count, latencies_ms=[float(len(asked))] * count)

    async def opened(
        client: load.Client, *, rate: float, seconds: float, seed: int
    ) -> load.Observed:
        del client, seed
        asked.append(rate)
        return load.Observed(seconds=seconds, sent=1, latencies_ms=[float(len(asked))])

    monkeypatch.setattr(serving, "closed_loop", closed)
    monkeypatch.setattr(serving, "open_loop", opened)
    server = SimpleNamespace(name="tamis", address="http://127.0.0.1:1")
    plan = serving.Plan(seconds=1.0, rounds=1, p99_ms=100.0, minutes=0.0)

    rows = {row["kind"]: row for row in asyncio.run(serving.measure(server, [{}], plan, seed=0))}

    assert asked[-9:] == [4, 120.0, 10.0] * 3
    last = len(asked)
    # Percentiles and rates are of the three turns together.
    assert rows["overload"]["p50_ms"] == last - 4
    assert (rows["rest"]["answered"], rows["rest"]["seconds"]) == (3, 1.5)
    assert rows["peak"]["answered_per_second"] == 80


def test_ratio_is_of_capacities_in_the_same_round() -> None:
    summaries = [
        {"round": at, "contender": name, "capacity": capacity}
        for at, pair in enumerate([(80.0, 20.0), (90.0, 45.0), (0.0, 10.0), (30.0, 0.0)])
        for name, capacity in zip(("tamis", "eager"), pair, strict=True)
    ]

    (ratio,) = serving.ratios_of(summaries).values()

    # None of ours is a ratio of 0; none of the peer's alone is none at all.
    assert (ratio.min, ratio.median, ratio.max, ratio.pairs) == (0.0, 2.0, 4.0, 3)


@pytest.mark.slow(seconds=80)
@pytest.mark.timeout(600)
def test_all_contenders_show_the_same_ads_and_the_file_says_what_was_run(tmp_path) -> None:
    out = tmp_path / "serving.json"
    options = ["--ads", "600", "--retrieved", "60", "--final", "30", "--seconds", "0.5", "--rounds",
               "1", "--minutes", "0.05", "--max-wait-ms", "1000", "--json", str(out)]  # fmt: skip

    assert serving.main(options) == 0

    found = json.loads(out.read_text())
    summaries = [row for row in found["rows"] if "same_ads" in row]
    assert [row["contender"] for row in summaries] == list(serving.contenders(tmp_path, 1.0))
    # Sums in another order may swap two ads whose values are as good as equal.
    assert all(row["same_ads"] > 0.9 for row in summaries if "float32" in row["contender"])
    assert all(row["failed"] == 0 for row in found["rows"] if "kind" in row)
    command = f"python benchmarks/serving.py {' '.join(options[:-2])}"
    assert all(row["command"] == command for row in found["rows"])
    (memory,) = (row for row in found["rows"] if row.get("kind") == "memory")
    assert memory["rss_last_bytes"] > 0
