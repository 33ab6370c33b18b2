"""CETNet: rankers with tables of their own, trained together and fused by confidence."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis import config as configs
from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import Inspection, Output, Supervised
from tamis.models.ranges import check_probabilities, check_ranges
from tamis.models.standalone import STANDALONE, find
from tamis.nn.embedding import EmbeddingTables, FirstOrder
from tamis.nn.mlp import ExactLinear

Confidence = Literal["neg_entropy", "inverse_entropy", "margin", "none", "weights", "gate"]
Collaboration = Literal["sym_kl", "kl_1to2", "kl_2to1", "mse", "none"]

# The entropy of a probability of 1e-7, in nats: inverse entropies stop here.
_LEAST_ENTROPY = 1.7118e-6
_LEAST_TEMPERATURE = 1e-6
_WEIGHT_BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CETNetConfig:
    """Members, how their predictions are fused, and what they teach each other."""

    members: tuple[dict[str, Any], ...] = ({"name": "interformer"}, {"name": "dhen"})
    """Each as the ``[model]`` table of a recipe would describe it. At least 2."""
    embeddings: Literal["separate", "shared"] = "separate"
    """Tables of each member's own, as in the paper; ``shared`` is the ablation, in which all
    members look their rows up in the tables of the first, so that all must be equally wide."""
    confidence: Confidence = "neg_entropy"
    """What a member's weight in the fused prediction grows with: minus the entropy of its
    prediction (the paper), the inverse of that entropy, the margin ``|2p - 1|``, or nothing
    (``none``: the mean). ``weights`` learns one scalar for each member and task, ``gate`` weights
    that depend linearly on all members' logits; these two are controls and no confidence."""
    tau: float = 1.0
    """Temperature of the softmax over confidences. Above 0; small values pick one member. Says
    nothing with ``confidence = "none"``."""
    learn_tau: bool = False
    """Whether the temperature is trained, from ``tau`` on."""
    fuse: Literal["prob", "logit"] = "prob"
    """Whether the weighted mean is taken of probabilities or of logits."""
    detach_weights: bool = False
    """Whether the fused loss leaves the weights alone; where they are learned, or none
    (``confidence = "none"``), this is refused."""
    collaboration: Collaboration = "sym_kl"
    """What draws the members' predictions together: both Kullback-Leibler divergences, one of
    them (from the earlier to the later member, or back), the squared difference of probabilities,
    or nothing (``none``: the next three options have no effect)."""
    collaboration_weight: float = 0.1
    """Beta: factor on that loss. At least 0."""
    collaboration_temperature: float = 1.0
    """Divides the logits in that loss. Above 0."""
    detach_peer: bool = False
    """Whether each divergence moves only the second of its two arguments, as in deep mutual
    learning."""
    member_weight: float | None = None
    """Alpha: factor on each member's own loss. Without a value 1 / members."""
    fused_weight: float = 1.0
    """Factor on the loss of the fused prediction. At least 0."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.members) < 2:
            raise ConfigError(
                f"members: must be at least two models, got {len(self.members)}. Train a single "
                f"model by its own name."
            )
        for name in ("tau", "collaboration_temperature"):
            if not getattr(self, name) >= _LEAST_TEMPERATURE:
                raise ConfigError(
                    f"{name}: must be at least {_LEAST_TEMPERATURE:g}, got {getattr(self, name)}."
                )
        is_learned = self.learn_tau or self.confidence in ("weights", "gate")
        if self.detach_weights and is_learned:
            raise ConfigError(
                "detach_weights: must be false where weights or their temperature are learned, got "
                "true: nothing would train them."
            )
        if self.fused_weight == 0 and is_learned:
            raise ConfigError(
                "fused_weight: must be above 0 where weights or their temperature are learned, got "
                "0: nothing would train them."
            )
        if self.detach_weights and self.confidence == "none":
            raise ConfigError(
                "detach_weights: must be false with confidence 'none', got true: the mean has no "
                "weights that a loss could move."
            )
        if self.learn_tau and self.confidence == "none":
            raise ConfigError(
                "learn_tau: must be false with confidence 'none', got true: the mean has no "
                "temperature."
            )
        if self.fused_weight == 0 and self.member_weight == 0:
            raise ConfigError(
                "fused_weight: must be above 0 with member_weight 0, got 0: no label would be "
                "learned."
            )
        # With every default written out, as the config of a run has them.
        checked = [member_config(table, index) for index, table in enumerate(self.members)]
        members = tuple(
            {"name": table["name"], **configs.to_table(config)}
            for table, config in zip(self.members, checked, strict=True)
        )
        object.__setattr__(self, "members", members)
        # A member may have first-order weights alone, which are shared by themselves.
        widths = [member["embedding_dim"] for member in members if "embedding_dim" in member]
        if self.embeddings == "shared" and len(set(widths)) > 1:
            raise ConfigError(
                f"embeddings: members that share tables must have one embedding_dim, got "
                f"{', '.join(map(str, widths))}."
            )


def member_config(table: Mapping[str, Any], index: int) -> Any:  # noqa: ANN401  (any config)
    """The config of a member, from its table.

    Raises:
        ConfigError: There is no such model, or a key of it is unknown, mistyped or out of range.
    """
    where = f"members[{index}]"
    settings = dict(table)
    entry = find(STANDALONE, settings.pop("name", None), where=f"{where}.name")
    return configs.from_table(entry.config, settings, where=where)


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """What the members say of a batch, before and beside their fusion."""

    logits: Tensor
    """(B, M, T)."""
    weights: Tensor
    """(B, M, T), summing to 1 over members."""


class CETNet(nn.Module):
    """M rankers on the same inputs, fused for each row by how sure each of them is.

    The weight of member m in a row is ``softmax_m(c_m / tau)``, where ``c_m`` is minus the entropy
    of its prediction in nats; the fused probability is the weighted mean. The training loss is that
    of the fused prediction, alpha times each member's own, and beta times the collaborative loss,
    for two members ``(KL(p1||p2) + KL(p2||p1)) / 2``, averaged over pairs of members where there
    are more. A member is an ordinary model of the catalog; member m starts from the weights that it
    has alone under a seed larger by m, so that two of a kind differ. (Two runs whose seeds differ
    by less than M then share such a start.)

    With alpha 1, tables of their own and neither fused nor collaborative loss, members train bit
    for bit as they do alone, with three exceptions: ``optimizer.clip_norm`` is on the gradients of
    all members together, dropout and whatever else is drawn in training share a generator, and
    whatever follows from evaluations (patience, step sizes on a plateau, the best weights) follows
    those of the fused prediction.

    Low entropy is not correctness: at a base rate of a few percent the member that predicts less
    counts as surer, which draws fused predictions down. Look at the calibration.

    Source:
        A Collaborative Ensemble Framework for CTR Prediction, arXiv:2411.13700, abstract: members
        with tables of their own, collaborative learning, confidence as negation of entropy, and a
        general softmax.

    Differs from the source:
        Only the abstract and a secondary account of the collaborative loss could be read.
        Temperature, the weights of the losses, gradients through the weights and the treatment of
        more than two members are choices of this library, each an option. With several tasks
        weights and losses are each task's own.
    """

    def __init__(self, config: CETNetConfig, spec: InputSpec) -> None:
        """Build all members for the inputs of ``spec``.

        Raises:
            ConfigError: A task is a regression, or members that share tables need other widths.
        """
        super().__init__()
        check_probabilities(spec.tasks, why="Confidence is an entropy; train a single model.")
        self.config = config
        self.task_names = tuple(task.name for task in spec.tasks)
        self.member_names = tuple(
            f"{table['name']} {number}" for number, table in enumerate(config.members)
        )
        self.members = nn.ModuleList()
        seed = torch.initial_seed()
        for index, table in enumerate(config.members):
            # Not torch.manual_seed, which would reseed every GPU too.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed((seed + index) % 2**63)
                entry = STANDALONE[table["name"]]
                self.members.append(entry.model(member_config(table, index), spec))
        if config.embeddings == "shared":
            _share_tables(self.members)
        num_members, num_tasks = len(self.members), len(spec.tasks)
        self.log_tau: nn.Parameter | None = None
        if config.learn_tau:
            self.log_tau = nn.Parameter(torch.tensor(math.log(config.tau)))
        self.scores: nn.Parameter | None = None
        self.gate: ExactLinear | None = None
        if config.confidence == "weights":
            self.scores = nn.Parameter(torch.zeros(num_members, num_tasks))
        if config.confidence == "gate":
            self.gate = ExactLinear(num_members * num_tasks, num_members * num_tasks)

    def forward(self, batch: Batch) -> Output:
        """Fused logits (B, T); the members' own are supervised beside them."""
        outputs = [member(batch) for member in self.members]
        members = self._weighted(outputs)
        fused = fused_logits(members.logits, members.weights, self.config.fuse)
        alpha = self.config.member_weight
        alpha = 1 / len(outputs) if alpha is None else alpha
        supervised = [Supervised(logits=fused, weight=self.config.fused_weight)]
        losses: dict[str, Tensor] = {}
        for index, output in enumerate(outputs):
            for item in output.compared:
                supervised.append(dataclasses.replace(item, weight=alpha * item.weight))
            for name, loss in output.auxiliary_losses.items():
                losses[f"member {index}: {name}"] = alpha * loss
        if self.config.collaboration != "none" and self.config.collaboration_weight:
            loss = collaborative_loss(
                members.logits / self.config.collaboration_temperature,
                self.config.collaboration,
                detach_peer=self.config.detach_peer,
            )
            row_weights = (batch.weights / batch.weights.sum().clamp_min(1e-12)).unsqueeze(1)
            of_tasks = (loss * row_weights).sum(0)
            losses["collaboration"] = self.config.collaboration_weight * of_tasks
        return Output(logits=fused, auxiliary_losses=losses, supervised=tuple(supervised))

    def members_of(self, batch: Batch) -> Members:
        """What the members say of a batch, and how much each counts."""
        return self._weighted([member(batch) for member in self.members])

    def inspections(self, batch: Batch) -> list[Inspection]:
        """Mean weights of the members, their mean predictions, and how far they are apart."""
        members = self.members_of(batch)
        p = torch.sigmoid(members.logits)
        names = self.member_names
        apart = (p.unsqueeze(1) - p.unsqueeze(2)).abs().mean(0)
        bins = (members.weights[:, :, 0] * _WEIGHT_BINS).long().clamp_max(_WEIGHT_BINS - 1)
        edges = [f"{place / _WEIGHT_BINS:g}" for place in range(_WEIGHT_BINS + 1)]
        return [
            Inspection(
                title="Mean weight of each member",
                rows=self.task_names,
                columns=names,
                values=members.weights.mean(0).T,
            ),
            Inspection(
                title=f"Share of rows by the weight of each member, {self.task_names[0]}",
                rows=names,
                columns=tuple(f"{a} to {b}" for a, b in itertools.pairwise(edges)),
                values=F.one_hot(bins, _WEIGHT_BINS).float().mean(0),
            ),
            Inspection(
                title="Mean prediction of each member",
                rows=self.task_names,
                columns=names,
                values=p.mean(0).T,
            ),
            *(
                Inspection(
                    title=f"Mean distance of the members' predictions, {task}",
                    rows=names,
                    columns=names,
                    values=apart[:, :, index],
                )
                for index, task in enumerate(self.task_names)
            ),
        ]

    def _weighted(self, outputs: Sequence[Output]) -> Members:
        # In float32 under autocast too: differences of nearly equal entropies decide.
        logits = torch.stack([output.logits.float() for output in outputs], dim=1)
        if self.scores is not None:
            scores = self.scores.expand_as(logits)
        elif self.gate is not None:
            scores = self.gate(logits.flatten(1)).float().view_as(logits)
        else:
            scores = confidence(logits, self.config.confidence)
        tau = self.config.tau if self.log_tau is None else self.log_tau.exp()
        weights = torch.softmax(scores / tau, dim=1)
        return Members(
            logits=logits, weights=weights.detach() if self.config.detach_weights else weights
        )


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a binary prediction, from its logit; exact for large logits too."""
    # Not 1 - p, which float32 rounds to 0 from a logit of 17 on.
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    return p * F.softplus(-logits) + q * F.softplus(logits)


def confidence(logits: Tensor, kind: Confidence) -> Tensor:
    """How sure a prediction is, of the shape of its logits."""
    if kind == "neg_entropy":
        return -entropy(logits)
    if kind == "inverse_entropy":
        return entropy(logits).clamp_min(_LEAST_ENTROPY).reciprocal()
    if kind == "margin":
        return torch.tanh(logits / 2).abs()
    return torch.zeros_like(logits)


def fused_logits(
    logits: Float[Tensor, "B M T"],
    weights: Float[Tensor, "B M T"],
    fuse: Literal["prob", "logit"],
) -> Float[Tensor, "B T"]:
    """Logit of the weighted mean of probabilities, or weighted mean of logits.

    The former in log space, so that its cross entropy is exact however small a probability is.
    """
    if fuse == "logit":
        return (weights * logits).sum(1)
    # A weight may be 0 in float32; a floor keeps its logarithm and its gradient finite.
    log_weights = weights.clamp_min(1e-30).log()
    log_positive = torch.logsumexp(log_weights + F.logsigmoid(logits), dim=1)
    return log_positive - torch.logsumexp(log_weights + F.logsigmoid(-logits), dim=1)


def collaborative_loss(
    logits: Float[Tensor, "B M T"], kind: Collaboration, *, detach_peer: bool
) -> Float[Tensor, "B T"]:
    """How far the members' predictions are apart, in nats (``mse``: squared probabilities).

    Mean over unordered pairs of members. With ``detach_peer`` the gradient moves only the second
    argument of each divergence, towards the first.
    """
    pairs = list(itertools.combinations(logits.unbind(1), 2))
    loss = torch.zeros_like(logits[:, 0])
    for first, second in pairs:
        loss = loss + _apart(first, second, kind, detach_peer=detach_peer) / len(pairs)
    return loss


def _apart(first: Tensor, second: Tensor, kind: Collaboration, *, detach_peer: bool) -> Tensor:
    taught_first = first.detach() if detach_peer else first
    taught_second = second.detach() if detach_peer else second
    if kind == "kl_1to2":
        return _divergence(taught_first, second)
    if kind == "kl_2to1":
        return _divergence(taught_second, first)
    if kind == "mse":
        forth = (torch.sigmoid(taught_first) - torch.sigmoid(second)).square()
        back = (torch.sigmoid(taught_second) - torch.sigmoid(first)).square()
        return (forth + back) / 2
    return (_divergence(taught_first, second) + _divergence(taught_second, first)) / 2


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two binary predictions, ``KL(p1 || p2)``, from logits."""
    p, q = torch.sigmoid(first), torch.sigmoid(-first)
    positive = F.logsigmoid(first) - F.logsigmoid(second)
    negative = F.logsigmoid(-first) - F.logsigmoid(-second)
    return p * positive + q * negative


def _share_tables(members: nn.ModuleList) -> None:
    """Let all members use the first one's tables: the n-th of a kind in place of their n-th.

    Embeddings and first-order weights are two kinds, whatever their widths.
    """
    owners: dict[tuple[bool, int, int], EmbeddingTables] = {}
    for member in members:
        seen: Counter[tuple[bool, int]] = Counter()
        for parent in list(member.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, EmbeddingTables):
                    kind = (isinstance(parent, FirstOrder), child.width)
                    owner = owners.setdefault((*kind, seen[kind]), child)
                    seen[kind] += 1
                    if owner is not child:
                        # A plain attribute: the parameter has one name, that of its owner.
                        delattr(parent, name)
                        object.__setattr__(parent, name, owner)
    widths = sorted({width for is_first_order, width, _ in owners if not is_first_order})
    if len(widths) > 1:
        raise ConfigError(
            f"model.embeddings: members that share tables must have them equally wide, got widths "
            f"{', '.join(map(str, widths))}. FM's are embedding_dim wide for each task; leave it "
            f"out, or take separate tables."
        )
