"""BPR: what is drawn, the loss, and that training finds what belongs together."""

from math import log

import pytest
import torch
from torch import Tensor

from tamis.errors import ConfigError, DataError, TamisError
from tamis.evaluation.retrieval import ItemLists, full_corpus_scores
from tamis.models.lightgcn import LightGCN, LightGCNConfig
from tamis.retrieval.exact import exact_top_k
from tamis.training.bpr import BPRConfig, BPRTraining, TripleSampler, bpr_loss, train_bpr

_USERS, _ITEMS, _GROUPS = 60, 80, 4


def _interactions() -> tuple[Tensor, Tensor, Tensor]:
    """Users like items of their own group; of each user's pairs a fifth is held out."""
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(_USERS).repeat_interleave(_ITEMS)
    items = torch.arange(_ITEMS).repeat(_USERS)
    chance = torch.where(users % _GROUPS == items % _GROUPS, 0.6, 0.02)
    liked = torch.rand(len(users), generator=generator) < chance
    users, items = users[liked], items[liked]
    return users, items, torch.rand(len(users), generator=generator) < 0.2


def _build(users: Tensor, items: Tensor) -> LightGCN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LightGCN(
            LightGCNConfig(embedding_dim=8, num_layers=2),
            users,
            items,
            num_users=_USERS,
            num_items=_ITEMS,
        )


def _sampler(users: Tensor, items: Tensor, num_items: int = _ITEMS) -> TripleSampler:
    generator = torch.Generator().manual_seed(0)
    return TripleSampler(users, items, num_items=num_items, generator=generator)


def test_triples_hold_an_item_of_the_user_and_one_that_is_not() -> None:
    users, items, _ = _interactions()
    known = set(zip(users.tolist(), items.tolist(), strict=True))
    drawn = [part.tolist() for part in _sampler(users, items).draw(5000)]

    assert all((user, own) in known for user, own, _ in zip(*drawn, strict=True))
    assert all((user, other) not in known for user, _, other in zip(*drawn, strict=True))


def test_users_and_both_items_are_uniform() -> None:
    # User 3 has one item and user 7 has three of five; nobody else has any.
    sampler = _sampler(torch.tensor([3, 7, 7, 7]), torch.tensor([0, 1, 2, 4]), num_items=5)
    users, own, other = sampler.draw(60_000)
    counts = torch.zeros(8, 5, 5)
    counts.index_put_((users, own, other), torch.ones(60_000), accumulate=True)

    assert counts[3, 0].tolist() == pytest.approx([0, 7500, 7500, 7500, 7500], rel=0.06)
    for item in (1, 2, 4):
        assert counts[7, item, [0, 3]].tolist() == pytest.approx([5000, 5000], rel=0.06)
    assert int(counts[[3, 7]].sum()) == 60_000


def test_no_interaction_is_refused() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(DataError, match="bpr: there must be interactions to learn from, got none"):
        _sampler(nothing, nothing, num_items=3)


def test_user_of_all_items_is_refused() -> None:
    with pytest.raises(DataError, match="got user 2 with all 3"):
        _sampler(torch.tensor([1, 2, 2, 2]), torch.tensor([0, 0, 1, 2]), num_items=3)


def test_loss_equals_a_slow_loop() -> None:
    users, items, _ = _interactions()
    model = _build(users, items)
    batch = tuple(torch.tensor(part) for part in ([0, 5, 5], [4, 1, 9], [2, 3, 0]))
    with torch.no_grad():
        of_users, of_items = (part.double() for part in model())
        weight = model.weight.double()
        total = 0.0
        for user, own, other in zip(*(part.tolist() for part in batch), strict=True):
            apart = float(of_users[user] @ (of_items[own] - of_items[other]))
            norms = sum(
                float(weight[row].square().sum()) for row in (user, _USERS + own, _USERS + other)
            )
            total += log(1 + 2.718281828459045**-apart) + 0.3 / 2 * norms
        found = bpr_loss(model, *batch, l2=0.3)

    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_training_finds_held_out_items_of_the_users_group() -> None:
    users, items, held = _interactions()
    model = _build(users[~held], items[~held])
    relevant = ItemLists.of_pairs(users[held], items[held], num_users=_USERS)
    masked = ItemLists.of_pairs(users[~held], items[~held], num_users=_USERS)

    def recall() -> float:
        with torch.no_grad():
            _, places = exact_top_k(*model(), 20, masked=(users[~held], items[~held]))
        scores = full_corpus_scores(
            places.numpy(),
            relevant,
            masked,
            num_items=_ITEMS,
            candidates=_ITEMS - masked.lengths,
            cutoffs=(20,),
        )
        return scores.means()["recall@20"]

    seen: list[tuple[int, float]] = []

    def watch(epoch: int, loss: float) -> bool:
        seen.append((epoch, loss))
        return epoch == 40

    before = recall()
    settings = BPRConfig(lr=0.02, batch_size=256, max_epochs=1000)
    train_bpr(model, users[~held], items[~held], settings, after_epoch=watch)

    assert [epoch for epoch, _ in seen] == list(range(1, 41))
    assert seen[-1][1] < 0.6 * seen[0][1]
    # About 8 of some 68 items are of the group and left: chance finds 20 of 68.
    assert before < 0.6
    assert recall() > 0.85


def test_same_seed_gives_the_same_vectors_and_another_one_others() -> None:
    users, items, _ = _interactions()
    weights = []
    for seed in (0, 0, 1):
        model = _build(users, items)
        train_bpr(model, users, items, BPRConfig(max_epochs=2, seed=seed))
        weights.append(model.weight.detach())

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("epochs_before", [0, 1, 3])
def test_training_that_was_put_away_goes_on_bit_for_bit(epochs_before: int) -> None:
    users, items, _ = _interactions()
    settings = BPRConfig(lr=0.01, batch_size=256)
    whole = _build(users, items)
    uninterrupted = BPRTraining(whole, users, items, settings)
    losses = [uninterrupted.run_epoch() for _ in range(5)]

    first = BPRTraining(_build(users, items), users, items, settings)
    for _ in range(epochs_before):
        first.run_epoch()
    state = first.state()
    first.run_epoch()  # what is put away is a copy
    model = _build(users, items)
    with torch.no_grad():
        model.weight.zero_()
    second = BPRTraining(model, users, items, settings)
    second.load_state(state)

    assert second.epochs == epochs_before
    assert [second.run_epoch() for _ in range(5 - epochs_before)] == losses[epochs_before:]
    assert torch.equal(model.weight, whole.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"l2": -1.0}, "l2 at least 0, got lr=0.001 and l2=-1.0"),
        ({"batch_size": 0}, "must be at least 1, got 0 and 1000"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BPRConfig(**options)


def test_loss_that_is_no_number_ends_training() -> None:
    users, items, _ = _interactions()
    model = _build(users, items)
    with torch.no_grad():
        model.weight.fill_(torch.nan)

    with pytest.raises(TamisError, match="epoch 1: the loss must be finite, got nan"):
        train_bpr(model, users, items, BPRConfig(max_epochs=1))
