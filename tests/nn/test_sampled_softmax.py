"""The in-batch softmax: known answers, slow loops, and where its expectation is least."""

import itertools
from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from tamis.nn.sampled_softmax import in_batch_softmax_loss, sampled_softmax_losses


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
