"""FuxiCTR: ``dataset_config.yaml`` and ``model_config.yaml`` to a schema and a recipe."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tamis.data.schema import Field, Ignored, Roles, Schema, Task
from tamis.errors import ConfigError
from tamis.importers.imported import Imported

_MODELS = {
    "AutoInt": "autoint",
    "BST": "bst",
    "DCNv2": "dcn_v2",
    "DIEN": "dien",
    "DIN": "din",
    "DLRM": "dlrm",
    "DMIN": "dmin",
    "DMR": "dmr",
    "DeepFM": "deepfm",
    "FM": "fm",
    "FinalMLP": "final_mlp",
    "LR": "lr",
    "TransAct": "transact",
    "xDeepFM": "xdeepfm",
}
# FuxiCTR's key and ours; of two keys for one of ours, the model's own stands first.
_KEYS: dict[str, dict[str, str]] = {
    "autoint": {
        "dnn_hidden_units": "hidden_units",
        "attention_layers": "num_layers",
        "num_heads": "num_heads",
        "attention_dim": "attention_dim",
        "use_scale": "scale",
        "layer_norm": "layer_norm",
    },
    "bst": {
        "dnn_hidden_units": "hidden_units",
        "num_heads": "num_heads",
        "stacked_transformer_layers": "num_layers",
        "attention_dropout": "attention_dropout",
        "seq_pooling_type": "pooling",
    },
    "dcn_v2": {
        "parallel_dnn_hidden_units": "hidden_units",
        "stacked_dnn_hidden_units": "hidden_units",
        "num_cross_layers": "num_cross_layers",
        "model_structure": "structure",
    },
    "deepfm": {"hidden_units": "hidden_units"},
    "dien": {"dnn_hidden_units": "hidden_units", "aux_loss_alpha": "auxiliary_weight"},
    "din": {
        "dnn_hidden_units": "hidden_units",
        "attention_hidden_units": "attention_units",
        "attention_hidden_activations": "attention_activation",
        "din_use_softmax": "softmax",
    },
    "dlrm": {"top_mlp_units": "top_units", "bottom_mlp_units": "bottom_units"},
    "dmin": {
        "dnn_hidden_units": "hidden_units",
        "num_heads": "num_heads",
        "attention_hidden_units": "attention_units",
        "attention_activation": "attention_activation",
        "pos_emb_dim": "position_dim",
        "aux_loss_lambda": "auxiliary_weight",
    },
    "dmr": {
        "dnn_hidden_units": "hidden_units",
        "attention_dim": "attention_dim",
        "aux_loss_beta": "auxiliary_weight",
        "neg_seq_len": "num_negatives",
    },
    "final_mlp": {
        "mlp1_hidden_units": "first_units",
        "mlp2_hidden_units": "second_units",
        "mlp1_dropout": "first_dropout",
        "mlp2_dropout": "second_dropout",
        "use_fs": "gating",
        "fs_hidden_units": "gate_units",
        "num_heads": "num_heads",
    },
    "transact": {
        "dnn_hidden_units": "hidden_units",
        "num_heads": "num_heads",
        "transformer_layers": "num_layers",
        "dim_feedforward": "feed_forward",
        "first_k_cols": "recent_tokens",
        "dcn_cross_layers": "num_cross_layers",
    },
    "xdeepfm": {"dnn_hidden_units": "hidden_units", "cin_hidden_units": "cin_maps"},
}
_ACTIVATIONS = {"relu": "relu", "leakyrelu": "leaky_relu", "dice": "dice", "tanh": "tanh"}
# Keys that say how FuxiCTR runs, not what it computes.
_ELSEWHERE = {
    *("model", "dataset_id", "model_root", "num_workers", "verbose", "pickle_feature_encoder"),
    *("save_best_only", "debug_mode", "group_id", "use_features", "feature_specs", "metrics"),
    *("feature_config", "shuffle", "monitor_mode", "model_id", "gpu", "version", "task", "loss"),
    *("optimizer", "learning_rate", "batch_size", "epochs", "seed", "early_stop_patience"),
    *("monitor", "embedding_dim", "net_dropout", "batch_norm", "dnn_activations", "eval_steps"),
    *("embedding_regularizer", "net_regularizer", "low_rank", "num_experts", "tuner_space"),
    *("use_low_rank_mixture", "din_target_field", "din_sequence_field", "every_x_epochs"),
    *("base_config", "base_expid", "partition_block_size", "hidden_activations", "mlp1_batch_norm"),
}


def read(folder: Path, experiment: str) -> Imported:
    """Read an experiment from FuxiCTR's folder of configs.

    Args:
        folder: Holds ``dataset_config.yaml`` and ``model_config.yaml``, as FuxiCTR's ``--config``.
        experiment: Name in ``model_config.yaml``, as FuxiCTR's ``--expid``; the name of a data set
            in ``dataset_config.yaml`` gives a schema without a recipe.

    Raises:
        ConfigError: A file or an entry is missing, or the experiment needs what tamis has not.
    """
    datasets = _yaml(folder / "dataset_config.yaml")
    if experiment in datasets:
        files, schema, notes = _dataset(folder, experiment, datasets[experiment], model={})
        return Imported(files=files, schema=schema, notes=tuple(notes))
    models = _yaml(folder / "model_config.yaml")
    if experiment not in models:
        raise ConfigError(
            f"{folder}: must hold the experiment, got {experiment!r}. It holds "
            f"{', '.join(sorted({*models, *datasets} - {'Base'}))}."
        )
    model = {**models.get("Base", {}), **models[experiment]}
    name = model.get("dataset_id")
    if name not in datasets:
        raise ConfigError(
            f"{folder / 'dataset_config.yaml'}: must hold the data set {name!r} of experiment "
            f"{experiment!r}, got {', '.join(datasets)}."
        )
    files, schema, notes = _dataset(folder, name, datasets[name], model=model)
    recipe = _recipe(model, notes)
    return Imported(files=files, schema=schema, recipe=recipe, notes=tuple(notes))


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: must be a readable file, got {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: must be YAML, got {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold named entries, got {type(found).__name__}.")
    return found


def _dataset(
    folder: Path, name: str, entry: Mapping[str, Any], *, model: Mapping[str, Any]
) -> tuple[dict[str, Path], Schema, list[str]]:
    notes: list[str] = []
    if entry.get("data_format", "csv") not in ("csv", "parquet"):
        raise ConfigError(
            f"data set {name!r}: data_format must be csv or parquet, got "
            f"{entry['data_format']!r}, which FuxiCTR has encoded already. Name the raw files."
        )
    if "feature_cols" not in entry or "label_col" not in entry:
        raise ConfigError(
            f"data set {name!r}: must list feature_cols and label_col, got "
            f"{', '.join(entry)}. They may stand in a feature map that FuxiCTR wrote; name the "
            f"set that it was made from."
        )
    groups = _groups(model)
    fields, ignored, meta = [], [], []
    for column in _columns(entry["feature_cols"]):
        if not column.get("active", True):
            ignored.append(Ignored(column=column["name"], reason="inactive in FuxiCTR"))
        elif column["type"] == "meta":
            meta.append(column["name"])
        else:
            fields.append(_field(column, entry, groups, notes))
    user = model.get("group_id") or (meta[0] if meta else "")
    labels = entry["label_col"]
    tasks = tuple(
        Task(name=label["name"]) for label in (labels if isinstance(labels, list) else [labels])
    )
    ignored += [Ignored(column=other, reason="meta in FuxiCTR") for other in meta if other != user]
    schema = Schema(
        fields=tuple(fields), tasks=tasks, roles=Roles(user=user), ignored=tuple(ignored)
    )
    files = {
        split: _found(folder, str(entry[key]))
        for split, key in (("train", "train_data"), ("valid", "valid_data"), ("test", "test_data"))
        if entry.get(key)
    }
    return files, schema, notes


def _columns(entries: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One entry for each column; FuxiCTR lets columns of one kind share an entry."""
    for entry in entries:
        names = entry["name"] if isinstance(entry["name"], list) else [entry["name"]]
        for name in names:
            yield {**entry, "name": name}


