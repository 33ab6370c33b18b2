"""Everything that decides a run apart from the data: model, optimizers, schedule, loop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tamis import config
from tamis.errors import ConfigError
from tamis.models import catalog


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How parameters move."""

    embedding: Literal["rowwise_adagrad", "adagrad", "adam"] = "rowwise_adagrad"
    """Optimizer of the embedding tables; it touches only the rows of the batch."""
    embedding_lr: float = 0.05
    """Step size of the tables. Positive."""
    embedding_l2: float = 0.0
    """L2 coefficient on table rows. It acts when a row is in a batch, for all steps since it last
    was; a row that never returns keeps its value. At least 0."""
    dense_lr: float = 1e-3
    """Step size of Adam for everything else. Positive."""
    dense_weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) on dense matrices; biases and norms are spared."""
    dense_l2: float = 0.0
    """L2 coefficient of every dense parameter, added to its gradient, as Adam was published. A
    weight with small gradients then shrinks by up to the step size at each step, so that 0.01 is
    far stronger than the same decoupled decay, which must be 0 beside it."""
    clip_norm: float = 0.0
    """Largest global norm of the dense gradients; 0 does not clip. Tables are never clipped."""

    def __post_init__(self) -> None:
        for name in ("embedding_lr", "dense_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)}.")
        for name in ("embedding_l2", "dense_weight_decay", "dense_l2", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be at least 0, got {getattr(self, name)}.")
        if self.dense_l2 and self.dense_weight_decay:
            raise ConfigError(
                f"dense_l2: must be 0 beside a decoupled decay, got {self.dense_l2} and "
                f"dense_weight_decay={self.dense_weight_decay}. Set one of them to 0."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How both step sizes change over the run."""

    kind: Literal["constant", "cosine"] = "constant"
    """After warm-up: stay, or fall along half a cosine to ``final_fraction``."""
    warmup_steps: int = 0
    """Steps over which the step size rises linearly from 0. At least 0."""
    final_fraction: float = 0.0
    """Share of the step size that a cosine ends at, in [0, 1]."""
    plateau_factor: float = 1.0
    """Multiplies the step size after an evaluation without improvement; 1 switches it off."""
    plateau_patience: int = 0
    """Evaluations without improvement that are waited before multiplying. At least 0."""

    def __post_init__(self) -> None:
        if not 0 < self.plateau_factor <= 1:
            raise ConfigError(f"plateau_factor: must be in (0, 1], got {self.plateau_factor}.")
        if not 0 <= self.final_fraction <= 1:
            raise ConfigError(f"final_fraction: must be in [0, 1], got {self.final_fraction}.")
        for name in ("warmup_steps", "plateau_patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be at least 0, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """The loop."""

    seed: int = 0
    """Decides initial weights, dropout and the order of rows, in [0, 2**63)."""
    batch_size: int = 4096
    """Rows per step. At least 2. Where a recipe leaves it out, ``tamis train`` takes a hundredth of
    the training rows or somewhat less, a power of 2 in [64, 4096]."""
    bucket_by_length: bool = False
    """Whether batches hold rows with histories of like length, so that attention pads less. They
    are no random samples then, which batch norm and dice take them for."""
    max_epochs: int = 10
    """Passes over the training split, at most. At least 1."""
    evaluations_per_epoch: int = 1
    """Evaluations on the validation split in each pass. At least 1."""
    monitor: Literal["ne", "log_loss", "auc", "gauc"] = "ne"
    """Validation metric that picks the weights and stops the run; ``gauc``, the AUC within users,
    needs a user among the schema's roles."""
    monitor_tasks: tuple[str, ...] = ()
    """Tasks whose metric is monitored; of several, the mean. Empty: the first task."""
    patience: int = 2
    """Evaluations without improvement after which the run stops. At least 1."""
    min_improvement: float = 0.0
    """Change of the monitored metric that counts as improvement. At least 0."""
    ema_decay: float = 0.0
    """Evaluate and keep a moving average of the weights that decays by this factor a step, in
    [0, 1); 0 keeps the weights themselves. It takes as much memory again as the weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products; ``auto`` takes bfloat16 where the device has fast hardware for it."""
    compile: bool = False
    """Whether to pass the model through ``torch.compile``; needs a C++ compiler."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``...; ``auto`` takes CUDA where there is one."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints; each evaluation writes one too. At least 0."""
    task_weights: tuple[float, ...] = ()
    """Weight of each task's loss, in schema order, at least 0 and not all 0. Empty: 1 each."""
    teacher_weight: float = 1.0
    """Factor on the mean loss of the rows that a teacher labelled, where there is a teacher; that
    of labelled rows has 1. Positive."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: must be in [0, 2**63), got {self.seed}. Give another seed.")
        weights = self.task_weights
        if weights and not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
            raise ConfigError(
                f"task_weights: must be finite, at least 0 and not all 0, got {list(weights)}."
            )
        if not self.teacher_weight > 0:
            raise ConfigError(f"teacher_weight: must be positive, got {self.teacher_weight}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: must be in [0, 1), got {self.ema_decay}.")
        floors = {
            "batch_size": 2,
            "max_epochs": 1,
            "evaluations_per_epoch": 1,
            "patience": 1,
            "min_improvement": 0,
            "checkpoint_seconds": 0,
        }
        for name, floor in floors.items():
            if not getattr(self, name) >= floor:
                raise ConfigError(f"{name}: must be at least {floor}, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A complete run: with a dataset it fixes the result."""

    model_name: str
    """Name in the catalog."""
    model: Any
    """The catalog's config class of that name."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How parameters move."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How step sizes change."""
    training: TrainingConfig = TrainingConfig()
    """The loop."""

    def to_table(self) -> dict[str, Any]:
        """Plain values, as a recipe holds them; every default is written out."""
        return {
            "model": {"name": self.model_name, **config.to_table(self.model)},
            "optimizer": config.to_table(self.optimizer),
            "schedule": config.to_table(self.schedule),
            "training": config.to_table(self.training),
        }


_SECTIONS: dict[str, type[Any]] = {
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "training": TrainingConfig,
}


def run_config_from_table(table: Mapping[str, Any]) -> RunConfig:
    """Build a run's config from a recipe.

    Args:
        table: Parsed TOML with ``[model] name = ...`` and, each optional, ``[optimizer]``,
            ``[schedule]`` and ``[training]``.

    Raises:
        ConfigError: A key is unknown, missing, mistyped or out of range.
    """
    if "model" not in table:  # it may be there by a wrong name
        config.check_keys(table, ("model", *_SECTIONS), where="")
    section = table.get("model", {})
    if not isinstance(section, Mapping):
        raise ConfigError(f"model: must be a table, got {section!r}. Write it as [model].")
    model = dict(section)
    name = model.pop("name", None)
    sections = {"model": catalog.entry(name).config, **_SECTIONS}
    keys = tuple(path for key, cls in sections.items() for path in config.paths_of(cls, where=key))
    config.check_keys(table, sections, where="", elsewhere=keys)
    found = {
        key: config.from_table(
            cls, model if key == "model" else table.get(key, {}), where=key, elsewhere=keys
        )
        for key, cls in sections.items()
    }
    return RunConfig(model_name=str(name), **found)


def read_run_config(path: Path) -> RunConfig:
    """Read a run's config from a recipe or from the ``config.toml`` of a run.

    Raises:
        ConfigError: The file is no TOML, or a key is unknown, missing, mistyped or out of range;
            the file is named.
    """
    table = config.read_toml(path)
    try:
        return run_config_from_table(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
