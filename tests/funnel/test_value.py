"""The value of an ad: known answers, and what must change its order."""

from dataclasses import replace

import numpy as np
import pytest

from tamis import config
from tamis.data.schema import Task
from tamis.data.sides import side_batch
from tamis.errors import ConfigError, DataError
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.testing.models import example_batch, example_spec, take_rows

_WEIGHTS = ValueWeights(
    quality="liking", quality_weight=0.25, penalties={"hide": 2.0, "report": 50.0}
)
_RNG = np.random.default_rng(0)


def _predictions(count: int = 40) -> dict[str, np.ndarray]:
    return {
        "click": _RNG.random(count) * 0.2,
        "conversion": _RNG.random(count) * 0.5,
        "liking": _RNG.normal(size=count),
        "hide": _RNG.random(count) * 0.05,
        "report": _RNG.random(count) * 0.002,
    }


def test_value_by_hand() -> None:
    predictions = {"click": 0.1, "conversion": 0.2, "liking": 2.0, "hide": 0.05, "report": 0.001}
    value = ValueFunction(_WEIGHTS).score(predictions, [10.0, 10.0], ["conversion", "click"])

    # 10 * .1 * .2 and 10 * .1; + .25 * 2 - 2 * .05 - 50 * .001 for both.
    assert value == pytest.approx([0.2 + 0.35, 1.0 + 0.35])


def test_settings_say_which_predictions_a_value_reads() -> None:
    by_click = {
        "value.click": "click",
        "value.quality": "liking",
        "value.penalties.hide": "hide",
        "value.penalties.report": "report",
    }
    assert _WEIGHTS.read_of(["click", "click"]) == by_click
    of_both = {**by_click, "value.conversion": "conversion"}
    assert _WEIGHTS.read_of(["click", "conversion"]) == of_both


def test_value_equals_a_loop_over_candidates() -> None:
    predictions, bid = _predictions(), _RNG.lognormal(size=40)
    billing = np.where(_RNG.random(40) < 0.4, "click", "conversion")
    found = ValueFunction(_WEIGHTS).score(predictions, bid, billing)

    for row in range(40):
        own = {name: float(values[row]) for name, values in predictions.items()}
        value = float(bid[row]) * own["click"]
        if billing[row] == "conversion":
            value *= own["conversion"]
        value += 0.25 * own["liking"] - 2 * own["hide"] - 50 * own["report"]
        assert found[row] == pytest.approx(value)


def _order(weights: ValueWeights, predictions, bid, billing="conversion") -> list[int]:
    return np.argsort(-ValueFunction(weights).score(predictions, bid, billing)).tolist()


def test_bids_billing_and_quality_each_change_the_order() -> None:
    predictions, bid = _predictions(), np.full(40, 10.0)
    before = _order(_WEIGHTS, predictions, bid)

    assert _order(_WEIGHTS, predictions, _RNG.permutation(np.linspace(1, 20, 40))) != before
    assert _order(_WEIGHTS, predictions, bid, "click") != before
    assert _order(ValueWeights(), predictions, bid) != before
    only_reports = ValueWeights(penalties={"report": 50.0})
    assert _order(only_reports, predictions, bid) != before


def test_factor_that_is_biased_moves_billing_types_past_each_other() -> None:
    # Equal in truth: 10 * .1 * .2 by conversion, 2 * .1 by click.
    bid, billing = [10.0, 2.0], ["conversion", "click"]
    function = ValueFunction(ValueWeights())
    fair = function.score({"click": 0.1, "conversion": 0.2}, bid, billing)
    biased = function.score({"click": 0.1, "conversion": 0.2 * 1.1}, bid, billing)

    assert fair[0] == pytest.approx(fair[1])
    assert biased[0] == pytest.approx(1.1 * biased[1])


def test_shapes_broadcast_and_constants_stand_for_what_is_not_modelled() -> None:
    click = _RNG.random((3, 5))
    function = ValueFunction(ValueWeights(penalties={"hide": 1.0}))
    found = function.score({"click": click, "conversion": 0.5, "hide": 0.1}, np.ones(5), "click")

    np.testing.assert_allclose(found, click - 0.1)


def test_clicks_alone_need_no_conversion() -> None:
    found = ValueFunction(ValueWeights()).score({"click": [0.5]}, [2.0], ["click"])

    assert found == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("predictions", "bid", "billing", "message"),
    [
        ({"click": 0.5}, 1.0, "conversion", r"must hold 'conversion', got click"),
        ({"click": 1.5}, 1.0, "click", r"click must be in \[0, 1\], got 1.5 \(1 such"),
        ({"click": [0.5, np.nan]}, 1.0, "click", r"click must be in \[0, 1\], got nan"),
        ({"click": 0.5}, [1.0, -2.0], "click", r"bid must be a finite number .* got -2.0"),
        ({"click": 0.5}, np.inf, "click", r"bid must be a finite number of at least 0, got inf"),
        ({"click": 0.5}, 1.0, ["click", "view"], r"billing must be one of .* got 'view' \(1 such"),
    ],
)
def test_what_has_no_value_is_refused(predictions, bid, billing, message) -> None:
    with pytest.raises(DataError, match=message):
        ValueFunction(ValueWeights()).score(predictions, bid, billing)


def test_early_stage_serves_what_a_value_takes() -> None:
    tasks = (
        Task(name="click"),
        Task(name="conversion", observed_when="click"),
        Task(name="hide"),
        Task(name="final_hide", kind="probability", distils="hide"),
    )
    spec = replace(example_spec(), tasks=tasks)
    parts = EarlyStage(EarlyStageConfig(), spec).export()
    rows, ads = example_batch(spec, rows=20), np.arange(20)
    parts.ad_table.add(ads, parts.embed_ads(side_batch(rows, spec, "item")))
    one = take_rows(rows, [0])
    user = parts.embed_user(side_batch(one, spec, "user"))
    query = parts.query(user, side_batch(one, spec, "context"))
    predictions = parts.score(query, ads)

    function = ValueFunction(ValueWeights(penalties={"hide": 1.0}))
    values = function.score(predictions, np.full(20, 3.0), "conversion")
    expected = 3 * predictions["click"] * predictions["conversion"] - predictions["hide"]
    np.testing.assert_allclose(values, expected)


def test_infinite_quality_is_refused() -> None:
    predictions = {"click": 0.5, "liking": np.inf, "hide": 0.0, "report": 0.0}
    with pytest.raises(DataError, match="liking must be a finite number, got inf"):
        ValueFunction(_WEIGHTS).score(predictions, 1.0, "click")


def test_weights_survive_a_config_file_and_name_their_predictions() -> None:
    assert config.from_table(ValueWeights, config.to_table(_WEIGHTS)) == _WEIGHTS
    assert _WEIGHTS.predictions == ("click", "conversion", "liking", "hide", "report")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalties": {"hide": -1.0}}, r"value.penalties.hide: must be at least 0, got -1.0"),
        ({"quality": "liking"}, r"quality_weight: must be set together .* got 0.0 for 'liking'"),
        ({"quality_weight": 1.0}, r"must be set together with value.quality, got 1.0 for ''"),
    ],
)
def test_weights_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ValueWeights(**options)
