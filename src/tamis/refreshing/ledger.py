"""What a refresh remembers: its rounds, one file that is replaced as a whole.

A round is written before its work begins and after each step that others can see. Whoever finds it
open goes on with it, and finds every file that was finished.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tamis import artifacts, config
from tamis.errors import ArtifactError, ConfigError

LEDGER_VERSION = 1
_LEDGER = "ledger.json"

Status = Literal["open", "failed", "refused", "published", "live", "overtaken"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """How two stages of one name did on the newest rows, task by task."""

    stage: str
    """Name of the stage."""
    task: str
    """Task."""
    rows: int
    """Rows that were compared. At least 1."""
    serving: float
    """Mean loss of the stage that serves, nats."""
    refreshed: float
    """Mean loss of the refreshed stage, nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One turn: answered requests of a window, and the bundle that was learnt from them."""

    number: int
    """From 1 on."""
    base: str
    """Release that served when the round began; its stages are trained further."""
    after: int
    """Number of the last request that came before."""
    trained_until: int
    """Number of the last request that is trained on."""
    valid_until: int
    """Number of the last request that calibrates and picks weights; later ones judge."""
    until: int
    """Number of the last request."""
    status: Status = "open"
    """``open``: at work. ``failed``: its events do not suffice, or training on them diverged.
    ``refused``: the new bundle was worse. ``published``: it lies beside the others. ``live``: the
    server took it. ``overtaken``: another bundle served before it was done."""
    problem: str = ""
    """Why it failed; empty but for ``failed``."""
    tried: tuple[str, ...] = ()
    """Settings with which it failed; with others its requests are tried again. Empty but for
    ``failed``."""
    release: str = ""
    """The new bundle's; empty before it was published."""
    bundle: str = ""
    """Its folder; empty before."""
    losses: tuple[Losses, ...] = field(default_factory=tuple)
    """What decided; empty before it was judged."""


class Ledger:
    """The rounds of a folder; whoever changes them holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        """Read the rounds; there are none where the file is not there.

        Raises:
            ArtifactError: The file is damaged or of another version.
        """
        self._path = folder / _LEDGER
        self.rounds: tuple[Round, ...] = ()
        if self._path.exists():
            self.rounds = _read(self._path)

    @property
    def last(self) -> Round | None:
        """The newest round; None where there is none."""
        return self.rounds[-1] if self.rounds else None

    def add(self, turn: Round) -> None:
        """Append a round.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        self._write((*self.rounds, turn))

    def update(self, **changes: Any) -> Round:  # noqa: ANN401  (fields of a round)
        """Change fields of the newest round, and give it.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        turn = replace(self.rounds[-1], **changes)
        self._write((*self.rounds[:-1], turn))
        return turn

    def round_of(self, release: str) -> Round | None:
        """The round that made a release; None where it was made elsewhere."""
        return next((turn for turn in reversed(self.rounds) if turn.release == release), None)

    def _write(self, rounds: tuple[Round, ...]) -> None:
        record = {
            "version": LEDGER_VERSION,
            "rounds": [config.to_table(turn) for turn in rounds],
        }
        artifacts.write_json(self._path, record)
        self.rounds = rounds


def _read(path: Path) -> tuple[Round, ...]:
    record: Any = artifacts.read_json(path)
    version = record.get("version") if isinstance(record, Mapping) else None
    if version != LEDGER_VERSION:
        raise ArtifactError(
            f"{path}: must be a ledger of version {LEDGER_VERSION}, got {version!r}. Use the tamis "
            f"that wrote it, or name another folder of work."
        )
    try:
        return tuple(
            config.from_table(Round, turn, where=f"rounds.{place}")
            for place, turn in enumerate(record["rounds"])
        )
    except (ConfigError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: must hold rounds, got {error} It was altered; name another folder of work."
        ) from error
