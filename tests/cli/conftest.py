"""A log, a dataset of it and two runs, made once and copied for each test."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from typer.testing import CliRunner, Result

from tamis import api
from tamis.cli.main import app
from tamis.errors import TamisWarning

LR = ("training.max_epochs=1", "training.batch_size=256")


def _log(rows: int = 1200) -> pa.Table:
    generator = np.random.default_rng(0)
    item = generator.integers(0, 30, rows)
    return pa.table(
        {
            "user_id": generator.integers(0, 60, rows),
            "item_id": item,
            "price": generator.lognormal(1, 1, rows).round(2),
            "y": (generator.random(rows) < 0.1 + 0.5 * (item % 2)).astype(np.int64),
        }
    )


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    pyarrow.csv.write_csv(_log(), folder / "that.csv")
    dataset = api.ingest(folder / "that.csv", folder / "d", labels=["y"])
    for seed, name in enumerate("ab"):
        settings = [*LR, f"training.seed={seed}"]
        api.train(dataset, model="lr", settings=settings, run=folder / name, report=False)
    return folder


@pytest.fixture
def world(_made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: ``that.csv``, its dataset ``d``, and runs ``a`` and ``b`` on it."""
    folder = tmp_path / "world"
    shutil.copytree(_made_once, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tamis() -> Callable[..., Result]:
    """Runs one command."""

    def run(*arguments: str | Path) -> Result:
        # Warnings are for callers from Python; a command says itself what there is to say.
        with warnings.catch_warnings():
            warnings.simplefilter("error", TamisWarning)
            return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def tamis_json(tamis: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """Runs one command that succeeds with ``--json``, and reads its object."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        result = tamis(*arguments, "--json")
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return run


@pytest.fixture
def refused(tamis: Callable[..., Result]) -> Callable[..., str]:
    """Runs one command that ends with status 2, and gives its message on one line."""

    def run(*arguments: str | Path) -> str:
        result = tamis(*arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        return " ".join(result.output.split())

    return run
