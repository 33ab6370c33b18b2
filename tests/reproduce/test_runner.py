"""What becomes of a table's trainings when it is told to stop."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

# Two trainings at a time of three. Each says that it runs, and on SIGTERM that it was stopped in
# good order.
_TABLE = textwrap.dedent(
    """
    import pathlib, signal, sys

    from tamis.reproduce.runner import Cell, run_cells

    TRAINING = '''
    import pathlib, signal, sys, time

    folder = pathlib.Path(sys.argv[1])

    def stop(signum, frame):
        (folder / "stopped").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    (folder / "running").touch()
    time.sleep(120)
    '''

    # What runs the tests may ignore them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    folder = pathlib.Path(sys.argv[1])
    run_cells(
        [Cell(model=name, seed=0, run=folder / name) for name in ("lr", "dhen", "fm")],
        command=lambda cell: ["-c", TRAINING, str(cell.run)],
        workers=2,
        on_done=lambda cell: None,
    )
    """
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_table_that_is_stopped_stops_its_trainings_and_waits_for_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _TABLE, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    started = [tmp_path / name / "running" for name in ("lr", "dhen")]
    deadline = time.monotonic() + 50
    while not all(path.exists() for path in started):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)

    process.send_signal(number)
    _, printed = process.communicate(timeout=50)

    assert "KeyboardInterrupt" in printed
    assert process.returncode != 0
    assert all((path.parent / "stopped").exists() for path in started)
    assert not (tmp_path / "fm").exists()
