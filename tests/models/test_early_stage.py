"""The early-stage ranker: its equations, what each loss moves, and what serves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.errors import ConfigError
from tamis.models.early_serving import served_logits
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.models.output import Output
from tamis.nn.precision import has_fast_bfloat16
from tamis.testing.models import example_batch, example_spec, take_rows
from tamis.training.objective import training_loss

_NAN = float("nan")
_TASKS = (
    Task(name="click", may_be_missing=True),
    Task(name="conversion", observed_when="click"),
    Task(name="hide", may_be_missing=True),
    Task(name="final_click", kind="probability", distils="click", may_be_missing=True),
    Task(name="final_conversion", kind="probability", distils="conversion", may_be_missing=True),
    Task(name="final_hide", kind="probability", distils="hide", may_be_missing=True),
)
_SMALL = EarlyStageConfig(
    embedding_dim=3,
    tower_units=(7,),
    tower_dim=5,
    bottom_units=(9, 8),
    expert_units=((9, 8), (6,)),
    num_experts=3,
    head_units=(4,),
    init_std=0.5,
)
_SPEC = replace(example_spec(), tasks=_TASKS)


def _model(settings: EarlyStageConfig = _SMALL, spec: InputSpec = _SPEC) -> EarlyStage:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EarlyStage(settings, spec)


def _cascade_batch(*, impressed: int = 20, scored: int = 12) -> Batch:
    """Impressed rows with labels, then scored ones without; all with the final stage's."""
    rows = impressed + scored
    generator = torch.Generator().manual_seed(1)
    batch = example_batch(_SPEC, rows=rows)
    batch.labels[:, 3:] = torch.rand(rows, 3, generator=generator)
    batch.labels[:, 1][batch.labels[:, 0] == 0] = _NAN
    batch.labels[impressed:, :3] = _NAN
    return batch


def _gradients(
    model: EarlyStage, batch: Batch, task_weights: list[float] | None = None
) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    weights = torch.tensor(task_weights or [1.0] * len(_TASKS))
    training_loss(model(batch), batch.labels, batch.weights, _TASKS, weights).backward()
    return {
        name: parameter.grad.to_dense().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


# The equations.


def _side_vectors(reference, model: EarlyStage, row: int) -> dict[str, np.ndarray]:
    """Vector of each side: of ``spec`` the user and past events, the item and its price."""
    user, item, past = reference.embeddings(model.inputs.tables, row)
    price = reference.numbers(row)
    found = {}
    for side, parts in {"user": [user, past], "item": [item, price]}.items():
        x = np.concatenate(parts)
        found[side] = reference.mlp(model.towers[side], x, num_hidden=1)
    return found


@pytest.fixture
def sided(reference):
    (past,) = reference.spec.sequences
    spec = replace(reference.spec, sequences=(replace(past, side="user"),), numeric_sides=("item",))
    return replace(reference, spec=spec)


def _first_layer(model: EarlyStage) -> torch.nn.Linear:
    """The shared network's first layer as one map of query and ad."""
    of_query, of_ad = model.heads.of_query, model.heads.of_ad
    layer = torch.nn.Linear(of_query.in_features + of_ad.in_features, of_query.out_features)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([of_query.weight, of_ad.weight], dim=1))
        layer.bias.copy_(of_query.bias)
    return layer


def test_heads_stand_on_one_network_on_the_towers(sided) -> None:
    model = sided.build(EarlyStage, _SMALL)

    def logits(row: int) -> np.ndarray:
        vectors = _side_vectors(sided, model, row)
        x = np.concatenate([vectors["user"], vectors["item"]])
        x = np.maximum(sided.linear(_first_layer(model), x), 0)
        x = sided.mlp(model.heads.rest, x, num_hidden=1)
        towers = model.heads.towers.towers
        return np.concatenate([sided.mlp(tower, x, num_hidden=1) for tower in towers])

    sided.check(model, logits)


