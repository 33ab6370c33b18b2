"""Exported parts score as the model does; the table of ads behaves as a dictionary."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.data.sides import side_batch
from tamis.errors import DataError
from tamis.models.early_serving import AdTable, EarlyStageParts, served_logits
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.nn.embedding import give_rows
from tamis.testing.models import example_batch, example_spec, example_vectors, take_rows

_TASKS = (
    Task(name="click"),
    Task(name="conversion", observed_when="click"),
    Task(name="final_click", kind="probability", distils="click"),
    Task(name="final_conversion", kind="probability", distils="conversion"),
)
_WITH_CONTEXT = replace(example_spec(), tasks=_TASKS)
_WITH_VECTORS = replace(example_spec(vectors=6), tasks=_TASKS)
_WITHOUT_CONTEXT = replace(example_spec(num_categorical=2), tasks=_TASKS)


def _model(spec: InputSpec = _WITH_CONTEXT, **options: object) -> EarlyStage:
    sizes = {"tower_units": (16,), "tower_dim": 8, "bottom_units": (16, 12), "head_units": (6,)}
    chosen = EarlyStageConfig(**{**sizes, "expert_units": ((12, 10),), "init_std": 0.7, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EarlyStage(chosen, spec)
        give_rows(model, example_vectors(spec))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
    return model.eval()


def _request(spec: InputSpec, candidates: int) -> Batch:
    """Candidates of one request: user and context of the first row, ads of their own."""
    batch = example_batch(spec, rows=candidates)
    first = take_rows(batch, [0] * candidates)
    own = [place for place, item in enumerate(spec.categorical) if item.side == "item"]
    ids, numeric = first.ids.clone(), first.numeric.clone()
    ids[:, own] = batch.ids[:, own]
    priced = [place for place, side in enumerate(spec.numeric_sides) if side == "item"]
    numeric[:, priced] = batch.numeric[:, priced]
    return replace(first, ids=ids, numeric=numeric)


def _exported_scores(parts: EarlyStageParts, request: Batch, spec: InputSpec) -> np.ndarray:
    candidates = np.arange(request.num_rows) * 7
    vectors = parts.embed_ads(side_batch(request, spec, "item"))
    known = np.array([ad in parts.ad_table for ad in candidates.tolist()])
    (parts.ad_table.update if known.all() else parts.ad_table.add)(candidates, vectors)
    one = take_rows(request, [0])
    context = None if parts.context_tower is None else side_batch(one, spec, "context")
    query = parts.query(parts.embed_user(side_batch(one, spec, "user")), context)
    assert query.shape[0] == 1
    scores = parts.score(query, candidates)
    assert list(scores) == ["click", "conversion"]
    return np.stack(list(scores.values()), axis=1)


@pytest.mark.parametrize(
    "spec",
    [_WITH_CONTEXT, _WITHOUT_CONTEXT, _WITH_VECTORS],
    ids=["context", "no context", "vectors"],
)
@pytest.mark.parametrize("bottom", ["shared", "mmoe", "ple", "dot"])
@pytest.mark.parametrize("head", ["label", "distilled", "mean"])
@pytest.mark.parametrize("distillation", ["separate", "mixed"])
def test_exported_parts_score_as_the_model_does(spec, bottom, head, distillation) -> None:
    model = _model(spec, bottom=bottom, distillation=distillation)
    request = _request(spec, 60)
    with torch.inference_mode():
        logits = served_logits(model(request).logits, spec.tasks, head)
    assert logits.std(0).min() > 1e-3  # else every candidate would equal every other

    found = _exported_scores(model.export(head=head), request, spec)

    np.testing.assert_allclose(found, logits.double().sigmoid().numpy(), atol=1e-5)


def test_queries_of_many_requests_are_scored_with_an_ad_each() -> None:
    spec = replace(_WITH_CONTEXT, tasks=(*_TASKS, Task(name="liking", kind="regression")))
    model, batch = _model(spec), example_batch(spec, rows=9)
    parts = model.export()
    parts.ad_table.add(np.arange(9), parts.embed_ads(side_batch(batch, spec, "item")))
    users = parts.embed_user(side_batch(batch, spec, "user"))

    found = parts.score(parts.query(users, side_batch(batch, spec, "context")), np.arange(9))

    with torch.inference_mode():
        logits = served_logits(model(batch).logits, spec.tasks, "distilled").double().numpy()
    np.testing.assert_allclose(found["click"], 1 / (1 + np.exp(-logits[:, 0])), atol=1e-5)
    # A regression's values have no sigmoid.
    np.testing.assert_allclose(found["liking"], logits[:, 2], atol=1e-5)
    assert not ((found["liking"] >= 0) & (found["liking"] <= 1)).all()


def test_scorer_holds_the_heads_that_serve_and_no_others() -> None:
    model = _model()
    parts = {head: model.export(head=head) for head in ("label", "distilled", "mean")}

    counts = {head: len(part.scorer.heads.towers.towers) for head, part in parts.items()}
    assert counts == {"label": 2, "distilled": 2, "mean": 4}
    ours, theirs = model.heads.towers.towers[2], parts["distilled"].scorer.heads.towers.towers[0]
    assert torch.equal(ours.layers[0].weight, theirs.layers[0].weight)


def test_tower_holds_the_tables_of_its_side() -> None:
    parts = _model().export()

    # field0 and the history, which shares the tables of field0 and field1; then field1; field2.
    rows = {"user": 100, "ad": 50, "context": 50}
    assert parts.user_tower.inputs.tables.weight.shape[0] == rows["user"]
    assert parts.ad_tower.inputs.tables.weight.shape[0] == rows["ad"]
    assert parts.context_tower is not None
    assert parts.context_tower.inputs.tables.weight.shape[0] == rows["context"]


def test_later_training_leaves_exported_parts_alone() -> None:
    model, request = _model(), _request(_WITH_CONTEXT, 5)
    parts = model.export()
    before = _exported_scores(parts, request, _WITH_CONTEXT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)

    np.testing.assert_array_equal(_exported_scores(parts, request, _WITH_CONTEXT), before)


class _CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bottom", ["shared", "mmoe", "ple", "dot"])
def test_a_thousand_candidates_are_one_batched_call(bottom: str) -> None:
    parts = _model(bottom=bottom).export()
    parts.ad_table.add(np.arange(1000), torch.randn(1000, 8))
    counts = []
    for candidates in (2, 1000):
        with _CountOperations() as operations:
            scores = parts.score(torch.randn(1, 16), np.arange(candidates))
        counts.append(operations.count)
        assert scores["click"].shape == (candidates,)

    assert counts[0] == counts[1]


def test_context_is_asked_for_where_the_schema_has_one() -> None:
    batch = example_batch(_WITH_CONTEXT, rows=1)
    with_context, without = _model().export(), _model(_WITHOUT_CONTEXT).export()

    with pytest.raises(DataError, match="this model needs a context, got none"):
        with_context.query(torch.zeros(1, 8))
    with pytest.raises(DataError, match="this model needs no context, got one"):
        without.query(torch.zeros(1, 8), side_batch(batch, _WITH_CONTEXT, "context"))


# The table of ads.

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "update", "remove"]),
        st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True),
    ),
    max_size=25,
)


@given(_STEPS)
@settings(deadline=None)
def test_table_behaves_as_a_dictionary(steps: list[tuple[str, list[int]]]) -> None:
    table, expected = AdTable(2), {}
    for number, (action, ads) in enumerate(steps):
        ids = np.array(ads)
        vectors = torch.tensor([[float(ad), float(number)] for ad in ads])
        is_known = {ad in expected for ad in ads}
        if is_known == {action != "add"}:
            arguments = (ids,) if action == "remove" else (ids, vectors)
            getattr(table, action)(*arguments)
            for ad, vector in zip(ads, vectors.tolist(), strict=True):
                if action == "remove":
                    del expected[ad]
                else:
                    expected[ad] = vector
        else:
            with pytest.raises(DataError):
                getattr(table, action)(*((ids,) if action == "remove" else (ids, vectors)))
        assert len(table) == len(expected)
        assert table.lookup(np.array(list(expected), np.int64)).tolist() == list(expected.values())
        assert all((ad in table) == (ad in expected) for ad in range(13))


@pytest.mark.parametrize(
    ("action", "ads", "message"),
    [
        ("add", [4, 1], "an ad to add must not be in it, got 1. Update it"),
        ("add", [5, 6, 5], "ids must differ, got 5 twice"),
        ("update", [1, 9], "must hold every ad that is asked for, got none of id 9"),
    ],
)
def test_wrong_ids_are_named_and_change_nothing(action, ads, message) -> None:
    table = AdTable(1)
    table.add(np.array([1, 2]), torch.tensor([[1.0], [2.0]]))
    with pytest.raises(DataError, match=message):
        getattr(table, action)(np.array(ads), torch.full((len(ads), 1), 9.0))

    assert len(table) == 2
    assert table.lookup(np.array([2, 1])).tolist() == [[2.0], [1.0]]


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"vectors of 2 ads must be of shape \(2, 3\), got \(2, 4\)"
    ):
        AdTable(3).add(np.array([1, 2]), torch.zeros(2, 4))


def test_ids_beyond_float_precision_stay_apart() -> None:
    table = AdTable(1)
    ids = np.array([2**53, 2**53 + 1, 2**62 + 1])
    table.add(ids, torch.tensor([[1.0], [2.0], [3.0]]))

    assert table.lookup(ids[::-1].copy()).tolist() == [[3.0], [2.0], [1.0]]


def test_table_filled_in_inference_mode_can_be_written_outside_it() -> None:
    with torch.inference_mode():
        table = AdTable(1)
        table.add(np.array([1]), torch.ones(1, 1))
    table.update(np.array([1]), torch.full((1, 1), 2.0))
    table.add(np.array([2, 3]), torch.full((2, 1), 3.0))

    assert table.lookup(np.array([1, 2, 3])).tolist() == [[2.0], [3.0], [3.0]]


def test_table_keeps_numbers_and_no_history() -> None:
    table = AdTable(1)
    table.add(np.array([1]), torch.ones(1, 1, requires_grad=True) * 2)

    assert not table.lookup(np.array([1])).requires_grad
