"""Cost of AdaTT's levels beside one dense MLP that does as many operations.

Three tasks of three experts in two levels of 256 and 128, on a vector of 512. The MLP has two
hidden layers whose common width is chosen so that both count the same floating-point operations a
row. Forward and backward, in training mode, in the machine's default precision and in float32;
both models take turns. ``mlp/adatt`` is the MLP's time over AdaTT's: 0.77 means 1.3 times as slow.
"""

import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import harness
import torch
from torch import Tensor, nn

from tamis import api
from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.models.adatt import AdaTT, AdaTTConfig
from tamis.nn.mlp import MLP
from tamis.training.cost import count_forward_flops
from tamis.training.predict import choose_precision

WIDTH, TASKS, BATCH_SIZE = 512, 3, 4096
ROUNDS, STEPS = {False: 15, True: 2}, 10
BARS = {"mlp/adatt": 1 / 1.3, "mlp/adatt/fp32": 1 / 1.3}
COLUMNS = {
    "model": str,
    "precision": str,
    "mflop_per_row": lambda value: f"{value:.3f}",
    "ms_per_step": lambda value: f"{value:.2f}",
}


class Dense(nn.Module):
    """Two hidden layers and a logit for each task."""

    def __init__(self, hidden: int) -> None:
        """Build it."""
        super().__init__()
        self.mlp = MLP(WIDTH, (hidden, hidden), out_dim=TASKS)

    def forward(self, batch: Batch) -> Tensor:
        """Logits."""
        return self.mlp(batch.numeric)


def seconds_of(model: nn.Module, batch: Batch, precision: torch.dtype) -> float:
    """Seconds of a forward and backward pass, mean over some."""
    started = time.perf_counter()
    for _ in range(STEPS):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, precision == torch.bfloat16):
            output = model(batch)
        logits = output if isinstance(output, Tensor) else output.logits
        logits.float().square().mean().backward()
    return (time.perf_counter() - started) / STEPS


def as_costly(flops: float, batch: Batch) -> Dense:
    """The MLP whose operations per row are nearest to these."""
    widths = range(64, 2048, 8)
    counted = [2 * (WIDTH * width + width * width + width * TASKS) for width in widths]
    place = min(range(len(widths)), key=lambda index: abs(counted[index] - flops))
    model = Dense(widths[place])
    found = count_forward_flops(model, batch)
    assert abs(found / flops - 1) < 0.02, f"operations must agree within 2 %, got {found / flops}"
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON if asked."""
    options = harness.parser(__doc__).parse_args(arguments)
    api.prepare_process(options.threads)
    spec = InputSpec(
        numeric=tuple(f"x{place}" for place in range(WIDTH)),
        categorical=(),
        sequences=(),
        tables=(),
        tasks=tuple(Task(name=f"task{place}") for place in range(TASKS)),
    )
    torch.manual_seed(0)
    batch = Batch(
        numeric=torch.randn(BATCH_SIZE, WIDTH),
        ids=torch.zeros(BATCH_SIZE, 0, dtype=torch.int32),
        labels=torch.zeros(BATCH_SIZE, TASKS),
        weights=torch.ones(BATCH_SIZE),
    )
    config = AdaTTConfig(expert_units=((256,), (128,)), task_experts=(3,), tower_units=(64,))
    adatt = AdaTT(config, spec).train()
    flops = count_forward_flops(adatt, batch)
    dense = as_costly(flops, batch).train()
    models: dict[str, nn.Module] = {"adatt": adatt, "mlp": dense}
    default = choose_precision("auto", torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    ratios: dict[str, harness.Ratio] = {}
    for name, precision in (("mlp/adatt", default), ("mlp/adatt/fp32", torch.float32)):
        for model in models.values():
            seconds_of(model, batch, precision)  # warms up
        costs = harness.interleave(
            {
                key: lambda model=model, precision=precision: seconds_of(model, batch, precision)
                for key, model in models.items()
            },
            rounds=ROUNDS[options.quick],
        )
        ratios[name] = harness.ratio_of(list(zip(costs["mlp"], costs["adatt"], strict=True)))
        rows += [
            {
                "model": key,
                "precision": str(precision).removeprefix("torch."),
                "mflop_per_row": count_forward_flops(models[key], batch) / 1e6,
                "ms_per_step": 1e3 * median(seconds),
                "seconds": seconds,
                "batch_size": BATCH_SIZE,
                "threads": options.threads,
            }
            for key, seconds in costs.items()
        ]
    harness.report(
        options,
        "experts",
        "three tasks of three experts",
        COLUMNS,
        rows=rows,
        ratios=ratios,
        bars=BARS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