def test_dot_product_of_a_map_of_the_query_with_the_ad(sided) -> None:
    model = sided.build(EarlyStage, replace(_SMALL, bottom="dot"))

    def logits(row: int) -> np.ndarray:
        vectors = _side_vectors(sided, model, row)
        maps = sided.array(model.heads.project.weight).reshape(2, 5, 5)
        found = []
        for weight, bias in zip(maps, sided.array(model.heads.bias), strict=True):
            wanted = [sum(weight[i, j] * vectors["user"][j] for j in range(5)) for i in range(5)]
            found.append(bias + sum(w * a for w, a in zip(wanted, vectors["item"], strict=True)))
        return np.array(found)

    sided.check(model, logits)


def test_context_has_a_tower_of_its_own(reference) -> None:
    # The shared spec leaves history and price to the context.
    model = reference.build(EarlyStage, _SMALL)

    def logits(row: int) -> np.ndarray:
        user, item, past = reference.embeddings(model.inputs.tables, row)
        inputs = {
            "user": user,
            "context": np.concatenate([past, reference.numbers(row)]),
            "item": item,
        }
        x = np.concatenate(
            [reference.mlp(model.towers[side], x, num_hidden=1) for side, x in inputs.items()]
        )
        x = np.maximum(reference.linear(_first_layer(model), x), 0)
        x = reference.mlp(model.heads.rest, x, num_hidden=1)
        towers = model.heads.towers.towers
        return np.concatenate([reference.mlp(tower, x, num_hidden=1) for tower in towers])

    reference.check(model, logits)


@pytest.mark.parametrize("bottom", ["mmoe", "ple"])
def test_experts_read_both_vectors(bottom: str) -> None:
    heads = _model(replace(_SMALL, bottom=bottom)).heads
    generator = torch.Generator().manual_seed(0)
    query, ads = (torch.randn(4, width, generator=generator) for width in (10, 5))

    found = heads(query, ads)

    for row in range(4):
        x = torch.cat([query[row], ads[row]]).unsqueeze(0)
        expected = [
            tower(vector) for tower, vector in zip(heads.towers.towers, heads.stack(x), strict=True)
        ]
        torch.testing.assert_close(found[row : row + 1], torch.cat(expected, dim=1))


@pytest.mark.parametrize("bottom", ["shared", "mmoe", "ple", "dot"])
@pytest.mark.parametrize("num_queries", [1, 3, 40])
def test_few_queries_for_many_ads_give_what_one_for_each_gives(
    bottom: str, num_queries: int
) -> None:
    heads = _model(replace(_SMALL, bottom=bottom)).heads
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(num_queries, 10, generator=generator)
    ads = torch.randn(60, 5, generator=generator)
    rows = torch.randint(0, num_queries, (60,), generator=generator)

    found = heads(query, ads, rows)

    torch.testing.assert_close(found, heads(query[rows], ads))


@pytest.mark.parametrize("bottom", ["shared", "mmoe", "ple", "dot"])
def test_query_that_is_not_finite_reaches_its_own_ads_alone(bottom: str) -> None:
    heads = _model(replace(_SMALL, bottom=bottom)).heads
    generator = torch.Generator().manual_seed(0)
    query, ads = (torch.randn(4, width, generator=generator) for width in (10, 5))
    rows = torch.tensor([0, 1, 1, 2])
    wanted = heads(query, ads, rows)

    found = heads(query.index_fill(0, torch.tensor([1]), torch.nan), ads, rows)

    torch.testing.assert_close(found[[0, 3]], wanted[[0, 3]])
    assert found[[1, 2]].isnan().all()


@pytest.mark.skipif(
    not has_fast_bfloat16(torch.device("cpu")), reason="layers are fused on fast bfloat16 alone"
)
@pytest.mark.parametrize("bottom", ["shared", "mmoe", "ple", "dot"])
@pytest.mark.parametrize("others", [2, 39, "not finite"])
def test_logits_in_bfloat16_do_not_depend_on_the_queries_that_share_a_call(
    bottom: str, others: int | str
) -> None:
    # Wide enough that a rounding more or less of the first layer shows.
    wide = replace(_SMALL, tower_dim=32, bottom_units=(64,), head_units=(), bottom=bottom)
    heads = _model(wide).heads
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3 if isinstance(others, str) else 1 + others, 64, generator=generator)
    ads = torch.randn(300, 32, generator=generator)
    rows = torch.arange(300) % len(query)
    own = rows == 0
    if others == "not finite":
        query[1] = torch.nan

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        alone = heads(query[:1], ads[own])
        together = heads(query, ads, rows)[own]
        beside = heads(query[rows], ads)[own]

    # Sums may be added up in another order, which now and then changes how one is rounded.
    for found in (together, beside):
        assert found.isclose(alone, rtol=1e-5, atol=1e-5).float().mean() > 0.95


