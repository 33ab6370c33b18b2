"""HSNN: what each loss moves, what each level sees, and what state a checkpoint holds."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tamis.data.batch import Batch, Jagged
from tamis.data.dataset import Dataset
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Table, Task
from tamis.errors import ConfigError
from tamis.models.hsnn import HSNN, HSNNConfig
from tamis.models.in_batch_pairs import InBatchPairs
from tamis.models.monn import MoNNConfig
from tamis.nn.linear import missing_rows
from tamis.nn.sampled_softmax import draw_others
from tamis.retrieval.occupancy import occupancy
from tamis.retrieval.snapshot import IndexSnapshot
from tamis.training.config import run_config_from_table
from tamis.training.loop import train
from tamis.training.objective import training_loss

pytestmark = pytest.mark.slow

_KINDS, _ITEMS, _USERS = 6, 48, 30
_SMALL = MoNNConfig(user_tokens=2, user_dim=6, width=6, module_tokens=2, head_units=(8,))
_CONFIG = HSNNConfig(
    embedding_dim=6,
    levels=(replace(_SMALL, user_tokens=3), _SMALL, _SMALL),
    codebooks=(6, 4),
    item_dim=8,
    cross_dim=6,
    alpha_steps=20,
    warmup_steps=10,
    queue_batches=4,
    cluster_steps=5,
    cluster_rows=256,
    init_std=0.3,
)

SPEC = InputSpec(
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


def _batch(rows: int, seed: int = 0) -> Batch:
    """Clicks follow from the pair's own feature and from a taste that meets the item's kind."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(1, _USERS + 1, (rows,), generator=generator)
    items = torch.randint(1, _ITEMS + 1, (rows,), generator=generator)
    tastes, kinds = users % _KINDS + 1, items % _KINDS + 1
    affinity = torch.randn(rows, generator=generator)
    chance = torch.sigmoid(2 * affinity + 3 * (tastes == kinds) - 1.5)
    click = torch.bernoulli(chance, generator=generator)
    buy = torch.bernoulli(torch.full((rows,), 0.4), generator=generator)
    labels = torch.stack([click, torch.where(click == 1, buy, torch.nan)], dim=1)
    return Batch(
        numeric=affinity.unsqueeze(1),
        ids=torch.stack([users, tastes, items, kinds], dim=1).int(),
        labels=labels,
        weights=torch.ones(rows),
    )


def _build(config: HSNNConfig = _CONFIG, seed: int = 0, spec: InputSpec = SPEC) -> HSNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HSNN(config, spec)


def _loss(model: HSNN, batch: Batch) -> Tensor:
    return training_loss(model(batch), batch.labels, batch.weights, SPEC.tasks, torch.ones(2))


def _fit(model: HSNN, steps: int, *, rows: int = 64, first: int = 0, lr: float = 0.01) -> HSNN:
    # One optimizer for tables too: a dense step is nothing on tables of this size.
    dense = [p for n, p in model.named_parameters() if not n.endswith("tables.weight")]
    tables = [p for n, p in model.named_parameters() if n.endswith("tables.weight")]
    optimizers = [torch.optim.Adam(dense, lr=lr), torch.optim.SparseAdam(tables, lr=lr)]
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for step in range(first, first + steps):
            model.zero_grad(set_to_none=True)
            _loss(model, _batch(rows, seed=step)).backward()
            for optimizer in optimizers:
                optimizer.step()
    return model


@pytest.fixture(scope="module")
def trained() -> HSNN:
    return _fit(_build(), 250).eval()


def _norm(gradients: tuple[Tensor | None, ...]) -> float:
    return sum(float(g.to_dense().norm()) for g in gradients if g is not None)


