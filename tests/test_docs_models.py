"""docs/models.md names every model once, and its model of one's own trains."""

import inspect
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.errors import ConfigError
from tamis.models.catalog import CATALOG

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def test_every_model_stands_on_the_page_once_with_its_file() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\((\S+)\) \|", PAGE.read_text(), flags=re.M)

    assert sorted(name for name, _ in rows) == list(CATALOG)
    for name, path in rows:
        assert (PAGE.parent / path).resolve() == Path(inspect.getfile(CATALOG[name].model))


def test_every_model_that_is_recommended_is_one() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE.read_text().split("## Fields")[0])) - {"side"}

    assert len(named) > 10
    assert named <= set(CATALOG)


@pytest.mark.slow
def test_model_of_ones_own_passes_the_suite_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tamis.models.catalog.CATALOG", dict(CATALOG))
    generator = np.random.default_rng(0)
    user = generator.integers(0, 50, 3000)
    clicks = (generator.random(3000) < 0.1 + 0.5 * (user % 2)).astype(np.int64)
    log = pa.table({"user": user, "ad": generator.integers(0, 40, 3000), "click": clicks})
    pyarrow.csv.write_csv(log, tmp_path / "clicks.csv")
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    code = compile(snippet, str(PAGE), "exec")
    found: dict[str, object] = {"__name__": "snippet"}

    # The page is ours, and a test that runs it is the point.
    exec(code, found)  # noqa: S102

    run = found["run"]
    assert run.metrics["test"]["click"]["auc"] > 0.6  # type: ignore[attr-defined]
    assert "plain" not in CATALOG


def test_a_plain_log_suffices_for_every_model_that_is_said_to_need_no_sides() -> None:
    named = re.findall(r"`(\w+)`", PAGE.read_text().split(", whose schema must say")[0])
    assert named[-3:] == ["two_tower", "hsnn", "early_stage"]
    spec = InputSpec(
        numeric=("price",),
        categorical=tuple(CategoricalInput(name=n, table=n) for n in ("user", "ad")),
        sequences=(),
        tables=(Table(name="user", num_rows=9), Table(name="ad", num_rows=9)),
        tasks=(Task(name="click"),),
    )

    for name, entry in CATALOG.items():
        if name in named:
            with pytest.raises(ConfigError, match=r"side 'user'|user's side"):
                entry.model(entry.config(), spec)
        else:
            entry.model(entry.config(), spec)
