"""Every model of the catalog as an ONNX file: ONNX Runtime gives what PyTorch gives."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tamis import api, artifacts, config
from tamis.data.batch import Batch
from tamis.data.ingest import encode_log
from tamis.data.loader import batches_of_rows
from tamis.data.schema import InputSpec, SequenceInput, Task
from tamis.errors import ArtifactError, ConfigError, RunInUseError, StorageError, TamisError
from tamis.exporting import onnx_file
from tamis.exporting.onnx_file import (
    NOT_EXPORTED,
    export_onnx,
    feed_of,
    input_names,
    largest_difference,
    open_exported,
    open_session,
    write_graph,
)
from tamis.models import catalog
from tamis.models.output import Output, probabilities_of
from tamis.models.trained import TrainedModel
from tamis.nn.embedding import give_rows
from tamis.testing.models import example_batch, example_spec, example_vectors

pytestmark = pytest.mark.slow

pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

# Sizes that show every kind of layer; the defaults take minutes to trace.
_SMALL: dict[str, dict[str, Any]] = {
    "cetnet": {"members": ({"name": "dcn_v2", "hidden_units": [8]}, {"name": "din"})},
    "hsnn": {"codebooks": (5,), "levels": ({"user_tokens": 2}, {"user_tokens": 2})},
}


def _trained(name: str, spec: InputSpec, **options: Any) -> TrainedModel:
    entry = catalog.entry(name)
    settings = config.from_table(entry.config, {**_SMALL.get(name, {}), **options}, where="model")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = entry.model(settings, spec).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return TrainedModel(name=name, config=settings, spec=spec, module=module)


def _two_groups() -> InputSpec:
    spec = example_spec()
    other = SequenceInput(
        name="other", fields=("o",), tables=("field0",), max_length=5, side="user"
    )
    return replace(spec, sequences=(*spec.sequences, other))


def _check(model: TrainedModel, path: Path, batches: list[Batch]) -> None:
    session = open_session(path)
    assert [item.name for item in session.get_inputs()] == list(input_names(model.spec))
    for batch in batches:
        (found,) = session.run(["predictions"], feed_of(batch, model.spec))
        with torch.no_grad():
            logits = model.module(batch).logits
        expected = probabilities_of(logits, model.spec.tasks).numpy()
        assert found.shape == expected.shape
        # Beyond 1, where only values of regression are, as a share of them.
        assert (np.abs(found - expected) <= 1e-5 * np.maximum(1, np.abs(expected))).all()


# One with histories and one without.
_WITHOUT_WAITING = ("bst", "deepfm")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in _WITHOUT_WAITING else pytest.mark.slow)
        for name in catalog.CATALOG
        if name not in NOT_EXPORTED
    ],
)
def test_onnx_runtime_predicts_what_pytorch_predicts(name: str, tmp_path: Path) -> None:
    model = _trained(name, example_spec(num_tasks=2))

    write_graph(model, tmp_path / "m.onnx")

    batches = [
        example_batch(model.spec),
        example_batch(model.spec, rows=1, seed=1),
        example_batch(model.spec, rows=7, seed=2, longest=1),
        example_batch(model.spec, rows=5, seed=3, longest=0),  # nobody has a history
        example_batch(model.spec, rows=300, seed=4),
    ]
    # Predictions that are all alike would agree whatever the graph does.
    assert float(model.module(batches[0]).logits.detach().std()) > 1e-4
    _check(model, tmp_path / "m.onnx", batches)


@pytest.mark.parametrize("name", ["deepfm", "din", "two_tower"])
def test_vectors_that_are_given_are_part_of_the_graph(name: str, tmp_path: Path) -> None:
    model = _trained(name, example_spec(vectors=6))
    give_rows(model.module, example_vectors(model.spec))

    write_graph(model, tmp_path / "m.onnx")

    batches = [example_batch(model.spec), example_batch(model.spec, rows=5, seed=3, longest=0)]
    assert float(model.module(batches[0]).logits.detach().std()) > 1e-4
    _check(model, tmp_path / "m.onnx", batches)


@pytest.mark.parametrize("name", ["interformer", "cetnet"])
def test_histories_of_several_groups_may_differ_in_length(name: str, tmp_path: Path) -> None:
    small = {"embedding_dim": 4, "num_layers": 1, "head_units": [8]}
    members = ({"name": "interformer", **small}, {"name": "lr"})
    model = _trained(name, _two_groups(), **({"members": members} if name == "cetnet" else small))

    write_graph(model, tmp_path / "m.onnx")

    batches = [
        example_batch(model.spec, rows=rows, seed=seed, longest=longest)
        for seed, (rows, longest) in enumerate([(6, 5), (1, 5), (5, 0), (7, 1), (200, 5)])
    ]
    _check(model, tmp_path / "m.onnx", batches)


def test_rows_that_a_graph_is_compared_on_have_groups_of_different_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _trained("lr", _two_groups())
    write_graph(model, tmp_path / "m.onnx")
    seen: list[Batch] = []
    forward = type(model.module).forward
    monkeypatch.setattr(
        type(model.module),
        "forward",
        lambda module, batch: (seen.append(batch), forward(module, batch))[1],
    )

    assert largest_difference(model, tmp_path / "m.onnx") <= 1e-5

    (batch,) = seen
    first, second = (group.offsets.diff() for group in batch.sequences.values())
    assert (first > second).any()
    assert (first < second).any()


@pytest.mark.parametrize(
    "options",
    [
        {"num_numeric": 0},
        {"sequences": False},
        {"num_numeric": 0, "sequences": False},
        {"num_categorical": 0},
        {"num_categorical": 0, "num_numeric": 0},
    ],
)
def test_inputs_that_a_model_has_no_columns_for_are_left_out(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = _trained("deepfm", example_spec(**options), hidden_units=[8])

    names = write_graph(model, tmp_path / "m.onnx")

    expected = [] if options.get("num_numeric") == 0 else ["numeric"]
    expected += [] if options.get("num_categorical") == 0 else ["ids"]
    has_events = options.get("sequences", True)
    expected += ["history.values", "history.offsets"] if has_events else []
    assert names == tuple(expected)
    batches = [example_batch(model.spec), example_batch(model.spec, rows=1, seed=1)]
    _check(model, tmp_path / "m.onnx", batches)


def test_regression_is_a_value_and_no_probability(tmp_path: Path) -> None:
    spec = example_spec()
    tasks = (Task(name="click"), Task(name="price", kind="regression", mean=20.0, std=5.0))
    spec = InputSpec(
        numeric=spec.numeric, categorical=spec.categorical, sequences=spec.sequences,
        tables=spec.tables, tasks=tasks, numeric_sides=spec.numeric_sides,
    )  # fmt: skip
    model = _trained("shared_bottom", spec)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(4)
    write_graph(model, tmp_path / "m.onnx")

    batch = example_batch(spec)
    _check(model, tmp_path / "m.onnx", [batch])
    (found,) = open_session(tmp_path / "m.onnx").run(None, feed_of(batch, spec))
    assert ((found[:, 0] >= 0) & (found[:, 0] <= 1)).all()
    assert ((found[:, 1] < 0) | (found[:, 1] > 1)).any()


def test_run_is_exported_with_what_encodes_its_log(market_world: Path, tmp_path: Path) -> None:
    run, out = market_world / "final", tmp_path / "models" / "final.onnx"

    made = export_onnx(run, out)

    assert made.tasks == ("click", "conversion", "hide")
    assert made.difference <= 1e-5
    assert sorted(path.name for path in out.parent.iterdir()) == ["final.onnx", "final.onnx.inputs"]
    # From the raw log to predictions without the run: only the file and what lies beside it.
    session, encoders = open_exported(out)
    log = sorted((market_world / "market" / "logs").iterdir())[0]
    (rows,) = encode_log(log, encoders)
    (batch,) = batches_of_rows(rows, encoders.spec, batch_size=100_000)
    (found,) = session.run(["predictions"], feed_of(batch, encoders.spec))
    expected = api.predict(run, log)
    for place, task in enumerate(made.tasks):
        # Runs predict in bfloat16 where the machine multiplies it fast: 8 bits of a logit.
        np.testing.assert_allclose(
            found[:, place], expected[f"prediction_{task}"].to_numpy(), rtol=0.05
        )
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["tamis.tasks"]) == list(made.tasks)
    assert json.loads(metadata["tamis.ids"]) == [item.name for item in encoders.spec.categorical]


def test_weights_too_large_for_one_file_lie_beside_it(
    market_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_LARGEST_IN_ONE_FILE", 1)

    made = export_onnx(market_world / "final", tmp_path / "final.onnx")

    data = tmp_path / "final.onnx.data"
    assert data.stat().st_size > (tmp_path / "final.onnx").stat().st_size / 10
    assert made.difference <= 1e-5
    assert not list(tmp_path.glob(".*"))
    # Weights of an earlier model do not stay beside one that has its own.
    monkeypatch.undo()
    (tmp_path / "second.onnx.data").write_bytes(b"earlier")
    export_onnx(market_world / "final", tmp_path / "second.onnx")
    assert not (tmp_path / "second.onnx.data").exists()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("final.onnx", "final.onnx.data"):
        (tmp_path / name).rename(moved / name)
    open_session(moved / "final.onnx")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of which there is no more than an export reads, with a model of its own."""
    run = tmp_path / "run"
    _write_inputs(run, "1")
    monkeypatch.setattr(onnx_file, "check_finished", lambda run: None)
    monkeypatch.setattr(onnx_file, "load_trained", lambda run: _trained("lr", example_spec()))
    return run


