"""FuxiCTR configs in the layout of its model zoo and of BARS."""

import re
from pathlib import Path

import pytest

from tamis.data.schema import Field
from tamis.errors import ConfigError
from tamis.importers import fuxictr
from tamis.training.config import run_config_from_table

_DATASETS = """
### Tiny data for demo only
tiny_seq:
    data_root: ../data/
    data_format: csv
    train_data: ../data/tiny/train.csv
    valid_data: ../data/tiny/valid.csv
    test_data: ../data/tiny/test.csv
    min_categr_count: 2
    feature_cols:
        - {name: day, active: True, dtype: str, type: meta}
        - {name: [adgroup_id, cate_id], active: True, dtype: str, type: categorical}
        - {name: brand, active: True, dtype: str, type: categorical, min_categr_count: 10,
           category_processor: hash_bucket, num_buckets: 100}
        - {name: pid, active: False, dtype: str, type: categorical}
        - {name: price, active: True, dtype: float, type: numeric, normalizer: StandardScaler}
        - {name: age, active: True, dtype: float, type: numeric}
        - {name: hour, active: True, dtype: str, type: categorical, preprocess: convert_hour}
        - {name: click_sequence, active: True, dtype: str, type: sequence, splitter: ^,
           max_len: 20, padding: pre, share_embedding: adgroup_id}
        - {name: cate_sequence, active: True, dtype: str, type: sequence, splitter: ^,
           max_len: 20, padding: pre, share_embedding: cate_id}
        - {name: group_id, active: True, dtype: str, type: meta, preprocess: copy_from(userid)}
    label_col: {name: clk, dtype: float}
npz:
    data_format: npz
    train_data: train.npz
"""
_BASE = """
Base:
    model_root: './checkpoints/'
    num_workers: 3
    verbose: 1
    early_stop_patience: 2
    pickle_feature_encoder: True
    save_best_only: True
    eval_steps: null
    group_id: group_id

"""
_COMMON = """
    dataset_id: tiny_seq
    loss: 'binary_crossentropy'
    metrics: ['logloss', 'AUC']
    task: binary_classification
    optimizer: adam
    learning_rate: 5.0e-4
    embedding_regularizer: 0.05
    net_regularizer: 0
    batch_size: 1024
    embedding_dim: 10
    dnn_activations: relu
    net_dropout: 0.2
    batch_norm: True
    epochs: 40
    shuffle: True
    seed: 2019
    monitor: {'AUC': 1, 'logloss': -1}
    monitor_mode: 'max'
"""
_OWN = {
    "DIN": (
        "dnn_hidden_units: [64, 32]\n    attention_hidden_units: [8]\n"
        "    attention_hidden_activations: Dice\n    attention_output_activation: null\n"
        "    attention_dropout: 0\n    din_use_softmax: True\n"
        "    din_target_field: [!!python/tuple [adgroup_id, cate_id]]\n"
        "    din_sequence_field: [!!python/tuple [click_sequence, cate_sequence]]\n"
    ),
    "DCNv2": (
        "model_structure: parallel\n    use_low_rank_mixture: False\n    low_rank: 32\n"
        "    num_experts: 4\n    stacked_dnn_hidden_units: [500, 500]\n"
        "    parallel_dnn_hidden_units: [400, 300]\n    num_cross_layers: 3\n"
    ),
    "FinalMLP": (
        "mlp1_hidden_units: [400]\n    mlp1_hidden_activations: relu\n    mlp1_dropout: 0.4\n"
        "    mlp1_batch_norm: True\n    mlp2_hidden_units: [800]\n    mlp2_dropout: 0.2\n"
        "    use_fs: True\n    num_heads: 10\n    fs1_context: [brand]\n    fs2_context: []\n"
    ),
    "DeepFM": "hidden_units: [300, 300]\n    hidden_activations: relu\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tmp_path / "zoo" / "config"
    config.mkdir(parents=True)
    (config / "dataset_config.yaml").write_text(_DATASETS)
    experiments = [
        f"{name}_test:\n    model: {name}{_COMMON}    {own}" for name, own in _OWN.items()
    ]
    (config / "model_config.yaml").write_text(_BASE + "\n".join(experiments))
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / "tiny" / f"{split}.csv").write_text("clk\n1\n")
    return config


