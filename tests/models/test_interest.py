"""DIN, DIEN, BST, DMIN, DMR and TransAct against their equations, one row at a time, in float64.

The reference works on the events that a row really has; the first row has none.
"""

import dataclasses

import numpy as np
import pytest
import torch

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Table, Task
from tamis.errors import ConfigError
from tamis.models import catalog, dmr
from tamis.models.bst import BST, BSTConfig
from tamis.models.dien import DIEN, DIENConfig, next_event_loss
from tamis.models.din import DIN, DINConfig
from tamis.models.dmin import DMIN, DMINConfig
from tamis.models.dmr import DMR, DMRConfig
from tamis.models.transact import TransAct, TransActConfig
from tamis.nn.sequence import Events
from tamis.testing.models import example_batch, example_spec

_SMALL: dict = {"embedding_dim": 4, "hidden_units": (9,), "activation": "relu"}
_NAMES = ("bst", "dien", "din", "dmin", "dmr", "transact")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


class Rows:
    """Inputs of one row, and the parts that several models share."""

    def __init__(self, reference, model: torch.nn.Module) -> None:
        self.reference, self.model = reference, model
        (self.unit,) = model.units

    def array(self, parameter: torch.Tensor) -> np.ndarray:
        return self.reference.array(parameter)

    def linear(self, layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
        return self.reference.linear(layer, x)

    def vectors(self, row: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Fields, the candidate, and the events from the oldest on."""
        tables, batch = self.model.inputs.tables, self.reference.batch
        weight = self.array(tables.weight)
        user, item = (
            weight[tables.first_row[name] + index]
            for name, index in zip(("user", "item"), batch.ids[row].tolist(), strict=True)
        )
        past = batch.sequences["past"]
        places = range(int(past.offsets[row]), int(past.offsets[row + 1]))
        events = [weight[tables.first_row["item"] + int(past.values[place, 0])] for place in places]
        return np.concatenate([user, item, self.reference.numbers(row)]), item, events

    def head(self, *parts: np.ndarray) -> np.ndarray:
        return self.reference.mlp(self.model.head, np.concatenate(parts), num_hidden=1)

    def score(self, unit: torch.nn.Module, target: np.ndarray, event: np.ndarray) -> float:
        pair = np.concatenate([target, event, target - event, target * event])
        return float(self.reference.mlp(unit.score, pair, num_hidden=1)[0])

    def heads(
        self, unit: torch.nn.Module, tokens: np.ndarray, count: int, *, causal: bool = False
    ) -> list[np.ndarray]:
        """Each head's mixture for each token, of all tokens or of those up to its own place."""
        parts = np.split(np.array([self.linear(unit, token) for token in tokens]), 3, axis=1)
        mixed = []
        split = [np.split(part, count, axis=1) for part in parts]
        for query, key, value in zip(*split, strict=True):
            rows = []
            for place, q in enumerate(query):
                seen = place + 1 if causal else len(key)
                rows.append(_softmax(key[:seen] @ q / np.sqrt(len(q))) @ value[:seen])
            mixed.append(np.array(rows))
        return mixed

    def self_attention(
        self, unit: torch.nn.Module, tokens: np.ndarray, *, causal: bool = False
    ) -> np.ndarray:
        heads = self.heads(unit.project, tokens, unit.num_heads, causal=causal)
        mixed = np.concatenate(heads, axis=1)
        return np.array([self.linear(unit.output, token) for token in mixed])

    def norm(self, norm: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
        return np.array([self.reference.layer_norm(norm, token) for token in tokens])

    def transformer(self, tokens: np.ndarray, *, activation: str) -> np.ndarray:
        for layer in self.unit.layers:
            tokens = self.norm(
                layer.norms[0], tokens + self.self_attention(layer.attention, tokens)
            )
            fed = [
                self.reference.mlp(layer.feed_forward, t, num_hidden=1, activation=activation)
                for t in tokens
            ]
            tokens = self.norm(layer.norms[1], tokens + np.array(fed))
        return tokens


@pytest.mark.parametrize("softmax", [False, True])
def test_din_weighs_events_by_an_mlp_on_the_pair(reference, softmax: bool) -> None:
    settings = DINConfig(
        **_SMALL, attention_units=(5,), attention_activation="relu", softmax=softmax
    )
    model = reference.build(DIN, settings)
    rows = Rows(reference, model)

    def logits(row: int) -> np.ndarray:
        fields, target, events = rows.vectors(row)
        interest = np.zeros(4)
        if events:
            weights = np.array([rows.score(rows.unit.attention, target, e) for e in events])
            weights = _softmax(weights) if softmax else weights
            interest = sum(w * e for w, e in zip(weights, events, strict=True))
        return rows.head(fields, interest)

    reference.check(model, logits)


def test_dien_evolves_the_interests_of_a_recurrent_network(reference) -> None:
    model = reference.build(DIEN, DIENConfig(**_SMALL))
    rows = Rows(reference, model)

    def gates(unit: torch.nn.Module, x: np.ndarray, h: np.ndarray) -> tuple:
        read = np.split(rows.linear(unit.read, x), 3)
        kept = np.split(rows.linear(unit.keep, h), 3)
        reset, update = _sigmoid(read[0] + kept[0]), _sigmoid(read[1] + kept[1])
        return update, np.tanh(read[2] + reset * kept[2])

    def logits(row: int) -> np.ndarray:
        fields, target, events = rows.vectors(row)
        interests, h = [], np.zeros(4)
        for event in events:
            update, content = gates(rows.unit.extract, event, h)
            h = (1 - update) * h + update * content
            interests.append(h)
        state = np.zeros(4)
        if events:
            wanted = rows.linear(rows.unit.attention, target)
            attention = _softmax(np.array([h @ wanted for h in interests]))
            for a, h in zip(attention, interests, strict=True):
                update, content = gates(rows.unit.evolve, h, state)
                state = (1 - a * update) * state + a * update * content
        return rows.head(fields, state)

    reference.check(model, logits)


@pytest.mark.parametrize("pooling", ["concat", "mean", "target"])
def test_bst_is_a_transformer_on_candidate_and_events(reference, pooling: str) -> None:
    settings = BSTConfig(**_SMALL, num_layers=2, num_heads=2, pooling=pooling)
    model = reference.build(BST, settings)
    rows = Rows(reference, model)

    def logits(row: int) -> np.ndarray:
        fields, target, events = rows.vectors(row)
        positions = rows.array(rows.unit.positions)
        placed = [e + positions[len(events) - place] for place, e in enumerate(events)]
        placed = np.array([target + positions[0], *placed])
        tokens = rows.transformer(placed, activation="leaky_relu")
        if pooling == "target":
            return rows.head(fields, tokens[0])
        if pooling == "mean":
            return rows.head(fields, tokens.mean(0))
        longest = reference.spec.sequences[0].max_length
        empty = np.zeros((longest - len(events), 4))
        return rows.head(fields, tokens[0], tokens[:0:-1].flatten(), empty.flatten())

    reference.check(model, logits)


def test_transact_reads_pairs_and_keeps_recent_outputs(reference) -> None:
    settings = TransActConfig(**_SMALL, num_heads=2, feed_forward=6, recent_tokens=2)
    model = reference.build(TransAct, settings)
    rows = Rows(reference, model)

    def logits(row: int) -> np.ndarray:
        fields, target, events = rows.vectors(row)
        recent, largest = np.zeros((2, 8)), np.zeros(8)
        if events:
            pairs = np.array([np.concatenate([e, target]) for e in events])
            tokens = rows.transformer(pairs, activation="relu")
            last = tokens[::-1][:2]
            recent[: len(last)] = last
            largest = tokens.max(0)
        x0 = x = np.concatenate([fields, recent.flatten(), largest])
        for layer in model.cross.layers:
            x = x0 * rows.linear(layer, x) + x
        return rows.head(x)

    reference.check(model, logits)


def test_dmin_pools_the_interest_of_every_head(reference) -> None:
    settings = DMINConfig(
        **_SMALL, num_heads=2, attention_units=(5,), attention_activation="relu", position_dim=3
    )
    model = reference.build(DMIN, settings)
    rows = Rows(reference, model)

    def logits(row: int) -> np.ndarray:
        fields, target, events = rows.vectors(row)
        unit, interests = rows.unit, [np.zeros(4)] * 2
        if events:
            tokens = np.array(events)
            mixed = rows.self_attention(unit.refine, tokens, causal=True)
            refined = rows.norm(unit.refine_norm, tokens + mixed)
            fed = [reference.mlp(unit.refine_feed_forward, t, num_hidden=1) for t in refined]
            refined = refined + np.array(fed)
            positions = rows.array(unit.positions)[: len(events)][::-1]
            interests = []
            for index, head in enumerate(rows.heads(unit.project, refined, 2, causal=True)):
                widened = [reference.mlp(unit.widen[index], t, num_hidden=0) for t in head]
                interest = rows.norm(unit.norms[index], refined + np.array(widened))
                fed = [reference.mlp(unit.feed_forward[index], t, num_hidden=1) for t in interest]
                interest = interest + np.array(fed)
                scores = []
                for vector, position in zip(interest, positions, strict=True):
                    beside = np.concatenate([target, position])
                    placed = reference.mlp(unit.place[index], beside, num_hidden=0)
                    scores.append(rows.score(unit.pool[index], placed, vector))
                interests.append(_softmax(np.array(scores)) @ interest)
        return rows.head(fields, *interests)

    reference.check(model, logits)


def test_dmr_matches_the_user_and_the_items_with_the_candidate(reference) -> None:
    model = reference.build(DMR, DMRConfig(**_SMALL, attention_dim=5))
    rows = Rows(reference, model)

    def logits(row: int) -> np.ndarray:
        fields, target, events = rows.vectors(row)
        unit = rows.unit
        pooled, weighed, total = np.zeros(4), np.zeros(4), 0.0
        if events:
            positions = rows.array(unit.positions)[: len(events)][::-1]
            pairs = list(zip(positions, events, strict=True))

            def scores(mlp: torch.nn.Module, *before: np.ndarray) -> np.ndarray:
                found = [
                    reference.mlp(
                        mlp, np.concatenate([*before, p, e]), num_hidden=1, activation="tanh"
                    )
                    for p, e in pairs
                ]
                return np.concatenate(found)

            pooled = _softmax(scores(unit.user_score)) @ np.array(events)
            of_items = scores(unit.item_score, target)
            weighed = _softmax(of_items) @ np.array(events)
            total = of_items.sum()
        user = reference.mlp(unit.user_map[0], pooled, num_hidden=0)
        user = np.where(user > 0, user, rows.array(unit.user_map[1].weight) * user)
        match = user @ reference.mlp(unit.output_map, target, num_hidden=0)
        return rows.head(fields, weighed, np.array([match, total]))

    reference.check(model, logits)


def test_next_events_are_told_from_drawn_ones() -> None:
    events = Events(values=torch.eye(5, dtype=torch.float64), offsets=torch.tensor([0, 0, 3, 4, 5]))
    # After events 0 and 1 comes one more; what is known of them points at it, twice as long.
    known = torch.zeros(5, 5, dtype=torch.float64)
    known[0, 1] = known[1, 2] = 2.0
    torch.manual_seed(3)
    found = next_event_loss(known, events).item()
    torch.manual_seed(3)
    drawn = torch.randint(5, (2,)).tolist()

    expected = 0.0
    for place, other in zip((0, 1), drawn, strict=True):
        expected += np.log1p(np.exp(-2.0)) + np.log1p(np.exp(float(known[place, other])))
    assert found == pytest.approx(expected / 2, rel=1e-6)


def test_last_events_are_told_from_drawn_ones_by_the_events_before_them() -> None:
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [0.5, 0.5], [1.0, 0.0], [1.0, 2.0]])
    events = Events(values=values, offsets=torch.tensor([0, 0, 3, 4, 6]))
    scores = torch.tensor([[3.0], [1.0], [9.0], [2.0], [2.0], [9.0]]).log()
    unit = dmr._Unit(DMRConfig(num_negatives=2), 2, 3)
    with torch.no_grad():
        unit.user_map[0].layers[0].weight.copy_(torch.eye(2))
        unit.output_map.layers[0].weight.copy_(0.5 * torch.eye(2))
    torch.manual_seed(3)
    found = unit._last_event_loss(events, scores).item()
    torch.manual_seed(3)
    drawn = torch.randint(6, (2, 2)).tolist()

    # Row 1 weighs its first two events 3 to 1; row 3 has one event before the last.
    expected = 0.0
    for user, last, others in zip(([0.75, 0.25], [1.0, 0.0]), (2, 5), drawn, strict=True):
        products = (0.5 * values @ torch.tensor(user)).tolist()
        expected += np.log1p(np.exp(-products[last]))
        expected += sum(np.log1p(np.exp(products[other])) for other in others)
    assert found == pytest.approx(expected / 2, rel=1e-5)


def test_histories_of_one_event_have_no_next_one() -> None:
    events = Events(values=torch.ones(2, 3), offsets=torch.tensor([0, 1, 2, 2]))

    assert next_event_loss(torch.ones(2, 3), events).item() == 0.0


@pytest.mark.parametrize("name", ["dien", "dmin", "dmr"])
def test_auxiliary_loss_is_of_training_alone_and_scales(name: str) -> None:
    spec, batch = example_spec(), example_batch(example_spec())
    losses = []
    entry = catalog.entry(name)
    for weight in (0.25, 1.0):
        torch.manual_seed(0)
        model = entry.model(entry.config(auxiliary_weight=weight), spec).train()
        torch.manual_seed(1)
        (loss,) = model(batch).auxiliary_losses.values()
        losses.append(loss.item())
        assert not model.eval()(batch).auxiliary_losses

    assert losses[1] == pytest.approx(4 * losses[0])
    assert losses[0] > 0


def test_dmr_learns_to_predict_the_last_event() -> None:
    """Histories that repeat one item: the loss must fall well below that of guessing."""
    generator = torch.Generator().manual_seed(0)
    item = torch.randint(1, 20, (256,), generator=generator)
    values = item.repeat_interleave(4).unsqueeze(1).to(torch.int32)
    spec = InputSpec(
        tables=(Table(name="item", num_rows=20),),
        categorical=(CategoricalInput(name="item", table="item"),),
        numeric=(),
        sequences=(SequenceInput(name="past", fields=("past",), tables=("item",), max_length=4),),
        tasks=(Task(name="click"),),
    )
    batch = Batch(
        numeric=torch.zeros(256, 0),
        ids=item.unsqueeze(1).to(torch.int32),
        labels=torch.ones(256, 1),
        weights=torch.ones(256),
        sequences={"past": Jagged(values=values, offsets=torch.arange(0, 1025, 4))},
    )
    torch.manual_seed(0)
    model = DMR(DMRConfig(auxiliary_weight=1.0, num_negatives=3, init_std=0.3), spec).train()
    tables = [model.inputs.tables.weight]
    dense = [p for p in model.parameters() if p is not tables[0]]
    optimizers = [torch.optim.Adam(dense, lr=0.01), torch.optim.SparseAdam(tables, lr=0.01)]
    for _ in range(150):
        (loss,) = model(batch).auxiliary_losses.values()
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    # Guessing costs 4 log 2 = 2.8 nats; a drawn event is the very item once in twenty draws.
    assert loss.item() < 1.4


@pytest.mark.parametrize("name", _NAMES)
def test_candidate_without_a_counterpart_is_a_learned_vector(name: str) -> None:
    spec = example_spec(num_categorical=0)
    entry = catalog.entry(name)
    model = entry.model(entry.config(), spec)
    output = model(example_batch(spec))
    output.logits.sum().backward()

    assert model.inputs.missing.shape == (2, 16)
    assert output.logits.shape == (40, 1)
    assert model.inputs.missing.grad is not None
    assert model.inputs.missing.grad.ne(0).any()


@pytest.mark.parametrize("name", _NAMES)
def test_histories_of_several_groups_each_have_a_unit(name: str) -> None:
    """Two groups of their own lengths; one column of the second has no candidate."""
    spec = example_spec(num_categorical=1)
    other = SequenceInput(
        name="other", fields=("a", "b"), tables=("field0", "events"), max_length=7
    )
    spec = dataclasses.replace(
        spec,
        sequences=(*spec.sequences, other),
        tables=(*spec.tables, Table(name="events", num_rows=50)),
    )
    batch = example_batch(spec, longest=5)
    entry = catalog.entry(name)
    torch.manual_seed(0)
    model = entry.model(entry.config(init_std=1.0), spec).eval()
    with torch.no_grad():
        whole = model(batch).logits
        changed = dataclasses.replace(
            batch, sequences={**batch.sequences, "other": _reversed(batch.sequences["other"])}
        )
        assert len(model.units) == 2
        assert model.inputs.counterparts == ((0, 0), (0, None))
        assert not torch.allclose(whole, model(changed).logits, atol=1e-4)


def _reversed(jagged: Jagged) -> Jagged:
    """Histories of the same lengths with other events."""
    return Jagged(values=jagged.values.flip(0), offsets=jagged.offsets)


def test_candidate_is_the_field_that_owns_the_table() -> None:
    spec = InputSpec(
        tables=(Table(name="item", num_rows=20),),
        categorical=(
            CategoricalInput(name="last_item", table="item"),
            CategoricalInput(name="item", table="item"),
        ),
        numeric=(),
        sequences=(SequenceInput(name="past", fields=("past",), tables=("item",), max_length=4),),
        tasks=(Task(name="click"),),
    )

    assert DIN(DINConfig(), spec).inputs.counterparts == ((1,),)


def test_refined_events_of_dmin_have_not_seen_the_next_one() -> None:
    torch.manual_seed(0)
    model = DMIN(DMINConfig(init_std=1.0), example_spec())
    (unit,) = model.units
    events = torch.randn(1, 5, 32, requires_grad=True)
    refined = unit.refine(events, torch.ones(1, 5, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(refined[0, 2].sum(), events)

    assert gradient[0].abs().sum(1).ne(0).tolist() == [True, True, True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dien", "dmin"])
def test_histories_at_random_teach_the_auxiliary_loss_nothing(name: str) -> None:
    """What cannot be known must cost as much as guessing: else the loss has seen the answer."""
    spec = example_spec()
    entry = catalog.entry(name)
    torch.manual_seed(0)
    model = entry.model(entry.config(auxiliary_weight=1.0, init_std=0.3), spec).train()
    tables = [model.inputs.tables.weight]
    dense = [p for p in model.parameters() if p is not tables[0]]
    optimizers = [torch.optim.Adam(dense, lr=0.01), torch.optim.SparseAdam(tables, lr=0.01)]
    losses = []
    for step in range(60):
        (loss,) = model(example_batch(spec, rows=512, seed=step)).auxiliary_losses.values()
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())

    # Guessing costs 2 log 2 = 1.386 nats.
    assert np.mean(losses[-10:]) > 1.33


@pytest.mark.parametrize("name", _NAMES)
def test_order_of_events_matters_only_where_the_model_says_so(name: str) -> None:
    spec = example_spec(sequences=True)
    batch = example_batch(spec)
    jagged = batch.sequences["history"]
    bounds = list(zip(jagged.offsets[:-1].tolist(), jagged.offsets[1:].tolist(), strict=True))
    turned = torch.cat([jagged.values[start:stop].flip(0) for start, stop in bounds])
    other = dataclasses.replace(
        batch, sequences={"history": Jagged(values=turned, offsets=jagged.offsets)}
    )
    entry = catalog.entry(name)
    torch.manual_seed(0)
    model = entry.model(entry.config(init_std=1.0), spec).eval()
    with torch.no_grad():
        same = torch.allclose(model(batch).logits, model(other).logits, atol=1e-5)

    assert same == (name == "din")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("bst", {"num_heads": 3}), ("dmin", {"num_heads": 5}), ("transact", {"num_heads": 3})],
)
def test_heads_that_do_not_divide_the_width_are_refused(name: str, settings: dict) -> None:
    entry = catalog.entry(name)
    with pytest.raises(ConfigError, match=r"model\.num_heads: must divide the width of an event"):
        entry.model(entry.config(**settings), example_spec())
