"""``tamis quickstart``: three trained stages, a bundle, a replay, and a table of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tamis.data.dataset import Dataset
from tamis.funnel.bundle import read_bundle

_ARGUMENTS = ("quickstart", "--rows", "20000", "--model", "lr", "--threads", "1")


@pytest.mark.slow(seconds=110)
@pytest.mark.timeout(1200)
def test_quickstart_trains_publishes_and_replays_three_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamis: Callable[..., Result]
) -> None:
    monkeypatch.chdir(tmp_path)

    result = tamis(*_ARGUMENTS, "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    work = Path("runs/quickstart/funnel-lr-20000-0")
    assert found["bundle"] == str(work / "bundle")
    best = found["oracle"]["test"]["click"]["ne"]
    reached = found["metrics"]["test"]["click"]["ne"]
    assert found["ne_gap"]["test"]["click"] == pytest.approx(reached - best)
    assert best < reached
    bundle = read_bundle(Path(found["bundle"]))
    assert found["release"] == bundle.release
    # What a server needs: the ads' own columns, and what it makes of events.
    assert bundle.blueprint.inventory.raw is not None
    assert [history.group for history in bundle.blueprint.online.histories] == ["history"]
    assert [stage.plan.model_name for stage in bundle.blueprint.stages] == [
        "hsnn", "early_stage", "lr"
    ]  # fmt: skip
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == ["index", "early", "final", "auction"]
    counts = [stage["candidates_out"] for stage in stages.values()]
    assert counts == sorted(counts, reverse=True)
    assert stages["index"]["candidates_in"] == len(bundle.blueprint.inventory) > counts[0]
    assert all(not stage["fallbacks"] for stage in stages.values())
    # Each stage keeps more than chance would: of the ads a third, then a quarter.
    assert stages["index"]["measures"]["soft_recall"] > 0.5
    assert stages["early"]["measures"]["value_kept"] > 0.5
    # The early stage learned from candidates of all pools, and reads less than the final one.
    cascade = Dataset.open(work / "cascade")
    assert set(cascade.split("train").role("pool")) == {0, 1, 2}
    assert bundle.blueprint.encoders.spec.sequences
    assert cascade.spec.sequences == ()
    assert {task.distils for task in cascade.spec.tasks if task.distils} == {
        "click", "conversion", "hide"
    }  # fmt: skip
    page = Path(found["report"]).read_text()
    assert "<svg" in page
    assert "Search of the index" in page

    # Given again, nothing is trained anew, and people get a table.
    before = (work / "early" / "metrics.json").stat().st_mtime_ns
    table = tamis(*_ARGUMENTS).output
    assert (work / "early" / "metrics.json").stat().st_mtime_ns == before
    says = (f"report: {found['report']}", f"serve it: tamis serve {found['bundle']}")
    for words in ("gap", "finds ads that may fit", "value kept", *says):
        assert words in table
