"""A funnel's recipe: what it may hold, and what is said where it holds something else."""

from dataclasses import replace
from pathlib import Path

import pytest

from tamis.errors import ConfigError
from tamis.funnel.cache import UserCache
from tamis.funnel.value import ValueWeights
from tamis.publishing.recipe import AdsRecipe, FunnelRecipe, StageRecipe, read_recipe

_STAGE = {"name": "final", "kind": "ranker", "keep": 4, "run": "runs/final"}


def test_whole_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "funnel.toml"
    path.write_text(
        """
        reserve = 0.5
        dataset = "data"
        [ads]
        table = "ads.csv"
        bid_unit = 1e-6
        splits = ["train"]
        [value]
        penalties = {hide = 2}
        [[stages]]
        name = "index"
        kind = "index"
        run = "runs/index"
        beams = [8, 20]
        keep = 100
        time_to_live_ms = 60000
        max_users = 5000
        [[stages]]
        name = "early"
        kind = "early"
        run = "runs/early"
        head = "mean"
        keep = 50
        budget_ms = 20
        calibration = "platt"
        [[stages]]
        name = "final"
        kind = "ranker"
        run = "runs/final"
        precision = "bfloat16"
        keep = 4
        max_ads = 1000
        """
    )

    found = read_recipe(path)

    assert found == FunnelRecipe(
        reserve=0.5,
        dataset="data",
        ads=AdsRecipe(table="ads.csv", bid_unit=1e-6, splits=("train",)),
        value=ValueWeights(penalties={"hide": 2.0}),
        stages=(
            StageRecipe(
                name="index", kind="index", run="runs/index", beams=(8, 20), keep=100,
                time_to_live_ms=60_000.0, max_users=5000,
            ),
            StageRecipe(
                name="early", kind="early", run="runs/early", head="mean", keep=50, budget_ms=20.0,
                calibration="platt",
            ),
            StageRecipe(
                name="final", kind="ranker", run="runs/final", precision="bfloat16", keep=4,
                max_ads=1000,
            ),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "popularity"}, r"'final': run must be left out for kind 'popularity', got 'runs"),
        ({"head": "label"}, r"head must be left out for kind 'ranker', got 'label'. Remove it"),
        (
            {"max_users": 7},
            r"max_users must be left out for kind 'ranker', as its predictions price the ads of "
            r"one request, in whose context they hold, got 7\. Remove it",
        ),
        ({"time_to_live_ms": 7.0}, r"time_to_live_ms must .* 'ranker', as its predictions price"),
        (
            {"kind": "popularity", "run": "", "time_to_live_ms": 7.0},
            r"time_to_live_ms must be left out for kind 'popularity', as it only reads how often",
        ),
        (
            {"kind": "popularity", "run": "", "max_ads": 7},
            r"max_ads must be left out for kind 'popularity', as it only reads how often",
        ),
        ({"kind": "early", "max_ads": 7}, r"kind 'early', as its scores of an ad are of one user"),
        ({"kind": "two_tower", "max_ads": 7}, r"'two_tower', as its scores of an ad are of one us"),
        (
            {"kind": "index", "beams": (3,), "max_ads": 7},
            r"'index', as its scores of an ad are of one user",
        ),
        (
            {"kind": "early", "max_users": 0},
            r"stage 'final': max_users must be at least 1 and time",
        ),
        ({"kind": "early", "time_to_live_ms": -1.0}, r"at least 0, got .*time_to_live_ms=-1\.0"),
        ({"max_ads": 0}, r"stage 'final': max_ads must be at least 1, got 0\. Leave it out"),
        (
            {"kind": "two_tower", "max_users": 7},
            r"stage 'final': time_to_live_ms must say how long an answer serves where max_users is "
            r"given, got max_users=7 alone\. Give both",
        ),
        (
            {"kind": "index", "beams": (3,), "time_to_live_ms": 0.0},
            r"stage 'final': cache by user: .* time_to_live_ms positive, got .*time_to_live_ms=0.0",
        ),
        (
            {"kind": "two_tower", "precision": "float32"},
            r"precision must be left out for kind 'two_tower'",
        ),
        ({"run": ""}, r"stage 'final': run must name a finished run for kind 'ranker', got none"),
        ({"name": "Final"}, r"stage 'Final': name must be of small letters"),
        (
            {"name": "auction"},
            r"stage 'auction': name must be none of 'known' and 'auction'",
        ),
        ({"keep": 0}, r"keep must be at least 1"),
        ({"kind": "index"}, r"'final': beams must say how many nodes are kept at each index level"),
        ({"beams": (3,)}, r"beams must be left out for kind 'ranker', got \(3,\)"),
        ({"kind": "early", "by_bid": False}, r"by_bid must be left out for kind 'early'"),
        ({"kind": "two_tower", "beams": (3,)}, r"beams must be left out for kind 'two_tower'"),
        ({"kind": "index", "run": "", "beams": (3,)}, r"run must name a finished run for kind 'in"),
    ],
)
def test_stage_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StageRecipe(**{**_STAGE, **changes})


def test_answers_of_stages_that_search_are_kept_where_a_time_is_given() -> None:
    plain = StageRecipe(**{**_STAGE, "kind": "two_tower"})
    kept = replace(plain, time_to_live_ms=60_000.0)

    assert plain.user_cache() is None
    assert kept.user_cache() == UserCache(time_to_live_ms=60_000.0, max_users=100_000)
    assert replace(kept, max_users=9).user_cache() == UserCache(
        time_to_live_ms=60_000.0, max_users=9
    )
    # An early stage keeps vectors of its own.
    assert replace(kept, kind="early").user_cache() is None


def test_dataset_is_named_where_no_run_has_one() -> None:
    popular = StageRecipe(name="popular", kind="popularity", keep=3)

    with pytest.raises(ConfigError, match=r"dataset: must be named where no stage has a run"):
        FunnelRecipe(stages=(popular,))
    assert FunnelRecipe(stages=(popular,), dataset="data").ads.splits == ("train", "valid")


@pytest.mark.parametrize("changes", [{"bid_unit": 0.0}, {"splits": ()}])
def test_ads_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=r"bid_unit must be positive and splits name at least"):
        AdsRecipe(**changes)


def test_file_and_key_are_named(tmp_path: Path) -> None:
    path = tmp_path / "funnel.toml"
    path.write_text('[[stages]]\nname = "a"\nkind = "popularity"\nkeeps = 3\n')

    with pytest.raises(ConfigError, match=r"funnel.toml: stages\[0\].keeps: must be a known key"):
        read_recipe(path)
