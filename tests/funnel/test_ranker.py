"""Pairs of one user and many ads: as if every pair had been encoded by itself."""

from collections.abc import Callable
from dataclasses import replace
from math import log1p
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tamis.data.batch import Batch, Jagged
from tamis.data.dataset import EncodedRows
from tamis.data.schema import (
    CategoricalInput,
    Field,
    InputSpec,
    Schema,
    SequenceInput,
    Table,
    Task,
)
from tamis.errors import DataError, SchemaError
from tamis.evaluation.calibrators import GroupedCalibrator, PlattCalibrator
from tamis.funnel.ads import AdTable
from tamis.funnel.calibration import Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.ranker import AdFeatures, RankerStage
from tamis.funnel.request import Request
from tamis.models.deepfm import DeepFM, DeepFMConfig
from tamis.models.din import DIN, DINConfig
from tamis.testing.stages import check_stage

_NUM_ADS = 20
_TASKS = (Task(name="click"), Task(name="spend", kind="regression"))
# Sides interleave, so that a column taken for its neighbour shows.
_SCHEMA = Schema(
    fields=(
        Field(name="user", kind="categorical", side="user"),
        Field(name="ad", kind="categorical", side="item"),
        Field(name="age", kind="numeric", side="user"),
        Field(name="price", kind="numeric", side="item"),
        Field(name="hour", kind="categorical", side="context"),
        Field(name="brand", kind="categorical", side="item"),
        Field(name="load", kind="numeric", side="context"),
        Field(name="seen", kind="numeric", transform="none", counts="past"),
        Field(name="past", kind="sequence", side="user", shares="ad"),
        Field(name="words", kind="sequence", side="item"),
    ),
    tasks=_TASKS,
)
_SPEC = InputSpec(
    numeric=("age", "price", "load", "seen"),
    numeric_sides=("user", "item", "context", "context"),
    numeric_counts=("", "", "", "past"),
    categorical=(
        CategoricalInput(name="user", table="user", side="user"),
        CategoricalInput(name="ad", table="ad", side="item"),
        CategoricalInput(name="hour", table="hour", side="context"),
        CategoricalInput(name="brand", table="brand", side="item"),
    ),
    sequences=(
        SequenceInput(name="past", fields=("past",), tables=("ad",), max_length=9),
        SequenceInput(name="words", fields=("words",), tables=("words",), max_length=9),
    ),
    tables=(
        Table(name="user", num_rows=9),
        Table(name="ad", num_rows=_NUM_ADS + 1),
        Table(name="hour", num_rows=5),
        Table(name="brand", num_rows=6),
        Table(name="words", num_rows=30),
    ),
    tasks=_TASKS,
)


def _ad_rows() -> EncodedRows:
    generator = np.random.default_rng(5)
    lengths = generator.integers(0, 5, _NUM_ADS)
    return EncodedRows(
        row=np.arange(_NUM_ADS),
        numeric={"price": generator.standard_normal(_NUM_ADS).astype(np.float32)},
        ids={
            "ad": np.arange(1, _NUM_ADS + 1, dtype=np.int32),
            "brand": generator.integers(0, 6, _NUM_ADS).astype(np.int32),
        },
        sequences={
            "words": (
                generator.integers(0, 30, (int(lengths.sum()), 1)).astype(np.int32),
                lengths,
            )
        },
    )


def _jagged(*rows: list[int]) -> Jagged:
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int32)
    return Jagged(values=values.unsqueeze(1), offsets=torch.tensor([0, *map(len, rows)]).cumsum(0))


def _features(user: int, history: list[int]) -> Batch:
    """A request: what depends on the item holds what must never be read."""
    return Batch(
        numeric=torch.tensor([[0.5 * user, torch.nan, -0.25, torch.nan]]),
        ids=torch.tensor([[user, 10**6, user % 5, 10**6]], dtype=torch.int32),
        labels=torch.full((1, 2), torch.nan),
        weights=torch.ones(1),
        sequences={"past": _jagged(history), "words": _jagged([10**6])},
    )


def _row_of_pair(features: Batch, ads: EncodedRows, ad: int) -> Batch:
    """The one row that encoding this user with this ad would give."""
    ids, numeric = features.ids.clone(), features.numeric.clone()
    ids[0, 1], ids[0, 3] = int(ads.ids["ad"][ad]), int(ads.ids["brand"][ad])
    numeric[0, 1] = float(ads.numeric["price"][ad])
    numeric[0, 3] = log1p(features.sequences["past"].values.tolist().count([int(ids[0, 1])]))
    values, lengths = ads.sequences["words"]
    first = int(lengths[:ad].sum())
    words = values[first : first + lengths[ad], 0].tolist()
    return replace(
        features,
        ids=ids,
        numeric=numeric,
        sequences={"past": features.sequences["past"], "words": _jagged(words)},
    )


