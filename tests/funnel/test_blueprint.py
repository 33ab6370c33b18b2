"""A funnel from its blueprint: steps, budgets, and requests of more inputs than it reads."""

from dataclasses import replace

import numpy as np
import pytest

from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.schema import Task
from tamis.errors import ConfigError, SchemaError
from tamis.funnel.blueprint import Blueprint, Budget
from tamis.funnel.log import logged_requests
from tamis.funnel.plans import EarlyStagePlan
from tamis.funnel.request import Request


def test_funnel_has_the_stages_and_constants_of_the_blueprint(blueprint: Blueprint) -> None:
    funnel = blueprint.build()

    assert [(step.name, step.keep, step.budget_ms) for step in funnel.steps] == [
        ("popular", 60, None), ("early", 12, None), ("final", 6, 60_000.0)
    ]  # fmt: skip
    assert funnel.reserve == 0.01
    assert funnel.ads is blueprint.inventory.attributes
    # A first stage that fails leaves the order of popularity.
    candidates = funnel.start(Request(request_id=0, user=0, time_micros=0, slots=1))
    assert candidates.scores.tolist() == blueprint.inventory.popularity.tolist()


def test_each_building_has_caches_of_its_own(blueprint: Blueprint, market_data: Dataset) -> None:
    codes = blueprint.inventory.codes
    request = next(logged_requests(market_data.split("train"), market_data.spec, codes))

    first, second = blueprint.build(), blueprint.build()

    assert [first.answer(request).stages[1].cache_hits for _ in range(2)] == [0, 1]
    assert second.answer(request).stages[1].cache_hits == 0


def _without_gender(encoders: Encoders) -> Encoders:
    fields = tuple(item for item in encoders.schema.fields if item.name != "gender")
    vocabularies = {name: v for name, v in encoders.vocabularies.items() if name != "gender"}
    return replace(
        encoders, schema=replace(encoders.schema, fields=fields), vocabularies=vocabularies
    )


def test_requests_may_hold_more_than_the_funnel_reads(
    blueprint: Blueprint, market_data: Dataset
) -> None:
    # A funnel of the early stage alone, whose own encoders are all that it has.
    early = blueprint.stages[1]
    assert isinstance(early.plan, EarlyStagePlan)
    assert early.plan.encoders is not None
    select = InputSelection(blueprint.encoders, early.plan.encoders, where="test")
    ads = blueprint.inventory
    alone = replace(
        blueprint,
        encoders=early.plan.encoders,
        stages=(replace(early, plan=replace(early.plan, encoders=None)),),
        inventory=replace(ads, rows=select.of_fields(ads.rows)),
    )
    beside = replace(blueprint, stages=(early,))
    codes = blueprint.inventory.codes
    request = next(logged_requests(market_data.split("train"), market_data.spec, codes))
    assert request.features is not None
    narrow = replace(request, shown=None, features=select(request.features))

    expected = alone.build().answer(narrow).stages[0]
    for trace in (alone.build(blueprint.encoders).answer(request), beside.build().answer(request)):
        assert trace.stages[0].fallback == ""
        assert trace.stages[0].ads.tolist() == expected.ads.tolist()
        assert trace.stages[0].scores.tolist() == expected.scores.tolist()


def test_requests_of_the_same_inputs_and_other_tasks_give_the_same_answers(
    blueprint: Blueprint, market_data: Dataset
) -> None:
    schema = blueprint.encoders.schema
    fields = schema.fields[::-1]
    other = replace(
        blueprint.encoders,
        schema=replace(schema, fields=fields, tasks=(Task(name="purchase"),)),
    )
    codes = blueprint.inventory.codes
    request = next(logged_requests(market_data.split("train"), market_data.spec, codes))
    assert request.features is not None
    backwards = replace(
        request,
        shown=None,
        features=replace(
            request.features,
            ids=request.features.ids.flip(1),
            numeric=request.features.numeric.flip(1),
            sequences={
                name: replace(jagged, values=jagged.values.flip(1))
                for name, jagged in request.features.sequences.items()
            },
        ),
    )

    plain = blueprint.build().answer(request)
    turned = blueprint.build(other).answer(backwards)

    for one, same in zip(plain.stages, turned.stages, strict=True):
        assert same.fallback == ""
        assert one.ads.tolist() == same.ads.tolist()
        np.testing.assert_array_equal(one.scores, same.scores)


def test_requests_that_lack_an_input_are_refused(blueprint: Blueprint) -> None:
    with pytest.raises(SchemaError, match=r"stage: field 'gender' must be a category of the user"):
        blueprint.build(_without_gender(blueprint.encoders))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "Early", "keep": 1}, r"stage 'Early': name must be of small letters, digits"),
        ({"name": "../x", "keep": 1}, r"stage '../x': name must be of small letters"),
        ({"name": "", "keep": 1}, r"stage '': name must be"),
        ({"name": "a", "keep": 0}, r"stage 'a': keep must be at least 1 .*, got keep=0"),
        ({"name": "a", "keep": 1, "budget_ms": 0.0}, r"positive, got keep=1, budget_ms=0.0"),
    ],
)
def test_budgets_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**settings)