def _field(
    column: Mapping[str, Any],
    entry: Mapping[str, Any],
    groups: Mapping[str, str],
    notes: list[str],
) -> Field:
    name, kind = column["name"], column["type"]
    for key in ("pretrained_emb", "embedding_dim", "preprocess", "fill_na"):
        if column.get(key) not in (None, ""):
            notes.append(f"{name}: {key} = {column[key]!r} is not carried over.")
    shares = column.get("share_embedding") or ""
    if kind == "numeric":
        normalizer = column.get("normalizer") or ""
        if normalizer not in ("", "StandardScaler"):
            notes.append(f"{name}: normalizer {normalizer} became standardisation.")
        if column.get("category_encoder") == "quantile_bucket":
            return Field(
                name=name,
                kind="numeric",
                transform="bucket",
                num_buckets=int(column.get("num_buckets", 10)),
            )
        return Field(name=name, kind="numeric", transform="standardise" if normalizer else "none")
    is_hashed = column.get("category_encoder") == "hash_bucket"
    common: dict[str, Any] = {
        "name": name,
        "min_count": 1 if shares else _min_count(column, entry),
        "shares": shares,
    }
    if is_hashed and not shares:
        common |= {"encoding": "hashing", "num_buckets": int(column["num_buckets"])}
    if kind == "sequence":
        return Field(
            kind="sequence",
            separator=column.get("splitter") or " ",
            max_length=int(column.get("max_len") or 50),
            group=groups.get(name, ""),
            **common,
        )
    if kind != "categorical":
        raise ConfigError(
            f"{name}: type must be categorical, numeric, sequence or meta, got {kind!r}."
        )
    return Field(kind="categorical", **common)


