"""The tables that ``tamis reproduce`` makes, with the published figures that stand beside ours."""

from dataclasses import dataclass

RANKERS = ("lr", "fm", "deepfm", "dcn_v2", "final_mlp", "autoint", "wukong", "dhen")

# Of the specification's list: modules alone, in pairs, in threes; depth; ensemble; shortcut; norm;
# and networks that are no hierarchical ensemble, at the same number of dense parameters.
DHEN_VARIANTS = (
    "dhen",
    *(f"only-{name}" for name in ("dot", "attention", "conv", "linear", "dcn_paper", "dcn_v2")),
    "pair-dot-linear",
    "pair-dot-dcn_v2",
    "pair-linear-dcn_v2",
    "pair-attention-linear",
    "pair-attention-conv",
    "three-attention-linear-dot",
    *(f"depth-{layers}" for layers in (1, 4, 8)),
    *(f"ensemble-{name}" for name in ("sum", "weighted_sum")),
    *(f"shortcut-{name}" for name in ("none", "mlp")),
    *(f"norm-{name}" for name in ("off", "pre_sum")),
    *(f"control-{name}" for name in ("towers", "wide", "moe")),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A figure that somebody else reported."""

    model: str
    """Model it is about, by its name in the catalog."""
    auc: float
    """Test AUC."""
    log_loss: float
    """Test log loss, nats."""
    protocol: str
    """Who measured it, and in what the set-up differs from ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultTable:
    """One table: models on a dataset, over seeds."""

    name: str
    """Name of the table and of its files in ``results/``."""
    dataset: str
    """Public set, or ``market:ROWS`` for the simulated market with that many impressions."""
    models: tuple[str, ...]
    """Recipes ``recipes/<name>/<model>.toml``, in the order of the table."""
    task: str
    """Task whose metrics are compared."""
    seeds: int = 5
    """Seeds 0 to seeds - 1."""
    published: tuple[Published, ...] = ()
    """Figures of others on the same rows."""

    def __post_init__(self) -> None:
        assert self.seeds > 1, "a standard deviation needs two seeds"


_BARS = "BARS-CTR frappe_x1, embedding width 10, published training file"
_FUXICTR = "FuxiCTR 2.3.10, published settings, one seed, these very files"

TABLES: dict[str, ResultTable] = {
    table.name: table
    for table in (
        ResultTable(
            name="frappe",
            dataset="frappe",
            models=RANKERS,
            task="label",
            published=(
                Published(model="lr", auc=0.9356, log_loss=0.3076, protocol=_BARS),
                Published(model="fm", auc=0.9671, log_loss=0.2065, protocol=_BARS),
                Published(model="deepfm", auc=0.984, log_loss=0.148, protocol=_BARS),
                Published(model="autoint", auc=0.9848, log_loss=0.149, protocol=_BARS),
                Published(model="final_mlp", auc=0.9861, log_loss=0.148, protocol=_BARS),
                Published(model="dcn_v2", auc=0.98556, log_loss=0.1471, protocol=_FUXICTR),
                Published(model="final_mlp", auc=0.98542, log_loss=0.1539, protocol=_FUXICTR),
            ),
        ),
        ResultTable(name="movielens1m", dataset="movielens_1m", models=RANKERS, task="click"),
        ResultTable(
            name="criteo-attribution",
            dataset="criteo_attribution_5cat",
            models=RANKERS,
            task="click",
            published=(
                Published(
                    model="lr",
                    auc=0.6512,
                    log_loss=0.6192,
                    protocol="one-hot logistic regression, scikit-learn, all training rows",
                ),
            ),
        ),
        ResultTable(
            name="market",
            dataset="market:5000000",
            models=("dlrm", "dcn_v2", "final_mlp", "wukong", "dhen"),
            task="click",
        ),
        ResultTable(
            name="dhen-ablations",
            dataset="market:1000000",
            models=DHEN_VARIANTS,
            task="click",
            seeds=3,
        ),
    )
}
"""Every table by name."""
