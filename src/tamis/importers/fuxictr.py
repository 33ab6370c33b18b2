"""FuxiCTR: ``dataset_config.yaml`` and ``model_config.yaml`` to a schema and a recipe.

Meanings are those of FuxiCTR 2.3. Whatever has no counterpart here becomes a note, and so does a
setting that the file leaves to FuxiCTR's default where tamis has another.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tamis.data.schema import Field, Ignored, Roles, Schema, Task, free_names, with_free_names
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
# FuxiCTR's key, ours, and FuxiCTR's default where it is not ours.
_KEYS: dict[str, dict[str, tuple[str, Any]]] = {
    "autoint": {
        "dnn_hidden_units": ("hidden_units", [64, 64, 64]),
        "attention_layers": ("num_layers", 2),
        "num_heads": ("num_heads", 1),
        "attention_dim": ("attention_dim", 8),
        "use_scale": ("scale", False),
        "layer_norm": ("layer_norm", False),
    },
    "bst": {
        "dnn_hidden_units": ("hidden_units", [256, 128, 64]),
        "num_heads": ("num_heads", 2),
        "stacked_transformer_layers": ("num_layers", 1),
        "attention_dropout": ("attention_dropout", 0.0),
        "seq_pooling_type": ("pooling", "mean"),
    },
    "dcn_v2": {"num_cross_layers": ("num_cross_layers", 3)},
    "deepfm": {"hidden_units": ("hidden_units", [64, 64, 64])},
    "dien": {
        "dnn_hidden_units": ("hidden_units", [200, 80]),
        "aux_loss_alpha": ("auxiliary_weight", 0.0),
    },
    "din": {
        "dnn_hidden_units": ("hidden_units", [512, 128, 64]),
        "attention_hidden_units": ("attention_units", [64]),
        "attention_hidden_activations": ("attention_activation", "Dice"),
        "din_use_softmax": ("softmax", False),
    },
    "dlrm": {
        "top_mlp_units": ("top_units", [64, 64, 64]),
        "bottom_mlp_units": ("bottom_units", [64, 64, 64]),
    },
    "dmin": {
        "dnn_hidden_units": ("hidden_units", [512, 128, 64]),
        "num_heads": ("num_heads", 4),
        "attention_hidden_units": ("attention_units", [80, 40]),
        "attention_activation": ("attention_activation", "ReLU"),
        "pos_emb_dim": ("position_dim", 8),
        "aux_loss_lambda": ("auxiliary_weight", 0.0),
    },
    "dmr": {
        "dnn_hidden_units": ("hidden_units", [512, 128, 64]),
        "aux_loss_beta": ("auxiliary_weight", 0.0),
    },
    "final_mlp": {
        "mlp1_hidden_units": ("first_units", [64, 64, 64]),
        "mlp2_hidden_units": ("second_units", [64, 64, 64]),
        "mlp1_dropout": ("first_dropout", 0.0),
        "mlp2_dropout": ("second_dropout", 0.0),
        "use_fs": ("gating", True),
        "fs_hidden_units": ("gate_units", [64]),
        "fs1_context": ("first_context", []),
        "fs2_context": ("second_context", []),
        "num_heads": ("num_heads", 1),
    },
    "transact": {
        "mlp_hidden_units": ("hidden_units", []),
        "num_heads": ("num_heads", 1),
        "transformer_layers": ("num_layers", 1),
        "transformer_dropout": ("attention_dropout", 0.0),
        "dim_feedforward": ("feed_forward", 512),
        "first_k_cols": ("recent_tokens", 1),
        "dcn_cross_layers": ("num_cross_layers", 3),
    },
    "xdeepfm": {
        "dnn_hidden_units": ("hidden_units", [64, 64, 64]),
        "cin_hidden_units": ("cin_maps", [16, 16, 16]),
    },
}
# Where FuxiCTR's default is neither 10 nor ReLU.
_EMBEDDING_DIMS = {"dien": 16, "transact": 64}
_HEAD_ACTIVATIONS = {"dmin": "Dice"}
_ACTIVATIONS = {
    "relu": "relu",
    "leakyrelu": "leaky_relu",
    "leaky_relu": "leaky_relu",
    "dice": "dice",
    "tanh": "tanh",
}
# Keys that say where and how FuxiCTR runs, not what it computes, and those read below.
_ELSEWHERE = {
    *("model", "model_id", "model_root", "dataset_id", "base_config", "base_expid", "tuner_space"),
    *("num_workers", "verbose", "pickle_feature_encoder", "debug_mode", "gpu"),
    *("feature_config", "monitor_mode", "version", "metrics", "partition_block_size"),
    *("task", "loss", "optimizer", "learning_rate", "batch_size", "epochs", "seed", "monitor"),
    *("early_stop_patience", "reduce_lr_on_plateau", "embedding_dim", "net_dropout", "batch_norm"),
    *("dnn_activations", "hidden_activations", "embedding_regularizer", "net_regularizer"),
    *("group_id", "use_features", "low_rank", "num_experts", "use_low_rank_mixture"),
    *("model_structure", "parallel_dnn_hidden_units", "stacked_dnn_hidden_units"),
    *("mlp1_batch_norm", "mlp2_batch_norm", "mlp1_hidden_activations", "top_mlp_dropout"),
    *("top_mlp_activations", "din_sequence_field", "bst_sequence_field", "dien_sequence_field"),
    *("sequence_field", "sequence_item_field", "din_target_field", "bst_target_field"),
    *("dien_target_field", "target_field", "target_item_field", "dcn_hidden_units"),
}
# What other keys must be to change nothing: it is how tamis computes.
_AS_HERE: dict[str, Any] = {
    "attention_dropout": 0,
    "use_residual": True,
    "use_position_emb": True,
    "use_pos_emb": True,
    "use_attention_softmax": True,
    "use_behavior_refiner": True,
    "concat_max_pool": True,
    "use_wide": False,
    "use_time_window_mask": False,
    "attention_output_activation": None,
    "eval_steps": None,
    "feature_specs": None,
    "every_x_epochs": 1,
    "save_best_only": True,
    "shuffle": True,
}
_USER_NAMES = ("user_id", "userid", "uid")
_SEQUENCE_KEYS = (
    *("din_sequence_field", "bst_sequence_field", "dien_sequence_field"),
    *("sequence_field", "sequence_item_field"),
)


class _Loader(yaml.SafeLoader):
    """YAML without objects, but with the tuples that published configs hold."""


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def read(folder: Path, experiment: str) -> Imported:
    """Read an experiment from FuxiCTR's folder of configs.

    Args:
        folder: Holds ``dataset_config.yaml`` and ``model_config.yaml``, as FuxiCTR's ``--config``.
        experiment: Name in ``model_config.yaml``, as FuxiCTR's ``--expid``; the name of a data set
            in ``dataset_config.yaml`` gives a schema without a recipe.

    Raises:
        ConfigError: A file or an entry is missing or of another shape, or the experiment needs what
            tamis has not.
    """
    of_datasets, of_models = folder / "dataset_config.yaml", folder / "model_config.yaml"
    datasets = _yaml(of_datasets)
    if experiment in datasets:
        with _blamed_on(of_datasets):
            files, schema, notes = _dataset(folder, experiment, datasets[experiment], model={})
        return Imported(files=files, schema=schema, notes=tuple(notes))
    models = _yaml(of_models)
    if experiment not in models:
        raise ConfigError(
            f"{folder}: must hold the experiment, got {experiment!r}. It holds "
            f"{', '.join(sorted({*models, *datasets} - {'Base'}))}."
        )
    base = models.get("Base") or {}
    model = {**_table(base, "Base"), **_table(models[experiment], experiment)}
    name = model.get("dataset_id")
    if not isinstance(name, str) or name not in datasets:
        raise ConfigError(
            f"{of_datasets}: must hold the data set {name!r} of experiment "
            f"{experiment!r}, got {', '.join(datasets)}."
        )
    with _blamed_on(of_datasets):
        files, schema, notes = _dataset(folder, name, datasets[name], model=model)
    with _blamed_on(of_models, experiment):
        recipe = _recipe(model, notes)
    free = free_names(field.source for field in schema.fields)
    for key in {"first_context", "second_context"} & recipe["model"].keys():
        recipe["model"][key] = [free.get(other, other) for other in recipe["model"][key]]
    return Imported(files=files, schema=schema, recipe=recipe, notes=tuple(notes))


@contextlib.contextmanager
def _blamed_on(*where: Path | str) -> Iterator[None]:
    """Put the file, and perhaps an entry of it, before what is wrong in it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{': '.join(map(str, where))}: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: must be a readable file, got {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: must be YAML, got {error}.") from error
    return dict(_table(found, str(path)))


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must hold named entries, got {value!r}.")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: must be a list, got {value!r}.")
    return value