def test_data_set_becomes_a_schema(folder: Path) -> None:
    imported = fuxictr.read(folder, "DIN_test")
    by_name = {field.name: field for field in imported.schema.fields}

    assert list(by_name) == [
        *("adgroup_id", "cate_id", "brand", "price", "age", "hour"),
        *("click_sequence", "cate_sequence"),
    ]
    assert by_name["adgroup_id"] == Field(name="adgroup_id", kind="categorical", min_count=2)
    assert by_name["brand"].encoding == "hashing"
    assert by_name["brand"].num_buckets == 100
    assert by_name["price"].transform == "standardise"
    assert by_name["age"].transform == "none"
    assert by_name["click_sequence"] == Field(
        name="click_sequence",
        kind="sequence",
        separator="^",
        max_length=20,
        shares="adgroup_id",
        group="history",
    )
    assert by_name["cate_sequence"].group == "history"
    assert imported.schema.roles.user == "userid"
    assert [task.name for task in imported.schema.tasks] == ["clk"]
    assert [ignored.column for ignored in imported.schema.ignored] == ["pid", "day"]
    assert imported.notes == (
        "hour: preprocess = 'convert_hour' is not carried over.",
        "price, age: FuxiCTR takes a missing number for 0 where fill_na says nothing else; tamis "
        "takes the mean of the training rows.",
        "monitor = {'AUC': 1, 'logloss': -1} became auc.",
    )
    assert set(imported.files) == {"train", "valid", "test"}
    assert all(path.exists() for path in imported.files.values())


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


@pytest.mark.parametrize(
    ("file", "old", "new", "owner"),
    [
        # FuxiCTR gives a history a table of its own where that of the item is not among them.
        (
            "model_config.yaml",
            "attention_dropout: 0",
            "use_features: [cate_id, click_sequence]",
            "adgroup_id",
        ),
        # FuxiCTR's histories may share the table of another history.
        (
            "dataset_config.yaml",
            "share_embedding: adgroup_id",
            "share_embedding: cate_sequence",
            "cate_sequence",
        ),
    ],
)
def test_without_a_category_to_share_with_a_history_has_its_own_table(
    folder: Path, file: str, old: str, new: str, owner: str
) -> None:
    path = folder / file
    path.write_text(path.read_text().replace(old, new))
    imported = fuxictr.read(folder, "DIN_test")
    (past,) = (field for field in imported.schema.fields if field.name == "click_sequence")

    assert (past.shares, past.min_count) == ("", 2)
    assert (
        f"click_sequence: there is no categorical input {owner} with a table that it could share; "
        "it has its own." in imported.notes
    )


def test_data_set_alone_has_no_recipe(folder: Path) -> None:
    imported = fuxictr.read(folder, "tiny_seq")

    assert imported.recipe is None
    assert {field.group for field in imported.schema.fields if field.is_jagged} == {""}


@pytest.mark.parametrize(
    ("column", "user", "note"),
    [
        ("copy_from(userid)", "userid", "userid: no group_id says who the user is; it is taken"),
        ("copy_from(UID)", "UID", "UID: no group_id says who the user is; it is taken"),
        (
            "copy_from(session)",
            "",
            r"no group_id says who the user is, nor is a meta column \(day, group_id\) named",
        ),
    ],
)
def test_without_a_group_the_user_is_a_meta_column_named_so_or_nobody(
    folder: Path, column: str, user: str, note: str
) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("group_id: group_id", "group_id: null"))
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace("copy_from(userid)", column))
    imported = fuxictr.read(folder, "DIN_test")

    assert imported.schema.roles.user == user
    # The first meta column is the day, which is nobody.
    assert "day" in [ignored.column for ignored in imported.schema.ignored]
    assert any(re.match(note, said) for said in imported.notes)


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


@pytest.mark.parametrize("name", fuxictr._MODELS)
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


@pytest.mark.parametrize("column", ["user-id", "user id", "utilisateur·é"])
def test_copied_column_may_have_any_name(folder: Path, column: str) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text(encoding="utf-8").replace("copy_from(userid)", f"copy_from({column})")
    path.write_text(text, encoding="utf-8")

    assert fuxictr.read(folder, "DIN_test").schema.roles.user == column


