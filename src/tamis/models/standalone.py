"""Every model that is not made of other models, by name."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tamis.data.schema import Side
from tamis.errors import ConfigError
from tamis.models.adatt import AdaTT, AdaTTConfig
from tamis.models.autoint import AutoInt, AutoIntConfig
from tamis.models.bst import BST, BSTConfig
from tamis.models.cross_stitch import CrossStitch, CrossStitchConfig
from tamis.models.dcn_v2 import DCNv2, DCNv2Config
from tamis.models.deepfm import DeepFM, DeepFMConfig
from tamis.models.dhen import DHEN, DHENConfig
from tamis.models.dien import DIEN, DIENConfig
from tamis.models.din import DIN, DINConfig
from tamis.models.dlrm import DLRM, DLRMConfig
from tamis.models.dmin import DMIN, DMINConfig
from tamis.models.dmr import DMR, DMRConfig
from tamis.models.early_stage import EarlyStage, EarlyStageConfig
from tamis.models.esmm import ESMM, ESMMConfig
from tamis.models.final_mlp import FinalMLP, FinalMLPConfig
from tamis.models.fm import FM, FMConfig
from tamis.models.fmfm import FmFM, FmFMConfig
from tamis.models.hsnn import HSNN, HSNNConfig
from tamis.models.interformer import InterFormer, InterFormerConfig
from tamis.models.lr import LR, LRConfig
from tamis.models.mmoe import MMoE, MMoEConfig
from tamis.models.multi_embedding import MultiEmbedding, MultiEmbeddingConfig
from tamis.models.ple import PLE, PLEConfig
from tamis.models.shared_bottom import SharedBottom, SharedBottomConfig
from tamis.models.tower_ensemble import TowerEnsemble, TowerEnsembleConfig
from tamis.models.transact import TransAct, TransActConfig
from tamis.models.two_tower import TwoTower, TwoTowerConfig
from tamis.models.wukong import Wukong, WukongConfig
from tamis.models.xdeepfm import XDeepFM, XDeepFMConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A model and the config class that describes it; ``model(config, spec)`` builds it."""

    config: Any
    """Frozen dataclass."""
    model: Any
    """Module whose ``forward(batch)`` gives an ``Output``."""
    sides: tuple[Side, ...] = ("user", "item", "context")
    """Sides of the inputs that the model reads."""


STANDALONE: dict[str, Entry] = {
    "adatt": Entry(config=AdaTTConfig, model=AdaTT),
    "autoint": Entry(config=AutoIntConfig, model=AutoInt),
    "bst": Entry(config=BSTConfig, model=BST),
    "cross_stitch": Entry(config=CrossStitchConfig, model=CrossStitch),
    "dcn_v2": Entry(config=DCNv2Config, model=DCNv2),
    "deepfm": Entry(config=DeepFMConfig, model=DeepFM),
    "dhen": Entry(config=DHENConfig, model=DHEN),
    "dien": Entry(config=DIENConfig, model=DIEN),
    "din": Entry(config=DINConfig, model=DIN),
    "dlrm": Entry(config=DLRMConfig, model=DLRM),
    "dmin": Entry(config=DMINConfig, model=DMIN),
    "dmr": Entry(config=DMRConfig, model=DMR),
    "early_stage": Entry(config=EarlyStageConfig, model=EarlyStage),
    "esmm": Entry(config=ESMMConfig, model=ESMM),
    "final_mlp": Entry(config=FinalMLPConfig, model=FinalMLP),
    "fm": Entry(config=FMConfig, model=FM),
    "fmfm": Entry(config=FmFMConfig, model=FmFM),
    "hsnn": Entry(config=HSNNConfig, model=HSNN),
    "interformer": Entry(config=InterFormerConfig, model=InterFormer),
    "lr": Entry(config=LRConfig, model=LR),
    "mmoe": Entry(config=MMoEConfig, model=MMoE),
    "multi_embedding": Entry(config=MultiEmbeddingConfig, model=MultiEmbedding),
    "ple": Entry(config=PLEConfig, model=PLE),
    "shared_bottom": Entry(config=SharedBottomConfig, model=SharedBottom),
    "tower_ensemble": Entry(config=TowerEnsembleConfig, model=TowerEnsemble),
    "transact": Entry(config=TransActConfig, model=TransAct),
    "two_tower": Entry(config=TwoTowerConfig, model=TwoTower, sides=("user", "item")),
    "wukong": Entry(config=WukongConfig, model=Wukong),
    "xdeepfm": Entry(config=XDeepFMConfig, model=XDeepFM),
}
"""Members that an ensemble can have."""


def find(entries: Mapping[str, Entry], name: object, *, where: str) -> Entry:
    """Look a model up.

    Args:
        entries: Models by name.
        name: What a config holds.
        where: Its key, for messages.

    Raises:
        ConfigError: There is no model of that name; the message has the nearest one.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"{where}: must be a model of the catalog, got {name!r}. Use one of "
            f"{', '.join(entries)}."
        )
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{where}: must be one of {', '.join(entries)}, got {name!r}. {hint}".rstrip()
        )
    return entries[name]