@pytest.mark.parametrize(("missing", "kept"), [("user", "item"), ("item", "user")])
def test_side_without_a_field_is_refused(missing: str, kept: str) -> None:
    spec = InputSpec(
        numeric=(),
        categorical=(CategoricalInput(name="a", table="a", side=kept),),
        sequences=(),
        tables=(Table(name="a", num_rows=3),),
        tasks=_TASKS[:1],
    )
    with pytest.raises(ConfigError, match=f"needs a field of the {missing}'s side .* Set side = "):
        _model(spec=spec)


def test_shared_network_needs_a_layer() -> None:
    with pytest.raises(ConfigError, match=r"bottom_units: must hold a width, got none"):
        EarlyStageConfig(bottom_units=())


def test_chain_needs_probabilities() -> None:
    spec = replace(example_spec(), tasks=(Task(name="spend", kind="regression"),))
    with pytest.raises(ConfigError, match=r"'spend' must be binary, .* set model.chain = false"):
        _model(replace(_SMALL, chain=True), spec)


# What each loss moves.


def test_doubled_pool_without_labels_leaves_the_labels_gradient() -> None:
    batch = _cascade_batch()
    doubled = take_rows(batch, [*range(32), *range(20, 32)])
    model = _model()

    alone = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    before, after = (_gradients(model, rows, alone) for rows in (batch, doubled))
    assert before["heads.of_ad.weight"].abs().max() > 1e-4
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    # With distillation on, the bottom hears of the added rows, and the labels' heads do not.
    before, after = (_gradients(model, rows) for rows in (batch, doubled))
    for head in range(3):
        name = f"heads.towers.towers.{head}.layers.0.weight"
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)
    moved = after["heads.of_ad.weight"] - before["heads.of_ad.weight"]
    assert moved.abs().max() > 1e-4


def _touched_heads(settings: EarlyStageConfig, task: int) -> set[int]:
    weights = [float(place == task) for place in range(6)]
    gradients = _gradients(_model(settings), _cascade_batch(), weights)
    return {
        int(name.split(".")[3])
        for name, gradient in gradients.items()
        if name.startswith("heads.towers") and gradient.abs().sum() > 0
    }


def test_separate_heads_learn_one_thing_each() -> None:
    assert [_touched_heads(_SMALL, task) for task in range(6)] == [{t} for t in range(6)]


def test_mixed_head_learns_label_and_prediction() -> None:
    settings = replace(_SMALL, distillation="mixed")

    assert len(_model(settings).heads.towers.towers) == 3
    assert [_touched_heads(settings, task) for task in range(6)] == [{0}, {1}, {2}] * 2


def test_mixed_loss_is_that_of_the_weighted_mean_of_label_and_prediction() -> None:
    model = _model(replace(_SMALL, distillation="mixed"))
    batch = _cascade_batch(impressed=30, scored=0)
    weights = torch.tensor([1.0, 0, 0, 3.0, 0, 0])
    loss = training_loss(model(batch), batch.labels, batch.weights, _TASKS, weights)

    target = (batch.labels[:, 0] + 3 * batch.labels[:, 3]) / 4
    expected = 0.0
    for logit, share in zip(model(batch).logits[:, 0].tolist(), target.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        expected -= 4 * (share * math.log(p) + (1 - share) * math.log(1 - p)) / 30
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_without_distillation_predictions_teach_nothing() -> None:
    settings = replace(_SMALL, distillation="none")
    model, batch = _model(settings), _cascade_batch()
    other = _cascade_batch()
    other.labels[:, 3:] = 0.5

    before, after = _gradients(model, batch), _gradients(model, other)
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())
    logits = model(batch).logits
    assert torch.equal(logits[:, :3], logits[:, 3:])
    assert not batch.labels[:, 3:].isnan().any()  # the caller's labels stay as they are


