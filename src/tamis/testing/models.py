"""What every ranker must do. Call :func:`check_model` from a test of your own model.

Each check raises ``AssertionError`` with what it saw; none needs a test framework.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tamis import config
from tamis.data.batch import Batch, Jagged
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Side, Table, Task
from tamis.models.output import Output
from tamis.nn.embedding import EmbeddingTables, give_rows
from tamis.nn.length_groups import LengthGroups
from tamis.training.config import OptimizerConfig
from tamis.training.objective import training_loss
from tamis.training.optimizers import build_optimizers

_ROWS = 40
_VALUES = 50
_SIDES: tuple[Side, ...] = ("user", "item", "context")

Build = Callable[[InputSpec], nn.Module]


def check_model(
    config_class: Any,  # noqa: ANN401  (any config)
    model_class: Any,  # noqa: ANN401  (any model)
    settings: Any = None,  # noqa: ANN401  (any config)
    *,
    sides: Sequence[Side] = _SIDES,
) -> None:
    """Run every check on a model but two.

    :func:`check_compiles` takes longer than all others, :func:`check_memorises` needs step sizes
    that suit the model.

    Args:
        config_class: Its config dataclass.
        model_class: Called with (config, spec).
        settings: The config to check; None takes the defaults of ``config_class``.
        sides: Sides of the inputs that the model reads.

    Raises:
        AssertionError: The model breaks a promise; the message says which.
    """
    settings = config_class() if settings is None else settings

    def build(spec: InputSpec) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(settings, spec)
            give_rows(model, example_vectors(spec))
            return model  # type: ignore[no-any-return]

    rebuilt = config.from_table(config_class, config.to_table(settings))
    assert rebuilt == settings, f"config must survive a round trip, got {rebuilt}"
    for spec in example_specs():
        with _told(spec):
            check_shape(build, spec)
            check_same_seed_same_result(build, spec)
            check_rows_are_independent(build, spec)
            check_forward_writes_nothing(build, spec)
    for spec in (
        example_spec(num_tasks=2),
        example_spec(num_tasks=2, sequences=2),
        example_spec(num_tasks=2, sequences=2, vectors=6),
    ):
        with _told(spec):
            check_gradients(build, spec)
            check_sparse_gradients(build, spec, sides=sides)
            check_empty_histories(build, spec)
            check_padding(build, spec)
    largest = example_spec(num_tasks=2, sequences=2)
    with _told(largest):
        check_logits(build, largest)
        check_labels_and_weights(build, largest)
        check_state_dict(build, largest)
        check_bfloat16(build, largest)


@contextmanager
def _told(spec: InputSpec) -> Iterator[None]:
    """Say of what breaks inside on which inputs it did."""
    try:
        yield
    except Exception as error:
        given = ", given vectors" if any(table.vectors for table in spec.tables) else ""
        error.add_note(
            f"Inputs: {len(spec.numeric)} numeric and {len(spec.categorical)} categorical fields, "
            f"{len(spec.sequences)} histories, {len(spec.tasks)} tasks{given}."
        )
        raise


def example_spec(
    *,
    num_tasks: int = 1,
    num_numeric: int = 2,
    num_categorical: int = 3,
    sequences: int = 1,
    vectors: int = 0,
) -> InputSpec:
    """A small spec of at most two sequence groups, one of two columns and one of one.

    Their columns share tables with fields. ``vectors`` is the width of those that are given for the
    second field, the item's; 0 for none.
    """
    names = [f"field{index}" for index in range(num_categorical)]
    tables = [
        Table(name=name, num_rows=_VALUES, vectors=vectors if index == 1 else 0)
        for index, name in enumerate(names)
    ]
    if sequences and not names:
        tables = [Table(name="events", num_rows=_VALUES)]
    owners = (names * 3)[:3] or ["events"] * 3
    groups = tuple(
        SequenceInput(
            name=name,
            fields=tuple(f"past{column}" for column in columns),
            tables=tuple(owners[column] for column in columns),
            max_length=5,
            side="user",
        )
        for name, columns in (("history", (0, 1)), ("searches", (2,)))[:sequences]
    )
    return InputSpec(
        numeric=tuple(f"number{index}" for index in range(num_numeric)),
        categorical=tuple(
            CategoricalInput(name=name, table=name, side=_SIDES[index % 3])
            for index, name in enumerate(names)
        ),
        sequences=groups,
        tables=tuple(tables),
        tasks=tuple(Task(name=f"task{index}") for index in range(num_tasks)),
        numeric_sides=tuple(_SIDES[index % 3] for index in range(num_numeric)),
    )


def example_specs() -> Iterator[InputSpec]:
    """Specs with and without each kind of input, with two sequence groups, and with three tasks."""
    yield example_spec()
    yield example_spec(sequences=2)
    yield example_spec(num_tasks=3)
    yield example_spec(num_numeric=0)
    yield example_spec(sequences=False)
    yield example_spec(num_numeric=0, sequences=False)
    yield example_spec(num_categorical=0)
    yield example_spec(vectors=6)


def example_vectors(spec: InputSpec) -> dict[str, NDArray[np.float32]]:
    """Random rows for each table whose vectors are given, zeros in row 0."""
    generator = np.random.default_rng(0)
    rows = {}
    for table in spec.tables:
        if table.vectors:
            rows[table.name] = generator.normal(size=(table.num_rows, table.vectors))
            rows[table.name][0] = 0
    return {name: values.astype(np.float32) for name, values in rows.items()}


def example_batch(spec: InputSpec, *, rows: int = _ROWS, seed: int = 0, longest: int = 5) -> Batch:
    """Random rows; histories hold 0 to ``longest`` events."""
    generator = torch.Generator().manual_seed(seed)
    sequences = {}
    for group in spec.sequences:
        lengths = torch.randint(0, longest + 1, (rows,), generator=generator)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shape = (int(offsets[-1]), len(group.fields))
        values = torch.randint(0, _VALUES, shape, generator=generator, dtype=torch.int32)
        sequences[group.name] = Jagged(values=values, offsets=offsets)
    shape = (rows, len(spec.categorical))
    labels = torch.randint(0, 2, (rows, len(spec.tasks)), generator=generator)
    return Batch(
        numeric=torch.randn(rows, len(spec.numeric), generator=generator),
        ids=torch.randint(0, _VALUES, shape, generator=generator, dtype=torch.int32),
        labels=labels.float(),
        weights=torch.ones(rows),
        sequences=sequences,
    )


def take_rows(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, in the given order."""
    sequences = {}
    for name, jagged in batch.sequences.items():
        bounds = [(int(jagged.offsets[row]), int(jagged.offsets[row + 1])) for row in rows]
        values = [jagged.values[start:stop] for start, stop in bounds]
        lengths = torch.tensor([0] + [stop - start for start, stop in bounds])
        sequences[name] = Jagged(values=torch.cat(values), offsets=lengths.cumsum(0))
    return Batch(
        numeric=batch.numeric[rows],
        ids=batch.ids[rows],
        labels=batch.labels[rows],
        weights=batch.weights[rows],
        sequences=sequences,
    )


