"""A cascade on disk: what trains, what is judged, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis import api, artifacts
from tamis.data.schema import Schema
from tamis.errors import ArtifactError, DataError
from tamis.reproduce.early.study import (
    Part,
    Study,
    first_valid_request,
    is_study,
    since,
    write_study,
)

from .conftest import SIZES, TASKS, TinyWorld


def test_datasets_hold_the_pools_that_they_are_named_after(study: Study) -> None:
    for furthest, pools in enumerate(("impressed", "scored", "rejected")):
        dataset = api.open_dataset(study.dataset(pools))
        log = study.log(pools, "train")
        assert log.num_rows == dataset.split("train").num_rows
        assert sorted(set(log.pool.tolist())) == list(range(furthest + 1))
        valid = study.log(pools, "valid")
        # A request trains or validates: the last 30 of 300 do the latter.
        assert set(valid.request) == set(range(270, 300))
        assert not set(log.request) & set(valid.request)


def test_requests_since_one_are_told_whole(parts: tuple[list[Part], list[Part]]) -> None:
    learned, judged = parts
    assert first_valid_request(learned) == 270
    found = since(learned, 150)
    assert [sorted(set(part.log.request.tolist())) for part in found] == [
        list(range(150, 200)),
        list(range(200, 300)),
    ]
    (later,) = since(judged, 1059)
    assert later.log.num_rows == later.inputs.num_rows == len(later.incumbent) == 30
    np.testing.assert_array_equal(later.truth["hide"], judged[0].truth["hide"][-30:])


def test_rows_without_impression_teach_the_distilled_tasks_alone(study: Study) -> None:
    dataset = api.open_dataset(study.dataset("rejected"))
    labels = dataset.split("train").labels()
    pool = study.log("rejected", "train").pool
    for place, task in enumerate(dataset.spec.tasks):
        known = ~np.isnan(labels[:, place])
        if task.distils:
            assert known.all(), task.name
        else:
            assert not known[pool > 0].any(), task.name
            assert known[pool == 0].any(), task.name


def test_every_candidate_of_a_test_request_is_judged(study: Study, world: TinyWorld) -> None:
    judged = study.judged()
    test = api.open_dataset(study.dataset("impressed")).split("test")
    assert np.diff(judged.offsets).tolist() == [30] * 60
    assert test.num_rows == judged.offsets[-1] == 1800
    # In the same order: predictions of the split are those of the judged rows.
    place = [task.name for task in study_tasks(study)].index("final_click")
    np.testing.assert_allclose(test.labels()[:, place], judged.final["click"], rtol=1e-6)
    np.testing.assert_array_equal(judged.bid[:30], world.ads.bid)
    assert {judged.pool.tolist().count(code) for code in (0,)} == {60 * SIZES.slots}


def study_tasks(study: Study) -> tuple:
    return api.open_dataset(study.dataset("impressed")).spec.tasks


def test_values_take_constants_for_what_is_not_predicted(study: Study) -> None:
    judged = study.judged()
    click = judged.final["click"]
    by_click = judged.billing == "click"
    expected = judged.bid * click * np.where(by_click, 1.0, 0.4) - 1.5 * 0.1
    np.testing.assert_allclose(study.values({"click": click}, judged), expected)
    assert study.tasks == TASKS


@pytest.mark.parametrize("task", ["click", "hide"])
def test_a_final_stage_that_saw_the_labels_is_refused(
    parts: tuple[list[Part], list[Part]],
    world: TinyWorld,
    early_schema_of_ads: Schema,
    tmp_path: Path,
    task: str,
) -> None:
    def leaking(part: Part) -> Part:
        known = np.nan_to_num(part.log.labels[task], nan=0.5)
        final = {**part.log.final, task: (0.05 + 0.9 * known).astype(np.float32)}
        return replace(part, log=replace(part.log, final=final))

    with pytest.raises(DataError, match=f"task '{task}': the final stage must not have seen"):
        write_study(
            tmp_path / "study",
            train=[leaking(part) for part in parts[0]],
            test=parts[1],
            schema=early_schema_of_ads,
            ads=world.ads,
            value=world.weights,
            constants={},
            sizes=SIZES,
            notes={},
        )
    assert not is_study(tmp_path / "study")


def test_a_log_of_impressions_alone_is_refused(
    parts: tuple[list[Part], list[Part]],
    world: TinyWorld,
    early_schema_of_ads: Schema,
    tmp_path: Path,
) -> None:
    def shown(part: Part) -> Part:
        rows = part.log.pool == 0
        return replace(part, log=part.log.select(rows), inputs=part.inputs.filter(pa.array(rows)))

    with pytest.raises(DataError, match="in the pool 'scored'"):
        write_study(
            tmp_path / "study",
            train=[shown(part) for part in parts[0]],
            test=parts[1],
            schema=early_schema_of_ads,
            ads=world.ads,
            value=world.weights,
            constants={},
            sizes=SIZES,
            notes={},
        )


def test_a_cascade_of_another_version_is_refused(study: Study, tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "cascade.json", {**study.record, "version": 0})
    with pytest.raises(ArtifactError, match="must be a cascade of version 2, got 0"):
        Study(tmp_path)


def test_nothing_told_is_refused(
    world: TinyWorld, early_schema_of_ads: Schema, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="requests must be told"):
        write_study(
            tmp_path,
            train=[],
            test=[],
            schema=early_schema_of_ads,
            ads=world.ads,
            value=world.weights,
            constants={},
            sizes=SIZES,
            notes={},
        )
