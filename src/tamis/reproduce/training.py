"""A training that a table or one of its rows waits for."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tamis import api
from tamis.errors import TamisError

if TYPE_CHECKING:
    from tamis.training.loop import Observer


def train(
    dataset: Path,
    *,
    recipe: Path,
    run: Path,
    settings: Sequence[str] = (),
    teacher: Path | None = None,
    observer: "Observer | None" = None,
) -> None:
    """Train to the end, or go on with a run that was stopped; see :func:`tamis.api.train`.

    Raises:
        TamisError: A signal stopped the training. Whoever goes on would train what comes next.
    """
    from tamis.training.loop import Silent

    done = api.train(
        dataset,
        recipe=recipe,
        settings=settings,
        run=run,
        teacher=teacher,
        observer=observer or Silent(),
        report=False,
    )
    if done.status != "finished":
        raise TamisError(f"{run}: training was stopped; make the table again to go on with it.")
