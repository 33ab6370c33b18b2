"""The training loop: one run from a dataset and a config, resumable at any moment."""

import math
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tamis import artifacts
from tamis.data.batch import Batch
from tamis.data.dataset import Dataset, Split
from tamis.data.loader import Loader
from tamis.data.schema import Task
from tamis.data.times import latest
from tamis.errors import ConfigError, DataError, DivergedError, TamisWarning
from tamis.models import catalog
from tamis.models.trained import TrainedModel
from tamis.models.weights import weights_fingerprint
from tamis.nn.embedding import give_rows
from tamis.nn.residual_index import ResidualIndex
from tamis.process import on_first_signal
from tamis.training import runlog
from tamis.training.averaging import WeightAverage
from tamis.training.checkpoint import Trainee, load_newest_checkpoint, save_checkpoint
from tamis.training.config import RunConfig
from tamis.training.cost import count_forward_flops, count_parameters
from tamis.training.evaluate import Predictor, evaluate_dataset, task_metrics
from tamis.training.history_warnings import history_warnings
from tamis.training.objective import training_loss
from tamis.training.optimizers import build_optimizers, table_parameters
from tamis.training.predict import (
    choose_device,
    choose_precision,
    load_best_weights,
    save_best_weights,
)
from tamis.training.run_folder import (
    begin_work,
    check_run,
    is_opened,
    open_run,
    timestamp,
    update_run_json,
)
from tamis.training.schedules import Monitor, Progress, choose_monitor, step_size_fraction
from tamis.training.teacher import Teacher

# Reading a loss waits for the device, so losses are read together: this often, at the latest
# after so many steps.
_SECONDS_BETWEEN_READS = 0.1
_STEPS_BETWEEN_READS = 64


class Observer(Protocol):
    """Whoever draws the progress of a run."""

    def on_message(self, text: str) -> None:
        """News, such as that a run goes on where it stopped."""

    def on_warning(self, text: str) -> None:
        """What a person should look at, such as a damaged checkpoint passed over."""

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
        """Called a few times a second, with the speed since the last call."""

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


class Silent:
    """Draws nothing and says nothing."""

    def on_message(self, text: str) -> None:
        """Nothing."""

    def on_warning(self, text: str) -> None:
        """Nothing."""

    def on_step(self, *, step: int, total_steps: int, rows_per_second: float) -> None:
        """Nothing."""

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


class Warns(Silent):
    """Watches a training for a caller who does not."""

    def on_warning(self, text: str) -> None:
        """Warn, at the line that called :func:`tamis.api.train`."""
        # Between that line and this lie api's train, this module's, and the training's work.
        warnings.warn(text, TamisWarning, stacklevel=5)


def train(
    dataset: Dataset,
    settings: RunConfig,
    run: Path,
    *,
    start: TrainedModel | None = None,
    teacher: TrainedModel | None = None,
    observer: Observer | None = None,
) -> TrainResult:
    """Train a model, or go on with a run that was killed or interrupted.

    A run that is finished already is returned as it is. Ctrl-C, or SIGTERM, finishes the batch,
    writes a checkpoint and returns; a second one ends the process as it always does.

    Args:
        dataset: Needs the splits ``train`` and ``valid``; ``test`` is evaluated if it is there.
        settings: Everything else that decides the result.
        run: Run folder; made if absent.
        start: Model whose weights training starts from, such as one that serves; None: from those
            that the seed draws. Optimizers start from nothing either way.
        teacher: Model that labels the training rows without any label; see
            :class:`tamis.training.teacher.Teacher`. None: they have none.
        observer: Draws progress.

    Raises:
        ConfigError: The folder holds a run of another config, dataset, start or teacher, or the
            config does not fit the dataset, or ``start`` or ``teacher`` do not fit the two.
        RunInUseError: A living process works on this folder.
        ArtifactError: The disk is full, or no checkpoint is whole.
        DataError: A split lacks labels, or there is no row that ``teacher`` could label.
        DivergedError: The loss, or a prediction for the validation split, is no finite number.
    """
    with artifacts.folder_lock(run):
        origin = {
            name: weights_fingerprint(model.module)
            for name, model in (("started_from", start), ("taught_by", teacher))
            if model is not None
        }
        if is_opened(run):
            check_run(dataset, settings, run, origin=origin)
        if (run / "metrics.json").exists():
            return TrainResult(
                run=run, status="finished", metrics=artifacts.read_json(run / "metrics.json")
            )
        # Weights and dropout draw from torch's own generators; the caller's stay as they were.
        with torch.random.fork_rng():
            training = _Training(dataset, settings, run, start, teacher, observer or Silent())
            # Only now, so that a config that does not fit the dataset leaves no run behind.
            if not is_opened(run):
                origins = [model.trained_until for model in (start, teacher) if model is not None]
                until = latest([dataset.trained_until(), *origins])
                open_run(dataset, settings, run, origin=origin, trained_until=until)
            return training.work()


