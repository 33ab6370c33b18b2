"""Experiments of FuxiCTR's configs as recipes."""

from pathlib import Path

import pytest

from tamis.errors import ConfigError
from tamis.importers import fuxictr
from tamis.importers.fuxictr_recipe import MODELS
from tamis.training.config import run_config_from_table


def test_training_keeps_its_meaning(folder: Path) -> None:
    recipe = fuxictr.read(folder, "DeepFM_test").recipe
    settings = run_config_from_table(recipe)

    assert settings.optimizer.embedding == "adam"
    assert settings.optimizer.embedding_lr == settings.optimizer.dense_lr == 5e-4
    assert settings.optimizer.embedding_l2 == 0.05
    assert settings.optimizer.clip_norm == 10
    assert settings.schedule.plateau_factor == 0.1
    assert settings.training.min_improvement == 1e-6
    assert settings.training.batch_size == 1024
    assert settings.training.max_epochs == 40
    assert settings.training.monitor == "auc"
    assert settings.training.seed == 2019
    assert settings.model.embedding_dim == 10
    assert settings.model.hidden_units == (300, 300)
    assert settings.model.norm == "batch"
    assert settings.model.dropout == 0.2


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        (
            "DIN_test",
            {
                "hidden_units": (64, 32),
                "attention_units": (8,),
                "attention_activation": "dice",
                "activation": "relu",
                "softmax": True,
            },
        ),
        (
            "DCNv2_test",
            {"hidden_units": (400, 300), "num_cross_layers": 3, "rank": 0, "num_experts": 0},
        ),
        (
            "FinalMLP_test",
            {
                "first_units": (400,),
                "second_units": (800,),
                "first_dropout": 0.4,
                "second_dropout": 0.2,
                "gating": True,
                "first_context": ("brand",),
                "second_context": (),
                "num_heads": 10,
                "norm": "batch",
            },
        ),
    ],
)
def test_model_keeps_its_shape(folder: Path, experiment: str, expected: dict) -> None:
    imported = fuxictr.read(folder, experiment)
    model = run_config_from_table(imported.recipe).model

    assert {key: getattr(model, key) for key in expected} == expected


def test_stacked_cross_network_takes_the_stacked_layers(folder: Path) -> None:
    path = folder / "model_config.yaml"
    text = path.read_text().replace("model_structure: parallel", "model_structure: stacked")
    path.write_text(text.replace("use_low_rank_mixture: False", "use_low_rank_mixture: True"))
    model = run_config_from_table(fuxictr.read(folder, "DCNv2_test").recipe).model

    assert (model.structure, model.hidden_units) == ("stacked", (500, 500))
    assert (model.rank, model.num_experts) == (32, 4)


def test_l2_on_the_network_is_that_of_its_gradient(folder: Path) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("net_regularizer: 0", "net_regularizer: 1.e-5"))
    recipe = fuxictr.read(folder, "DeepFM_test").recipe

    assert run_config_from_table(recipe).optimizer.dense_l2 == 1e-5


def test_what_has_no_counterpart_is_said(folder: Path) -> None:
    path = folder / "model_config.yaml"
    text = path.read_text()
    path.write_text(text.replace("hidden_units: [300, 300]", "hidden_units: [300]\n    foo: 3"))
    notes = fuxictr.read(folder, "DeepFM_test").notes

    assert "foo = 3 has no counterpart in deepfm." in notes