def _deepfm(hidden_units: tuple[int, ...] = (8,)) -> nn.Module:
    return DeepFM(DeepFMConfig(embedding_dim=4, hidden_units=hidden_units, init_std=0.5), _SPEC)


def _din() -> nn.Module:
    config = DINConfig(
        embedding_dim=4, hidden_units=(8,), attention_units=(6,), init_std=0.5, dropout=0.5
    )
    return DIN(config, _SPEC)


@pytest.fixture
def make_ranker(make_ads: Callable[..., AdTable], click_value: Any) -> Callable[..., RankerStage]:
    def make(model: nn.Module | None = None, **options: Any) -> RankerStage:
        features = AdFeatures.of_rows(_ad_rows(), _SCHEMA, _SPEC)
        ads = make_ads(_NUM_ADS, bid=np.linspace(1, 3, _NUM_ADS))
        return RankerStage(model or _deepfm(), _TASKS, features, ads, click_value, **options)

    return make


def test_events_of_an_ad_are_counted_as_those_of_a_user() -> None:
    groups = (_SPEC.sequences[0], replace(_SPEC.sequences[1], tables=("brand",)))
    spec = replace(_SPEC, numeric_counts=("", "", "", "words"), sequences=groups)
    rows = _ad_rows()
    values, lengths = rows.sequences["words"][0] % 6, rows.sequences["words"][1]
    rows = replace(rows, sequences={"words": (values, lengths)})
    features = AdFeatures.of_rows(rows, _SCHEMA, spec)
    ads = np.tile(np.arange(_NUM_ADS), 2)

    found = features.pairs(_features(3, [5]), torch.zeros(len(ads)).long(), torch.from_numpy(ads))

    starts = np.cumsum(lengths) - lengths
    for at, ad in enumerate(ads):
        own, brand = values[starts[ad] : starts[ad] + lengths[ad], 0], rows.ids["brand"][ad]
        assert found.numeric[at, 3] == pytest.approx(log1p(sum(own == brand) if brand else 0))
    assert found.numeric[:, 3].any()


