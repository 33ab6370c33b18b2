"""Equal sizes: scales a recipe's hidden widths until the model has a given number of parameters."""

import copy
from typing import Any

import torch

from tamis.data.schema import InputSpec
from tamis.models import catalog
from tamis.training.config import run_config_from_table
from tamis.training.cost import count_parameters

# The widths that say how large a model is without changing what it computes.
WIDTHS: dict[str, tuple[str, ...]] = {
    "dlrm": ("top_units",),
    "dcn_v2": ("hidden_units",),
    "final_mlp": ("first_units", "second_units", "gate_units"),
    "wukong": ("head_units",),
    "dhen": ("head_units",),
    "interformer": ("head_units",),
    "tower_ensemble": ("head_units",),
}
_MULTIPLE = 8
_TOLERANCE = 0.02


def dense_parameters(recipe: dict[str, Any], spec: InputSpec) -> int:
    """Parameters outside embedding tables, without allocating any."""
    settings = run_config_from_table(recipe)
    with torch.device("meta"):
        model = catalog.entry(settings.model_name).model(settings.model, spec)
    return count_parameters(model)["dense"]


def scaled_to(recipe: dict[str, Any], spec: InputSpec, target: int) -> dict[str, Any]:
    """The recipe with its hidden widths times one factor, so that ``target`` is met within 2 %.

    Widths are multiples of 8.

    Raises:
        ValueError: No factor meets the target, as where other parts alone exceed it.
    """

    def at(factor: float) -> dict[str, Any]:
        scaled = copy.deepcopy(recipe)
        for name in WIDTHS[recipe["model"]["name"]]:
            units = recipe["model"][name]
            scaled["model"][name] = [
                max(_MULTIPLE, _MULTIPLE * round(width * factor / _MULTIPLE)) for width in units
            ]
        return scaled

    low, high = 0.0, 64.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if dense_parameters(at(middle), spec) < target else (low, middle)
    best = min((at(low), at(high)), key=lambda one: abs(dense_parameters(one, spec) - target))
    found = dense_parameters(best, spec)
    if abs(found - target) > _TOLERANCE * target:
        raise ValueError(
            f"{recipe['model']}: must reach {target:,} dense parameters, got {found:,}"
        )
    return best
