"""This process, set up for long computations, and what it does when it is told to stop."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pyarrow as pa


def prepare_process(threads: int = 0) -> int:
    """Set up this process for long computations: how many threads, and what freed memory becomes.

    Args:
        threads: At most this many in every library together; 0 takes as many as the environment
            variable ``OMP_NUM_THREADS`` says, or without it every core that the process may use.

    Returns:
        The number of threads.
    """
    import torch

    count = usable_threads(threads)
    torch.set_num_threads(count)
    pa.set_cpu_count(count)
    pa.set_io_thread_count(1)
    _keep_freed_memory()
    return count


def usable_threads(threads: int = 0) -> int:
    """How many threads :func:`prepare_process` takes for the same argument."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = (len(affinity(0)) if affinity else os.cpu_count()) or 1
    said = os.environ.get("OMP_NUM_THREADS", "")
    wanted = threads or (int(said) if said.isdecimal() else 0) or cores
    return min(wanted, cores)


@contextlib.contextmanager
def on_first_signal(action: Callable[[], None], *numbers: signal.Signals) -> Iterator[None]:
    """Call something on the first of these signals; the next ones do what they did before.

    What the process ignores, it goes on ignoring. Signals reach the main thread only: in others
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        restore()
        action()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def _keep_freed_memory() -> None:
    """Let glibc keep the large blocks that each training step frees, to hand them out again.

    By default it returns them to the system, and the kernel clears each page again at the next
    step: a tenth (float32) to a fifth (bfloat16) of a step on a CPU. Other C libraries have no such
    setting and stay as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    for setting, value in ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**30), (arena_max, 1)):
        mallopt(setting, value)
