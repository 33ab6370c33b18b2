"""Every model of the catalog as an ONNX file: ONNX Runtime gives what PyTorch gives."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tamis import api, artifacts, config
from tamis.data.batch import Batch
from tamis.data.encoders import Encoders
from tamis.data.ingest import encode_log
from tamis.data.loader import batches_of_rows
from tamis.data.schema import InputSpec, SequenceInput, Task, load_schema
from tamis.errors import ConfigError, TamisError
from tamis.exporting import onnx_file
from tamis.exporting.onnx_file import (
    NOT_EXPORTED,
    export_onnx,
    feed_of,
    input_names,
    largest_difference,
    open_session,
    write_graph,
)
from tamis.models import catalog
from tamis.models.output import Output, probabilities_of
from tamis.models.trained import TrainedModel
from tamis.testing.models import example_batch, example_spec

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
    tasks = (Task(name="click"), Task(name="price", kind="regression"))
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
    inputs = out.with_name("final.onnx.inputs")
    artifacts.read_manifest(inputs, kind="inputs", version=1, verify=True)
    encoders = Encoders.load(inputs / "encoders", load_schema(inputs / "schema.toml"))
    log = sorted((market_world / "market" / "logs").iterdir())[0]
    (rows,) = encode_log(log, encoders)
    (batch,) = batches_of_rows(rows, encoders.spec, batch_size=100_000)
    session = open_session(out)
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