def test_fillings_of_missing_values_are_said(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text().replace("name: age, active", "name: age, na_value: 0, active")
    path.write_text(text)

    assert "age: na_value = 0 is not carried over." in fuxictr.read(folder, "DIN_test").notes


@pytest.mark.parametrize(
    ("encoder", "is_told"),
    [
        ("layers.MaskedSumPooling()", True),
        ("layers.MaskedAveragePooling()", False),
        ("null", False),
    ],
)
def test_another_pooling_than_the_mean_is_said(folder: Path, encoder: str, is_told: bool) -> None:
    path = folder / "dataset_config.yaml"
    new = f"feature_encoder: {encoder}, max_len: 20"
    path.write_text(path.read_text().replace("max_len: 20", new))

    note = f"click_sequence: feature_encoder = {encoder!r} is not carried over."
    assert (note in fuxictr.read(folder, "DIN_test").notes) == is_told


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
    ("file", "old", "new", "message"),
    [
        (
            "dataset_config.yaml",
            "max_len: 20",
            "max_len: ten",
            r"dataset_config\.yaml: column 'click_sequence': max_len: must be a number, got 'ten'",
        ),
        (
            "model_config.yaml",
            "epochs: 40",
            "epochs: many",
            r"model_config\.yaml: DIN_test: epochs: must be a number, got 'many'",
        ),
    ],
)
def test_wrong_number_names_its_file_and_entry(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    text = (folder / file).read_text()
    (folder / file).write_text(text.replace(old, new))

    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, "DIN_test")


def test_dropout_of_din_is_told_only_where_there_is_one(folder: Path) -> None:
    path = folder / "model_config.yaml"
    assert not any("dropout" in note for note in fuxictr.read(folder, "DIN_test").notes)

    path.write_text(path.read_text().replace("attention_dropout: 0", "attention_dropout: 0.1"))

    assert (
        "attention_dropout = 0.1 has no counterpart in din."
        in fuxictr.read(folder, "DIN_test").notes
    )


def test_histories_keep_the_separator_and_say_which_end_they_keep(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text().replace("splitter: ^,\n           max_len: 20, padding: pre, ", "")
    path.write_text(text)
    imported = fuxictr.read(folder, "DIN_test")
    by_name = {field.name: field for field in imported.schema.fields}

    assert by_name["click_sequence"].separator == "^"
    assert by_name["click_sequence"].max_length == 50
    assert any(note.startswith("click_sequence: max_len is left") for note in imported.notes)
    assert any("padding post makes FuxiCTR keep the first" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("experiment", "old", "new", "message"),
    [
        ("DNN_test", "", "", r"must hold the experiment, got 'DNN_test'. It holds .*DIN_test"),
        ("npz", "", "", "must be raw csv or parquet, got 'npz'"),
        ("DIN_test", "model: DIN\n", "model: AFM\n", r"model: must be one of .*DCNv2.*got 'AFM'"),
        ("DIN_test", "dataset_id: tiny_seq", "dataset_id: x", "must hold the data set 'x'"),
        ("DCNv2_test", "parallel\n", "crossnet_only\n", "must be parallel or stacked"),
        ("DIN_test", "Base:", "Base: [", "must be YAML"),
        ("DIN_test", "Base:", "Base: 3\nOther:", "Base: must hold named entries, got 3"),
        ("DIN_test", "embedding_dim: 10", "embedding_dim: x", "embedding_dim: must be a number"),
        ("DIN_test", "dataset_id: tiny_seq", "dataset_id: [x]", r"must hold the data set \['x'\]"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    folder: Path, experiment: str, old: str, new: str, message: str
) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace(old, new) if old else path.read_text())

    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, experiment)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: price, active: True, dtype: float, type:", "type:", "must have a name, got"),
        ("dtype: float, type: numeric}", "dtype: float}", "must have a type, got"),
        ("label_col: {name: clk, dtype: float}", "label_col: clk", "label_col: must hold named"),
        ("label_col: {name: clk, dtype: float}", "label_col: {}", "label_col: must have a name"),
        ("data_format: csv", "rebuild_dataset: False", "must be raw csv or parquet"),
        ("num_buckets: 100", "num_buckets: x", "num_buckets: must be a number, got 'x'"),
        ("train_data: ../data/tiny/train.csv", "", "must name train_data, got valid_data, test"),
    ],
)
def test_data_set_of_another_shape_is_refused(
    folder: Path, old: str, new: str, message: str
) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, "DIN_test")


def test_training_data_alone_are_one_log_to_split(folder: Path, tmp_path: Path) -> None:
    path = folder / "dataset_config.yaml"
    lines = [line for line in path.read_text().splitlines() if "tiny/valid" not in line]
    text = "\n".join(line for line in lines if "tiny/test" not in line)
    path.write_text(text.replace("tiny_seq:", "tiny_seq:\n    valid_size: 0.1"))
    imported = fuxictr.read(folder, "DIN_test")

    assert imported.files == tmp_path / "zoo" / "../data/tiny/train.csv"
    assert imported.notes[0].startswith("valid_size = 0.1 is not carried over; see tamis ingest")


def test_missing_data_file_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "tiny" / "test.csv").unlink()

    with pytest.raises(ConfigError, match=r"\.\./data/tiny/test\.csv: must exist beside"):
        fuxictr.read(folder, "DIN_test")