@pytest.mark.parametrize("make_model", [_deepfm, _din])
def test_pairs_are_scored_as_rows_encoded_by_themselves(
    make_ranker: Callable[..., RankerStage], make_model: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(1)
    model = make_model()
    stage = make_ranker(model)
    requests = [_features(3, [5, 2, 7, 5]), _features(8, [])]
    joined = Batch(
        numeric=torch.cat([row.numeric for row in requests]),
        ids=torch.cat([row.ids for row in requests]),
        labels=torch.cat([row.labels for row in requests]),
        weights=torch.cat([row.weights for row in requests]),
        sequences={"past": _jagged([5, 2, 7, 5], []), "words": _jagged([10**6], [10**6])},
    )
    rows, ads = np.array([1, 0, 1, 0, 0]), np.array([4, 4, 0, 19, 7])

    found = stage.predict(joined, rows, ads)

    for at, (row, ad) in enumerate(zip(rows, ads, strict=True)):
        with torch.no_grad():
            logits = model(_row_of_pair(requests[row], _ad_rows(), ad)).logits[0]
        assert found["click"][at] == pytest.approx(logits[0].double().sigmoid().item(), rel=1e-5)
        assert found["spend"][at] == pytest.approx(logits[1].item(), rel=1e-5, abs=1e-6)
    assert len(set(found["click"].tolist())) == 5


def test_stage_scores_by_total_value_and_hands_predictions_on(
    make_ranker: Callable[..., RankerStage], make_request: Callable[..., Request]
) -> None:
    stage = make_ranker(flops_per_pair=100)
    request = make_request(features=_features(3, [1]))
    candidates = Candidates(ads=np.array([7, 2, 5]), scores=np.zeros(3))

    scored = stage(request, candidates, 1)

    found = scored.candidates
    assert sorted(found.ads.tolist()) == [2, 5, 7]
    bids = np.linspace(1, 3, _NUM_ADS)[found.ads]
    assert found.scores.tolist() == (bids * found.predictions["click"]).tolist()
    assert set(found.predictions) == {"click", "spend"}
    assert (scored.scored_pairs, scored.flops) == (3, 300)


def test_calibration_comes_before_the_total_value(
    make_ranker: Callable[..., RankerStage], make_request: Callable[..., Request]
) -> None:
    double = PlattCalibrator(slope=1.0, intercept=float(np.log(2)))
    maps = {"click": GroupedCalibrator(by_group={}, other=double)}
    request = make_request(features=_features(3, [1]))
    candidates = Candidates(ads=np.array([7, 2, 5]), scores=np.zeros(3))

    plain = make_ranker(model := _deepfm())(request, candidates, 3).candidates
    stage = make_ranker(model, calibration=Calibration(by_task=maps))
    found = stage(request, candidates, 3).candidates

    odds = plain.predictions["click"] / (1 - plain.predictions["click"])
    expected = 2 * odds / (1 + 2 * odds)
    np.testing.assert_allclose(found.predictions["click"], expected, rtol=1e-12)
    bids = np.linspace(1, 3, _NUM_ADS)[found.ads]
    np.testing.assert_allclose(found.scores, bids * expected, rtol=1e-12)
    assert found.predictions["spend"].tolist() == plain.predictions["spend"].tolist()


def test_order_of_candidates_does_not_change_a_bit(
    make_ranker: Callable[..., RankerStage], make_request: Callable[..., Request]
) -> None:
    # Wide enough that matrix products round a row by its place in the batch.
    config = DeepFMConfig(embedding_dim=16, hidden_units=(67, 33), init_std=0.5)
    stage = make_ranker(DeepFM(config, _SPEC))
    request = make_request(features=_features(3, [1, 2]))
    ads = np.arange(_NUM_ADS - 1)

    plain, turned = (
        stage(request, Candidates(ads=order, scores=np.zeros(len(ads))), 5).candidates.best(
            len(ads), seed=0
        )
        for order in (ads, ads[::-1].copy())
    )

    assert plain.ads.tolist() == turned.ads.tolist()
    assert plain.scores.tolist() == turned.scores.tolist()


def test_stage_passes_the_suite(
    make_ranker: Callable[..., RankerStage], make_request: Callable[..., Request]
) -> None:
    request = make_request(features=_features(3, [1, 2]))

    check_stage(make_ranker(), request, np.array([4, 19, 0, 7, 11, 2, 3, 15]))


def test_model_is_in_evaluation_mode(
    make_ranker: Callable[..., RankerStage], make_request: Callable[..., Request]
) -> None:
    # DIN here drops half of its units while training.
    model = _din().train()
    stage = make_ranker(model)
    features, ads = _features(3, [1, 2]), np.arange(_NUM_ADS)

    first, second = (stage.predict(features, np.zeros_like(ads), ads) for _ in range(2))

    assert first["click"].tolist() == second["click"].tolist()


def test_bfloat16_is_near_float32(make_ranker: Callable[..., RankerStage]) -> None:
    model = _deepfm((64, 64))  # maps of fewer weights compute in float32
    features, ads = _features(3, [1, 2]), np.arange(_NUM_ADS)
    rows = np.zeros_like(ads)

    exact = make_ranker(model).predict(features, rows, ads)["click"]
    rounded = make_ranker(model, precision=torch.bfloat16).predict(features, rows, ads)["click"]

    # bfloat16 keeps 8 bits; the difference also shows that it was used.
    np.testing.assert_allclose(rounded, exact, atol=0.02)
    assert rounded.tolist() != exact.tolist()


def test_funnel_of_rankers_answers(
    make_ranker: Callable[..., RankerStage],
    make_ads: Callable[..., AdTable],
    make_request: Callable[..., Request],
    click_value: Any,
) -> None:
    ads = make_ads(_NUM_ADS, bid=np.linspace(1, 3, _NUM_ADS))
    steps = [
        Step(name="early", stage=make_ranker(), keep=10),
        Step(name="final", stage=make_ranker(_din()), keep=4),
    ]
    funnel = Funnel(steps, ads, click_value)

    trace = funnel.answer(make_request(features=_features(3, [1, 2])))

    assert [stage.fallback for stage in trace.stages] == ["", ""]
    assert trace.slate.ads.tolist() == trace.stages[1].ads[:2].tolist()
    np.testing.assert_allclose(trace.slate.values, trace.stages[1].scores[:2], rtol=1e-6)


def test_request_without_features_is_refused(
    make_ranker: Callable[..., RankerStage], make_request: Callable[..., Request]
) -> None:
    with pytest.raises(DataError, match=r"request 6: must have features for a ranker, got none"):
        make_ranker()(make_request(6), Candidates(ads=np.arange(2), scores=np.zeros(2)), 1)


def test_rows_without_an_item_field_are_refused() -> None:
    rows = replace(_ad_rows(), ids={"ad": _ad_rows().ids["ad"]})

    with pytest.raises(DataError, match=r"ads: rows must hold the item field 'brand', got ad, pr"):
        AdFeatures.of_rows(rows, _SCHEMA, _SPEC)


def test_sequence_group_of_two_sides_is_refused() -> None:
    mixed = (SequenceInput(name="past", fields=("past", "words"), tables=("ad", "words"),
                           max_length=9),)  # fmt: skip

    with pytest.raises(SchemaError, match=r"group 'past': its fields must all be the item's"):
        AdFeatures.of_rows(_ad_rows(), _SCHEMA, replace(_SPEC, sequences=mixed))


def test_features_and_attributes_of_other_ads_are_refused(
    make_ads: Callable[..., AdTable], click_value: Any
) -> None:
    features = AdFeatures.of_rows(_ad_rows(), _SCHEMA, _SPEC)

    with pytest.raises(DataError, match=r"must be of the same ads, got 20 and 21"):
        RankerStage(_deepfm(), _TASKS, features, make_ads(21), click_value)
