"""What tests of tables share."""

from pathlib import Path

import pytest

from tamis import api, artifacts


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets a signal stop every training; the names of the runs that were begun."""
    begun: list[str] = []

    def train(dataset: Path, *, run: Path, **options: object) -> api.Run:
        begun.append(run.name)
        artifacts.write_json(run / "run.json", {"status": "interrupted"})
        return api.Run(run)

    monkeypatch.setattr(api, "train", train)
    return begun
