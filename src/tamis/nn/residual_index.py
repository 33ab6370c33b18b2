"""A learnt hierarchy of nodes: soft assignment level by level on residuals, balance, k-means.

Symbols: v (B, D) item vectors; L levels, the coarsest first; c_nk centre k of level n; r_n residual
that level n sees, r_1 = v; a_n (B, K_n) memberships; q_n = sum of the chosen centres up to level n,
which is the vector of the node whose path is (k_1, ..., k_n).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tamis.nn.kmeans import kmeans, squared_distances
from tamis.nn.outside_compiler import outside_compiler

IndexLearning = Literal["lti", "em", "sil"]

# Far below any distance between vectors of unit length; keeps the root's gradient finite at 0.
_LEAST_SQUARE = 1e-12
_SCALE_MOMENTUM = 0.01


def soft_assignment(
    vectors: Float[Tensor, "B D"],
    centres: Float[Tensor, "K D"],
    *,
    alpha: Tensor | float,
    scale: Tensor | float = 1.0,
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B D"]]:
    """Memberships ``a_k = softmax_k(-alpha ||v - c_k|| / scale)`` and the node ``sum_k a_k c_k``.

    Both carry gradients to vectors and centres.

    Args:
        vectors: What is assigned.
        centres: Nodes of one level.
        alpha: Sharpness: 0 gives equal memberships, infinity the nearest centre alone.
        scale: Unit of distance, so that alpha means the same on every level.

    Source:
        HSNN, arXiv:2408.06653, algorithm 1 (learning to index).

    Differs from the source:
        How distances are normalised was not published.
    """
    distances = (squared_distances(vectors, centres) + _LEAST_SQUARE).sqrt()
    weights = torch.softmax(-alpha * distances / scale, dim=1)
    # In full precision also under autocast: what is left over is a small difference.
    with torch.autocast(vectors.device.type, enabled=False):
        return weights, weights @ centres


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """Where item vectors stand in the hierarchy, level by level."""

    nodes: tuple[Tensor, ...]
    """q_1 to q_L, each (B, D): the node's vector, a blend of nodes where memberships are soft."""
    weights: tuple[Tensor, ...]
    """a_1 to a_L, each (B, K_n) and summing to 1 over nodes."""
    residuals: tuple[Tensor, ...]
    """r_1 to r_(L+1), each (B, D): what is left after no level, one level, ..., all levels."""

    @property
    def codes(self) -> Int[Tensor, "B L"]:
        """The heaviest centre of each level."""
        return torch.stack([weights.argmax(1) for weights in self.weights], dim=1)


class BalanceQueue(nn.Module):
    """``K sum_k (mean_rows a_k)^2`` over the last M batches; 1 where all nodes are used alike.

    Only the newest batch carries gradient. Sums of memberships are kept instead of the rows: the
    mean over stacked rows is the same.

    Source:
        HSNN, arXiv:2408.06653, FLOPs regulariser over a queue of batches; Paria et al., Minimizing
        FLOPs to Learn Efficient Sparse Representations, ICLR 2020, equation (3).

    Differs from the source:
        Times K, so that the least value does not depend on the number of nodes.
    """

    sums: Tensor
    counts: Tensor
    turn: Tensor

    def __init__(self, num_nodes: int, num_batches: int) -> None:
        """Start with an empty queue of ``num_batches`` places, the newest batch included."""
        super().__init__()
        self.register_buffer("sums", torch.zeros(num_batches, num_nodes))
        self.register_buffer("counts", torch.zeros(num_batches))
        self.register_buffer("turn", torch.zeros(1, dtype=torch.int64))

    def forward(
        self, weights: Float[Tensor, "B K"], row_weights: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, ""]:
        """The regulariser with this batch as the newest; while training the queue keeps it.

        Args:
            weights: Memberships of the batch's rows.
            row_weights: How much each row counts; None: all alike.
        """
        if row_weights is None:
            row_weights = weights.new_ones(len(weights))
        slot = self.turn % len(self.sums)
        total, count = (row_weights.unsqueeze(1) * weights).sum(0), row_weights.sum()
        older = (torch.arange(len(self.sums), device=slot.device) != slot).to(total.dtype)
        # No matrix products, which autocast would round.
        rows = (older * self.counts).sum() + count
        mean = ((older.unsqueeze(1) * self.sums).sum(0) + total) / rows
        if self.training:
            with torch.no_grad():
                self.sums.index_copy_(0, slot, total.detach().unsqueeze(0))
                self.counts.index_copy_(0, slot, count.detach().unsqueeze(0))
                self.turn.add_(1)
        return weights.shape[1] * mean.square().sum()


