"""Tables of the papers on public sets that only their users can fetch, with the published figures.

InterFormer's table 3 stands on sets without a validation split. ``interformer-table3`` chooses
epochs on the test split, as the paper and BARS did, and is there for comparison with their figures;
``interformer-held-out`` trains the same recipes with a part of the training file held out for that,
and is what a test split should be used for.

Figures and settings named BARS are those of ``ranking/ctr/<model>/<model>_<set>/README.md`` in
reczoo/BARS: the mean of five runs where there are five, else the one run that is logged. BARS stops
some runs by gAUC, or by AUC and log loss together; here it is the AUC.
"""

from tamis.reproduce.result_table import Comparison, Published, ResultTable, beats

# AUC and log loss, of one run, or of five where told so.
_BARS_SETS: dict[str, tuple[str, str, dict[str, tuple[float, float]]]] = {
    "criteo_x1": (
        "Criteo_x1",
        "label",
        {
            "lr": (0.788625, 0.460914),
            "fm": (0.802157, 0.449063),
            "deepfm": (0.813812, 0.438033),
            "dcn_v2": (0.813939, 0.438087),
            "final_mlp": (0.814902, 0.437025),
            "autoint": (0.813939, 0.437892),
        },
    ),
    "criteo_x4": (
        "Criteo_x4_001",
        "Label",
        {
            "lr": (0.793359, 0.456754),
            "fm": (0.808607, 0.443109),
            "deepfm": (0.814332, 0.437584),
            "dcn_v2": (0.814514, 0.437631),
            "autoint": (0.813240, 0.439023),
        },
    ),
    "avazu_x1": (
        "Avazu_x1",
        "label",
        {
            "lr": (0.751625, 0.373527),
            "fm": (0.761253, 0.367738),
            "deepfm": (0.764586, 0.366971),
            "dcn_v2": (0.763639, 0.367326),
            "final_mlp": (0.766566, 0.365803),
            "autoint": (0.764524, 0.366815),
        },
    ),
    "avazu_x4": (
        "Avazu_x4_001",
        "click",
        {
            "lr": (0.777457, 0.381525),
            "fm": (0.788721, 0.375362),
            "deepfm": (0.792990, 0.371901),
            "dcn_v2": (0.793146, 0.371865),
            "autoint": (0.790215, 0.374625),
        },
    ),
}
_FIVE_RUNS = {(name, model) for name in ("criteo_x1", "avazu_x1") for model in ("deepfm", "dcn_v2")}
# Without published settings on these sets: those of DCN-V2 there. CETNet is of DCN-V2 and DHEN.
_WITHOUT_FIGURES = ("wukong", "dhen", "multi_embedding", "cetnet")

Figures = dict[str, tuple[float, float, float]]
"""gAUC, AUC and log loss of each model."""