def check_shape(build: Build, spec: InputSpec) -> None:
    """Logits are (B, T) and finite, and so are the gradients that flow from them."""
    model = build(spec)
    batch = example_batch(spec)
    output = model(batch)
    assert isinstance(output, Output), f"forward must return an Output, got {type(output)}"
    expected = (_ROWS, len(spec.tasks))
    assert output.logits.shape == expected, f"logits must be {expected}, got {output.logits.shape}"
    assert output.logits.isfinite().all(), "logits must be finite"
    assert output.logits.requires_grad, "logits must carry gradients"
    _loss(output, batch, spec).backward()
    _check_gradients_are_finite(model, "at the start")


def check_logits(build: Build, spec: InputSpec) -> None:
    """Logits are no probabilities: the loss takes a sigmoid of them itself."""
    batch = example_batch(spec, rows=200)
    model = build(spec)
    _add_noise(model, batch, spec)
    with torch.inference_mode():
        logits = model.eval()(batch).logits
    is_share = (logits >= 0) & (logits <= 1)
    assert not is_share.all(), (
        "logits must not all lie in [0, 1], whatever the weights: does forward take a sigmoid?"
    )


def check_rows_are_independent(build: Build, spec: InputSpec) -> None:
    """In evaluation mode a row's logits do not depend on the rows beside it.

    Weights are moved first: a layer that starts from zeros would hide everything below it.
    """
    model, batch = build(spec).eval(), example_batch(spec)
    _add_noise(model, batch, spec)
    rows = [3, 17, 0, 39]
    with torch.inference_mode():
        whole = model(batch).logits[rows]
        some = model(take_rows(batch, rows)).logits
        single = torch.cat([model(take_rows(batch, [row])).logits for row in rows])
    for others, beside in ((some, "in a batch of four"), (single, "alone")):
        change = float((whole - others).abs().max())
        assert change <= _tolerance(whole), (
            f"a row must not depend on the rows beside it in evaluation mode, got logits "
            f"{change:.2g} away {beside}: does forward mix rows, as a mean over the batch does?"
        )


