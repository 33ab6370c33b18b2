"""What every verb shares: where text goes, how errors end a command, how progress is drawn."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tamis.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    RunInUseError,
    SchemaError,
    StorageError,
    TamisError,
)

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
_BAD_INPUT = (ArtifactError, ConfigError, DataError, RunInUseError, SchemaError)

Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Threads = Annotated[
    int,
    typer.Option(
        "--threads", min=0, help="Compute threads; 0 takes OMP_NUM_THREADS, or every core."
    ),
]


class Session:
    """One command from start to end: its console, its clock and its result."""

    def __init__(self, verb: str, *, as_json: bool) -> None:
        """Open the console: standard output, or standard error beside JSON."""
        from rich.console import Console

        self.verb = verb
        self.as_json = as_json
        self.console: Console = Console(stderr=as_json)
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the command has worked."""
        return round(time.perf_counter() - self.started, 3)

    def say(self, text: str, *, style: str | None = None) -> None:
        """Print a line as it is: no markup in it, and paths stay whole."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def finish(self, **result: object) -> None:
        """Print the result as JSON if that was asked for; ``ok`` is true unless it says so."""
        if not self.as_json:
            return
        print_json({"command": self.verb, "ok": True, **result, "seconds": self.seconds})

    def progress(self) -> "Progress":
        """A progress display that leaves no trace when it ends."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )


@contextlib.contextmanager
def session(verb: str, *, as_json: bool, debug: bool) -> Iterator[Session]:
    """Run a verb; a foreseen error becomes one message and an exit status.

    Raises:
        typer.Exit: The command failed (1) or its input was bad (2).
    """
    current = Session(verb, as_json=as_json)
    try:
        yield current
    except TamisError as error:
        if debug:
            current.console.print_exception()
        # A full disk is no fault of the input, though its error is one of an artifact.
        is_bad_input = isinstance(error, _BAD_INPUT) and not isinstance(error, StorageError)
        _fail(current, str(error), EXIT_BAD_INPUT if is_bad_input else EXIT_FAILED)
    except KeyboardInterrupt:
        _fail(current, "interrupted", EXIT_FAILED)
    except OSError as error:
        if debug:
            current.console.print_exception()
        message = (
            f"{error.filename or 'a file'}: must be readable and writable, got "
            f"{error.strerror or error}. Check the path and the disk."
        )
        _fail(current, message, EXIT_FAILED)


def _fail(current: Session, message: str, status: int) -> NoReturn:
    if current.as_json:
        print_failure(current.verb, message, seconds=current.seconds)
    sys.stderr.write(f"tamis {current.verb}: {message}\n")
    raise typer.Exit(status)


def print_failure(verb: str, message: str, *, seconds: float) -> None:
    """Print the JSON object of a command that did not succeed."""
    print_json({"command": verb, "ok": False, "error": message, "seconds": seconds})


def print_json(payload: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output; NaN becomes null."""
    sys.stdout.write(json.dumps(_finite(payload), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_table(
    current: Session,
    *,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Print a table that fits a terminal; the first column is text, the others numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Not the table's own title, which is broken in the middle of a path where the table is narrow.
    current.say(title, style="italic")
    # One blank between columns, so that nine of them fit 80.
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    current.console.print(table)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table cell; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