class _Training:
    """One process's work on one run."""

    def __init__(
        self,
        dataset: Dataset,
        settings: RunConfig,
        run: Path,
        start: TrainedModel | None,
        teacher: TrainedModel | None,
        observer: Observer,
    ) -> None:
        training = settings.training
        self.dataset, self.settings, self.run, self.observer = dataset, settings, run, observer
        self.device = choose_device(training.device)
        self.precision = choose_precision(training.precision, self.device)
        self.monitor = choose_monitor(training, dataset.spec.tasks)
        _check_labels(dataset, self.monitor)
        self.loader = Loader(
            dataset.split("train"),
            dataset.spec,
            batch_size=training.batch_size,
            seed=training.seed,
            bucket_by_length=training.bucket_by_length,
        )
        self.total_steps = self.loader.num_batches * training.max_epochs
        self.evaluation_batches = _evaluation_batches(
            self.loader.num_batches, training.evaluations_per_epoch
        )
        # One seed for weights and dropout; resuming puts the generator back to its saved state.
        torch.manual_seed(training.seed)
        model = catalog.entry(settings.model_name).model(settings.model, dataset.spec)
        if start is not None:
            _take_weights(model, settings, dataset, start)
        else:
            give_rows(model, dataset.given_rows())
        self.model: nn.Module = model.to(self.device)
        self.teacher: Teacher | None = None
        if teacher is not None:
            _check_unlabelled(dataset)
            self.teacher = Teacher(
                teacher, dataset.spec, device=self.device, precision=self.precision
            )
        _check_last_batch(self.model, self.loader)
        self.forward = torch.compile(self.model) if training.compile else self.model
        self.optimizers = build_optimizers(self.model, settings.optimizer)
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        self.progress = Progress()
        self.average: WeightAverage | None = None
        if training.ema_decay > 0:
            self.average = WeightAverage(
                self.model, decay=training.ema_decay, total_steps=self.total_steps
            )
        self.trainee = Trainee(
            model=self.model,
            optimizers=self.optimizers,
            progress=self.progress,
            average=self.average,
        )
        weights = training.task_weights or (1.0,) * len(dataset.spec.tasks)
        if len(weights) != len(dataset.spec.tasks):
            raise ConfigError(
                f"training.task_weights: must hold one weight for each of "
                f"{len(dataset.spec.tasks)} tasks, got {len(weights)}."
            )
        self.task_weights = torch.tensor(weights, device=self.device)
        tables = {id(table) for table in table_parameters(self.model)}
        self.dense = [p for p in self.model.parameters() if id(p) not in tables]
        self.predictor = Predictor(
            model=self.model,
            device=self.device,
            precision=self.precision,
            batch_size=max(training.batch_size, 4096),
        )
        self.stop_requested = False
        self.unread: list[Tensor] = []
        self.unread_rows = 0
        self.checkpointed = self.clock = time.perf_counter()

    def work(self) -> TrainResult:
        """Train to the end or to an interrupt."""
        for difference in begin_work(self.run, self.device):
            self.observer.on_warning(difference)
        for warning in history_warnings(self.settings.model_name, self.model):
            self.observer.on_warning(warning)
        checkpoint, damaged = load_newest_checkpoint(self.run / "checkpoints", self.trainee)
        for reason in damaged:
            self.observer.on_warning(f"passed over a damaged checkpoint: {reason}")
        if checkpoint is not None:
            self.observer.on_message(f"resumed at step {self.progress.step:,}")
        self.log = runlog.MetricsLog(self.run / "metrics.jsonl", keep_lines=self.progress.lines)
        self.events = runlog.Events(self.run / "tensorboard", purge_step=self.progress.step + 1)
        self.checkpointed = self.clock = time.perf_counter()
        try:
            with on_first_signal(self._request_stop, signal.SIGINT, signal.SIGTERM):
                finished = self._train_epochs()
        finally:
            self.events.close()
        if not finished:
            update_run_json(self.run, status="interrupted")
            self.observer.on_message(f"stopped at step {self.progress.step:,} with a checkpoint")
            return TrainResult(run=self.run, status="interrupted", metrics={})
        return TrainResult(run=self.run, status="finished", metrics=self._finish())

    def _request_stop(self) -> None:
        self.stop_requested = True

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
        fraction = self._step_size_fraction()
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * fraction
            optimizer.zero_grad(set_to_none=True)
        if self.teacher is not None:
            batch = self.teacher.label(batch)
        with torch.autocast(self.device.type, torch.bfloat16, self.precision == torch.bfloat16):
            output = self.forward(batch)
        loss = training_loss(
            output,
            batch.labels,
            batch.weights,
            self.dataset.spec.tasks,
            self.task_weights,
            is_taught=batch.is_taught,
            teacher_weight=self.settings.training.teacher_weight,
        )
        loss.backward()
        if self.settings.optimizer.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.dense, self.settings.optimizer.clip_norm)
        if self.average is not None:
            self.average.before_update(self.progress.step)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.progress.step += 1
        self.progress.batch += 1
        self.unread.append(loss.detach())
        self.unread_rows += batch.num_rows
        is_due = time.perf_counter() - self.clock >= _SECONDS_BETWEEN_READS
        if is_due or len(self.unread) >= _STEPS_BETWEEN_READS:
            self._read_losses()

    def _step_size_fraction(self) -> float:
        return self.progress.plateau_fraction * step_size_fraction(
            self.settings.schedule, step=self.progress.step, total_steps=self.total_steps
        )

    def _read_losses(self) -> None:
        """Take in the losses of the steps since the last call."""
        if not self.unread:
            return
        first = self.progress.step - len(self.unread) + 1
        for step, value in enumerate(torch.stack(self.unread).tolist(), start=first):
            if not math.isfinite(value):
                raise _diverged(f"training step {step}: the loss", value)
            # One by one, so that the sum does not depend on when losses are read.
            self.progress.loss_sum += value
            self.progress.loss_steps += 1
        self.progress.rows += self.unread_rows
        now = time.perf_counter()
        seconds = max(1e-9, now - self.clock)
        self.progress.seconds += seconds
        self.observer.on_step(
            step=self.progress.step,
            total_steps=self.total_steps,
            rows_per_second=self.unread_rows / seconds,
        )
        self.clock, self.unread_rows = now, 0
        self.unread.clear()

    def _evaluate(self) -> int:
        """Evaluations since the best one, this one included."""
        self._read_losses()
        if self.average is None:
            return self._evaluate_weights()
        with self.average.swapped_in(self.progress.step):
            return self._evaluate_weights()

    def _evaluate_weights(self) -> int:
        training, progress = self.settings.training, self.progress
        started = time.perf_counter()
        predictions = self.predictor.predict(self.dataset, "valid")
        if not np.isfinite(predictions).all():
            raise _diverged(f"evaluation after step {progress.step}: predictions", math.nan)
        metrics = task_metrics(
            self.dataset.split("valid"),
            predictions,
            self.dataset.spec.tasks,
            grouped=self.monitor.needs_users,
        )
        step_sizes = {
            name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()
        }
        if progress.best_step < _oldest_searchable(self.model, progress.step):
            # Nobody can search with weights from before; later ones are better at any value.
            progress.best_value = None
        is_best = progress.observe(
            self.monitor.value(metrics),
            larger_is_better=self.monitor.larger_is_better,
            min_improvement=training.min_improvement,
            config=self.settings.schedule,
        )
        train_loss = progress.loss_sum / max(1, progress.loss_steps)
        record = {
            "step": progress.step,
            "epoch": progress.epoch,
            "train_loss": train_loss,
            "step_sizes": step_sizes,
            "valid": metrics,
            "is_best": is_best,
            "time": {
                "training_seconds": progress.seconds,
                "evaluation_seconds": time.perf_counter() - started,
            },
        }
        progress.loss_sum, progress.loss_steps = 0.0, 0
        if is_best:
            save_best_weights(self.run, self.model, step=progress.step)
        self.log.append(record)
        progress.lines = self.log.lines
        values = {f"valid/{t}/{n}": v for t, m in metrics.items() for n, v in m.items()}
        self.events.add(progress.step, {"train/loss": train_loss, **values})
        self.observer.on_evaluation(record)
        self.clock = time.perf_counter()
        return progress.stale_evaluations

    def _is_checkpoint_due(self) -> bool:
        return time.perf_counter() - self.checkpointed >= self.settings.training.checkpoint_seconds

    def _checkpoint(self) -> None:
        self._read_losses()
        save_checkpoint(self.run / "checkpoints", self.trainee)
        self.checkpointed = self.clock = time.perf_counter()

    def _finish(self) -> dict[str, Any]:
        load_best_weights(self.run, self.model)
        metrics = evaluate_dataset(
            self.predictor,
            self.dataset,
            splits=tuple(name for name in self.dataset.split_names if name != "train"),
            out=self.run / "predictions",
        )
        update_run_json(
            self.run,
            status="finished",
            finished=timestamp(),
            training_seconds=self.progress.seconds,
            samples_per_second=self.progress.rows / max(1e-9, self.progress.seconds),
            peak_rss_bytes=runlog.peak_rss_bytes(),
            best_step=self.progress.best_step,
            steps=self.progress.step,
            parameters=count_parameters(self.model),
            forward_flops_per_row=count_forward_flops(self.model, self._some_batch()),
            precision=str(self.precision).removeprefix("torch."),
        )
        artifacts.write_json(self.run / "metrics.json", metrics)
        return metrics

    def _some_batch(self) -> Batch:
        loader = Loader(
            self.dataset.split("valid"),
            self.dataset.spec,
            batch_size=256,
            shuffle=False,
            prefetch=0,
        )
        return next(loader.epoch(0)).to(self.device)