@pytest.mark.parametrize("distillation", ["separate", "mixed", "none"])
def test_loss_by_hand(distillation: str) -> None:
    model, batch = _model(replace(_SMALL, distillation=distillation)), _cascade_batch()
    weights = [1.0, 2.0, 0.5, 3.0, 1.5, 0.25]
    found = training_loss(model(batch), batch.labels, batch.weights, _TASKS, torch.tensor(weights))

    labels, logits = batch.labels.double().numpy(), model(batch).logits.detach().double().numpy()
    expected = 0.0
    for task in range(3 if distillation == "none" else 6):
        losses = []
        for row in range(batch.num_rows):
            label, p = labels[row, task], 1 / (1 + math.exp(-logits[row, task]))
            if not math.isnan(label):
                losses.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
        expected += weights[task] * sum(losses) / len(losses)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_chain_learns_conversions_from_all_impressions() -> None:
    model, batch = _model(replace(_SMALL, chain=True)), _cascade_batch()
    weights = torch.tensor([1.0, 1, 0, 0, 0, 0])
    found = training_loss(model(batch), batch.labels, batch.weights, _TASKS, weights)

    labels, logits = batch.labels.tolist(), model(batch).logits.detach().double()
    total = 0.0
    for row in range(20):
        click, conversion = torch.sigmoid(logits[row, :2]).tolist()
        clicked, converted = labels[row][0] == 1, labels[row][1] == 1
        total -= math.log(click if clicked else 1 - click)
        total -= math.log(click * conversion if converted else 1 - click * conversion)
    assert found.item() == pytest.approx(total / 20, rel=1e-5)
    # The final stage's conversion rate is one given a click, and learned as such.
    alone = _gradients(model, batch, [0.0, 0, 0, 0, 1, 0])
    assert alone["heads.towers.towers.4.layers.0.weight"].abs().sum() > 0
    assert alone["heads.towers.towers.3.layers.0.weight"].abs().sum() == 0


def _trained(batch: Batch, *, steps: int = 200, **options: object) -> EarlyStage:
    model = _model(replace(_SMALL, bottom_units=(16,), head_units=(), **options))
    # With the tables as they are there is little to learn by heart.
    dense = [p for p in model.parameters() if p is not _table_of(model)]
    optimizer = torch.optim.Adam(dense)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        loss = training_loss(model(batch), batch.labels, batch.weights, _TASKS, torch.ones(6))
        optimizer.zero_grad()
        model.inputs.tables.weight.grad = None
        loss.backward()
        optimizer.step()
    return model.eval()


def _log_of_known_rates(rows: int) -> Batch:
    """A quarter of impressions is clicked and a fifth of the clicks converts."""
    generator = torch.Generator().manual_seed(3)
    batch = example_batch(_SPEC, rows=rows)
    draws = torch.rand(rows, 3, generator=generator)
    click, conversion = (draws[:, 0] < 0.25).float(), (draws[:, 1] < 0.2).float()
    conversion[click == 0] = _NAN
    batch.labels[:, 0], batch.labels[:, 1] = click, conversion
    batch.labels[:, 2] = (draws[:, 2] < 0.1).float()
    batch.labels[:, 3:] = torch.tensor([0.25, 0.2, 0.1])
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("chain", [False, True])
def test_product_of_the_chain_is_calibrated_over_impressions(chain: bool) -> None:
    batch = _log_of_known_rates(2000)
    model = _trained(batch, chain=chain)

    click, conversion = model(batch).logits[:, :2].sigmoid().T
    converted = batch.labels[:, 1].nan_to_num().sum()
    assert (click * conversion).sum().item() / converted.item() == pytest.approx(1, abs=0.05)
    # Conversions of impressions as plain negatives would give the product itself, and that
    # times the click rate a quarter of what happened.
    assert conversion.mean().item() == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("chain", [False, True])
