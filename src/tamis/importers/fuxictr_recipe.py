"""An experiment of FuxiCTR as a recipe, with a note for what has no counterpart here."""

from collections.abc import Mapping
from typing import Any

from tamis.errors import ConfigError
from tamis.importers.fuxictr_config import number

MODELS = {
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
"""FuxiCTR's models and ours."""
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
_CROSS_ENTROPY = ("bce", "binary_crossentropy", "binary_cross_entropy")
_SQUARED_ERROR = ("mse_loss",)
# Keys that say where and how FuxiCTR runs, not what it computes, and those read below.
_ELSEWHERE = {
    *("model", "model_id", "model_root", "dataset_id", "base_config", "base_expid", "tuner_space"),
    *("num_workers", "verbose", "pickle_feature_encoder", "debug_mode", "gpu"),
    *("feature_config", "monitor_mode", "version", "metrics", "partition_block_size"),
    *("task", "loss", "optimizer", "learning_rate", "batch_size", "epochs", "seed", "monitor"),
    *("early_stop_patience", "reduce_lr_on_plateau", "embedding_dim", "net_dropout", "batch_norm"),
    *("dnn_activations", "hidden_activations", "embedding_regularizer", "net_regularizer"),
    *("group_id", "use_features", "low_rank", "num_experts", "use_low_rank_mixture"),
    *("max_gradient_norm",),
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


def read_recipe(model: Mapping[str, Any], notes: list[str], *, has_user: bool) -> dict[str, Any]:
    """Model and training of an experiment's settings; adds to ``notes``.

    Args:
        model: The settings.
        notes: What has no counterpart.
        has_user: Whether the data say who the user is.

    Raises:
        ConfigError: The model is none of tamis, or a setting is of another kind.
    """
    kind = model.get("model")
    if not isinstance(kind, str) or kind not in MODELS:
        raise ConfigError(
            f"model: must be one of {', '.join(MODELS)}, got {kind!r}. Import the data set by its "
            f"own name and choose a model of tamis."
        )
    name = MODELS[kind]
    settings: dict[str, Any] = {"name": name}
    if name != "lr":
        default_dim = _EMBEDDING_DIMS.get(name, 10)
        settings["embedding_dim"] = int(number(model, "embedding_dim", default_dim))
        settings["init_std"] = 1e-4  # FuxiCTR's
    keys = _KEYS.get(name, {})
    for key, (ours, default) in keys.items():
        settings[ours] = _setting(model, key, default, notes)
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
    return {"model": settings, **_training(model, notes, has_user=has_user)}


def _widths_of_transact(model: Mapping[str, Any], on_top: list[int], notes: list[str]) -> list[int]:
    """Widths of the one MLP: FuxiCTR's after the cross layers or, without it, that beside them."""
    beside = _widths("dcn_hidden_units", model.get("dcn_hidden_units") or [256, 128, 64])
    if on_top:
        notes.append(f"dcn_hidden_units = {beside!r} has no counterpart in transact.")
        return on_top
    notes.append(
        f"dcn_hidden_units = {beside!r} became hidden_units: the network that FuxiCTR has beside "
        f"the cross layers follows them."
    )
    return beside


def _cross(model: Mapping[str, Any]) -> dict[str, Any]:
    structure = model.get("model_structure") or "parallel"
    if structure not in ("parallel", "stacked"):
        raise ConfigError(f"model_structure: must be parallel or stacked, got {structure!r}.")
    key = f"{structure}_dnn_hidden_units"
    settings = {"structure": structure, "hidden_units": _widths(key, model.get(key) or [])}
    if model.get("use_low_rank_mixture"):
        settings |= {
            "rank": int(number(model, "low_rank", 32)),
            "num_experts": int(number(model, "num_experts", 4)),
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
        "activation": _activation("dnn_activations", activation, notes),
        "norm": "batch" if is_normed else "none",
    }
    if name != "final_mlp":
        key = "top_mlp_dropout" if name == "dlrm" and "top_mlp_dropout" in model else "net_dropout"
        head["dropout"] = _dropout(key, model.get(key), notes)
    return head


def _setting(
    model: Mapping[str, Any],
    key: str,
    default: Any,  # noqa: ANN401
    notes: list[str],
) -> Any:  # noqa: ANN401  (values of YAML)
    """A setting, of the kind of its default; null is no layers where that is a list of them."""
    value = model.get(key, default)
    if value is None:
        value = [] if isinstance(default, list) else default
    if "activation" in key:
        return _activation(key, value, notes)
    if key.endswith("_units"):
        return _widths(key, value)
    if key.endswith("_dropout"):
        return _dropout(key, value, notes)
    if isinstance(default, int | float) and not isinstance(default, bool):
        return type(default)(number(model, key, default))
    return list(value) if isinstance(value, tuple) else value


def _activation(key: str, value: object, notes: list[str]) -> str:
    known = _ACTIVATIONS.get(str(value).lower())
    if known is None:
        notes.append(f"{key} = {value!r} became relu.")
    return known or "relu"


def _widths(key: str, value: object) -> list[int]:
    if isinstance(value, list | tuple) and all(type(width) is int for width in value):
        return list(value)
    raise ConfigError(f"{key}: must be a list of whole numbers, got {value!r}. Mend it.")


def _dropout(key: str, value: object, notes: list[str]) -> float:
    """One probability for all layers; FuxiCTR also takes one for each."""
    if isinstance(value, list | tuple) and value:
        if len(set(value)) > 1:
            notes.append(f"{key} = {value!r} became {value[0]!r} in every layer.")
        value = value[0]
    return number({key: value}, key, 0.0)


def _training(model: Mapping[str, Any], notes: list[str], *, has_user: bool) -> dict[str, Any]:
    if str(model.get("optimizer", "adam")).lower() != "adam":
        notes.append(f"optimizer = {model['optimizer']!r} became Adam.")
    notes.append(
        "optimizer: FuxiCTR moves whole tables at each step, by Adam and by L2, and clips all "
        "gradients together; tamis moves the rows of the batch, makes up for the L2 that they "
        "missed, and clips the gradients of the network alone."
    )
    _check_loss(model, notes)
    rate = number(model, "learning_rate", 1e-3)
    reduces = model.get("reduce_lr_on_plateau", True)
    return {
        "optimizer": {
            "embedding": "adam",
            "embedding_lr": rate,
            "embedding_l2": _coefficient(model.get("embedding_regularizer"), notes),
            "dense_lr": rate,
            "dense_l2": _coefficient(model.get("net_regularizer"), notes),
            "clip_norm": number(model, "max_gradient_norm", 10.0),
        },
        "schedule": {"plateau_factor": 0.1 if reduces else 1.0},
        "training": {
            "batch_size": int(number(model, "batch_size", 100)),
            "max_epochs": int(number(model, "epochs", 1)),
            "patience": int(number(model, "early_stop_patience", 2)),
            "seed": int(number(model, "seed", 0)),
            "monitor": _monitor(model.get("monitor", "AUC"), notes, has_user=has_user),
            "min_improvement": 1e-6,  # FuxiCTR's
        },
    }


def _check_loss(model: Mapping[str, Any], notes: list[str]) -> None:
    is_regression = str(model.get("task")) == "regression"
    ours = "squared error" if is_regression else "binary cross entropy"
    known = _SQUARED_ERROR if is_regression else _CROSS_ENTROPY
    if model.get("loss") and model["loss"] not in known:
        notes.append(f"loss = {model['loss']!r} became {ours}.")


def _monitor(monitor: object, notes: list[str], *, has_user: bool) -> str:
    """One metric, gAUC where there is a user; FuxiCTR also adds metrics up."""
    names = [str(name) for name in (monitor if isinstance(monitor, Mapping | list) else [monitor])]
    known = {"AUC": "auc", "logloss": "log_loss"} | ({"gAUC": "gauc"} if has_user else {})
    is_known = len(names) == 1 and names[0] in known
    found = known[names[0]] if is_known else "auc"
    if not is_known:
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
