"""One market of 300,000 impressions that the tests of its statistics share."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.market import simulate


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("market") / "m"
    simulate(300_000, out, seed=5)
    return out


@pytest.fixture(scope="session")
def log(market: Path) -> pa.Table:
    return pq.read_table(market / "logs")


@pytest.fixture(scope="session")
def truth(market: Path) -> pa.Table:
    return pq.read_table(market / "truth")