def _take_weights(
    model: nn.Module, settings: RunConfig, dataset: Dataset, start: TrainedModel
) -> None:
    """Put the weights of a trained model into a new one of the same kind and inputs."""
    ours = (settings.model_name, settings.model, dataset.spec)
    if ours != (start.name, start.config, start.spec):
        parts = zip(("model.name", "model", "inputs"), ours,
                    (start.name, start.config, start.spec), strict=True)  # fmt: skip
        what = next(name for name, own, other in parts if own != other)
        raise ConfigError(
            f"start: must be a model of the same config and inputs, got another {what}. Train "
            f"with its config on a dataset of its encoders, or from the beginning."
        )
    model.load_state_dict(start.module.state_dict())


def _oldest_searchable(model: nn.Module, step: int) -> int:
    """First step whose weights have a learnt index.

    ``step + 1`` where none has one yet, 0 where the model is to have none.
    """
    indices = [m for m in model.modules() if isinstance(m, ResidualIndex) and m.sizes]
    return max((step + 1 - int(index.age) for index in indices), default=0)


def _check_labels(dataset: Dataset, monitor: Monitor) -> None:
    """Find out before training, not after it, that a metric is undefined."""
    for name in dataset.split_names:
        _check_weights(dataset.split(name), dataset.spec.tasks)
    places = {task.name: place for place, task in enumerate(dataset.spec.tasks)}
    split = dataset.split("valid")
    all_labels, weights = split.labels(), split.weights()
    for task in monitor.tasks:
        labels = all_labels[:, places[task]]
        known = ~np.isnan(labels)
        values = np.unique(labels[known if weights is None else known & (weights > 0)])
        if values.size == 0:
            raise DataError(
                f"split 'valid': must hold labels of {task!r}, got none in {len(labels):,} rows. "
                f"Split otherwise, or set training.monitor_tasks."
            )
        if values.size == 1 and monitor.needs_both_classes:
            raise DataError(
                f"split 'valid': must hold both classes of {task!r} for "
                f"training.monitor={monitor.metric!r}, got only {values[0]:g}"
                f"{'' if weights is None else ' in rows with a weight'}. Split otherwise, or set "
                f"training.monitor='log_loss'."
            )
    if monitor.needs_users:
        _check_users(split, dataset.spec.tasks, monitor)


