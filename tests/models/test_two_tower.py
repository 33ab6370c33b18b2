"""Two towers: what moves them, what they read, and what serves them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.errors import ConfigError
from tamis.models.two_tower import TwoTower, TwoTowerConfig
from tamis.retrieval.exact import ExactSearcher
from tamis.retrieval.item_vectors import ItemVectors
from tamis.retrieval.searcher import Request
from tamis.training.config import run_config_from_table
from tamis.training.loop import train
from tamis.training.objective import training_loss

_KINDS, _ITEMS, _USERS = 4, 32, 30
_CONFIG = TwoTowerConfig(embedding_dim=6, tower_dim=8, init_std=0.3)
_SPEC = InputSpec(
    numeric=("affinity",),
    categorical=(
        CategoricalInput(name="user", table="user", side="user"),
        CategoricalInput(name="taste", table="kind", side="user"),
        CategoricalInput(name="item", table="item", side="item"),
        CategoricalInput(name="kind", table="kind", side="item"),
    ),
    sequences=(),
    tables=(
        Table(name="user", num_rows=_USERS + 1),
        Table(name="kind", num_rows=_KINDS + 1),
        Table(name="item", num_rows=_ITEMS + 1),
    ),
    tasks=(Task(name="click"), Task(name="buy", observed_when="click")),
    item="item",
)


def _rows(users: Tensor, items: Tensor, labels: Tensor) -> Batch:
    ids = [users, users % _KINDS + 1, items, items % _KINDS + 1]
    return Batch(
        numeric=torch.zeros(len(users), 1),
        ids=torch.stack(ids, dim=1).int(),
        labels=labels,
        weights=torch.ones(len(users)),
    )


def _batch(rows: int = 24, seed: int = 0) -> Batch:
    """Random pairs; of the last quarter nothing is known."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(1, _USERS + 1, (rows,), generator=generator)
    items = torch.randint(1, _ITEMS + 1, (rows,), generator=generator)
    click = torch.randint(0, 2, (rows,), generator=generator).float()
    buy = torch.randint(0, 2, (rows,), generator=generator).float()
    labels = torch.stack([click, torch.where(click == 1, buy, torch.nan)], dim=1)
    labels[-(rows // 4) :] = torch.nan
    return _rows(users, items, labels)


def _build(config: TwoTowerConfig = _CONFIG, seed: int = 0) -> TwoTower:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TwoTower(config, _SPEC)


def _loss(model: TwoTower, batch: Batch) -> Tensor:
    return training_loss(model(batch), batch.labels, batch.weights, _SPEC.tasks, torch.ones(2))


def _moved_by(model: TwoTower, loss: Tensor) -> set[str]:
    """Parameters that a loss has a gradient for that is not 0."""
    named = list(model.named_parameters())
    gradients = torch.autograd.grad(
        loss, [p for _, p in named], allow_unused=True, retain_graph=True
    )
    pairs = zip(named, gradients, strict=True)
    return {
        name
        for (name, _), grad in pairs
        if grad is not None and bool((grad.to_dense() if grad.is_sparse else grad).any())
    }


_CALIBRATION = {"log_scale", "shift"}


# The scores and their losses.


def test_logits_are_scaled_cosines_and_the_loss_is_that_of_a_slow_loop() -> None:
    config = replace(_CONFIG, id_dropout=0.0)
    model, batch = _build(config), _batch()
    batch = replace(batch, weights=torch.rand(24, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        model.log_scale.copy_(torch.tensor([0.03, -0.02]))
        model.shift.copy_(torch.tensor([0.01, 0.07]))
        model.log_temperature.copy_(torch.tensor([-1.0, -0.4]))
    with torch.no_grad():
        output = model(batch)
        users = model.user_tower(model.tokens(batch, "user")).double().numpy()
        items = model.item_tower(model.tokens(batch, "item"))[:, 0].double().numpy()
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    users /= np.linalg.norm(users, axis=2, keepdims=True)
    ids = batch.ids[:, 2].tolist()
    # Rows of an item before this batch: none, so only gaps within it count, after one of 33.
    log_share = []
    for item in ids:
        at = [row for row, other in enumerate(ids) if other == item]
        total, mass = 0.05 * (_ITEMS + 1), 0.05
        for gap in np.diff(at):
            total, mass = 0.95 * total + 0.05 * gap, 0.95 * mass + 0.05
        log_share.append(np.log(mass / total))
    assert np.std(log_share) > 0.1
    for task in range(2):
        total = 0.0
        for i in range(24):
            cosine = users[i, task] @ items[i]
            # Calibration moves ten times as far as its parameters.
            expected = cosine * np.exp([0.3, -0.2][task]) + [0.1, 0.7][task]
            assert float(output.logits[i, task]) == pytest.approx(expected, abs=1e-5)
            if float(batch.labels[i, task]) != 1.0:
                continue
            scores = [
                users[i, task] @ items[j] / np.exp([-1.0, -0.4][task]) - log_share[j]
                for j in range(24)
            ]
            total += float(batch.weights[i]) * (np.log(np.exp(scores).sum()) - scores[i])
        found = float(output.auxiliary_losses["softmax"][task])
        assert found == pytest.approx(total / 24, rel=1e-4)


def test_softmax_moves_the_towers_and_cross_entropy_the_calibration_alone() -> None:
    model = _build()
    batch = _batch()
    output = model(batch)
    known = ~batch.labels.isnan()
    labels = F.binary_cross_entropy_with_logits(output.logits[known], batch.labels[known])

    assert _moved_by(model, labels) == _CALIBRATION
    softmax = _moved_by(model, output.auxiliary_losses["softmax"].sum())
    everything = {name for name, _ in model.named_parameters()}
    # Fields of side context are read by nobody: their numeric direction has no gradient.
    assert everything - softmax == _CALIBRATION | {"tokens.numeric_weight", "tokens.numeric_bias"}


def test_with_cross_entropy_labels_move_the_towers_and_there_is_no_softmax() -> None:
    model = _build(replace(_CONFIG, objective="cross_entropy"))
    output = model(_batch())

    assert not output.auxiliary_losses
    assert model.frequency is None
    moved = _moved_by(model, _loss(model, _batch()))
    assert {"item_tower.output.layers.0.weight", "log_scale", "shift", "tokens.tables.weight"} <= (
        moved
    )


def test_rows_without_a_label_are_negatives_of_the_others_and_nothing_else() -> None:
    model = _build(replace(_CONFIG, log_q=False, id_dropout=0.0))
    batch = _batch()
    items = model.encode_items(batch).detach().requires_grad_()
    losses = model._softmax_losses(model.encode_user(batch), items, batch)
    gradient = torch.autograd.grad(losses.sum(), items)[0]
    unlabelled = batch.labels.isnan().all(1)

    assert bool(gradient[unlabelled].any(dim=1).all())
    # Without them there are fewer to be told from, and no row of their own is missed.
    kept = (~unlabelled).nonzero().squeeze(1)
    fewer = replace(
        batch,
        numeric=batch.numeric[kept],
        ids=batch.ids[kept],
        labels=batch.labels[kept],
        weights=batch.weights[kept],
    )
    assert bool((24 * losses > 18 * model(fewer).auxiliary_losses["softmax"]).all())


def test_rows_that_a_teacher_labelled_are_no_positives_of_the_softmax() -> None:
    model = _build(replace(_CONFIG, id_dropout=0.0))
    batch = _batch()
    is_taught = batch.labels.isnan().all(1)
    labels = batch.labels.masked_fill(is_taught.unsqueeze(1), 0.4)

    untaught = model(batch)
    model = _build(replace(_CONFIG, id_dropout=0.0))
    taught = model(replace(batch, labels=labels, is_taught=is_taught))

    for name, loss in untaught.auxiliary_losses.items():
        torch.testing.assert_close(taught.auxiliary_losses[name], loss)
    # Nor do they calibrate its scores.
    compared = taught.compared[0].labels
    torch.testing.assert_close(compared, batch.labels, equal_nan=True)


def test_context_is_not_read() -> None:
    model = _build().eval()
    batch = _batch()
    other = replace(batch, numeric=batch.numeric + 3.0)

    assert torch.equal(model(batch).logits, model(other).logits)


def test_frequencies_are_counted_while_training_only_and_of_all_rows() -> None:
    model = _build()
    model(_batch())
    assert int(model.frequency.clock) == 24
    before = {name: value.clone() for name, value in model.frequency.named_buffers()}
    model.eval()(_batch(seed=1))

    assert all(torch.equal(value, before[name]) for name, value in model.frequency.named_buffers())


# What it learns.


def _fit(model: TwoTower, batches: list[Batch]) -> TwoTower:
    dense = [p for n, p in model.named_parameters() if not n.endswith("tables.weight")]
    tables = [p for n, p in model.named_parameters() if n.endswith("tables.weight")]
    optimizers = [torch.optim.Adam(dense, lr=0.01), torch.optim.SparseAdam(tables, lr=0.02)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in batches:
            for optimizer in optimizers:
                optimizer.zero_grad()
            _loss(model.train(), batch).backward()
            for optimizer in optimizers:
                optimizer.step()
    return model.eval()


def _clicks(count: int, shares: Tensor, seed: int) -> Batch:
    """Clicks on items of the user's taste, popular ones more often."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(1, _USERS + 1, (count,), generator=generator)
    fits = (users[:, None] - torch.arange(1, _ITEMS + 1)) % _KINDS == 0
    items = torch.multinomial(fits * shares, 1, generator=generator).squeeze(1) + 1
    return _rows(users, items, torch.ones(count, 2))


def _corpus(model: TwoTower) -> ItemVectors:
    ids = torch.arange(1, _ITEMS + 1)
    zeros = torch.zeros_like(ids)
    return ItemVectors.encode(model, [(ids, _rows(zeros, ids, torch.zeros(_ITEMS, 2)))])


@pytest.mark.slow
def test_popular_items_of_the_users_taste_are_found_first_and_not_without_correction() -> None:
    shares = 1.0 / (1 + torch.arange(_ITEMS) // _KINDS).float() ** 2
    batches = [_clicks(64, shares, seed) for seed in range(250)]
    agreement = {}
    for log_q in (True, False):
        config = replace(_CONFIG, log_q=log_q, frequency_rate=0.02)
        model = _fit(_build(config), batches)
        searcher = ExactSearcher(_corpus(model), model.queries())
        ranks = []
        for user in range(1, 9):
            one = torch.tensor([user])
            request = Request(user=_rows(one, one * 0, torch.zeros(1, 2)))
            found = searcher.search(request, _ITEMS // _KINDS).ids
            assert bool(((found - user) % _KINDS == 0).all()), "the taste decides"
            ranks.append((found.float() / _KINDS).argsort().argsort())
        places = torch.stack(ranks).float()
        order = torch.arange(_ITEMS // _KINDS).float().expand_as(places)
        agreement[log_q] = float(torch.corrcoef(torch.stack([places.ravel(), order.ravel()]))[0, 1])

    # Popularity falls by a factor of 64 from the first item of a taste to its last.
    assert agreement[True] > 0.7
    assert agreement[False] < 0.4


def test_training_loop_trains_it_and_its_logits_are_calibrated(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    table = {
        "model": {"name": "two_tower", "tower_dim": 8},
        "training": {"batch_size": 64, "max_epochs": 2, "ema_decay": 0.9, "device": "cpu"},
    }
    result = train(make_dataset(), run_config_from_table(table), tmp_path / "run")

    assert result.status == "finished"
    # Calibrated: a constant guess has 1, and the softmax's own scores would be far above.
    assert result.metrics["metrics"]["test"]["click"]["ne"] < 1.1
    assert 0.7 < result.metrics["metrics"]["test"]["click"]["calibration"] < 1.3


# What serves it.


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (0.3, 2.0)])
def test_one_dot_product_is_the_weighted_sum_of_all_tasks(weights: tuple[float, ...]) -> None:
    model = _build().eval()
    with torch.no_grad():
        model.log_scale.copy_(torch.tensor([0.05, -0.03]))
    searcher = ExactSearcher(_corpus(model), model.queries(weights))
    user = torch.full((_ITEMS,), 7)
    logits = model(_rows(user, torch.arange(1, _ITEMS + 1), torch.zeros(_ITEMS, 2))).logits
    factors = torch.tensor(weights or (1.0, 1.0))
    expected = (logits * factors).sum(1).sort(descending=True)
    one = torch.tensor([7])
    found = searcher.search(Request(user=_rows(one, one * 0, torch.zeros(1, 2))), _ITEMS)

    assert found.ids.tolist() == (expected.indices + 1).tolist()
    torch.testing.assert_close(found.scores, expected.values.detach(), atol=1e-5, rtol=1e-4)
    assert found.trace.user_flops > 0


def test_cold_item_stands_where_its_content_says() -> None:
    model = _build().eval()
    batch = _batch()
    unseen = replace(batch, ids=batch.ids.clone())
    unseen.ids[:, 2] = 0

    torch.testing.assert_close(
        model.encode_items(batch, by_content=True), model.encode_items(unseen)
    )
    assert not torch.allclose(model.encode_items(batch), model.encode_items(unseen))


def test_ids_are_hidden_at_the_given_rate_while_training_only() -> None:
    model, batch = _build(replace(_CONFIG, id_dropout=0.3)), _batch(4000)
    by_content = model.encode_items(batch, by_content=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = (model.encode_items(batch) - by_content).abs().amax(1) < 1e-6

    # 4000 draws: a deviation of 0.007.
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.03)
    shown = (model.eval().encode_items(batch) - by_content).abs().amax(1) < 1e-6
    assert not shown.any()


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"model.temperature: must be above 0, got 0\.0"),
        ({"frequency_rate": 1.0}, r"frequency_rate: must be above 0 and below 1, got 1\.0"),
        ({"tower_dim": 0}, "model.tower_dim: must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TwoTowerConfig(**options)


def test_model_needs_user_item_and_binary_tasks() -> None:
    no_user = tuple(replace(item, side="item") for item in _SPEC.categorical)
    with pytest.raises(ConfigError, match="some field must be of side 'user', got none"):
        TwoTower(_CONFIG, replace(_SPEC, categorical=no_user))
    money = (Task(name="money", kind="regression"),)
    with pytest.raises(ConfigError, match="task 'money' must be binary"):
        TwoTower(_CONFIG, replace(_SPEC, tasks=money))
    elsewhere = tuple(
        replace(item, side="user" if item.name == "item" else item.side)
        for item in _SPEC.categorical
    )
    with pytest.raises(ConfigError, match="so its side must be 'item'"):
        TwoTower(_CONFIG, replace(_SPEC, categorical=elsewhere))
    with pytest.raises(ValueError, match="must be one for each of 2 tasks, got 1"):
        _build().queries((1.0,))
