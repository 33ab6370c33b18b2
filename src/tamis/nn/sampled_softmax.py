"""The softmax over a corpus, learnt from some of its items."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_UNIFORM = 0.2
"""Share of draws that no score decides, so that what scores overlook is drawn now and then."""


def in_batch_softmax_loss(
    query: Float[Tensor, "B D"],
    item: Float[Tensor, "B D"],
    log_item_prob: Float[Tensor, " B"],
    *,
    rewards: Float[Tensor, " B"],
    temperature: Tensor | float = 1.0,
) -> Float[Tensor, ""]:
    """Mean softmax loss, times reward, of each query's own item against all items of the batch.

    Row i of ``item`` is what row i of ``query`` went for, if its reward is above 0. Rows without
    reward have no loss of their own; their items are negatives of the others all the same. Popular
    items turn up as negatives more often; subtracting ``log_item_prob`` undoes that (logQ), and
    makes the loss least where scores are the logarithms of the true conditional probabilities, up
    to a constant for each query. An item that stands twice counts twice, as its probability says.

    Args:
        query: User-tower outputs, float32.
        item: Item-tower outputs, float32.
        log_item_prob: Natural log of each item's chance of standing in a place of the batch. Zeros
            switch the correction off.
        rewards: At least 0; label times row weight.
        temperature: Divides the dot products before the correction. Positive.

    Returns:
        Loss in nats per row. To divide by the rewards' sum instead would weigh a batch by how many
        of its rows are positives, and so by what its negatives are.

    Source:
        Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations,
        RecSys 2019, equations (4) and (5).

    Differs from the source:
        The temperature, which the source has in the towers, is an argument.

    Example:
        >>> eye = torch.eye(2)
        >>> zeros, ones = torch.zeros(2), torch.ones(2)
        >>> round(in_batch_softmax_loss(eye, eye, zeros, rewards=ones).item(), 4)
        0.3133
    """
    # In float32: bfloat16 has 128 values between 1 and 2, and dot products are divided by little.
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ item.T / temperature - log_item_prob
    losses = torch.logsumexp(logits, dim=1) - logits.diagonal()
    return (losses * rewards).mean()


def sampled_softmax_losses(
    own: Float[Tensor, "A T"],
    others: Float[Tensor, "A M T"],
    log_own_prob: Float[Tensor, " A"],
    log_other_prob: Float[Tensor, "A M"],
) -> Float[Tensor, "A T"]:
    """Softmax loss, in nats, of each score against those of M sampled items, corrected by logQ.

    It is least where scores are the logarithms of the true conditional probabilities, up to a
    constant for each row and task. An item that is drawn twice counts twice, as its probability
    says.

    Args:
        own: Score of what each of A rows went for, in each of T tasks.
        others: Scores of what was sampled for the row.
        log_own_prob: Natural log of the own item's chance of being sampled.
        log_other_prob: The same of each sampled item. Zeros in both switch the correction off.

    Source:
        Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations,
        RecSys 2019, equation (4).

    Differs from the source:
        Every row brings sampled items of its own, where the source takes those of the batch; scores
        are given, and divided by no temperature here.

    Example:
        >>> own, others = torch.zeros(1, 1), torch.zeros(1, 3, 1)
        >>> loss = sampled_softmax_losses(own, others, torch.zeros(1), torch.zeros(1, 3))
        >>> round(loss.exp().item(), 4)
        4.0
    """
    first = own.float() - log_own_prob.unsqueeze(1)
    rest = others.float() - log_other_prob.unsqueeze(2)
    return torch.logsumexp(torch.cat([first.unsqueeze(1), rest], dim=1), dim=1) - first


def softmax_losses(
    scores: Float[Tensor, "*N A T B"], own: Int[Tensor, " A"]
) -> Float[Tensor, "*N A T"]:
    """Softmax loss, in nats, of each of A rows' own place among all B.

    Args:
        scores: Of each row, in each of T tasks, with all places, corrected for how often these come
            along.
        own: Place of each row.
    """
    scores = scores.float()
    places = own[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.logsumexp(scores, dim=-1) - scores.gather(-1, places).squeeze(-1)


def draw_others(
    scores: Float[Tensor, "A T B"], own: Int[Tensor, " A"], count: int
) -> tuple[Int[Tensor, "A M"], Float[Tensor, "A M"]]:
    """Places of a batch that each of A rows is compared with, where a cheap score is high.

    A sum over a batch is mostly that of its few largest terms. Drawn in proportion to something
    like them, and each divided by how often it is drawn on average, a few terms tell the sum, where
    as many that were drawn uniformly would have missed what matters.

    Args:
        scores: Of each row, in each of T tasks, with all B places, corrected as those that will be
            compared. Only what is drawn depends on them, not what the sums are on average.
        own: Place of each row, which is not drawn.
        count: Draws M of each row, with replacement. With as many as there are other places, or
            more, each of them is taken once, and nothing is drawn.

    Returns:
        The places, and the natural log of how often each is drawn on average, to be taken from its
        score.

    Source:
        Bengio and Senecal, Adaptive Importance Sampling to Accelerate Training of a Neural
        Probabilistic Language Model, IEEE Transactions on Neural Networks 2008.

    Differs from the source:
        Draws follow a score that is learnt beside the other, not an n-gram model, and partly none;
        the positive term is exact, and only the sum over the others estimated.
    """
    places = scores.shape[2]
    if count >= places - 1:
        step = torch.arange(1, places, device=own.device)
        others = (own.unsqueeze(1) + step) % places
        return others, scores.new_zeros(others.shape)
    scores = scores.float()
    is_own = own.unsqueeze(1) == torch.arange(places, device=own.device)
    by_score = torch.softmax(scores.masked_fill(is_own.unsqueeze(1), -torch.inf), dim=2).mean(1)
    # A training that diverged is told by its loss: drawing must not fail before.
    by_score = by_score.nan_to_num(0.0)
    chance = torch.lerp(by_score, (~is_own).float() / (places - 1), _UNIFORM)
    others = torch.multinomial(chance, count, replacement=True)
    return others, (count * chance.gather(1, others)).log()
