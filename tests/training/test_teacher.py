"""What a teacher does to the rows that nobody labelled, and to a student of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import random_rows
from torch import nn

from tamis import artifacts
from tamis.data.batch import Batch, concatenate
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows
from tamis.data.schema import InputSpec, Schema
from tamis.errors import ConfigError, DataError
from tamis.models.output import Output
from tamis.models.trained import TrainedModel
from tamis.testing.models import example_batch
from tamis.training.config import RunConfig, run_config_from_table
from tamis.training.loop import train
from tamis.training.objective import training_loss
from tamis.training.predict import load_trained
from tamis.training.teacher import Teacher

_CPU = torch.device("cpu")


class _BySum(nn.Module):
    """Logits (B, T) that are the sum of a row's ids, plus the place of the task."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks

    def forward(self, batch: Batch) -> Output:
        assert not self.training
        score = batch.ids.sum(1, keepdim=True) / 100.0
        return Output(logits=score + torch.arange(self.num_tasks))


def _teacher(spec: InputSpec) -> Teacher:
    model = TrainedModel(name="", config=None, spec=spec, module=_BySum(len(spec.tasks)).train())
    return Teacher(model, spec, device=_CPU, precision=torch.float32)


def _batch(spec: InputSpec) -> Batch:
    """Eight rows: four labelled, one of them in part; four that nobody labelled."""
    batch = example_batch(spec, rows=8)
    labels = batch.labels.clone()
    labels[3, 1] = torch.nan
    labels[4:] = torch.nan
    return replace(batch, labels=labels, weights=torch.tensor([1.0, 2, 3, 4, 1, 1, 1, 2]))


def test_rows_without_any_label_get_what_the_teacher_predicts(spec: InputSpec) -> None:
    batch = _batch(spec)

    taught = _teacher(spec).label(batch)

    score = batch.ids.sum(1, keepdim=True) / 100.0
    expected = torch.sigmoid(score + torch.arange(2))
    torch.testing.assert_close(taught.labels[4:], expected[4:])
    torch.testing.assert_close(taught.labels[:4], batch.labels[:4], equal_nan=True)
    assert taught.is_taught is not None
    assert taught.is_taught.tolist() == [False] * 4 + [True] * 4
    assert taught.weights.tolist() == batch.weights.tolist()
    labelled = _teacher(spec).label(batch.take(torch.arange(4)))
    torch.testing.assert_close(labelled.labels, batch.labels[:4], equal_nan=True)
    assert not labelled.is_unlabelled.any()


def test_rows_that_are_taught_are_still_those_that_nobody_labelled(spec: InputSpec) -> None:
    batch = _batch(spec)

    taught = _teacher(spec).label(batch)

    assert taught.is_unlabelled.tolist() == batch.is_unlabelled.tolist()
    torch.testing.assert_close(taught.rewards, batch.rewards)
    assert bool((taught.rewards[4:] == 0).all())
    rows = torch.tensor([6, 1])
    assert taught.take(rows).is_unlabelled.tolist() == [True, False]
    assert taught.to(_CPU).is_unlabelled.tolist() == batch.is_unlabelled.tolist()
    assert concatenate([taught, taught]).is_unlabelled.tolist() == [*batch.is_unlabelled] * 2


def test_taught_rows_add_their_own_mean_to_the_loss_of_labelled_ones(spec: InputSpec) -> None:
    batch = _batch(spec)
    taught = _teacher(spec).label(batch)
    output = Output(logits=torch.linspace(-1, 2, 16).view(8, 2))
    tasks, even = spec.tasks, torch.ones(2)

    def loss(of: Batch, **teaching: Any) -> float:
        return float(training_loss(output, of.labels, of.weights, tasks, even, **teaching))

    nobody = replace(taught, labels=taught.labels.clone())
    nobody.labels[:4] = torch.nan
    both = loss(batch) + 0.5 * loss(nobody)
    found = loss(taught, is_taught=taught.is_taught, teacher_weight=0.5)
    assert found == pytest.approx(both)
    # Of a batch of either kind alone the other adds nothing.
    none = torch.zeros(8, dtype=torch.bool)
    assert loss(batch, is_taught=none) == pytest.approx(loss(batch))
    assert loss(nobody, is_taught=~none) == pytest.approx(loss(nobody))


def test_teacher_of_other_inputs_is_refused(spec: InputSpec) -> None:
    other = replace(spec, tasks=spec.tasks[:1])
    model = TrainedModel(name="", config=None, spec=other, module=_BySum(1))

    with pytest.raises(ConfigError, match="teacher: must be a model of the same inputs and tasks"):
        Teacher(model, spec, device=_CPU, precision=torch.float32)


