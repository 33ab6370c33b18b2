"""ESMM: what happens after a click, learned from all impressions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.models.multi_task import MultiTaskConfig, TaskTowers, multi_task_inputs
from tamis.models.output import Output, Supervised
from tamis.models.ranges import check_probabilities


@dataclass(frozen=True, kw_only=True, slots=True)
class ESMMConfig(MultiTaskConfig):
    """Entire space multi-task model; the defaults are the paper's widths."""

    embedding_dim: int = 18
    """Width of an embedding; unused with ``one_hot``."""
    tower_units: tuple[int, ...] = (360, 200, 80)
    """Hidden widths of each task's tower; may be empty."""


class ESMM(nn.Module):
    """A tower for each task on shared embeddings; a later task is learned through its product.

    Where a conversion exists only after a click, the loss compares
    ``p(click and conversion) = p(click) p(conversion | click)`` with what happened in every
    impression, rather than ``p(conversion | click)`` with what happened after clicks. The logits
    are those of the factors, so a prediction means the same as that of any other model. Which task
    needs which is the ``observed_when`` of the schema; chains may be longer than two, and a task
    without it is compared with its own label.

    Source:
        Ma et al., Entire Space Multi-Task Model, SIGIR 2018, equations (2) and (3).

    Differs from the source:
        Any number of tasks. A click whose conversion is not known yet is left out rather than taken
        for none. Histories are averaged.
    """

    def __init__(self, config: ESMMConfig, spec: InputSpec) -> None:
        """Build a tower for each task of ``spec``.

        Raises:
            ConfigError: A task is a regression.
        """
        super().__init__()
        why = "A product of probabilities needs probabilities; take another model."
        check_probabilities(spec.tasks, why=why)
        self.inputs = multi_task_inputs(config, spec)
        self.towers = TaskTowers(self.inputs.out_dim, config.tower_units, len(spec.tasks))
        self.conditions = conditions_of(spec.tasks)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T); those of products are supervised."""
        logits = self.towers([self.inputs(batch)] * len(self.conditions))
        return Output(
            logits=logits,
            supervised=(
                Supervised(
                    logits=logits_of_products(logits, self.conditions),
                    labels=labels_of_products(batch.labels, self.conditions),
                ),
            ),
        )


def conditions_of(tasks: tuple[Task, ...]) -> tuple[int | None, ...]:
    """For each task the place of the one that must have happened, which stands before it."""
    places = {task.name: place for place, task in enumerate(tasks)}
    return tuple(places[task.observed_when] if task.observed_when else None for task in tasks)


def logits_of_products(
    logits: Float[Tensor, "B T"], conditions: tuple[int | None, ...]
) -> Float[Tensor, "B T"]:
    """Logits of ``p_t p_condition(t) ...``, in log space: exact for products near 0 and near 1."""
    columns: list[Tensor] = []
    logs: list[Tensor] = []
    for place, condition in enumerate(conditions):
        logit = logits[:, place].float()
        log = F.logsigmoid(logit)
        if condition is not None:
            # Below 0 also where float32 rounds a product to 1, whose logit would be infinite.
            log = (log + logs[condition]).clamp_max(-1e-30)
            logit = log - torch.log(-torch.expm1(log))
        columns.append(logit)
        logs.append(log)
    return torch.stack(columns, dim=1)


def labels_of_products(
    labels: Float[Tensor, "B T"], conditions: tuple[int | None, ...]
) -> Float[Tensor, "B T"]:
    """Whether a task and all that it needs happened: 0 where what it needs did not."""
    columns: list[Tensor] = []
    for place, condition in enumerate(conditions):
        label = labels[:, place]
        if condition is not None:
            before = columns[condition]
            # Where a teacher labelled the row both are probabilities.
            label = torch.where(before == 0, before, before * label)
        columns.append(label)
    return torch.stack(columns, dim=1)