def _gradient(loss: Tensor, parameters: list[Tensor]) -> float:
    """Sum of gradient norms; 0 where the loss does not depend on any of them."""
    if not loss.requires_grad or not parameters:
        return 0.0
    return _norm(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def _trunk(model: HSNN) -> list[Tensor]:
    """Everything but the calibration."""
    named = model.named_parameters()
    return [p for name, p in named if not name.endswith(("log_scale", "shift"))]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    known = ~labels.isnan()
    return F.binary_cross_entropy_with_logits(logits[known], labels[known])


# Levels and ensemble.


def test_forward_and_serving_parts_say_the_same(trained: HSNN) -> None:
    batch = _batch(12, seed=7)
    with torch.no_grad():
        found = trained.level_logits(batch, "hard")
        items = trained.encode_items(batch)
        seen = [*trained.index.hard(items).nodes, items]
        users = trained.encode_user(batch)
        for row in range(12):
            outputs = []
            for level in range(3):
                pair = replace(
                    batch,
                    numeric=batch.numeric[row : row + 1],
                    ids=batch.ids[row : row + 1],
                )
                outputs.append(
                    trained.pair_logits(
                        level, users[level][row : row + 1], seen[level][row : row + 1], pair
                    )
                )
                joined = trained.ensemble(level, torch.stack(outputs, dim=1))
                torch.testing.assert_close(joined[0], found[row, level], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(trained(batch).logits, found[:, -1])


def test_ensemble_is_linear_in_this_and_all_coarser_levels(trained: HSNN) -> None:
    outputs = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    for level in range(3):
        part = trained.levels[level]
        flat = outputs[:, : level + 1].flatten(1)  # level 0's tasks first
        z = flat @ part.weigh.weight.T + part.weigh.bias
        expected = z * part.log_scale.exp() + part.shift

        torch.testing.assert_close(trained.ensemble(level, outputs[:, : level + 1]), expected)
        if level:
            assert part.weigh.weight[:, : 2 * level].abs().max().item() > 0.05


def test_each_level_starts_from_its_own_logits() -> None:
    outputs = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))

    assert torch.equal(_build().eval().ensemble(2, outputs), outputs[:, 2])


def test_evaluation_sees_nearest_nodes_and_training_blends() -> None:
    model = _fit(_build(), 3)
    batch = _batch(40, seed=9)
    soft = model.eval().level_logits(batch, "soft")
    hard = model.level_logits(batch, "hard")

    assert not torch.allclose(soft[:, 0], hard[:, 0], atol=1e-4)
    torch.testing.assert_close(model(batch).logits, hard[:, -1])


def test_soft_nodes_become_the_nearest_ones(trained: HSNN) -> None:
    batch = _batch(300, seed=11)
    items = trained.encode_items(batch)
    soft, hard = trained.index.soft(items), trained.index.hard(items)

    for level in range(2):
        # The specification's bars: less than half a nat a row, and nodes that differ.
        assert torch.special.entr(soft.weights[level]).sum(1).mean().item() < 0.5
        assert soft.nodes[level].var(0).sum().item() > 1e-3
        apart = _cross_entropy(trained.level_logits(batch, "soft")[:, level], batch.labels)
        apart = apart - _cross_entropy(trained.level_logits(batch, "hard")[:, level], batch.labels)
        assert abs(apart.item()) < 0.05
    assert hard.residuals[1].norm(dim=1).mean() > hard.residuals[2].norm(dim=1).mean()


def test_representatives_stand_in_for_nodes(trained: HSNN) -> None:
    batch = _batch(20, seed=3)
    items = trained.encode_items(batch)
    nodes = trained.index.hard(items).nodes

    assert torch.equal(
        trained.level_logits(batch, list(nodes)), trained.level_logits(batch, "hard")
    )
    moved = trained.level_logits(batch, [items, items])
    assert not torch.allclose(moved, trained.level_logits(batch, "hard"), atol=1e-4)


def test_features_of_pairs_matter_at_the_level_that_has_them(trained: HSNN) -> None:
    batch = _batch(2000, seed=500)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    shuffled = replace(batch, numeric=batch.numeric[order])
    before = trained.level_logits(batch, "hard")
    after = trained.level_logits(shuffled, "hard")
    guess = _cross_entropy(batch.labels[:, :1].mean().logit().expand(2000, 1), batch.labels[:, :1])

    losses = [_cross_entropy(x[:, -1, :1], batch.labels[:, :1]) for x in (before, after)]
    # Permuted features must cost more than a tenth of what there is to learn.
    assert losses[0] < guess - 0.1
    assert losses[1] > losses[0] + 0.1 * (guess - losses[0])
    # Index levels have no features of pairs, and so nothing to lose.
    assert torch.equal(before[:, :2], after[:, :2])


def _corpus() -> tuple[Tensor, Batch]:
    ids = torch.arange(1, _ITEMS + 1)
    batch = _batch(_ITEMS)
    batch.ids[:, 2], batch.ids[:, 3] = ids, ids % _KINDS + 1
    return ids, batch


