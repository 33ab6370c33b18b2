"""The parent's side of a contender: builds a peer's environment once and talks to its worker.

Environments live under ``.cache/peers`` of the repository, or under ``TAMIS_BENCH_CACHE``. They
hold the very torch build that tamis runs on, so that no CUDA wheel is fetched for a CPU comparison
and both sides compute with the same kernels.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
INSTALL_TIMEOUT_SECONDS = 1800


class PeerError(RuntimeError):
    """A peer could not be installed or failed; the text goes into the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A library that tamis is compared with."""

    name: str
    """Name in tables and ratios."""
    title: str
    """Name with version, for people."""
    script: str
    """Worker script in this folder."""
    requirements: tuple[str, ...]
    """What is installed beside torch."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="fuxictr",
            title="FuxiCTR 2.3.10",
            script="peer_fuxictr.py",
            # 2.3.10 calls LazyFrame.collect_schema, which polars has from 1.0 on.
            requirements=("fuxictr==2.3.10", "pandas>=2.2,<3", "polars>=1,<2"),
        ),
        Peer(
            name="deepctr_torch",
            title="DeepCTR-Torch 0.3.0",
            script="peer_deepctr.py",
            requirements=("deepctr-torch==0.3.0", "numpy>=2,<3", "pyarrow>=18"),
        ),
    )
}
"""Every peer by name."""


def cache_folder() -> Path:
    """Where environments and generated data are kept between runs."""
    return Path(os.environ.get("TAMIS_BENCH_CACHE", REPOSITORY / ".cache" / "peers")).resolve()


def requirements_of(peer: Peer, torch_version: str) -> tuple[str, ...]:
    """Everything to install; torch is pinned to the build that tamis runs on, local part included.

    ``2.13.0+cpu`` matches CPU wheels only, so a missing wheel is an error instead of a download of
    the CUDA build.
    """
    return (f"torch=={torch_version}", *peer.requirements)


def fingerprint(requirements: tuple[str, ...], python: str) -> str:
    """Identity of an environment."""
    text = json.dumps([python, sorted(requirements)])
    return hashlib.sha256(text.encode()).hexdigest()


def environment(peer: Peer) -> Path:
    """The Python of a peer's environment, built if it is absent or its requirements changed.

    Raises:
        PeerError: The packages cannot be installed.
    """
    folder = cache_folder() / peer.name
    python = folder / "bin" / "python"
    requirements = requirements_of(peer, metadata.version("torch"))
    mark = folder / "requirements.sha256"
    wanted = fingerprint(requirements, sys.version)
    if mark.exists() and mark.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"building an environment for {peer.title} in {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *requirements],
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerError(f"pip install failed: {' '.join(lines)[:400] or done.stderr[-400:]}")
    # Written last: a build that was cut short is built again.
    mark.write_text(wanted)
    return python


class Worker:
    """A contender in a process of its own, which obeys commands one at a time."""

    def __init__(self, script: str, config: Mapping[str, Any], *, python: Path, log: Path) -> None:
        """Start the process and wait until it is ready.

        Args:
            script: File in this folder.
            config: JSON values; ``threads`` also sets the OpenMP and MKL threads.
            python: Interpreter of its environment.
            log: Where its standard error goes.

        Raises:
            PeerError: It does not come up; the message is its own.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("w")
        threads = str(config["threads"])
        self._process = subprocess.Popen(
            [str(python), str(BENCHMARKS / script), json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "PYTHONUNBUFFERED": "1",
            },
            start_new_session=True,
        )
        try:
            self.hello = self._answer()
        except PeerError:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        """Hand out the worker."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process: politely first."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ask(self, do: str, **message: str | int) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            PeerError: The command failed or the process died; the message is its own.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **message}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(f"worker ended before {do!r}; see {self._log.name}") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise PeerError(f"worker died with exit status {code}; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise PeerError(answer["error"])
        return answer


def start(peer: Peer, config: Mapping[str, Any], *, log: Path) -> Worker:
    """A worker of a peer, in its environment.

    Raises:
        PeerError: It cannot be installed or does not come up.
    """
    return Worker(peer.script, config, python=environment(peer), log=log)
