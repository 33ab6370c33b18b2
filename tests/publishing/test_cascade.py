"""Rows for an early stage: the log's own, and those of candidates that nobody was shown."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tamis import api
from tamis.data.dataset import Dataset, Split
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.loader import Loader
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import ConfigError, DataError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.publishing.cascade import CascadeSampling, write_cascade
from tamis.publishing.make import make_blueprint
from tamis.publishing.recipe import FunnelRecipe, StageRecipe
from tamis.training.predict import load_trained

pytestmark = pytest.mark.slow

_SAMPLING = CascadeSampling(requests=40, scored=6, rejected=3, weight_cap=4.0, seed=1)
_TASKS = ("click", "conversion", "hide")


@pytest.fixture(scope="module")
def teacher(market_world: Path) -> Blueprint:
    stages = (
        StageRecipe(
            name="index", kind="index", keep=20, run=str(market_world / "index"), beams=(3,)
        ),
        StageRecipe(name="final", kind="ranker", keep=5, run=str(market_world / "final")),
    )
    return make_blueprint(FunnelRecipe(stages=stages))


@pytest.fixture(scope="module")
def log(market_world: Path) -> Dataset:
    return Dataset.open(market_world / "data")


@pytest.fixture(scope="module")
def cascade(teacher: Blueprint, log: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("cascade") / "data"
    return write_cascade(teacher, log, out, sampling=_SAMPLING)


def _is_shown(cascade: Dataset, split: str) -> np.ndarray:
    return _is_shown_in(cascade.split(split))


def _is_shown_in(split: Split) -> np.ndarray:
    return ~np.isnan(split.labels()[:, 0])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_impressions_are_those_of_the_log(cascade: Dataset, log: Dataset, split: str) -> None:
    shown = _is_shown(cascade, split)
    ours, theirs = cascade.split(split), log.split(split)

    np.testing.assert_array_equal(ours.labels()[shown, :3], theirs.labels())
    np.testing.assert_array_equal(ours.rows()[shown], theirs.rows())
    for name in ("user_id", "ad_id", "position"):
        np.testing.assert_array_equal(ours.ids(name)[shown], theirs.ids(name))
    for role in ("request", "item", "user", "time"):
        np.testing.assert_array_equal(ours.role(role)[shown], theirs.role(role))
    weights = ours.weights()
    assert weights is not None
    assert (weights[shown] == 1).all()
    # The final stage has seen the labels of its training split.
    is_known = ~np.isnan(ours.labels()[shown, 3:])
    assert not is_known.any() if split == "train" else is_known.any(axis=1).mean() > 0.5


def test_predictions_of_later_impressions_are_what_the_final_model_says_of_the_rows(
    cascade: Dataset, log: Dataset, teacher: Blueprint, market_world: Path
) -> None:
    (batch,) = Loader(log.split("valid"), log.spec, batch_size=10_000, shuffle=False).epoch(0)
    item = log.split("valid").role("item")
    assert item is not None
    known = np.isin(item, teacher.inventory.codes)

    with torch.inference_mode():
        logits = load_trained(market_world / "final").module.eval()(batch).logits

    shown = _is_shown(cascade, "valid")
    found = cascade.split("valid").labels()[shown, 3:]
    np.testing.assert_allclose(found[known], logits.sigmoid().numpy()[known], rtol=1e-5)
    assert np.isnan(found[~known]).all()


def test_candidates_are_drawn_from_what_the_index_keeps_and_from_the_rest(
    cascade: Dataset, log: Dataset, teacher: Blueprint
) -> None:
    split, others = cascade.split("train"), ~_is_shown(cascade, "train")
    assert np.isnan(split.labels()[others, :3]).all()
    request, item, weights = split.role("request"), split.role("item"), split.weights()
    assert request is not None
    assert item is not None
    assert weights is not None
    asked = np.unique(request[others])
    assert len(asked) == 40
    retrieval = replace(teacher, stages=teacher.stages[:1]).build()
    (batch,) = Loader(log.split("train"), log.spec, batch_size=10_000, shuffle=False).epoch(0)
    codes = teacher.inventory.codes
    of_log = log.split("train").role("request")
    shown_items = log.split("train").role("item")
    assert of_log is not None
    assert shown_items is not None
    for number in asked.tolist():
        mine = others & (request == number)
        rows = np.flatnonzero(of_log == number)
        features = batch.take(torch.from_numpy(rows[:1]))
        kept = codes[
            retrieval.answer(
                Request(request_id=number, user=0, time_micros=0, slots=1, features=features)
            )
            .stages[0]
            .ads
        ]
        shown = shown_items[rows]
        drawn = item[mine]
        assert len(np.unique(drawn)) == len(drawn) == 9
        assert not np.isin(drawn, shown).any()
        is_scored = np.isin(drawn, kept)
        assert is_scored.sum() == 6
        open_kept = int((~np.isin(kept, shown)).sum())
        left = len(codes) - open_kept - len(np.unique(shown))
        expected = np.where(is_scored, min(open_kept / 6, 4.0), min(left / 3, 4.0))
        np.testing.assert_allclose(weights[mine], expected, rtol=1e-6)


def test_candidates_are_distilled_by_what_the_final_model_says_of_their_rows(
    cascade: Dataset, market_world: Path
) -> None:
    (batch,) = Loader(cascade.split("train"), cascade.spec, batch_size=10_000, shuffle=False).epoch(
        0
    )
    others = ~_is_shown(cascade, "train")

    with torch.inference_mode():
        logits = load_trained(market_world / "final").module.eval()(batch).logits

    np.testing.assert_allclose(
        cascade.split("train").labels()[others, 3:],
        logits.sigmoid().numpy()[others],
        rtol=1e-5,
    )


@pytest.fixture(scope="module")
def with_early(market_world: Path) -> Blueprint:
    """A teacher that has an early stage already."""
    runs = {name: str(market_world / name) for name in ("index", "early", "final")}
    return make_blueprint(
        FunnelRecipe(
            stages=(
                StageRecipe(name="index", kind="index", keep=60, run=runs["index"], beams=(6,)),
                StageRecipe(name="early", kind="early", keep=12, run=runs["early"]),
                StageRecipe(name="final", kind="ranker", keep=5, run=runs["final"]),
            )
        )
    )


@pytest.mark.parametrize(("rejected", "num_near"), [(7, 4), (1, 0)])
def test_half_of_the_rejected_is_just_below_the_cut_of_an_early_stage(
    with_early: Blueprint, log: Dataset, tmp_path: Path, rejected: int, num_near: int
) -> None:
    sampling = replace(_SAMPLING, scored=2, rejected=rejected)
    split = write_cascade(with_early, log, tmp_path / "data", sampling=sampling).split("train")

    pool, rate, weights = split.role("pool"), split.role("sampling_rate"), split.weights()
    request, item = split.role("request"), split.role("item")
    of_log, shown = (log.split("train").role(name) for name in ("request", "item"))
    assert pool is not None
    assert rate is not None
    assert request is not None
    assert item is not None
    assert of_log is not None
    assert shown is not None
    np.testing.assert_array_equal(pool == 0, _is_shown_in(split))
    assert (rate[pool == 0] == 1).all()
    np.testing.assert_allclose(weights, np.minimum(1 / rate, 4.0), rtol=1e-6)
    (batch,) = Loader(log.split("train"), log.spec, batch_size=10_000, shuffle=False).epoch(0)
    codes, far = with_early.inventory.codes, []
    for number in np.unique(request[pool > 0]).tolist():
        rows = np.flatnonzero(of_log == number)
        features = batch.take(torch.from_numpy(rows[:1]))
        asked = Request(request_id=number, user=0, time_micros=0, slots=1, features=features)
        orders: list[Candidates] = []
        replace(with_early, stages=with_early.stages[:2]).build().answer(
            asked, observe=orders.append
        )
        order = codes[orders[1].best(60, seed=number).ads]
        kept, below = (ads[~np.isin(ads, shown[rows])] for ads in (order[:12], order[12:]))
        mine = request == number
        assert set(item[mine & (pool == 1)]) <= set(kept)
        np.testing.assert_allclose(rate[mine & (pool == 1)], 2 / len(kept))
        turned_away = mine & (pool == 2)
        assert len(set(item[turned_away])) == turned_away.sum() == min(rejected, len(below))
        rank_of = {code: rank for rank, code in enumerate(below.tolist())}
        rank = np.array([rank_of[code] for code in item[turned_away].tolist()])
        assert sorted(rank)[:num_near] == [*range(num_near)]
        left = len(below) - num_near
        expected = np.where(rank < num_near, 1.0, min((rejected - num_near) / left, 1.0))
        np.testing.assert_allclose(rate[turned_away], expected)
        far += (rank[rank >= num_near] / len(below)).tolist()
    # Not the next ones in order, but from anywhere further down.
    assert np.max(far) > 0.8
    assert np.min(far) < 0.3


def test_vectors_that_are_given_go_along(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    item = generator.integers(0, 30, 900)
    rows = {
        "user": generator.integers(0, 40, 900),
        "item": item,
        "request": np.arange(900) // 3,
        "click": (generator.random(900) < 0.1 + 0.5 * (item % 2)).astype(int),
    }
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    looks = pa.table({"key": np.arange(30), "value": generator.normal(size=(30, 4)).tolist()})
    pq.write_table(looks, tmp_path / "looks.parquet")
    schema = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="item", kind="categorical", side="item"),
            Field(name="look", kind="categorical", column="item", side="item", vectors=4),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(user="user", item="item", request="request"),
    )
    log = api.ingest(
        tmp_path / "log.parquet",
        tmp_path / "data",
        schema=schema,
        vectors={"look": tmp_path / "looks.parquet"},
    )
    for name, model in (("towers", "two_tower"), ("final", "deepfm")):
        options = ["training.max_epochs=1", "model.embedding_dim=4"]
        api.train(log, model=model, run=tmp_path / name, settings=options, report=False)
    stages = (
        StageRecipe(name="towers", kind="two_tower", keep=20, run=str(tmp_path / "towers")),
        StageRecipe(name="final", kind="ranker", keep=5, run=str(tmp_path / "final")),
    )
    teacher = make_blueprint(FunnelRecipe(stages=stages))
    found = write_cascade(teacher, log, tmp_path / "cascade", sampling=_SAMPLING)

    np.testing.assert_array_equal(found.given_rows()["look"], log.given_rows()["look"])
    early = api.train(found, model="early_stage", run=tmp_path / "early",
                      settings=["training.max_epochs=1"], report=False)  # fmt: skip
    assert early.status == "finished"


def test_pool_and_rate_are_no_inputs(cascade: Dataset, log: Dataset) -> None:
    assert replace(cascade.spec, tasks=()) == replace(log.spec, tasks=())
    assert {"pool", "sampling_rate"} <= {item.column for item in cascade.schema.ignored}
    for name in cascade.split_names:
        split = cascade.split(name)
        pool, rate, weights = split.role("pool"), split.role("sampling_rate"), split.weights()
        np.testing.assert_array_equal(pool == 0, _is_shown(cascade, name))
        assert np.bincount(pool).min() > 0
        np.testing.assert_allclose(weights, np.minimum(1 / rate, 4.0), rtol=1e-6)


def test_candidates_are_those_that_an_early_stage_keeps_for_the_user_of_each_request(
    with_early: Blueprint, log: Dataset, tmp_path: Path
) -> None:
    blueprint = with_early
    sampling = replace(_SAMPLING, scored=12, rejected=0)  # all that nobody saw are drawn
    split = write_cascade(blueprint, log, tmp_path / "data", sampling=sampling).split("train")

    others, request, item = (
        np.isnan(split.labels()[:, 0]),
        split.role("request"),
        split.role("item"),
    )
    of_log, shown = (log.split("train").role(name) for name in ("request", "item"))
    assert request is not None
    assert item is not None
    assert of_log is not None
    assert shown is not None
    (batch,) = Loader(log.split("train"), log.spec, batch_size=10_000, shuffle=False).epoch(0)
    for number in np.unique(request[others]).tolist():
        rows = np.flatnonzero(of_log == number)
        features = batch.take(torch.from_numpy(rows[:1]))
        # A new funnel for each, so that no vector is of another user.
        earlier = replace(blueprint, stages=blueprint.stages[:2]).build()
        asked = Request(request_id=number, user=0, time_micros=0, slots=1, features=features)
        kept = blueprint.inventory.codes[earlier.answer(asked).stages[1].ads]
        drawn = item[others & (request == number)]
        assert set(drawn.tolist()) == set(kept.tolist()) - set(shown[rows].tolist())


@pytest.mark.parametrize("split", ["train", "valid"])
def test_candidates_have_the_fields_of_their_last_row_before_the_request(
    cascade: Dataset, log: Dataset, split: str
) -> None:
    ours, others = cascade.split(split), ~_is_shown(cascade, split)
    splits = [log.split(name) for name in ("train", "valid", "test")]
    names = {"ids": ("ad_id", "category"), "numeric": ("price", "ad_click_rate", "budget_left")}
    columns = {
        name: np.concatenate([getattr(part, kind)(name) for part in splits])
        for kind, group in names.items()
        for name in group
    }
    shown = np.concatenate([part.role("item") for part in splits])
    before = 0 if split == "train" else splits[0].num_rows
    first = before + np.searchsorted(log.split(split).rows(), ours.rows()[others])
    expected = []
    for row, code in zip(first.tolist(), ours.role("item")[others].tolist(), strict=True):
        rows = np.flatnonzero(shown == code)
        earlier = rows[rows < row]
        expected.append(earlier[-1] if len(earlier) else rows[0])

    assert len(np.unique(columns["ad_click_rate"][expected])) > 10  # else any row would do
    for kind, group in names.items():
        for name in group:
            found = getattr(ours, kind)(name)[others]
            np.testing.assert_array_equal(found, columns[name][expected])


def test_fields_of_ads_are_the_same_however_many_rows_are_read_at_a_time(
    cascade: Dataset,
    log: Dataset,
    teacher: Blueprint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tamis.publishing.cascade._ROWS_AT_A_TIME", 97)

    found = write_cascade(teacher, log, tmp_path / "data", sampling=_SAMPLING)

    for name in log.split_names:
        ours, theirs = (
            data.split(name).numeric("ad_click_rate")[_in_order(data, name)]
            for data in (found, cascade)
        )
        np.testing.assert_array_equal(ours, theirs)


def _in_order(cascade: Dataset, name: str) -> np.ndarray:
    """Rows of the log one after another, and after each the candidates beside it."""
    split = cascade.split(name)
    return np.lexsort((split.role("item"), ~_is_shown(cascade, name), split.rows()))


def test_candidates_have_the_fields_of_user_and_context_of_their_request(
    cascade: Dataset, log: Dataset
) -> None:
    split, others = cascade.split("train"), ~_is_shown(cascade, "train")
    at = np.searchsorted(log.split("train").rows(), split.rows()[others])
    for name in ("user_id", "age", "device", "position"):
        np.testing.assert_array_equal(split.ids(name)[others], log.split("train").ids(name)[at])
    whole, own = (
        data.columns.read_jagged("history_ads", 0, data.num_rows)[1]
        for data in (split, log.split("train"))
    )
    np.testing.assert_array_equal(whole[others], own[at])


def _small_log(folder: Path, request: list[int | None], weight: np.ndarray) -> Dataset:
    generator, count = np.random.default_rng(0), len(request)
    rows = pa.table(
        {
            "user": np.arange(count) // 4 % 7,
            "ad": generator.integers(0, 20, count),
            "request": request,
            "time": 1_700_000_000 + np.arange(count),
            "click": generator.integers(0, 2, count),
            "w": weight,
        }
    )
    pq.write_table(rows, folder / "log.parquet")
    schema = Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="ad", kind="categorical", side="item"),
        ),
        tasks=(Task(name="click"),),
        roles=Roles(time="time", user="user", item="ad", request="request", weight="w"),
    )
    return api.ingest(folder / "log.parquet", folder / "data", schema=schema)


def _small_teacher(folder: Path, data: Dataset) -> Blueprint:
    api.train(data, model="lr", settings=["training.max_epochs=1"], run=folder / "lr",
              report=False)  # fmt: skip
    stages = (
        StageRecipe(name="popular", kind="popularity", keep=10),
        StageRecipe(name="final", kind="ranker", keep=5, run=str(folder / "lr")),
    )
    return make_blueprint(FunnelRecipe(stages=stages))


def test_weights_of_the_log_stay_and_weigh_the_candidates_beside_it(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).integers(1, 5, 1200) * 1.0
    data = _small_log(tmp_path, [at // 4 for at in range(1200)], weight)
    blueprint = _small_teacher(tmp_path, data)
    sampling = replace(_SAMPLING, rejected=0, weight_cap=1.0)

    cascade = write_cascade(blueprint, data, tmp_path / "cascade", sampling=sampling)

    split, shown = cascade.split("train"), _is_shown(cascade, "train")
    np.testing.assert_array_equal(split.weights()[shown], weight[split.rows()[shown]])
    of_request = weight.reshape(-1, 4).mean(1)[split.rows()[~shown] // 4]
    np.testing.assert_allclose(split.weights()[~shown], of_request, rtol=1e-6)


@pytest.mark.parametrize(
    ("request_of_row", "message"),
    [
        (
            lambda at: at // 8 * 2 + at % 2,
            r"split 'train', row 2: the rows of a request must follow one another",
        ),
        (lambda at: None if at == 9 else at // 4, r"split 'train', row 9: must belong to a req"),
    ],
)
def test_requests_whose_rows_are_not_together_are_refused(
    tmp_path: Path, request_of_row: Callable[[int], int | None], message: str
) -> None:
    data = _small_log(tmp_path, [request_of_row(at) for at in range(400)], np.ones(400))

    with pytest.raises(DataError, match=message):
        write_cascade(
            _small_teacher(tmp_path, data), data, tmp_path / "cascade", sampling=_SAMPLING
        )


def test_fields_that_the_early_stage_does_not_read_are_left_out_and_nothing_else(
    cascade: Dataset, teacher: Blueprint, log: Dataset, tmp_path: Path
) -> None:
    whole = Encoders.load(log.encoders_path, log.schema)
    reads = whole.without(["history_ads", "history_categories", "user_requests"])

    narrow = write_cascade(teacher, log, tmp_path / "data", sampling=_SAMPLING, reads=reads)

    assert narrow.spec == replace(reads.spec, tasks=cascade.spec.tasks)
    assert not narrow.spec.sequences
    assert "user_requests" not in narrow.spec.numeric
    left = {"history_ads", "history_categories", "user_requests"}
    for name in log.split_names:
        ours, theirs = narrow.split(name).columns, cascade.split(name).columns
        assert set(theirs.names) - set(ours.names) == left
        for column in ours.names:  # what the final stage says, which reads them, too
            np.testing.assert_array_equal(ours.read(column), theirs.read(column))
    encoders = Encoders.load(narrow.encoders_path, narrow.schema)
    assert InputSelection(reads, encoders, where="test").changes_nothing


def test_dataset_is_encoded_as_the_log_is(cascade: Dataset, log: Dataset) -> None:
    encoders = [Encoders.load(data.encoders_path, data.schema) for data in (log, cascade)]

    assert InputSelection(encoders[0], encoders[1], where="test").changes_nothing
    assert [task.name for task in cascade.spec.tasks] == [
        *_TASKS, *(f"final_{task}" for task in _TASKS)
    ]  # fmt: skip
    assert [task.distils for task in cascade.spec.tasks[3:]] == list(_TASKS)
    assert cascade.schema.roles.weight == "weight"


def test_same_seed_draws_the_same_candidates(
    cascade: Dataset, teacher: Blueprint, log: Dataset, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []

    again = write_cascade(
        teacher, log, tmp_path / "again", sampling=_SAMPLING,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    other = write_cascade(teacher, log, tmp_path / "other", sampling=replace(_SAMPLING, seed=2))

    assert again.fingerprint == cascade.fingerprint != other.fingerprint
    # A tenth of the rows each for validation and test, so an eighth of the requests.
    assert told[-1] == (50, 50)


def test_stages_may_take_their_time_as_nobody_waits(
    with_early: Blueprint, log: Dataset, tmp_path: Path
) -> None:
    hurried = replace(
        with_early,
        stages=tuple(
            replace(stage, budget=replace(stage.budget, budget_ms=1e-3))
            for stage in with_early.stages
        ),
    )
    sampling = replace(_SAMPLING, requests=20)

    found = write_cascade(hurried, log, tmp_path / "hurried", sampling=sampling)

    patient = write_cascade(with_early, log, tmp_path / "patient", sampling=sampling)
    assert found.fingerprint == patient.fingerprint


def test_what_cannot_teach_is_refused(teacher: Blueprint, log: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cascade: must have a stage before the final one, got"):
        write_cascade(
            replace(teacher, stages=teacher.stages[1:]), log, tmp_path / "a", sampling=_SAMPLING
        )
    backwards = replace(
        teacher,
        stages=(
            replace(teacher.stages[1], budget=replace(teacher.stages[1].budget, keep=30)),
            teacher.stages[0],
        ),
    )
    with pytest.raises(ConfigError, match=r"the last stage must predict, got 'index', which"):
        write_cascade(backwards, log, tmp_path / "b", sampling=_SAMPLING)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"c: must not exist or be empty, got files in it"):
        write_cascade(teacher, log, tmp_path / "c", sampling=_SAMPLING)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("requests", 0), ("scored", 0), ("rejected", -1), ("weight_cap", 0.5), ("seed", -1)],
)
def test_sampling_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"CascadeSampling.{name}: must be at least"):
        CascadeSampling(**{name: value})  # type: ignore[arg-type]