# The defaults of the constructors in FuxiCTR's model zoo, at 2c89b9d; DIEN's and DIN's at b0bdfa1.
_HEAD = {"activation": "relu", "norm": "none", "dropout": 0.0}
_DEFAULTS = {
    "AutoInt": {
        "name": "autoint",
        "embedding_dim": 10,
        "hidden_units": [64, 64, 64],
        "num_layers": 2,
        "num_heads": 1,
        "attention_dim": 8,
        "scale": False,
        "layer_norm": False,
        **_HEAD,
    },
    "BST": {
        "name": "bst",
        "embedding_dim": 10,
        "hidden_units": [256, 128, 64],
        "num_heads": 2,
        "num_layers": 1,
        "attention_dropout": 0.0,
        "pooling": "mean",
        **_HEAD,
    },
    "DCNv2": {
        "name": "dcn_v2",
        "embedding_dim": 10,
        "num_cross_layers": 3,
        "structure": "parallel",
        "hidden_units": [9],  # not a default
        **_HEAD,
    },
    "DIEN": {
        "name": "dien",
        "embedding_dim": 16,
        "hidden_units": [200, 80],
        "auxiliary_weight": 0.0,
        **_HEAD,
        "norm": "batch",
    },
    "DIN": {
        "name": "din",
        "embedding_dim": 10,
        "hidden_units": [512, 128, 64],
        "attention_units": [64],
        "attention_activation": "dice",
        "softmax": False,
        **_HEAD,
    },
    "DLRM": {
        "name": "dlrm",
        "embedding_dim": 10,
        "top_units": [64, 64, 64],
        "bottom_units": [64, 64, 64],
        **_HEAD,
    },
    "DMIN": {
        "name": "dmin",
        "embedding_dim": 10,
        "hidden_units": [512, 128, 64],
        "num_heads": 4,
        "attention_units": [80, 40],
        "attention_activation": "relu",
        "position_dim": 8,
        "auxiliary_weight": 0.0,
        **_HEAD,
        "activation": "dice",
        "norm": "batch",
    },
    "DMR": {
        "name": "dmr",
        "embedding_dim": 10,
        "hidden_units": [512, 128, 64],
        "auxiliary_weight": 0.0,
        **_HEAD,
        "norm": "batch",
    },
    "DeepFM": {"name": "deepfm", "embedding_dim": 10, "hidden_units": [64, 64, 64], **_HEAD},
    "FM": {"name": "fm", "embedding_dim": 10},
    "FinalMLP": {
        "name": "final_mlp",
        "embedding_dim": 10,
        "first_units": [64, 64, 64],
        "second_units": [64, 64, 64],
        "first_dropout": 0.0,
        "second_dropout": 0.0,
        "gating": True,
        "gate_units": [64],
        "first_context": [],
        "second_context": [],
        "num_heads": 1,
        "activation": "relu",
        "norm": "none",
    },
    "LR": {"name": "lr"},
    "TransAct": {
        "name": "transact",
        "embedding_dim": 64,
        "hidden_units": [256, 128, 64],
        "num_heads": 1,
        "num_layers": 1,
        "attention_dropout": 0.0,
        "feed_forward": 512,
        "recent_tokens": 1,
        "num_cross_layers": 3,
        **_HEAD,
    },
    "xDeepFM": {
        "name": "xdeepfm",
        "embedding_dim": 10,
        "hidden_units": [64, 64, 64],
        "cin_maps": [16, 16, 16],
        "split_half": False,  # how it computes
        **_HEAD,
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_defaults_are_those_of_fuxictr(folder: Path, name: str) -> None:
    """An experiment that sets nothing but its model and its data."""
    # A DCNv2 of cross layers alone, which is FuxiCTR's default, tamis has not.
    own = {"DCNv2": ", parallel_dnn_hidden_units: [9]"}.get(name, "")
    experiment = f"x: {{model: {name}, dataset_id: tiny_seq{own}}}"
    (folder / "model_config.yaml").write_text(experiment)
    recipe = fuxictr.read(folder, "x").recipe
    started = {} if name == "LR" else {"init_std": 1e-4}  # how FuxiCTR starts embeddings

    assert recipe["model"] == _DEFAULTS[name] | started
    run_config_from_table(recipe)


@pytest.mark.parametrize(
    ("own", "widths", "note"),
    [
        # As the model zoo's TransAct_default has it.
        (
            "dcn_hidden_units: [1024, 512, 256], mlp_hidden_units: []",
            (1024, 512, 256),
            "dcn_hidden_units = [1024, 512, 256] became hidden_units: the network that FuxiCTR has "
            "beside the cross layers follows them.",
        ),
        (
            "mlp_hidden_units: [32]",
            (32,),
            "dcn_hidden_units = [256, 128, 64] has no counterpart in transact.",
        ),
    ],
)
def test_transact_has_one_deep_network(
    folder: Path, own: str, widths: tuple[int, ...], note: str
) -> None:
    experiment = f"x: {{model: TransAct, dataset_id: tiny_seq, {own}}}"
    (folder / "model_config.yaml").write_text(experiment)
    imported = fuxictr.read(folder, "x")

    assert run_config_from_table(imported.recipe).model.hidden_units == widths
    assert [said for said in imported.notes if "dcn_hidden_units" in said] == [note]


def test_null_for_hidden_layers_is_none_not_the_default(folder: Path) -> None:
    nulls = "dnn_hidden_units: null, num_heads: null"
    experiment = f"x: {{model: AutoInt, dataset_id: tiny_seq, {nulls}}}"
    (folder / "model_config.yaml").write_text(experiment)
    model = run_config_from_table(fuxictr.read(folder, "x").recipe).model

    assert (model.hidden_units, model.num_heads) == ((), 1)


def test_settings_that_change_what_is_computed_are_said_or_carried_over(folder: Path) -> None:
    path = folder / "model_config.yaml"
    text = path.read_text().replace("shuffle: True", "shuffle: False")
    changed = text.replace("save_best_only: True", "save_best_only: False").replace(
        "attention_dropout: 0\n",
        "reduce_lr_on_plateau: False\n    use_features: [adgroup_id, click_sequence]\n"
        "    use_residual: False\n    feature_specs: [x]\n    task: regression\n",
    )
    path.write_text(changed.replace("{'AUC': 1, 'logloss': -1}", "{'gAUC': 1, 'AUC': 1}"))
    imported = fuxictr.read(folder, "DIN_test")

    assert [field.name for field in imported.schema.fields] == ["adgroup_id", "click_sequence"]
    assert imported.recipe["schedule"]["plateau_factor"] == 1.0
    assert "use_residual = False has no counterpart in din." in imported.notes
    assert "shuffle = False has no counterpart in din." in imported.notes
    assert "save_best_only = False has no counterpart in din." in imported.notes
    assert "feature_specs = ['x'] has no counterpart in din." in imported.notes
    assert "monitor = {'gAUC': 1, 'AUC': 1} became auc." in imported.notes


@pytest.mark.parametrize(
    ("monitor", "has_user", "expected", "note"),
    [
        ("gAUC", True, "gauc", None),
        ("{'gAUC': 1}", True, "gauc", None),
        ("[gAUC]", True, "gauc", None),
        ("gAUC", False, "auc", "monitor = 'gAUC' became auc."),
        ("logloss", False, "log_loss", None),
        ("null", True, "auc", "monitor = None became auc."),
    ],
)
def test_auc_within_users_is_watched_where_there_are_users(
    folder: Path, monitor: str, has_user: bool, expected: str, note: str | None
) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("{'AUC': 1, 'logloss': -1}", monitor))
    if not has_user:
        path.write_text(path.read_text().replace("group_id: group_id", ""))
        path = folder / "dataset_config.yaml"
        path.write_text(path.read_text().replace("copy_from(userid)", "copy_from(hour)"))
    imported = fuxictr.read(folder, "DIN_test")

    assert bool(imported.schema.roles.user) is has_user
    assert run_config_from_table(imported.recipe).training.monitor == expected
    said = [one for one in imported.notes if one.startswith("monitor")]
    assert said == ([] if note is None else [note])


def test_dropout_of_din_is_told_only_where_there_is_one(folder: Path) -> None:
    path = folder / "model_config.yaml"
    assert not any("dropout" in note for note in fuxictr.read(folder, "DIN_test").notes)

    path.write_text(path.read_text().replace("attention_dropout: 0", "attention_dropout: 0.1"))

    assert (
        "attention_dropout = 0.1 has no counterpart in din."
        in fuxictr.read(folder, "DIN_test").notes
    )


def test_clipping_is_that_of_the_experiment(folder: Path) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("seed: 2019", "seed: 2019\n    max_gradient_norm: 5"))
    imported = fuxictr.read(folder, "DIN_test")

    assert imported.recipe["optimizer"]["clip_norm"] == 5
    assert not any("max_gradient_norm" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("loss", "task", "note"),
    [
        ("FocalLoss", "binary_classification", "loss = 'FocalLoss' became binary cross entropy."),
        ("bce", "regression", "loss = 'bce' became squared error."),
        ("bce", "binary_classification", None),
        ("mse_loss", "regression", None),
    ],
)
def test_another_loss_is_said(folder: Path, loss: str, task: str, note: str | None) -> None:
    path = folder / "model_config.yaml"
    text = path.read_text().replace("binary_crossentropy", loss)
    path.write_text(text.replace("task: binary_classification", f"task: {task}"))

    said = [one for one in fuxictr.read(folder, "DIN_test").notes if one.startswith("loss")]
    assert said == ([] if note is None else [note])


