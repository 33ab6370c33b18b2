"""AdaTT against equations (1) to (11) of its paper, and the checks that expose a simpler model."""

import itertools

import numpy as np
import pytest
import torch

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.errors import ConfigError
from tamis.models import catalog
from tamis.models.adatt import AdaTT, AdaTTConfig
from tamis.models.cross_stitch import CrossStitch, CrossStitchConfig
from tamis.models.mmoe import MMoE, MMoEConfig
from tamis.models.ple import PLE, PLEConfig
from tamis.testing.models import example_batch, example_spec

_SMALL: dict = {"embedding_dim": 3, "expert_units": ((6, 5), (7,)), "tower_units": (12, 10)}


def numbers_only(width: int, num_tasks: int) -> InputSpec:
    return InputSpec(
        numeric=tuple(f"x{place}" for place in range(width)),
        categorical=(),
        sequences=(),
        tables=(),
        tasks=tuple(Task(name=f"task{place}") for place in range(num_tasks)),
    )


def batch_of(numeric: torch.Tensor, num_tasks: int) -> Batch:
    rows = len(numeric)
    return Batch(
        numeric=numeric,
        ids=torch.zeros((rows, 0), dtype=torch.int32),
        labels=torch.zeros(rows, num_tasks),
        weights=torch.ones(rows),
    )


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


def expert_output(reference, experts: torch.nn.Module, expert: int, x: np.ndarray) -> np.ndarray:
    for weight, bias in zip(experts.weights, experts.biases, strict=True):
        x = relu(reference.array(weight[expert]) @ x + reference.array(bias[expert]))
    return x


def flat(reference, model: torch.nn.Module, row: int) -> np.ndarray:
    return np.concatenate([*reference.embeddings(model.inputs.tables, row), reference.numbers(row)])


def towers(reference, model: torch.nn.Module, vectors: list[np.ndarray]) -> np.ndarray:
    parts = zip(model.towers.towers, vectors, strict=True)
    return np.concatenate([reference.mlp(tower, x, num_hidden=2) for tower, x in parts])


@pytest.mark.parametrize(
    "options",
    [
        {"task_experts": (1,)},
        {"task_experts": (2,)},
        {"task_experts": (3, 1)},
        {"task_experts": (2, 1), "shared_experts": 2},
        {"task_experts": (1,), "shared_experts": 1},
        {"task_experts": (1,), "shared_experts": 2, "native": "official"},
        {"task_experts": (2,), "native": "softmax"},
        {"task_experts": (2,), "native": "gated", "shared_experts": 1},
        {"task_experts": (2,), "native": "unit", "gate": "raw"},
        {"task_experts": (2,), "native": "none", "gate": "constant"},
        {"task_experts": (2,), "gate": "none"},
        {"level_experts": ((3, 1), (1, 2))},
        {"level_experts": ((3, 1, 1), (1, 2, 2)), "native": "official"},
    ],
)
def test_logits_equal_the_equations_in_two_terms(reference, options: dict) -> None:
    settings = AdaTTConfig(**(_SMALL | options))
    model = reference.build(AdaTT, settings)
    of_levels = settings.counts(2)
    num_units = len(of_levels[0])

    def logits(row: int) -> np.ndarray:
        x = flat(reference, model, row)
        f = [x] * num_units  # equation (2)
        for place, level in enumerate(model.stack.levels):
            owner = [unit for unit, count in enumerate(of_levels[place]) for _ in range(count)]
            outputs = [
                expert_output(reference, level.experts, expert, f[unit])
                for expert, unit in enumerate(owner)
            ]
            fusing = 2 if place == 1 else num_units
            fused = []
            for unit in range(fusing):
                total = np.zeros_like(outputs[0])
                if level.gates is not None:
                    if settings.gate == "constant":
                        gate = softmax(reference.array(level.gates.constants[unit]))
                    else:
                        read = x if settings.gate == "raw" else f[unit]
                        gate = softmax(reference.linear(level.gates.maps[unit], read))
                    for weight, output in zip(gate, outputs, strict=True):  # AllExpertGF
                        total = total + weight * output
                native = [output for output, of in zip(outputs, owner, strict=True) if of == unit]
                if settings.native != "none":  # NativeExpertLF
                    v = np.ones(len(native))
                    if settings.native == "gated":
                        v = reference.linear(level.native.maps[unit], f[unit])
                    elif str(unit) in level.native.values:
                        v = reference.array(level.native.values[str(unit)])
                        v = softmax(v) if settings.native == "softmax" else v
                    for weight, output in zip(v, native, strict=True):
                        total = total + weight * output
                fused.append(total)
            f = fused
        return towers(reference, model, f)

    reference.check(model, logits)