def test_levels_learn_what_their_nodes_can_tell_and_are_served_as_they_were_trained() -> None:
    level = MoNNConfig(user_tokens=4, user_dim=8, width=8, module_tokens=4, head_units=(32,))
    config = replace(
        _CONFIG, levels=(level,) * 3, item_dim=16, cross_dim=8, embedding_dim=8, alpha_steps=300
    )
    model = _fit(_build(config), 700, rows=256, lr=0.005).eval()
    batch = _batch(8000, seed=999)
    labels = batch.labels[:, :1]
    guess = _cross_entropy(labels.mean().logit().expand(8000, 1), labels)
    snapshot = IndexSnapshot.publish(model, [_corpus()])
    seen = {
        "soft": model.level_logits(batch, "soft"),
        "hard": model.level_logits(batch, "hard"),
        "representative": model.level_logits(
            batch, list(snapshot.representatives_of(batch.ids[:, 2].long()))
        ),
    }
    ne = {
        how: [_cross_entropy(z[:, place, :1], labels).item() / guess.item() for place in range(3)]
        for how, z in seen.items()
    }

    # NE of the truth: 0.917 to whom knows taste and kind, 0.613 to whom knows the affinity too.
    assert ne["hard"][0] < 0.97
    assert ne["hard"][1] < 0.95
    assert ne["hard"][2] < 0.67
    for place in range(3):
        # The specification's bar for the gap, which representatives keep as well: as every level is
        # drawn to its items, nodes lie among their members.
        for served in ("hard", "representative"):
            assert abs(ne["soft"][place] - ne[served][place]) < 1e-3, ne
    for level in occupancy(snapshot):
        assert level.perplexity >= 0.5 * level.codes
        assert level.dead_share <= 0.1
        assert level.largest_to_mean <= 10


# What each loss moves.


@pytest.mark.parametrize("level", [0, 1])
def test_feedback_on_nodes_moves_codebooks_and_item_tower_with_lti_alone(level: int) -> None:
    for learning in ("lti", "em", "sil"):
        model = _build(replace(_CONFIG, index_learning=learning, cluster_steps=2)).train()
        batch = _batch(64)
        model(batch)
        output = model(batch)
        loss = _cross_entropy(output.supervised[level].logits, batch.labels)
        towers = list(model.item_tower.parameters())

        if learning == "lti":
            assert _gradient(loss, towers) > 1e-5
            assert all(_gradient(loss, [c]) > 1e-5 for c in model.codebooks[: level + 1])
        else:
            assert _gradient(loss, towers) == 0
            assert not any(c.requires_grad for c in model.codebooks)


def test_ways_of_learning_differ_in_one_setting_and_end_apart() -> None:
    ended = {}
    for learning in ("lti", "em", "sil"):
        model = _fit(_build(replace(_CONFIG, index_learning=learning)), 12)
        ended[learning] = {n: v.clone() for n, v in model.state_dict().items()}

    starts = [
        _build(replace(_CONFIG, index_learning=learning)).state_dict()
        for learning in ("lti", "sil")
    ]
    # Only what k-means reads and what balance is judged by is there for one of them alone.
    shared = (starts[0].keys() & starts[1].keys()) - {"index.latest"}
    assert {n for n in starts[0].keys() ^ starts[1].keys() if "balance" not in n} == set()
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in shared)
    for one, other in (("lti", "em"), ("lti", "sil"), ("em", "sil")):
        for name in ("codebook0", "codebook1"):
            assert not torch.equal(ended[one][f"index.{name}"], ended[other][f"index.{name}"])
        name = "tokens.tables.weight"
        assert not torch.equal(ended[one][name], ended[other][name])