def _write_inputs(run: Path, text: str) -> None:
    path = run / "inputs" / "encoders" / "encoders.json"
    artifacts.write_text(path, text)
    artifacts.write_manifest(run / "inputs", kind="inputs", version=1, files=[path], payload={})


def test_export_is_on_the_disk_before_any_of_it_has_its_name(
    run: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[list[int]] = []
    move = onnx_file._move
    monkeypatch.setattr(
        onnx_file, "_move", lambda work, out: (before.append(synced[:]), move(work, out))
    )
    out = run.parent / "models" / "m.onnx"

    export_onnx(run, out)

    (numbers,) = before
    assert {path.stat().st_ino for path in out.parent.rglob("*")} <= set(numbers)
    assert out.parent.stat().st_ino in synced[len(numbers) :]


def test_encoders_of_another_run_are_refused_beside_a_graph(run: Path) -> None:
    first, second = run.parent / "first.onnx", run.parent / "second.onnx"
    export_onnx(run, first)
    _write_inputs(run, "2")
    export_onnx(run, second)
    with pytest.raises(ArtifactError, match=r"none.onnx: must be an exported graph, got no such"):
        open_exported(run.parent / "none.onnx")

    second.replace(first)  # without the folder beside it

    told = (
        r"first.onnx.inputs: must be what first.onnx was exported with, sha256 \w{12}, got \w{12}"
    )
    with pytest.raises(ArtifactError, match=told):
        open_exported(first)
    write_graph(_trained("lr", example_spec()), first)
    with pytest.raises(ArtifactError, match=r"was exported with, sha256 unknown, got \w{12}. Expo"):
        open_exported(first)


def _parts(folder: Path, text: str, *, data: bool) -> Path:
    """What stands for a graph, its inputs and perhaps its weights, with one text in all of them."""
    (folder / "m.onnx.inputs").mkdir(parents=True)
    (folder / "m.onnx.inputs" / "schema.toml").write_text(text)
    for name in ("m.onnx", "m.onnx.data") if data else ("m.onnx",):
        (folder / name).write_text(text)
    return folder / "m.onnx"


@pytest.mark.parametrize(("data_before", "data_now"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("moves", range(7))
def test_graph_never_stands_beside_parts_of_another_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, data_before: bool, data_now: bool
) -> None:
    out = _parts(tmp_path / "out", "before", data=data_before)
    work = _parts(tmp_path / "work", "now", data=data_now).parent
    done: list[Path] = []
    move = os.replace

    class _Killed(BaseException):
        pass

    def killed(source: Path, target: Path) -> None:
        if len(done) == moves:
            raise _Killed
        done.append(target)
        move(source, target)

    monkeypatch.setattr(os, "replace", killed)

    try:
        onnx_file._move(work, out)
    except _Killed:
        assert len(done) == moves
    else:
        assert out.read_text() == "now"

    if out.exists():
        text = out.read_text()
        assert (out.parent / "m.onnx.inputs" / "schema.toml").read_text() == text
        data = out.with_name("m.onnx.data")
        assert data.exists() == (data_before if text == "before" else data_now)
        assert not data.exists() or data.read_text() == text


def test_full_disk_while_inputs_are_copied_leaves_what_was_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _parts(run.parent / "models", "before", data=True)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)

    with pytest.raises(StorageError, match=r"m.onnx: must fit on the disk, got No space left"):
        export_onnx(run, out)
    files = [path for path in out.parent.rglob("*") if path.is_file()]
    assert [path.read_text() for path in files] == ["before"] * 3


def test_one_export_of_a_name_at_a_time(run: Path) -> None:
    out = run.parent / "m.onnx"

    with (
        artifacts.work_folder(out),
        pytest.raises(RunInUseError, match=r"m.onnx.tmp: must not be in use, got a living process"),
    ):
        export_onnx(run, out)
    assert not out.exists()


def test_folder_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()

    with pytest.raises(ConfigError, match=r"m.onnx: must be a file, got a folder. Name another"):
        export_onnx(tmp_path / "run", tmp_path / "m.onnx")


def test_file_that_predicts_otherwise_gets_no_name(
    market_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "largest_difference", lambda model, path: 2e-5)

    with pytest.raises(TamisError, match=r"must give the predictions of the run within 1e-05, got"):
        export_onnx(market_world / "final", tmp_path / "final.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_models_without_an_onnx_form_are_refused(
    name: str, market_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = example_spec()
    for model in (
        _trained(name, spec),
        _trained("cetnet", spec, members=({"name": "lr"}, {"name": name})),
    ):
        monkeypatch.setattr(onnx_file, "load_trained", lambda run, model=model: model)
        with pytest.raises(ConfigError, match=f"model '{name}': must have an ONNX form"):
            export_onnx(market_world / "final", tmp_path / "m.onnx")


def test_model_that_pytorch_cannot_export_is_named(
    market_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_data(module: torch.nn.Module, batch: Batch) -> Output:
        return Output(logits=torch.zeros(int(batch.ids.sum()), 1))

    model = _trained("lr", example_spec())
    monkeypatch.setattr(type(model.module), "forward", of_data)
    monkeypatch.setattr(onnx_file, "load_trained", lambda run: model)

    told = r"^model 'lr': must become a graph .+, got \w+: .+\. Serve the model with tamis.+\Z"
    with pytest.raises(TamisError, match=told):
        export_onnx(market_world / "final", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_graph_that_onnx_runtime_cannot_run_is_an_error_of_the_model(tmp_path: Path) -> None:
    model = _trained("lr", example_spec())
    write_graph(_trained("lr", example_spec(num_numeric=0)), tmp_path / "m.onnx")

    with pytest.raises(TamisError, match=r"^model 'lr': must become a graph .+, got \w+: .+\Z"):
        largest_difference(model, tmp_path / "m.onnx")


def test_other_endings_are_refused(market_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m.bin: must end in .onnx, got '.bin'"):
        export_onnx(market_world / "final", tmp_path / "m.bin")
