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
from tamis.funnel.cache import UserCache
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import logged_requests
from tamis.funnel.plan import Plan
from tamis.funnel.plans import EarlyStagePlan
from tamis.funnel.request import Request
from tamis.funnel.retrieval_plans import IndexPlan


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


def _copies(inventory: Inventory, rows: list[int], **changes: np.ndarray) -> Inventory:
    """Ads with the features of others, under codes 1, 2, ... that nobody knows."""
    others = np.setdiff1d(np.arange(len(inventory)), rows)
    made = inventory.without_ads(inventory.codes[others])
    attributes = replace(made.attributes, **changes)
    return replace(made, codes=np.arange(1, len(rows) + 1), attributes=attributes)


def _requests(blueprint: Blueprint, data: Dataset, count: int) -> list[Request]:
    stream = logged_requests(data.split("train"), data.spec, blueprint.inventory.codes)
    return [replace(next(stream), shown=None) for _ in range(count)]


def test_added_ad_can_win_and_removed_ad_never_comes_back(
    searched: Blueprint, market_data: Dataset
) -> None:
    request = _requests(searched, market_data, 1)[0]
    before = searched.build().answer(request)
    best = int(before.slate.ads[0])
    # A copy of the winner that bids more, of an advertiser of its own.
    rich = _copies(
        searched.inventory, [best],
        bid=searched.inventory.attributes.bid[[best]] * 3, advertiser=np.array([10**6]),
    )  # fmt: skip

    grown = searched.with_ads(rich)
    trace = grown.build().answer(request)

    assert grown.inventory.codes[trace.slate.ads[0]] == 1
    assert [stage.fallback for stage in trace.stages] == ["", "", ""]
    assert len(searched.inventory) == len(grown.inventory) - 1
    gone = np.append(searched.inventory.codes[before.slate.ads], 1)
    left = grown.without_ads(gone)
    for asked in (request, *_requests(searched, market_data, 20)):
        trace = left.build().answer(asked)
        for stage in trace.stages:
            assert not np.isin(left.inventory.codes[stage.ads], gone).any()
            assert stage.fallback == ""
        assert len(trace.slate.ads)


def test_kept_answers_end_with_the_ads_and_the_bundle_that_they_are_of(
    searched: Blueprint, market_data: Dataset
) -> None:
    plan = searched.stages[0].plan
    assert isinstance(plan, IndexPlan)
    cached = replace(plan, settings=replace(plan.settings, cache=UserCache(time_to_live_ms=1e9)))
    first = replace(searched.stages[0], plan=cached)
    keeping = replace(searched, stages=(first, *searched.stages[1:]))
    request = _requests(searched, market_data, 1)[0]
    funnel = keeping.build()
    before, again = (funnel.answer(request) for _ in range(2))
    assert [trace.stages[0].cache_hits for trace in (before, again)] == [0, 1]
    assert again.slate.to_json() == searched.build().answer(request).slate.to_json()
    winner = int(again.slate.ads[0])
    rich = _copies(
        searched.inventory, [winner],
        bid=searched.inventory.attributes.bid[[winner]] * 3, advertiser=np.array([10**6]),
    )  # fmt: skip

    for changed in (
        keeping,  # as another bundle, or the same after a restart
        keeping.with_ads(rich),
        keeping.without_ads(searched.inventory.codes[[winner]]),
        keeping.of_ads(replace(searched.inventory, codes=searched.inventory.codes + 1)),
    ):
        plain = replace(changed.stages[0], plan=_without_cache(changed.stages[0].plan))
        expected = replace(changed, stages=(plain, *changed.stages[1:])).build().answer(request)
        funnel = changed.build()
        for hits in (0, 1):
            trace = funnel.answer(request)
            assert trace.stages[0].cache_hits == hits
            assert trace.stages[0].ads.tolist() == expected.stages[0].ads.tolist()
            assert trace.slate.to_json() == expected.slate.to_json()
    # Bids and ads do decide here.
    codes = searched.inventory.codes
    assert (
        keeping.with_ads(rich).inventory.codes[
            keeping.with_ads(rich).build().answer(request).slate.ads[0]
        ]
        not in codes
    )


def _without_cache(plan: Plan) -> IndexPlan:
    assert isinstance(plan, IndexPlan)
    return replace(plan, settings=replace(plan.settings, cache=None))


def test_answers_are_as_before_once_what_was_added_is_removed(
    searched: Blueprint, market_data: Dataset
) -> None:
    more = _copies(searched.inventory, [3, 14, 15])

    back = searched.with_ads(more).without_ads(more.codes)

    assert back.inventory.codes.tolist() == searched.inventory.codes.tolist()
    for request in _requests(searched, market_data, 10):
        before, after = searched.build().answer(request), back.build().answer(request)
        for one, other in zip(before.stages, after.stages, strict=True):
            assert one.ads.tolist() == other.ads.tolist()
            assert one.scores.tolist() == other.scores.tolist()
        assert before.slate.to_json() == after.slate.to_json()


def test_ads_with_other_features_are_indexed_anew(
    searched: Blueprint, market_data: Dataset
) -> None:
    inventory = searched.inventory
    rows = replace(
        inventory.rows, numeric={n: v[::-1].copy() for n, v in inventory.rows.numeric.items()}
    )

    fresh = searched.of_ads(replace(inventory, rows=rows))

    plans = [blueprint.stages[0].plan for blueprint in (searched, fresh)]
    versions = [plan.snapshot.version for plan in plans if isinstance(plan, IndexPlan)]
    assert len(set(versions)) == 2
    same = fresh.of_ads(inventory)
    request = _requests(searched, market_data, 1)[0]
    assert same.build().answer(request).stages[0].scores.tolist() == (
        searched.build().answer(request).stages[0].scores.tolist()
    )


def test_funnel_without_an_index_follows_its_inventory(
    blueprint: Blueprint, market_data: Dataset
) -> None:
    request = _requests(blueprint, market_data, 1)[0]
    shown = blueprint.build().answer(request).slate.ads

    left = blueprint.without_ads(blueprint.inventory.codes[shown])

    trace = left.build().answer(request)
    before = blueprint.inventory.codes[shown].tolist()
    assert not set(left.inventory.codes[trace.slate.ads].tolist()) & set(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "Early", "keep": 1}, r"stage 'Early': name must be of small letters, digits"),
        ({"name": "../x", "keep": 1}, r"stage '../x': name must be of small letters"),
        ({"name": "", "keep": 1}, r"stage '': name must be"),
        (
            {"name": "known", "keep": 1},
            r"stage 'known': name must be none of 'known' and 'auction'",
        ),
        (
            {"name": "auction", "keep": 1},
            r"stage 'auction': .* first stage and after the last",
        ),
        ({"name": "a", "keep": 0}, r"stage 'a': keep must be at least 1 .*, got keep=0"),
        ({"name": "a", "keep": 1, "budget_ms": 0.0}, r"positive, got keep=1, budget_ms=0.0"),
    ],
)
def test_budgets_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**settings)
