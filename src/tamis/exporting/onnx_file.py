"""A run's model as an ONNX file, with the encoders that its inputs are made by beside it.

    FILE           the graph, and below the limit of its format the weights
    FILE.data      the weights, where they are too large for that
    FILE.inputs/   what encodes a log: schema, vocabularies, transforms of numbers; from the run

The graph takes rows that are encoded already, in batches of any size:

    numeric           (rows, M) float32, the numeric fields in the order of the spec
    ids               (rows, F) int64, a table row of each categorical field; 0 is unknown
    <group>.values    (events, E) int64, the events of a sequence group, row after row, oldest first
    <group>.offsets   (rows + 1) int64, row b holds events offsets[b] to offsets[b + 1]

and gives ``predictions`` (rows, T) float32: probabilities, or values of regression tasks. What a
model has no columns for is no input. Names of fields and tasks are in the file's metadata, with the
SHA-256 of the manifest in ``FILE.inputs``: rows that encoders of another run made look like its own
and get wrong predictions.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tamis import artifacts
from tamis.data.batch import Batch, Jagged
from tamis.data.encoders import Encoders
from tamis.data.schema import InputSpec, load_schema
from tamis.errors import ArtifactError, ConfigError, TamisError
from tamis.models.cetnet import CETNet
from tamis.models.output import predictions_of
from tamis.models.trained import TrainedModel
from tamis.training.predict import load_trained
from tamis.training.run_folder import INPUTS_VERSION, check_finished

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

NOT_EXPORTED: Mapping[str, str] = {
    "dien": "its recurrent network takes as many steps as the longest history of a batch has events"
}
"""Models of the catalog that have no ONNX form, and why."""

_LARGEST_IN_ONE_FILE = 1_500_000_000
"""Bytes of weights; the format's own limit for a file, of protobuf, is 2 GiB."""
_EXAMPLE_LENGTHS = (3, 0, 2)
"""Events of the rows that a graph is traced with."""
_TOLERANCE = 1e-5
_INPUTS_KEY = "tamis.inputs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A model that was exported."""

    path: Path
    """The file."""
    inputs: tuple[str, ...]
    """Names of what the graph takes."""
    tasks: tuple[str, ...]
    """Names of the columns of ``predictions``."""
    difference: float
    """Largest difference of a prediction between ONNX Runtime and PyTorch, on rows drawn at
    random; of values beyond 1, as a share of them."""


def export_onnx(run: Path, out: Path) -> Exported:
    """Write a finished run's model as an ONNX file, which ONNX Runtime has been asked about.

    Files appear once they are whole, the one of the graph last; what was there is replaced, its
    graph first. So a graph never stands beside weights or inputs of another export, even where this
    is killed between two of them.

    Args:
        run: Folder of a finished run.
        out: File to write, which ends in ``.onnx``.

    Raises:
        ArtifactError: The run is unfinished or damaged.
        ConfigError: ``out`` has another ending or is a folder, or the model has no ONNX form.
        RunInUseError: Another process is exporting to ``out``.
        StorageError: The disk is full or the folder cannot be written.
        TamisError: PyTorch cannot export the model, or ONNX Runtime cannot run it or gives other
            predictions.
    """
    if out.suffix != ".onnx":
        raise ConfigError(f"{out}: must end in .onnx, got {out.suffix!r}. Name another file.")
    if out.is_dir():
        raise ConfigError(f"{out}: must be a file, got a folder. Name another file.")
    check_finished(run)
    model = load_trained(run)
    _check_exportable(model)
    with artifacts.work_folder(out) as work, artifacts.disk_errors(out):
        # All by their own names: the graph names the file of its weights.
        draft = work / out.name
        encoding = inputs_folder(draft)
        encoding.mkdir()
        artifacts.copy_files(run / "inputs", encoding)
        inputs = write_graph(model, draft, inputs_sha256=_sha256_of_inputs(encoding))
        difference = largest_difference(model, draft)
        if not difference <= _TOLERANCE:
            raise TamisError(
                f"{out}: must give the predictions of the run within {_TOLERANCE:g}, got a "
                f"difference of {difference:g}. Nothing was written; report this model."
            )
        artifacts.sync_files(work, [path for path in work.rglob("*") if path.is_file()])
        _move(work, out)
    return Exported(
        path=out,
        inputs=inputs,
        tasks=tuple(task.name for task in model.spec.tasks),
        difference=difference,
    )


