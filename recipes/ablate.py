"""Write the recipes of DHEN's ablation: one change each, the same number of dense parameters.

    python recipes/ablate.py

Every variant starts from ``recipes/market/dhen.toml`` without dropout and with the optimizer that
was chosen there. Its heads are widened, or its modules emit fewer tokens, until it has as many
dense parameters as the others; what that does to operations per row stands in the table.
``tamis reproduce dhen-ablations`` trains them.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

from sizing import scaled_to

from tamis import artifacts, config
from tamis.data.dataset import Dataset
from tamis.data.schema import InputSpec
from tamis.reproduce.make import table_dataset
from tamis.reproduce.tables import DHEN_VARIANTS, TABLES

DENSE_PARAMETERS = 800_000
_TOKENS = (8, 6, 4, 3, 2)
_TOWERS = [["dot"], ["linear"], ["dcn_v2"]]


def changes(variant: str) -> dict[str, Any]:
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


def recipe_of(variant: str, base: dict[str, Any], spec: InputSpec) -> dict[str, Any]:
    """The recipe of a variant, at the common size.

    Raises:
        ValueError: Even with the fewest tokens the layers alone are larger.
    """
    error: ValueError | None = None
    for tokens in _TOKENS:
        recipe = copy.deepcopy(base)
        recipe["model"] = {
            "name": "dhen",
            "embedding_dim": base["model"]["embedding_dim"],
            "num_layers": 2,
            "module_tokens": tokens,
            "head_units": [256, 128],
            **changes(variant),
        }
        if recipe["model"]["name"] == "dhen":
            recipe["model"].setdefault("modules", ["dot", "linear", "dcn_v2"])
        try:
            return scaled_to(recipe, spec, DENSE_PARAMETERS)
        except ValueError as caught:
            error = caught
    raise ValueError(f"{variant}: {error}")


def main() -> None:
    """Write ``recipes/dhen-ablations/*.toml``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    here = Path(__file__).parent
    base = config.read_toml(here / "market" / "dhen.toml")
    spec = Dataset.open(table_dataset(TABLES["dhen-ablations"], None, arguments.work)).spec
    for variant in DHEN_VARIANTS:
        text = config.write_toml(recipe_of(variant, base, spec))
        artifacts.write_text(here / "dhen-ablations" / f"{variant}.toml", text)


if __name__ == "__main__":
    main()