def test_product_of_the_chain_holds_where_those_who_click_are_those_who_convert(
    chain: bool,
) -> None:
    batch = _log_of_known_rates(4000)
    is_keen = batch.numeric[:, 0] > 0
    draws = torch.rand(4000, 2, generator=torch.Generator().manual_seed(4))
    click = (draws[:, 0] < torch.where(is_keen, 0.45, 0.1)).float()
    conversion = (draws[:, 1] < torch.where(is_keen, 0.5, 0.1)).float()
    conversion[click == 0] = _NAN
    batch.labels[:, 0], batch.labels[:, 1] = click, conversion
    model = _trained(batch, chain=chain)

    predicted = model(batch).logits[:, :2].sigmoid()
    product = predicted[:, 0] * predicted[:, 1]
    converted = conversion.nan_to_num()
    assert product.sum().item() / converted.sum().item() == pytest.approx(1, abs=0.05)
    # Among the keen 9 conversions for each 40 impressions, among the others 1 for each 100; of all
    # alike it would be 12 for each 100.
    for group in (is_keen, ~is_keen):
        expected = converted[group].mean().item()
        assert product[group].mean().item() == pytest.approx(expected, abs=0.03)


@pytest.mark.slow
def test_distilled_heads_imitate_predictions_that_differ_from_labels() -> None:
    batch = _log_of_known_rates(1000)
    # A teacher that says twice what happens: the two heads must tell them apart.
    batch.labels[:, 3] = 0.5
    model = _trained(batch)

    mean = model(batch).logits.sigmoid().mean(0)
    assert mean[0].item() == pytest.approx(batch.labels[:, 0].mean().item(), abs=0.01)
    assert mean[3].item() == pytest.approx(0.5, abs=0.01)
    mixed = _trained(batch, distillation="mixed")
    assert mixed(batch).logits[:, 0].sigmoid().mean().item() == pytest.approx(0.375, abs=0.02)


def _heads_after(batch: Batch, *, frozen: bool) -> dict[str, torch.Tensor]:
    """Heads of click and of its final-stage prediction after some steps."""
    model = _model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith("heads.towers"))
    moving = [p for p in model.parameters() if p.requires_grad and p is not _table_of(model)]
    optimizer = torch.optim.Adam(moving, lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        loss = training_loss(model(batch), batch.labels, batch.weights, _TASKS, torch.ones(6))
        loss.backward()
        optimizer.step()
    state = model.state_dict()
    return {name: state[f"heads.towers.towers.{name}.layers.0.weight"] for name in ("0", "3")}


def _table_of(model: EarlyStage) -> nn.Parameter:
    return model.inputs.tables.weight


def test_rows_of_a_task_reach_other_heads_through_the_bottom_alone() -> None:
    batch, without = _cascade_batch(), _cascade_batch()
    without.labels[:, 2] = _NAN  # nobody hid anything

    frozen = [_heads_after(rows, frozen=True) for rows in (batch, without)]
    assert all(torch.equal(frozen[0][name], frozen[1][name]) for name in ("0", "3"))
    free = [_heads_after(rows, frozen=False) for rows in (batch, without)]
    assert not any(torch.equal(free[0][name], free[1][name]) for name in ("0", "3"))


# What serves.


def test_served_logits_are_those_of_the_chosen_heads() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 5.0, 6.0, 8.0]])

    assert served_logits(logits, _TASKS, "label").tolist() == [[1, 2, 3]]
    assert served_logits(logits, _TASKS, "distilled").tolist() == [[5, 6, 8]]
    assert served_logits(logits, _TASKS, "mean").tolist() == [[3, 4, 5.5]]


def test_task_that_is_not_distilled_is_served_by_its_label() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    tasks = (*_TASKS[:2], _TASKS[3])

    assert served_logits(logits, tasks, "distilled").tolist() == [[3, 2]]
    assert served_logits(logits, tasks, "mean").tolist() == [[2, 2]]


def test_output_needs_no_supervision_of_its_own_in_the_plain_form() -> None:
    output = _model()(_cascade_batch())

    assert isinstance(output, Output)
    assert output.supervised is None