@pytest.mark.parametrize(
    ("rates", "note"),
    [
        ("[0.1, 0.2]", "net_dropout = [0.1, 0.2] became 0.1 in every layer."),
        ("[0.1, 0.1]", None),
    ],
)
def test_dropout_of_each_layer_becomes_that_of_all(
    folder: Path, rates: str, note: str | None
) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("net_dropout: 0.2", f"net_dropout: {rates}"))
    imported = fuxictr.read(folder, "DIN_test")

    assert imported.recipe["model"]["dropout"] == 0.1
    said = [one for one in imported.notes if "dropout" in one]
    assert said == ([] if note is None else [note])


@pytest.mark.parametrize(
    ("experiment", "old", "new", "message"),
    [
        (
            "DIN_test",
            "dnn_hidden_units: [64, 32]",
            "dnn_hidden_units: [64.0, 32]",
            r"DIN_test: dnn_hidden_units: must be a list of whole numbers, got \[64.0, 32\]. Mend",
        ),
        (
            "DCNv2_test",
            "parallel_dnn_hidden_units: [400, 300]",
            "parallel_dnn_hidden_units: 400",
            "DCNv2_test: parallel_dnn_hidden_units: must be a list of whole numbers, got 400",
        ),
        (
            "FinalMLP_test",
            "num_heads: 10",
            "num_heads: ten",
            "FinalMLP_test: num_heads: must be a number, got 'ten'",
        ),
    ],
)
def test_settings_of_another_kind_are_refused_by_their_own_name(
    folder: Path, experiment: str, old: str, new: str, message: str
) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace(old, new))

    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, experiment)


def test_settings_of_the_data_set_are_over_those_of_the_model(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    new = "tiny_seq:\n    batch_size: 7\n    n_rows: 100"
    path.write_text(path.read_text().replace("tiny_seq:", new))
    imported = fuxictr.read(folder, "DIN_test")

    assert imported.recipe["training"]["batch_size"] == 7
    assert "n_rows = 100 has no counterpart in din." in imported.notes
