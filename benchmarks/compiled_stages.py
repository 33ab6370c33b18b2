"""Whether compiling a stage ahead of time beats calling it: the early stage's scorer, and DCN-V2.

Each is exported by ``torch.export`` with any number of candidates, compiled by AOTInductor (which
needs a C++ compiler), and called beside the eager one in turns, in float32 and in bfloat16.
``largest_change`` is of probabilities, against eager float32. Time is processor time of one thread.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import serving_world
import torch
from torch import Tensor, nn

from tamis import api
from tamis.data.batch import Batch, Jagged, blank_batch
from tamis.funnel.bundle import read_bundle
from tamis.funnel.plans import EarlyStagePlan, RankerPlan
from tamis.models.early_stage import EarlyStage

CALLS = 20
COLUMNS = {
    "stage": str,
    "candidates": lambda value: f"{value:,}",
    "precision": str,
    "eager_ms": lambda value: f"{value:.2f}",
    "compiled_ms": lambda value: f"{value:.2f}",
    "build_seconds": lambda value: f"{value:.0f}",
    "file_bytes": lambda value: f"{value / 2**20:.1f} MiB",
    "largest_change": lambda value: f"{value:.1e}",
}


class InPrecision(nn.Module):
    """A module as a stage calls it."""

    def __init__(self, inner: nn.Module, precision: torch.dtype) -> None:
        """Wrap it."""
        super().__init__()
        self.inner, self.precision = inner, precision

    def forward(self, *inputs: Tensor) -> Tensor:
        """Its logits."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            logits: Tensor = self.inner(*inputs)
        return logits.float()


class OnTensors(nn.Module):
    """A ranker whose batch comes as tensors, the only inputs that an exported program has."""

    def __init__(self, ranker: nn.Module, like: Batch) -> None:
        """Wrap it."""
        super().__init__()
        self.ranker, self.groups = ranker, tuple(like.sequences)

    def forward(self, numeric: Tensor, ids: Tensor, *histories: Tensor) -> Tensor:
        """Its logits."""
        sequences = {
            name: Jagged(values=histories[2 * at], offsets=histories[2 * at + 1])
            for at, name in enumerate(self.groups)
        }
        rows = ids.shape[0]
        batch = Batch(
            numeric=numeric,
            ids=ids,
            labels=numeric.new_empty(rows, 0),
            weights=numeric.new_ones(rows),
            sequences=sequences,
        )
        logits: Tensor = self.ranker(batch).logits
        return logits


def scorer_of(plan: EarlyStagePlan) -> tuple[nn.Module, Callable[[int], tuple[Tensor, ...]]]:
    """The early stage's scorer of pairs, and its inputs for some candidates."""
    assert isinstance(plan.model.module, EarlyStage)
    parts, width = plan.model.module.export(head="label"), plan.model.config.tower_dim
    query = torch.randn(1, 2 * width)
    return parts.scorer, lambda count: (query, torch.randn(count, width))


def ranker_of(plan: RankerPlan) -> tuple[nn.Module, Callable[[int], tuple[Tensor, ...]]]:
    """The final ranker, and its inputs for some candidates of a user with a history of ten."""
    spec = plan.model.spec

    def inputs(count: int) -> tuple[Tensor, ...]:
        batch = blank_batch(spec, count, torch.device("cpu"))
        rows = spec.num_rows_by_table
        ids = [torch.randint(rows[item.table], (count,)) for item in spec.categorical]
        histories = []
        for group in spec.sequences:
            events = [torch.randint(rows[table], (10 * count,)) for table in group.tables]
            histories += [torch.stack(events, 1), torch.arange(0, 10 * count + 1, 10)]
        return (torch.randn(batch.numeric.shape), torch.stack(ids, 1), *histories)

    like = blank_batch(spec, 1, torch.device("cpu"))
    return OnTensors(plan.model.module, like).eval(), inputs


def dynamic_shapes(inputs: tuple[Tensor, ...]) -> tuple[tuple[dict[int, Any], ...]]:
    """Everything whose length goes with the candidates may have any."""
    found = [{0: torch.export.Dim.DYNAMIC} if len(one) > 1 else {} for one in inputs]
    return (tuple(found),)


def ms_of(call: Callable[[], Any]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    for _ in range(CALLS):
        call()
    return 1e3 * (time.process_time() - started) / CALLS


def measure(
    name: str,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    folder: Path,
    *,
    candidates: int,
    rounds: int,
) -> tuple[list[dict[str, Any]], dict[str, harness.Ratio]]:
    """Rows and ratios of one stage in both precisions; a row says why where it cannot be."""
    rows: list[dict[str, Any]] = []
    ratios = {}
    with torch.inference_mode():
        exact = module(*inputs).sigmoid()
    for precision in (torch.float32, torch.bfloat16):
        wrapped, word = InPrecision(module, precision).eval(), str(precision).removeprefix("torch.")
        row = {"stage": name, "candidates": candidates, "precision": word}
        started = time.perf_counter()
        try:
            with torch.no_grad():
                program = torch.export.export(
                    wrapped, inputs, dynamic_shapes=dynamic_shapes(inputs)
                )
            path = torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / f"{name}-{word}.pt2")
            )
            compiled = torch._inductor.aoti_load_package(path)
        except Exception as error:
            rows.append(row | {"error": f"{type(error).__name__}: {str(error)[:200]}"})
            continue
        seconds = time.perf_counter() - started
        with torch.inference_mode():
            change = float((compiled(*inputs).sigmoid() - exact).abs().max())
            costs = harness.interleave(
                {
                    "eager": lambda: ms_of(lambda: wrapped(*inputs)),  # noqa: B023
                    "compiled": lambda: ms_of(lambda: compiled(*inputs)),  # noqa: B023
                },
                rounds=rounds,
            )
        pairs = list(zip(costs["eager"], costs["compiled"], strict=True))
        ratios[f"eager/compiled, {name}, {word}"] = harness.ratio_of(pairs)
        rows.append(
            row
            | {
                "eager_ms": sorted(costs["eager"])[rounds // 2],
                "compiled_ms": sorted(costs["compiled"])[rounds // 2],
                "build_seconds": seconds,
                "file_bytes": Path(path).stat().st_size,
                "largest_change": change,
            }
        )
    return rows, ratios


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    options = harness.parser(__doc__ or "").parse_args(arguments)
    api.prepare_process(1)
    torch.manual_seed(0)
    sizes = serving_world.Sizes(ads=2000 if options.quick else 20_000)
    rounds = 3 if options.quick else 9
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        serving_world.publish(folder / "bundle", sizes)
        _, early, final = (stage.plan for stage in read_bundle(folder / "bundle").blueprint.stages)
        assert isinstance(early, EarlyStagePlan)
        assert isinstance(final, RankerPlan)
        rows: list[dict[str, Any]] = []
        ratios: dict[str, harness.Ratio] = {}
        for name, (module, inputs), count in (
            ("early", scorer_of(early), sizes.retrieved),
            ("final", ranker_of(final), sizes.early),
        ):
            found, own = measure(
                name, module, inputs(count), folder, candidates=count, rounds=rounds
            )
            rows, ratios = rows + found, ratios | own
    harness.report(
        options,
        "compiled_stages",
        "stages compiled ahead of time, one thread",
        COLUMNS,
        rows=rows,
        ratios=ratios,
        bars={},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
