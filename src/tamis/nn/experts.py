"""Experts side by side, and the fusion of their outputs that multi-task models share."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

GateInput = Literal["own", "raw", "constant"]
NativeKind = Literal["paper", "official", "unit", "softmax", "gated"]


class Experts(nn.Module):
    """MLPs of one shape, several to a unit; every expert reads the vector of its unit.

    Each expert is linear map and ReLU for every width, the last one included. The experts of a unit
    are one matrix product, and so are all of them where the units share a vector.
    """

    def __init__(self, in_dim: int, hidden_units: Sequence[int], counts: Sequence[int]) -> None:
        """Build the experts; weights start from Xavier's uniform distribution and biases from 0.

        Args:
            in_dim: Width of every unit's vector.
            hidden_units: Widths of an expert's layers, at least one.
            counts: Experts of each unit.
        """
        super().__init__()
        self.counts = tuple(counts)
        self.out_dim = hidden_units[-1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip([in_dim, *hidden_units[:-1]], hidden_units, strict=True):
            bound = (6 / (fan_in + fan_out)) ** 0.5
            weight = torch.empty(sum(counts), fan_out, fan_in).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(sum(counts), fan_out)))

    def forward(self, units: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, "B E O"]:
        """Outputs of all E experts, those of unit 0 first."""
        weight, bias = self.weights[0], self.biases[0]
        if all(unit is units[0] for unit in units):
            x = F.linear(units[0], weight.flatten(0, 1), bias.flatten())
        else:
            parts = zip(units, weight.split(self.counts), bias.split(self.counts), strict=True)
            x = torch.cat([F.linear(x, w.flatten(0, 1), b.flatten()) for x, w, b in parts], dim=1)
        outputs = F.relu(x, inplace=True).unflatten(1, (len(weight), -1))
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            products = torch.bmm(outputs.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            outputs = F.relu(products + bias, inplace=True)
        return outputs


class Gates(nn.Module):
    """Softmax weights of the experts, one set for every unit that fuses."""

    def __init__(
        self,
        in_dim: int,
        visible: Sequence[Sequence[int]],
        *,
        num_experts: int,
        reads: GateInput = "own",
        bias: bool = True,
    ) -> None:
        """Build one linear map for each unit, or one vector where gates read nothing.

        Args:
            in_dim: Width of what gates read.
            visible: Experts that each of the A units' gates weighs; the others get 0.
            num_experts: Experts E in all.
            reads: The vector of the gate's unit, the model's input, or nothing: ``constant``
                weights are learned and the same for all rows.
            bias: Whether the maps have biases.
        """
        super().__init__()
        self.reads, self.num_experts = reads, num_experts
        self.visible = [list(seen) for seen in visible]
        self.maps, self.constants = nn.ModuleList(), nn.ParameterList()
        for seen in self.visible:
            if reads == "constant":
                self.constants.append(nn.Parameter(torch.zeros(len(seen))))
                continue
            gate = nn.Linear(in_dim, len(seen), bias=bias)
            nn.init.xavier_uniform_(gate.weight)
            if bias:
                nn.init.zeros_(gate.bias)
            self.maps.append(gate)

    def forward(
        self, units: Sequence[Float[Tensor, "B D"]], raw: Float[Tensor, "B R"]
    ) -> Float[Tensor, "B A E"]:
        """Weights in float32; each of a row's A sums to 1."""
        logits = self._logits(units, raw)
        if all(len(seen) == self.num_experts for seen in self.visible):
            # Over the first dimension: over a short last one a CPU goes row by row.
            by_expert = torch.stack(logits, dim=1).float().movedim(2, 0).contiguous()
            return torch.softmax(by_expert, dim=0).movedim(0, 2)
        weights = raw.new_zeros((raw.shape[0], len(logits), self.num_experts), dtype=torch.float32)
        for unit, (seen, values) in enumerate(zip(self.visible, logits, strict=True)):
            places = torch.tensor(seen, device=raw.device)
            shares = torch.softmax(values.float(), dim=1)
            weights[:, unit].index_copy_(1, places, shares)
        return weights

    def _logits(
        self, units: Sequence[Float[Tensor, "B D"]], raw: Float[Tensor, "B R"]
    ) -> list[Tensor]:
        """One of each unit, (B, its visible experts)."""
        if self.reads == "constant":
            return [constant.expand(raw.shape[0], -1) for constant in self.constants]
        gates = [gate for gate in self.maps if isinstance(gate, nn.Linear)]
        inputs = list(units[: len(gates)]) if self.reads == "own" else [raw] * len(gates)
        if any(x is not inputs[0] for x in inputs):
            return [gate(x) for gate, x in zip(gates, inputs, strict=True)]
        # One product where all read the same vector.
        weight = torch.cat([gate.weight for gate in gates])
        bias = None if gates[0].bias is None else torch.cat([gate.bias for gate in gates])
        logits = F.linear(inputs[0], weight, bias)
        return list(logits.split([len(seen) for seen in self.visible], dim=1))


