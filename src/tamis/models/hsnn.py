"""HSNN: a hierarchy of nodes over the items, and a network for each of its levels, learnt together.

The file is one thing: the config and the model. What belongs to one level stands in
``hsnn_level.py``, what the networks are in ``monn.py``, what the hierarchy is in
``nn/residual_index.py``, and what serves a trained model in the package ``retrieval``, whose
``Scorer`` the model is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tamis.data.batch import Batch, blank_batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.corpus_rows import corpus_rows
from tamis.models.flops import counted_flops
from tamis.models.hsnn_level import Level
from tamis.models.in_batch_pairs import InBatchPairs
from tamis.models.item_id import counted_places, hide_ids, place_of_id, places_of
from tamis.models.level_shifts import level_shifts
from tamis.models.monn import MoNN, MoNNConfig
from tamis.models.output import Inspection, Output, Supervised
from tamis.models.ranges import check_probabilities, check_ranges
from tamis.nn.autocast import compiles_by_shape
from tamis.nn.bridged_tower import Bridge, BridgedTower
from tamis.nn.frequency import StreamingFrequency
from tamis.nn.linear import missing_rows
from tamis.nn.residual_index import IndexLearning, Quantised, ResidualIndex, reconstruction_loss
from tamis.nn.sampled_softmax import draw_others, sampled_softmax_losses, softmax_losses
from tamis.nn.side_tokens import SideTokens

Assignment = Literal["soft", "hard"]

_LEVELS = (
    MoNNConfig(user_tokens=12, user_layers=2, num_layers=2, head_units=(128, 64)),
    MoNNConfig(),
    MoNNConfig(user_tokens=4, module_tokens=2, head_units=(32,), modules=("dot", "linear")),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HSNNConfig:
    """Networks from the coarsest level to the items, and how their index is learnt."""

    embedding_dim: int = 16
    """Width D of an embedding. At least 1."""
    levels: tuple[MoNNConfig, ...] = field(default=_LEVELS)
    """The network of each level, the coarsest first and the items' last."""
    codebooks: tuple[int, ...] = (32, 8)
    """Nodes K_n of each index level's codebook: one number less than there are levels. Empty: no
    index, and a single network that scores items; how an index is learnt, the weights of its losses
    and ``unlabelled_weight`` then say nothing."""
    index_learning: IndexLearning = "lti"
    """How the index is learnt: by gradients together with the networks (``lti``), by k-means in
    turns with them (``em``), or once, on the items of a model without index (``sil``). Options that
    name some of these say nothing in the others, so that recipes may differ in this one alone."""
    item_tokens: int = 1
    """Vectors n_i that the item tower emits."""
    item_dim: int = 32
    """Their width d_i; n_i vectors side by side are what the index divides."""
    item_layers: int = 1
    """Layers of the item tower."""
    cross_tokens: int = 1
    """Vectors n_x of each level's interaction tower, which there is where some field is of side
    ``context``."""
    cross_dim: int = 16
    """Their width d_x."""
    cross_layers: int = 1
    """Layers of each interaction tower."""
    attention_units: int = 16
    """Hidden width of the towers' attention over pairs of tokens."""
    bridge: Bridge = "attention"
    """How the two branches of a tower's layer are fused."""
    id_dropout: float = 0.2
    """Probability of hiding an item's id while training, in [0, 1): a cold item has none, and
    must be placed by its content. Where there is no content nothing is hidden."""
    alpha_max: float = 50.0
    """Sharpness of memberships at the end (``lti``); distances are in units of their mean."""
    alpha_exponent: float = 1.0
    """Power by which sharpness grows with the step (``lti``); 0: it is there from the first batch
    on."""
    alpha_steps: int = 1000
    """Batches of the index until memberships are as sharp as they get (``lti``)."""
    start_steps: int = 1
    """Batch in which the index begins, as the k-means of the latest item vectors (``lti``, ``em``).
    Until then items alone are learnt, patience does not count, and any later weights replace those
    of an evaluation before. Vectors of the first batches are those of an untrained tower, so that a
    few hundred are better where there are thousands."""
    warmup_steps: int = 200
    """Batches over which squared distance and balance grow linearly to their weights (``lti``)."""
    queue_batches: int = 32
    """Batches M that the balance of nodes is judged by (``lti``)."""
    reconstruction_weight: float = 0.25
    """Factor on the squared distance between items and their nodes (``lti``). At least 0."""
    balance_weight: float = 0.1
    """Factor on the balance regulariser (``lti``), which is 1 where all nodes of a level are used
    alike."""
    label_weight: float = 1.0
    """Factor on the cross entropy of every level with the labels; that of the calibration is as it
    is. Small beside ``negatives`` where nobody logged what was shown: how a positive differs from
    one drawn item says little of what is best of a whole corpus."""
    interaction_weight: float = 0.1
    """Factor on the squared distance of each index level's interaction vectors to the items', where
    some field is of side ``context``."""
    negatives: int = 0
    """Items of other rows of the batch that each positive is compared with at every level, by a
    softmax that is corrected for how often they come along, and drawn where the inner product alone
    is large. 0: rows are learnt by their own labels alone, as impressions are; where nobody logged
    what was shown, that is one negative a positive."""
    product_weight: float = 0.0
    """Factor on that softmax of each level's inner product alone, over all rows of the batch, for
    one matrix product: what is drawn are its largest terms, and what networks add to it is learnt
    from few. 0 where ``negatives`` is 0."""
    unlabelled_weight: float = 1.0
    """Factor on the cross entropy of index levels with the items' prediction, in rows without any
    label."""
    revive_steps: int = 0
    """Batches between two looks for nodes without items, which then begin anew where items are far
    from theirs, while memberships grow sharp (``lti``); 0: none."""
    cluster_steps: int = 500
    """Batches between two k-means (``em``), or before the only one (``sil``)."""
    cluster_rows: int = 4096
    """Latest item vectors that k-means and revival see. With ``lti``, ``start_steps = 1`` and no
    revival there is one k-means, on the first batch."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self, may_be_zero=("negatives", "revive_steps"))
        if not (self.label_weight or self.negatives):
            raise ConfigError(
                f"model.label_weight: must be above 0 where model.negatives is 0, got "
                f"{self.label_weight}: levels would learn from nothing."
            )
        if self.product_weight and not self.negatives:
            raise ConfigError(
                f"model.product_weight: must be 0 where model.negatives is 0, got "
                f"{self.product_weight}: rows are learnt by their own labels alone."
            )
        if len(self.levels) != len(self.codebooks) + 1:
            raise ConfigError(
                f"model.levels: must be one more than the {len(self.codebooks)} codebooks, got "
                f"{len(self.levels)}: each index level has a network, and the items have one."
            )


class HSNN(nn.Module):
    """Networks o_n on nodes of a learnt hierarchy and on items; each level ensembles all coarser.

    An item's vector v, of unit length, is written as a path of nodes, each the centre nearest to
    what the nodes before leave over. Level n < N scores the user with the vector q_n of its node,
    level N with the item itself; then ``z_n = W_n [o_1, ..., o_n] + b_n``. While training the index
    by gradients, q_n is a blend of nodes that carries gradients to codebooks and item tower (see
    ``ResidualIndex``); in evaluation mode it is the nearest node. The losses are the cross entropy
    of every z_n with the labels, and, for rows without any label, of z_n (n < N) with the items'
    prediction; the squared distance of v to its node of each level; the balance of nodes; and, as
    cross features of a node do not exist before an index is published, the squared distance of an
    index level's interaction vectors, made of user and node, to those of the items. No gradient
    flows into what others are drawn to: the items' prediction and the items' interaction vectors. A
    positive scale and a shift for each level and task calibrate z_n; their loss moves them alone.
    The logits of the output are calibrated ones.

    K-means, squared distance and balance look at rows that stand for the corpus (``corpus_rows``),
    whose ids are hidden as often as in the losses (``id_dropout``).

    With ``negatives``, every level also learns by a softmax: each positive row's user with the
    items of other rows of the batch, or with their nodes. They are drawn in proportion to what the
    items' inner product alone makes of the whole batch, and stand for all of it (see
    ``draw_others``); how often each item comes along is corrected for, so that both losses are
    least at the same scores but for a constant of each user. Rows whose item was drawn uniformly
    from the corpus make the negatives a mixture, as those of two towers. With ``product_weight``,
    inner products learn by that softmax as well, from the whole batch.

    Fields of side ``context`` are those of the interaction tower, which is computed for each pair;
    what is known once per request belongs to side ``user``. Where a teacher labels the rows that
    nobody labelled (``tamis.training.teacher``), every level learns from it, and none from the
    items' prediction; such rows stand for the corpus as before.

    Source:
        HSNN, arXiv:2408.06653v3: mixture of networks, learning to index (algorithm 1), residual
        levels, joint optimisation and its stabilisers, ensemble across levels. Yi et al., RecSys
        2019: the softmax and its correction.

    Differs from the source:
        The squared distance is that of every level, not of the last one (see
        ``reconstruction_loss``). All levels share tables and item tower. Sizes, loss weights, the
        calibration, the teacher of unlabelled rows (the item level of the same step, which then
        learns nothing from them itself) and the inputs of the ensemble (logits of all tasks) were
        not published; nor were the rows that k-means, squared distance and balance look at.
        ``shift_to`` comes on top of the calibration. Index-level interaction towers see the node in
        place of the item. The source's negatives are impressions; the softmax is for logs that have
        none. An item without a row in the id's table has zeros there, as ``id_dropout`` has trained
        it, and is counted by its content.
    """

    def __init__(self, config: HSNNConfig, spec: InputSpec) -> None:
        """Build the networks for the inputs of ``spec``.

        Raises:
            ConfigError: A task is a regression, or user or item have no field.
        """
        super().__init__()
        check_probabilities(spec.tasks, why="Levels are calibrated as probabilities.")
        self.config, self.spec = config, spec
        self.task_names = tuple(task.name for task in spec.tasks)
        self.tokens = SideTokens(spec, config.embedding_dim, init_std=config.init_std)
        for side in ("user", "item"):
            if not self.tokens.num_tokens[side]:
                raise ConfigError(
                    f"model: some field must be of side {side!r}, got none. Set side in "
                    f"schema.toml."
                )
        self.place_of_id = place_of_id(spec)
        self.item_tower = self._tower(
            self.tokens.num_tokens["item"],
            config.embedding_dim,
            num_layers=config.item_layers,
            out_tokens=config.item_tokens,
            out_dim=config.item_dim,
        )
        self.cross_tower: BridgedTower | None = None
        if self.tokens.num_tokens["context"]:
            self.cross_tower = self._tower(
                self.tokens.num_tokens["context"],
                config.embedding_dim,
                num_layers=config.cross_layers,
                out_tokens=config.cross_tokens,
                out_dim=config.cross_dim,
            )
        self.index = ResidualIndex(
            config.codebooks,
            config.item_tokens * config.item_dim,
            learning=config.index_learning,
            alpha_max=config.alpha_max,
            alpha_exponent=config.alpha_exponent,
            alpha_steps=config.alpha_steps,
            queue_batches=config.queue_batches,
            start_steps=config.start_steps,
            cluster_steps=config.cluster_steps,
            cluster_rows=config.cluster_rows,
            revive_steps=config.revive_steps,
        )
        self.levels = nn.ModuleList(self._level(place) for place in range(len(config.levels)))
        if config.negatives:
            self.in_batch = InBatchPairs(spec)
            self.frequency = StreamingFrequency(*places_of(spec, self.place_of_id))

    def forward(self, batch: Batch) -> Output:
        """Calibrated logits (B, T) of the items' level; every level is supervised."""
        items = self.encode_items(batch)
        of_corpus = corpus_rows(batch) if self.training and self.config.codebooks else None
        if of_corpus is not None:
            self.index.advance(items.detach(), of_corpus)
        quantised = self.index(items) if self.config.codebooks else None
        nodes = () if quantised is None else quantised.nodes
        users = self.encode_user(batch)
        raw, interactions = self._score(batch, users, items, nodes)
        calibrated = [
            level.calibrated(z.detach()) for level, z in zip(self._parts, raw, strict=True)
        ]
        losses: dict[str, Tensor] = {}
        if quantised is not None and of_corpus is not None:
            losses = self._losses(quantised, interactions, of_corpus)
        if self.training and self.config.negatives:
            losses["softmax"] = self._softmax_losses(batch, users, items, nodes, raw)
        return Output(
            logits=calibrated[-1],
            auxiliary_losses=losses,
            supervised=self._supervised(raw, calibrated, batch),
        )

    def level_logits(
        self, batch: Batch, nodes: Assignment | Sequence[Float[Tensor, "B W"]]
    ) -> Float[Tensor, "B N T"]:
        """Calibrated logits of every level.

        Args:
            batch: Rows of the data.
            nodes: What index levels see of each row's item: a blend of nodes, the nearest ones, or
                vectors of its nodes' representatives, one tensor for each index level.
        """
        items = self.encode_items(batch)
        if nodes == "soft":
            vectors: Sequence[Tensor] = self.index.soft(items).nodes
        else:
            vectors = self.index.hard(items).nodes if isinstance(nodes, str) else nodes
        raw, _ = self._score(batch, self.encode_user(batch), items, vectors)
        logits = [level.calibrated(z) for level, z in zip(self._parts, raw, strict=True)]
        return torch.stack(logits, dim=1)

    @torch.inference_mode()
    def shift_to(self, batches: Iterable[Batch]) -> None:
        """Shift every level's logits until its predictions add up to the labels of some rows.

        The losses calibrate weights that are on the move; their moving average, which is kept,
        predicts a few percent less where events are rare. Publish an index afterwards.

        Args:
            batches: Rows, such as some of those that trained, with the nodes that are served.
                Missing labels are left out; a task without both kinds of labels stays as it is.

        Raises:
            ValueError: The model is in training mode, or there is no row.
        """
        if self.training:
            raise ValueError(
                "hsnn: must be in evaluation mode to be shifted, got training mode. Call eval()."
            )
        found = [(self.level_logits(rows, "hard"), rows.labels, rows.weights) for rows in batches]
        if not found:
            raise ValueError("hsnn: must get rows to be shifted to, got no batch.")
        shifts = level_shifts(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        for level, shift in zip(self._parts, shifts, strict=True):
            level.shift.add_(shift)

    # What serves the model: see tamis.retrieval.scorer.

    @property
    def num_levels(self) -> int:
        """Levels N, that of the items included."""
        return len(self.levels)

    @property
    def codebooks(self) -> list[Tensor]:
        """Centres (K_n, W) of each index level, the coarsest first."""
        return self.index.codebooks

    def check_index(self) -> None:
        """Check that there is an index, where the model is for one: before, all nodes score alike.

        Raises:
            ConfigError: Its first k-means is still to come.
        """
        index = self.index
        if self.config.codebooks and not bool(index.is_live):
            option = "cluster_steps" if index.learning == "sil" else "start_steps"
            raise ConfigError(
                f"hsnn: weights must be of a step at which there is an index to publish, which "
                f"begins in step {index.start_steps}, got those of step {int(index.step)}. Train "
                f"longer or lower model.{option}."
            )

    def encode_items(self, items: Batch, *, by_content: bool = False) -> Float[Tensor, "B W"]:
        """Item vectors of unit length; only the item side of the batch is read.

        Args:
            items: A row for each item.
            by_content: Whether ids are hidden, as for an item that no training has seen.
        """
        tokens = self.tokens(items, "item")
        dropout = self.config.id_dropout if self.training else 0.0
        tokens = hide_ids(tokens, items, self.place_of_id, dropout=dropout, by_content=by_content)
        return F.normalize(self.item_tower(tokens).flatten(1), dim=1)

    def encode_user(self, users: Batch) -> list[Tensor]:
        """Vectors (B, n_u, d_u) for each level; only the user side of the batch is read."""
        tokens = self.tokens(users, "user")
        return [level.user_tower(tokens) for level in self._parts]

    def pair_logits(
        self,
        level: int,
        user: Float[Tensor, "R U DU"],
        items: Float[Tensor, "B W"],
        pairs: Batch | None,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Logits o of one level, before the ensemble.

        Args:
            level: Place of the level, 0 for the coarsest.
            user: The level's own vectors of users.
            items: Vectors of items, or of what stands for nodes.
            pairs: The pairs' context side; read by the last level alone.
            rows: Row in ``user`` of each pair. None: one row for all pairs, one for each, or one
                for every B / R that follow each other.

        Raises:
            ValueError: The last level gets no context side though the model has one.
        """
        of_item = items.unflatten(1, (self.config.item_tokens, -1))
        cross = self._interactions(level, user, of_item, pairs, rows)
        return self._parts[level].network(user, of_item, cross, rows)

    def ensemble(self, level: int, logits: Float[Tensor, "B N T"]) -> Float[Tensor, "B T"]:
        """Calibrated logits of a level, from the logits o of this and all coarser levels."""
        part = self._parts[level]
        return part.calibrated(part.joined(self._known(logits)))

    def count_flops(self) -> tuple[int, tuple[int, ...]]:
        """Operations of one user's towers, and of one more pair at each level.

        Matrix products count, a multiplication with its addition as two; element-wise operations,
        norms and lookups do not.
        """
        weight = self.tokens.numeric_weight
        with torch.inference_mode():
            one, two = (blank_batch(self.spec, rows, weight.device) for rows in (1, 2))
            user_flops, users = counted_flops(lambda: self.encode_user(one))
            pair_flops = []
            for level, user in enumerate(users):
                costs = []
                for rows in (one, two):
                    items = self.encode_items(rows)
                    score = partial(self.pair_logits, level, user, items, rows)
                    costs.append(counted_flops(score)[0])
                pair_flops.append(costs[1] - costs[0])
        return user_flops, tuple(pair_flops)

    def inspections(self, batch: Batch) -> list[Inspection]:
        """How the traffic of a batch spreads over the nodes of each level."""
        if not self.config.codebooks:
            return []
        items = self.encode_items(batch)
        soft, hard = self.index.soft(items), self.index.hard(items)
        columns = []
        for level, weights in enumerate(soft.weights):
            share = hard.weights[level].mean(0)
            columns.append(
                torch.stack(
                    [
                        torch.special.entr(share).sum().exp() / len(share),
                        share.max() * len(share),
                        torch.special.entr(weights).sum(1).mean(),
                        hard.residuals[level + 1].norm(dim=1).mean(),
                    ]
                )
            )
        return [
            Inspection(
                title="Traffic over the nodes of each index level",
                rows=(
                    "perplexity, as a share of the nodes",
                    "largest node, in shares of the mean",
                    "entropy of a row's memberships, in nats",
                    "distance of an item to its node",
                ),
                columns=tuple(f"level {place + 1}" for place in range(len(columns))),
                values=torch.stack(columns, dim=1),
            )
        ]

    @property
    def _parts(self) -> list[Level]:
        return [cast(Level, level) for level in self.levels]

    def _score(
        self, pairs: Batch, users: Sequence[Tensor], items: Tensor, nodes: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Ensembles z_n and interaction vectors of every level; of the batch, pairs are read."""
        outputs: list[Tensor] = []
        interactions: list[Tensor | None] = []
        for place, vectors in enumerate((*nodes, items)):
            of_item = vectors.unflatten(1, (self.config.item_tokens, -1))
            cross = self._interactions(place, users[place], of_item, pairs)
            outputs.append(self._parts[place].network(users[place], of_item, cross))
            interactions.append(cross)
        stacked = self._known(torch.stack(outputs, dim=1))
        raw = [level.joined(stacked[:, : place + 1]) for place, level in enumerate(self._parts)]
        return raw, interactions

    def _interactions(
        self,
        level: int,
        user: Tensor,
        of_item: Tensor,
        pairs: Batch | None,
        rows: Tensor | None = None,
    ) -> Tensor | None:
        """Interaction vectors: of the pairs' features at the items, of user and node above."""
        if self.cross_tower is None:
            return None
        if level < self.num_levels - 1:
            return self._parts[level].interact(user, of_item, rows)
        if pairs is None:
            raise ValueError(
                "hsnn: pairs must be given at the items' level, got None: the model has fields of "
                "side context. Give a function that makes them."
            )
        return self.cross_tower(self.tokens(pairs, "context"))

    def _known(self, outputs: Tensor) -> Tensor:
        """Outputs without those of index levels as long as there is no index."""
        if not self.config.codebooks:
            return outputs
        is_item = torch.arange(outputs.shape[1], device=outputs.device) == self.num_levels - 1
        return outputs * (is_item | self.index.is_live).unsqueeze(1)

    def _supervised(
        self, raw: Sequence[Tensor], calibrated: Sequence[Tensor], batch: Batch
    ) -> tuple[Supervised, ...]:
        nothing = torch.full_like(batch.labels, torch.nan)
        compared = []
        # Calibrated is what the log says, whatever a teacher does.
        for levels, labels, weight in (
            (raw, batch.labels, self.config.label_weight),
            (calibrated, batch.logged_labels, 1.0),
        ):
            # Before there is an index, its levels have nothing to say and nothing to learn from.
            of_nodes = torch.where(self.index.is_live, labels, nothing)
            targets = [of_nodes] * (len(levels) - 1) + [labels]
            compared += [
                Supervised(logits=logits, labels=target, weight=weight)
                for logits, target in zip(levels, targets, strict=True)
            ]
        if self.config.unlabelled_weight:
            is_unlabelled = batch.labels.isnan().all(1, keepdim=True) & self.index.is_live
            taught = torch.where(is_unlabelled, torch.sigmoid(raw[-1].detach()), nothing)
            compared += [
                Supervised(logits=z, labels=taught, weight=self.config.unlabelled_weight)
                for z in raw[:-1]
            ]
        return tuple(compared)

    def _losses(
        self, quantised: Quantised, interactions: Sequence[Tensor | None], of_corpus: Tensor
    ) -> dict[str, Tensor]:
        config = self.config
        losses: dict[str, Tensor] = {}
        if config.index_learning == "lti":
            ramp = (self.index.age / config.warmup_steps).clamp(max=1.0)
            left = reconstruction_loss(quantised, self.index.codebooks, of_corpus)
            losses["reconstruction"] = ramp * config.reconstruction_weight * left
            pairs = zip(self.index.balance, quantised.weights, strict=True)
            uneven = torch.stack([queue(weights, of_corpus) for queue, weights in pairs]).sum()
            losses["balance"] = ramp * config.balance_weight * uneven
        target = interactions[-1]
        if target is not None:
            apart = torch.stack(
                [F.mse_loss(x, target.detach()) for x in interactions[:-1] if x is not None]
            )
            losses["interaction"] = config.interaction_weight * apart.sum() * self.index.is_live
        return losses

    def _softmax_losses(
        self,
        batch: Batch,
        users: Sequence[Tensor],
        items: Tensor,
        nodes: Sequence[Tensor],
        raw: Sequence[Tensor],
    ) -> Float[Tensor, " T"]:
        """Softmax of every level's z_n: rows with a positive label against others of the batch."""
        places = counted_places(self.spec, batch, self.place_of_id)
        self.frequency.observe(places)
        log_share = self.frequency.log_share(places)
        rewards = batch.rewards
        anchors = (rewards > 0).any(1).nonzero().squeeze(1)
        rewards = rewards.index_select(0, anchors)
        if compiles_by_shape(anchors):
            # Row 0 at reward 0, so that products come in few shapes: see ``tamis.nn.linear``.
            missing = missing_rows(len(anchors))
            anchors, rewards = F.pad(anchors, (0, missing)), F.pad(rewards, (0, 0, 0, missing))
        of_anchors = [vectors.index_select(0, anchors) for vectors in users]
        guesses = torch.stack(
            [
                level.network.products(of_user, vectors) - log_share
                for level, of_user, vectors in zip(
                    self._parts, of_anchors, (*nodes, items), strict=True
                )
            ]
        )
        with torch.no_grad():
            others, log_draws = draw_others(guesses[-1], anchors, self.config.negatives)
        user, item = anchors.repeat_interleave(others.shape[1]), others.flatten()
        scores, _ = self._score(
            self.in_batch.batch(batch, user, item),
            of_anchors,
            items.index_select(0, item),
            [vectors.index_select(0, item) for vectors in nodes],
        )
        losses = torch.stack(
            [
                sampled_softmax_losses(
                    own.index_select(0, anchors),
                    of_others.unflatten(0, others.shape),
                    log_share.index_select(0, anchors),
                    log_share[others] + log_draws,
                )
                for own, of_others in zip(raw, scores, strict=True)
            ]
        )
        if self.config.product_weight:
            losses = losses + self.config.product_weight * softmax_losses(guesses, anchors)
        is_item = torch.arange(len(losses), device=losses.device) == self.num_levels - 1
        taught = losses * (is_item | self.index.is_live)[:, None, None]
        return (taught.sum(0) * rewards).sum(0) / batch.num_rows

    def _level(self, place: int) -> Level:
        config, settings = self.config, self.config.levels[place]
        user_tower = self._tower(
            self.tokens.num_tokens["user"],
            config.embedding_dim,
            num_layers=settings.user_layers,
            out_tokens=settings.user_tokens,
            out_dim=settings.user_dim,
        )
        node_tower = None
        has_cross = self.cross_tower is not None
        if has_cross and place < len(config.codebooks):
            node_tower = self._tower(
                settings.user_tokens + config.item_tokens,
                config.cross_dim,
                num_layers=config.cross_layers,
                out_tokens=config.cross_tokens,
                out_dim=config.cross_dim,
            )
        network = MoNN(
            settings,
            item_tokens=config.item_tokens,
            item_dim=config.item_dim,
            cross_tokens=config.cross_tokens if has_cross else 0,
            cross_dim=config.cross_dim,
            num_tasks=len(self.task_names),
        )
        return Level(
            user_tower,
            node_tower,
            network,
            user_dim=settings.user_dim,
            item_dim=config.item_dim,
            cross_dim=config.cross_dim,
            num_inputs=place + 1,
        )

    def _tower(
        self, in_tokens: int, width: int, *, num_layers: int, out_tokens: int, out_dim: int
    ) -> BridgedTower:
        return BridgedTower(
            in_tokens,
            width,
            num_layers=num_layers,
            out_tokens=out_tokens,
            out_dim=out_dim,
            attention_units=self.config.attention_units,
            bridge=self.config.bridge,
        )
