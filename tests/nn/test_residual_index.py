"""The hierarchy: memberships, residuals, balance, temperature and the three ways to learn it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tamis.nn.kmeans import kmeans
from tamis.nn.residual_index import (
    BalanceQueue,
    IndexLearning,
    ResidualIndex,
    nearest_path,
    reconstruction_loss,
    soft_assignment,
)


def _unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator), dim=1)


def _clustered(rows: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors in 4 groups of 3 subgroups each."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(4, 6, generator=torch.Generator().manual_seed(99))
    parts = 0.3 * torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(98))
    group = torch.randint(0, 4, (rows,), generator=generator)
    part = torch.randint(0, 3, (rows,), generator=generator)
    noise = 0.02 * torch.randn(rows, 6, generator=generator)
    return F.normalize(groups[group] + parts[group, part] + noise, dim=1)


def _soft(v: np.ndarray, centres: np.ndarray, alpha: float, scale: float) -> np.ndarray:
    exponents = np.array([np.exp(-alpha * np.linalg.norm(v - c) / scale) for c in centres])
    return exponents / exponents.sum()


def test_memberships_and_nodes_equal_a_loop() -> None:
    vectors, centres = _unit(5, 4), _unit(7, 4, seed=1)
    weights, nodes = soft_assignment(vectors, centres, alpha=3.0, scale=0.8)

    for row in range(5):
        expected = _soft(vectors[row].double().numpy(), centres.double().numpy(), 3.0, 0.8)
        np.testing.assert_allclose(weights[row].numpy(), expected, rtol=1e-5)
        np.testing.assert_allclose(
            nodes[row].numpy(), expected @ centres.double().numpy(), rtol=1e-4, atol=1e-6
        )


def test_node_known_answer() -> None:
    # Distances 1 and 3; memberships 1 / (1 + exp(-2 log 2)) = 4/5 and 1/5 at alpha = log 2.
    weights, node = soft_assignment(
        torch.tensor([[0.0]]), torch.tensor([[1.0], [-3.0]]), alpha=float(np.log(2))
    )

    assert weights.flatten().tolist() == pytest.approx([0.8, 0.2], rel=1e-5)
    assert node.item() == pytest.approx(0.8 * 1 - 0.2 * 3, rel=1e-5)


def test_gradients_of_the_node_equal_finite_differences_in_item_and_centres() -> None:
    vectors = _unit(4, 3).double().requires_grad_()
    centres = _unit(5, 3, seed=1).double().requires_grad_()

    def node(v: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return soft_assignment(v, c, alpha=4.0, scale=1.3)[1]

    assert torch.autograd.gradcheck(node, (vectors, centres))
    for gradient in torch.autograd.grad(node(vectors, centres).sum(), (vectors, centres)):
        assert gradient.abs().max().item() > 1e-3


def test_item_on_top_of_a_centre_has_finite_gradients() -> None:
    centres = _unit(3, 4).requires_grad_()
    vectors = centres.detach()[:1].clone().requires_grad_()
    soft_assignment(vectors, centres, alpha=100.0)[1].sum().backward()

    assert vectors.grad is not None
    assert centres.grad is not None
    assert vectors.grad.isfinite().all()
    assert centres.grad.isfinite().all()


def test_temperature_runs_from_equal_shares_to_the_nearest_node() -> None:
    vectors, centres = _unit(20, 4), _unit(6, 4, seed=1)
    equal, blend = soft_assignment(vectors, centres, alpha=0.0)
    sharp, node = soft_assignment(vectors, centres, alpha=1e4)
    codes, _ = nearest_path(vectors, [centres])

    torch.testing.assert_close(equal, torch.full((20, 6), 1 / 6))
    assert blend.var(0).max().item() < 1e-10  # all items would be one node
    torch.testing.assert_close(node, centres[codes[:, 0]])
    entropy = torch.special.entr(sharp).sum(1)
    assert entropy.max().item() < 0.5


def test_schedule_follows_the_power_of_the_step_and_then_holds() -> None:
    index = ResidualIndex((3,), 4, alpha_max=40.0, alpha_exponent=2.0, alpha_steps=4)
    found = []
    for _ in range(6):
        index.advance(_unit(8, 4))
        found.append(index.alpha.item())

    # The square of step / 4, times 40.
    assert found == pytest.approx([2.5, 10.0, 22.5, 40.0, 40.0, 40.0])


def test_power_of_zero_is_as_sharp_from_the_first_batch_on_and_forms_as_long() -> None:
    index = ResidualIndex((3,), 4, alpha_max=40.0, alpha_exponent=0.0, alpha_steps=4)
    assert index.alpha.item() == 40.0
    index.advance(_unit(8, 4))
    assert index.alpha.item() == 40.0


def _trained(**options: object) -> ResidualIndex:
    index = ResidualIndex((4, 3), 6, **options)
    index.train()
    for step in range(8):
        index.advance(_clustered(300, seed=step))
    return index


def test_unit_of_distances_is_their_running_mean_and_stays_as_it_is_in_evaluation() -> None:
    index = ResidualIndex((3,), 4, alpha_max=5.0, alpha_exponent=0.0)
    first, second, served = (length * _unit(8, 4, seed=length) for length in (1, 9, 4))
    with torch.no_grad():
        index.soft(first)
        while_training = index.soft(second).weights[0]
        in_evaluation = index.eval().soft(served).weights[0]

    apart = [torch.cdist(vectors, index.codebooks[0]) for vectors in (first, second, served)]
    scale = 0.99 * apart[0].mean() + 0.01 * apart[1].mean()
    torch.testing.assert_close(index.scales[0], scale)
    torch.testing.assert_close(while_training, torch.softmax(-5 * apart[1] / scale, dim=1))
    torch.testing.assert_close(in_evaluation, torch.softmax(-5 * apart[2] / scale, dim=1))


def test_hard_path_equals_a_loop_over_levels() -> None:
    index = _trained()
    vectors = _clustered(40, seed=77)
    quantised = index.eval()(vectors)

    for row in range(40):
        left, total = vectors[row].double().numpy(), np.zeros(6)
        for level, centres in enumerate(index.codebooks):
            array = centres.detach().double().numpy()
            code = int(np.argmin([np.linalg.norm(left - c) for c in array]))
            left, total = left - array[code], total + array[code]
            assert quantised.codes[row, level] == code
            np.testing.assert_allclose(
                quantised.nodes[level][row].detach().numpy(), total, atol=1e-6
            )


@pytest.mark.parametrize("is_soft", [True, False])
def test_nodes_and_residuals_add_up_to_the_item(is_soft: bool) -> None:
    index = _trained()
    vectors = _clustered(50, seed=3)
    quantised = index.soft(vectors) if is_soft else index.hard(vectors)

    assert torch.equal(quantised.residuals[0], vectors)
    for node, residual in zip(quantised.nodes, quantised.residuals[1:], strict=True):
        torch.testing.assert_close(node + residual, vectors)


def test_gradients_pass_through_every_residual() -> None:
    index = ResidualIndex((4, 3), 3, alpha_max=4.0).double().eval()
    index.step.fill_(index.alpha_steps)
    index.scales.fill_(1.3)
    vectors = _unit(5, 3).double().requires_grad_()
    direction = _unit(5, 3, seed=8).double()
    inputs = [vectors, *index.codebooks]

    def last_node() -> torch.Tensor:
        return (index.soft(vectors).nodes[-1] * direction).sum()

    for tensor, gradient in zip(inputs, torch.autograd.grad(last_node(), inputs), strict=True):
        differences = torch.empty_like(tensor)
        with torch.no_grad():
            for place in range(tensor.numel()):
                entry = tensor.view(-1)[place]
                entry.add_(1e-6)
                above = last_node()
                entry.sub_(2e-6)
                differences.view(-1)[place] = (above - last_node()) / 2e-6
                entry.add_(1e-6)
        torch.testing.assert_close(gradient, differences, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("alpha", "divisor"), [(8.0, 8.0), (0.5, 1.0)])
def test_feedback_to_items_does_not_grow_with_the_sharpness_of_memberships(
    alpha: float, divisor: float
) -> None:
    index = ResidualIndex((4, 3), 3, alpha_max=alpha, alpha_steps=1)
    index.advance(_unit(20, 3, seed=4))
    vectors = _unit(5, 3).requires_grad_()
    direction = _unit(5, 3, seed=8)
    inputs = [vectors, *index.codebooks]

    seen = index(vectors).nodes[-1]
    of_items, *of_codebooks = torch.autograd.grad((seen * direction).sum(), inputs)

    plain = index.soft(vectors).nodes[-1]
    undivided, *others = torch.autograd.grad((plain * direction).sum(), inputs)
    assert undivided.abs().max() > 0.01
    torch.testing.assert_close(of_items, undivided / divisor)
    torch.testing.assert_close(of_codebooks, others)


def test_each_level_leaves_less_over_and_its_codes_matter() -> None:
    index = _trained()
    vectors = _clustered(400, seed=5)
    quantised = index.hard(vectors)
    norms = [residual.norm(dim=1).mean().item() for residual in quantised.residuals]
    shuffled = index.codebooks[1][quantised.codes[torch.randperm(400), 1]]
    broken = (vectors - quantised.nodes[0] - shuffled).norm(dim=1).mean().item()

    assert norms[0] > norms[1] > norms[2]
    assert broken > 1.3 * norms[2]


def test_reconstruction_loss_is_the_weighted_mean_square_of_every_level() -> None:
    index = _trained()
    vectors, row_weights = _clustered(3, seed=4), torch.tensor([1.0, 0.0, 3.0])
    quantised = index.soft(vectors)
    squares = torch.stack([(vectors - node).square().sum(1) for node in quantised.nodes]).sum(0)

    expected = (squares[0] + 3 * squares[2]) / 4
    loss = reconstruction_loss(quantised, index.codebooks, row_weights)
    torch.testing.assert_close(loss, expected)
    assert reconstruction_loss(quantised, index.codebooks, torch.zeros(3)).item() == 0


def test_reconstruction_moves_codebooks_and_leaves_items_where_they_are() -> None:
    index = _trained()
    vectors = _clustered(5, seed=4).requires_grad_()
    quantised = index.soft(vectors)
    loss = reconstruction_loss(quantised, index.codebooks, torch.ones(5))
    (at_items, *at_codebooks) = torch.autograd.grad(
        loss, [vectors, *index.codebooks], allow_unused=True
    )

    assert at_items is None
    # d/dc_nk of the mean of sum_m ||q_m - v||^2, q_m = sum_(n<=m) a_n C_n: 2 a_njk (q_mj - v_j),
    # the mean over rows j of the sum over levels m >= n.
    left = [(node - vectors).detach() for node in quantised.nodes]
    for level, (weights, gradient) in enumerate(zip(quantised.weights, at_codebooks, strict=True)):
        from_here = torch.stack(left[level:]).sum(0)
        torch.testing.assert_close(gradient, 2 * weights.detach().T @ from_here / 5)


@pytest.mark.parametrize("learning", ["lti", "em"])
def test_index_begins_late_as_the_k_means_of_the_latest_vectors(learning: IndexLearning) -> None:
    index = ResidualIndex(
        (3,), 6, learning=learning, alpha_max=8.0, alpha_steps=4, start_steps=3, cluster_rows=20
    )
    batches = [_clustered(10, seed=seed) for seed in range(4)]
    ages, live, sharpness = [], [], []
    for batch in batches[:3]:
        index.advance(batch)
        index(batch)
        ages.append(int(index.age))
        live.append(bool(index.is_live))
        sharpness.append(float(index.alpha))

    assert ages == [0, 0, 1]
    assert live == [False, False, True]
    assert sharpness == [0.0, 0.0, 2.0]
    expected = kmeans(torch.cat(batches[1:3]), 3, seed=3)
    torch.testing.assert_close(index.codebooks[0].detach(), expected)
    # The unit of distances is that of the new codebook alone.
    apart = torch.cdist(batches[2], expected).mean()
    torch.testing.assert_close(index.scales[0], apart if learning == "lti" else torch.tensor(0.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 99))
def test_balance_equals_the_stacked_rows_of_the_last_batches(
    num_batches: int, rows: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queue = BalanceQueue(4, num_batches)
    batches = [torch.softmax(torch.randn(n, 4, generator=generator), 1) for n in rows]
    for place, newest in enumerate(batches):
        stacked = torch.cat(batches[max(0, place + 1 - num_batches) : place + 1])
        expected = 4 * stacked.mean(0).square().sum()
        torch.testing.assert_close(queue(newest), expected)


def test_balance_is_one_where_nodes_are_used_alike_and_k_where_one_takes_all() -> None:
    assert BalanceQueue(5, 1)(torch.eye(5)).item() == pytest.approx(1.0)
    assert BalanceQueue(5, 1)(torch.eye(5)[:1].repeat(9, 1)).item() == pytest.approx(5.0)


def test_only_the_newest_batch_carries_gradient() -> None:
    queue = BalanceQueue(3, 4)
    older = torch.softmax(torch.randn(6, 3), 1).requires_grad_()
    newest = torch.softmax(torch.randn(6, 3), 1).requires_grad_()
    queue(older)
    (gradient,) = torch.autograd.grad(queue(newest), newest)
    mean = torch.cat([older, newest]).detach().mean(0)

    # d/da_jk of K sum_k mean_k^2 = 2 K mean_k / rows.
    torch.testing.assert_close(gradient, (2 * 3 * mean / 12).expand(6, 3))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(queue(newest), older)


def test_queue_stays_as_it_is_in_evaluation() -> None:
    queue = BalanceQueue(3, 2)
    queue(torch.eye(3))
    before = {name: value.clone() for name, value in queue.named_buffers()}
    queue.eval()(torch.eye(3)[:1])

    assert all(torch.equal(value, before[name]) for name, value in queue.named_buffers())


def _learnt(balance_weight: float, queue_batches: int = 16) -> float:
    """Perplexity over a corpus of one level that user feedback alone has moved, items and all.

    The feedback tells two kinds of items apart, for which two nodes would do.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        corpus = _unit(256, 6, seed=3)
        labels = (corpus[:, 0] > 0).float()
        items = nn.Parameter(corpus.clone())
        user = nn.Parameter(3 * _unit(1, 6, seed=9)[0])
        index = ResidualIndex((16,), 6, alpha_max=20.0, alpha_steps=30, queue_batches=queue_batches)
        index.advance(corpus[:32])
        optimizer = torch.optim.Adam([*index.parameters(), items, user], lr=0.02)
        for _ in range(400):
            rows = torch.randint(0, 256, (16,))
            index.step.add_(1)
            quantised = index(F.normalize(items[rows], dim=1))
            logits = quantised.nodes[0] @ user
            loss = F.binary_cross_entropy_with_logits(logits, labels[rows])
            loss = loss + balance_weight * index.balance[0](quantised.weights[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        share = index.hard(F.normalize(items.detach(), dim=1)).weights[0].mean(0)
        return float(torch.special.entr(share).sum().exp())


@pytest.mark.slow
def test_balance_spreads_items_over_nodes_and_the_queue_matters() -> None:
    balanced, unbalanced = _learnt(1.0), _learnt(0.0)

    # The specification's bars: half of the nodes in use, a fifth fewer without the regulariser.
    assert balanced >= 0.5 * 16
    assert unbalanced < 0.8 * balanced
    assert abs(_learnt(1.0, queue_batches=1) - balanced) > 0.1


def test_codebooks_are_parameters_with_lti_and_constants_else() -> None:
    assert [name for name, _ in _trained().named_parameters()] == ["codebook0", "codebook1"]
    for learning in ("em", "sil"):
        index = _trained(learning=learning, cluster_steps=3)
        assert not list(index.parameters())
        # The same names on disk, whatever the way of learning.
        assert {"codebook0", "codebook1"} <= index.state_dict().keys()


def _with_dead_centres(**settings: int) -> ResidualIndex:
    """Two levels whose codebooks have each lost half of their centres."""
    index = ResidualIndex((8, 4), 6, alpha_steps=10, cluster_rows=256, start_steps=1, **settings)
    index.fit(_clustered(200), seed=0)
    with torch.no_grad():
        for centres in index.codebooks:
            centres[len(centres) // 2 :] = 100.0
    return index


def _dead(index: ResidualIndex, vectors: torch.Tensor) -> list[int]:
    codes, _ = nearest_path(vectors, index.codebooks)
    return [
        int((torch.bincount(codes[:, level], minlength=size) == 0).sum())
        for level, size in enumerate(index.sizes)
    ]


def test_nodes_without_items_begin_anew_while_memberships_grow_sharp() -> None:
    vectors = _clustered(200)
    index = _with_dead_centres(revive_steps=3)
    index.step.fill_(1)  # the first batch's k-means is over
    living = [centres[: len(centres) // 2].clone() for centres in index.codebooks]
    assert _dead(index, vectors) == [4, 2]

    index.advance(vectors)
    assert _dead(index, vectors) == [4, 2]  # the second batch looks at nothing
    index.advance(vectors)

    assert _dead(index, vectors) == [0, 0]
    for centres, kept in zip(index.codebooks, living, strict=True):
        assert torch.equal(centres[: len(kept)], kept)
    # What begins anew is an item, or what is left of one.
    assert (index.codebooks[0][4:].unsqueeze(1) == vectors).all(2).any(1).all()


def test_nodes_begin_anew_by_the_squared_distance_of_items_to_theirs() -> None:
    index = ResidualIndex((2,), 1, revive_steps=1, cluster_rows=3)
    index.step.fill_(1)
    items = torch.tensor([[1.0], [-2.0], [3.0]])
    found = []
    for _ in range(400):
        with torch.no_grad():
            index.codebooks[0].copy_(torch.tensor([[0.0], [100.0]]))
        index.advance(items)
        found.append(index.codebooks[0][1].item())

    shares = [found.count(place) / 400 for place in items.flatten().tolist()]
    # 400 draws: a deviation of at most 0.025. By plain distances the farthest would have 3 / 6.
    assert shares == pytest.approx([1 / 14, 4 / 14, 9 / 14], abs=0.075)


@pytest.mark.parametrize(("revive_steps", "step"), [(0, 2), (3, 11), (3, 12)])
def test_nodes_without_items_stay_where_nothing_looks(revive_steps: int, step: int) -> None:
    vectors = _clustered(200)
    index = _with_dead_centres(revive_steps=revive_steps)
    index.step.fill_(step - 1)

    index.advance(vectors)

    assert _dead(index, vectors) == [4, 2]


def test_fewer_different_items_than_lost_nodes_revive_none() -> None:
    index = _with_dead_centres(revive_steps=3)
    index.step.fill_(2)

    index.advance(index.codebooks[0][:1].detach().repeat(5, 1))

    assert _dead(index, _clustered(200)) == [4, 2]


def test_lti_is_moved_by_no_k_means_after_the_first_batch() -> None:
    index = ResidualIndex((4,), 6, cluster_steps=2).train()
    random = index.codebooks[0].detach().clone()
    index.advance(_clustered(100))
    first = index.codebooks[0].detach().clone()
    for step in range(5):
        index.advance(_clustered(100, seed=step))

    assert not torch.equal(first, random)
    assert torch.equal(index.codebooks[0], first)


def test_em_clusters_again_and_again_and_sil_once() -> None:
    moved: dict[str, list[int]] = {}
    for learning in ("em", "sil"):
        index = ResidualIndex((4,), 6, learning=learning, cluster_steps=3, cluster_rows=100)
        index.train().advance(_unit(100, 6))
        for step in range(2, 10):
            before, was_live = index.codebooks[0].clone(), bool(index.is_live)
            index.advance(_unit(100, 6, seed=step))
            if not torch.equal(before, index.codebooks[0]):
                moved.setdefault(learning, []).append(step)
            assert was_live == (learning == "em" or step > 3)

    assert moved == {"em": [3, 6, 9], "sil": [3]}


def test_nodes_keep_their_numbers_where_em_clusters_again() -> None:
    index = ResidualIndex((4, 3), 6, learning="em", cluster_steps=2, cluster_rows=100)
    vectors = _clustered(100)
    index.advance(vectors)
    first, second = (centres.clone() for centres in index.codebooks)
    index.advance(vectors + 0.01)

    torch.testing.assert_close(index.codebooks[0], first + 0.01)
    torch.testing.assert_close(index.codebooks[1], second)


def test_k_means_sees_the_latest_rows_that_were_filled() -> None:
    index = ResidualIndex((2,), 3, learning="em", cluster_steps=2, cluster_rows=50).train()
    index.advance(_unit(10, 3))
    assert len(index._seen()) == 10
    index.advance(_unit(60, 3, seed=1))

    assert torch.equal(index._seen(), _unit(60, 3, seed=1)[-50:])


def test_autocast_rounds_nothing_of_an_index() -> None:
    found = []
    for enabled in (False, True):
        index, vectors = _trained(alpha_max=20.0, alpha_steps=5), _clustered(300, seed=9)
        with torch.autocast("cpu", torch.bfloat16, enabled):
            index.advance(vectors)
            soft = index.soft(vectors)
            loss = index.balance[0](soft.weights[0])
        found.append((*soft.nodes, index.hard(vectors).codes, loss, index.balance[0].sums))

    for exact, under_autocast in zip(*found, strict=True):
        assert torch.equal(exact, under_autocast)


def test_all_state_is_in_buffers_and_parameters() -> None:
    for learning in ("lti", "em", "sil"):
        options = {"learning": learning, "cluster_steps": 4, "queue_batches": 3}
        whole, resumed = (ResidualIndex((4, 3), 6, **options).train() for _ in range(2))
        for step in range(5):
            whole.advance(_clustered(50, seed=step))
            whole(_clustered(50, seed=step))
        resumed.load_state_dict(whole.state_dict())
        for step in range(5, 9):
            for index in (whole, resumed):
                index.advance(_clustered(50, seed=step))
                index(_clustered(50, seed=step))

        left, right = whole.state_dict(), resumed.state_dict()
        assert all(torch.equal(left[name], right[name]) for name in left)
