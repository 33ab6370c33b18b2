"""The early-stage ranker: cached towers, and a head for every task and final-stage prediction."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Side, Task
from tamis.data.sides import side_spec
from tamis.errors import ConfigError
from tamis.models.early_heads import DotHeads, ExpertHeads, PairHeads, SharedHeads
from tamis.models.early_serving import (
    AdTable,
    EarlyStageParts,
    PairScorer,
    ServedHead,
    SideTower,
    label_tasks,
    served_tasks,
)
from tamis.models.esmm import conditions_of, labels_of_products, logits_of_products
from tamis.models.mmoe import mmoe_stack
from tamis.models.multi_task import check_levels
from tamis.models.output import Output, Supervised
from tamis.models.ple import ple_stack
from tamis.models.ranges import check_probabilities, check_ranges
from tamis.nn.embedding import FlatInputs
from tamis.nn.mlp import MLP


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStageConfig:
    """Early-stage ranker."""

    embedding_dim: int = 16
    """Width D of an embedding. At least 1."""
    tower_units: tuple[int, ...] = (256,)
    """Hidden widths of the user's, the ad's and the context's tower; may be empty."""
    tower_dim: int = 128
    """Width of the vector that each tower gives, and that caches keep. At least 1."""
    bottom: Literal["shared", "mmoe", "ple", "dot"] = "shared"
    """What heads stand on: a network that they share, experts, or no more than a dot product of
    the towers' vectors."""
    bottom_units: tuple[int, ...] = (512, 256)
    """Hidden widths of the shared network, at least one; for ``shared`` only."""
    expert_units: tuple[tuple[int, ...], ...] = ((512, 256),)
    """Widths of an expert's layers, for each level; for ``mmoe`` and ``ple`` only."""
    num_experts: int = 4
    """Experts in every level; for ``mmoe`` only."""
    task_experts: int = 1
    """Experts that each head owns in every level; for ``ple`` only."""
    shared_experts: int = 1
    """Experts that all heads share in every level; for ``ple`` only."""
    head_units: tuple[int, ...] = (128, 64)
    """Hidden widths of each head; may be empty. Unused with ``dot``."""
    distillation: Literal["separate", "mixed", "none"] = "separate"
    """Where the final stage's predictions are learned: by heads of their own, by the head of the
    task that they predict, beside its labels, or nowhere."""
    chain: bool = False
    """Whether a task that needs another, as a conversion needs a click, is learned from all
    impressions through the product of both (ESMM) rather than from clicks alone."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_levels(self.expert_units)
        if not self.bottom_units:
            raise ConfigError(
                "model.bottom_units: must hold a width, got none. For heads on the vectors "
                "themselves set model.bottom = 'dot'."
            )


class EarlyStage(nn.Module):
    """``logit_t = head_t(bottom([user tower; context tower; ad tower]))``.

    Towers see the fields of one side each, so that a user's vector can be kept for a while, an ad's
    until it changes, and a candidate costs no more than bottom and heads. A side's fields are those
    that the schema says; without context fields there is no context tower.

    A task with ``distils`` is the final stage's prediction of another task, a soft label that every
    row has which the final stage scored, shown or not. It has its own head on the same bottom, so
    that the head of the label stays calibrated to what happened; which of the two serves is decided
    in :meth:`export`. Each task's loss is the mean over its own rows: more rows without labels do
    not weigh the labels down. Weights of the tasks are the trainer's.

    With ``distillation = "mixed"`` one head has both losses, which on a row with both is cross
    entropy with a weighted mean of label and prediction. With ``"none"`` it has the label's alone.
    In both cases the logit of the distilling task is that head's, so that metrics of the three
    forms compare.

    Source:
        Wang et al., Towards the Better Ranking Consistency: A Multi-task Learning Framework for
        Early Stage Ads Ranking, AdKDD 2023, arXiv:2307.11096: tasks of all parts of the value, and
        distillation as tasks of their own.

    Differs from the source:
        Only abstract and notes of the paper could be read, so widths, the towers' insides (MLPs
        on concatenated embeddings and numbers), weights of the losses, and the relation of
        conversion to click, here ESMM's, are choices of this library. Experts in place of the
        shared network, and the dot product, are for comparison; the latter has a bias.
    """

    def __init__(self, config: EarlyStageConfig, spec: InputSpec) -> None:
        """Build towers for the sides of ``spec`` and heads for its tasks.

        Raises:
            ConfigError: There is no field of the user or none of the item, or a chain has a
                regression.
        """
        super().__init__()
        self.config, self.spec = config, spec
        if config.chain:
            why = "A product of probabilities needs probabilities; set model.chain = false."
            check_probabilities(spec.tasks, why=why)
        self.inputs = FlatInputs(spec, config.embedding_dim, init_std=config.init_std)
        self.sides = _sides(spec)
        self.towers = nn.ModuleDict()
        for side in self.sides:
            columns = _columns(spec, side, config.embedding_dim)
            self.register_buffer(f"{side}_columns", torch.tensor(columns), persistent=False)
            self.towers[side] = MLP(len(columns), config.tower_units, out_dim=config.tower_dim)
        self.head_of_task = _head_of_task(spec.tasks, separate=config.distillation == "separate")
        num_heads = max(self.head_of_task) + 1
        self.heads = _build_heads(config, (len(self.sides) - 1) * config.tower_dim, num_heads)
        self.conditions = conditions_of(spec.tasks)
        self.unlearned = [
            place
            for place, task in enumerate(spec.tasks)
            if task.distils and config.distillation == "none"
        ]

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T): of a chain those of its factors."""
        x = self.inputs(batch)
        vectors = {
            side: self.towers[side](x.index_select(1, self.get_buffer(f"{side}_columns")))
            for side in self.sides
        }
        ads = vectors.pop("item")
        logits = self.heads(torch.cat(list(vectors.values()), dim=1), ads)
        logits = logits[:, list(self.head_of_task)]
        return Output(logits=logits, supervised=self._supervised(logits, batch.labels))

    def _supervised(self, logits: Tensor, labels: Tensor) -> tuple[Supervised, ...] | None:
        if self.config.chain:
            logits = logits_of_products(logits, self.conditions)
            labels = labels_of_products(labels, self.conditions)
        elif not self.unlearned:
            return None
        if self.unlearned:
            labels = labels.clone()
            labels[:, self.unlearned] = torch.nan
        return (Supervised(logits=logits, labels=labels),)

    def export(self, *, head: ServedHead = "distilled") -> EarlyStageParts:
        """The parts that serve, as copies in evaluation mode that later training leaves alone.

        Args:
            head: Which head gives a task's prediction. Rank by the imitation of the final stage,
                monitor and bill by the label.
        """
        towers = {side: self._side_tower(side) for side in self.sides}
        served = [
            tuple(sorted({self.head_of_task[place] for place in places}))
            for places in served_tasks(self.spec.tasks, head)
        ]
        return EarlyStageParts(
            user_tower=towers["user"],
            ad_tower=towers["item"],
            ad_table=AdTable(self.config.tower_dim, device=self.inputs.tables.weight.device),
            context_tower=towers.get("context"),
            scorer=PairScorer(self.heads, served).eval(),
            tasks=label_tasks(self.spec.tasks),
        )

    def _side_tower(self, side: Side) -> SideTower:
        spec, tables = side_spec(self.spec, side), self.inputs.tables
        inputs = FlatInputs(spec, self.config.embedding_dim, init_std=0.0)
        inputs.tables.copy_tables(tables)
        return SideTower(inputs.to(tables.weight.device), copy.deepcopy(self.towers[side])).eval()