def open_exported(path: Path) -> tuple["InferenceSession", Encoders]:
    """An exported graph in ONNX Runtime, and the encoders that it was exported with.

    Raises:
        ArtifactError: There is no such file, or ``FILE.inputs`` is missing, damaged or of another
            export.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: must be an exported graph, got no such file. Export it anew.")
    session = open_session(path)
    folder = inputs_folder(path)
    artifacts.read_manifest(folder, kind="inputs", version=INPUTS_VERSION, verify=True)
    wanted = session.get_modelmeta().custom_metadata_map.get(_INPUTS_KEY, "")
    found = _sha256_of_inputs(folder)
    if wanted != found:
        raise ArtifactError(
            f"{folder}: must be what {path.name} was exported with, sha256 "
            f"{wanted[:12] or 'unknown'}, got {found[:12]}. Export the run anew."
        )
    return session, Encoders.load(folder / "encoders", load_schema(folder / "schema.toml"))


def inputs_folder(path: Path) -> Path:
    """Where what encodes the rows of an exported graph lies."""
    return path.with_name(f"{path.name}.inputs")


def write_graph(model: TrainedModel, path: Path, *, inputs_sha256: str = "") -> tuple[str, ...]:
    """Write the graph of a model, and give the names of its inputs.

    Args:
        model: What to write.
        path: The file.
        inputs_sha256: SHA-256 of the manifest of what encodes the model's rows; empty where none
            is written beside it.

    Raises:
        TamisError: PyTorch cannot export the model.
    """
    names = input_names(model.spec)
    example = _example(model.spec)
    rows = torch.export.Dim("rows")
    events: dict[str, Any] = {}
    shapes: list[dict[int, Any]] = []
    for name in names:
        group, _, part = name.rpartition(".")
        if part == "values":
            events[group] = torch.export.Dim(f"events_{len(events)}")
            shapes.append({0: events[group]})
        else:
            shapes.append({0: rows + 1 if part == "offsets" else rows})
    size = sum(value.numel() * value.element_size() for value in model.module.state_dict().values())
    with _quiet(), _export_errors(model), torch.no_grad():
        program = torch.export.export(
            _Graph(model.module.eval(), model.spec),
            tuple(example[name] for name in names),
            dynamic_shapes={"inputs": tuple(shapes)},
            strict=False,
        )
        found = torch.onnx.export(
            program,
            input_names=list(names),
            output_names=["predictions"],
            dynamo=True,
            verbose=False,
        )
    assert found is not None
    found.model.metadata_props.update(_metadata(model) | {_INPUTS_KEY: inputs_sha256})
    with _quiet():
        found.save(str(path), external_data=size > _LARGEST_IN_ONE_FILE)
    return names


def input_names(spec: InputSpec) -> tuple[str, ...]:
    """Names of the inputs that a graph takes, in their order."""
    names = ["numeric"] if spec.numeric else []
    names += ["ids"] if spec.categorical else []
    for group in spec.sequences:
        names += [f"{group.name}.values", f"{group.name}.offsets"]
    return tuple(names)


def feed_of(batch: Batch, spec: InputSpec) -> dict[str, NDArray[Any]]:
    """A batch as the inputs of a graph."""
    return {name: value.numpy() for name, value in _tensors(batch, spec).items()}


def largest_difference(model: TrainedModel, path: Path, *, rows: int = 64, seed: int = 0) -> float:
    """Largest difference of a prediction between ONNX Runtime and PyTorch, on random rows.

    Of values beyond 1, which regression has, it is the share of them.

    Raises:
        TamisError: ONNX Runtime cannot run the graph.
    """
    batch = _random_batch(model.spec, rows=rows, generator=np.random.default_rng(seed))
    with _export_errors(model):
        (found,) = open_session(path).run(["predictions"], feed_of(batch, model.spec))
    names = input_names(model.spec)
    tensors = _tensors(batch, model.spec)
    with torch.no_grad():
        graph = _Graph(model.module.eval(), model.spec)
        expected = graph(*(tensors[name] for name in names)).numpy()
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


def open_session(path: Path) -> "InferenceSession":
    """The graph of a file in ONNX Runtime, on the CPU and with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Graph(nn.Module):
    """A model as a function of tensors."""

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model, self._spec = model, spec

    def forward(self, *inputs: Tensor) -> Tensor:
        """Predictions (B, T), float32."""
        found = dict(zip(input_names(self._spec), inputs, strict=True))
        first = next(iter(found))
        # A spec without fields has histories alone, whose offsets are one more than rows.
        count = inputs[0].shape[0] if "." not in first else inputs[1].shape[0] - 1
        batch = Batch(
            numeric=found.get("numeric", torch.zeros(count, 0)),
            ids=found.get("ids", torch.zeros(count, 0, dtype=torch.int64)),
            labels=torch.zeros(count, len(self._spec.tasks)),
            weights=torch.ones(count),
            sequences={
                group.name: Jagged(
                    values=found[f"{group.name}.values"], offsets=found[f"{group.name}.offsets"]
                )
                for group in self._spec.sequences
            },
        )
        return predictions_of(self.model(batch).logits.float(), self._spec.tasks)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter says of its own parts, such as torchvision's absence."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _export_errors(model: TrainedModel) -> Iterator[None]:
    """What PyTorch's exporter and ONNX Runtime raise, which share no type, as one error."""
    try:
        yield
    except (TamisError, ImportError, MemoryError):
        raise
    except Exception as error:
        # Later lines are a listing of the graph.
        reason = (str(error).strip().splitlines() or ["no reason"])[0].rstrip(".")
        raise TamisError(
            f"model {model.name!r}: must become a graph that ONNX Runtime runs, got "
            f"{type(error).__name__}: {reason}. Serve the model with tamis, and report it with its "
            f"recipe and schema."
        ) from error


