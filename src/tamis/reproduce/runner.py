"""Runs the cells of a table as separate processes of one thread each, and skips finished ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tamis.errors import TamisError
from tamis.process import on_first_signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training of a table."""

    model: str
    """Recipe name."""
    seed: int
    """Seed of the training."""
    run: Path
    """Its run folder."""

    @property
    def is_done(self) -> bool:
        """Whether its final metrics are written."""
        return (self.run / "metrics.json").exists()


def cells_of(
    models: Sequence[str], seeds: int, folder: Path, stamps: Mapping[str, str]
) -> list[Cell]:
    """All cells of a table, seed by seed, so that an unfinished table covers every model.

    Args:
        models: What to train.
        seeds: Seeds 0 to seeds - 1.
        folder: For the runs; those of one recipe and dataset never stand for those of another.
        stamps: What tells the recipe and the dataset of each model from any other.
    """
    return [
        Cell(model=model, seed=seed, run=folder / model / f"{stamps[model]}-seed{seed}")
        for seed in range(seeds)
        for model in models
    ]


def run_cells(
    cells: list[Cell],
    *,
    command: Callable[[Cell], Sequence[str]],
    workers: int,
    on_done: Callable[[Cell], None],
) -> None:
    """Train every unfinished cell; an interrupted table goes on from the cells' checkpoints.

    On Ctrl-C, or on the first SIGTERM or SIGHUP, the trainings that run are stopped, each after its
    batch, and waited for.

    Args:
        cells: What to train.
        command: What makes a cell, after the interpreter.
        workers: Trainings at a time; each gets one compute thread.
        on_done: Called for each finished cell, also for those found finished.

    Raises:
        TamisError: A training failed; the message ends with what it printed.
    """
    waiting = []
    for cell in cells:
        if cell.is_done:
            on_done(cell)
        else:
            waiting.append(cell)
    running: dict[subprocess.Popen[str], Cell] = {}
    try:
        with on_first_signal(_interrupt, signal.SIGTERM, signal.SIGHUP):
            while waiting or running:
                while waiting and len(running) < workers:
                    cell = waiting.pop(0)
                    running[_start(cell, command)] = cell
                for process in [process for process in running if process.poll() is not None]:
                    cell = running.pop(process)
                    _check(process, cell)
                    on_done(cell)
                time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _start(cell: Cell, command: Callable[[Cell], Sequence[str]]) -> subprocess.Popen[str]:
    cell.run.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (cell.run.parent / f"{cell.run.name}.log").open("w") as log:
        # In a group of its own: Ctrl-C would reach it as well, and then our SIGTERM would be its
        # second signal, which a training does not survive until its checkpoint.
        return subprocess.Popen(
            [sys.executable, *command(cell)],
            stdout=log,
            stderr=log,
            env=environment,
            text=True,
            process_group=0,
        )


def _check(process: subprocess.Popen[str], cell: Cell) -> None:
    if process.returncode == 0 and cell.is_done:
        return
    log = (cell.run.parent / f"{cell.run.name}.log").read_text()
    raise TamisError(
        f"{cell.run}: training must end with exit status 0, got {process.returncode}. "
        f"It printed: {log[-2000:]}"
    )