@pytest.mark.parametrize(
    "late",
    [
        {"index_learning": "sil", "cluster_steps": 3},
        {"index_learning": "lti", "start_steps": 3, "cluster_rows": 64},
        {"index_learning": "em", "start_steps": 3},
    ],
)
def test_there_is_no_index_until_the_first_k_means(late: dict[str, Any]) -> None:
    model = _build(replace(_CONFIG, **late)).train()
    batch = _batch(64)
    output = model(batch)
    levels = [list(level.parameters()) for level in model.levels]
    codebooks = [c.detach().clone() for c in model.codebooks]
    loss = training_loss(output, batch.labels, batch.weights, SPEC.tasks, torch.ones(2))

    for name in ("reconstruction", "balance", "interaction"):
        assert output.auxiliary_losses.get(name, torch.zeros(())).item() == 0
    assert _gradient(loss, levels[0]) == 0
    assert _gradient(loss, levels[2]) > 0
    with torch.no_grad():
        for parameter in levels[0]:
            parameter.add_(1.0)  # whatever index levels say, the items' level does not hear it
    items = model.eval()(batch).logits
    with torch.no_grad():
        for parameter in levels[1]:
            parameter.add_(1.0)
    torch.testing.assert_close(model(batch).logits, items)
    model.train()
    for _ in range(2):
        output = model(batch)
    loss = training_loss(output, batch.labels, batch.weights, SPEC.tasks, torch.ones(2))
    assert _gradient(loss, levels[0]) > 0
    assert not torch.equal(model.codebooks[0], codebooks[0])


def test_loss_is_the_sum_of_its_published_terms() -> None:
    config = replace(
        _CONFIG,
        reconstruction_weight=0.5,
        balance_weight=0.3,
        interaction_weight=0.7,
        unlabelled_weight=0.9,
        warmup_steps=4,
        id_dropout=0.0,
    )
    model = _build(config).train()
    model(_batch(30, seed=1))
    batch = _batch(50, seed=2)
    batch.labels[:7] = torch.nan
    output = model(batch)
    found = training_loss(output, batch.labels, batch.weights, SPEC.tasks, torch.ones(2))

    # The same step again from its parts, with what the first batch left in the queue.
    with torch.no_grad():
        before = _build(config).train()
        before(_batch(30, seed=1))
        items = before.encode_items(batch)
        before.index.step.add_(1)
        quantised = before.index.soft(items)
        users = before.encode_user(batch)
        pairs = before.cross_tower(before.tokens(batch, "context"))
        outputs, expected = [], torch.zeros(())
        for level, vectors in enumerate([*quantised.nodes, items]):
            of_item = vectors.unflatten(1, (1, 8))
            part = before.levels[level]
            cross = pairs if level == 2 else part.interact(users[level], of_item)
            outputs.append(part.network(users[level], of_item, cross))
            if level < 2:
                expected = expected + 0.7 * (cross - pairs).square().mean()
        raw = [
            torch.cat(outputs[: n + 1], dim=1) @ before.levels[n].weigh.weight.T for n in range(3)
        ]
        for z in raw:
            for task in range(2):
                # Calibration starts at the identity, so it costs as much again.
                expected = expected + 2 * _cross_entropy(z[:, task], batch.labels[:, task])
        for z in raw[:-1]:
            taught = torch.sigmoid(raw[-1][:7])
            for task in range(2):
                expected = expected + 0.9 * F.binary_cross_entropy_with_logits(
                    z[:7, task], taught[:, task]
                )
        ramp = 2 / 4
        # The index is that of the corpus, which rows without labels stand for.
        for node in quantised.nodes:
            expected = expected + ramp * 0.5 * (items - node)[:7].square().sum(1).mean()
        for weights, queue in zip(quantised.weights, before.index.balance, strict=True):
            mean = (queue.sums.sum(0) + weights[:7].sum(0)) / 37
            expected = expected + ramp * 0.3 * len(mean) * mean.square().sum()

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


_COUNTED = replace(
    SPEC,
    numeric=("same_kind",),
    numeric_counts=("past_kind",),
    sequences=(
        SequenceInput(
            name="past", fields=("past_kind",), tables=("kind",), max_length=3, side="user"
        ),
    ),
)


def _with_history(batch: Batch) -> Batch:
    """The same rows, each with as many events as its number has left over by 3."""
    lengths = torch.arange(batch.num_rows) % 3
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    kinds = torch.arange(int(offsets[-1])).unsqueeze(1) % _KINDS + 1
    return replace(batch, sequences={"past": Jagged(values=kinds, offsets=offsets)})