def check_same_seed_same_result(build: Build, spec: InputSpec) -> None:
    """Two models of one seed are one model."""
    batch = example_batch(spec)
    first, second = (build(spec).eval()(batch).logits for _ in range(2))
    assert torch.equal(first, second), (
        "the same seed must give the same logits in evaluation mode: does forward draw numbers?"
    )


def check_forward_writes_nothing(build: Build, spec: InputSpec) -> None:
    """``forward`` leaves no attribute behind on any module."""
    model = build(spec).eval()
    before = [sorted(module.__dict__) for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model(example_batch(spec))
    after = [sorted(module.__dict__) for module in model.modules()]
    assert before == after, "forward must not write on self"
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name]), f"forward must not change buffer {name}"


def check_gradients(build: Build, spec: InputSpec) -> None:
    """Every parameter has a finite gradient that is not 0, after a step and away from the start.

    Noise alone would hide what a model's own start keeps from learning; one step alone what only
    that start lets learn.
    """
    batch = example_batch(spec, rows=200)
    for when, leave in (("after a step", _step), ("away from the start", _add_noise)):
        model = build(spec).train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            leave(model, batch, spec)
            model.zero_grad(set_to_none=True)
            output = model(batch)
        assert output.logits.isfinite().all(), f"logits must be finite {when}"
        _loss(output, batch, spec).backward()
        _check_gradients_are_finite(model, when)
        for name, parameter in model.named_parameters():
            if parameter.numel() == 0:
                continue
            assert parameter.grad is not None, f"{name} must get a gradient {when}"
            values = _gradient_values(parameter.grad)
            assert bool(values.ne(0).any()), f"{name} must get a gradient that is not 0 {when}"


def _step(model: nn.Module, batch: Batch, spec: InputSpec) -> None:
    """One step of training."""
    optimizers = build_optimizers(model, OptimizerConfig())
    output = model(batch)
    assert output.logits.isfinite().all(), "logits must be finite at the start"
    _loss(output, batch, spec).backward()
    _check_gradients_are_finite(model, "at the start")
    for optimizer in optimizers.values():
        optimizer.step()


def _add_noise(model: nn.Module, batch: Batch, spec: InputSpec) -> None:
    del batch, spec
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def check_sparse_gradients(
    build: Build, spec: InputSpec, *, sides: Sequence[Side] = _SIDES
) -> None:
    """Gradients of merged tables are sparse and hold the rows of the batch and no others.

    Of sides that the model does not read it may look up no row.
    """
    model = build(spec)
    batch = example_batch(spec, rows=4)
    _loss(model(batch), batch, spec).backward()
    for name, module in model.named_modules():
        if not isinstance(module, EmbeddingTables):
            continue
        gradient = module.weight.grad
        assert gradient is not None, f"{name}.weight must get a gradient"
        assert gradient.is_sparse, f"{name}.weight must get a sparse gradient"
        got, expected = set(gradient._indices()[0].tolist()), _rows_of(module, batch, spec, sides)
        assert got == expected, (
            f"{name}.weight: the rows of the batch and no others must get a gradient; rows "
            f"{sorted(got - expected)} are not of the batch, {sorted(expected - got)} are missing"
        )


