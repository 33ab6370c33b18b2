"""Datasets, models and a server that several test files share."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows
from tamis.data.schema import (
    CategoricalInput,
    Field,
    InputSpec,
    Roles,
    Schema,
    SequenceInput,
    Table,
    Task,
)

# Started in the background of a script, tests would inherit that Ctrl-C does nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest first: begun last, one would leave the other worker with nothing to do.
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("slow")
    return 0.0 if mark is None else mark.kwargs.get("seconds", 0.0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers (``st_ino``) of the files and folders that are synced, in order.

    Moving a file keeps its number, so it can be asked for by the name that it has in the end.
    """
    numbers: list[int] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        numbers.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return numbers


@pytest.fixture
def schema() -> Schema:
    return Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="item", kind="categorical", side="item"),
            Field(name="price", kind="numeric"),
            Field(name="past", kind="sequence", shares="item"),
        ),
        tasks=(Task(name="click"), Task(name="buy", observed_when="click")),
        roles=Roles(user="user"),
    )


@pytest.fixture
def spec() -> InputSpec:
    return InputSpec(
        numeric=("price",),
        categorical=(
            CategoricalInput(name="user", table="user", side="user"),
            CategoricalInput(name="item", table="item", side="item"),
        ),
        sequences=(SequenceInput(name="past", fields=("past",), tables=("item",), max_length=50),),
        tables=(Table(name="user", num_rows=40), Table(name="item", num_rows=30)),
        tasks=(Task(name="click"), Task(name="buy", observed_when="click")),
    )


def random_rows(count: int, seed: int, first_row: int = 0) -> EncodedRows:
    """Rows whose click depends on user and item, so that a model can learn something."""
    generator = np.random.default_rng(seed)
    users = generator.integers(1, 40, count).astype(np.int32)
    items = generator.integers(1, 30, count).astype(np.int32)
    lengths = generator.integers(0, 4, count).astype(np.int64)
    past = generator.integers(0, 30, int(lengths.sum())).astype(np.int32)
    click = (generator.random(count) < 0.15 + 0.7 * ((users + items) % 2)).astype(np.float32)
    buy = (generator.random(count) < 0.3).astype(np.float32)
    return EncodedRows(
        row=np.arange(first_row, first_row + count),
        numeric={"price": generator.standard_normal(count).astype(np.float32)},
        ids={"user": users, "item": items},
        sequences={"past": (past[:, None], lengths)},
        labels={"click": click, "buy": np.where(click == 1, buy, np.nan).astype(np.float32)},
        roles={"user": users.astype(np.int64)},
    )


@pytest.fixture
def make_dataset(tmp_path: Path, schema: Schema, spec: InputSpec) -> Callable[..., Dataset]:
    """Write a dataset of random rows with an (empty) encoders folder."""

    def make(train: int = 600, valid: int = 200, test: int = 200, name: str = "data") -> Dataset:
        with DatasetWriter(tmp_path / name, schema, spec) as writer:
            (writer.encoders_path / "encoders.json").write_text("{}")
            sizes = {"train": train, "valid": valid, "test": test}
            for seed, (split, count) in enumerate(sizes.items()):
                if count:
                    writer.append(split, random_rows(count, seed, first_row=10_000 * seed))
            return writer.finish({})

    return make


@pytest.fixture(scope="session")
def market_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a simulated ``market``, its dataset ``data``, and runs of four models.

    They are ``index``, ``towers``, ``early`` and ``final``.
    """
    from tamis import api

    folder = tmp_path_factory.mktemp("market_world")
    api.simulate(6000, folder / "market", seed=4)
    dataset = api.ingest(folder / "market", folder / "data")
    fast = ("training.max_epochs=1", "training.batch_size=512", "model.embedding_dim=4")
    early = ("model.tower_units=[8]", "model.tower_dim=4", "model.bottom_units=[8]")
    network = "{user_tokens=2, user_dim=4, width=4, module_tokens=2, head_units=[8]}"
    tiny = ("model.attention_units=4",)
    index = ("model.codebooks=[6]", "model.item_dim=4", "model.cross_dim=4", "model.alpha_steps=8")
    models = {
        "index": ("hsnn", (*tiny, *index, f"model.levels=[{network}, {network}]")),
        "towers": ("two_tower", (*tiny, "model.tower_dim=4")),
        "early": ("early_stage", (*early, "model.head_units=[]")),
        # As wide as bfloat16 is for: smaller maps compute in float32.
        "final": ("deepfm", ("model.hidden_units=[64, 64]",)),
    }
    for name, (model, settings) in models.items():
        api.train(
            dataset, model=model, settings=(*fast, *settings), run=folder / name, report=False
        )
    return folder


class Server:
    """``tamis serve`` in a process of its own."""

    def __init__(self, bundle: Path, folder: Path, *options: str, token: str = "") -> None:
        self._log = (folder / "server.log").open("w+")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "300"}
        environment |= {"TAMIS_TOKEN": token} if token else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tamis", "serve", str(bundle), "--port", "0", "--threads", "1",
             "--max-wait-ms", "60000", *options],
            cwd=folder, stdout=self._log, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        until = time.monotonic() + 120
        while not (found := re.search(r"serving .* at (http://\S+);", self.text)):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.02)
        self.address = found.group(1)

    @property
    def text(self) -> str:
        return Path(self._log.name).read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        self._log.close()
        return status


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(bundle: Path, folder: Path, *options: str, token: str = "") -> Server:
        servers.append(Server(bundle, folder, *options, token=token))
        return servers[-1]

    yield make
    for server in servers:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