def test_experts_of_each_level_alike_are_those_of_all_levels() -> None:
    spec = numbers_only(4, 2)
    alike = AdaTTConfig(**(_SMALL | {"task_experts": (2, 1), "shared_experts": 2}))
    by_level = AdaTTConfig(**(_SMALL | {"level_experts": ((2, 1, 2), (2, 1, 2))}))

    assert alike.counts(2) == by_level.counts(2)
    shapes = [
        {name: value.shape for name, value in AdaTT(config, spec).state_dict().items()}
        for config in (alike, by_level)
    ]
    assert shapes[0] == shapes[1]


def test_inspections_name_the_experts_of_their_level() -> None:
    spec, batch = example_spec(num_tasks=2), example_batch(example_spec(num_tasks=2))
    config = AdaTTConfig(expert_units=((8,), (8,)), level_experts=((2, 1), (1, 1)))
    found = AdaTT(config, spec).eval().inspections(batch)

    assert [inspection.columns for inspection in found[::2]] == [
        ("task0 1", "task0 2", "task1 1"),
        ("task0", "task1"),
    ]


def test_weights_of_native_experts_follow_the_rule() -> None:
    def learned(**options) -> list[list[str]]:
        model = AdaTT(AdaTTConfig(**(_SMALL | options)), numbers_only(4, 2))
        return [sorted(level.native.values) for level in model.stack.levels]

    # The paper: unit weights where that unit has one expert. Unit 2 is the shared one, which does
    # not fuse in the last level.
    assert learned(task_experts=(1,)) == [[], []]
    assert learned(task_experts=(2, 1)) == [["0"], ["0"]]
    assert learned(task_experts=(1,), shared_experts=2) == [["2"], []]
    # The authors' code: for every unit as soon as any unit has another number of experts than 1.
    official = {"native": "official"}
    assert learned(task_experts=(1,), **official) == [[], []]
    assert learned(task_experts=(1,), shared_experts=1, **official) == [[], []]
    assert learned(task_experts=(1,), shared_experts=2, **official) == [["0", "1", "2"], ["0", "1"]]


def _known_answer_model(**options) -> AdaTT:
    """Two tasks of one expert: the identity, and a swap of the two numbers; gates start from 0."""
    settings = AdaTTConfig(expert_units=((2,),), task_experts=(1,), tower_units=(), **options)
    model = AdaTT(settings, numbers_only(2, 2))
    level = model.stack.levels[0]
    with torch.no_grad():
        level.experts.weights[0].copy_(torch.tensor([[[1.0, 0], [0, 1]], [[0, 1.0], [1, 0]]]))
        if level.gates is not None:
            for gate in level.gates.maps:
                gate.weight.zero_()
    return model


def test_known_answer_of_two_tasks_of_one_expert() -> None:
    x = torch.tensor([[1.0, 2.0]])
    model = _known_answer_model()

    assert [f.tolist() for f in model.stack(x)] == [[[2.5, 3.5]], [[3.5, 2.5]]]
    with torch.no_grad():
        model.stack.levels[0].gates.maps[0].bias.copy_(torch.tensor([1.0, 3.0]).log())
    # Gate (1/4, 3/4): 0.25 (1, 2) + 0.75 (2, 1) + (1, 2) = (2.75, 3.25).
    assert torch.allclose(model.stack(x)[0], torch.tensor([[2.75, 3.25]]))


def test_without_native_experts_two_tasks_are_one() -> None:
    model = _known_answer_model(native="none")

    assert [f.tolist() for f in model.stack(torch.tensor([[1.0, 2.0]]))] == [[[1.5, 1.5]]] * 2