def _min_count(column: Mapping[str, Any], entry: Mapping[str, Any]) -> int:
    return max(1, int(column.get("min_categr_count", entry.get("min_categr_count", 1))))


def _groups(model: Mapping[str, Any]) -> dict[str, str]:
    """Sequences that a model reads together, as in ``[[item_history, cate_history]]``."""
    groups: dict[str, str] = {}
    for number, fields in enumerate(model.get("din_sequence_field") or []):
        if isinstance(fields, list):
            groups |= dict.fromkeys(fields, f"history{number or ''}")
    return groups


def _found(folder: Path, path: str) -> Path:
    """A data file: FuxiCTR is started beside its folder of configs, or elsewhere."""
    places = [folder.parent / path, folder / path, Path(path)]
    for place in places:
        if place.exists():
            return place
    raise ConfigError(
        f"{path}: must exist beside {folder}, in it or here, got no such file. Fetch the data, or "
        f"mend the path."
    )


def _recipe(model: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    kind = model.get("model")
    if kind not in _MODELS:
        raise ConfigError(
            f"model: must be one of {', '.join(_MODELS)}, got {kind!r}. Import the data set by its "
            f"own name and choose a model of tamis."
        )
    name = _MODELS[kind]
    settings: dict[str, Any] = {"name": name}
    if name != "lr":
        settings["embedding_dim"] = int(model.get("embedding_dim", 16))
        settings["init_std"] = 1e-4  # FuxiCTR's
    keys = _KEYS.get(name, {})
    for key, ours in keys.items():
        if key in model and model[key] is not None and ours not in settings:
            settings[ours] = _value(key, model[key], notes)
    if name not in ("lr", "fm"):
        settings |= _head(name, model, notes)
    if name == "dcn_v2":
        if settings.get("structure") not in (None, "parallel", "stacked"):
            raise ConfigError(
                f"model_structure: must be parallel or stacked, got {settings['structure']!r}."
            )
        if settings.get("structure") == "stacked":
            settings["hidden_units"] = list(model["stacked_dnn_hidden_units"])
        if model.get("use_low_rank_mixture"):
            settings |= {"rank": model["low_rank"], "num_experts": model["num_experts"]}
    notes += [
        f"{key} = {value!r} has no counterpart in {name}."
        for key, value in model.items()
        if key not in _ELSEWHERE and key not in keys and value not in (None, "", 0, False)
    ]
    return {"model": settings, **_training(model, notes)}


def _head(name: str, model: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    activation = model.get("dnn_activations", model.get("hidden_activations", "relu"))
    head = {"activation": _value("dnn_activations", activation, notes)}
    is_normed = model.get("batch_norm") or model.get("mlp1_batch_norm")
    head["norm"] = "batch" if is_normed else "none"
    if name != "final_mlp":
        head["dropout"] = float(model.get("net_dropout") or 0.0)
    return head


def _value(key: str, value: Any, notes: list[str]) -> Any:  # noqa: ANN401  (values of YAML)
    if "activation" in key:
        known = _ACTIVATIONS.get(str(value).lower())
        if known is None:
            notes.append(f"{key} = {value!r} became relu.")
        return known or "relu"
    return value


def _training(model: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if str(model.get("optimizer", "adam")).lower() != "adam":
        notes.append(f"optimizer = {model['optimizer']!r} became Adam.")
    if _coefficient(model.get("net_regularizer"), notes):
        notes.append(
            f"net_regularizer = {model['net_regularizer']!r} is not carried over: tamis decays "
            f"dense weights apart from the gradient (optimizer.dense_weight_decay)."
        )
    rate = float(model.get("learning_rate", 1e-3))
    monitor = model.get("monitor", "AUC")
    first = next(iter(monitor)) if isinstance(monitor, Mapping) else monitor
    return {
        "optimizer": {
            "embedding": "adam",
            "embedding_lr": rate,
            "embedding_l2": _coefficient(model.get("embedding_regularizer"), notes),
            "dense_lr": rate,
        },
        "schedule": {"plateau_factor": 0.1},
        "training": {
            "batch_size": int(model.get("batch_size", 4096)),
            "max_epochs": int(model.get("epochs", 100)),
            "patience": int(model.get("early_stop_patience", 2)),
            "seed": int(model.get("seed", 0)),
            "monitor": "log_loss" if first == "logloss" else "auc",
        },
    }


def _coefficient(value: Any, notes: list[str]) -> float:  # noqa: ANN401  (values of YAML)
    """The L2 coefficient of ``0.1`` or ``l2(0.1)``."""
    if value in (None, ""):
        return 0.0
    text = str(value).strip().lower()
    if text.startswith("l2(") and text.endswith(")"):
        text = text[3:-1]
    try:
        return float(text)
    except ValueError:
        notes.append(f"regularizer {value!r} is not carried over.")
        return 0.0
