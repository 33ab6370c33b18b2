"""What becomes of a table's trainings when it is told to stop."""

import os
import signal
import textwrap
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from tamis.reproduce.runner import Cell, run_cells

# Says that it runs, and on SIGTERM that it was stopped in good order.
TRAINING = textwrap.dedent(
    """
    import pathlib, signal, sys, time

    folder = pathlib.Path(sys.argv[1])

    def stop(signum, frame):
        (folder / "stopped").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    (folder / "running").touch()
    time.sleep(60)
    """
)


def _make_table(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cells = [Cell(model=name, seed=0, run=folder / name) for name in ("lr", "dhen", "fm")]
    run_cells(
        cells,
        command=lambda cell: ["-c", TRAINING, str(cell.run)],
        workers=2,
        on_done=lambda cell: None,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_table_that_is_stopped_stops_its_trainings_and_waits_for_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = get_context("spawn").Process(target=_make_table, args=(tmp_path,))
    process.start()
    assert process.pid is not None
    started = [tmp_path / name / "running" for name in ("lr", "dhen")]
    deadline = time.monotonic() + 50
    while not all(path.exists() for path in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    os.kill(process.pid, number)
    process.join(30)

    assert process.exitcode not in (0, None)
    assert all((path.parent / "stopped").exists() for path in started)
    assert not (tmp_path / "fm").exists()
