"""The in-batch softmax: known answers, slow loops, and where its expectation is least."""

import itertools
from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from tamis.nn.sampled_softmax import (
    draw_others,
    in_batch_softmax_loss,
    sampled_softmax_losses,
)


def test_equal_scores_and_uneven_probabilities_known_answer() -> None:
    zeros = torch.zeros(3, 2)
    log_prob = torch.tensor([1 / 2, 1 / 4, 1 / 4]).log()
    loss = in_batch_softmax_loss(zeros, zeros, log_prob, rewards=torch.ones(3))

    # Corrected scores are log 2, log 4, log 4, which sum to 10: log 10 less their mean.
    assert loss.item() == pytest.approx(log(10) - 5 / 3 * log(2), abs=1e-6)


def test_loss_equals_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    query, item = generator.standard_normal((2, 6, 3))
    log_prob, rewards = np.log(generator.random(6)), np.array([1.0, 0, 2, 0.5, 0, 1])
    total = 0.0
    for i in range(6):
        scores = [query[i] @ item[j] / 0.3 - log_prob[j] for j in range(6)]
        total += rewards[i] * (log(sum(np.exp(s) for s in scores)) - scores[i])
    query, item, log_prob, weights = map(torch.from_numpy, (query, item, log_prob, rewards))
    loss = in_batch_softmax_loss(query, item, log_prob, rewards=weights, temperature=0.3)

    assert loss.item() == pytest.approx(total / 6, rel=1e-12)


def test_batch_without_reward_has_no_loss_and_no_gradient() -> None:
    query = torch.randn(3, 2, requires_grad=True)
    loss = in_batch_softmax_loss(query, query, torch.zeros(3), rewards=torch.zeros(3))
    loss.backward()

    assert loss.item() == 0.0
    assert not query.grad.any()


# A world of two users and three items, small enough to sum over all batches of three rows.
_JOINT = torch.tensor([[0.30, 0.06, 0.04], [0.05, 0.15, 0.40]], dtype=torch.float64)
_UNIFORM_SHARE = 0.4


def _expected_gradient(scores: Tensor, share_of_uniform: float, log_prob: Tensor) -> Tensor:
    """Gradient of the expected loss, each row drawn by itself."""
    kinds = [
        (user, item, 1.0, float(_JOINT[user, item]) * (1 - share_of_uniform))
        for user in range(2)
        for item in range(3)
    ]
    if share_of_uniform:
        kinds += [(0, item, 0.0, share_of_uniform / 3) for item in range(3)]
    scores = scores.clone().requires_grad_()
    one_hot = torch.eye(3, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for rows in itertools.product(kinds, repeat=3):
        users, items, rewards, chances = zip(*rows, strict=True)
        loss = in_batch_softmax_loss(
            scores[list(users)],
            one_hot[list(items)],
            log_prob[list(items)],
            rewards=torch.tensor(rewards, dtype=torch.float64),
        )
        total = total + float(np.prod(chances)) * loss
    total.backward()
    return scores.grad


@pytest.mark.parametrize("share_of_uniform", [0.0, _UNIFORM_SHARE])
def test_with_true_frequencies_the_expected_loss_is_least_at_the_true_probabilities(
    share_of_uniform: float,
) -> None:
    conditional = _JOINT / _JOINT.sum(1, keepdim=True)
    mixed = (1 - share_of_uniform) * _JOINT.sum(0) + share_of_uniform / 3
    true_scores = conditional.log() + torch.tensor([[0.7], [-2.0]])  # any constant of a user

    at_truth = _expected_gradient(true_scores, share_of_uniform, mixed.log())
    assert at_truth.abs().max().item() < 1e-12
    # Elsewhere it is not: the loss is convex in the scores.
    assert _expected_gradient(true_scores * 0.8, share_of_uniform, mixed.log()).abs().max() > 1e-3


def test_without_correction_the_expected_loss_is_least_at_other_scores() -> None:
    conditional = _JOINT / _JOINT.sum(1, keepdim=True)
    lift = conditional / _JOINT.sum(0)

    assert _expected_gradient(conditional.log(), 0.0, torch.zeros(3).double()).abs().max() > 1e-2
    # What is learnt then is how much more than others a user likes an item: popularity is lost.
    assert _expected_gradient(lift.log(), 0.0, torch.zeros(3).double()).abs().max() < 1e-12


def test_sampled_softmax_of_all_others_is_the_one_over_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    query, item = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    log_prob = torch.rand(6, generator=generator, dtype=torch.float64).log()
    scores = query @ item.T
    others = torch.stack([torch.arange(6)[torch.arange(6) != row] for row in range(6)])
    losses = sampled_softmax_losses(
        scores.diagonal().unsqueeze(1).float(),
        scores.gather(1, others).unsqueeze(2).float(),
        log_prob.float(),
        log_prob[others].float(),
    )

    whole = in_batch_softmax_loss(query, item, log_prob, rewards=torch.ones(6))
    assert losses.mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_sampled_softmax_is_least_at_the_log_probabilities_whatever_is_sampled_how_often() -> None:
    """The expected gradient over draws of the own item and of one other vanishes there alone."""
    wanted = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    sampled = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)

    def expected_gradient(scores: Tensor) -> Tensor:
        scores = scores.clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        # Own items are drawn as they are wanted; the batch that they stand in is drawn likewise.
        for own, other in itertools.product(range(3), repeat=2):
            losses = sampled_softmax_losses(
                scores[None, [own]],
                scores[None, [other], None],
                sampled[[own]].log(),
                sampled[[other]].log()[None],
            )
            total = total + wanted[own] * sampled[other] * losses[0, 0]
        return torch.autograd.grad(total, scores)[0]

    assert expected_gradient(wanted.log()).abs().max() < 1e-6
    assert expected_gradient(torch.zeros(3, dtype=torch.float64)).abs().max() > 0.01