class NativePaths(nn.Module):
    """Weights v of each unit's own experts, which are added to what its gate says.

    ``paper``: 1 for a unit of one expert, else learned. ``official``: learned in every unit as soon
    as one unit, fusing or not, has several experts. ``unit``: 1. ``softmax``: learned, the weights
    of a unit sum to 1. ``gated``: a linear map of the unit's vector. Learned weights of m experts
    start uniformly in (-m ** -0.5, m ** -0.5).
    """

    def __init__(
        self, in_dim: int, counts: Sequence[int], *, num_fusing: int, kind: NativeKind
    ) -> None:
        """Build the weights of units 0 to ``num_fusing - 1``.

        Args:
            in_dim: Width of a unit's vector.
            counts: Experts of each unit; the experts of unit 0 come first.
            num_fusing: Units A that fuse.
            kind: As above.
        """
        super().__init__()
        self.kind, self.counts, self.num_experts = kind, tuple(counts[:num_fusing]), sum(counts)
        is_learned = {
            "paper": [count > 1 for count in self.counts],
            "official": [any(count != 1 for count in counts)] * num_fusing,
            "unit": [False] * num_fusing,
            "softmax": [True] * num_fusing,
            "gated": [False] * num_fusing,
        }[kind]
        self.values, self.maps = nn.ParameterDict(), nn.ModuleList()
        for unit, count in enumerate(self.counts):
            if is_learned[unit]:
                value = torch.empty(count).uniform_(-(count**-0.5), count**-0.5)
                self.values[str(unit)] = nn.Parameter(value)
            if kind == "gated":
                self.maps.append(nn.Linear(in_dim, count))

    def forward(self, units: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, "#B A E"]:
        """Weights of every unit, 0 for the experts of others; one row if rows do not matter."""
        rows, first = [], 0
        for unit, count in enumerate(self.counts):
            value = units[unit].new_ones((1, count), dtype=torch.float32)
            if self.kind == "gated":
                value = self.maps[unit](units[unit]).float()
            elif str(unit) in self.values:
                learned = self.values[str(unit)].unsqueeze(0)
                value = torch.softmax(learned, dim=1) if self.kind == "softmax" else learned
            rows.append(F.pad(value, (first, self.num_experts - first - count)))
            first += count
        return torch.stack(rows, dim=1)


class FusionLevel(nn.Module):
    """Experts, and vectors that weigh their outputs: ``f_a = sum_e weights[a, e] E_e``."""

    def __init__(self, experts: Experts) -> None:
        """Take the experts; what weighs them is the subclass's."""
        super().__init__()
        self.experts = experts

    def weights(
        self, units: Sequence[Float[Tensor, "B D"]], raw: Float[Tensor, "B R"]
    ) -> Float[Tensor, "B A E"]:
        """What each of the A fused vectors weighs each expert by."""
        raise NotImplementedError

    def forward(
        self, units: Sequence[Float[Tensor, "B D"]], raw: Float[Tensor, "B R"]
    ) -> list[Float[Tensor, "B O"]]:
        """The A fused vectors."""
        return self.trace(units, raw)[2]

    def trace(
        self, units: Sequence[Float[Tensor, "B D"]], raw: Float[Tensor, "B R"]
    ) -> tuple[Float[Tensor, "B A E"], Float[Tensor, "B E O"], list[Float[Tensor, "B O"]]]:
        """Weights, outputs of the experts, and the A vectors that they fuse to."""
        outputs = self.experts(units)
        weights = self.weights(units, raw)
        fused = torch.bmm(weights.to(outputs.dtype), outputs)
        return weights, outputs, list(fused.unbind(1))


class Fusion(FusionLevel):
    """Gates, paths of a unit's own experts, or both: ``f_u = (G_u + pad(v_u))' E``."""

    def __init__(self, experts: Experts, gates: Gates | None, native: NativePaths | None) -> None:
        """Put the parts together; at least one of ``gates`` and ``native`` must be there."""
        super().__init__(experts)
        assert gates is not None or native is not None, "a level needs gates or native paths"
        self.gates, self.native = gates, native

    def weights(
        self, units: Sequence[Float[Tensor, "B D"]], raw: Float[Tensor, "B R"]
    ) -> Float[Tensor, "B A E"]:
        """G, v or their sum."""
        if self.native is None:
            assert self.gates is not None
            return self.gates(units, raw)
        native = self.native(units)
        if self.gates is None:
            return native.expand(raw.shape[0], -1, -1)
        return self.gates(units, raw) + native


class Stitch(FusionLevel):
    """One matrix for all rows, of any sign."""

    def __init__(self, experts: Experts, num_fusing: int) -> None:
        """Start from a uniform distribution, as a linear map does."""
        super().__init__(experts)
        num_experts = sum(experts.counts)
        bound = num_experts**-0.5
        self.mix = nn.Parameter(torch.empty(num_fusing, num_experts).uniform_(-bound, bound))

    def weights(
        self, units: Sequence[Float[Tensor, "B D"]], raw: Float[Tensor, "B R"]
    ) -> Float[Tensor, "B A E"]:
        """The matrix, once for every row."""
        assert len(units) == len(self.experts.counts)
        return self.mix.expand(raw.shape[0], -1, -1)


class FusionStack(nn.Module):
    """Levels of experts between the input vector and the towers."""

    def __init__(self, levels: Sequence[FusionLevel], *, num_units: int) -> None:
        """Stack the levels; the first one sees the input in each of its ``num_units`` units."""
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.num_units = num_units
        self.counts = tuple(level.experts.counts for level in levels)

    def forward(self, x: Float[Tensor, "B W"]) -> list[Float[Tensor, "B O"]]:
        """The vectors that the last level fuses."""
        units = [x] * self.num_units
        for level in self.levels:
            units = level(units, x)
        return units

    def trace(
        self, x: Float[Tensor, "B W"]
    ) -> list[tuple[Float[Tensor, "B A E"], Float[Tensor, "B E O"]]]:
        """Level by level, the weight of every expert in every fused vector, and its output."""
        units, found = [x] * self.num_units, []
        for level in self.levels:
            assert isinstance(level, FusionLevel)
            weights, outputs, units = level.trace(units, x)
            found.append((weights, outputs))
        return found