def _number(table: Mapping[str, Any], key: str, default: float) -> float:
    """A number of a table; null and an absent key take the default."""
    value = table.get(key)
    try:
        return float(default if value is None else value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: must be a number, got {value!r}. Mend it.") from None


def _dataset(
    folder: Path, name: str, entry: object, *, model: Mapping[str, Any]
) -> tuple[Path | dict[str, Path], Schema, list[str]]:
    notes: list[str] = []
    table = _table(entry, f"data set {name!r}")
    encoded = table.get("data_format", "csv") not in ("csv", "parquet")
    if encoded or table.get("rebuild_dataset") is False:
        what = table["data_format"] if encoded else "rebuild_dataset: False"
        raise ConfigError(
            f"data set {name!r}: must be raw csv or parquet, got {what!r}, which FuxiCTR has "
            f"encoded already. Name the raw files."
        )
    if "feature_cols" not in table or "label_col" not in table:
        raise ConfigError(
            f"data set {name!r}: must list feature_cols and label_col, got "
            f"{', '.join(table)}. They may stand in a feature map that FuxiCTR wrote; name the "
            f"set that it was made from."
        )
    for key in ("valid_size", "test_size"):
        if table.get(key):
            notes.append(f"{key} = {table[key]!r} is not carried over; see tamis ingest --split.")
    groups, wanted = _groups(model), model.get("use_features")
    fields, ignored, meta = [], [], {}
    columns = list(_columns(table["feature_cols"]))
    owners = {
        column["name"]
        for column in columns
        if column["type"] == "categorical" and not column.get("share_embedding")
        if column.get("active", True) and (not wanted or column["name"] in wanted)
    }
    for column in columns:
        source = _copied(column.get("preprocess"))
        if not column.get("active", True):
            ignored.append(Ignored(column=column["name"], reason="inactive in FuxiCTR"))
        elif column["type"] == "meta":
            meta[column["name"]] = source or column["name"]
        elif wanted and column["name"] not in wanted:
            ignored.append(Ignored(column=column["name"], reason="not among use_features"))
        else:
            with _blamed_on(f"column {column['name']!r}"):
                fields.append(_field(column, table, source, groups, owners, notes))
    numeric = [field.name for field in fields if field.kind == "numeric" and not field.is_category]
    if numeric:
        notes.append(
            f"{', '.join(numeric)}: FuxiCTR takes a missing number for 0 where fill_na says "
            f"nothing else; tamis takes the mean of the training rows."
        )
    user = _user(meta, model, notes)
    read = {field.source for field in fields}
    ignored += [
        Ignored(column=other, reason="meta in FuxiCTR")
        for other in meta.values()
        if other != user and other not in read
    ]
    schema = Schema(
        fields=with_free_names(fields),
        tasks=_tasks(table["label_col"], model),
        roles=Roles(user=user),
        ignored=tuple(ignored),
    )
    files = {
        split: _found(folder, str(table[key]))
        for split, key in (("train", "train_data"), ("valid", "valid_data"), ("test", "test_data"))
        if table.get(key)
    }
    if "train" not in files:
        got = ", ".join(f"{split}_data" for split in files) or "none"
        raise ConfigError(f"data set {name!r}: must name train_data, got {got}. Name its file.")
    # One log is split as any is, which valid_size and test_size ask for.
    return files["train"] if len(files) == 1 else files, schema, notes


def _user(meta: Mapping[str, str], model: Mapping[str, Any], notes: list[str]) -> str:
    """Column of the user: what the model groups by, else a meta column that is named like one.

    Other meta columns are days or ids of rows: a metric by user over them would mean nothing.
    """
    group = model.get("group_id")
    if group:
        return meta.get(group, group)
    named = [source for source in meta.values() if source.lower() in _USER_NAMES]
    if named:
        notes.append(f"{named[0]}: no group_id says who the user is; it is taken by its name.")
        return named[0]
    if meta:
        notes.append(
            f"no group_id says who the user is, nor is a meta column ({', '.join(meta)}) named "
            f"like one; set roles.user of the schema for metrics by user."
        )
    return ""


def _tasks(labels: object, model: Mapping[str, Any]) -> tuple[Task, ...]:
    kinds = model.get("task", "binary_classification")
    found = []
    for place, label in enumerate(labels if isinstance(labels, list) else [labels]):
        table = _table(label, "label_col")
        if "name" not in table:
            raise ConfigError(f"label_col: must have a name, got {dict(table)!r}.")
        kind = kinds[place] if isinstance(kinds, list) and place < len(kinds) else kinds
        is_regression = str(kind) == "regression"
        found.append(
            Task(name=str(table["name"]), kind="regression" if is_regression else "binary")
        )
    return tuple(found)


def _columns(entries: object) -> Iterator[dict[str, Any]]:
    """One entry for each column; FuxiCTR lets columns of one kind share an entry."""
    for entry in _list(entries, "feature_cols"):
        table = _table(entry, "feature_cols")
        missing = [key for key in ("name", "type") if key not in table]
        if missing:
            raise ConfigError(
                f"feature_cols: must have a {' and a '.join(missing)}, got {dict(table)!r}."
            )
        names = table["name"] if isinstance(table["name"], list) else [table["name"]]
        for name in names:
            yield {**table, "name": str(name)}


def _copied(preprocess: object) -> str:
    """The column of FuxiCTR's ``copy_from(column)``."""
    found = re.fullmatch(r"copy_from\((.+)\)", str(preprocess or "").strip())
    return found.group(1) if found else ""


def _field(
    column: Mapping[str, Any],
    table: Mapping[str, Any],
    source: str,
    groups: Mapping[str, str],
    owners: Collection[str],
    notes: list[str],
) -> Field:
    name, kind = column["name"], column["type"]
    for key in ("pretrained_emb", "embedding_dim", "preprocess", "fill_na", "na_value"):
        if column.get(key) not in (None, "") and not (key == "preprocess" and source):
            notes.append(f"{name}: {key} = {column[key]!r} is not carried over.")
    encoder = column.get("feature_encoder")
    if encoder not in (None, "null", "None", "none", "layers.MaskedAveragePooling()"):
        notes.append(f"{name}: feature_encoder = {encoder!r} is not carried over.")
    common: dict[str, Any] = {"name": name, "column": source}
    if kind == "numeric":
        normalizer = column.get("normalizer") or ""
        if normalizer not in ("", "StandardScaler"):
            notes.append(f"{name}: normalizer {normalizer} became standardisation.")
        transform = "standardise" if normalizer else "none"
        return Field(kind="numeric", transform=transform, **common)  # type: ignore[arg-type]
    processor = column.get("category_processor") or column.get("category_encoder")
    shares = column.get("share_embedding") or ""
    if shares and shares not in owners:
        notes.append(
            f"{name}: there is no categorical input {shares} with a table that it could share; it "
            f"has its own."
        )
        shares = ""
    if processor == "quantile_bucket":
        buckets = int(_number(column, "num_buckets", _number(table, "num_buckets", 10)))
        return Field(kind="numeric", transform="bucket", num_buckets=buckets, **common)
    common |= {
        "min_count": 1
        if shares
        else max(
            1, int(_number(column, "min_categr_count", _number(table, "min_categr_count", 1)))
        ),
        "shares": str(shares),
    }
    if processor == "hash_bucket" and not shares:
        buckets = int(_number(column, "num_buckets", _number(table, "num_buckets", 10)))
        common |= {"encoding": "hashing", "num_buckets": buckets}
    if kind == "sequence":
        longest = int(_number(column, "max_len", 0))
        if longest < 1:
            longest = 50
            notes.append(f"{name}: max_len is left to FuxiCTR, which takes the longest; it is 50.")
        if column.get("padding", "post") == "post":
            notes.append(
                f"{name}: padding post makes FuxiCTR keep the first {longest} events of a longer "
                f"history; tamis keeps the last."
            )
        return Field(
            kind="sequence",
            separator=str(column.get("splitter") or "^"),
            max_length=longest,
            group=groups.get(name, ""),
            **common,
        )
    if kind != "categorical":
        raise ConfigError(
            f"type: must be categorical, numeric, sequence or meta, got {kind!r}. Mend it."
        )
    return Field(kind="categorical", **common)


def _groups(model: Mapping[str, Any]) -> dict[str, str]:
    """Sequences that a model reads together, as in ``[!!python/tuple [item_his, cate_his]]``."""
    groups: dict[str, str] = {}
    for key in _SEQUENCE_KEYS:
        fields = model.get(key)
        if isinstance(fields, tuple):
            fields = [fields]
        for number, together in enumerate(fields if isinstance(fields, list) else []):
            if isinstance(together, list | tuple):
                groups |= {str(name): f"history{number or ''}" for name in together}
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
    if not isinstance(kind, str) or kind not in _MODELS:
        raise ConfigError(
            f"model: must be one of {', '.join(_MODELS)}, got {kind!r}. Import the data set by its "
            f"own name and choose a model of tamis."
        )
    name = _MODELS[kind]
    settings: dict[str, Any] = {"name": name}
    if name != "lr":
        default_dim = _EMBEDDING_DIMS.get(name, 10)
        settings["embedding_dim"] = int(_number(model, "embedding_dim", default_dim))
        settings["init_std"] = 1e-4  # FuxiCTR's
    keys = _KEYS.get(name, {})
    for key, (ours, default) in keys.items():
        value = model.get(key, default)
        if value is None:  # no layers, where it is a list of them
            value = [] if isinstance(default, list) else default
        settings[ours] = _value(key, value, notes)
    if name == "transact":
        settings["hidden_units"] = _widths_of_transact(model, settings["hidden_units"], notes)
    if name == "xdeepfm":
        settings["split_half"] = False
    if name == "dcn_v2":
        settings |= _cross(model)
    if name not in ("lr", "fm"):
        settings |= _head(name, model, notes)
    for key, value in model.items():
        is_known = key in _ELSEWHERE or key in keys
        if not is_known and value not in (None, "") and value != _AS_HERE.get(key, object()):
            notes.append(f"{key} = {value!r} has no counterpart in {name}.")
    return {"model": settings, **_training(model, notes)}


def _widths_of_transact(model: Mapping[str, Any], on_top: list[int], notes: list[str]) -> list[int]:
    """Widths of the one MLP: FuxiCTR's after the cross layers or, without it, that beside them."""
    beside = model.get("dcn_hidden_units") or [256, 128, 64]
    if on_top:
        notes.append(f"dcn_hidden_units = {beside!r} has no counterpart in transact.")
        return on_top
    notes.append(
        f"dcn_hidden_units = {beside!r} became hidden_units: the network that FuxiCTR has beside "
        f"the cross layers follows them."
    )
    return list(beside)


def _cross(model: Mapping[str, Any]) -> dict[str, Any]:
    structure = model.get("model_structure") or "parallel"
    if structure not in ("parallel", "stacked"):
        raise ConfigError(f"model_structure: must be parallel or stacked, got {structure!r}.")
    units = model.get(f"{structure}_dnn_hidden_units")
    settings = {"structure": structure, "hidden_units": [] if units is None else units}
    if model.get("use_low_rank_mixture"):
        settings |= {
            "rank": int(_number(model, "low_rank", 32)),
            "num_experts": int(_number(model, "num_experts", 4)),
        }
    return settings


def _head(name: str, model: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    own = {"final_mlp": "mlp1_hidden_activations", "dlrm": "top_mlp_activations"}
    keys = (own.get(name, ""), "dnn_activations", "hidden_activations")
    set_here = (model[key] for key in keys if model.get(key))
    activation = next(set_here, _HEAD_ACTIVATIONS.get(name, "relu"))
    default = name in ("dien", "dmin", "dmr")  # as in FuxiCTR
    norms = [model.get(key) for key in ("batch_norm", "mlp1_batch_norm")]
    is_normed = next((bool(norm) for norm in norms if norm is not None), default)
    second = model.get("mlp2_batch_norm")
    if name == "final_mlp" and second is not None and bool(second) != is_normed:
        notes.append(f"mlp2_batch_norm = {second!r} became that of the first MLP.")
    head: dict[str, Any] = {
        "activation": _value("dnn_activations", activation, notes),
        "norm": "batch" if is_normed else "none",
    }
    if name != "final_mlp":
        key = "top_mlp_dropout" if name == "dlrm" and "top_mlp_dropout" in model else "net_dropout"
        head["dropout"] = _number(model, key, 0.0)
    return head


def _value(key: str, value: Any, notes: list[str]) -> Any:  # noqa: ANN401  (values of YAML)
    if "activation" in key:
        known = _ACTIVATIONS.get(str(value).lower())
        if known is None:
            notes.append(f"{key} = {value!r} became relu.")
        return known or "relu"
    return list(value) if isinstance(value, tuple) else value


def _training(model: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if str(model.get("optimizer", "adam")).lower() != "adam":
        notes.append(f"optimizer = {model['optimizer']!r} became Adam.")
    rate = _number(model, "learning_rate", 1e-3)
    reduces = model.get("reduce_lr_on_plateau", True)
    return {
        "optimizer": {
            "embedding": "adam",
            "embedding_lr": rate,
            "embedding_l2": _coefficient(model.get("embedding_regularizer"), notes),
            "dense_lr": rate,
            "dense_l2": _coefficient(model.get("net_regularizer"), notes),
            "clip_norm": 10.0,  # FuxiCTR's
        },
        "schedule": {"plateau_factor": 0.1 if reduces else 1.0},
        "training": {
            "batch_size": int(_number(model, "batch_size", 100)),
            "max_epochs": int(_number(model, "epochs", 1)),
            "patience": int(_number(model, "early_stop_patience", 2)),
            "seed": int(_number(model, "seed", 0)),
            "monitor": _monitor(model.get("monitor", "AUC"), notes),
            "min_improvement": 1e-6,  # FuxiCTR's
        },
    }


def _monitor(monitor: object, notes: list[str]) -> str:
    """AUC or log loss; FuxiCTR also adds metrics up, and knows gAUC."""
    names = [str(name) for name in monitor] if isinstance(monitor, Mapping | list) else [monitor]
    found = "log_loss" if names == ["logloss"] else "auc"
    if names not in (["logloss"], ["AUC"]):
        notes.append(f"monitor = {monitor!r} became {found}.")
    return found


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