def _settings(**training: Any) -> RunConfig:
    return run_config_from_table(
        {
            "model": {"name": "fm", "embedding_dim": 4},
            "optimizer": {"embedding": "adam", "embedding_lr": 0.03},
            "training": {"batch_size": 64, "max_epochs": 8, "patience": 9, **training},
        }
    )


def _half_labelled(folder: Path, schema: Schema, spec: InputSpec) -> Dataset:
    """Rows of which those with items of the upper half were never shown, but when tested."""
    with DatasetWriter(folder, schema, spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        for seed, (split, count) in enumerate({"train": 4000, "valid": 400, "test": 2000}.items()):
            rows = random_rows(count, seed, first_row=10_000 * seed)
            is_upper = rows.ids["item"] >= 15
            if split == "test":
                writer.append(split, _of(rows, is_upper))
            else:
                hidden = {
                    name: np.where(is_upper, np.nan, labels).astype(np.float32)
                    for name, labels in rows.labels.items()
                }
                writer.append(split, replace(rows, labels=hidden))
        return writer.finish({})


def _of(rows: EncodedRows, kept: np.ndarray) -> EncodedRows:
    values, lengths = rows.sequences["past"]
    return replace(
        rows,
        row=rows.row[kept],
        numeric={name: column[kept] for name, column in rows.numeric.items()},
        ids={name: column[kept] for name, column in rows.ids.items()},
        sequences={"past": (values[np.repeat(kept, lengths)], lengths[kept])},
        labels={name: column[kept] for name, column in rows.labels.items()},
        roles={name: column[kept] for name, column in rows.roles.items()},
    )


@pytest.mark.slow
def test_student_learns_of_what_was_never_shown_from_its_teacher(
    make_dataset: Callable[..., Dataset], tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    train(make_dataset(train=4000), _settings(), tmp_path / "teacher")
    teacher = load_trained(tmp_path / "teacher")
    dataset = _half_labelled(tmp_path / "half", schema, spec)

    aucs = {}
    for name, who in (("alone", None), ("taught", teacher)):
        result = train(dataset, _settings(), tmp_path / name, teacher=who)
        aucs[name] = result.metrics["metrics"]["test"]["click"]["auc"]

    assert aucs["taught"] > 0.75
    assert aucs["alone"] < 0.6


def test_teacher_without_anything_to_label_is_refused(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset()
    train(dataset, _settings(max_epochs=1), tmp_path / "a")

    with pytest.raises(DataError, match="teacher: must have training rows without any label"):
        train(
            dataset,
            _settings(max_epochs=1),
            tmp_path / "run",
            teacher=load_trained(tmp_path / "a"),
        )
    assert not (tmp_path / "run" / "config.toml").exists()


def test_run_is_resumed_with_the_teacher_that_it_had(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    dataset = _half_labelled(tmp_path / "half", schema, spec)
    for seed, name in enumerate("ab"):
        train(dataset, _settings(max_epochs=1, seed=seed), tmp_path / name)
    teachers = [load_trained(tmp_path / name) for name in "ab"]
    train(dataset, _settings(max_epochs=1), tmp_path / "run", teacher=teachers[0])

    again = train(dataset, _settings(max_epochs=1), tmp_path / "run", teacher=teachers[0])

    assert again.status == "finished"
    for other in (teachers[1], None):
        with pytest.raises(ConfigError, match="must be resumed with the weights that taught it"):
            train(dataset, _settings(max_epochs=1), tmp_path / "run", teacher=other)


def test_student_has_learnt_from_what_its_teacher_has(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    dataset = _half_labelled(tmp_path / "half", schema, spec)
    train(dataset, _settings(max_epochs=1), tmp_path / "teacher")
    record = artifacts.read_json(tmp_path / "teacher" / "run.json")
    assert record["dataset"]["trained_until"] is None  # its rows have no time
    record["dataset"]["trained_until"] = 7
    artifacts.write_json(tmp_path / "teacher" / "run.json", record)

    teacher = load_trained(tmp_path / "teacher")
    train(dataset, _settings(max_epochs=1), tmp_path / "run", teacher=teacher)

    student = artifacts.read_json(tmp_path / "run" / "run.json")
    assert student["dataset"]["trained_until"] == 7
    assert load_trained(tmp_path / "run").trained_until == 7


def test_weight_of_a_teacher_is_positive() -> None:
    with pytest.raises(ConfigError, match=r"teacher_weight: must be positive, got 0"):
        _settings(teacher_weight=0.0)
