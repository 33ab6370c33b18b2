"""The training loop: one run from a dataset and a config, resumable at any moment."""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamis import artifacts, config
from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.data.schema import Task
from tamis.errors import ConfigError, TamisError
from tamis.models import catalog
from tamis.models.output import Output
from tamis.training import runlog
from tamis.training.checkpoint import (
    Trainee,
    load_newest_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from tamis.training.config import OptimizerConfig, RunConfig
from tamis.training.evaluate import Predictor, evaluate_dataset, task_metrics
from tamis.training.optimizers import RowAdagrad, RowAdam, RowwiseAdagrad
from tamis.training.predict import BEST_WEIGHTS, choose_device, choose_precision
from tamis.training.schedules import Progress, step_size_fraction


class Observer(Protocol):
    """Whoever draws the progress of a run."""

    def on_message(self, text: str) -> None:
        """Something that a person should know, such as a damaged checkpoint passed over."""

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
        """Called a few times a second at most."""

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """One line of ``metrics.jsonl``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a training ended."""

    run: Path
    """The run folder."""
    status: Literal["finished", "interrupted"]
    """Interrupted runs go on when ``train`` is called again."""
    metrics: Mapping[str, Any]
    """By split and task; empty when interrupted."""


class _Silent:
    def on_message(self, text: str) -> None: ...

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None: ...

    def on_evaluation(self, record: Mapping[str, Any]) -> None: ...


def train(
    dataset: Dataset, settings: RunConfig, run: Path, *, observer: Observer | None = None
) -> TrainResult:
    """Train a model, or go on with a run that was killed or interrupted.

    A run that is finished already is returned as it is. Ctrl-C finishes the batch, writes a
    checkpoint and returns; a second Ctrl-C raises ``KeyboardInterrupt`` at once.

    Args:
        dataset: Needs the splits ``train`` and ``valid``; ``test`` is evaluated if it is there.
        settings: Everything else that decides the result.
        run: Run folder; made if absent.
        observer: Draws progress.

    Raises:
        ConfigError: The folder holds a run of another config or another dataset.
        RunInUseError: A living process works on this folder.
        ArtifactError: The disk is full, or no checkpoint is whole.
        TamisError: The loss is no finite number.
    """
    with artifacts.folder_lock(run):
        _open_run(dataset, settings, run)
        if (run / "metrics.json").exists():
            return TrainResult(
                run=run, status="finished", metrics=artifacts.read_json(run / "metrics.json")
            )
        # Weights and dropout draw from torch's own generators; the caller's stay as they were.
        with torch.random.fork_rng():
            return _Training(dataset, settings, run, observer or _Silent()).work()


class _Training:
    """One process's work on one run."""

    def __init__(
        self, dataset: Dataset, settings: RunConfig, run: Path, observer: Observer
    ) -> None:
        training = settings.training
        self.dataset, self.settings, self.run, self.observer = dataset, settings, run, observer
        self.device = choose_device(training.device)
        self.precision = choose_precision(training.precision, self.device)
        self.loader = Loader(
            dataset.split("train"),
            dataset.spec,
            batch_size=training.batch_size,
            seed=training.seed,
        )
        self.total_steps = self.loader.num_batches * training.max_epochs
        self.evaluation_batches = _evaluation_batches(
            self.loader.num_batches, training.evaluations_per_epoch
        )
        # One seed for weights and dropout; resuming puts the generator back to its saved state.
        torch.manual_seed(training.seed)
        model = catalog.entry(settings.model_name).model(settings.model, dataset.spec)
        self.model: nn.Module = model.to(self.device)
        self.forward = torch.compile(self.model) if training.compile else self.model
        self.optimizers = build_optimizers(self.model, settings.optimizer)
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        self.progress = Progress()
        self.trainee = Trainee(model=self.model, optimizers=self.optimizers, progress=self.progress)
        weights = training.task_weights or (1.0,) * len(dataset.spec.tasks)
        if len(weights) != len(dataset.spec.tasks):
            raise ConfigError(
                f"training.task_weights: must hold one weight for each of "
                f"{len(dataset.spec.tasks)} tasks, got {len(weights)}."
            )
        self.task_weights = torch.tensor(weights, device=self.device)
        self.dense = [p for n, p in self.model.named_parameters() if not _is_table(n)]
        self.predictor = Predictor(
            model=self.model,
            device=self.device,
            precision=self.precision,
            batch_size=max(training.batch_size, 4096),
        )
        self.stop_requested = False
        self.checkpointed = self.clock = time.perf_counter()

    def work(self) -> TrainResult:
        checkpoint, damaged = load_newest_checkpoint(self.run / "checkpoints", self.trainee)
        for message in damaged:
            self.observer.on_message(f"passed over a damaged checkpoint: {message}")
        if checkpoint is not None:
            self.observer.on_message(f"resumed at step {self.progress.step:,}")
        self.log = runlog.MetricsLog(self.run / "metrics.jsonl", keep_lines=self.progress.lines)
        self.events = runlog.Events(self.run / "tensorboard", purge_step=self.progress.step + 1)
        self.checkpointed = self.clock = time.perf_counter()
        try:
            with _stop_on_interrupt(self):
                finished = self._train_epochs()
        finally:
            self.events.close()
        if not finished:
            _update_run_json(self.run, status="interrupted")
            return TrainResult(run=self.run, status="interrupted", metrics={})
        return TrainResult(run=self.run, status="finished", metrics=self._finish())

    def _train_epochs(self) -> bool:
        training = self.settings.training
        self.model.train()
        while self.progress.epoch < training.max_epochs:
            for batch in self.loader.epoch(self.progress.epoch, self.progress.batch):
                self._step(batch.to(self.device))
                at = self.progress.batch
                if at in self.evaluation_batches:
                    if at == self.loader.num_batches:
                        self.progress.epoch += 1
                        self.progress.batch = 0
                    stale = self._evaluate()
                    if stale >= training.patience:
                        self.progress.epoch = training.max_epochs
                    self._checkpoint()
                elif self.stop_requested or self._is_checkpoint_due():
                    self._checkpoint()
                if self.stop_requested:
                    return False
                if self.progress.epoch >= training.max_epochs:
                    break
        return True

    def _step(self, batch: Batch) -> None:
        fraction = self.progress.plateau_fraction * step_size_fraction(
            self.settings.schedule, step=self.progress.step, total_steps=self.total_steps
        )
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * fraction
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, self.precision == torch.bfloat16):
            output = self.forward(batch)
        loss = training_loss(
            output, batch.labels, batch.weights, self.dataset.spec.tasks, self.task_weights
        )
        loss.backward()
        if self.settings.optimizer.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.dense, self.settings.optimizer.clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.progress.step += 1
        self.progress.batch += 1
        # On a CPU the value is there already; on CUDA this waits for the device.
        value = loss.item()
        if not np.isfinite(value):
            raise TamisError(
                f"training step {self.progress.step}: the loss must be finite, got {value}. "
                f"Lower optimizer.dense_lr or optimizer.embedding_lr, or set optimizer.clip_norm."
            )
        self.progress.loss_sum += value
        self.progress.loss_steps += 1
        self._tick(batch.num_rows)

    def _tick(self, num_rows: int) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        rate = num_rows / max(1e-9, now - self.clock)
        self.clock = now
        self.observer.on_step(
            step=self.progress.step, total_steps=self.total_steps, rows_per_second=rate
        )

    def _evaluate(self) -> int:
        training, progress = self.settings.training, self.progress
        started = time.perf_counter()
        metrics = task_metrics(
            self.dataset.split("valid"),
            self.predictor.predict(self.dataset, "valid"),
            self.dataset.spec.tasks,
            grouped=False,
        )
        task = training.monitor_task or self.dataset.spec.tasks[0].name
        if task not in metrics:
            raise ConfigError(
                f"training.monitor_task: must be one of {', '.join(metrics)}, got {task!r}."
            )
        value = metrics[task].get(training.monitor, metrics[task].get("rmse"))
        is_best = progress.observe(
            float("nan") if value is None else value,
            larger_is_better=training.monitor == "auc",
            min_improvement=training.min_improvement,
            config=self.settings.schedule,
        )
        train_loss = progress.loss_sum / max(1, progress.loss_steps)
        record = {
            "step": progress.step,
            "epoch": progress.epoch,
            "train_loss": train_loss,
            "step_size_fraction": progress.plateau_fraction,
            "valid": metrics,
            "is_best": is_best,
            "time": {
                "training_seconds": progress.seconds,
                "evaluation_seconds": time.perf_counter() - started,
            },
        }
        progress.loss_sum, progress.loss_steps = 0.0, 0
        if is_best:
            self._keep_weights()
        self.log.append(record)
        progress.lines = self.log.lines
        values = {f"valid/{t}/{n}": v for t, m in metrics.items() for n, v in m.items()}
        self.events.add(progress.step, {"train/loss": train_loss, **values})
        self.observer.on_evaluation(record)
        self.clock = time.perf_counter()
        return progress.stale_evaluations

    def _keep_weights(self) -> None:
        best = self.run / "checkpoints" / BEST_WEIGHTS
        save_weights(best / "model.safetensors", self.model)
        artifacts.write_manifest(
            best,
            kind="weights",
            version=1,
            files=[best / "model.safetensors"],
            payload={"step": self.progress.step},
        )

    def _is_checkpoint_due(self) -> bool:
        return time.perf_counter() - self.checkpointed >= self.settings.training.checkpoint_seconds

    def _checkpoint(self) -> None:
        save_checkpoint(self.run / "checkpoints", self.trainee)
        self.checkpointed = self.clock = time.perf_counter()

    def _finish(self) -> dict[str, Any]:
        load_weights(self.run / "checkpoints" / BEST_WEIGHTS / "model.safetensors", self.model)
        metrics = evaluate_dataset(
            self.predictor,
            self.dataset,
            splits=tuple(name for name in self.dataset.split_names if name != "train"),
            out=self.run / "predictions",
        )
        rows = self.progress.step * self.settings.training.batch_size
        _update_run_json(
            self.run,
            status="finished",
            training_seconds=self.progress.seconds,
            samples_per_second=rows / max(1e-9, self.progress.seconds),
            peak_rss_bytes=runlog.peak_rss_bytes(),
            best_step=self.progress.best_step,
            steps=self.progress.step,
            parameters=count_parameters(self.model),
            environment=runlog.environment(self.device),
            precision=str(self.precision).removeprefix("torch."),
        )
        artifacts.write_json(self.run / "metrics.json", metrics)
        return metrics