def _check_exportable(model: TrainedModel) -> None:
    names = [model.name]
    if isinstance(model.module, CETNet):
        names += [str(member["name"]) for member in model.config.members]
    for name in names:
        if name in NOT_EXPORTED:
            raise ConfigError(
                f"model {name!r}: must have an ONNX form to be exported, got none: "
                f"{NOT_EXPORTED[name]}. Export another model, or serve it with tamis."
            )


def _tensors(batch: Batch, spec: InputSpec) -> dict[str, Tensor]:
    found = {"numeric": batch.numeric, "ids": batch.ids.to(torch.int64)}
    for name, history in batch.sequences.items():
        found[f"{name}.values"] = history.values.to(torch.int64)
        found[f"{name}.offsets"] = history.offsets.to(torch.int64)
    return {name: found[name] for name in input_names(spec)}


def _example(spec: InputSpec) -> dict[str, Tensor]:
    """Rows of unknown categories, to trace a graph with."""
    rows, generator = len(_EXAMPLE_LENGTHS), np.random.default_rng(0)
    lengths = {
        group.name: np.minimum(_EXAMPLE_LENGTHS, group.max_length) for group in spec.sequences
    }
    return _tensors(_batch(spec, rows, lengths, generator, blank=True), spec)


def _random_batch(spec: InputSpec, *, rows: int, generator: np.random.Generator) -> Batch:
    lengths = {
        group.name: generator.integers(0, group.max_length + 1, rows) for group in spec.sequences
    }
    return _batch(spec, rows, lengths, generator, blank=False)


def _batch(
    spec: InputSpec,
    rows: int,
    lengths: Mapping[str, NDArray[Any]],
    generator: np.random.Generator,
    *,
    blank: bool,
) -> Batch:
    sizes = spec.num_rows_by_table

    def ids(tables: tuple[str, ...], count: int) -> Tensor:
        columns = [generator.integers(0, 1 if blank else sizes[name], count) for name in tables]
        return torch.from_numpy(np.stack(columns, axis=1)) if columns else torch.zeros(count, 0)

    sequences = {}
    for group in spec.sequences:
        own = lengths[group.name]
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(own)]))
        sequences[group.name] = Jagged(values=ids(group.tables, int(own.sum())), offsets=offsets)
    numeric = generator.standard_normal((rows, len(spec.numeric)), np.float32)
    return Batch(
        numeric=torch.from_numpy(numeric),
        ids=ids(tuple(item.table for item in spec.categorical), rows),
        labels=torch.zeros(rows, len(spec.tasks)),
        weights=torch.ones(rows),
        sequences=sequences,
    )


def _metadata(model: TrainedModel) -> dict[str, str]:
    spec = model.spec
    return {
        "tamis.model": model.name,
        "tamis.numeric": json.dumps(spec.numeric),
        "tamis.ids": json.dumps([item.name for item in spec.categorical]),
        "tamis.sequences": json.dumps({group.name: group.fields for group in spec.sequences}),
        "tamis.tasks": json.dumps([task.name for task in spec.tasks]),
    }


def _sha256_of_inputs(folder: Path) -> str:
    """What names the content of all files of an inputs folder: its manifest holds their hashes."""
    return artifacts.sha256_file(folder / artifacts.MANIFEST)


def _move(work: Path, out: Path) -> None:
    """Put what was made in the place of what is there, whose graph goes first and whose comes last.

    Whenever it is cut short, no graph stands beside weights or inputs that are not its own.
    """
    names = (out.name, f"{out.name}.data", inputs_folder(out).name)
    earlier = work / "earlier"
    earlier.mkdir()
    for name in names:
        if out.with_name(name).exists():
            artifacts.move_into_place(out.with_name(name), earlier / name)
    for name in reversed(names):
        if (work / name).exists():
            artifacts.move_into_place(work / name, out.with_name(name))
