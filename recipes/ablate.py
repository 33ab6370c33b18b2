"""Write the recipes of an ablation table: one change each.

    python recipes/ablate.py dhen-ablations

The variants of ``dhen-ablations`` train as ``recipes/market/dhen.toml`` does; of its model they
take the width of embeddings alone, and have two layers of three modules, no dropout, and this one
change. Their heads are widened, or their modules emit fewer tokens, until all have as many dense
parameters; what that does to operations per row stands in the table.
Those of ``interformer-flows``, ``interformer-ablations``, ``ensemble`` and ``ensemble-ablations``
start from what was chosen for the sequence table of the same data, ``adatt-ablations`` and
``census-9`` from the Census table; they keep all other settings, so their sizes differ, and the
table says by how much.
``tamis reproduce`` trains them.
"""

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sizing import dense_parameters, scaled_to

from tamis import artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec
from tamis.reproduce.kinds import table_dataset
from tamis.reproduce.tables import TABLES

Recipe = dict[str, Any]

DENSE_PARAMETERS = 800_000
_TOKENS = (8, 6, 4, 3, 2)
_TOWERS = [["dot"], ["linear"], ["dcn_v2"]]


def dhen_changes(variant: str) -> dict[str, Any]:
    """What a variant sets, by its name in the table."""
    kind, _, rest = variant.partition("-")
    if kind == "dhen":
        return {}
    if kind in ("only", "pair", "three"):
        return {"modules": rest.split("-")}
    if kind == "depth":
        return {"num_layers": int(rest)}
    if kind in ("ensemble", "shortcut"):
        return {kind: rest}
    if kind == "norm":
        return {"norm": False} if rest == "off" else {"norm_position": rest}
    controls = {
        "towers": {"name": "tower_ensemble", "towers": _TOWERS, "gate": "mean"},
        "moe": {"name": "tower_ensemble", "towers": _TOWERS, "gate": "softmax"},
        "wide": {"modules": ["dot", "dot", "dot"]},
    }
    return controls[rest]


def dhen_variant(variant: str, read: Callable[[str], Recipe], spec: InputSpec) -> Recipe:
    """A variant of DHEN at the common size.

    Raises:
        ValueError: Even with the fewest tokens the layers alone are larger.
    """
    base = read("market/dhen")
    error: ValueError | None = None
    for tokens in _TOKENS:
        recipe = copy.deepcopy(base)
        recipe["model"] = {
            "name": "dhen",
            "embedding_dim": base["model"]["embedding_dim"],
            "num_layers": 2,
            "module_tokens": tokens,
            "head_units": [256, 128],
            **dhen_changes(variant),
        }
        if recipe["model"]["name"] == "dhen":
            recipe["model"].setdefault("modules", ["dot", "linear", "dcn_v2"])
        try:
            return scaled_to(recipe, spec, DENSE_PARAMETERS)
        except ValueError as caught:
            error = caught
    raise ValueError(f"{variant}: {error}")


_FLOWS = {
    "sole": "sole",
    "sep": "none",
    "s2n": "to_fields",
    "n2s": "to_events",
    "both": "both",
}


def flow_variant(variant: str, read: Callable[[str], Recipe], spec: InputSpec) -> Recipe:
    """InterFormer with one backbone and one flow."""
    del spec
    backbone, _, flow = variant.partition("-")
    recipe = copy.deepcopy(read("interformer"))
    recipe["model"] |= {"backbone": backbone, "flow": _FLOWS[flow]}
    return recipe


def interformer_variant(variant: str, read: Callable[[str], Recipe], spec: InputSpec) -> Recipe:
    """InterFormer with one change; ``early-*`` is DHEN alone on another summary of the history."""
    del spec
    recipe = copy.deepcopy(read("interformer"))
    # The paper's gate, backbone and a depth in the middle, whatever was drawn: else a variant is
    # its base.
    recipe["model"] |= {"gate": "identity", "num_layers": 2, "backbone": "dhen"}
    model, (kind, _, rest) = recipe["model"], variant.partition("-")
    if variant == "dhen-sole" or kind == "early":
        history = rest if kind == "early" else "mean"
        return _without_sequence(recipe, history=history)
    if variant == "dhen-both":
        model["flow"] = "both"
    elif kind == "depth":
        model["num_layers"] = int(rest)
    elif kind == "gate":
        model["gate"] = rest
    elif variant == "other-style":
        model["style"] = "literal" if model["style"] != "literal" else "pre_norm"
    else:
        model |= {
            "pma": {"pooled_tokens": 0},
            "recent": {"recent_tokens": 0},
            "gate": {"gate": "none"},
            "pffn": {"personal": "none"},
            "mha": {"attention": False},
            "cls": {"class_tokens": False},
            "rope": {"rotary": False},
        }[rest]
    return recipe


def _without_sequence(recipe: Recipe, *, history: str) -> Recipe:
    """DHEN alone, on a summary of the history, trained as InterFormer is."""
    shared = ("embedding_dim", "head_units", "head_norm", "dropout", "num_layers", "init_std")
    kept = {key: recipe["model"][key] for key in shared if key in recipe["model"]}
    modules = ["dot", "dcn_v2"]
    return {**recipe, "model": {"name": "dhen", "modules": modules, "history": history} | kept}