class ResidualIndex(nn.Module):
    """L codebooks, each on what the one before left over, and the three ways to learn them.

    ``lti``: codebooks are parameters; soft memberships carry the gradient of every loss to them and
    to the item vectors. ``em``: codebooks are constants between k-means, which moves them every
    ``cluster_steps`` batches. Both begin with a k-means in batch ``start_steps``. ``sil``: one
    k-means after ``cluster_steps`` batches. Before it there is no index: codebooks stand where a
    k-means of the first batch put them. All state that depends on the step is in buffers, so a
    checkpoint holds it.

    Source:
        HSNN, arXiv:2408.06653, sections on learning to index, residual levels and stabilisers.

    Differs from the source:
        EM trains to convergence there between two k-means, here for ``cluster_steps`` batches. The
        k-means of ``sil`` comes in the midst of training, so that networks learn of its nodes; item
        vectors move on, and a published index still has its centres. Codebooks start as a k-means,
        in batch ``start_steps``, and memberships grow sharp from there. Distances are divided by
        the running mean of all distances of the level, so that the temperature means the same on
        every level. The gradient of blends is divided by the temperature's alpha on its way to item
        vectors. Each k-means sees the latest vectors of the rows that count; :meth:`fit` takes
        those of a corpus. With ``revive_steps``, nodes that no latest vector is nearest to begin
        anew where vectors are far from theirs, until memberships are as sharp as they get.
    """

    step: Tensor
    scales: Tensor
    latest: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        width: int,
        *,
        learning: IndexLearning = "lti",
        alpha_max: float = 50.0,
        alpha_exponent: float = 1.0,
        alpha_steps: int = 1000,
        queue_batches: int = 32,
        start_steps: int = 1,
        cluster_steps: int = 500,
        cluster_rows: int = 4096,
        revive_steps: int = 0,
    ) -> None:
        """Build codebooks of random unit vectors.

        Args:
            sizes: Nodes K_n of each level's codebook, the coarsest first.
            width: Width D of an item vector.
            learning: How codebooks are learnt.
            alpha_max: Sharpness of memberships from ``alpha_steps`` on.
            alpha_exponent: Power by which sharpness grows with the step.
            alpha_steps: Batches until memberships are as sharp as they get.
            queue_batches: Batches M that balance is judged by.
            start_steps: Batch with the first k-means (``lti``, ``em``).
            cluster_steps: Batches between two k-means (``em``) or before the only one (``sil``).
            cluster_rows: Latest item vectors that k-means sees.
            revive_steps: Batches between two looks for nodes without items, while memberships grow
                sharp (``lti``); 0: none.
        """
        super().__init__()
        self.sizes, self.learning = tuple(sizes), learning
        self.alpha_max, self.alpha_exponent = alpha_max, alpha_exponent
        self.alpha_steps, self.cluster_steps = alpha_steps, cluster_steps
        self.revive_steps = revive_steps
        self.start_steps = cluster_steps if learning == "sil" else start_steps
        for level, size in enumerate(sizes):
            centres = F.normalize(torch.randn(size, width), dim=1)
            if learning == "lti":
                self.register_parameter(f"codebook{level}", nn.Parameter(centres))
            else:
                self.register_buffer(f"codebook{level}", centres)
        is_learnt = learning == "lti"
        self.balance = nn.ModuleList(
            BalanceQueue(size, queue_batches) for size in (sizes if is_learnt else ())
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scales", torch.zeros(len(sizes)))
        keeps = not is_learnt or start_steps > 1 or revive_steps > 0
        rows = cluster_rows if keeps else 0
        self.register_buffer("latest", torch.zeros(rows, width))

    @property
    def codebooks(self) -> list[Tensor]:
        """Centres (K_n, D) of each level, the coarsest first."""
        return [getattr(self, f"codebook{level}") for level in range(len(self.sizes))]

    @property
    def alpha(self) -> Float[Tensor, ""]:
        """Sharpness of memberships now: ``alpha_max * min(1, age / alpha_steps) ** exponent``."""
        share = (self.age / self.alpha_steps).clamp(max=1.0)
        return self.alpha_max * share**self.alpha_exponent

    @property
    def age(self) -> Int[Tensor, ""]:
        """Batches that the index has seen, the one of its first k-means included."""
        return (self.step - (self.start_steps - 1)).clamp(min=0)

    @property
    def is_live(self) -> Tensor:
        """Whether there is an index: 1, or 0 before its first k-means.

        One that begins with the first batch is there from the start, so that codebooks may be set
        by :meth:`fit` without any training.
        """
        if self.start_steps == 1 and self.learning != "sil":
            return torch.ones_like(self.step, dtype=torch.bool)
        return self.age > 0

    def soft(self, vectors: Float[Tensor, "B D"]) -> Quantised:
        """Memberships at the temperature of the step; see :func:`soft_assignment`."""
        nodes, weights, residuals = [torch.zeros_like(vectors)], [], [vectors]
        for level, centres in enumerate(self.codebooks):
            scale = self._scale(level, residuals[-1], centres)
            a, node = soft_assignment(residuals[-1], centres, alpha=self.alpha, scale=scale)
            weights.append(a)
            nodes.append(nodes[-1] + node)
            residuals.append(residuals[-1] - node)
        return Quantised(nodes=tuple(nodes[1:]), weights=tuple(weights), residuals=tuple(residuals))

    def hard(self, vectors: Float[Tensor, "B D"]) -> Quantised:
        """The nearest centre of each level and no other, as a published index has it."""
        if not self.sizes:
            return Quantised(nodes=(), weights=(), residuals=(vectors,))
        codes, nodes = nearest_path(vectors, self.codebooks)
        shares = [F.one_hot(codes[:, n], size) for n, size in enumerate(self.sizes)]
        return Quantised(
            nodes=nodes,
            weights=tuple(share.to(vectors.dtype) for share in shares),
            residuals=(vectors, *(vectors - node for node in nodes)),
        )

    def forward(self, vectors: Float[Tensor, "B D"]) -> Quantised:
        """What this step's networks see: soft while codebooks are trained, hard otherwise.

        While they are trained, all that flows back into the item vectors, the balance's part
        included, is divided by alpha, as far as that is above 1. Where an item is as near to two
        centres, its blend follows it up to about alpha times as fast as the item itself moves, so
        that undivided the levels of the index would outweigh the items' own.
        """
        if not (self.training and self.learning == "lti"):
            return self.hard(vectors)
        return self.soft(_with_gradient_times(vectors, 1 / self.alpha.clamp(min=1.0)))

    @outside_compiler
    @torch.no_grad()
    def advance(
        self, vectors: Float[Tensor, "B D"], row_weights: Float[Tensor, " B"] | None = None
    ) -> None:
        """Begin a training step: count it, and cluster where the way of learning says so.

        Args:
            vectors: Item vectors of the step's batch.
            row_weights: Rows at 0 are left out of what is clustered; None: no row is.
        """
        self.step.add_(1)
        step = int(self.step)
        if row_weights is not None:
            vectors = vectors[row_weights > 0]
        if len(self.latest):
            kept = vectors[-len(self.latest) :]
            self.latest.copy_(torch.cat([self.latest[len(kept) :], kept]))
        if step == 1:
            self.fit(vectors, seed=0)
        elif step == self.start_steps:
            self.fit(self._seen(), seed=step)
            self.scales.zero_()  # distances to what the codebooks were before mean nothing
        elif self.learning == "lti" and self.revive_steps and self._is_forming():
            self._revive(self._seen(), seed=step)
        elif self.learning == "em" and step > self.start_steps and step % self.cluster_steps == 0:
            # From where they are: nodes keep their numbers, and networks what they learnt of them.
            self.fit(self._seen(), seed=step, is_warm=True)

    @torch.no_grad()
    def fit(self, vectors: Float[Tensor, "N D"], *, seed: int, is_warm: bool = False) -> None:
        """Set every codebook to the k-means of what the levels before leave over.

        Args:
            vectors: Item vectors, such as those of a corpus.
            seed: Decides where k-means starts.
            is_warm: Whether it starts from the codebooks as they are instead.
        """
        left = vectors
        for level, centres in enumerate(self.codebooks):
            start = centres if is_warm else None
            centres.copy_(kmeans(left, len(centres), seed=seed + level, start=start))
            left = vectors - nearest_path(vectors, self.codebooks[: level + 1])[1][-1]

    def _is_forming(self) -> bool:
        age = int(self.age)
        return 0 < age <= self.alpha_steps and age % self.revive_steps == 0

    def _revive(self, vectors: Float[Tensor, "N D"], *, seed: int) -> None:
        """Put centres that no vector is nearest to where vectors are far from theirs.

        Chances grow with the squared distance, as where k-means++ begins.
        """
        generator = torch.Generator(vectors.device).manual_seed(seed)
        left = vectors
        for level, centres in enumerate(self.codebooks):
            codes, nodes = nearest_path(vectors, self.codebooks[: level + 1])
            is_dead = torch.bincount(codes[:, level], minlength=len(centres)) == 0
            far = (vectors - nodes[-1]).square().sum(1)
            count = int(is_dead.sum())
            if count and int((far > 0).sum()) >= count:
                chosen = torch.multinomial(far, count, generator=generator)
                centres[is_dead] = left[chosen]
                nodes = nearest_path(vectors, self.codebooks[: level + 1])[1]
            left = vectors - nodes[-1]

    def _seen(self) -> Tensor:
        """Latest vectors, without the places that no row has filled yet."""
        return self.latest[self.latest.abs().sum(1) > 0]

    def _scale(self, level: int, residuals: Tensor, centres: Tensor) -> Tensor:
        """Mean distance of the level: of all batches so far, recent ones counting most."""
        if not self.training:
            return self.scales[level].clamp_min(_LEAST_SQUARE)
        with torch.no_grad():
            mean = (squared_distances(residuals, centres) + _LEAST_SQUARE).sqrt().mean()
            known = self.scales[level]
            known.copy_(torch.where(known > 0, known.lerp(mean, _SCALE_MOMENTUM), mean))
            return known.clone()


def _with_gradient_times(vectors: Tensor, factor: Tensor) -> Tensor:
    """The same numbers, whose gradient is multiplied on its way back."""
    fixed = vectors.detach()
    return fixed + factor * (vectors - fixed)


def nearest_path(
    vectors: Float[Tensor, "N D"], codebooks: Sequence[Tensor]
) -> tuple[Int[Tensor, "N L"], tuple[Tensor, ...]]:
    """The nearest centre level by level, each on what the levels before leave over.

    Returns:
        Codes (N, L), and for every level the vector (N, D) of the node that they lead to.
    """
    codes: list[Tensor] = []
    nodes: list[Tensor] = [torch.zeros_like(vectors)]
    for centres in codebooks:
        codes.append(squared_distances(vectors - nodes[-1], centres).argmin(1))
        nodes.append(nodes[-1] + centres.index_select(0, codes[-1]))
    return torch.stack(codes, dim=1), tuple(nodes[1:])


def reconstruction_loss(
    quantised: Quantised, codebooks: Sequence[Tensor], row_weights: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Mean of ``sum_n ||q_n - v||^2``, what each level leaves over, by the rows' weights (B,).

    It moves codebooks alone. While memberships are soft all items have nearly the same q_n, the
    middle of all nodes; were items drawn to it too, they would become one another, and a few nodes
    would take all of them.

    Source:
        HSNN, arXiv:2408.06653, section on residual levels; Lee et al., Autoregressive Image
        Generation using Residual Quantization, CVPR 2022, equation (7): the sum over levels.

    Differs from the source:
        HSNN has the last level alone, which says nothing to the codebooks before it as long as the
        last one makes up for them: half of their nodes lose all items. The gradient stops at item
        vectors and memberships.
    """
    vectors = quantised.residuals[0].detach()
    pairs = zip(quantised.weights, codebooks, strict=True)
    with torch.autocast(vectors.device.type, enabled=False):
        steps = torch.stack([weights.detach() @ centres for weights, centres in pairs])
        left = (steps.cumsum(0) - vectors).square().sum((0, 2))
    return (left * row_weights).sum() / row_weights.sum().clamp_min(1e-12)