@pytest.mark.parametrize("draws", [1.0, 3.0])
def test_negatives_are_items_of_other_rows_corrected_for_how_often_they_come(
    draws: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step's softmax from its parts, pair by pair, with every other row as a negative."""
    asked: list[Tensor] = []

    def drawn(scores: Tensor, own: Tensor, count: int) -> tuple[Tensor, Tensor]:
        asked.extend((scores, own))
        others, log_draws = draw_others(scores, own, count)
        return others, log_draws + math.log(draws)

    monkeypatch.setattr("tamis.models.hsnn.draw_others", drawn)
    config = replace(_CONFIG, negatives=100, id_dropout=0.0)
    model = _build(config, spec=_COUNTED).train()
    batch = _with_history(_batch(9, seed=3))
    batch.labels[0] = torch.nan  # nobody's positive, everybody's negative
    batch.labels[3] = 1.0
    batch.weights[1] = 2.0
    found = model(batch).auxiliary_losses["softmax"]

    share = copy.deepcopy(model.frequency)
    log_share = share.log_share(batch.ids[:, 2]).tolist()
    expected = torch.zeros(2)
    with torch.no_grad():
        items = model.encode_items(batch)
        vectors = [*model.index.soft(items).nodes, items]
        users = model.encode_user(batch)
        for anchor, task in itertools.product(range(9), range(2)):
            if not batch.labels[anchor, task] > 0:
                continue
            for level in range(3):
                scores = []
                for other in range(9):
                    row, item = torch.tensor([anchor]), torch.tensor([other])
                    pair = InBatchPairs(_COUNTED).batch(batch, row, item)
                    if anchor == other:
                        pair = batch.take(row)
                    outputs = [
                        model.pair_logits(n, users[n][row], vectors[n][item], pair)
                        for n in range(level + 1)
                    ]
                    z = model.levels[level].joined(torch.stack(outputs, dim=1))
                    score = z[0, task] - log_share[other]
                    scores.append(score - (0.0 if other == anchor else math.log(draws)))
                loss = torch.stack(scores).logsumexp(0) - scores[anchor]
                expected[task] += loss * batch.weights[anchor] / 9

        partners = model.levels[2].network.product(users[2].flatten(1)).unflatten(1, (2, -1))

    assert expected.all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    guesses, anchors = asked
    positives = (batch.labels > 0).any(1).nonzero().squeeze(1)
    assert anchors.tolist() == positives.tolist()
    wanted = partners @ items.T - torch.tensor(log_share)
    torch.testing.assert_close(guesses, wanted[anchors], rtol=1e-4, atol=1e-5)


def test_rows_that_fill_products_up_to_few_shapes_teach_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _build(replace(_CONFIG, negatives=6, id_dropout=0.0), spec=_COUNTED).train()
    batch = _with_history(_batch(24, seed=3))
    batch.labels[:] = 0.0
    batch.labels[1:18] = 1.0  # 17 rows with a positive, which are computed as 18
    batch.weights[:] = torch.linspace(0.5, 2.0, 24)

    def found(fillers: int) -> Tensor:
        monkeypatch.setattr("tamis.models.hsnn.missing_rows", lambda _: fillers)
        with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(0)
            return copy.deepcopy(model)(batch).auxiliary_losses["softmax"]

    assert missing_rows(17) == 1
    torch.testing.assert_close(found(1), found(0))
    torch.testing.assert_close(found(7), found(0))


def test_negatives_are_drawn_anew_and_no_row_is_its_own() -> None:
    model = _build(replace(_CONFIG, negatives=2), spec=_COUNTED).train()
    batch = _with_history(_batch(40, seed=3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = copy.deepcopy(model)(batch).auxiliary_losses["softmax"]
        two = copy.deepcopy(model)(batch).auxiliary_losses["softmax"]
        torch.manual_seed(0)
        again = copy.deepcopy(model)(batch).auxiliary_losses["softmax"]

    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    alone = model(batch.take(torch.tensor([0]))).auxiliary_losses["softmax"]
    assert torch.equal(alone, torch.zeros(2))  # nothing to compare with


def test_negatives_teach_index_levels_only_once_there_is_an_index() -> None:
    late = replace(_CONFIG, negatives=4, start_steps=3, interaction_weight=0.0)
    model = _build(late, spec=_COUNTED).train()
    batch = _with_history(_batch(40, seed=3))
    of_nodes = list(model.levels[0].network.parameters())
    for step in range(3):
        loss = model(batch).auxiliary_losses["softmax"].sum()
        assert (_gradient(loss, of_nodes) > 0) == (step == 2)


def test_label_weight_multiplies_what_labels_teach_and_not_the_calibration() -> None:
    batch = _with_history(_batch(40, seed=3))

    def found(weight: float) -> tuple[Tensor, list[Tensor]]:
        config = replace(_CONFIG, negatives=4, id_dropout=0.0, label_weight=weight)
        model = _build(config, spec=_COUNTED).train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            output = model(batch)
        loss = training_loss(output, batch.labels, batch.weights, _COUNTED.tasks, torch.ones(2))
        of_scales = [level.log_scale for level in model.levels]
        return loss.detach(), list(torch.autograd.grad(loss, of_scales))

    (none, calibrated), (some, alike), (whole, _) = (found(weight) for weight in (0.0, 0.25, 1.0))
    assert whole > none + 0.1
    torch.testing.assert_close(some, none + 0.25 * (whole - none))
    assert all(gradient.abs().max() > 0 for gradient in calibrated)
    torch.testing.assert_close(alike, calibrated)


def test_product_weight_adds_the_softmax_of_inner_products_over_the_batch() -> None:
    batch = _with_history(_batch(40, seed=3))
    batch.weights[5] = 2.0

    def found(weight: float) -> tuple[Tensor, HSNN]:
        config = replace(_CONFIG, negatives=4, id_dropout=0.0, product_weight=weight)
        model = _build(config, spec=_COUNTED).train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model(batch).auxiliary_losses["softmax"].detach(), model

    (without, _), (with_it, model) = found(0.0), found(0.5)

    log_share = model.frequency.log_share(batch.ids[:, 2])
    expected = torch.zeros(2)
    with torch.no_grad():
        items = model.encode_items(batch)
        vectors = [*model.index.soft(items).nodes, items]
        users = model.encode_user(batch)
        for level, row, task in itertools.product(range(3), range(40), range(2)):
            if batch.labels[row, task] > 0:
                partner = model.levels[level].network.product(users[level][row].flatten())
                scores = vectors[level] @ partner.unflatten(0, (2, -1))[task] - log_share
                loss = scores.logsumexp(0) - scores[row]
                expected[task] += 0.5 * loss * batch.weights[row] / 40
    assert expected.all()
    torch.testing.assert_close(with_it - without, expected, rtol=1e-4, atol=1e-5)


def test_products_learn_by_a_softmax_only_where_others_do() -> None:
    with pytest.raises(ConfigError, match=r"model.product_weight: must be 0 where model.negatives"):
        replace(_CONFIG, product_weight=1.0)


def test_levels_must_learn_from_something() -> None:
    with pytest.raises(ConfigError, match=r"model.label_weight: must be above 0 where"):
        replace(_CONFIG, label_weight=0.0)


def test_negatives_need_features_that_other_pairs_have_too() -> None:
    with pytest.raises(ConfigError, match="of other pairs, got 'affinity'"):
        _build(replace(_CONFIG, negatives=4))


def test_unseen_labels_teach_nothing() -> None:
    model = _build(replace(_CONFIG, id_dropout=0.0)).eval()
    batch = _batch(64)
    other = replace(batch, labels=batch.labels.clone())
    other.labels[batch.labels[:, 0] == 1, 1] = torch.nan
    with_buys, without = _loss(model, batch), _loss(model, other)

    click = other.labels.clone()
    click[:, 1] = torch.nan
    torch.testing.assert_close(without, _loss(model, replace(batch, labels=click)))
    assert abs(with_buys.item() - without.item()) > 0.1


def test_unlabelled_rows_teach_index_levels_and_leave_their_teacher_alone() -> None:
    batch = _batch(32)
    batch.labels[:] = torch.nan
    for learning in ("lti", "em"):
        config = replace(_CONFIG, index_learning=learning, interaction_weight=0.0)
        config = replace(config, reconstruction_weight=0.0, balance_weight=0.0)
        model = _build(config).train()
        loss = _loss(model, batch)

        assert loss.item() > 0
        assert _gradient(loss, list(model.levels[0].network.parameters())) > 0
        assert _gradient(loss, list(model.levels[2].parameters())) == 0
        assert _gradient(loss, list(model.cross_tower.parameters())) == 0


def test_index_clusters_what_was_drawn_from_the_corpus_not_what_was_shown() -> None:
    model = _build(replace(_CONFIG, start_steps=3, id_dropout=0.0)).train()
    batch = _batch(50, seed=2)
    batch.labels[10:30] = torch.nan

    model(batch)
    drawn = model.index.latest[-20:].clone()
    model(_batch(50, seed=3))

    torch.testing.assert_close(drawn, model.encode_items(batch)[10:30])
    # Of a batch without such rows all of them are kept.
    assert (model.index.latest[-70:].norm(dim=1) > 0.5).all()
    assert (model.index.latest[:-70] == 0).all()


def test_rows_that_a_teacher_labelled_stand_for_the_corpus_and_teach_every_level() -> None:
    batch = _batch(50, seed=2)
    is_taught = torch.arange(50) >= 30
    labels = batch.labels.masked_fill(is_taught.unsqueeze(1), 0.25)
    taught = replace(batch, labels=labels, is_taught=is_taught)
    late = _build(replace(_CONFIG, start_steps=3, id_dropout=0.0)).train()
    model = _build(replace(_CONFIG, start_steps=1, unlabelled_weight=1.0)).train()

    late(taught)
    output = model(taught)

    torch.testing.assert_close(late.index.latest[-20:], late.encode_items(batch)[30:])
    compared = [item for item in output.compared if item.labels is not None]
    assert len(output.compared) == len(compared)
    targets = torch.stack([item.labels for item in compared])  # type: ignore[misc]
    # Every level learns from the teacher, no calibration does, and nothing teaches itself.
    assert bool((targets[: model.num_levels, 30:] == 0.25).all())
    assert bool(targets[model.num_levels :, 30:].isnan().all())
    assert bool(targets[2 * model.num_levels :].isnan().all())


def test_few_rows_without_label_are_not_taken_for_the_corpus() -> None:
    model = _build(replace(_CONFIG, start_steps=3, id_dropout=0.0)).train()
    batch = _batch(50, seed=2)
    batch.labels[:4] = torch.nan
    model(batch)
    assert (model.index.latest[-50:].norm(dim=1) > 0.5).all()


def test_interaction_loss_moves_the_towers_of_nodes_and_not_its_target() -> None:
    model = _build().train()
    loss = model(_batch(32)).auxiliary_losses["interaction"]

    for level in model.levels[:2]:
        assert _gradient(loss, list(level.node_tower.parameters())) > 0
    assert _gradient(loss, list(model.cross_tower.parameters())) == 0


def test_index_losses_ramp_up_linearly() -> None:
    model = _build(replace(_CONFIG, warmup_steps=4, alpha_max=0.0)).train()
    found = []
    for _ in range(6):
        # Equal memberships at all times: the regulariser is 1 for each of two levels.
        found.append(model(_batch(32)).auxiliary_losses["balance"].item())

    assert found == pytest.approx([0.2 * g for g in (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)], rel=1e-4)


def test_calibration_learns_from_detached_logits_and_calibrates_every_level(trained: HSNN) -> None:
    batch = _batch(64)
    output = trained(batch)
    loss = sum(_cross_entropy(item.logits, batch.labels) for item in output.supervised[3:6])
    assert _gradient(loss, _trunk(trained)) == 0

    model = copy.deepcopy(trained)
    mine = [p for name, p in model.named_parameters() if name.endswith(("log_scale", "shift"))]
    with torch.no_grad():
        for parameter in mine:
            parameter.fill_(-0.7)
    truth = _batch(2000, seed=900)
    optimizer = torch.optim.Adam(mine, lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sum(
            _cross_entropy(item.logits[:, task], truth.labels[:, task])
            for item in model(truth).supervised[3:6]
            for task in range(2)
        ).backward()
        optimizer.step()
    predicted = torch.sigmoid(model.level_logits(truth, "hard").detach())
    for level in range(3):
        for task in range(2):
            known = ~truth.labels[:, task].isnan()
            ratio = predicted[known, level, task].sum() / truth.labels[known, task].sum()
            # The specification's bar for every level.
            assert ratio.item() == pytest.approx(1.0, abs=0.02)
    assert all(torch.equal(a, b) for a, b in zip(_trunk(model), _trunk(trained), strict=True))


# Cold items.


def test_items_without_id_are_placed_by_content_whatever_the_id_table_holds(trained: HSNN) -> None:
    batch = _batch(40, seed=2)
    cold = replace(batch, ids=batch.ids.clone())
    cold.ids[:, 2] = 0
    with torch.no_grad():
        table = trained.tokens.tables
        first = table.first_row["item"]
        kept = table.weight[first:].clone()
        before = trained.encode_items(cold), trained.encode_items(batch, by_content=True)
        table.weight[first:] = 0.0
        after = trained.encode_items(cold), trained.encode_items(batch, by_content=True)
        table.weight[first:] = kept
        warm = trained.encode_items(batch)

    assert torch.equal(before[0], before[1])
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(warm, before[0], atol=1e-3)


def test_ids_are_hidden_at_the_given_rate_while_training_only() -> None:
    model = _build(replace(_CONFIG, id_dropout=0.3)).train()
    batch = _batch(4000)
    by_content = model.encode_items(batch, by_content=True)
    hidden = (model.encode_items(batch) - by_content).abs().amax(1) < 1e-6

    # 4000 draws: a deviation of 0.007.
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.03)
    shown = (model.eval().encode_items(batch) - by_content).abs().amax(1) < 1e-6
    assert not shown.any()


def test_item_vectors_have_unit_length_and_no_field_of_the_user(trained: HSNN) -> None:
    batch = _batch(10)
    other = replace(batch, numeric=batch.numeric + 1, ids=batch.ids.clone())
    other.ids[:, :2] = 1

    torch.testing.assert_close(trained.encode_items(batch).norm(dim=1), torch.ones(10))
    assert torch.equal(trained.encode_items(batch), trained.encode_items(other))


# State.


@pytest.mark.parametrize("learning", ["lti", "em", "sil"])
def test_training_goes_on_from_a_state_dict_bit_for_bit(learning: str) -> None:
    config = replace(_CONFIG, index_learning=learning, id_dropout=0.0, cluster_steps=4)
    whole, resumed = _fit(_build(config), 6), _build(config, seed=9)
    resumed.load_state_dict(whole.state_dict())
    for model in (whole, resumed):
        _fit(model, 5, first=6)

    left, right = whole.state_dict(), resumed.state_dict()
    assert left["index.step"] == 11
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("learning", ["lti", "em", "sil"])
def test_ordinary_training_loop_trains_it(
    make_dataset: Callable[..., Dataset], tmp_path: Path, learning: str
) -> None:
    level = {"user_tokens": 2, "width": 6, "module_tokens": 2, "head_units": [8]}
    settings = run_config_from_table(
        {
            "model": {
                "name": "hsnn",
                "levels": [level, level],
                "codebooks": [4],
                "index_learning": learning,
                "cluster_steps": 2,
            },
            "training": {"max_epochs": 1, "batch_size": 100},
        }
    )
    result = train(make_dataset(), settings, tmp_path / "run")

    assert result.status == "finished"
    assert 0 < result.metrics["metrics"]["valid"]["click"]["log_loss"] < 1


def test_inspections_show_the_spread_of_traffic(trained: HSNN) -> None:
    batch = _batch(200)
    (found,) = trained.inspections(batch)
    share = trained.index.hard(trained.encode_items(batch)).weights[0].mean(0)

    assert found.columns == ("level 1", "level 2")
    perplexity = torch.special.entr(share).sum().exp() / 6
    torch.testing.assert_close(found.values[0, 0], perplexity)
    torch.testing.assert_close(found.values[1, 0], share.max() * 6)
    assert not _build(replace(_CONFIG, codebooks=(), levels=(_SMALL,))).inspections(batch)


# What is refused.


def test_levels_must_be_one_more_than_codebooks() -> None:
    with pytest.raises(ConfigError, match="must be one more than the 2 codebooks, got 2"):
        HSNNConfig(levels=(_SMALL, _SMALL), codebooks=(4, 4))


@pytest.mark.parametrize("side", ["user", "item"])
def test_user_and_item_must_have_a_field(side: str) -> None:
    fields = tuple(item for item in SPEC.categorical if item.side != side)

    with pytest.raises(ConfigError, match=f"some field must be of side '{side}', got none"):
        _build(spec=replace(SPEC, categorical=fields, item=""))


def test_id_of_the_item_must_be_of_its_side() -> None:
    with pytest.raises(ConfigError, match="field 'user' holds the item's id, so its side must be"):
        _build(spec=replace(SPEC, item="user"))


def test_regression_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="task 'spend' must be binary"):
        _build(spec=replace(SPEC, tasks=(Task(name="spend", kind="regression"),)))


def test_pairs_must_be_given_at_the_items_level(trained: HSNN) -> None:
    batch = _batch(3)
    user = trained.encode_user(batch)[2]

    with pytest.raises(ValueError, match="pairs must be given at the items' level, got None"):
        trained.pair_logits(2, user, trained.encode_items(batch), None)
