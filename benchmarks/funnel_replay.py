"""Requests per second of a replayed funnel, and whether its memory grows with the requests.

Exact retrieval keeps 1000 of all ads by a dot product of 64 dimensions, an early DLRM 100 of these,
a final DIN over histories of 20 clicks 10, and the auction fills 4 slots. Fields are those of the
simulated market. Weights are drawn, not trained: time does not depend on them. ``budget/answer`` is
10 ms, 100 requests a second, over the mean time of an answer; each round is one replay, all
requests of it one after another. ``rss_growth_bytes`` is the resident memory at the end of the last
round less that after its first tenth.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import harness
import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from tamis import api
from tamis.data.batch import Batch, Jagged
from tamis.data.dataset import EncodedRows
from tamis.data.market.schema import market_schema
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Table
from tamis.funnel.ads import AdTable
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.ranker import AdFeatures, RankerStage
from tamis.funnel.replay import replay
from tamis.funnel.request import Request
from tamis.funnel.stages import DotProduct
from tamis.models.din import DIN, DINConfig
from tamis.models.dlrm import DLRM, DLRMConfig

BUDGET_MS = 10.0
NUM_REQUESTS = {False: 10_000, True: 500}
NUM_ADS = {False: (10_000, 50_000, 200_000), True: (50_000,)}
ROUNDS = {False: 3, True: 2}
KEPT = {"retrieval": 1000, "early": 100, "final": 10}
SLOTS = 4
RETRIEVAL_DIM, HISTORY, CATEGORIES, USERS = 64, 20, 100, 100_000
BARS = {f"budget/answer, {ads:,} ads": 1.0 for ads in (10_000, 50_000, 200_000)}
COLUMNS = {
    "ads": lambda value: f"{value:,}",
    "requests": lambda value: f"{value:,}",
    "requests_per_second": lambda value: f"{value:,.0f}",
    "p50_ms": lambda value: f"{value:.2f}",
    "p99_ms": lambda value: f"{value:.2f}",
    **{f"{name}_p50_ms": lambda value: f"{value:.2f}" for name in (*KEPT, "auction")},
    "rss_growth_bytes": lambda value: f"{value / 2**20:,.1f} MiB",
}


class ClicksAndConversions:
    """``bid * p_click * p_conversion - p_hide``."""

    def score(
        self,
        predictions: Mapping[str, NDArray[np.float64]],
        bid: NDArray[np.float64],
        billing: NDArray[Any],
    ) -> NDArray[np.float64]:
        """Money of an impression; all ads are billed by conversion."""
        del billing
        events = predictions["click"] * predictions["conversion"]
        value: NDArray[np.float64] = bid * events - 0.001 * predictions["hide"]
        return value


def market_spec(num_ads: int) -> InputSpec:
    """The market's inputs with tables of a size that goes with the ads."""
    schema = market_schema()
    sizes = {"user_id": USERS, "ad_id": num_ads + 1}
    sizes |= {"campaign_id": num_ads // 4 + 1, "advertiser_id": num_ads // 20 + 1}
    categorical = [item for item in schema.fields if item.is_category]
    return InputSpec(
        numeric=tuple(item.name for item in schema.fields if item.kind == "numeric"),
        categorical=tuple(
            CategoricalInput(name=item.name, table=item.name, side=item.side)
            for item in categorical
        ),
        sequences=(
            SequenceInput(
                name="history",
                fields=("history_ads", "history_categories"),
                tables=("ad_id", "category"),
                max_length=HISTORY,
            ),
        ),
        tables=tuple(
            Table(name=item.name, num_rows=sizes.get(item.name, CATEGORIES)) for item in categorical
        ),
        tasks=schema.tasks,
    )


def make_funnel(num_ads: int) -> tuple[Funnel, InputSpec]:
    """The funnel over so many ads, and its inputs."""
    generator, spec = np.random.default_rng(0), market_spec(num_ads)
    torch.manual_seed(0)
    rows = spec.num_rows_by_table
    encoded = EncodedRows(
        row=np.arange(num_ads),
        numeric={n: generator.standard_normal(num_ads).astype(np.float32) for n in spec.numeric},
        ids={
            item.name: generator.integers(0, rows[item.table], num_ads).astype(np.int32)
            for item in spec.categorical
        },
    )
    features = AdFeatures.of_rows(encoded, market_schema(), spec)
    ads = AdTable(
        bid=generator.lognormal(size=num_ads),
        billing=np.zeros(num_ads, np.int8),
        advertiser=generator.integers(0, num_ads // 20, num_ads),
        quality=np.zeros(num_ads),
    )
    value = ClicksAndConversions()
    items, users = torch.randn(num_ads, RETRIEVAL_DIM), torch.randn(USERS, RETRIEVAL_DIM)
    early = DLRM(DLRMConfig(top_units=(128, 64)), spec)
    final = DIN(DINConfig(), spec)
    stages = {
        "retrieval": DotProduct(items, lambda request: users[request.user]),
        "early": RankerStage(early, spec.tasks, features, ads, value),
        "final": RankerStage(final, spec.tasks, features, ads, value),
    }
    steps = [Step(name=name, stage=stage, keep=KEPT[name]) for name, stage in stages.items()]
    return Funnel(steps, ads, value, reserve=0.01), spec


def draw_requests(spec: InputSpec, count: int, *, seed: int) -> Iterator[Request]:
    """Requests of random users with full histories, one at a time."""
    generator, rows = np.random.default_rng(seed), spec.num_rows_by_table
    sizes = np.array([rows[item.table] for item in spec.categorical])
    events = np.array([rows[name] for name in spec.sequences[0].tables])
    for number in range(count):
        ids = generator.integers(0, sizes)[None].astype(np.int32)
        history = generator.integers(0, events, (HISTORY, len(events))).astype(np.int32)
        numeric = generator.standard_normal((1, len(spec.numeric))).astype(np.float32)
        features = Batch(
            numeric=torch.from_numpy(numeric),
            ids=torch.from_numpy(ids),
            labels=torch.zeros(1, len(spec.tasks)),
            weights=torch.ones(1),
            sequences={
                "history": Jagged(
                    values=torch.from_numpy(history), offsets=torch.tensor([0, HISTORY])
                )
            },
        )
        yield Request(
            request_id=number,
            user=int(ids[0, 0]),
            time_micros=number,
            slots=SLOTS,
            features=features,
        )


def measure(num_ads: int, num_requests: int, *, rounds: int, threads: int) -> dict[str, Any]:
    """Replay a few times; figures of the median round."""
    funnel, spec = make_funnel(num_ads)
    replay(funnel, draw_requests(spec, 20, seed=0))  # first touches of memory, outside the clock
    process, early_bytes = psutil.Process(), 0

    def watch(done: int) -> None:
        nonlocal early_bytes
        if done == max(1, num_requests // 10):
            early_bytes = process.memory_info().rss

    reports = [
        replay(funnel, draw_requests(spec, num_requests, seed=1 + at), progress=watch)
        for at in range(rounds)
    ]
    growth = process.memory_info().rss - early_bytes
    median = sorted(reports, key=lambda report: report.latency_ms.mean)[rounds // 2]
    by_stage = {f"{stage.name}_p50_ms": stage.latency_ms.p50 for stage in median.stages}
    return {
        "ads": num_ads,
        "requests": num_requests,
        "requests_per_second": median.requests_per_second,
        "p50_ms": median.latency_ms.p50,
        "p99_ms": median.latency_ms.p99,
        **by_stage,
        "rss_growth_bytes": growth,
        "mean_ms": [report.latency_ms.mean for report in reports],
        "fallbacks": sum(sum(stage.fallbacks.values()) for stage in median.stages),
        "threads": threads,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    threads = api.prepare_process(options.threads)
    rows = [
        measure(
            num_ads,
            NUM_REQUESTS[options.quick],
            rounds=ROUNDS[options.quick],
            threads=threads,
        )
        for num_ads in NUM_ADS[options.quick]
    ]
    ratios = {
        f"budget/answer, {row['ads']:,} ads": harness.ratio_of(
            [(BUDGET_MS, ms) for ms in row["mean_ms"]]
        )
        for row in rows
    }
    harness.report(
        options,
        "funnel_replay",
        "replay of a funnel of four steps",
        COLUMNS,
        rows=rows,
        ratios=ratios,
        bars=BARS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
