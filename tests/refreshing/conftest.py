"""A published funnel, and a store whose events say that ads of even ids are clicked."""

import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tamis import api
from tamis.evaluation.calibrators import GroupedCalibrator, PlattCalibrator
from tamis.funnel.bundle import read_bundle, write_bundle
from tamis.funnel.calibration import Calibration
from tamis.serving.answers import Answer, Query
from tamis.serving.engine import Engine, EngineSettings
from tamis.serving.records import Event
from tamis.serving.store import Store

HOUR_MICROS = 3_600_000_000


class Silent:
    def answered(self, answer: Answer, *, waited_ms: float, took_ms: float) -> None: ...

    def turned_away(self) -> None:
        raise AssertionError("nobody is turned away")

    def past_missing(self) -> None:
        raise AssertionError("the store is there")


class World:
    """The folder of one loop: ``bundles/first``, a store, and whoever answers and clicks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundles" / "first"
        self.work = folder / "work"
        self.url = f"sqlite:///{folder / 'store.db'}"
        self.store = Store(self.url)
        self._generator = np.random.default_rng(5)
        self._told = 0

    def copy(self, folder: Path) -> "World":
        shutil.copytree(self.folder / "bundles", folder / "bundles")
        shutil.copy(self.folder / "store.db", folder / "store.db")
        return World(folder)

    def tell(
        self,
        requests: int,
        *,
        flipped: bool = False,
        hours_ago: float = 2.0,
        converts: bool = True,
    ) -> None:
        """Answer requests by the first bundle and store what users made of them."""
        engine = Engine(
            read_bundle(self.bundle), self.store, Silent(), EngineSettings(max_wait_ms=60_000.0)
        )
        start = time.time_ns() // 1_000 - round(hours_ago * HOUR_MICROS)
        for _ in range(requests):
            self._told += 1
            self._one_request(
                engine, f"r{self._told}", start + self._told * 1000, flipped, converts
            )
        engine.close()

    def _one_request(
        self, engine: Engine, name: str, time_micros: int, flipped: bool, converts: bool
    ) -> None:
        query = Query(
            request_id=name,
            user=str(self._generator.integers(40)),
            columns={"device": "phone"},
            slots=8,
            candidates=None,
            time_micros=time_micros,
        )
        answer = engine.rank(query, engine.live).result(60)
        events = []
        for shown in answer.served.shown:
            is_liked = (int(shown.ad) % 2 == 0) != flipped
            clicked = self._generator.random() < (0.9 if is_liked else 0.05)
            kinds = ["impression"]
            kinds += ["click"] if clicked else []
            kinds += ["conversion"] if clicked and self._generator.random() < 0.5 else []
            if not converts:
                kinds = [kind for kind in kinds if kind != "conversion"]
            kinds += ["hide"] if not clicked and self._generator.random() < 0.3 else []
            events += [
                Event(
                    event_id=f"{name} {shown.ad} {kind}",
                    kind=kind,
                    ad=shown.ad,
                    user=None,  # else histories would change with every click
                    request_id=name,
                    time_micros=time_micros,
                    ad_columns=shown.columns,
                )
                for kind in kinds
            ]
        engine.write(events).result(60)


@pytest.fixture(scope="session")
def _published(market_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    (folder / "bundles").mkdir()
    recipe = f"""
    [ads]
    log = "{market_world}/market"
    table = "{market_world}/market/ads.parquet"
    bid = "bid_micros"
    bid_unit = 1e-6
    advertiser = "advertiser_id"

    [[stages]]
    name = "popular"
    kind = "popularity"
    keep = 40

    [[stages]]
    name = "early"
    kind = "early"
    run = "{market_world}/early"
    keep = 20

    [[stages]]
    name = "final"
    kind = "ranker"
    run = "{market_world}/final"
    keep = 8
    """
    (folder / "funnel.toml").write_text(textwrap.dedent(recipe))
    api.publish(folder / "funnel.toml", folder / "raw")
    _calibrate(folder / "raw", folder / "bundles" / "first")
    world = World(folder)
    world.tell(150)
    world.store.close()
    return folder


def _calibrate(source: Path, out: Path) -> None:
    """Give the final stage maps of its own; the market's few conversions would not do for a fit."""
    blueprint = read_bundle(source).blueprint
    bent = GroupedCalibrator(by_group={}, other=PlattCalibrator(slope=1.1, intercept=-0.1))
    calibration = Calibration(by_task=dict.fromkeys(("click", "conversion", "hide"), bent))
    final = blueprint.stages[-1]
    final = replace(final, plan=replace(final.plan, calibration=calibration))
    write_bundle(out, replace(blueprint, stages=(*blueprint.stages[:-1], final)))


@pytest.fixture
def world(_published: Path, tmp_path: Path) -> Iterator[World]:
    """A bundle, and the events of 150 requests that were answered by it."""
    (tmp_path / "world").mkdir()
    made = World(_published).copy(tmp_path / "world")
    made._told = 150
    yield made
    made.store.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def say(said: list[str]) -> Callable[[str], None]:
    return said.append
