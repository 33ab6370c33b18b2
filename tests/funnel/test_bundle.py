"""A published funnel gives the same bits; what is altered or of several publishings is refused."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tamis import artifacts
from tamis.data.dataset import Dataset
from tamis.errors import ArtifactError, ConfigError, DataError, StorageError
from tamis.funnel import bundle
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.bundle import load_bundle, read_bundle, write_bundle
from tamis.funnel.funnel import Funnel
from tamis.funnel.log import logged_requests
from tamis.funnel.online import Counter, History, OnlineFeatures
from tamis.funnel.request import Request
from tamis.funnel.trace import Trace


@pytest.fixture(scope="session")
def _published(blueprint: Blueprint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "first"
    write_bundle(path, blueprint)
    # Another publishing of the same stages, with other constants.
    other = replace(blueprint, reserve=0.02)
    write_bundle(path.with_name("second"), other)
    return path


@pytest.fixture
def published(_published: Path, tmp_path: Path) -> Path:
    """A copy of a bundle that a test may harm; ``second`` lies beside it."""
    shutil.copytree(_published.parent, tmp_path / "bundles")
    return tmp_path / "bundles" / "first"


def _requests(data: Dataset, blueprint: Blueprint, count: int) -> Iterator[Request]:
    codes = blueprint.inventory.codes
    for request in logged_requests(data.split("train"), data.spec, codes):
        if count == 0:
            return
        count -= 1
        yield request


def _answers(funnel: Funnel, requests: list[Request]) -> list[Trace]:
    return [funnel.answer(request) for request in requests]


def test_published_funnel_gives_the_same_bits(
    published: Path, blueprint: Blueprint, market_data: Dataset
) -> None:
    requests = list(_requests(market_data, blueprint, 40))

    before = _answers(blueprint.build(), requests)
    after = _answers(load_bundle(published), requests)

    for first, second in zip(before, after, strict=True):
        for one, other in zip(first.stages, second.stages, strict=True):
            assert (one.name, one.fallback, one.cache_hits) == (other.name, "", other.cache_hits)
            assert one.ads.tolist() == other.ads.tolist()
            assert one.scores.tolist() == other.scores.tolist()
            assert (one.flops, one.scored_pairs) == (other.flops, other.scored_pairs)
        assert first.slate.ads.tolist() == second.slate.ads.tolist()
        for name in ("prices", "values", "rates"):
            assert getattr(first.slate, name).tolist() == getattr(second.slate, name).tolist()
    # Every request has scores of its own, and not all have one slate.
    assert len({tuple(trace.stages[2].scores.tolist()) for trace in before}) == 40
    assert len({tuple(trace.slate.ads.tolist()) for trace in before}) > 3
    assert [len(stage.ads) for stage in before[0].stages] == [60, 12, 6]


def test_reading_gives_what_was_written(published: Path, blueprint: Blueprint) -> None:
    found = read_bundle(published).blueprint

    assert found.weights == blueprint.weights
    assert (found.reserve, found.encoders.spec) == (blueprint.reserve, blueprint.encoders.spec)
    assert [stage.budget for stage in found.stages] == [stage.budget for stage in blueprint.stages]
    assert [stage.plan.kind for stage in found.stages] == ["popularity", "early", "ranker"]


def test_online_features_are_published_and_checked(blueprint: Blueprint, tmp_path: Path) -> None:
    online = OnlineFeatures(
        histories=(History(group="history", event="conversion"),),
        counters=(Counter(field="user_requests", counts="request"),),
    )
    write_bundle(tmp_path / "made", replace(blueprint, online=online))

    assert read_bundle(tmp_path / "made").blueprint.online == online
    unknown = OnlineFeatures(histories=(History(group="past"),))
    with pytest.raises(ConfigError, match=r"group 'past': must be a sequence group of the schema"):
        write_bundle(tmp_path / "refused", replace(blueprint, online=unknown))


def test_bundle_of_an_earlier_version_says_less(
    blueprint: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json = artifacts.write_json

    def without(path: Path, record: dict) -> None:
        later = ("online", "trained_until")
        write_json(path, {name: item for name, item in record.items() if name not in later})

    monkeypatch.setattr(artifacts, "write_json", without)
    write_bundle(tmp_path / "older", blueprint)

    found = read_bundle(tmp_path / "older").blueprint
    assert (found.online, found.trained_until) == (OnlineFeatures(), None)


def test_release_names_the_contents(published: Path, blueprint: Blueprint, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again", blueprint)

    assert read_bundle(published).release == again
    assert read_bundle(published.with_name("second")).release != again
    # Publishing what was read is publishing the same.
    assert write_bundle(tmp_path / "copy", read_bundle(published).blueprint) == again
    manifest = json.loads((published / "manifest.json").read_text())
    assert manifest["made_with"].keys() == {"tamis", "torch", "numpy", "safetensors"}
    parts = ["funnel", "inputs", "ads", "stages/popular", "stages/early", "stages/final"]
    assert sorted(manifest["parts"]) == sorted(parts)


def test_nothing_in_a_bundle_is_pickled(published: Path) -> None:
    endings = {path.suffix for path in published.rglob("*") if path.is_file()}

    assert endings == {".json", ".safetensors", ".toml", ".arrow"}


@pytest.mark.parametrize("part", ["stages/early", "funnel", "inputs", "ads"])
def test_part_of_another_publishing_is_named(published: Path, part: str) -> None:
    ours = read_bundle(published).release[:12]
    theirs = read_bundle(published.with_name("second")).release[:12]
    shutil.rmtree(published / part)
    shutil.copytree(published.with_name("second") / part, published / part)

    with pytest.raises(ArtifactError) as caught:
        load_bundle(published)

    message = str(caught.value)
    assert f"must hold parts of one publishing, got {part} of release {theirs} beside " in message
    assert f"of release {ours}. Put back the parts" in message
    assert message.count(part) == 1


def test_all_parts_that_do_not_belong_together_are_named(published: Path) -> None:
    for part in ("stages/early", "ads"):
        shutil.rmtree(published / part)
        shutil.copytree(published.with_name("second") / part, published / part)

    with pytest.raises(ArtifactError, match=r"got ads of release \w+, stages/early of release"):
        load_bundle(published)


def test_part_that_was_altered_and_sealed_anew_is_refused(published: Path) -> None:
    part = published / "stages" / "early"
    (part / "calibration.json").write_text("{}")
    artifacts.write_manifest(
        part,
        kind="part of a bundle",
        version=1,
        files=[path for path in part.rglob("*.*") if path.name != "manifest.json"],
        payload={"release": json.loads((published / "manifest.json").read_text())["release"]},
    )

    with pytest.raises(ArtifactError, match=r"early: must hold what was published, got other"):
        load_bundle(published)


@pytest.mark.parametrize(
    "name",
    [
        "funnel/funnel.json",
        "inputs/schema.toml",
        "inputs/encoders/encoders.json",
        "ads/ads.safetensors",
        "stages/early/model.safetensors",
        "stages/early/encoders/encoders.json",
        "stages/final/model.json",
    ],
)
def test_altered_and_missing_files_are_named(published: Path, name: str) -> None:
    path = published / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(ArtifactError, match=rf"{name}: must have sha256 .* It was altered"):
        load_bundle(published)
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: must exist, its manifest names it"):
        load_bundle(published)


def test_missing_part_is_named(published: Path) -> None:
    shutil.rmtree(published / "stages" / "final")

    with pytest.raises(ArtifactError, match=r"stages/final: must be a finished part of a bundle"):
        load_bundle(published)


def test_altered_manifest_is_refused(published: Path) -> None:
    path = published / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["parts"]["stages/final"]
    path.write_text(json.dumps(manifest))

    with pytest.raises(ArtifactError, match=r"must name the parts of its release \w+, got others"):
        load_bundle(published)


@pytest.mark.parametrize("place", ["", "stages/final"])
def test_other_version_is_refused(published: Path, place: str) -> None:
    path = published / place / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))

    with pytest.raises(ArtifactError, match=r"and version 1, got '.*bundle' of version 2"):
        load_bundle(published)


def test_stage_of_an_unknown_kind_is_refused(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "PLANS", {})

    with pytest.raises(ArtifactError, match=r"must describe stages that this tamis knows, got 'p"):
        load_bundle(published)


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"must be a finished bundle with a manifest.json"):
        load_bundle(tmp_path)


def test_taken_place_is_left_alone(published: Path, blueprint: Blueprint) -> None:
    before = read_bundle(published).release

    with pytest.raises(DataError, match=r"first: must not exist or be empty, got files in it"):
        write_bundle(published, replace(blueprint, reserve=0.5))
    assert read_bundle(published).release == before


def test_failed_publishing_leaves_nothing(
    blueprint: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise StorageError("full")

    monkeypatch.setattr(bundle, "write_inventory", fail)

    with pytest.raises(StorageError):
        write_bundle(tmp_path / "b", blueprint)
    assert list(tmp_path.iterdir()) == []


def test_bundle_is_on_the_disk_before_its_manifest_and_its_name_after(
    blueprint: Blueprint, tmp_path: Path, synced: list[int]
) -> None:
    path = tmp_path / "b"

    write_bundle(path, blueprint)

    sealed = synced.index((path / "manifest.json").stat().st_ino)
    parts = {part for part in path.rglob("*") if part != path / "manifest.json"}
    assert {part.stat().st_ino for part in parts} <= set(synced[:sealed])
    assert tmp_path.stat().st_ino in synced[sealed:]


def test_what_makes_no_funnel_is_not_published(blueprint: Blueprint, tmp_path: Path) -> None:
    backwards = replace(blueprint, stages=blueprint.stages[::-1])

    with pytest.raises(ConfigError, match=r"stage 'early': keep must be at most the 6 that stage"):
        write_bundle(tmp_path / "b", backwards)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def _indexed(searched: Blueprint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexed") / "first"
    write_bundle(path, searched)
    # The same models around fewer ads.
    write_bundle(path.with_name("second"), searched.without_ads(searched.inventory.codes[:5]))
    return path


@pytest.fixture
def indexed(_indexed: Path, tmp_path: Path) -> Path:
    """A copy of a bundle with an index; ``second`` lies beside it."""
    shutil.copytree(_indexed.parent, tmp_path / "indexed")
    return tmp_path / "indexed" / "first"


def test_published_index_gives_the_same_bits(
    indexed: Path, searched: Blueprint, market_data: Dataset
) -> None:
    requests = list(_requests(market_data, searched, 20))

    before = _answers(searched.build(), requests)
    after = _answers(load_bundle(indexed), requests)

    for first, second in zip(before, after, strict=True):
        for one, other in zip(first.stages, second.stages, strict=True):
            assert (one.fallback, other.fallback) == ("", "")
            assert one.ads.tolist() == other.ads.tolist()
            assert one.scores.tolist() == other.scores.tolist()
            assert one.levels == other.levels
        assert len(first.stages[0].levels) == 3
        assert first.slate.to_json() == second.slate.to_json()
    assert len({tuple(trace.stages[0].ads.tolist()) for trace in before}) > 10


def test_ads_of_a_loaded_bundle_come_and_go_and_it_is_published_anew(
    indexed: Path, searched: Blueprint, market_data: Dataset, tmp_path: Path
) -> None:
    loaded = read_bundle(indexed).blueprint
    (request,) = _requests(market_data, searched, 1)
    winner = loaded.build().answer(request).slate.ads[:1]
    gone = loaded.inventory.codes[winner]

    left = loaded.without_ads(gone)
    write_bundle(tmp_path / "left", left)

    again = read_bundle(tmp_path / "left").blueprint
    trace = again.build().answer(request)
    assert not np.isin(gone, again.inventory.codes[trace.slate.ads]).any()
    assert trace.slate.to_json() == left.build().answer(request).slate.to_json()
    # Loaded bundles are values: the first one still has it.
    assert loaded.build().answer(request).slate.ads[:1] == winner


@pytest.mark.parametrize("part", ["stages/index", "ads"])
def test_index_beside_ads_of_another_publishing_is_refused(indexed: Path, part: str) -> None:
    shutil.rmtree(indexed / part)
    shutil.copytree(indexed.with_name("second") / part, indexed / part)

    with pytest.raises(ArtifactError, match=rf"parts of one publishing, got {part} of release"):
        load_bundle(indexed)


def test_altered_index_is_named(indexed: Path) -> None:
    path = indexed / "stages" / "index" / "index" / "index.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    with pytest.raises(ArtifactError, match=r"index/index.safetensors: must have sha256"):
        load_bundle(indexed)


def test_empty_folder_is_a_place(blueprint: Blueprint, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()

    write_bundle(tmp_path / "b", blueprint)

    assert np.array_equal(
        read_bundle(tmp_path / "b").blueprint.inventory.codes, blueprint.inventory.codes
    )