def check_empty_histories(build: Build, spec: InputSpec) -> None:
    """A batch without any event, and rows of one event, give finite logits and gradients."""
    for longest in (0, 1):
        model = build(spec)
        batch = example_batch(spec, longest=longest)
        output = model(batch)
        assert output.logits.isfinite().all(), "empty histories must give finite logits"
        _loss(output, batch, spec).backward()
        _check_gradients_are_finite(model, f"with at most {longest} events per history")


def check_padding(build: Build, spec: InputSpec) -> None:
    """What stands in the places that ``LengthGroups.pad`` adds behind short histories is not read.

    A model that pads by itself is not looked into. Weights are moved first, as a layer that starts
    from zeros would hide what stands below it.
    """
    pad = LengthGroups.pad
    generator = torch.Generator().manual_seed(0)

    def pad_with_noise(groups: LengthGroups, values: Tensor) -> list[Tensor]:
        noisy = []
        for part, valid in zip(pad(groups, values), groups.valid, strict=True):
            noise = 100 * torch.randn(part.shape, generator=generator)
            is_event = valid.view(*valid.shape, *[1] * (part.ndim - 2))
            noisy.append(torch.where(is_event, part, noise.to(part.dtype)))
        return noisy

    model, batch = build(spec).eval(), example_batch(spec)
    _add_noise(model, batch, spec)
    with torch.inference_mode():
        plain = model(batch).logits
        with mock.patch.object(LengthGroups, "pad", pad_with_noise):
            noisy = model(batch).logits
    change = float((noisy - plain).abs().max())
    assert change <= _tolerance(plain), (
        f"what stands in padding must change nothing, got logits {change} away"
    )


def _tolerance(logits: Tensor) -> float:
    """How far sums in another order may move logits of this size in float32."""
    return 1e-5 * max(1.0, float(logits.abs().max()))


def check_labels_and_weights(build: Build, spec: InputSpec) -> None:
    """Labels that were not observed and rows of weight 0 teach, and change, nothing.

    Logits know neither labels nor weights, labels of rows of weight 0 move no gradient, and losses
    and gradients are finite where labels are missing (NaN), all of them too, or all weights are 0.
    """
    batch = example_batch(spec)
    nothing = torch.full_like(batch.labels, torch.nan)
    model = build(spec).eval()
    with torch.inference_mode():
        blind = dataclasses.replace(batch, labels=nothing, weights=torch.zeros(_ROWS))
        same = torch.equal(model(batch).logits, model(blind).logits)
    assert same, "logits must depend neither on labels nor on weights"
    rows = torch.arange(_ROWS)
    # Every fourth row has all labels, every fourth has none.
    is_missing = (rows.unsqueeze(1) + torch.arange(len(spec.tasks))) % 4 < 2
    weights = (rows % 3).float()
    for labels, of_rows, what in (
        (batch.labels.masked_fill(is_missing, torch.nan), weights, "labels that are missing"),
        (nothing, torch.ones(_ROWS), "no label at all"),
        (batch.labels, torch.zeros(_ROWS), "rows of weight 0 alone"),
    ):
        _gradients(build, dataclasses.replace(batch, labels=labels, weights=of_rows), spec, what)
    turned = batch.labels.where(weights.unsqueeze(1) > 0, 1 - batch.labels)
    first, second = (
        _gradients(
            build,
            dataclasses.replace(batch, labels=labels, weights=weights),
            spec,
            "some rows of weight 0",
        )
        for labels in (batch.labels, turned)
    )
    for name, gradient in first.items():
        change = float((gradient - second[name]).abs().max()) if gradient.numel() else 0.0
        assert change < 1e-6, (
            f"{name}: labels of rows of weight 0 must not move its gradient, got one {change} away"
        )


def _gradients(build: Build, batch: Batch, spec: InputSpec, what: str) -> dict[str, Tensor]:
    """Gradients of a new model's loss, without gaps, by parameter; all of them must be finite."""
    model = build(spec).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = _loss(model(batch), batch, spec)
    assert loss.isfinite(), f"the loss must be finite with {what}, got {loss.item()}"
    if loss.requires_grad:
        loss.backward()
    _check_gradients_are_finite(model, f"with {what}")
    return {
        name: parameter.grad.to_dense()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def check_state_dict(build: Build, spec: InputSpec) -> None:
    """Weights saved and loaded give the same logits."""
    batch = example_batch(spec)
    first, second = build(spec).eval(), build(spec).eval()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batch).logits, second(batch).logits), "weights must carry over"