def training_loss(
    output: Output, labels: Tensor, weights: Tensor, tasks: tuple[Task, ...], task_weights: Tensor
) -> Tensor:
    """Weighted mean loss over the observed labels of each task, summed over tasks.

    Binary tasks: cross entropy of the logit, in nats. Regression tasks: squared error. Auxiliary
    losses are added as they are. A task without an observed label in the batch adds 0.
    """
    logits = output.logits.float()
    observed = ~labels.isnan()
    known = torch.where(observed, labels, torch.zeros_like(labels))
    row_weights = weights.unsqueeze(1) * observed
    losses = F.binary_cross_entropy_with_logits(logits, known, reduction="none")
    regression = [index for index, task in enumerate(tasks) if task.kind == "regression"]
    if regression:
        squared = (logits[:, regression] - known[:, regression]).square()
        losses = losses.index_copy(1, torch.tensor(regression, device=losses.device), squared)
    per_task = (losses * row_weights).sum(0) / row_weights.sum(0).clamp_min(1e-12)
    total = (per_task * task_weights).sum()
    for auxiliary in output.auxiliary_losses.values():
        total = total + auxiliary
    return total


def build_optimizers(
    model: nn.Module, settings: OptimizerConfig
) -> dict[str, torch.optim.Optimizer]:
    """Optimizers of the tables and of everything else, by name."""
    tables = [p for name, p in model.named_parameters() if _is_table(name)]
    matrices = [p for n, p in model.named_parameters() if not _is_table(n) and p.ndim > 1]
    vectors = [p for n, p in model.named_parameters() if not _is_table(n) and p.ndim <= 1]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if tables:
        kinds = {"rowwise_adagrad": RowwiseAdagrad, "adagrad": RowAdagrad, "adam": RowAdam}
        optimizers["tables"] = kinds[settings.embedding](
            tables, lr=settings.embedding_lr, l2=settings.embedding_l2
        )
    groups = [
        {"params": matrices, "weight_decay": settings.dense_weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        optimizers["dense"] = torch.optim.AdamW(groups, lr=settings.dense_lr, fused=True)
    return optimizers


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters in tables, elsewhere, and together."""
    tables = sum(p.numel() for n, p in model.named_parameters() if _is_table(n))
    total = sum(p.numel() for p in model.parameters())
    return {"tables": tables, "dense": total - tables, "total": total}


def _is_table(name: str) -> bool:
    return name.endswith("tables.weight")


def _evaluation_batches(num_batches: int, evaluations: int) -> frozenset[int]:
    count = min(num_batches, evaluations)
    return frozenset(round(num_batches * (k + 1) / count) for k in range(count))


def _open_run(dataset: Dataset, settings: RunConfig, run: Path) -> None:
    """Write what identifies the run, or check that the folder holds the same run."""
    table = settings.to_table()
    path = run / "config.toml"
    if path.exists():
        _check_same(table, config.read_toml(path), run)
        found = artifacts.read_json(run / "run.json")["dataset"]["fingerprint"]
        if found != dataset.fingerprint:
            raise ConfigError(
                f"{run}: must be of the same dataset, got fingerprint {dataset.fingerprint[:12]} "
                f"instead of {found[:12]}. Give another run name."
            )
        return
    inputs = run / "inputs"
    shutil.copytree(dataset.encoders_path, inputs / "encoders", dirs_exist_ok=True)
    artifacts.write_text(inputs / "schema.toml", dataset.schema.to_toml())
    artifacts.write_json(inputs / "spec.json", config.to_table(dataset.spec))
    rows = {name: dataset.split(name).num_rows for name in dataset.split_names}
    identity = {
        "dataset": {"fingerprint": dataset.fingerprint, "rows": rows, "path": str(dataset.path)},
        "commit": runlog.source_commit(),
        "seed": settings.training.seed,
        "status": "running",
    }
    artifacts.write_json(run / "run.json", identity)
    artifacts.write_text(path, config.write_toml(table))


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], run: Path) -> None:
    flat_ours, flat_theirs = dict(_flat(ours)), dict(_flat(theirs))
    for key in sorted(flat_ours.keys() | flat_theirs.keys()):
        if flat_ours.get(key) != flat_theirs.get(key):
            raise ConfigError(
                f"{run}: must be resumed with its own config, got {key}={flat_ours.get(key)!r} "
                f"instead of {flat_theirs.get(key)!r}. Give another run name."
            )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _update_run_json(run: Path, **entries: object) -> None:
    artifacts.write_json(run / "run.json", {**artifacts.read_json(run / "run.json"), **entries})


@contextlib.contextmanager
def _stop_on_interrupt(training: _Training) -> Iterator[None]:
    """Turn the first Ctrl-C into a request; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def request(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        training.stop_requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