# InterFormer, table 3.
_PAPER: dict[str, Figures] = {
    "amazon": {
        "fm": (0.8494, 0.8485, 0.5060),
        "xdeepfm": (0.8763, 0.8791, 0.4394),
        "autoint": (0.8786, 0.8804, 0.4441),
        "dcn_v2": (0.8783, 0.8807, 0.4447),
        "fmfm": (0.8521, 0.8537, 0.4796),
        "dlrm": (0.8697, 0.8703, 0.4485),  # DOT
        "dhen": (0.8759, 0.8790, 0.4398),
        "wukong": (0.8747, 0.8765, 0.4455),
        "din": (0.8817, 0.8848, 0.4324),
        "dien": (0.8825, 0.8856, 0.4276),
        "bst": (0.8823, 0.8847, 0.4305),
        "dmin": (0.8831, 0.8852, 0.4298),
        "dmr": (0.8827, 0.8848, 0.4309),
        "transact": (0.8835, 0.8851, 0.4285),
        "interformer": (0.8843, 0.8865, 0.4253),
    },
    "taobao": {
        "fm": (0.5628, 0.6231, 0.1973),
        "xdeepfm": (0.5675, 0.6378, 0.1960),
        "autoint": (0.5701, 0.6467, 0.1941),
        "dcn_v2": (0.5704, 0.6472, 0.1933),
        "fmfm": (0.5698, 0.6330, 0.1963),
        "dlrm": (0.5701, 0.6482, 0.1941),  # DOT
        "dhen": (0.5708, 0.6509, 0.1929),
        "wukong": (0.5693, 0.6478, 0.1932),
        "din": (0.5719, 0.6507, 0.1931),
        "dien": (0.5721, 0.6519, 0.1929),
        "bst": (0.5698, 0.6489, 0.1935),
        "dmin": (0.5723, 0.6498, 0.1933),
        "dmr": (0.5711, 0.6504, 0.1932),
        "transact": (0.5715, 0.6498, 0.1933),
        "interformer": (0.5728, 0.6528, 0.1926),
    },
    "kuai": {
        "fm": (0.6567, 0.7389, 0.4445),
        "xdeepfm": (0.6621, 0.7423, 0.4382),
        "autoint": (0.6619, 0.7420, 0.4369),
        "dcn_v2": (0.6627, 0.7426, 0.4378),
        "fmfm": (0.6552, 0.7389, 0.4429),
        "dlrm": (0.6605, 0.7435, 0.4361),  # DOT
        "dhen": (0.6589, 0.7424, 0.4365),
        "wukong": (0.6587, 0.7423, 0.4372),
        "din": (0.6621, 0.7437, 0.4353),
        "dien": (0.6651, 0.7451, 0.4343),
        "bst": (0.6617, 0.7446, 0.4352),
        "dmin": (0.6623, 0.7449, 0.4356),
        "dmr": (0.6642, 0.7449, 0.4355),
        "transact": (0.6632, 0.7448, 0.4352),
        "interformer": (0.6637, 0.7453, 0.4340),
    },
}
_BARS: dict[str, Figures] = {
    "amazon": {
        "fm": (0.849405, 0.848518, 0.506075),
        "xdeepfm": (0.878973, 0.881289, 0.438688),
        "autoint": (0.878682, 0.880402, 0.444114),
        "dcn_v2": (0.879046, 0.881160, 0.444522),
        "din": (0.883526, 0.886028, 0.430190),
        "dien": (0.885625, 0.888777, 0.425708),
        "bst": (0.884108, 0.886424, 0.430077),
        "dmin": (0.885636, 0.887665, 0.424567),
        "dmr": (0.885142, 0.887335, 0.427744),
    },
    "taobao": {
        "fm": (0.563808, 0.623407, 0.196925),
        "xdeepfm": (0.572884, 0.639251, 0.195328),
        "autoint": (0.574437, 0.648629, 0.193020),
        "dcn_v2": (0.574892, 0.649458, 0.192927),
        "din": (0.576459, 0.652399, 0.192445),
        "dien": (0.576916, 0.652937, 0.192840),
        "bst": (0.576304, 0.651131, 0.192842),
        "dmin": (0.577000, 0.651103, 0.192813),
        "dmr": (0.576770, 0.652411, 0.193055),
    },
    "kuai": {
        "fm": (0.659864, 0.741790, 0.439771),
        "xdeepfm": (0.669617, 0.747075, 0.437683),
        "autoint": (0.666719, 0.746899, 0.435692),
        "dcn_v2": (0.667472, 0.746953, 0.437494),
        "din": (0.669568, 0.749537, 0.432120),
        "dien": (0.671148, 0.750372, 0.433049),
        "bst": (0.669039, 0.748407, 0.433819),
        "dmin": (0.672621, 0.750777, 0.430187),
        "dmr": (0.668880, 0.748489, 0.435421),
    },
}
_EPOCHS = "epochs chosen on the test split"
# Name in the tables, public set and task.
_SEQUENCES = (
    ("amazon", "amazon_electronics_x1", "label"),
    ("taobao", "taobao_ad_x1", "clk"),
    ("kuai", "kuai_video_x1", "is_click"),
)


def original_tables() -> tuple[ResultTable, ...]:
    """Those of Criteo and Avazu; InterFormer's table 3, as published and without the test split."""
    return (*_rankers(), *_table_3(), *_held_out())


def _rankers() -> tuple[ResultTable, ...]:
    tables = []
    for name, (source, task, figures) in _BARS_SETS.items():
        models = (*figures, *_WITHOUT_FIGURES)
        published = (
            Published(
                model=model,
                auc=auc,
                log_loss=log_loss,
                protocol=f"BARS, {source}, {'5 runs' if (name, model) in _FIVE_RUNS else '1 run'}",
            )
            for model, (auc, log_loss) in figures.items()
        )
        tables.append(
            ResultTable(
                name=name,
                dataset=name,
                models=models,
                tasks=(task,),
                comparisons=(
                    *beats("dhen", tuple(model for model in models if model != "cetnet")),
                    *beats("cetnet", ("dcn_v2", "dhen", "multi_embedding")),
                ),
                published=tuple(published),
            )
        )
    return tuple(tables)


def _table_3() -> tuple[ResultTable, ...]:
    return tuple(
        ResultTable(
            name=f"interformer-table3-{name}",
            dataset=f"{dataset}_bars",
            models=tuple(_PAPER[name]),
            tasks=(task,),
            comparisons=_claims(tuple(_PAPER[name])),
            published=(
                *_figures(_PAPER[name], f"InterFormer, table 3, {_EPOCHS}"),
                *_figures(_BARS[name], f"BARS, 1 run, {_EPOCHS}"),
            ),
        )
        for name, dataset, task in _SEQUENCES
    )


def _held_out() -> tuple[ResultTable, ...]:
    return tuple(
        ResultTable(
            name=f"interformer-held-out-{name}",
            dataset=dataset,
            models=tuple(_PAPER[name]),
            tasks=(task,),
            comparisons=_claims(tuple(_PAPER[name])),
            recipes=f"interformer-table3-{name}",
        )
        for name, dataset, task in _SEQUENCES
    )


def _claims(models: tuple[str, ...]) -> tuple[Comparison, ...]:
    """The paper's claims, by both of its metrics."""
    return (
        *beats("interformer", models, metric="gauc"),
        *beats("interformer", models, metric="auc"),
    )


def _figures(figures: Figures, protocol: str) -> tuple[Published, ...]:
    return tuple(
        Published(model=model, auc=auc, gauc=gauc, log_loss=log_loss, protocol=protocol)
        for model, (gauc, auc, log_loss) in figures.items()
    )