def check_bfloat16(build: Build, spec: InputSpec) -> None:
    """Under bfloat16 autocast logits and gradients are finite."""
    model = build(spec)
    batch = example_batch(spec)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
    assert output.logits.isfinite().all(), "bfloat16 logits must be finite"
    _loss(output, batch, spec).backward()
    _check_gradients_are_finite(model, "in bfloat16")


def check_memorises(
    build: Build, spec: InputSpec, *, embedding_lr: float = 0.02, dense_lr: float = 3e-3
) -> None:
    """64 rows are learnt by heart within 150 steps of Adam, as evaluation mode sees them.

    Args:
        build: Makes the model for a spec.
        spec: Its inputs.
        embedding_lr: Step size of the tables.
        dense_lr: That of everything else.
    """
    batch = example_batch(spec, rows=64)
    model = build(spec)
    optimizers = build_optimizers(
        model, OptimizerConfig(embedding="adam", embedding_lr=embedding_lr, dense_lr=dense_lr)
    )
    found = math.nan
    # Some models draw while training; what they draw must not depend on what was before.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(1, 151):
            loss = _loss(model.train()(batch), batch, spec)
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
            if step % 10:
                continue
            with torch.inference_mode():
                logits = model.eval()(batch).logits
            found = float(binary_cross_entropy_with_logits(logits, batch.labels))
            # A constant guess costs 0.69 nats, one row of 64 that is guessed at more than 0.01.
            if found < 0.02:
                return
    raise AssertionError(
        f"64 rows must be learnt by heart in 150 steps, got a log loss of {found:.2g}: does "
        f"forward leave inputs out or bound its logits, or do embedding_lr={embedding_lr} and "
        f"dense_lr={dense_lr} not suit the model?"
    )


def check_compiles(build: Build, spec: InputSpec) -> None:
    """Through ``torch.compile`` logits are the same, and batches of new sizes need no new code."""
    torch.compiler.reset()
    plain, compiled = build(spec), build(spec)
    forward = torch.compile(compiled, backend="eager")
    # The first batch is compiled for its sizes, the next ones for any.
    *first, last = (37, 40, 31, 41, 35, 33)
    for seed, rows in enumerate(first):
        batch = example_batch(spec, rows=rows, seed=seed)
        for model, call in ((plain, plain), (compiled, forward)):
            torch.manual_seed(seed)
            _loss(call(batch), batch, spec).backward()
            model.zero_grad()
    batch = example_batch(spec, rows=last, seed=len(first))
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.manual_seed(0)
        found = forward(batch).logits
    torch.manual_seed(0)
    change = float((found - plain(batch).logits).abs().max())
    assert change < 1e-4, f"compiled logits must be those of the model, got {change} away"


def _rows_of(
    tables: EmbeddingTables, batch: Batch, spec: InputSpec, sides: Sequence[Side]
) -> set[int]:
    """Rows of merged tables that some sides of a batch look up, one by one."""
    rows: set[int] = set()
    for column, item in enumerate(spec.categorical):
        if item.side not in sides or item.table not in tables.first_row:
            continue
        rows |= {tables.first_row[item.table] + index for index in batch.ids[:, column].tolist()}
    for group in spec.sequences:
        if group.side not in sides:
            continue
        for column, table in enumerate(group.tables):
            if table not in tables.first_row:
                continue
            events = batch.sequences[group.name].values[:, column].tolist()
            rows |= {tables.first_row[table] + index for index in events}
    return rows


def _gradient_values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _check_gradients_are_finite(model: nn.Module, when: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            values = _gradient_values(parameter.grad)
            assert values.isfinite().all(), f"{name}: gradient must be finite {when}"


def _loss(output: Output, batch: Batch, spec: InputSpec) -> Tensor:
    weights = torch.ones(len(spec.tasks))
    return training_loss(output, batch.labels, batch.weights, spec.tasks, weights)
