"""The records of a run: ``metrics.jsonl``, ``run.json`` and TensorBoard events."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tamis import artifacts
from tamis.errors import ArtifactError


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, appended and synced.

    Everything in a line is fixed by seed, config and data, but for what stands under ``time``.
    """

    def __init__(self, path: Path, *, keep_lines: int) -> None:
        """Open the log and drop the lines after ``keep_lines``, which a resumed run writes anew.

        Raises:
            ArtifactError: Fewer lines are there.
        """
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(lines) < keep_lines:
            raise ArtifactError(
                f"{path}: must hold the {keep_lines} lines of the checkpoint, got {len(lines)}. "
                f"It was cut or removed; put it back, or remove the run folder to start anew."
            )
        artifacts.write_bytes(path, b"".join(lines[:keep_lines]))
        self._path = path
        self.lines = keep_lines

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.lines += 1


class Events:
    """TensorBoard event files of a run, one per process that worked on it."""

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Open a new event file; steps from ``purge_step`` on in older files are superseded."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step, max_queue=1)

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write scalars of one step; missing ones are left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine that a result depends on; no names or paths of the machine."""
    return {
        "tamis": metadata.version("tamis"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "device_name": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else _model_name()
        ),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def source_commit() -> str | None:
    """Commit of the source tree that tamis runs from, or None when it is installed elsewhere."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def provenance() -> dict[str, str | None]:
    """What made a result on the processor: the commit, and the processor's name."""
    return {"commit": source_commit(), "device": processor_name()}


def processor_name() -> str:
    """The processor, and the widest vectors that PyTorch uses on it, which few names tell."""
    return device_of(environment(torch.device("cpu")))


def device_of(environment: Mapping[str, Any]) -> str:
    """What computed, as ``run.json`` has it: a processor with its vectors, or a GPU.

    An earlier version wrote no vectors.
    """
    name, vectors = environment["device_name"], environment.get("vectors", "")
    is_processor = vectors and environment["device"] == "cpu"
    return f"{name}, {vectors}" if is_processor else str(name)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _model_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()
