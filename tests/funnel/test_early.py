"""The early stage in a funnel: what the model itself predicts, users remembered, ads looked up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.data.sides import side_batch
from tamis.errors import ConfigError, DataError
from tamis.evaluation import evaluate_task
from tamis.evaluation.calibrators import GroupedCalibrator, PlattCalibrator
from tamis.funnel.ads import AdTable
from tamis.funnel.calibration import Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.early import EarlyStageRanker
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.ranker import AdFeatures
from tamis.funnel.replay import Reference, replay
from tamis.funnel.request import Impressions, Request
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.models.early_serving import ServedHead, served_logits
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.testing.models import example_batch, example_spec, take_rows
from tamis.testing.stages import check_stage

_NUM_ADS = 40
_TASKS = (
    Task(name="click"),
    Task(name="conversion", observed_when="click"),
    Task(name="hide"),
    Task(name="final_click", kind="probability", distils="click"),
    Task(name="final_conversion", kind="probability", distils="conversion"),
)
_SPEC = replace(example_spec(), tasks=_TASKS)
_WITHOUT_CONTEXT = replace(example_spec(num_categorical=2), tasks=_TASKS)
_BILLING = np.array(["click", "conversion"])[np.arange(_NUM_ADS) % 2]
_VALUE = ValueFunction(ValueWeights(penalties={"hide": 0.5}))


def _model(spec: InputSpec = _SPEC, **options: Any) -> EarlyStage:
    sizes = {"tower_units": (16,), "tower_dim": 8, "bottom_units": (16, 12), "head_units": (6,)}
    config = EarlyStageConfig(**{**sizes, "init_std": 0.7, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EarlyStage(config, spec).eval()


def _features(spec: InputSpec = _SPEC) -> tuple[AdFeatures, Batch]:
    """Item inputs of all ads, and rows of a log that hold them."""
    rows = example_batch(spec, rows=_NUM_ADS, seed=3)
    ids = [at for at, item in enumerate(spec.categorical) if item.side == "item"]
    numeric = [at for at, side in enumerate(spec.numeric_sides) if side == "item"]
    features = AdFeatures(
        ids=rows.ids[:, ids].long(),
        id_columns=torch.tensor(ids),
        numeric=rows.numeric[:, numeric],
        numeric_columns=torch.tensor(numeric),
    )
    return features, rows


@pytest.fixture
def make_stage(make_ads: Callable[..., AdTable]) -> Callable[..., EarlyStageRanker]:
    def make(
        model: EarlyStage | None = None, head: ServedHead = "distilled", **options: Any
    ) -> EarlyStageRanker:
        model = _model() if model is None else model
        ads = make_ads(_NUM_ADS, bid=np.linspace(1, 3, _NUM_ADS), billing=_BILLING)
        settings = {"max_users": 10, "time_to_live_ms": 1e3, **options}
        features = _features(model.spec)[0]
        return EarlyStageRanker(
            model.export(head=head), model.spec, features, ads, _VALUE, **settings
        )

    return make


def _predicted(model: EarlyStage, pairs: Batch, head: ServedHead) -> np.ndarray:
    with torch.inference_mode():
        logits = served_logits(model(pairs).logits, model.spec.tasks, head)
    found: np.ndarray = logits.double().sigmoid().numpy()
    return found


@pytest.mark.parametrize("spec", [_SPEC, _WITHOUT_CONTEXT], ids=["context", "no context"])
@pytest.mark.parametrize("head", ["label", "distilled", "mean"])
@pytest.mark.parametrize("bottom", ["shared", "dot"])
def test_predictions_are_those_of_the_model(
    make_stage: Callable[..., EarlyStageRanker], spec: InputSpec, head: ServedHead, bottom: str
) -> None:
    model = _model(spec, bottom=bottom)
    stage = make_stage(model, head)
    requests = example_batch(spec, rows=6, seed=9)
    generator = np.random.default_rng(0)
    rows, ads = generator.integers(0, 6, 50), generator.integers(0, _NUM_ADS, 50)

    found = stage.predict(requests, rows, ads)

    features, _ = _features(spec)
    pairs = features.pairs(requests, torch.from_numpy(rows), torch.from_numpy(ads))
    expected = _predicted(model, pairs, head)
    assert list(found) == ["click", "conversion", "hide"]
    assert expected.std(axis=0).min() > 1e-3  # else every pair would equal every other
    of_rows = stage.predict_rows(pairs, ads)
    for at, name in enumerate(found):
        np.testing.assert_allclose(found[name], expected[:, at], atol=1e-6)
        np.testing.assert_allclose(of_rows[name], expected[:, at], atol=1e-6)


def test_request_is_ordered_by_the_total_value_of_the_model(
    make_stage: Callable[..., EarlyStageRanker], make_request: Callable[..., Request]
) -> None:
    model = _model()
    stage = make_stage(model, flops_per_pair=7.0)
    row = example_batch(_SPEC, rows=1, seed=4)
    candidates = Candidates(ads=np.array([31, 2, 8, 17]), scores=np.zeros(4))

    scored = stage(make_request(features=row), candidates, 2)

    features, _ = _features()
    found = scored.candidates
    pairs = features.pairs(row, torch.zeros(4, dtype=torch.int64), torch.from_numpy(found.ads))
    click, conversion, hide = _predicted(model, pairs, "distilled").T
    bid = np.linspace(1, 3, _NUM_ADS)[found.ads]
    # Even ads pay by the click, odd ones by the conversion.
    value = bid * click * np.where(found.ads % 2 == 0, 1, conversion) - 0.5 * hide
    np.testing.assert_allclose(found.scores, value, atol=1e-6)
    np.testing.assert_allclose(found.predictions["hide"], hide, atol=1e-6)
    assert (scored.scored_pairs, scored.flops) == (4, 28.0)


def test_replayed_losses_are_those_of_the_model(
    make_stage: Callable[..., EarlyStageRanker],
    make_ads: Callable[..., AdTable],
) -> None:
    model = _model()
    stage = make_stage(model)
    ads = make_ads(_NUM_ADS, bid=np.linspace(1, 3, _NUM_ADS), billing=_BILLING)
    funnel = Funnel([Step(name="early", stage=stage, keep=5)], ads, _VALUE)
    rows, shown = example_batch(_SPEC, rows=30, seed=5), np.arange(30) % _NUM_ADS
    requests = [
        Request(
            request_id=at,
            user=at % 7,
            time_micros=at,
            slots=1,
            features=take_rows(rows, [at]),
            shown=Impressions(
                ads=shown[[at]], labels={"click": rows.labels[[at], 0].numpy(force=True)}
            ),
        )
        for at in range(30)
    ]

    report = replay(
        funnel, requests, reference=Reference(stage=stage, scope="all"), heads={"early": stage}
    )

    features, _ = _features()
    pairs = features.pairs(rows, torch.arange(30), torch.from_numpy(shown))
    clicks = _predicted(model, pairs, "distilled")[:, 0]
    expected = evaluate_task(rows.labels[:, 0].numpy(), clicks)
    assert report.heads["early"]["click"].ne == pytest.approx(expected.ne, rel=1e-6)
    assert report.stages[0].measures["recall"] == 1
    # Each of 7 users is embedded at its first request.
    early = report.stages[0]
    assert (early.cache_lookups, early.cache_hits, early.fallbacks) == (30, 23, {})


def test_user_is_embedded_once_until_the_vector_is_too_old(
    make_stage: Callable[..., EarlyStageRanker], make_request: Callable[..., Request]
) -> None:
    stage = make_stage(time_to_live_ms=1000)
    rows = example_batch(_SPEC, rows=2, seed=8)
    first, other = take_rows(rows, [0]), take_rows(rows, [1])
    # The context of the other request, and the user of the first.
    user_columns = [at for at, item in enumerate(_SPEC.categorical) if item.side == "user"]
    mixed_ids, mixed_numeric = other.ids.clone(), other.numeric.clone()
    mixed_ids[:, user_columns] = first.ids[:, user_columns]
    users = [at for at, side in enumerate(_SPEC.numeric_sides) if side == "user"]
    mixed_numeric[:, users] = first.numeric[:, users]
    mixed = replace(other, ids=mixed_ids, numeric=mixed_numeric, sequences=dict(first.sequences))
    candidates = Candidates(ads=np.arange(9), scores=np.zeros(9))

    def ask(features: Batch, ms: float, user: int = 5) -> tuple[list[float], int]:
        request = make_request(user=user, time_micros=int(ms * 1e3), features=features)
        scored = stage(request, candidates, 3)
        assert scored.cache_lookups == 1
        return scored.candidates.scores.tolist(), scored.cache_hits

    fresh = [make_stage()(make_request(features=row), candidates, 3).candidates.scores.tolist()
             for row in (first, mixed, other)]  # fmt: skip
    assert ask(first, 0) == (fresh[0], 0)
    # The user as it was remembered, in the context as it is now.
    assert ask(other, 1000) == (fresh[1], 1)
    assert ask(other, 1001) == (fresh[2], 0)
    # A request of before the vector was made does not see it, nor does another user.
    assert ask(first, 0) == (fresh[0], 0)
    assert ask(other, 0, user=6) == (fresh[2], 0)


def test_users_seen_longest_ago_are_forgotten_first(
    make_stage: Callable[..., EarlyStageRanker], make_request: Callable[..., Request]
) -> None:
    stage = make_stage(max_users=2)
    row = example_batch(_SPEC, rows=1)
    candidates = Candidates(ads=np.arange(3), scores=np.zeros(3))

    hits = [
        stage(make_request(user=user, features=row), candidates, 1).cache_hits
        for user in (1, 2, 1, 3, 1, 2)
    ]

    # 3 takes the place of 2, since 1 was seen after it.
    assert hits == [0, 0, 1, 0, 1, 0]


def test_calibration_is_applied_by_task_and_billing(
    make_stage: Callable[..., EarlyStageRanker],
) -> None:
    half = PlattCalibrator(slope=1.0, intercept=float(np.log(0.5)))
    same = PlattCalibrator(slope=1.0, intercept=0.0)
    maps = {"click": GroupedCalibrator(by_group={"conversion": half}, other=same)}
    requests, ads = example_batch(_SPEC, rows=1), np.arange(_NUM_ADS)
    rows = np.zeros_like(ads)

    plain = make_stage().predict(requests, rows, ads)
    found = make_stage(calibration=Calibration(by_task=maps)).predict(requests, rows, ads)

    odds = plain["click"] / (1 - plain["click"]) * np.where(_BILLING == "conversion", 0.5, 1)
    np.testing.assert_allclose(found["click"], odds / (1 + odds), rtol=1e-9)
    assert found["hide"].tolist() == plain["hide"].tolist()


def test_stage_passes_the_suite(
    make_stage: Callable[..., EarlyStageRanker], make_request: Callable[..., Request]
) -> None:
    # Wide enough that matrix products round a row by its place in the batch.
    model = _model(tower_dim=33, bottom_units=(67, 33))
    request = make_request(features=example_batch(_SPEC, rows=1))

    check_stage(make_stage(model), request, np.array([4, 19, 0, 7, 11, 2, 3, 15, 39]))


def test_tables_of_ads_are_filled_in_blocks(
    make_stage: Callable[..., EarlyStageRanker], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, ads = example_batch(_SPEC, rows=1), np.arange(_NUM_ADS)
    whole = make_stage().predict(requests, np.zeros_like(ads), ads)

    monkeypatch.setattr("tamis.funnel.early._ADS_AT_A_TIME", 7)
    parts = make_stage().predict(requests, np.zeros_like(ads), ads)

    np.testing.assert_allclose(parts["click"], whole["click"], atol=1e-6)


def test_item_inputs_of_ads_are_those_of_the_log() -> None:
    features, rows = _features()

    found = features.of_ads(torch.tensor([7, 3]))

    expected = side_batch(take_rows(rows, [7, 3]), _SPEC, "item")
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.numeric.tolist() == expected.numeric.tolist()
    assert found.sequences == {}


def test_request_without_features_is_refused(
    make_stage: Callable[..., EarlyStageRanker], make_request: Callable[..., Request]
) -> None:
    with pytest.raises(DataError, match=r"request 6: must have features for a ranker, got none"):
        make_stage()(make_request(6), Candidates(ads=np.arange(2), scores=np.zeros(2)), 1)


@pytest.mark.parametrize("settings", [{"max_users": 0}, {"time_to_live_ms": -1.0}])
def test_numbers_out_of_range_are_refused(
    make_stage: Callable[..., EarlyStageRanker], settings: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match=r"max_users must be at least 1 and time_to_live_ms at"):
        make_stage(**settings)


def test_features_of_other_inputs_or_ads_are_refused(make_ads: Callable[..., AdTable]) -> None:
    features, _ = _features()
    parts, options = _model().export(), {"max_users": 1, "time_to_live_ms": 0.0}

    with pytest.raises(DataError, match=r"must be of the same ads, got 40 and 3"):
        EarlyStageRanker(parts, _SPEC, features, make_ads(3), _VALUE, **options)
    fewer = replace(features, numeric=features.numeric[:, :0])
    with pytest.raises(DataError, match=r"must hold 1 ids, 1 numbers .* got 1, 0 and \[\]"):
        EarlyStageRanker(parts, _SPEC, fewer, make_ads(_NUM_ADS), _VALUE, **options)


def test_several_requests_get_what_each_gets_and_towers_run_for_new_users_alone(
    make_stage: Callable[..., EarlyStageRanker], make_request: Callable[..., Request]
) -> None:
    stage, alone = make_stage(), make_stage()
    rows = [example_batch(_SPEC, rows=1, seed=seed) for seed in (4, 5, 6)]
    requests = [make_request(at, user=at, features=row) for at, row in enumerate(rows)]
    candidates = [
        Candidates(ads=np.array(ads), scores=np.zeros(len(ads)))
        for ads in ([31, 2, 8, 17], [5], [2, 30, 9])
    ]
    stage(requests[1], candidates[1], 2)

    together = stage.score_all(requests, candidates, 2)

    assert [scored.cache_hits for scored in together] == [0, 1, 0]
    for request, its, scored in zip(requests, candidates, together, strict=True):
        wanted = alone(request, its, 2)
        assert scored.candidates.ads.tolist() == wanted.candidates.ads.tolist()
        np.testing.assert_allclose(scored.candidates.scores, wanted.candidates.scores, rtol=1e-5)
    # Users who are new together are known one by one.
    again = [
        stage(request, its, 2).cache_hits for request, its in zip(requests, candidates, strict=True)
    ]
    assert again == [1, 1, 1]


def test_bfloat16_moves_predictions_by_no_more_than_its_rounding(
    make_stage: Callable[..., EarlyStageRanker], make_request: Callable[..., Request]
) -> None:
    row = example_batch(_SPEC, rows=1, seed=4)
    candidates = Candidates(ads=np.arange(_NUM_ADS), scores=np.zeros(_NUM_ADS))

    exact, rounded = (
        make_stage(precision=precision)(make_request(features=row), candidates, 5).candidates
        for precision in (torch.float32, torch.bfloat16)
    )

    for name, values in exact.predictions.items():
        # Eight bits of each factor, over three layers of matrix products.
        np.testing.assert_allclose(rounded.predictions[name], values, atol=0.02)
    assert not np.array_equal(rounded.scores, exact.scores)
