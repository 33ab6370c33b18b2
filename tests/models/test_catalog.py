"""The catalog is complete, and every model in it passes the conformance suite."""

import dataclasses
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import nn

from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models import catalog
from tamis.models.monn import MoNNConfig
from tamis.testing import models as conformance

_NOT_MODELS = {"__init__", "catalog", "interest", "multi_task", "output", "ranges", "standalone"}
_NOT_MODELS |= {
    "early_heads",
    "early_serving",
    "flops",
    "corpus_rows",
    "in_batch_pairs",
    "item_id",
    "hsnn_level",
    "level_shifts",
    "lightgcn",
    "monn",
}
_NOT_MODELS |= {"trained", "weights"}


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_model_passes_the_conformance_suite(name: str) -> None:
    entry = catalog.entry(name)

    conformance.check_model(entry.config, entry.model, sides=entry.sides)


def _builder(name: str, **options: object) -> conformance.Build:
    """Builds the model with its defaults but the given ones, the same weights each time."""
    entry = catalog.entry(name)

    def build(spec: InputSpec) -> nn.Module:
        torch.manual_seed(0)
        return entry.model(entry.config(**options), spec)

    return build


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_small_maps_compute_in_bfloat16_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else only maps as large as they are in earnest do.
    monkeypatch.setattr("tamis.nn.linear.FEW_WEIGHTS", 0)
    conformance.check_bfloat16(_builder(name), conformance.example_spec(num_tasks=2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # PyTorch's own
@pytest.mark.parametrize("name", catalog.CATALOG)
def test_model_compiles_for_any_size_of_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Checks of shapes cannot be compiled.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    conformance.check_compiles(_builder(name), conformance.example_spec(num_tasks=2))


_SMALL_MLP: dict = {"hidden_units": (8,)}
_SMALL_DHEN: dict = {"module_tokens": 4, "dot_units": 8, "head_units": (8,)}
_SMALL_WUKONG: dict = {"fm_units": (8,), "head_units": (8,)}
_ALL_MODULES = ("attention", "conv", "linear", "dcn_paper", "dcn_v2", "dot")

_SMALL_INTERFORMER: dict = {"head_units": (16,), "dot_units": 8, "module_tokens": 4}
_SMALL_LEVELS: dict = {"expert_units": ((12, 10), (8,))}
_SMALL_EXPERTS: dict = _SMALL_LEVELS | {"tower_units": (6,)}
_SMALL_EARLY: dict = {"tower_units": (12,), "head_units": (6,)}

_SMALL_HSNN: dict = {"levels": (MoNNConfig(user_tokens=2),) * 2, "codebooks": (5,)}

_PAIR = (
    {"name": "dcn_v2", "hidden_units": [8]},
    {"name": "deepfm", "hidden_units": [8]},
)

_VARIANTS: tuple[tuple[str, dict], ...] = (
    ("adatt", _SMALL_EXPERTS | {"task_experts": (3,), "shared_experts": 2, "native": "official"}),
    ("adatt", _SMALL_EXPERTS | {"gate": "raw", "gate_bias": False, "native": "softmax"}),
    ("adatt", _SMALL_EXPERTS | {"gate": "constant", "native": "gated", "inputs": "one_hot"}),
    ("adatt", {"gate": "none", "native": "unit"}),
    ("bst", _SMALL_MLP | {"num_heads": 2, "num_layers": 2, "pooling": "mean"}),
    ("bst", _SMALL_MLP | {"num_heads": 1, "pooling": "target"}),
    ("cetnet", {"members": _PAIR, "confidence": "inverse_entropy", "collaboration": "kl_1to2"}),
    ("cetnet", {"members": _PAIR, "confidence": "margin", "collaboration": "kl_2to1"}),
    ("cetnet", {"members": _PAIR, "fuse": "logit", "collaboration": "mse", "tau": 0.3}),
    ("cetnet", {"members": _PAIR, "confidence": "weights", "detach_peer": True}),
    ("cetnet", {"members": _PAIR, "confidence": "gate", "embeddings": "shared"}),
    (
        "cetnet",
        {
            "members": (*_PAIR, *_PAIR),
            "learn_tau": True,
            "collaboration_weight": 1.0,
            "collaboration_temperature": 2.0,
            "member_weight": 1.0,
            "fused_weight": 0.5,
        },
    ),
    (
        "cetnet",
        {
            "members": _PAIR,
            "confidence": "none",
            "collaboration": "none",
        },
    ),
    ("cetnet", {"members": _PAIR, "detach_weights": True}),
    ("autoint", _SMALL_MLP | {"layer_norm": True, "scale": False, "activation": "silu"}),
    ("autoint", {"hidden_units": (), "num_layers": 1, "num_heads": 4}),
    ("cross_stitch", _SMALL_EXPERTS | {"inputs": "one_hot"}),
    ("dcn_v2", _SMALL_MLP | {"structure": "stacked", "norm": "layer"}),
    ("dcn_v2", _SMALL_MLP | {"rank": 4, "activation": "tanh"}),
    ("dcn_v2", _SMALL_MLP | {"rank": 4, "num_experts": 3, "structure": "stacked"}),
    ("deepfm", _SMALL_MLP | {"embedding_dim": 3, "activation": "gelu", "norm": "layer"}),
    ("deepfm", {"hidden_units": ()}),
    ("dhen", _SMALL_DHEN | {"modules": _ALL_MODULES, "attention_heads": 2, "conv_channels": 3}),
    ("dhen", _SMALL_DHEN | {"ensemble": "weighted_sum", "shortcut": "mlp"}),
    ("dhen", _SMALL_DHEN | {"ensemble": "sum", "shortcut": "none", "dot_pairs": "diagonal"}),
    (
        "dhen",
        _SMALL_DHEN
        | {
            "layers": (("attention", "linear"), ("dot",), ("conv", "dcn_v2")),
            "norm_position": "pre_sum",
            "attention_compress_first": True,
            "attention_qkv_bias": False,
            "linear_bias": True,
            "dcn_residual": True,
            "dot_pairs": "full",
            "conv_kernel": 3,
        },
    ),
    ("dhen", _SMALL_DHEN | {"norm": False, "num_dense_tokens": 2, "head_norm": "layer"}),
    ("dhen", _SMALL_DHEN | {"history": "mlp"}),
    ("dhen", _SMALL_DHEN | {"history": "attention"}),
    ("dien", _SMALL_MLP | {"auxiliary_weight": 0.0}),
    ("din", _SMALL_MLP | {"softmax": True, "attention_units": (8,)}),
    ("din", {"attention_activation": "relu", "hidden_units": ()}),
    ("dmin", _SMALL_MLP | {"num_heads": 2, "attention_units": (8,), "position_dim": 3}),
    ("dmin", _SMALL_MLP | {"auxiliary_weight": 0.0, "attention_activation": "silu"}),
    ("dmr", _SMALL_MLP | {"auxiliary_weight": 0.5, "num_negatives": 2}),
    ("dmr", _SMALL_MLP | {"auxiliary_weight": 0.0}),
    ("dlrm", {"top_units": (8,), "bottom_units": (), "with_diagonal": True, "norm": "layer"}),
    ("early_stage", _SMALL_EARLY | {"bottom_units": (8,), "distillation": "mixed"}),
    ("early_stage", _SMALL_EARLY | {"bottom": "dot", "distillation": "none", "tower_dim": 5}),
    ("early_stage", _SMALL_EARLY | _SMALL_LEVELS | {"bottom": "mmoe", "num_experts": 3}),
    (
        "early_stage",
        _SMALL_EARLY
        | _SMALL_LEVELS
        | {"bottom": "ple", "task_experts": 2, "shared_experts": 2, "chain": True},
    ),
    ("esmm", {"tower_units": (8, 6), "inputs": "one_hot"}),
    ("final_mlp", {"gating": False, "first_units": (8,), "second_units": (8,), "num_heads": 1}),
    (
        "final_mlp",
        {
            "first_units": (8,),
            "second_units": (8,),
            "first_context": ("user",),
            "second_context": ("item", "context"),
            "gate_units": (),
            "norm": "layer",
        },
    ),
    ("fm", {"embedding_dim": 3, "init_std": 0.1}),
    ("fmfm", {"embedding_dim": 3}),
    ("hsnn", _SMALL_HSNN | {"index_learning": "em", "cluster_rows": 64, "bridge": "product"}),
    ("hsnn", _SMALL_HSNN | {"index_learning": "sil", "cluster_steps": 1, "bridge": "sum"}),
    (
        "hsnn",
        {
            "levels": (MoNNConfig(modules=("dot", "attention"), attention_heads=2),),
            "codebooks": (),
            "item_tokens": 2,
            "item_dim": 6,
            "cross_tokens": 2,
            "cross_dim": 5,
        },
    ),
    (
        "hsnn",
        _SMALL_HSNN
        | {
            "item_layers": 2,
            "cross_layers": 2,
            "alpha_max": 20.0,
            "alpha_exponent": 2.0,
            "revive_steps": 2,
            "alpha_steps": 10,
            "warmup_steps": 1,
            "queue_batches": 2,
            "reconstruction_weight": 1.0,
            "balance_weight": 1.0,
            "interaction_weight": 1.0,
            "unlabelled_weight": 0.0,
        },
    ),
    ("interformer", _SMALL_INTERFORMER | {"flow": "to_fields", "gate": "mask", "backbone": "dot"}),
    (
        "interformer",
        _SMALL_INTERFORMER
        | {
            "flow": "to_events",
            "class_tokens": False,
            "personal": "mlp_low_rank",
            "personal_rank": 2,
            "backbone": "dcn_v2",
            "backbone_layers": 2,
            "cross_rank": 4,
            "cross_units": (8,),
            "merge_mask": "sigmoid",
        },
    ),
    (
        "interformer",
        _SMALL_INTERFORMER
        | {"flow": "none", "pooled_tokens": 0, "gate": "sigmoid", "restore_units": (16,)},
    ),
    ("interformer", _SMALL_INTERFORMER | {"flow": "sole", "style": "residual"}),
    (
        "interformer",
        _SMALL_INTERFORMER
        | {
            "style": "literal",
            "personal": "full",
            "gate": "tanh",
            "num_heads": 4,
            "recent_tokens": 0,
            "summary_tokens": 3,
            "rotary": False,
            "backbone_modules": ("dot", "linear", "attention"),
        },
    ),
    ("interformer", _SMALL_INTERFORMER | {"style": "residual"}),
    (
        "interformer",
        _SMALL_INTERFORMER
        | {"personal": "none", "attention": False, "gate": "none", "merge_single": False},
    ),
    ("multi_embedding", _SMALL_MLP | {"num_tables": 3, "activation": "silu"}),
    ("mmoe", _SMALL_EXPERTS | {"num_experts": 3, "inputs": "one_hot"}),
    ("ple", _SMALL_EXPERTS | {"task_experts": 2, "shared_experts": 3, "inputs": "one_hot"}),
    ("shared_bottom", {"bottom_units": (8,), "tower_units": (), "inputs": "one_hot"}),
    ("tower_ensemble", {"gate": "softmax", "module_tokens": 4, "head_units": (8,)}),
    (
        "tower_ensemble",
        {
            "towers": (("attention", "conv"), ("dcn_paper",)),
            "num_layers": 1,
            "num_dense_tokens": 2,
            "head_units": (8,),
        },
    ),
    ("transact", _SMALL_MLP | {"num_heads": 4, "feed_forward": 8, "recent_tokens": 2}),
    (
        "two_tower",
        {"objective": "cross_entropy", "tower_dim": 8, "user_layers": 2, "temperature": 0.2},
    ),
    ("two_tower", {"log_q": False, "item_layers": 2, "bridge": "sum"}),
    ("two_tower", {"frequency_rate": 0.5, "bridge": "product"}),
    ("wukong", _SMALL_WUKONG | {"rank": 2, "num_dense_tokens": 2, "head_norm": "layer"}),
    # Six tokens enter with numeric features (three fields, two columns), so the residual is bare.
    ("wukong", _SMALL_WUKONG | {"fm_tokens": 2, "linear_tokens": 4, "activation": "gelu"}),
    ("xdeepfm", _SMALL_MLP | {"split_half": False, "cin_maps": (3,), "norm": "layer"}),
    ("xdeepfm", {"hidden_units": (), "cin_maps": (4, 4, 3)}),
)


def _numbered(variants: tuple[tuple[str, dict], ...]) -> list:
    return [pytest.param(*item, id=f"{item[0]}-{place}") for place, item in enumerate(variants)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), _numbered(_VARIANTS))
def test_model_with_other_options_passes_the_conformance_suite(name: str, options: dict) -> None:
    entry = catalog.entry(name)
    settings = entry.config(**options)

    assert all(getattr(entry.config(), key) != value for key, value in options.items())
    conformance.check_model(entry.config, entry.model, settings, sides=entry.sides)


def test_every_option_is_varied_or_tested_by_itself() -> None:
    # Dropout makes a model random and batch norm makes rows depend on each other while training:
    # both are tested below and in the files of the models. Sizes need no variant.
    elsewhere = {"dropout", "first_dropout", "second_dropout", "attention_dropout", "init_std"}
    elsewhere |= {"id_dropout"}
    # Until then there is no index, so that its levels get no gradient: see test_hsnn.py.
    elsewhere |= {"start_steps"}
    # Need to know what other pairs have in common, or stand beside what does: see test_hsnn.py.
    elsewhere |= {"negatives", "label_weight", "product_weight"}
    # Holds a number for each task, of which the suite has one, two and three: see test_adatt.py.
    elsewhere |= {"level_experts"}
    sizes = {"num_layers", "num_cross_layers", "dot_units", "dense_units"}
    sizes |= {"attention_dim", "attention_units"}
    varied = {(name, key) for name, options in _VARIANTS for key in options}
    options = {
        (name, item.name)
        for name, entry in catalog.CATALOG.items()
        for item in dataclasses.fields(entry.config)
    }
    shared = {"embedding_dim", "activation", "head_norm", "norm"}  # the same code in every model

    left = {pair for pair in options - varied if pair[1] not in elsewhere | sizes | shared}
    assert not left
    assert varied <= options


_DROPOUTS = (
    ("autoint", {"dropout": 0.5}),
    ("bst", {"dropout": 0.5}),
    ("bst", {"attention_dropout": 0.5}),
    # Dice follows statistics that move while training.
    ("dien", {"dropout": 0.5, "auxiliary_weight": 0.0, "activation": "relu"}),
    ("din", {"dropout": 0.5, "activation": "relu", "attention_activation": "relu"}),
    (
        "dmin",
        {
            "dropout": 0.5,
            "auxiliary_weight": 0.0,
            "activation": "relu",
            "attention_activation": "relu",
        },
    ),
    ("dmr", {"dropout": 0.5, "auxiliary_weight": 0.0, "activation": "relu"}),
    ("transact", {"dropout": 0.5}),
    ("transact", {"attention_dropout": 0.5}),
    ("dcn_v2", {"dropout": 0.5}),
    ("deepfm", {"dropout": 0.5}),
    ("dhen", {"dropout": 0.5}),
    ("dhen", {"attention_dropout": 0.5, "modules": ("attention",)}),
    ("dlrm", {"dropout": 0.5}),
    ("final_mlp", {"first_dropout": 0.5}),
    ("final_mlp", {"second_dropout": 0.5}),
    ("interformer", {"dropout": 0.5}),
    ("multi_embedding", {"dropout": 0.5}),
    ("tower_ensemble", {"dropout": 0.5}),
    ("wukong", {"dropout": 0.5}),
    ("xdeepfm", {"dropout": 0.5}),
)


@pytest.mark.parametrize(("name", "options"), _numbered(_DROPOUTS))
def test_dropout_acts_while_training_only(name: str, options: dict) -> None:
    entry = catalog.entry(name)
    spec = conformance.example_spec()
    batch = conformance.example_batch(spec)
    without = {key: value for key, value in options.items() if not key.endswith("dropout")}
    models = []
    for settings in (options, without):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models.append(entry.model(entry.config(init_std=1.0, **settings), spec))
    dropping, plain = models

    assert not torch.equal(dropping(batch).logits, dropping(batch).logits)
    assert torch.equal(dropping.eval()(batch).logits, plain.eval()(batch).logits)


@pytest.mark.parametrize("name", [name for name in catalog.CATALOG if name not in ("lr", "cetnet")])
def test_embeddings_start_from_the_given_deviation(name: str) -> None:
    entry = catalog.entry(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = entry.model(entry.config(init_std=0.3), conformance.example_spec())
    weights = [
        weight
        for path, weight in model.named_parameters()
        if path.endswith("tables.weight") and not path.startswith("first_order")
    ]

    assert len(weights) == (2 if name == "multi_embedding" else 1)
    # 150 rows of 16 dimensions: the deviation of 2400 draws is within 1.4 % at one sigma.
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.3, rel=0.06)


# What a model must be told to learn each row's own label. The rest learn it as they are.
_BY_LABEL: dict[str, dict] = {"two_tower": {"objective": "cross_entropy"}}
# A logit of LR is a sum of single weights, which no other weights multiply.
_STEP_SIZES: dict[str, dict] = {"lr": {"embedding_lr": 0.2}}


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_model_memorises_64_rows(name: str) -> None:
    build = _builder(name, **_BY_LABEL.get(name, {}))

    conformance.check_memorises(build, conformance.example_spec(), **_STEP_SIZES.get(name, {}))


def test_every_model_file_is_in_the_catalog() -> None:
    folder = Path(catalog.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - _NOT_MODELS

    assert {entry.model.__module__.rsplit(".", 1)[1] for entry in catalog.CATALOG.values()} == files


def test_unknown_model_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"got 'dcnv2'. Did you mean 'dcn_v2'\?"):
        catalog.entry("dcnv2")