def test_known_answer_of_two_experts_per_task() -> None:
    settings = AdaTTConfig(expert_units=((1,),), task_experts=(2,), tower_units=())
    model = AdaTT(settings, numbers_only(1, 2))
    level = model.stack.levels[0]
    with torch.no_grad():
        level.experts.weights[0].copy_(torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1))
        level.native.values["0"].copy_(torch.tensor([0.5, -0.5]))
        for gate in level.gates.maps:
            gate.weight.zero_()

    # The mean of 1, 2, 3, 4 and 0.5 * 1 - 0.5 * 2; or (pad(v) + G)' E.
    assert model.stack(torch.ones(1, 1))[0].item() == pytest.approx(2.0)
    (weights,) = model.fusion_weights(batch_of(torch.ones(1, 1), 2))
    assert weights[0, 0].tolist() == pytest.approx([0.75, -0.25, 0.25, 0.25])
    assert (weights[0, 0] @ torch.tensor([1.0, 2, 3, 4])).item() == pytest.approx(2.0)


@pytest.fixture
def trained_like() -> AdaTT:
    """Three tasks of two experts, all weights away from their start."""
    torch.manual_seed(0)
    settings = AdaTTConfig(expert_units=((8,), (6,)), task_experts=(2,), tower_units=(5,))
    model = AdaTT(settings, numbers_only(4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def _expert_gradients(model: AdaTT, batch: Batch, task: int) -> list[list[float]]:
    """Norm of the gradient of one task's logit by the experts of each task, level by level."""
    model.zero_grad()
    model(batch).logits[:, task].sum().backward()
    norms = []
    for level in model.stack.levels:
        gradient = level.experts.weights[0].grad
        gradient = torch.zeros(6, 1) if gradient is None else gradient
        norms.append([part.norm().item() for part in gradient.split(2)])
    return norms


def test_a_task_teaches_the_experts_of_others(trained_like: AdaTT) -> None:
    batch = batch_of(torch.randn(50, 4), 3)

    assert min(itertools.chain(*_expert_gradients(trained_like, batch, task=1))) > 0


def _point_gates_away(model: AdaTT) -> None:
    """Task 0's gates weigh nothing but the experts of task 2."""
    with torch.no_grad():
        for level in model.stack.levels:
            level.gates.maps[0].bias.copy_(torch.tensor([-200.0] * 4 + [0.0] * 2))


def test_a_task_teaches_its_own_experts_whatever_its_gate_says(trained_like: AdaTT) -> None:
    batch = batch_of(torch.randn(50, 4), 3)
    _point_gates_away(trained_like)

    gradients = _expert_gradients(trained_like, batch, task=0)

    assert gradients[1][0] > 0
    assert gradients[1][1] == 0
    trained_like.stack.levels[1].native = None
    assert _expert_gradients(trained_like, batch, task=0)[1][0] == 0


def test_without_gates_tasks_share_no_expert() -> None:
    settings = AdaTTConfig(expert_units=((8,), (6,)), task_experts=(2,), gate="none")
    model = AdaTT(settings, numbers_only(4, 3))
    with torch.no_grad():
        for level in model.stack.levels:
            for value in level.native.values.values():
                value.fill_(1.0)
    gradients = _expert_gradients(model, batch_of(torch.randn(50, 4), 3), task=0)

    assert all(level[0] > 0 and level[1:] == [0, 0] for level in gradients)


def test_inputs_of_the_second_level_differ_between_tasks(trained_like: AdaTT) -> None:
    x = torch.randn(5, 4)
    first = trained_like.stack.levels[0]([x] * 3, x)

    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[1], first[2])


def test_permuting_tasks_permutes_logits(trained_like: AdaTT) -> None:
    order, batch = [2, 0, 1], batch_of(torch.randn(5, 4), 3)
    experts = [expert for task in order for expert in (2 * task, 2 * task + 1)]
    expected = trained_like(batch).logits[:, order]
    with torch.no_grad():
        for level in trained_like.stack.levels:
            for parameter in [*level.experts.weights, *level.experts.biases]:
                parameter.copy_(parameter[experts].clone())
            for gate in level.gates.maps:
                gate.weight.copy_(gate.weight[experts].clone())
                gate.bias.copy_(gate.bias[experts].clone())
            level.gates.maps = torch.nn.ModuleList(level.gates.maps[task] for task in order)
            values = [level.native.values[str(task)] for task in order]
            for place, value in enumerate(values):
                level.native.values[str(place)] = value
        towers = trained_like.towers.towers
        trained_like.towers.towers = torch.nn.ModuleList(towers[task] for task in order)

    assert torch.allclose(trained_like(batch).logits, expected, atol=1e-6)


def test_gates_sum_to_one_and_all_weights_to_more(trained_like: AdaTT) -> None:
    x = torch.randn(7, 4)
    units = [x] * 3
    level = trained_like.stack.levels[0]
    gates = level.gates(units, x).sum(2)
    sums = torch.stack([level.native.values[str(task)].sum() for task in range(3)])

    assert torch.allclose(gates, torch.ones(7, 3))
    weights = trained_like.fusion_weights(batch_of(x, 3))[0]
    assert torch.allclose(weights.sum(2), 1 + sums.expand(7, 3), atol=1e-6)


def _hide_experts(gates: torch.nn.Module, hidden: slice) -> None:
    """No gate weighs these experts."""
    with torch.no_grad():
        for gate in gates.maps:
            gate.bias[hidden] = -200.0


@pytest.mark.parametrize(
    ("name", "settings", "seen_own"),
    [
        # A gate of PLE sees one expert that is its task's own, one of AdaTT those of both tasks.
        ("ple", {}, 1),
        ("adatt", {"task_experts": (1,), "native": "none"}, 2),
    ],
)
def test_shared_only_experts_of_one_level_are_mmoe(
    name: str, settings: dict, seen_own: int
) -> None:
    torch.manual_seed(0)
    spec, entry = numbers_only(5, 2), catalog.entry(name)
    options = {"expert_units": ((6,),), "tower_units": (4,)}
    model = entry.model(entry.config(**options, **settings, shared_experts=3), spec)
    mmoe = MMoE(MMoEConfig(**options, num_experts=3), spec)
    level, of_mmoe = model.stack.levels[0], mmoe.stack.levels[0]
    _hide_experts(level.gates, slice(0, seen_own))
    with torch.no_grad():
        of_mmoe.experts.weights[0].copy_(level.experts.weights[0][2:])
        for ours, theirs in zip(of_mmoe.gates.maps, level.gates.maps, strict=True):
            ours.weight.copy_(theirs.weight[seen_own:])
    mmoe.towers.load_state_dict(model.towers.state_dict())
    batch = batch_of(torch.randn(9, 5), 2)

    torch.testing.assert_close(mmoe(batch).logits, model(batch).logits, atol=1e-6, rtol=0)


def test_general_form_whose_shared_experts_nobody_weighs_is_adatt_sp() -> None:
    torch.manual_seed(0)
    spec = numbers_only(5, 2)
    options = {"expert_units": ((6,), (4,)), "tower_units": (4,), "task_experts": (2, 1)}
    general = AdaTT(AdaTTConfig(**options, shared_experts=2), spec)
    plain = AdaTT(AdaTTConfig(**options), spec)
    for whole, part in zip(general.stack.levels, plain.stack.levels, strict=True):
        _hide_experts(whole.gates, slice(3, 5))
        with torch.no_grad():
            for of_whole, of_part in zip(
                [*whole.experts.weights, *whole.experts.biases],
                [*part.experts.weights, *part.experts.biases],
                strict=True,
            ):
                of_part.copy_(of_whole[:3])
            for task, gate in enumerate(part.gates.maps):
                gate.weight.copy_(whole.gates.maps[task].weight[:3])
            for task, value in part.native.values.items():
                value.copy_(whole.native.values[task])
    plain.towers.load_state_dict(general.towers.state_dict())
    batch = batch_of(torch.randn(9, 5), 2)

    torch.testing.assert_close(plain(batch).logits, general(batch).logits, atol=1e-6, rtol=0)


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_on_census_are_those_of_the_paper() -> None:
    # 482 columns, three tasks, towers of 32; the specification's counts.
    spec = numbers_only(482, 3)

    def count(model: type, config: type, widths: tuple[int, int], **options) -> int:
        levels = tuple((width,) for width in widths)
        return _parameters(model(config(expert_units=levels, tower_units=(32,), **options), spec))

    assert count(AdaTT, AdaTTConfig, (128, 64), task_experts=(2,)) == 437_847
    assert count(AdaTT, AdaTTConfig, (96, 48), task_experts=(3,)) == 479_697
    assert count(AdaTT, AdaTTConfig, (128, 64), task_experts=(1,)) == 222_087
    assert count(MMoE, MMoEConfig, (128, 64), num_experts=6) == 452_901
    assert count(MMoE, MMoEConfig, (96, 48), num_experts=9) == 516_183
    assert count(PLE, PLEConfig, (128, 64), task_experts=1, shared_experts=3) == 437_061


def test_cross_stitch_mixes_tasks_by_a_matrix(reference) -> None:
    settings = CrossStitchConfig(**_SMALL)
    model = reference.build(CrossStitch, settings)

    def logits(row: int) -> np.ndarray:
        f = [flat(reference, model, row)] * 2
        for level in model.stack.levels:
            outputs = [expert_output(reference, level.experts, task, f[task]) for task in range(2)]
            mix = reference.array(level.mix)
            f = [sum(mix[t, j] * outputs[j] for j in range(2)) for t in range(2)]
        return towers(reference, model, f)

    reference.check(model, logits)


@pytest.mark.parametrize("levels", [((6, 5),), ((6,), (5, 4), (7,))])
def test_mmoe_gates_read_the_input_in_every_level(reference, levels: tuple) -> None:
    settings = MMoEConfig(**(_SMALL | {"expert_units": levels, "num_experts": 3}))
    model = reference.build(MMoE, settings)

    def logits(row: int) -> np.ndarray:
        x = flat(reference, model, row)
        f = [x] * 3
        for level in model.stack.levels:
            outputs = [expert_output(reference, level.experts, j, f[j]) for j in range(3)]
            gates = [softmax(reference.linear(gate, x)) for gate in level.gates.maps]
            f = [sum(g * e for g, e in zip(gate, outputs, strict=True)) for gate in gates]
        return towers(reference, model, f)

    reference.check(model, logits)


def test_ple_gates_see_own_and_shared_experts(reference) -> None:
    settings = PLEConfig(**(_SMALL | {"task_experts": 2, "shared_experts": 3}))
    model = reference.build(PLE, settings)
    seen = [[0, 1, 4, 5, 6], [2, 3, 4, 5, 6], list(range(7))]
    owner = [0, 0, 1, 1, 2, 2, 2]

    def logits(row: int) -> np.ndarray:
        f = [flat(reference, model, row)] * 3
        for level in model.stack.levels:
            outputs = [
                expert_output(reference, level.experts, expert, f[unit])
                for expert, unit in enumerate(owner)
            ]
            fused = []
            for unit, gate in enumerate(level.gates.maps):
                weights = softmax(reference.linear(gate, f[unit]))
                mixed = zip(weights, seen[unit], strict=True)
                fused.append(sum(weight * outputs[expert] for weight, expert in mixed))
            f = fused
        assert len(f) == 2
        return towers(reference, model, f)

    reference.check(model, logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_experts": (1, 2, 3)}, r"task_experts: must hold one number or one for each of 2"),
        ({"task_experts": ()}, r"task_experts: must hold a number, got none"),
        ({"gate": "none", "native": "none"}, r"model.native: must not be 'none' together"),
        ({"expert_units": ()}, r"model.expert_units: must hold a list of widths for each level"),
        ({"expert_units": ((8,), ())}, r"model.expert_units: .* got \(\(8,\), \(\)\)"),
        ({"level_experts": ((1, 1),)}, r"level_experts: must hold a list for each of the 2 levels"),
        ({"level_experts": ((1, 1), (1, 0))}, r"level_experts: must be at least 1 everywhere"),
        ({"level_experts": ((1, 1), (1, 1, 1))}, r"must hold 2 numbers in every level, one for"),
        (
            {"level_experts": ((1,), (1,))},
            r"must hold 2 numbers in every level, .* \[\[1\], \[1\]\]",
        ),
        ({"shared_experts": -1}, r"model.shared_experts: must be at least 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaTT(AdaTTConfig(**options), numbers_only(4, 2))


@pytest.mark.parametrize(
    ("name", "settings", "units", "experts"),
    [
        (
            "adatt",
            {"task_experts": (2, 1), "shared_experts": 1},
            ("task0", "task1", "shared"),
            ("task0 1", "task0 2", "task1 1", "shared 1"),
        ),
        ("ple", {}, ("task0", "task1", "shared"), ("task0", "task1", "shared")),
        (
            "ple",
            {"task_experts": 2},
            ("task0", "task1", "shared"),
            ("task0 1", "task0 2", "task1 1", "task1 2", "shared 1"),
        ),
        # As many experts as tasks, but nobody's own.
        ("mmoe", {"num_experts": 2}, ("expert 1", "expert 2"), ("expert 1", "expert 2")),
        ("cross_stitch", {}, ("task0", "task1"), ("task0", "task1")),
    ],
)
def test_inspections_are_means_over_the_batch_and_say_whose_they_are(
    name: str, settings: dict, units: tuple[str, ...], experts: tuple[str, ...]
) -> None:
    spec, batch = example_spec(num_tasks=2), example_batch(example_spec(num_tasks=2))
    entry = catalog.entry(name)
    torch.manual_seed(0)
    levels = {"expert_units": ((8,), (6,))}
    model = entry.model(entry.config(**levels, **settings, init_std=1.0), spec).eval()
    found = model.inspections(batch)

    assert [item.title for item in found] == [
        "Level 1: mean weight of each expert",
        "Level 1: share of rows in which an expert is all zero",
        "Level 2: mean weight of each expert",
        "Level 2: share of rows in which an expert is all zero",
    ]
    assert found[0].rows == units
    assert found[0].columns == found[1].columns == experts
    assert found[2].rows == ("task0", "task1")
    weights = model.fusion_weights(batch)
    torch.testing.assert_close(found[0].values, weights[0].mean(0))
    torch.testing.assert_close(found[2].values, weights[1].mean(0))
    assert found[1].values.shape == (1, len(experts))


def test_an_expert_that_says_nothing_is_found_out() -> None:
    spec, batch = example_spec(num_tasks=2), example_batch(example_spec(num_tasks=2))
    torch.manual_seed(0)
    model = AdaTT(AdaTTConfig(expert_units=((8,), (6,)), init_std=1.0), spec).eval()
    with torch.no_grad():
        model.stack.levels[0].experts.biases[0][2] = -1e6
    silent = model.inspections(batch)[1].values.squeeze(0).tolist()

    assert silent[2] == 1.0
    # Eight units of random sign are all zero in one row of 256.
    assert max(silent[:2] + silent[3:]) < 0.1


def test_hardly_any_expert_of_a_trained_model_says_nothing() -> None:
    spec = example_spec(num_tasks=2, num_categorical=0, sequences=False, num_numeric=8)
    torch.manual_seed(0)
    # As narrow as this, an expert that loses most of its units is all zero in many rows.
    options = {"expert_units": ((16,), (8,)), "task_experts": (2,), "tower_units": (32,)}
    model = AdaTT(AdaTTConfig(**options), spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(200):
        batch = example_batch(spec, rows=256, seed=step)
        labels = torch.stack([batch.numeric[:, 0] > 0, batch.numeric[:, 1:3].prod(1) > 0], dim=1)
        logits = model(batch).logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    found = model.eval().inspections(example_batch(spec, rows=1000, seed=1000))
    silent = [item.values.mean().item() for item in found[1::2]]
    assert loss.item() < 0.5
    assert len(silent) == 2
    assert max(silent) < 0.03