def _sides(spec: InputSpec) -> tuple[Side, ...]:
    """Sides that have inputs, the ad's last.

    Raises:
        ConfigError: The user or the item has none.
    """
    order: tuple[Side, ...] = ("user", "context", "item")
    found = tuple(side for side in order if _columns(spec, side, 1))
    for side in ("user", "item"):
        if side not in found:
            raise ConfigError(
                f"model: early_stage needs a field of the {side}'s side for its tower, got none. "
                f"Set side = {side!r} on the {side}'s fields in schema.toml and ingest anew."
            )
    return found


def _columns(spec: InputSpec, side: Side, width: int) -> list[int]:
    """Columns of ``FlatInputs`` that hold what a side brings along, in their order."""
    widths = [(item.side, width) for item in spec.categorical]
    widths += [(group.side, width) for group in spec.sequences for _ in group.fields]
    owners = [owner for owner, count in widths for _ in range(count)]
    owners += spec.sides_of_numeric
    return [column for column, owner in enumerate(owners) if owner == side]


def _head_of_task(tasks: tuple[Task, ...], *, separate: bool) -> tuple[int, ...]:
    """The head that gives each task's logit."""
    if separate:
        return tuple(range(len(tasks)))
    head_by_name = {task.name: head for head, task in enumerate(label_tasks(tasks))}
    return tuple(head_by_name[task.distils or task.name] for task in tasks)


def _build_heads(config: EarlyStageConfig, query_dim: int, num_heads: int) -> PairHeads:
    ad_dim = config.tower_dim
    if config.bottom == "dot":
        return DotHeads(query_dim, ad_dim, num_heads)
    if config.bottom == "shared":
        return SharedHeads(query_dim, ad_dim, config.bottom_units, config.head_units, num_heads)
    if config.bottom == "mmoe":
        stack = mmoe_stack(
            query_dim + ad_dim,
            config.expert_units,
            num_experts=config.num_experts,
            num_tasks=num_heads,
        )
    else:
        stack = ple_stack(
            query_dim + ad_dim,
            config.expert_units,
            task_experts=config.task_experts,
            shared_experts=config.shared_experts,
            num_tasks=num_heads,
        )
    return ExpertHeads(stack, config.expert_units[-1][-1], config.head_units, num_heads)