def test_as_many_draws_as_there_are_others_are_each_of_them_once() -> None:
    own = torch.tensor([2, 0])
    for count in (4, 9):
        others, log_draws = draw_others(torch.randn(2, 3, 5), own, count)
        assert others.sort(1).values.tolist() == [[0, 1, 3, 4], [1, 2, 3, 4]]
        assert not log_draws.any()
    assert draw_others(torch.zeros(1, 1, 1), torch.tensor([0]), 3)[0].shape == (1, 0)
    assert draw_others(torch.zeros(0, 1, 9), torch.tensor([], dtype=torch.int64), 3)[0].numel() == 0


def _estimates(scores: Tensor, guesses: Tensor, own: int, count: int) -> Tensor:
    """Sums of exp(score) over the others, each told by so many draws; in units of what they are."""
    rows = 20_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        places = torch.full((rows,), own)
        others, log_draws = draw_others(guesses.expand(rows, -1, -1), places, count)
    assert not (others == own).any()
    whole = scores.exp().sum() - scores[own].exp()
    return (scores[others] - log_draws).exp().sum(1) / whole


def test_draws_tell_the_sum_over_all_others_whatever_guided_them() -> None:
    scores = torch.linspace(-2.0, 4.0, 40)
    uniform = torch.zeros(1, 1, 40)
    for guesses in (uniform, scores.expand(1, 1, -1), -0.5 * scores.expand(1, 1, -1)):
        found = _estimates(scores, guesses, own=39, count=4)
        # Five standard errors of the mean of 20,000.
        assert found.mean().item() == pytest.approx(1.0, abs=5 * found.std().item() / 20_000**0.5)


def test_draws_that_follow_the_scores_tell_more_than_uniform_ones() -> None:
    scores = torch.linspace(-2.0, 4.0, 40)
    spread = {
        name: _estimates(scores, guesses.expand(1, 1, -1), own=0, count=4).std().item()
        for name, guesses in {"uniform": torch.zeros(40), "alike": scores + 3.0}.items()
    }
    terms = scores[1:].exp()
    shares = terms / terms.sum()
    # The variance of x / q over places that are drawn with probability q.
    for name, chances in {"uniform": 1.0 / 39, "alike": 0.8 * shares + 0.2 / 39}.items():
        variance = (shares.square() / chances).sum().item() - 1.0
        assert spread[name] == pytest.approx((variance / 4) ** 0.5, rel=0.05)
    assert spread["alike"] < 0.25 * spread["uniform"]


def test_draws_follow_the_mean_of_what_tasks_say_and_a_fifth_follows_none() -> None:
    scores = torch.full((1, 2, 5), -torch.inf)
    scores[0, 0, 1] = scores[0, 1, 3] = 0.0  # each task is sure of one place
    with torch.random.fork_rng():
        torch.manual_seed(0)
        others, log_draws = draw_others(
            scores.expand(10_000, -1, -1), torch.zeros(10_000, dtype=torch.int64), 2
        )
    shares = torch.bincount(others.flatten(), minlength=5) / others.numel()

    wanted = torch.tensor([0.0, 0.45, 0.05, 0.45, 0.05])
    torch.testing.assert_close(shares, wanted, atol=0.02, rtol=0.0)
    torch.testing.assert_close(log_draws, (2 * wanted[others]).log())


def test_draws_of_a_training_that_diverged_do_not_fail() -> None:
    others, _ = draw_others(torch.full((3, 1, 6), torch.nan), torch.tensor([0, 1, 2]), 2)
    assert others.shape == (3, 2)