def adatt_variant(variant: str, read: Callable[[str], Recipe], spec: InputSpec) -> Recipe:
    """A variant of AdaTT on Census-Income."""
    del spec
    recipe = copy.deepcopy(read("census/adatt"))
    recipe["model"] |= {"task_experts": [2], "shared_experts": 0}  # 6 experts, none shared
    kind, _, rest = variant.partition("-")
    levels = {"1": [[128, 64]], "3": [[256], [128], [64]]}
    # Six experts in all, of which so many are shared.
    owned = {"1": [2, 2, 1], "3": [1]}
    if variant == "native-only":
        recipe["model"]["gate"] = "none"
    elif variant == "unequal":
        recipe["model"]["task_experts"] = [3, 2, 1]
    elif variant != "adatt":
        recipe["model"] |= {
            "no": {"native": "none"},
            "gate": {"gate": rest},
            "native": {"native": rest},
            "shared": {
                "task_experts": owned.get(rest),
                "shared_experts": int(rest) if rest.isdigit() else 0,
            },
            "experts": {"task_experts": [int(rest) if rest.isdigit() else 0]},
            "levels": {"expert_units": levels.get(rest)},
        }[kind]
    return recipe


def nine_experts(variant: str, read: Callable[[str], Recipe], spec: InputSpec) -> Recipe:
    """A model of the Census table at the paper's other budget: 9 experts of 96-48."""
    del spec
    recipe = copy.deepcopy(read(f"census/{variant}"))
    experts: dict[str, dict[str, Any]] = {
        "ml_mmoe": {"num_experts": 9},
        "ple": {"task_experts": 2, "shared_experts": 3},
        "adatt": {"task_experts": [3], "shared_experts": 0},
    }
    recipe["model"] |= {"expert_units": [[96], [48]], **experts[variant]}
    return recipe


def ensemble_variant(variant: str, read: Callable[[str], Recipe], spec: InputSpec) -> Recipe:
    """A member alone, CETNet, or CETNet with one change.

    CETNet trains as its first member does alone.
    """
    alone = {name: copy.deepcopy(read(name)) for name in ("interformer", "dhen")}
    name, _, rest = variant.partition("-")
    if variant in alone:
        return alone[variant]
    if rest == "2x":
        # Twice the width of the tables, and dense parameters at least twice as many.
        recipe = alone[name]
        size = 2 * dense_parameters(recipe, spec)
        recipe["model"]["embedding_dim"] *= 2
        is_smaller = dense_parameters(recipe, spec) < size
        return scaled_to(recipe, spec, size) if is_smaller else recipe
    pair = [alone["interformer"]["model"], alone["dhen"]["model"]]
    width = alone["interformer"]["model"]["embedding_dim"]
    dropout = alone["interformer"]["model"].get("dropout", 0.0)
    mlp = {
        "name": "deepfm",  # an MLP beside a factorization machine
        "embedding_dim": width,
        "hidden_units": [256, 128],
        "dropout": dropout,
    }
    training = {key: alone["interformer"][key] for key in ("optimizer", "schedule", "training")}
    if variant == "mlp":
        return {"model": mlp, **training}
    changed: dict[str, dict[str, Any]] = {
        "cetnet": {},
        "col-detached": {"detach_peer": True},
        "fuse-mean": {"confidence": "none"},
        "fuse-logit": {"fuse": "logit"},
        "tau-learned": {"learn_tau": True},
        "fused-only": {"member_weight": 0.0, "collaboration": "none"},
        "shared": {"embeddings": "shared"},
        "detached-weights": {"detach_weights": True},
        "twins-interformer": {"members": [pair[0], pair[0]]},
        "twins-dhen": {"members": [pair[1], pair[1]]},
        "three": {"members": [*pair, mlp]},
        "four": {"members": [*pair, *pair]},
        "mlp-fused-only": {
            "members": [mlp, mlp],
            "member_weight": 0.0,
            "collaboration": "none",
            "confidence": "none",
            "fuse": "logit",
        },
        "mlp-taught": {"members": [mlp, mlp], "member_weight": 1.0, "fused_weight": 0.0},
    }
    by_kind: dict[str, dict[str, Any]] = {
        "col": {"collaboration": rest},
        "fuse": {"confidence": rest},
        "tau": {"tau": float(rest) if rest.replace(".", "").isdigit() else 1.0},
    }
    change = changed[variant] if variant in changed else by_kind[name]
    return {"model": {"name": "cetnet", "members": pair, **change}, **training}


WRITERS: dict[str, Callable[[str, Callable[[str], Recipe], InputSpec], Recipe]] = {
    "dhen-ablations": dhen_variant,
    "adatt-ablations": adatt_variant,
    "census-9": nine_experts,
    **{f"interformer-flows-{name}": flow_variant for name in ("rees46", "market")},
    "interformer-ablations-market": interformer_variant,
    **{f"ensemble-{name}": ensemble_variant for name in ("rees46", "market")},
    "ensemble-ablations-rees46": ensemble_variant,
}
_ABOUT = {"census-9": "# Settings of recipes/census with 9 experts of 96-48; not tuned anew.\n"}


def main() -> None:
    """Write ``recipes/<table>/*.toml``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", choices=sorted(WRITERS))
    parser.add_argument("--data", type=Path, default=os.environ.get("TAMIS_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    table, here = TABLES[arguments.table], Path(__file__).parent
    spec = Dataset.open(table_dataset(table, arguments.data, arguments.work)).spec

    def read(name: str) -> Recipe:
        """A recipe: of the sequence table of the same data, unless the name has its table."""
        path = name if "/" in name else f"sequence-{table.name.rpartition('-')[2]}/{name}"
        return config.read_toml(here / f"{path}.toml")

    for variant in table.models:
        recipe = WRITERS[table.name](variant, read, spec)
        text = _ABOUT.get(table.name, "") + config.write_toml(recipe)
        artifacts.write_text(here / table.name / f"{variant}.toml", text)


if __name__ == "__main__":
    main()
