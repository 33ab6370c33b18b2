import os
import signal
import subprocess
import sys

import pytest

from tamis.process import on_first_signal

pytestmark = pytest.mark.slow

# A block of 64 MiB is written, freed, and asked for again: kept memory needs no new pages.
_PAGES_WORKER = """
import resource, sys
import torch
from tamis import api

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "prepared":
    api.prepare_process(1)
for _ in range(2):
    torch.ones(2**24)
before = faults()
for _ in range(4):
    torch.ones(2**24)
print(faults() - before)
"""


def _page_faults(state: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PAGES_WORKER, state], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_prepared_process_does_not_give_freed_blocks_back() -> None:
    # Plain: every one of four blocks faults anew. A system short of memory may take one back.
    assert _page_faults("prepared") * 2 < _page_faults("plain")


@pytest.mark.parametrize(
    ("said", "asked", "expected"), [("1", 0, 1), ("64", 0, None), ("", 0, None), ("2", 1, 1)]
)
def test_threads_are_those_asked_for_then_those_of_the_environment_then_every_core(
    said: str, asked: int, expected: int | None
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": said}
    if not said:
        del environment["OMP_NUM_THREADS"]
    command = f"from tamis import api; print(api.prepare_process({asked}))"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, env=environment
    )

    assert int(done.stdout) == (expected or len(os.sched_getaffinity(0)))


def test_first_signal_is_handled_and_the_next_does_what_it_did_before() -> None:
    before, told = [], []
    was = signal.signal(signal.SIGUSR1, lambda *_: before.append("before"))
    try:
        with on_first_signal(lambda: told.append("first"), signal.SIGUSR1):
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, was)

    assert (told, before) == (["first"], ["before"])


def test_ignored_signal_stays_ignored() -> None:
    told: list[str] = []
    was = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with on_first_signal(lambda: told.append("first"), signal.SIGUSR1):
            signal.raise_signal(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, was)

    assert not told
