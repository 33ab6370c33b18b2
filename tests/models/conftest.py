"""A slow reference that the tests of models share: loops over rows in float64, from the papers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import erf

import numpy as np
import pytest
import torch
from torch import nn

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import InputSpec

_ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: np.array([value * (1 + erf(value / 2**0.5)) / 2 for value in x]),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "none": lambda x: x,
}


@pytest.fixture
def batch(spec: InputSpec) -> Batch:
    """Six rows; the first has no history."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 0, 2, 3, 6, 7, 9])
    past = torch.randint(0, 30, (9, 1), generator=generator, dtype=torch.int32)
    columns = [
        torch.randint(0, table.num_rows, (6, 1), generator=generator, dtype=torch.int32)
        for table in spec.tables
    ]
    return Batch(
        numeric=torch.randn(6, 1, generator=generator),
        ids=torch.cat(columns, dim=1),
        labels=torch.randint(0, 2, (6, 2), generator=generator).float(),
        weights=torch.ones(6),
        sequences={"past": Jagged(values=past, offsets=offsets)},
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@dataclass(frozen=True)
class Reference:
    """What models have in common, for one row at a time, in numpy and float64."""

    spec: InputSpec
    batch: Batch

    array = staticmethod(_array)

    def of_one_task(self) -> "Reference":
        return replace(self, spec=replace(self.spec, tasks=self.spec.tasks[:1]))

    def without_numbers(self) -> "Reference":
        batch = replace(self.batch, numeric=self.batch.numeric[:, :0])
        return Reference(spec=replace(self.spec, numeric=()), batch=batch)

    def build(self, model_class: type[nn.Module], settings: object) -> nn.Module:
        """A model in evaluation mode none of whose weights, biases and norms is at its start."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(settings, self.spec)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(0.7 * torch.randn(parameter.shape))
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm1d):
                        module.running_mean.normal_()
                        module.running_var.uniform_(0.5, 1.5)
        return model.eval()

    def check(self, model: nn.Module, logits_of: Callable[[int], np.ndarray]) -> None:
        """Compare a model's logits with those of a function of the number of a row."""
        with torch.inference_mode():
            logits = model(self.batch).logits.numpy()
        rows = range(self.batch.num_rows)
        expected = np.array([np.atleast_1d(logits_of(row)) for row in rows])
        assert logits.shape == expected.shape == (6, len(self.spec.tasks))
        # Rows that all but agree would compare nothing; this is 200 times the tolerance.
        assert logits.std(axis=0).min() > 0.02
        # The model sums some dozen products in float32: errors of 1e-6 of the largest summand.
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    def numbers(self, row: int) -> np.ndarray:
        return _array(self.batch.numeric[row])

    def embeddings(self, tables: nn.Module, row: int) -> list[np.ndarray]:
        """One vector per categorical field, then the mean of each history, zeros without events."""
        weight = _array(tables.weight)
        found = [
            weight[tables.first_row[item.table] + int(self.batch.ids[row, column])]
            for column, item in enumerate(self.spec.categorical)
        ]
        for group in self.spec.sequences:
            jagged = self.batch.sequences[group.name]
            events = range(int(jagged.offsets[row]), int(jagged.offsets[row + 1]))
            for column, table in enumerate(group.tables):
                total = np.zeros(weight.shape[1])
                for event in events:
                    total += weight[tables.first_row[table] + int(jagged.values[event, column])]
                found.append(total / max(1, len(events)))
        return found

    def first_order(self, linear: nn.Module, row: int) -> np.ndarray:
        """``w_0 + sum_i w_i x_i`` for each task."""
        total = _array(linear.bias) + sum(self.embeddings(linear.tables, row))
        for number, weight in zip(self.numbers(row), _array(linear.numeric_weight), strict=True):
            total = total + number * weight
        return total

    def field_tokens(self, part: nn.Module, row: int) -> list[np.ndarray]:
        """Embeddings, then ``x_m w_m + b_m`` of each numeric feature."""
        weights, biases = _array(part.numeric_weight), _array(part.numeric_bias)
        numbers = zip(self.numbers(row), weights, biases, strict=True)
        return self.embeddings(part.tables, row) + [x * w + b for x, w, b in numbers]

    def dense_side_tokens(self, part: nn.Module, row: int, *, num_hidden: int) -> list[np.ndarray]:
        """Embeddings, then the vectors that an MLP makes of the numeric features."""
        tokens = self.embeddings(part.tables, row)
        if part.dense is not None:
            flat = self.mlp(part.dense, self.numbers(row), num_hidden=num_hidden)
            tokens += list(flat.reshape(-1, part.width))
        return tokens

    def mlp(
        self,
        mlp: nn.Module,
        x: np.ndarray,
        *,
        num_hidden: int,
        norm: str = "none",
        activation: str = "relu",
    ) -> np.ndarray:
        """``num_hidden`` times linear map, norm, activation; then the linear output, if any."""
        maps = [m for m in mlp.modules() if getattr(m, "weight", None) is not None]
        linears = [layer for layer in maps if layer.weight.ndim == 2]
        norms = [layer for layer in maps if layer.weight.ndim == 1]
        assert len(norms) == (0 if norm == "none" else num_hidden)
        for index in range(num_hidden):
            x = self.linear(linears[index], x)
            if norm == "layer":
                x = self.layer_norm(norms[index], x)
            elif norm == "batch":
                deviation = np.sqrt(_array(norms[index].running_var) + norms[index].eps)
                x = (x - _array(norms[index].running_mean)) / deviation
                x = x * _array(norms[index].weight) + _array(norms[index].bias)
            x = _ACTIVATIONS[activation](x)
        assert len(linears) - num_hidden in (0, 1)
        return self.linear(linears[-1], x) if len(linears) > num_hidden else x

    @staticmethod
    def linear(layer: nn.Module, x: np.ndarray) -> np.ndarray:
        """``y_o = b_o + sum_i W_oi x_i``."""
        weight = _array(layer.weight)
        out = np.zeros(weight.shape[0]) if layer.bias is None else _array(layer.bias).copy()
        for index, value in enumerate(x):
            out += weight[:, index] * value
        return out

    @staticmethod
    def layer_norm(norm: nn.Module, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean()
        scaled = centred / np.sqrt((centred**2).mean() + norm.eps)
        return scaled * _array(norm.weight) + _array(norm.bias)


@pytest.fixture
def reference(spec: InputSpec, batch: Batch) -> Reference:
    return Reference(spec=spec, batch=batch)