def _check_users(split: Split, tasks: tuple[Task, ...], monitor: Monitor) -> None:
    """Find out that there is no user, or none whose rows could be ranked rightly or wrongly."""
    if split.role("user") is None:
        raise ConfigError(
            f"training.monitor: must be 'ne', 'log_loss' or 'auc' without a user, got "
            f"{monitor.metric!r}. Name the user in the schema's roles, or set "
            f"training.monitor='auc'."
        )
    # Predictions that are all alike have a metric where better ones have.
    alike = np.full(split.labels().shape, 0.5)
    metrics = task_metrics(split, alike, tasks, grouped=True)
    for task in monitor.tasks:
        if metrics[task][monitor.metric] is None:
            raise DataError(
                f"split 'valid': must hold both classes of {task!r} of one user for "
                f"training.monitor={monitor.metric!r}, got none in {len(alike):,} rows. Split "
                f"otherwise, or set training.monitor='auc'."
            )


def _check_weights(split: Split, tasks: Sequence[Task]) -> None:
    """Find out that the rows of a task count for nothing."""
    weights = split.weights()
    if weights is None:
        return
    labels = split.labels()
    for place, task in enumerate(tasks):
        known = ~np.isnan(labels[:, place])
        if known.any() and not weights[known].any():
            raise DataError(
                f"split {split.name!r}: rows with a label of {task.name!r} must have a weight "
                f"above 0, got 0 in all {int(known.sum()):,}. Split otherwise, or take the weight "
                f"out of the schema's roles."
            )


def _check_unlabelled(dataset: Dataset) -> None:
    """Find out that a teacher would have nothing to do."""
    if not np.isnan(dataset.split("train").labels()).all(1).any():
        raise DataError(
            "teacher: must have training rows without any label to label, got none. Log what was "
            "drawn and not shown, with may_be_missing = true for every task, or leave the teacher "
            "out."
        )


def _check_last_batch(model: nn.Module, loader: Loader) -> None:
    """Batch norm has no variance over a single row."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    has_norm = any(isinstance(module, norms) for module in model.modules())
    if has_norm and loader.num_rows % loader.batch_size == 1:
        raise ConfigError(
            f"training.batch_size: must not leave a last batch of one row to batch norm, got "
            f"{loader.batch_size} for {loader.num_rows:,} rows. Add or take one."
        )


def _diverged(what: str, value: float) -> DivergedError:
    return DivergedError(
        f"{what} must be finite, got {value}. "
        f"Lower optimizer.dense_lr or optimizer.embedding_lr, or set optimizer.clip_norm."
    )


def _evaluation_batches(num_batches: int, evaluations: int) -> frozenset[int]:
    count = min(num_batches, evaluations)
    return frozenset(round(num_batches * (k + 1) / count) for k in range(count))
